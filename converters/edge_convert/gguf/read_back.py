"""Reads a GGUF file back into a checkpoint folder: the inverse of tensors.py, config.py and tokenizer.py.

Weights are dequantised by the `gguf` package, one tensor at a time. The loss of the quantisation stays; the folder records it
(`source_quantised`), and formats that can take over the blocks find the file by `source_gguf`.

transformers can load a GGUF too, but loses the Llama 3 scaling of positions and the rule that splits digits, and holds the
whole model in float32: it is the oracle in the tests.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from gguf import GGUFReader, dequantize

from edge.errors import ModelFileError
from edge.formats.gguf import GGUFHeader, read_header
from edge_convert.architectures import Architecture, expected_tensors, find_gguf_architecture
from edge_convert.checkpoint import SOURCE_NOTE
from edge_convert.gguf.config import name_map, rope_tensors
from edge_convert.gguf.tokenizer_json import build_tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["checkpoint_from_gguf"]

_SHARD_BYTES = 4 << 30
_PART_ELEMENTS = 1 << 20
"""Weights that are dequantised at a time: a whole embedding would take a dozen bytes for each of its weights."""


class _Entry(NamedTuple):
    """A tensor to write: its name in a checkpoint, gguf's ReaderTensor, "F32", "F16" or "BF16"."""

    name: str
    tensor: Any
    dtype: str

    @property
    def shape(self) -> list[int]:
        return [int(size) for size in reversed(self.tensor.shape)]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * (4 if self.dtype == "F32" else 2)


