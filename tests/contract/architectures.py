"""Tiny random models of the architectures that OpenVINO runs, and of what is special about some of them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

from tests.contract.conftest import FFN, HEAD_DIM, HEADS, KV_HEADS, WIDTH, TinyModel

__all__ = ["write"]


def write(path: Path, kind: str) -> Path:
    """A tiny random model: an architecture with something special about it, or the type of its weights."""
    architecture, _, special = kind.partition(" ")
    weights = architecture if architecture.startswith("Q") else ""
    name = "llama" if weights or kind == "mixed" else architecture
    model = TinyModel(path, name, n_layer={"gemma3": 6, "smollm3": 4}.get(name, 2))
    if weights:
        model.kind = gguf.GGMLQuantizationType[weights]
    model.add_attention(WIDTH // HEAD_DIM if architecture in ("qwen2", "phi3", "olmo2") else HEADS)
    model.add_tokenizer()
    model.writer.add_rope_freq_base(5000.0)
    if name == "phi3":  # llama.cpp expects special tokens of a model that is called so
        model.writer.kv_data[0].pop("general.name")
        model.writer.add_name("tiny")
    if name == "gemma3":
        model.writer.add_sliding_window(32)
    if name == "granite":
        model.writer.add_attention_scale(0.125)
        model.writer.add_embedding_scale(3.0)
        model.writer.add_residual_scale(0.4)
        model.writer.add_logit_scale(2.5)
    if special == "partial":
        model.writer.kv_data[0].pop(f"{name}.rope.dimension_count")
        model.writer.add_rope_dimension_count(HEAD_DIM // 2)
    if special == "window":
        model.writer.add_sliding_window(32)
    if special in ("yarn", "longrope"):
        model.writer.add_rope_scaling_type(gguf.RopeScalingType(special))
        model.writer.add_rope_scaling_orig_ctx_len(64)
        model.writer.add_rope_scaling_attn_factors(0.9)
    if special == "yarn":
        model.writer.add_rope_scaling_factor(4.0)
    if special == "longrope":
        for size, factor in (("long", 4.0), ("short", 1.0)):
            factors = np.linspace(1, factor, HEAD_DIM // 2, dtype=np.float32)
            model.writer.add_tensor(f"rope_factors_{size}.weight", factors)
    if special == "scaled":
        model.writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        model.writer.add_rope_scaling_factor(4.0)
    if special == "factors":
        model.writer.add_tensor("rope_freqs.weight", np.linspace(1, 8, HEAD_DIM // 2, dtype=np.float32))
    if special == "tied":
        model.tensor("token_embd.weight", 259, WIDTH)
        model.norm("output_norm.weight")
    else:
        model.add_ends()
    for layer in range(model.n_layer):
        if kind == "mixed":  # q, k and v of different types are three products
            model.kind = gguf.GGMLQuantizationType.Q4_0
            model.tensor(f"blk.{layer}.attn_q.weight", HEADS * HEAD_DIM, WIDTH)
            model.kind = gguf.GGMLQuantizationType.Q8_0
            model.tensor(f"blk.{layer}.attn_k.weight", KV_HEADS * HEAD_DIM, WIDTH)
            model.tensor(f"blk.{layer}.attn_v.weight", KV_HEADS * HEAD_DIM, WIDTH)
            model.kind = None
            model.norm(f"blk.{layer}.attn_norm.weight")
            model.tensor(f"blk.{layer}.attn_output.weight", WIDTH, HEADS * HEAD_DIM)
            model.norm(f"blk.{layer}.ffn_norm.weight")
            model.tensor(f"blk.{layer}.ffn_gate.weight", FFN, WIDTH)
            model.kind = gguf.GGMLQuantizationType.Q4_1
            model.tensor(f"blk.{layer}.ffn_up.weight", FFN, WIDTH)
            model.tensor(f"blk.{layer}.ffn_down.weight", WIDTH, FFN)
            continue
        if architecture == "phi3":  # several tensors in one
            block, width = f"blk.{layer}", WIDTH + 2 * KV_HEADS * HEAD_DIM
            model.norm(f"{block}.attn_norm.weight")
            model.tensor(f"{block}.attn_qkv.weight", width, WIDTH)
            model.tensor(f"{block}.attn_output.weight", WIDTH, WIDTH)
            model.norm(f"{block}.ffn_norm.weight")
            model.tensor(f"{block}.ffn_up.weight", 2 * FFN, WIDTH)
            model.tensor(f"{block}.ffn_down.weight", WIDTH, FFN)
            continue
        if architecture == "olmo2":  # its norms are behind, and over all heads at once
            _add_olmo2_tensors(model, layer)
            continue
        model.add_ffn_tensors(layer)
        if architecture == "qwen2":  # its heads share the width
            model.norm(f"blk.{layer}.attn_norm.weight")
            for part in ("q", "k", "v", "output"):
                model.tensor(f"blk.{layer}.attn_{part}.weight", WIDTH, WIDTH)
                if part != "output":
                    model.tensor(f"blk.{layer}.attn_{part}.bias", WIDTH)
            continue
        model.add_attention_tensors(layer)
        if architecture == "gemma3":
            model.norm(f"blk.{layer}.post_attention_norm.weight")
            model.norm(f"blk.{layer}.post_ffw_norm.weight")
        if architecture in ("qwen3", "gemma3"):
            model.norm(f"blk.{layer}.attn_q_norm.weight", HEAD_DIM)
            model.norm(f"blk.{layer}.attn_k_norm.weight", HEAD_DIM)
    return model.write()


def _add_olmo2_tensors(model: TinyModel, layer: int) -> None:
    block, kv = f"blk.{layer}", KV_HEADS * HEAD_DIM
    for part, rows in (("q", WIDTH), ("k", kv), ("v", kv), ("output", WIDTH)):
        model.tensor(f"{block}.attn_{part}.weight", rows, WIDTH)
    model.norm(f"{block}.attn_q_norm.weight")
    model.norm(f"{block}.attn_k_norm.weight", kv)
    model.norm(f"{block}.post_attention_norm.weight")
    model.tensor(f"{block}.ffn_gate.weight", FFN, WIDTH)
    model.tensor(f"{block}.ffn_up.weight", FFN, WIDTH)
    model.tensor(f"{block}.ffn_down.weight", WIDTH, FFN)
    model.norm(f"{block}.post_ffw_norm.weight")
