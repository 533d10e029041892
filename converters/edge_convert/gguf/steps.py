"""GGUF as steps of a conversion: read back, write without loss, calibrate, quantise."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import msgspec

from edge.errors import UsageError
from edge.formats.gguf import read_header
from edge.hashes import file_sha256
from edge_convert import estimates
from edge_convert.checkpoint import open_checkpoint, read_json
from edge_convert.facts import Facts, Request
from edge_convert.gguf.imatrix import calibration_chunks, compute_imatrix, read_calibration
from edge_convert.gguf.imatrix_file import check_fits
from edge_convert.gguf.limits import check_config, check_output_bias
from edge_convert.gguf.quantise import FLOATS, GgufOptions, check_tokenizer, describe_types, needs_imatrix, quantise
from edge_convert.gguf.shards import split_into_shards
from edge_convert.gguf.vocabulary import check_kind
from edge_convert.pipeline import FolderOf, Step, StepProgress, digest_of
from edge_convert.recover.steps import reading_steps, recovery_steps
from edge_convert.recover.targets import gguf_target

__all__ = ["make_steps", "read_step", "tokenizer_step"]

_IMATRIX = "imatrix.gguf"
_CORE_BYTES_S = 40e6  # weights that a core quantises in a second, in 16 bits; measured on a slow one
_CORE_CALIBRATION_S = 6e-11  # seconds per weight and token
_BITS = {"F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.6, "Q6_K": 7.5}


def make_steps(facts: Facts, request: Request) -> list[Step]:
    """Plan the steps from a model to GGUF files, one artifact per quantisation.

    Raises:
        ModelFileError: llama.cpp cannot run this variant of the architecture.
        UsageError: blocks that are copied are to be recovered.
    """
    check_config(facts.model, facts.architecture)
    if facts.input.kind == "checkpoint":
        check_kind(read_json(facts.input.path / "tokenizer.json"), facts.input.path.name)
        check_output_bias(open_checkpoint(facts.input.path, source=facts.input.source))
    options = request.gguf
    copied = facts.quantised if facts.input.kind == "gguf" and not facts.made_by else None
    steps = [_copy_step(facts, options, name) for name in options.quantisations if name == copied]
    rest = tuple(name for name in options.quantisations if name != copied)
    wanted = msgspec.structs.replace(options, quantisations=rest)
    if (options.imatrix or options.save_imatrix) and not needs_imatrix(wanted):
        raise UsageError(
            f"{', '.join(options.quantisations)} is made without an importance matrix.",
            "Name another quantisation, or leave it out.",
        )
    if not rest and request.recovery:
        raise UsageError(
            f"The {copied} blocks of the source are copied, so there is nothing to recover.", "Name another type: --quant Q4_0"
        )
    if not rest:
        return steps
    steps.append(_write_step(facts))
    if needs_imatrix(wanted):
        steps.append(_given_imatrix_step(wanted.imatrix) if wanted.imatrix else _imatrix_step(facts, wanted))
        if wanted.save_imatrix:
            steps.append(_save_step(wanted.save_imatrix))
    if request.recovery is None:
        return steps + [_quantise_step(facts, wanted, name) for name in rest]
    steps += reading_steps(facts, request.recovery, options.n_threads)
    for name in rest:
        plain = _quantise_step(facts, wanted, name, is_plain=True)
        target = gguf_target(facts, name, plain.name)
        steps += [plain, *recovery_steps(facts, request.recovery, target, options.n_threads)]
    return steps


def read_step(facts: Facts) -> Step:
    """Plan the step that reads a GGUF back into a checkpoint."""

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.gguf.read_back import checkpoint_from_gguf

        source = facts.input
        checkpoint_from_gguf(
            source.path, folder, source=source.source, licence=source.licence, on_progress=lambda share: on_progress("", share)
        )

    return Step(
        name="checkpoint",
        title="Read the GGUF back into a checkpoint",
        work=work,
        seconds=facts.n_params / 60e6,
        disk_bytes=facts.n_params * (4 if facts.quantised else 2),
        memory_bytes=estimates.read_gguf(facts),
        is_heavy=True,
    )


def tokenizer_step(facts: Facts) -> Step:
    """Plan the step that reads all but the weights of a GGUF, for steps that take those from the file."""

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.gguf.read_back import tokenizer_from_gguf

        tokenizer_from_gguf(facts.input.path, folder)

    return Step(
        name="tokenizer",
        title="Read the tokenizer of the GGUF",
        work=work,
        seconds=3 + facts.n_vocab / 30e3,
        memory_bytes=estimates.read_tokenizer(facts),
        is_heavy=True,
    )


def _write_step(facts: Facts) -> Step:
    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        from edge_convert.gguf.check_logits import check_logits
        from edge_convert.gguf.tensors import lossless_precision, write_gguf

        checkpoint = facts.open(folder_of)
        path = folder / "base.gguf"
        precision = lossless_precision(checkpoint)
        write_gguf(checkpoint, path, precision, lambda share: on_progress("weights", share * 0.7))
        check_tokenizer(
            path,
            checkpoint.folder,
            checkpoint.model.n_vocab,
            lambda share: on_progress("comparing tokens", 0.7 + share * 0.1),
            name=checkpoint.name,
        )
        on_progress("comparing logits", 0.8)
        check_logits(path, checkpoint, precision, folder)

    return Step(
        name="gguf-base",
        title="Write GGUF without loss, and compare tokens and logits",
        work=work,
        seconds=5 + facts.n_params / 40e6,
        disk_bytes=(4 if facts.quantised else 2) * facts.n_params,
        memory_bytes=estimates.write_gguf(facts),
        is_heavy=True,
    )


def _imatrix_step(facts: Facts, options: GgufOptions) -> Step:
    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        base = folder_of("gguf-base") / "base.gguf"
        chunks = calibration_chunks(base, read_calibration(options.calibration), options.calibration_tokens)
        text = options.calibration.name if options.calibration else "edge's calibration text"
        compute_imatrix(base, chunks, folder / _IMATRIX, options.n_threads, text, lambda share: on_progress("", share))

    return Step(
        name="imatrix",
        title=f"Find out which weights matter, on {options.calibration_tokens:,} tokens of text",
        work=work,
        seconds=facts.n_params * options.calibration_tokens * _CORE_CALIBRATION_S / options.n_threads,
        memory_bytes=estimates.calibrate(facts),
    )


def _given_imatrix_step(file: Path) -> Step:
    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        tensors = read_header(folder_of("gguf-base") / "base.gguf").tensors
        widths = {tensor.name: tensor.shape[0] * math.prod(tensor.shape[2:]) for tensor in tensors if len(tensor.shape) > 1}
        check_fits(file, widths)
        shutil.copyfile(file, folder / _IMATRIX)

    return Step(name="imatrix", title=f"Check the importance matrix {file.name}", work=work, seconds=2)


def _save_step(file: Path) -> Step:
    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        partial = file.with_name(f".{file.name}.part")
        try:
            shutil.copyfile(folder_of("imatrix") / _IMATRIX, partial)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)

    return Step(name="save-imatrix", title=f"Store the importance matrix as {file.name}", work=work, seconds=1)


def _quantise_step(facts: Facts, options: GgufOptions, name: str, *, is_plain: bool = False) -> Step:
    """Plan the quantisation; `is_plain` if it is not the result, but what a recovery begins with."""
    uses_matrix = needs_imatrix(msgspec.structs.replace(options, quantisations=(name,)))

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        matrix = folder_of("imatrix") / _IMATRIX if uses_matrix else None
        if name == "F16":
            facts.open(folder_of).check_fits_f16()
        base, path = folder_of("gguf-base") / "base.gguf", folder / f"{facts.name}-{name}.gguf"
        quantise(base, path, name, options, matrix, lambda share: on_progress("", share))
        recipe = {"quantisation": name, "importance matrix": "no"}
        if matrix is not None:
            recipe["importance matrix"] = _origin(options, matrix)
        recipe["types of the weights"] = describe_types(path)
        recipe |= _split(path, options)
        facts.write_manifest(folder, folder_of, "gguf", name, recipe)

    return Step(
        name=f"plain-{name}" if is_plain else f"gguf-{name}",
        title=f"Write {name}" if name in FLOATS else f"Quantise to {name}",
        work=work,
        artifact=not is_plain,
        seconds=1 + facts.f16_bytes / (_CORE_BYTES_S * options.n_threads),
        disk_bytes=int(facts.n_params * _bits(name) / 8),
        memory_bytes=estimates.quantise(facts),
    )


def _origin(options: GgufOptions, matrix: Path) -> str:
    """Say where an importance matrix comes from, for the manifest."""
    if options.imatrix:
        return f"{options.imatrix.name}, SHA-256 {file_sha256(matrix)[:16]}"
    return f"{options.calibration_tokens} tokens of the text {digest_of(read_calibration(options.calibration))[:16]}"


def _split(path: Path, options: GgufOptions) -> dict[str, str]:
    """Split a result if that is wanted, and return the line of its recipe about it."""
    if not options.shard_bytes:
        return {}
    return {"files": str(len(split_into_shards(path, options.shard_bytes)))}


def _copy_step(facts: Facts, options: GgufOptions, name: str) -> Step:
    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        path = folder / f"{facts.name}-{name}.gguf"
        shutil.copyfile(facts.input.path, path)
        recipe = {"quantisation": name, "made by": "copying the source", **_split(path, options)}
        facts.write_manifest(folder, folder_of, "gguf", name, recipe)

    size = facts.input.path.stat().st_size
    title = f"Copy the {name} blocks as they are"
    return Step(name=f"gguf-{name}", title=title, work=work, artifact=True, seconds=size / 500e6, disk_bytes=size)


def _bits(name: str) -> float:
    """Return bits a weight, on the safe side: small models keep more tensors in 8 bits than large ones."""
    return _BITS.get(name) or next(int(char) for char in name if char.isdecimal()) + 2.8
