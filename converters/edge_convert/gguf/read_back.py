"""A GGUF file back to a checkpoint folder: the way of gguf_tensors, gguf_config and gguf_tokenizer in the other direction.

Weights are dequantised by the `gguf` package, one tensor at a time. What was lost when the file was quantised stays lost; the
folder says so (`source_quantised`), and formats that can take the blocks as they are find the file by `source_gguf`.

transformers can load a GGUF too; it forgets the Llama 3 scaling of positions and the rule that splits digits, and holds the
whole model in float32, so it is the oracle in the tests and not the way here.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import ModelFileError
from edge.formats.gguf import GGUFHeader, read_header
from edge_convert.architectures import ARCHITECTURES, Architecture, expected_tensors
from edge_convert.checkpoint import SOURCE_NOTE
from edge_convert.gguf.config import rope_tensors
from edge_convert.gguf.tokenizer_json import build_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFReader
    from numpy.typing import NDArray

__all__ = ["checkpoint_from_gguf", "find_gguf_architecture"]

# llama.cpp keeps Llama and Mistral apart by nothing; a checkpoint of either is read the same way.
_BY_NAME = {architecture.gguf: architecture for architecture in reversed(ARCHITECTURES.values())}
_MODEL_TYPES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
    "phi3": "phi3",
}
_SHARD_BYTES = 4 << 30
_PART_ELEMENTS = 1 << 20
"""Weights that are dequantised at a time: an embedding as a whole would take a dozen bytes for each of its weights."""
_DTYPES = {"F16": "F16", "BF16": "BF16"}


def find_gguf_architecture(header: GGUFHeader, where: str) -> Architecture:
    """What a GGUF file would be as a checkpoint.

    Raises:
        ModelFileError: an architecture that edge does not convert.
    """
    found = _BY_NAME.get(header.architecture)
    if found is None:
        known = ", ".join(sorted(_BY_NAME))
        raise ModelFileError(
            f"{where} is of the architecture {header.architecture!r}, which edge does not convert.", f"Known: {known}."
        )
    return found


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
        out: the folder; made if it is not there.
        source: the reference it came from; its file name where it is None.
        licence: instead of the one in the file.
        on_progress: called with the share that is done.

    Returns:
        `out`.

    Raises:
        ModelFileError: the file is damaged or of an architecture or a tokenizer that edge does not convert.
    """
    from gguf import GGUFReader

    header = read_header(path)  # refuses what would make the library below stumble
    architecture = find_gguf_architecture(header, path.name)
    logging.getLogger("gguf").setLevel(logging.ERROR)
    reader = GGUFReader(path)
    config = _config(reader, header, architecture)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer, tokenizer_config = build_tokenizer(reader, path.name)
    template = header.chat_template
    _write_json(out / "config.json", config)
    _write_json(out / "tokenizer.json", tokenizer)
    _write_json(out / "tokenizer_config.json", tokenizer_config)
    if template:
        (out / "chat_template.jinja").write_text(template, encoding="utf-8")
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
    """config.json as transformers writes it."""
    arch = header.architecture

    def value(key: str, default: Any = None) -> Any:
        found = header.metadata.get(f"{arch}.{key}")
        return default if found is None else found

    width, heads = header.n_embd, _one(header.n_head, "heads")
    names = {tensor.name for tensor in reader.tensors}
    config: dict[str, Any] = {
        "architectures": [architecture.name],
        "model_type": _MODEL_TYPES.get(arch, arch),
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
    if arch.startswith("gemma"):
        pattern = {"gemma2": 2, "gemma3": 6}[arch]
        by_width = header.n_layer == {"gemma2": 46, "gemma3": 62}[arch]
        config |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": value("attention.sliding_window"),
            "query_pre_attn_scalar": width // heads if by_width else config["head_dim"],
            "attn_logit_softcapping": value("attn_logit_softcapping"),
            "final_logit_softcapping": value("final_logit_softcapping"),
            "layer_types": [
                "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(header.n_layer)
            ],
        }
    if arch == "phi3":
        config["sliding_window"] = value("attention.sliding_window") or None
        config["original_max_position_embeddings"] = value("rope.scaling.original_context_length", header.n_ctx_train)
    for kind in ("bos", "eos", "padding"):
        token = header.metadata.get(f"tokenizer.ggml.{kind}_token_id")
        config[{"padding": "pad"}.get(kind, kind) + "_token_id"] = token if isinstance(token, int) else None
    return config


