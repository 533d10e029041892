"""Writes a checkpoint as a GGUF file in 16 or 32 bits, one tensor in memory at a time.

Source: `conversion/` of llama.cpp, which is the oracle in tools/compare_gguf.py; names come from the `gguf` package.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from edge.errors import ModelFileError
from edge_convert.checkpoint import Checkpoint, read_json
from edge_convert.gguf.config import name_map, rope_tensors, write_config
from edge_convert.gguf.limits import OUTPUT_BIAS, check_output_bias, has_output_bias
from edge_convert.gguf.tokenizer import write_tokenizer
from edge_convert.gguf.vocabulary import read_vocabulary
from edge_convert.shapes import HEAD

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PERMUTED", "Part", "Precision", "gguf_parts", "lossless_precision", "pair_up", "write_gguf"]

Precision = Literal["F16", "BF16", "F32"]

_ROW_CHUNK_BYTES = 16 << 20
_ITEM_BYTES = {"F16": 2, "BF16": 2, "F32": 4}
_CONV, _ROUTER = ".conv.conv.weight", ".mlp.gate.weight"
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
PERMUTED = re.compile(r"self_attn\.([qk])_proj\.(weight|bias)$")


class Part(NamedTuple):
    """Rows [start, stop) of a tensor of a checkpoint; `stop` is None for all of them. `others` follow in a third dimension."""

    name: str
    start: int = 0
    stop: int | None = None
    others: tuple[str, ...] = ()

    def shape(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        """Return the shape of these rows."""
        whole = checkpoint.tensors[self.name].shape
        if self.name.endswith(_CONV):  # [channels, 1, tokens]
            return (whole[0], whole[2])
        if self.others:
            return (1 + len(self.others), *whole)
        return whole if self.stop is None else (self.stop - self.start, *whole[1:])

    def dtype(self, shape: tuple[int, ...], precision: Precision) -> str:
        """Return the type that these rows are stored in: norms, biases, routers and convolutions in float32."""
        return "F32" if len(shape) < 2 or self.name.endswith((_CONV, _ROUTER)) else precision


def lossless_precision(checkpoint: Checkpoint) -> Precision:
    """Return the smallest type that holds the checkpoint's weights exactly, for a quantiser to start from."""
    dtypes = {info.dtype for info in checkpoint.tensors.values() if len(info.shape) > 1}
    return {"F16": "F16", "BF16": "BF16"}.get(dtypes.pop(), "F32") if len(dtypes) == 1 else "F32"  # type: ignore[return-value]


def gguf_parts(checkpoint: Checkpoint) -> dict[str, Part]:
    """Return GGUF tensor -> its source in the checkpoint, in the order in which llama.cpp reads them.

    Raises:
        ModelFileError: llama.cpp has no place for a tensor.
    """
    check_output_bias(checkpoint)
    known = name_map(checkpoint.architecture.gguf, checkpoint.model.n_layers)
    has_bias = has_output_bias(checkpoint.architecture)
    parts = {}
    for name in sorted(checkpoint.tensors, key=_by_layer):
        if (name == HEAD and checkpoint.is_tied) or (name.endswith(OUTPUT_BIAS) and not has_bias):
            continue
        for usual, part in _usual_names(name, checkpoint):
            mapped = known.get_name(usual, try_suffixes=(".weight", ".bias"))
            if mapped is None:
                raise ModelFileError(f"The tensor {name} has no place in a GGUF file.", "Convert to another format.")
            parts[mapped] = part
    return parts


def _usual_names(name: str, checkpoint: Checkpoint) -> list[tuple[str, Part]]:
    """Return the names that llama.cpp knows a tensor by: the shared expert of a dense Granite 4 is a usual MLP."""
    if (found := _EXPERT.search(name)) is not None:  # all in one, named by the first
        others = (name.replace(found[0], f".experts.{expert}.") for expert in range(1, checkpoint.model.n_experts))
        return [(name.replace(found[0], ".experts."), Part(name, others=tuple(others)))] if found[1] == "0" else []
    if "shared_mlp" not in name:
        return [(name, Part(name))]
    mlp, inner = name.partition("shared_mlp")[0] + "mlp", checkpoint.model.inner
    if name.endswith("output_linear.weight"):
        return [(f"{mlp}.down_proj.weight", Part(name))]
    return [
        (f"{mlp}.gate_proj.weight", Part(name, 0, inner)),
        (f"{mlp}.up_proj.weight", Part(name, inner, 2 * inner)),
    ]


