"""Makes an ONNX model of a checkpoint: int4 MatMulNBits and GroupQueryAttention, past and present KV as inputs and outputs.

The model builder of onnxruntime-genai makes the graph in a child process: it prints, changes sys.path and keeps memory, and can
only be stopped that way. The result is a folder in the layout of onnxruntime-genai (genai_config.json), which plain onnxruntime
loads too. A checkpoint from an int4 GGUF is not quantised a second time: blocks.py carries its blocks over.
"""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from edge.child import Child, python_command
from edge.errors import BackendError, ModelFileError, UsageError
from edge_convert.onnx.limits import check_config
from edge_convert.targets import check_packages

__all__ = ["OnnxOptions", "describe_quantisation", "export_onnx"]

Progress = Callable[[str, float], None]

BLOCK_SIZE = 32
"""Weights that share a scale."""
_PRECISIONS = ("int4", "int8", "fp32")
_ALGORITHM = "k_quant"  # llama.cpp's search for scale and zero point, the closest of the builder's three
# In 8 bits: the last matrix, which a tied embedding shares, and the qkv and down projections of the first and last eighth of
# the layers and of each third between.
_MIXED = "last_matmul:int8,mixed_layers:int8"


class OnnxOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to make an ONNX model.

    Attributes:
        precision: of the matrices: "int4", "int8" or "fp32". Norms, activations and KV are float32, as the CPU computes them.
        accuracy_level: 4 computes with activations rounded to int8 per block, 1 with float32: closer and slower.
        source_gguf: the GGUF that the checkpoint was read from. If its types fit (Q4_0, Q4_1, Q8_0), its blocks are taken over.
    """

    precision: Literal["int4", "int8", "fp32"] = "int4"
    accuracy_level: Literal[1, 4] = 4
    source_gguf: Path | None = None


def export_onnx(checkpoint: Path, out: Path, options: OnnxOptions, on_progress: Progress) -> list[Path]:
    """Write an ONNX model.

    Args:
        checkpoint: a folder that `open_checkpoint` accepts. Nothing is downloaded.
        out: the new folder. It appears when all is written, or not at all.
        options: see `OnnxOptions`.
        on_progress: called with what is done, and its share of the whole (0 to 1); may raise to stop.

    Returns:
        The files, sorted by name.

    Raises:
        UsageError: an option is out of range, or `out` is not empty.
        ModelFileError: the checkpoint cannot be used (see `open_checkpoint`), or its architecture cannot become ONNX.
        BackendUnavailableError: a package of the extra [convert] is missing.
        BackendError: the builder failed.
    """
    from edge_convert.checkpoint import open_checkpoint

    _check_options(options)
    check_packages(["onnx"])
    opened = open_checkpoint(checkpoint)
    if "onnx" not in opened.architecture.formats:
        raise ModelFileError(f"{opened.architecture.title} cannot become ONNX.", "Choose another format: --to gguf")
    check_config(opened.model, opened.architecture)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} exists already.", "Name another folder, or remove it first.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
        built = _export(checkpoint.resolve(), Path(work).resolve(), options, on_progress)
        if out.is_dir():
            out.rmdir()
        built.rename(out)
    on_progress("done", 1.0)
    return sorted(path for path in out.iterdir() if path.is_file())


def describe_quantisation(options: OnnxOptions) -> str:
    """Return the name of the mix of weight types, for manifests: "int4 k_quant, head and sensitive layers int8"."""
    if options.source_gguf is not None and _is_carried(options):
        return "blocks of the source GGUF"
    if options.precision == "fp32":
        return "fp32"
    return f"{options.precision} {_ALGORITHM}" + (", head and sensitive layers int8" if options.precision == "int4" else "")


def _export(checkpoint: Path, work: Path, options: OnnxOptions, on_progress: Progress) -> Path:
    from edge_convert.onnx.blocks import carry_blocks, shrink_embedding

    is_carried = _is_carried(options)
    built, other = work / "model", work / "other"
    part = 0.6 if is_carried else 1.0
    n_layers = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    # Carrying blocks over starts from the float graph, so that no weight is rounded on its way.
    precision = "fp32" if is_carried else options.precision
    command = _builder_command(checkpoint, built, work / "cache", precision, options)
    _run_builder(command, work, n_layers, lambda text, done: on_progress(text, part * done))
    other.mkdir()
    if is_carried and options.source_gguf is not None:
        for path in built.glob("model.onnx*"):
            path.rename(other / path.name)
        carry_blocks(
            other / "model.onnx",
            options.source_gguf,
            built / "model.onnx",
            lambda text, done: on_progress(text, part + (1 - part) * done),
            accuracy_level=options.accuracy_level,
        )
    elif precision != "fp32" and shrink_embedding(built / "model.onnx", other / "model.onnx"):
        for path in other.iterdir():
            path.replace(built / path.name)
    return built


def _is_carried(options: OnnxOptions) -> bool:
    from edge_convert.onnx.blocks import can_carry

    return options.precision == "int4" and options.source_gguf is not None and can_carry(options.source_gguf)


def _check_options(options: OnnxOptions) -> None:
    if options.precision not in _PRECISIONS:
        raise UsageError(f"{options.precision!r} is not a precision of ONNX here.", f"Choose one of: {', '.join(_PRECISIONS)}.")
    if options.accuracy_level not in (1, 4):
        raise UsageError(f"Accuracy level {options.accuracy_level} is unknown.", "Choose 1 (float32) or 4 (int8 activations).")
    if options.source_gguf is not None and not options.source_gguf.is_file():
        raise UsageError(f"There is no file {options.source_gguf}.", "Check the path of the source GGUF.")


def _builder_command(checkpoint: Path, out: Path, cache: Path, precision: str, options: OnnxOptions) -> list[str]:
    # hf_token=false: no login is looked for. windowed_kv_cache=false: the KV of sliding-window layers has its full length, so
    # that all layers have one shape.
    extra = ["hf_token=false", "windowed_kv_cache=false"]
    if precision != "fp32":
        extra += [f"algo_config={_ALGORITHM}", f"block_size={BLOCK_SIZE}", f"accuracy_level={options.accuracy_level}"]
    if precision == "int4":
        extra.append(f"matmul_mixed_precision={_MIXED}")
    paths = [str(out), str(cache), precision, str(checkpoint)]
    return python_command("edge_convert.onnx.builder:main", *paths, *extra, unbuffered=True)


def _run_builder(command: list[str], work: Path, n_layers: int, on_progress: Progress) -> None:
    """Run the builder to its end; its output becomes progress."""
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(work / "hf"),
        # The builder stamps the commit of whatever repository its own folder lies in into the model: here it finds none.
        "GIT_DIR": str(work / "none"),
    }
    on_progress("starting the model builder", 0.0)
    with Child(command, cwd=work, env=environment) as child:
        for line in child.lines():
            if found := re.match(rb"Reading layer (\d+)", line):
                on_progress(f"layer {int(found[1]) + 1} of {n_layers}", 0.1 + 0.5 * int(found[1]) / n_layers)
            elif line.startswith(b"Saving ONNX model"):
                on_progress("quantising and saving", 0.6)
        ended = child.wait()
    if ended.code != 0 and os.strerror(errno.ENOSPC) in ended.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(work))
    if ended.code != 0:
        raise BackendError(f"The model builder of onnxruntime-genai {ended.reason}.", "Try another format.")