def checkpoint_from_gguf(
    path: Path,
    out: Path,
    *,
    source: str | None = None,
    licence: str | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Path:
    """Write a GGUF file as a checkpoint folder.

    Args:
        path: the file.
        out: the folder; made if needed.
        source: the reference it came from; None is its file name.
        licence: overrides the one in the file.
        on_progress: called with the share that is done.

    Returns:
        `out`.

    Raises:
        ModelFileError: the file is damaged, or edge does not convert its architecture or tokenizer.
    """
    header = read_header(path)  # refuses damage that would trip the library below
    architecture = find_gguf_architecture(header.architecture, path.name)
    logging.getLogger("gguf").setLevel(logging.ERROR)
    reader = GGUFReader(path)
    config = _config(reader, header, architecture)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, tokenizer_config = build_tokenizer(reader, path.name)
    _write_json(out / "config.json", config)
    _write_json(out / "tokenizer.json", tokenizer)
    _write_json(out / "tokenizer_config.json", tokenizer_config)
    if header.chat_template:
        (out / "chat_template.jinja").write_text(header.chat_template, encoding="utf-8")
    _write_weights(reader, architecture, config, out, on_progress)
    in_file = header.metadata.get("general.license")
    note = {
        "source": source or path.name,
        "licence": licence or (in_file if isinstance(in_file, str) else None),
        "source_quantised": None if header.file_type in ("F32", "F16", "BF16") else header.file_type,
        "source_gguf": str(path.resolve()),
    }
    _write_json(out / SOURCE_NOTE, note)
    return out


def _config(reader: GGUFReader, header: GGUFHeader, architecture: Architecture) -> dict[str, Any]:
    """Return config.json as transformers writes it."""
    arch = header.architecture

    def value(key: str, default: Any = None) -> Any:
        found = header.metadata.get(f"{arch}.{key}")
        return default if found is None else found

    width, heads = header.n_embd, _one(header.n_head, "heads")
    names = {tensor.name for tensor in reader.tensors}
    config: dict[str, Any] = {
        "architectures": [architecture.name],
        "model_type": "gemma3_text" if arch == "gemma3" else architecture.module,
        "vocab_size": header.n_vocab,
        "hidden_size": width,
        "intermediate_size": _one(value("feed_forward_length"), "feed-forward widths"),
        "num_hidden_layers": header.n_layer,
        "num_attention_heads": heads,
        "num_key_value_heads": _one(header.n_head_kv, "heads for keys"),
        "head_dim": value("attention.key_length", width // heads),
        "max_position_embeddings": header.n_ctx_train,
        "rms_norm_eps": _short_float(value("attention.layer_norm_rms_epsilon", 1e-6)),
        "tie_word_embeddings": "output.weight" not in names,
        "rope_parameters": _rope(reader, header, value),
        "dtype": "float32",
    }
    if arch == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in names
    if architecture.is_gemma:
        by_width = header.n_layer == architecture.n_wide_layers
        config |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": value("attention.sliding_window"),
            "query_pre_attn_scalar": width // heads if by_width else config["head_dim"],
            "attn_logit_softcapping": value("attn_logit_softcapping"),
            "final_logit_softcapping": value("final_logit_softcapping"),
            "layer_types": list(architecture.layer_kinds(header.n_layer)),
        }
    if arch == "phi3":
        config["sliding_window"] = value("attention.sliding_window") or None
        config["original_max_position_embeddings"] = value("rope.scaling.original_context_length", header.n_ctx_train)
    for kind in ("bos", "eos", "padding"):
        token = header.metadata.get(f"tokenizer.ggml.{kind}_token_id")
        config[{"padding": "pad"}.get(kind, kind) + "_token_id"] = token if isinstance(token, int) else None
    return config


def _rope(reader: GGUFReader, header: GGUFHeader, value: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters of the rotary embedding."""
    head = value("attention.key_length", header.n_embd // _one(header.n_head, "heads"))
    default = {"gemma3": 1e6}.get(header.architecture, 1e4)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": _short_float(value("rope.freq_base", default))}
    rotated = value("rope.dimension_count", head)
    if rotated != head:
        rope["partial_rotary_factor"] = rotated / head
    kind = value("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": value("rope.scaling.factor")}
    if kind == "yarn":
        rope["original_max_position_embeddings"] = value("rope.scaling.original_context_length")
    factors = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name.startswith("rope_")}
    if "rope_freqs.weight" in factors:
        return _llama3_rope(rope, factors["rope_freqs.weight"], header.n_ctx_train, rotated)
    if "rope_factors_long.weight" in factors:
        rope |= {
            "rope_type": "longrope",
            "long_factor": [_short_float(x) for x in factors["rope_factors_long.weight"]],
            "short_factor": [_short_float(x) for x in factors["rope_factors_short.weight"]],
            "original_max_position_embeddings": value("rope.scaling.original_context_length"),
        }
    if header.architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": _short_float(value("rope.freq_base_swa", 1e4))}
        return {"full_attention": rope, "sliding_attention": local}
    return rope


def _llama3_rope(rope: dict[str, Any], factors: NDArray[np.float32], n_context: int, rotated: int) -> dict[str, Any]:
    """Recover Llama 3's parameters from the factors that were computed from them."""
    for original in sorted({8192, n_context, *(2**power for power in range(5, 18))}):
        scaling = {
            "rope_type": "llama3",
            "factor": _short_float(max(factors)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        tried = rope_tensors({"rope_parameters": rope | scaling, "head_dim": rotated})["rope_freqs.weight"]
        if np.allclose(tried, factors, rtol=1e-5):
            return rope | scaling
    raise ModelFileError(
        "The file scales its positions by factors of its own, which no config.json can express.",
        "Convert the checkpoint that it was made from.",
    )


def _write_weights(
    reader: GGUFReader,
    architecture: Architecture,
    config: Mapping[str, Any],
    out: Path,
    on_progress: Callable[[float], None] | None,
) -> None:
    """Write the weights as safetensors, one tensor in memory at a time, in files of at most 4 GB."""
    entries = _entries(reader, architecture, config)
    shards: list[list[_Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.n_bytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.n_bytes
    before = 0
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update({entry.name: file for entry in shard})
        for done in _write_shard(out / file, shard, architecture, config):
            if on_progress:
                on_progress((before + done) / len(entries))
        before += len(shard)
    if len(shards) > 1:
        _write_json(out / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _entries(reader: GGUFReader, architecture: Architecture, config: Mapping[str, Any]) -> list[_Entry]:
    """Return the tensors of the checkpoint; 16-bit types stay as they are."""
    known = name_map(architecture.gguf, config["num_hidden_layers"])
    stored = {tensor.name: tensor for tensor in reader.tensors}
    entries = []
    for name in [*expected_tensors(architecture, config), *([] if config["tie_word_embeddings"] else ["lm_head.weight"])]:
        mapped = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped not in stored:
            raise ModelFileError(f"The file lacks the tensor {mapped}.", "Download it again.")
        kind = stored[mapped].tensor_type.name
        entries.append(_Entry(name, stored[mapped], kind if kind in ("F16", "BF16") else "F32"))
    return entries


def _write_shard(path: Path, entries: list[_Entry], architecture: Architecture, config: Mapping[str, Any]) -> Iterator[int]:
    """Write one safetensors file: a JSON header, then the tensors end to end. The library itself wants all of them at once.

    Yields:
        The number of tensors written so far.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.n_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, entry in enumerate(entries, 1):
            for part in _weights(entry, architecture, config):
                file.write(part.data)
            yield done


def _weights(entry: _Entry, architecture: Architecture, config: Mapping[str, Any]) -> Iterator[NDArray[np.generic]]:
    """Yield a tensor in transformers' layout, some rows at a time where their order stays."""
    tensor, shape = entry.tensor, entry.shape
    found = re.search(r"self_attn\.([qk])_proj\.", entry.name) if architecture.gguf == "llama" else None
    n_rows = len(tensor.data)
    step = n_rows if found else max(1, _PART_ELEMENTS * n_rows // math.prod(shape))
    for start in range(0, n_rows, step):
        data = tensor.data[start : start + step]
        values = dequantize(data, tensor.tensor_type) if entry.dtype == "F32" else np.asarray(data)
        values = values.view(np.uint16) if entry.dtype == "BF16" and values.dtype == np.uint8 else values
        if architecture.is_gemma and entry.name.endswith("norm.weight"):
            values = values - np.float32(1.0)
        if found:
            heads = config["num_attention_heads"] if found[1] == "q" else config["num_key_value_heads"]
            values = values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2)
        yield np.ascontiguousarray(values)


def _one(value: Any, what: str) -> int:
    """Return a size that is the same in every layer."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise ModelFileError(f"Its layers have different numbers of {what}, which edge does not convert.", "Try another model.")
    return value


def _short_float(value: Any) -> float:
    """Return a float32 as the short decimal number that it was rounded from."""
    return float(f"{float(value):.7g}")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
