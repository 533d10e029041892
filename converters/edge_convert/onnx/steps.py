"""ONNX as a step of a conversion."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edge.errors import UsageError
from edge_convert import estimates
from edge_convert.facts import Facts, Request
from edge_convert.onnx import export
from edge_convert.onnx.blocks import carried_bytes, carried_share
from edge_convert.onnx.limits import check_config
from edge_convert.pipeline import FolderOf, Step, StepProgress

__all__ = ["make_steps"]

_PRECISIONS: dict[int, Literal["int4", "int8", "fp32"]] = {4: "int4", 8: "int8", 16: "fp32"}
_BYTES = {"int4": 0.9, "int8": 1.3, "fp32": 4.2}  # per weight
_QUANTISED_S = {"int4": 6e6, "int8": 6e6, "fp32": 100e6}  # weights in a second, on one slow core
_CARRIED_S = 40e6
_TOKEN_BYTES = 140  # in tokenizer.json


def make_steps(facts: Facts, request: Request) -> list[Step]:
    """Plan the step from a model to an ONNX folder.

    Raises:
        UsageError: ONNX does not have that many bits.
        ModelFileError: onnxruntime's kernels cannot compute this variant of the architecture.
    """
    check_config(facts.model)
    precision = _PRECISIONS.get(request.bits)
    if precision is None:
        raise UsageError(f"ONNX has no {request.bits}-bit weights here.", "Choose 4, 8 or 16 bits.")

    source = facts.source_gguf if precision == "int4" else None
    carried = carried_share(source) if source else 0.0
    n_bytes = carried_bytes(source) if source and carried else int(facts.n_params * _BYTES[precision])
    n_tables = 1 if facts.model.rope.local_theta is None else 2  # of cosines and sines, in float32
    n_bytes += n_tables * 4 * facts.model.n_positions * facts.model.n_rotated + _TOKEN_BYTES * facts.n_vocab

    def work(folder: Path, folder_of: FolderOf, on_progress: StepProgress) -> None:
        options = export.OnnxOptions(precision=precision, source_gguf=facts.source_gguf)
        is_direct = facts.source_gguf is not None and not facts.needs_checkpoint(request)
        checkpoint = folder_of("tokenizer") if is_direct else facts.open(folder_of).folder
        export.export_onnx(checkpoint, folder, options, on_progress)
        recipe = {
            "quantisation": export.describe_quantisation(options),
            "block size": str(export.BLOCK_SIZE),
            "accuracy level": str(options.accuracy_level),
        }
        facts.write_manifest(folder, folder_of, "onnx", precision, recipe)

    return [
        Step(
            name=f"onnx-{precision}",
            title=f"Build ONNX, {precision}",
            work=work,
            artifact=True,
            seconds=5 + facts.n_params * ((1 - carried) / _QUANTISED_S[precision] + carried / _CARRIED_S),
            disk_bytes=n_bytes,
            memory_bytes=estimates.build_onnx(facts, precision),
            is_heavy=True,
        )
    ]