def _rope(reader: GGUFReader, header: GGUFHeader, value: Callable[..., Any]) -> dict[str, Any]:
    """The rotary embedding's parameters."""
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
    """Llama 3's three numbers, found again from the factors that they were turned into."""
    import numpy as np

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
    """Weights as safetensors, one tensor in memory at a time, in files of at most 4 GB."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture.gguf)
    known = get_tensor_name_map(arch, config["num_hidden_layers"])
    stored = {tensor.name: tensor for tensor in reader.tensors}
    plan: list[tuple[str, Any, str]] = []
    wanted = [*expected_tensors(architecture, config), *([] if config["tie_word_embeddings"] else ["lm_head.weight"])]
    for name in wanted:
        mapped = known.get_name(name, try_suffixes=(".weight", ".bias"))
        if mapped not in stored:
            raise ModelFileError(f"The file lacks the tensor {mapped}.", "Download it again.")
        plan.append((name, stored[mapped], _DTYPES.get(stored[mapped].tensor_type.name, "F32")))
    shards: list[list[tuple[str, Any, str]]] = [[]]
    size = 0
    for entry in plan:
        n_bytes = int(entry[1].n_elements) * (4 if entry[2] == "F32" else 2)
        if shards[-1] and size + n_bytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += n_bytes
    before = 0
    weight_map = {}
    for number, entries in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        weight_map.update({name: file for name, _, _ in entries})
        for done in _write_shard(out / file, entries, architecture, config):
            if on_progress:
                on_progress((before + done) / len(plan))
        before += len(entries)
    if len(shards) > 1:
        _write_json(out / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def _write_shard(
    path: Path, entries: list[tuple[str, Any, str]], architecture: Architecture, config: Mapping[str, Any]
) -> Iterator[int]:
    """Write one safetensors file: a JSON header, then the tensors end to end. The library itself wants all of them at once.

    Yields:
        The number of tensors written so far.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor, dtype in entries:
        shape = [int(size) for size in reversed(tensor.shape)]
        n_bytes = math.prod(shape) * (4 if dtype == "F32" else 2)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + n_bytes]}
        offset += n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for done, (name, tensor, dtype) in enumerate(entries, 1):
            for part in _weights(name, tensor, dtype, architecture, config):
                file.write(part.data)
            yield done


def _weights(
    name: str, tensor: Any, dtype: str, architecture: Architecture, config: Mapping[str, Any]
) -> Iterator[NDArray[np.generic]]:
    """One tensor in transformers' layout, some rows at a time where their order stays."""
    import numpy as np
    from gguf import dequantize

    shape = [int(size) for size in reversed(tensor.shape)]
    found = re.search(r"self_attn\.([qk])_proj\.", name)
    is_permuted = found is not None and architecture.gguf == "llama"
    n_rows = len(tensor.data)
    step = n_rows if is_permuted else max(1, _PART_ELEMENTS * n_rows // math.prod(shape))
    for start in range(0, n_rows, step):
        data = tensor.data[start : start + step]
        # 16-bit types are carried over as they are.
        values = dequantize(data, tensor.tensor_type) if dtype == "F32" else np.asarray(data)
        values = values.view(np.uint16) if dtype == "BF16" and values.dtype == np.uint8 else values
        if architecture.gguf.startswith("gemma") and name.endswith("norm.weight"):
            values = values - np.float32(1.0)
        if found and is_permuted:
            heads = config["num_attention_heads"] if found[1] == "q" else config["num_key_value_heads"]
            values = values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:]).swapaxes(1, 2)
        yield np.ascontiguousarray(values)


def _one(value: Any, what: str) -> int:
    """A size that is the same in every layer."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise ModelFileError(f"Its layers have different numbers of {what}, which edge does not convert.", "Try another model.")
    return value


def _short_float(value: Any) -> float:
    """A float32 as the short decimal number that it was before."""
    return float(f"{float(value):.7g}")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
