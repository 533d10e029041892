"""Writes a checkpoint's config.json as the keys of a GGUF file, and refuses what llama.cpp cannot run.

Source: `llama_model::load_hparams` in llama.cpp: the keys that an architecture reads, and what it takes for granted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from gguf import MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map

from edge.errors import ModelFileError
from edge_convert.architectures import Architecture
from edge_convert.checkpoint import Checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Rope", "head_dim", "name_map", "read_rope", "rope_tensors", "write_config"]


class Rope(msgspec.Struct, frozen=True):
    """Rotary embedding of old (rope_theta, rope_scaling) and new (rope_parameters) config.json files.

    Attributes:
        theta: base of the frequencies.
        kind: "default", "linear", "llama3", "yarn" or "longrope".
        scaling: the parameters of that kind.
        partial: share of a head that is rotated.
        local_theta: base in the layers with a sliding window, where it differs.
    """

    theta: float
    kind: str
    scaling: dict[str, Any]
    partial: float = 1.0
    local_theta: float | None = None


def name_map(architecture: str, n_layers: int) -> Any:
    """Return the `gguf` package's map from checkpoint to GGUF tensors, by llama.cpp's name of the architecture."""
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    return get_tensor_name_map(arch, n_layers)


def head_dim(config: Mapping[str, Any]) -> int:
    """Return the width of an attention head."""
    given = config.get("head_dim")
    return int(given or config["hidden_size"] // config["num_attention_heads"])


def read_rope(config: Mapping[str, Any]) -> Rope:
    """Read the rotary embedding of a config.json.

    Raises:
        ModelFileError: its scaling is unknown.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    local = parameters.get("sliding_attention") or {}
    parameters = parameters.get("full_attention", parameters)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    kind = {"su": "longrope"}.get(kind, kind)
    if kind not in ("default", "linear", "llama3", "yarn", "longrope"):
        raise ModelFileError(
            f"Its positions are scaled by {kind!r}, which edge does not convert.",
            "Known are default, linear, llama3, yarn and longrope.",
        )
    return Rope(
        theta=float(parameters.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        kind=kind,
        scaling=dict(parameters),
        partial=float(parameters.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0),
        local_theta=local.get("rope_theta") or config.get("rope_local_base_freq"),
    )


def write_config(writer: GGUFWriter, checkpoint: Checkpoint) -> None:
    """Add the model's sizes and constants.

    Raises:
        ModelFileError: llama.cpp cannot run this variant.
    """
    config, architecture = checkpoint.config, checkpoint.architecture
    arch = architecture.gguf
    _check_supported(config, architecture)
    n_head = config["num_attention_heads"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(_context_length(config, arch))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(n_head)
    writer.add_head_count_kv(config.get("num_key_value_heads") or n_head)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    _write_rope(writer, config, read_rope(config))
    if architecture.is_gemma:
        writer.add_sliding_window(config["sliding_window"])
        if config.get("attn_logit_softcapping"):
            writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        if config.get("final_logit_softcapping"):
            writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if arch == "phi3":  # llama.cpp tells Phi-4 from Phi-3 by zero
        writer.add_sliding_window(config.get("sliding_window") or 0)


def rope_tensors(config: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Return the factors by which llama.cpp divides the frequencies of the rotary embedding, where a model has them.

    Returns:
        GGUF tensor name -> float32 [rotated width / 2].

    Source: `_compute_llama3_parameters` of transformers.
    """
    rope = read_rope(config)
    if rope.kind == "longrope":
        named = (("rope_factors_long.weight", "long_factor"), ("rope_factors_short.weight", "short_factor"))
        return {name: np.array(rope.scaling[key], dtype=np.float32) for name, key in named}
    if rope.kind != "llama3":
        return {}
    scaling, width = rope.scaling, int(head_dim(config) * rope.partial)
    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = float(scaling["original_max_position_embeddings"])
    wavelengths = 2 * math.pi * rope.theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    factors = 1.0 / ((1.0 - smooth) / factor + smooth)
    return {"rope_freqs.weight": factors.astype(np.float32)}


def _write_rope(writer: GGUFWriter, config: Mapping[str, Any], rope: Rope) -> None:
    scaling = rope.scaling
    writer.add_rope_dimension_count(int(head_dim(config) * rope.partial))
    writer.add_rope_freq_base(rope.theta)
    if rope.local_theta is not None:
        writer.add_rope_freq_base_swa(float(rope.local_theta))
    if rope.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    elif rope.kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        writer.add_rope_scaling_orig_ctx_len(_original_context(config, rope))
    elif rope.kind == "longrope":
        original, longest = _original_context(config, rope), config["max_position_embeddings"]
        grown = longest / original
        attention = math.sqrt(1 + math.log(grown) / math.log(original)) if grown > 1 else 1.0
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(scaling.get("attention_factor") or attention))


def _original_context(config: Mapping[str, Any], rope: Rope) -> int:
    given = rope.scaling.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return int(given or config["max_position_embeddings"])


def _context_length(config: Mapping[str, Any], arch: str) -> int:
    """Return the context of the training. llama.cpp gives Mistral's first version no window, so its context ends there."""
    length = int(config["max_position_embeddings"])
    window = config.get("sliding_window")
    return min(length, int(window)) if arch == "llama" and window else length


def _check_supported(config: Mapping[str, Any], architecture: Architecture) -> None:
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if activation != ("gelu_pytorch_tanh" if architecture.is_gemma else "silu"):
        raise _cannot(f"its activation is {activation}")
    n_layers, kinds = config["num_hidden_layers"], config.get("layer_types")
    if architecture.is_gemma and kinds and tuple(kinds) != architecture.layer_kinds(n_layers):
        raise _cannot(f"its full attention is not in every {architecture.window_pattern}th layer")
    if architecture.gguf in ("qwen2", "qwen3") and config.get("use_sliding_window"):
        raise _cannot("some of its layers have a sliding window")
    scale = config.get("query_pre_attn_scalar")
    if scale and architecture.is_gemma:
        by_width = config["hidden_size"] // config["num_attention_heads"]
        if scale != (by_width if n_layers == architecture.n_wide_layers else head_dim(config)):
            raise _cannot(f"its attention is scaled by {scale}")


def _cannot(why: str) -> ModelFileError:
    return ModelFileError(f"llama.cpp cannot run this variant: {why}.", "Convert to another format: --to onnx or --to coreml")
