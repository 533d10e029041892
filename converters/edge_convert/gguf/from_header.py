"""The configuration of a GGUF file as config.json, and its tensors by their names in a checkpoint: the inverse of config.py.

Only the header is read, so a plan can refuse what the steps could not convert.

Source: `llama_model::load_hparams` in llama.cpp: the keys that an architecture reads, and their defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ModelFileError
from edge.formats.gguf import GGUFHeader, TensorInfo
from edge_convert.architectures import Architecture
from edge_convert.gguf.limits import llama3_factors, yarn_factor
from edge_convert.model_config import ModelConfig
from edge_convert.shapes import HEAD, check_tensors, tensor_shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["checkpoint_tensors", "header_config"]

_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_MAX_FACTOR_BYTES = 1 << 20
_YARN_KEYS = {
    "yarn_beta_fast": 32.0,
    "yarn_beta_slow": 1.0,
    "yarn_ext_factor": 1.0,
    "yarn_attn_factor": 1.0,
    "yarn_log_multiplier": 0.0,
}
"""Keys of YaRN, and the values that transformers takes for granted."""


def header_config(path: Path, header: GGUFHeader, architecture: Architecture) -> dict[str, Any]:
    """Return the config.json of a GGUF file, as transformers writes it, from its header.

    Raises:
        ModelFileError: a key is of a wrong type, or changes the arithmetic in a way that no config.json can express.
    """
    arch = header.architecture
    value = _Values(header)
    width, heads = header.n_embd, _one(header.n_head, "heads")
    kv_heads = _one(header.n_head_kv, "heads for keys")
    names = {tensor.name for tensor in header.tensors}
    if not heads or not kv_heads:
        raise ModelFileError(f"{path.name} names no attention heads.", "Download it again.")
    config: dict[str, Any] = {
        "architectures": [architecture.name],
        "model_type": architecture.model_type,
        "vocab_size": header.n_vocab,
        "hidden_size": width,
        "intermediate_size": _one(value("feed_forward_length"), "feed-forward widths"),
        "num_hidden_layers": header.n_layer,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": value.number("attention.key_length", width // heads),
        "max_position_embeddings": header.n_ctx_train,
        "rms_norm_eps": _short_float(value.number("attention.layer_norm_rms_epsilon", 1e-6)),
        "tie_word_embeddings": "output.weight" not in names,
        "rope_parameters": _rope(path, header, value),
        "dtype": "float32",
    }
    if architecture.has_mlp_bias:
        config["attention_bias"] = "blk.0.attn_q.bias" in names
        config["mlp_bias"] = "blk.0.ffn_up.bias" in names
    if architecture.has_multipliers:
        config |= _multipliers(value, config["head_dim"])
    if architecture.is_gemma:
        by_width = header.n_layer == architecture.n_wide_layers
        caps = {key: value.number(key, dict(architecture.caps).get(key)) for key in _CAPS}
        period = value.number("attention.sliding_window_pattern", architecture.window_pattern)
        config |= {
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": value.number("attention.sliding_window", 4096 if arch == "gemma2" else None),
            "query_pre_attn_scalar": width // heads if by_width else config["head_dim"],
            **caps,
            "layer_types": list(architecture.layer_kinds(header.n_layer, int(period) or header.n_layer + 1)),
        }
    if arch == "phi3":
        config["sliding_window"] = value.number("attention.sliding_window") or None
        config["original_max_position_embeddings"] = value.number("rope.scaling.original_context_length", header.n_ctx_train)
    for kind in ("bos", "eos", "padding"):
        config[{"padding": "pad"}.get(kind, kind) + "_token_id"] = header.metadata.get(f"tokenizer.ggml.{kind}_token_id")
    _check_sizes(value, {"attention.value_length": config["head_dim"], "vocab_size": header.n_vocab})
    return config


def _multipliers(value: _Values, head_dim: int) -> dict[str, float]:
    """Return the factors of a Granite."""
    if value("rope.scaling.finetuned") is False:
        raise ModelFileError("The file's attention has no positions, which edge does not convert.", "Convert its checkpoint.")
    keys = {
        "embedding_multiplier": ("embedding_scale", 1.0),
        "residual_multiplier": ("residual_scale", 1.0),
        "attention_multiplier": ("attention.scale", head_dim**-0.5),
        "logits_scaling": ("logit_scale", 1.0),
    }
    return {name: _short_float(value.number(key, default)) for name, (key, default) in keys.items()}


def _check_sizes(value: _Values, sizes: Mapping[str, Any]) -> None:
    """Refuse sizes that are no part of config.json and contradict the others."""
    for key, size in sizes.items():
        if value.number(key, size) != size:
            raise ModelFileError(
                f"The file's {key} is {value.number(key)}, and the rest of it says {size}.", "It is damaged: download it again."
            )


class _Values:
    """The values of a header that belong to its architecture."""

    def __init__(self, header: GGUFHeader) -> None:
        self._header = header

    def __call__(self, key: str, default: Any = None) -> Any:
        """Return a value as it is stored."""
        found = self._header.metadata.get(f"{self._header.architecture}.{key}")
        return default if found is None else found

    def number(self, key: str, default: Any = None) -> Any:
        """Return a number, or `default` where there is none.

        Raises:
            ModelFileError: it is no number.
        """
        found = self(key, default)
        if found is not default and (isinstance(found, bool) or not isinstance(found, int | float)):
            raise ModelFileError(f"The file's {key} is not a number.", "Download it again.")
        return found


def _rope(path: Path, header: GGUFHeader, value: _Values) -> dict[str, Any]:
    """Return the parameters of the rotary embedding."""
    head = value.number("attention.key_length", header.n_embd // _one(header.n_head, "heads"))
    default = {"gemma3": 1e6}.get(header.architecture, 1e4)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": _short_float(value.number("rope.freq_base", default))}
    rotated = value.number("rope.dimension_count", head)
    if not head > 0:
        raise ModelFileError(f"The file's attention.key_length is {head}, which no head can have.", "Download it again.")
    if rotated != head:
        rope["partial_rotary_factor"] = rotated / head
    kind = value("rope.scaling.type", "none")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": value.number("rope.scaling.factor")}
    elif kind not in ("none", "longrope"):
        raise ModelFileError(f"The file scales its positions by {str(kind)[:40]!r}.", "Convert its checkpoint instead.")
    if kind == "yarn":
        rope |= _yarn(rope["factor"], value)
    factors = _rope_factors(path, header)
    if "rope_freqs.weight" in factors:
        return _llama3_rope(rope, factors["rope_freqs.weight"], header.n_ctx_train, rotated)
    if "rope_factors_long.weight" in factors and "rope_factors_short.weight" in factors:
        rope |= {
            "rope_type": "longrope",
            "long_factor": [_short_float(x) for x in factors["rope_factors_long.weight"]],
            "short_factor": [_short_float(x) for x in factors["rope_factors_short.weight"]],
            "original_max_position_embeddings": value.number("rope.scaling.original_context_length"),
        }
        attention = value.number("rope.scaling.attn_factor")
        if attention is not None:
            rope["attention_factor"] = _short_float(attention)
    if header.architecture == "gemma3":
        local = {"rope_type": "default", "rope_theta": _short_float(value.number("rope.freq_base_swa", 1e4))}
        return {"full_attention": rope, "sliding_attention": local}
    return rope


def _yarn(factor: float | None, value: _Values) -> dict[str, Any]:
    """Return YaRN's numbers in the terms of transformers."""
    own = {key: value.number(f"rope.scaling.{key}") for key in _YARN_KEYS}
    strange = [key for key, number in own.items() if number not in (None, _YARN_KEYS[key])]
    if strange:
        raise ModelFileError(
            f"The file scales its positions by YaRN with {strange[0]} = {own[strange[0]]}, which edge does not convert.",
            "Convert the checkpoint that it was made from.",
        )
    found: dict[str, Any] = {"original_max_position_embeddings": value.number("rope.scaling.original_context_length")}
    more = value.number("rope.scaling.attn_factor")
    if more is not None and factor:
        found["attention_factor"] = _short_float(more * yarn_factor(float(factor)))
    return found


