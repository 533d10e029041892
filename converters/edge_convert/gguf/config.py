"""Writes a checkpoint's config.json as the keys of a GGUF file.

Source: `llama_model::load_hparams` in llama.cpp: the keys that an architecture reads, and what it takes for granted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from gguf import MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map

from edge_convert.architectures import Architecture
from edge_convert.gguf.limits import check_config, context_length, has_own_yarn, llama3_factors, yarn_factor, yarn_factors
from edge_convert.model_config import ModelConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["name_map", "rope_tensors", "write_config"]


def name_map(architecture: str, n_layers: int) -> Any:
    """Return the `gguf` package's map from checkpoint to GGUF tensors, by llama.cpp's name of the architecture."""
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    return get_tensor_name_map(arch, n_layers)


def write_config(writer: GGUFWriter, model: ModelConfig, architecture: Architecture) -> None:
    """Add the model's sizes and constants.

    Raises:
        ModelFileError: llama.cpp cannot run this variant.
    """
    check_config(model, architecture)
    arch = architecture.gguf
    writer.add_vocab_size(model.n_vocab)
    writer.add_block_count(model.n_layers)
    writer.add_context_length(context_length(model, architecture))
    writer.add_embedding_length(model.width)
    writer.add_feed_forward_length(model.inner)
    writer.add_head_count(model.n_heads)
    if model.conv_width:
        writer.add_head_count_kv([0 if kind == "conv" else model.n_kv_heads for kind in model.layer_kinds])
        writer.add_shortconv_l_cache(model.conv_width)
    else:
        writer.add_head_count_kv(model.n_kv_heads)
    if model.n_experts:
        writer.add_expert_count(model.n_experts)
        writer.add_expert_used_count(model.n_used_experts)
        writer.add_expert_feed_forward_length(model.expert_inner)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    _write_rope(writer, model)
    if architecture.has_multipliers:
        writer.add_attention_scale(model.attention_scalar**-0.5)
        writer.add_embedding_scale(model.embedding_scale)
        writer.add_residual_scale(model.branch_scale)
        writer.add_logit_scale(model.logit_divisor)
    if architecture.is_gemma:
        writer.add_sliding_window(model.window or model.n_positions)
        if model.window_period != architecture.window_pattern and model.window_period is not None:
            writer.add_sliding_window_pattern(0 if model.window_period > model.n_layers else model.window_period)
        if model.attention_cap:
            writer.add_attn_logit_softcapping(model.attention_cap)
        if model.final_cap:
            writer.add_final_logit_softcapping(model.final_cap)
    if arch == "phi3":  # llama.cpp tells Phi-4 from Phi-3 by zero
        writer.add_sliding_window(model.window or 0)


def rope_tensors(model: ModelConfig) -> dict[str, NDArray[np.float32]]:
    """Return the factors by which llama.cpp divides the frequencies of the rotary embedding, where a model has them.

    Returns:
        GGUF tensor name -> float32 [rotated width / 2].

    Source: `_compute_llama3_parameters` of transformers.
    """
    rope = model.rope
    if rope.kind == "longrope":
        named = (("rope_factors_long.weight", "long_factor"), ("rope_factors_short.weight", "short_factor"))
        return {name: np.array(rope.scaling[key], dtype=np.float32) for name, key in named}
    if rope.kind == "llama3":
        return {"rope_freqs.weight": llama3_factors(rope.scaling, rope.theta, model.n_rotated, rope.original_context)}
    return {"rope_freqs.weight": yarn_factors(rope, model.n_rotated)} if has_own_yarn(rope) else {}


def _write_rope(writer: GGUFWriter, model: ModelConfig) -> None:
    rope, scaling = model.rope, model.rope.scaling
    writer.add_rope_dimension_count(model.n_rotated)
    writer.add_rope_freq_base(rope.theta)
    if rope.local_theta is not None:
        writer.add_rope_freq_base_swa(float(rope.local_theta))
    if rope.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
    elif has_own_yarn(rope):  # its factors are a tensor
        writer.add_rope_scaling_attn_factors(rope.attention_factor)
    elif rope.kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(scaling["factor"]))
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        more = rope.attention_factor / yarn_factor(float(scaling["factor"]))
        if not math.isclose(more, 1.0, rel_tol=1e-6):
            writer.add_rope_scaling_attn_factors(more)
    elif rope.kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)
        writer.add_rope_scaling_attn_factors(rope.attention_factor)
