"""Core ML as steps of a conversion, one per variant."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec

from edge.errors import UsageError
from edge.formats.coreml import Variant
from edge_convert import estimates
from edge_convert.coreml import export
from edge_convert.facts import Facts, Request
from edge_convert.gguf.imatrix import read_calibration
from edge_convert.pipeline import FolderOf, Step, StepProgress, digest_of
from edge_convert.recover.steps import describe_recovery, reading_steps, recovery_steps
from edge_convert.recover.targets import REPORT, Target, palettes_target

__all__ = ["make_steps"]


def make_steps(facts: Facts, request: Request) -> list[Step]:
    """Plan the steps from a model to Core ML packages, one per variant; before them, those of a recovery.

    Raises:
        UsageError: Core ML does not have what the request asks for.
    """
    if not request.coreml_variants:
        raise UsageError("No variant of Core ML is named.", "Leave out --variants, or name one: gpu, ane, fp16.")
    if request.bits != 4 and set(request.coreml_variants) != {"fp16"}:
        raise UsageError(
            f"Core ML has no {request.bits}-bit weights here.", "Choose 4 bits, or 16 bits for Core ML: --variants fp16"
        )
    target = palettes_target(facts, request.coreml_palette_bits) if request.recovery else None
    steps = [_step(facts, request, variant, target) for variant in request.coreml_variants]
    if request.recovery is None or target is None:
        return steps
    n_threads = request.gguf.n_threads
    before = [*reading_steps(facts, request.recovery, n_threads), *recovery_steps(facts, request.recovery, target, n_threads)]
    return before + steps


def _step(facts: Facts, request: Request, variant: Variant, recovered: Target | None) -> Step:
    """Plan the step that builds a variant, of recovered palettes if there are any."""
    options = export.CoreMLOptions(
        variant=variant,
        context=request.coreml_context,
        stateful=request.coreml_stateful,
        source_gguf=facts.carried_gguf,
        calibration=request.gguf.calibration,
        palette_bits=request.coreml_palette_bits,
    )
    export.check_options(options, facts.model.n_positions)

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        fitted = folder_of(recovered.trained) / recovered.path if recovered else None
        chosen = msgspec.structs.replace(options, fitted=fitted)
        export.export_coreml(facts.open(folder_of).folder, folder, chosen, on_progress)
        recipe = {"variant": variant, "context": str(options.context), "stateful": str(options.stateful)}
        if variant == "ane":
            recipe["palette bits"] = str(options.palette_bits)
        if variant == "gpu" and options.source_gguf:
            recipe["blocks"] = "of the source GGUF, where its types fit"
        if request.recovery and recovered:
            trained = folder_of(recovered.trained)
            shutil.copyfile(trained / REPORT, folder / REPORT)
            recipe |= describe_recovery(facts, request.recovery, trained, folder_of, request.gguf.n_threads)
        elif variant != "fp16":
            recipe["calibration"] = f"the text {digest_of(read_calibration(options.calibration))[:16]}"
        facts.write_manifest(folder, folder_of, "coreml", variant, recipe)

    return Step(
        name=f"coreml-{variant}",
        title=f"Build Core ML, variant {variant}",
        work=work,
        artifact=True,
        seconds=60 + facts.n_params / 1e6,
        disk_bytes=int(
            facts.n_params * (8.6 if variant == "fp16" else 4.1)
        ),  # with arrays to be packed, and temporary packages
        memory_bytes=estimates.build_coreml(
            facts, is_walked=variant == "ane" or (variant == "gpu" and not options.source_gguf)
        ),
        is_heavy=True,
    )