def _rope_factors(path: Path, header: GGUFHeader) -> dict[str, NDArray[np.float32]]:
    """Read the factors of frequencies."""
    found = {}
    for tensor in header.tensors:
        if tensor.name not in _ROPE_TENSORS:
            continue
        if tensor.type != "F32" or tensor.size_bytes > _MAX_FACTOR_BYTES:
            raise ModelFileError(f"The file's {tensor.name} is not a short list of float32.", "Download it again.")
        with path.open("rb") as file:
            file.seek(header.data_offset + tensor.offset)
            found[tensor.name] = np.fromfile(file, dtype=np.float32, count=tensor.size_bytes // 4)
    return found


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
        tried = llama3_factors(scaling, rope["rope_theta"], int(rotated), original)
        if tried.shape == factors.shape and np.allclose(tried, factors, rtol=1e-5):
            return rope | scaling
    raise ModelFileError(
        "The file scales its positions by factors of its own, which no config.json can express.",
        "Convert the checkpoint that it was made from.",
    )


def checkpoint_tensors(header: GGUFHeader, architecture: Architecture, model: ModelConfig) -> dict[str, TensorInfo]:
    """Return the weights of a file by their names in a checkpoint.

    Raises:
        ModelFileError: a tensor is missing, unknown or of another shape than the header says.
    """
    from edge_convert.gguf.config import name_map

    known = name_map(architecture.gguf, model.n_layers)
    names = {
        known.get_name(name, try_suffixes=(".weight", ".bias")): name for name in [*tensor_shapes(architecture, model), HEAD]
    }
    stored = {tensor.name: tensor for tensor in header.tensors if tensor.name not in _ROPE_TENSORS}
    found = {names.get(name, name): tensor for name, tensor in stored.items()}
    shapes = {name: tuple(reversed(tensor.shape)) for name, tensor in found.items()}
    check_tensors(shapes, architecture, model, names={name: mapped for mapped, name in names.items()})
    return found


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
