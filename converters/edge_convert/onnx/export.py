"""A checkpoint becomes an ONNX model: int4 MatMulNBits and GroupQueryAttention, past and present KV as inputs and outputs.

The model builder of onnxruntime-genai makes the graph, in a child process: it prints, changes sys.path and keeps memory, and
can be stopped that way. What comes out is the folder layout of onnxruntime-genai (genai_config.json), which plain onnxruntime
loads too. A checkpoint that came from an int4 GGUF is not quantised a second time: its blocks are carried over
(onnx_blocks.py).
"""

from __future__ import annotations

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
from edge_convert.targets import check_packages

__all__ = ["OnnxOptions", "describe_quantisation", "export_onnx"]

Progress = Callable[[str, float], None]

_PRECISIONS = ("int4", "int8", "fp32")
_BLOCK_SIZES = (16, 32, 64, 128, 256)
_MIXES = {
    "none": "",
    "head": "last_matmul:int8",
    "sensitive": "last_matmul:int8,mixed_layers:int8",
}


class OnnxOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to make an ONNX model.

    Attributes:
        precision: of the matrices: "int4", "int8" or "fp32". Norms, activations and KV are float32, as the CPU computes them.
        algorithm: how int4 codes are chosen: "k_quant" (llama.cpp's search for scale and zero point, the closest of the three),
            "rtn" or "default" (plain rounding).
        block_size: weights that share a scale.
        mixed: what stays at 8 bits: "none", "head" (the last matrix, which a tied embedding shares) or "sensitive" (also the
            qkv and down projections of the first and last eighth of the layers and of each third between).
        accuracy_level: 4 computes with activations rounded to int8 per block, 1 with float32: closer and slower.
        source_gguf: the GGUF that the checkpoint was read from. Where its types fit (Q4_0, Q4_1, Q8_0), its blocks are taken as
            they are, and algorithm, block_size and mixed have no effect.
    """

    precision: Literal["int4", "int8", "fp32"] = "int4"
    algorithm: Literal["k_quant", "rtn", "default"] = "k_quant"
    block_size: int = 32
    mixed: Literal["none", "head", "sensitive"] = "sensitive"
    accuracy_level: Literal[1, 4] = 4
    source_gguf: Path | None = None


def export_onnx(checkpoint: Path, out: Path, options: OnnxOptions, on_progress: Progress) -> list[Path]:
    """Write an ONNX model.

    Args:
        checkpoint: a folder that `open_checkpoint` accepts. Nothing is fetched from the network.
        out: the folder to make. It appears when all is written, or not at all.
        options: see there.
        on_progress: called with what is being done and which part of the whole is done (0 to 1); may raise to stop.

    Returns:
        The files, sorted by name.

    Raises:
        UsageError: an option is out of range, or `out` holds something already.
        ModelFileError: the checkpoint cannot be used (see `open_checkpoint`), or the builder does not know its architecture.
        BackendUnavailableError: a package of the extra [convert] is missing.
        BackendError: the builder failed.
    """
    from edge_convert.checkpoint import open_checkpoint

    _check_options(options)
    check_packages(["onnx"])
    architecture = open_checkpoint(checkpoint).architecture
    if "onnx" not in architecture.formats:
        raise ModelFileError(f"{architecture.title} cannot become ONNX.", "Choose another format: --to gguf")
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
    """The name of the mix of weight types, for manifests and tables: "int4 k_quant, sensitive layers int8"."""
    if options.source_gguf is not None and _is_carried(options):
        return "blocks of the source GGUF"
    if options.precision == "fp32":
        return "fp32"
    mixed = {"none": "", "head": ", head int8", "sensitive": ", head and sensitive layers int8"}
    return f"{options.precision} {options.algorithm}" + (mixed[options.mixed] if options.precision == "int4" else "")


def _export(checkpoint: Path, work: Path, options: OnnxOptions, on_progress: Progress) -> Path:
    from edge_convert.onnx.blocks import carry_blocks, shrink_embedding

    is_carried = _is_carried(options)
    built, other = work / "model", work / "other"
    part = 0.6 if is_carried else 1.0
    n_layers = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    # A block-wise copy starts from the float graph, so that no weight is rounded on its way.
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
        raise UsageError(f"{options.precision!r} is no precision of ONNX here.", f"Choose one of: {', '.join(_PRECISIONS)}.")
    if options.algorithm not in ("k_quant", "rtn", "default"):
        raise UsageError(f"{options.algorithm!r} is no algorithm.", "Choose one of: k_quant, rtn, default.")
    if options.block_size not in _BLOCK_SIZES:
        raise UsageError(f"A block of {options.block_size} weights is not possible.", f"Choose one of: {_BLOCK_SIZES}.")
    if options.mixed not in _MIXES:
        raise UsageError(f"{options.mixed!r} is no mix of widths.", f"Choose one of: {', '.join(_MIXES)}.")
    if options.accuracy_level not in (1, 4):
        raise UsageError(f"Accuracy level {options.accuracy_level} is unknown.", "Choose 1 (float32) or 4 (int8 activations).")
    if options.source_gguf is not None and not options.source_gguf.is_file():
        raise UsageError(f"There is no file {options.source_gguf}.", "Check the path of the source GGUF.")


def _builder_command(checkpoint: Path, out: Path, cache: Path, precision: str, options: OnnxOptions) -> list[str]:
    # hf_token=false: no login is looked for. windowed_kv_cache=false: the KV of sliding-window layers keeps its full length, so
    # that whoever owns the KV sees the same shape in every layer.
    extra = ["hf_token=false", "windowed_kv_cache=false"]
    if precision != "fp32":
        extra += [
            f"algo_config={options.algorithm}",
            f"block_size={options.block_size}",
            f"accuracy_level={options.accuracy_level}",
        ]
    if precision == "int4" and _MIXES[options.mixed]:
        extra.append(f"matmul_mixed_precision={_MIXES[options.mixed]}")
    paths = [str(out), str(cache), precision, str(checkpoint)]
    return python_command("edge_convert.onnx.builder:main", *paths, *extra, unbuffered=True)


def _run_builder(command: list[str], work: Path, n_layers: int, on_progress: Progress) -> None:
    """Run the builder to its end; what it prints becomes progress."""
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
    if ended.code != 0:
        raise BackendError(f"The model builder of onnxruntime-genai {ended.reason}.", "Try another format.")