def write_gguf(
    checkpoint: Checkpoint, out: Path, precision: Precision, on_progress: Callable[[float], None] | None = None
) -> Path:
    """Write a checkpoint as one GGUF file.

    Args:
        checkpoint: the source.
        out: the file; replaced if it exists.
        precision: of the matrices. Norms and biases are always float32.
        on_progress: called with the share that is done, 0 to 1; may raise to stop.

    Raises:
        ModelFileError: a weight is not a number or does not fit into float16, or llama.cpp cannot run this variant.
    """
    logging.getLogger("gguf.gguf_writer").setLevel(logging.ERROR)
    parts = gguf_parts(checkpoint)
    extra = rope_tensors(checkpoint.model)
    writer = GGUFWriter(out, checkpoint.architecture.gguf)
    try:
        _write_about(writer, checkpoint)
        write_config(writer, checkpoint.model, checkpoint.architecture)
        writer.add_file_type({"F32": LlamaFileType.ALL_F32, "F16": LlamaFileType.MOSTLY_F16}.get(precision, 32))
        vocabulary = read_vocabulary(checkpoint.folder, checkpoint.model.n_vocab)
        write_tokenizer(writer, checkpoint.folder, vocabulary, checkpoint.chat_template)
        for name, factors in extra.items():
            writer.add_tensor_info(name, factors.shape, factors.dtype, factors.nbytes)
        for mapped, part in parts.items():
            shape = part.shape(checkpoint)
            kind = part.dtype(shape, precision)
            n_bytes = _ITEM_BYTES[kind] * math.prod(shape)
            writer.add_tensor_info(mapped, shape, _dtype(kind), n_bytes, raw_dtype=GGMLQuantizationType[kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for factors in extra.values():
            writer.write_tensor_data(factors)
        for done, part in enumerate(parts.values()):
            writer.write_tensor_data(_converted(checkpoint, part, precision))
            if on_progress:
                on_progress((done + 1) / len(parts))
    finally:
        writer.close()
    return out


def _converted(checkpoint: Checkpoint, part: Part, precision: Precision) -> NDArray[np.generic]:
    """Return a tensor in llama.cpp's layout and type."""
    name, tensor = part.name, checkpoint.load_rows(part.name, part.start, part.stop)
    shape = part.shape(checkpoint)
    if part.others:
        tensor = np.stack([tensor, *map(checkpoint.load, part.others)])
    if checkpoint.architecture.is_gemma and name.endswith("norm.weight"):
        shifted: NDArray[np.generic] = tensor.astype(np.float32) + np.float32(1.0)  # Gemma stores the distance from one
        return shifted
    found = PERMUTED.search(name)
    if found and checkpoint.architecture.is_permuted:
        model = checkpoint.model
        tensor = pair_up(tensor, model.n_heads if found[1] == "q" else model.n_kv_heads)
    return _cast(tensor.reshape(shape), _dtype(part.dtype(shape, precision)), name)


def pair_up(tensor: NDArray[np.generic], n_heads: int) -> NDArray[np.generic]:
    """Reorder the rows of each head from two halves to pairs: transformers rotates halves, llama.cpp pairs."""
    heads = tensor.reshape(n_heads, 2, tensor.shape[0] // n_heads // 2, *tensor.shape[1:])
    paired: NDArray[np.generic] = heads.swapaxes(1, 2).reshape(tensor.shape)
    return paired


def _cast(tensor: NDArray[np.generic], dtype: Any, name: str) -> NDArray[np.generic]:
    """Change the type in pieces, so that no third copy of a large tensor exists, and check the result."""
    result = tensor if tensor.dtype == dtype else np.empty(tensor.shape, dtype=dtype)
    flat_in, flat_out = tensor.reshape(-1), result.reshape(-1)
    step = _ROW_CHUNK_BYTES // 4
    for start in range(0, flat_in.size, step):
        if result is not tensor:
            with np.errstate(over="ignore"):
                flat_out[start : start + step] = flat_in[start : start + step]
        if not np.isfinite(flat_out[start : start + step]).all():
            is_damaged = not np.isfinite(flat_in[start : start + step]).all()
            what = "holds values that are not numbers" if is_damaged else f"has weights too large for {np.dtype(dtype).name}"
            raise ModelFileError(f"The tensor {name} {what}.", "Download it again." if is_damaged else "Choose BF16 or F32.")
    return result


def _dtype(kind: str) -> Any:
    return {"F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype(np.float32)}[kind]


def _write_about(writer: Any, checkpoint: Checkpoint) -> None:
    """Add name, licence and source, which would otherwise be lost."""
    writer.add_type("model")
    writer.add_name(_display_name(checkpoint))
    if checkpoint.licence:
        writer.add_license(checkpoint.licence)
    if checkpoint.source.startswith("hf:"):
        writer.add_source_repo_url(f"https://huggingface.co/{checkpoint.source[3:].partition('@')[0]}")


def _display_name(checkpoint: Checkpoint) -> str:
    """Return the name; llama.cpp lets special tokens swallow the space behind them where it reads "phi-3" or "phi3"."""
    added = read_json(checkpoint.folder / "tokenizer.json").get("added_tokens", [])
    swallows = any(entry.get("rstrip") for entry in added)
    is_named = re.search(r"phi-?3", checkpoint.name, re.IGNORECASE) is not None
    if swallows and not is_named:
        return f"Phi-3 {checkpoint.name}"
    return checkpoint.name if swallows else re.sub(r"(phi)-?3", r"\1 3", checkpoint.name, flags=re.IGNORECASE)


def _by_layer(name: str) -> tuple[int, int, str]:
    numbers = re.findall(r"\.(\d+)\.", name)
    if numbers:
        return (1, int(numbers[0]), name)
    return (0 if "embed" in name else 2, 0, name)
