"""Makes an ONNX model: int4 MatMulNBits and GroupQueryAttention, past and present KV as inputs and outputs.

decoder.py writes the graph, and the weights pass through memory a piece at a time (matrices.py). The result is a folder in the
layout of onnxruntime-genai (genai_config.json), which plain onnxruntime loads too. The blocks of a GGUF are not quantised a
second time, but carried over (blocks.py).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from edge.errors import ModelFileError, UsageError
from edge_convert.architectures import find_architecture
from edge_convert.checkpoint import open_checkpoint, read_json
from edge_convert.model_config import read_model_config
from edge_convert.onnx.limits import check_config
from edge_convert.shapes import EMBEDDING, tensor_shapes
from edge_convert.targets import check_packages

__all__ = ["OnnxOptions", "describe_quantisation", "export_onnx"]

Progress = Callable[[str, float], None]

BLOCK_SIZE = 32
"""Weights that share a scale, where they are quantised anew."""
_PRECISIONS = ("int4", "int8", "fp32")


class OnnxOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to make an ONNX model.

    Attributes:
        precision: of the matrices: "int4", "int8" or "fp32". Norms, activations and KV are float32, as the CPU computes them.
        accuracy_level: 4 computes with activations rounded to int8 per block, 1 with float32: closer and slower.
        source_gguf: take the weights from this GGUF; with "int4" its blocks, if edge knows their type.
    """

    precision: Literal["int4", "int8", "fp32"] = "int4"
    accuracy_level: Literal[1, 4] = 4
    source_gguf: Path | None = None


def export_onnx(checkpoint: Path, out: Path, options: OnnxOptions, on_progress: Progress) -> list[Path]:
    """Write an ONNX model.

    Args:
        checkpoint: a folder that `open_checkpoint` accepts; with a source GGUF its config.json and tokenizer are enough.
        out: the new folder. It appears when all is written, or not at all.
        options: see `OnnxOptions`.
        on_progress: called with what is done, and its share of the whole (0 to 1); may raise to stop.

    Returns:
        The files, sorted by name.

    Raises:
        UsageError: an option is out of range, or `out` is not empty.
        ModelFileError: the checkpoint or the GGUF cannot be used, or the architecture cannot become ONNX.
        BackendUnavailableError: a package of the extra [convert] is missing.
    """
    _check_options(options)
    check_packages(["onnx"])
    if not (checkpoint / "config.json").is_file():
        open_checkpoint(checkpoint)  # says what is missing
    config = read_json(checkpoint / "config.json")
    architecture = find_architecture(config, checkpoint.name)
    if "onnx" not in architecture.formats:
        raise ModelFileError(f"{architecture.title} cannot become ONNX.", "Choose another format: --to gguf")
    check_config(read_model_config(config, architecture, checkpoint.name))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already.", "Name another folder, or remove it first.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        made = Path(work) / "model"
        made.mkdir()
        _write(checkpoint, made, options, on_progress)
        if out.is_dir():
            out.rmdir()
        made.rename(out)
    on_progress("done", 1.0)
    return sorted(path for path in out.iterdir() if path.is_file())


def describe_quantisation(options: OnnxOptions) -> str:
    """Return the name of the mix of weight types, for manifests: "int4 k_quant, head and sensitive layers int8"."""
    if options.precision == "fp32":
        return "fp32"
    mix = f"{options.precision} k_quant" + (", head and sensitive layers int8" if options.precision == "int4" else "")
    if options.source_gguf is None or options.precision != "int4":
        return mix
    from edge_convert.onnx.blocks import carried_share

    carried = carried_share(options.source_gguf)
    return mix if not carried else "blocks of the source GGUF" + ("" if carried == 1 else f", others {mix}")


def _write(checkpoint: Path, out: Path, options: OnnxOptions, on_progress: Progress) -> None:
    import onnx

    from edge_convert.onnx.decoder import Decoder
    from edge_convert.onnx.external import WeightFile
    from edge_convert.onnx.folder import write_genai_config, write_tokenizer
    from edge_convert.onnx.matrices import Matrices
    from edge_convert.onnx.nodes import Nodes
    from edge_convert.onnx.sources import CheckpointWeights, GgufWeights, Weights

    config = read_json(checkpoint / "config.json")
    architecture = find_architecture(config, checkpoint.name)
    model = read_model_config(config, architecture, checkpoint.name)
    source = options.source_gguf
    weights: Weights = GgufWeights(source, architecture, model) if source else CheckpointWeights(open_checkpoint(checkpoint))
    on_progress("tokenizer", 0.0)
    write_tokenizer(checkpoint, model, out, is_own=source is not None)
    write_genai_config(checkpoint, model, architecture, out)
    shapes = tensor_shapes(architecture, model)
    total = sum(map(math.prod, shapes.values())) + (0 if weights.is_tied else math.prod(shapes[EMBEDDING]))
    done = 0

    def on_weights(n_weights: int) -> None:
        nonlocal done
        done += n_weights
        on_progress("weights", min(0.99, 0.02 + 0.97 * done / total))

    with WeightFile(out / "model.onnx.data") as file:
        nodes = Nodes(file)
        matrices = Matrices(
            weights, file, nodes, precision=options.precision, accuracy_level=options.accuracy_level, on_weights=on_weights
        )
        graph = Decoder(model, architecture, weights, file, nodes, matrices).build()
    onnx.save(graph, out / "model.onnx")


def _check_options(options: OnnxOptions) -> None:
    if options.precision not in _PRECISIONS:
        raise UsageError(f"{options.precision!r} is not a precision of ONNX here.", f"Choose one of: {', '.join(_PRECISIONS)}.")
    if options.accuracy_level not in (1, 4):
        raise UsageError(f"Accuracy level {options.accuracy_level} is unknown.", "Choose 1 (float32) or 4 (int8 activations).")
    if options.source_gguf is not None and not options.source_gguf.is_file():
        raise UsageError(f"There is no file {options.source_gguf}.", "Check the path of the source GGUF.")
