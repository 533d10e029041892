"""The numbers of a decoder, from the header of a GGUF file: what differs between the architectures that `graph.py` writes.

Source: Hugging Face's Llama, Mistral, Qwen2, Qwen3, Phi3 and Gemma3 (transformers); load_hparams of llama.cpp for what GGUF
stores differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge.backends.openvino.rotation import Rotation, read_rotation
from edge.backends.openvino.tensors import Tensors
from edge.backends.openvino.weights import GROUP, TYPES
from edge.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    from edge.formats.gguf import GGUFHeader

__all__ = ["ARCHITECTURES", "INTERLEAVED", "Shape", "read_shape", "why_not"]

ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "gemma3", "smollm3", "granite", "olmo2")
"""Of GGUF files that the graph is right for. Mistral's files say "llama"."""
INTERLEAVED = ("llama", "smollm3", "granite")
"""Those with the pairs of a rotation beside each other."""
_UNROTATED_PERIOD = 4  # every fourth layer of SmolLM3 has no rotation
_GEMMA_PERIOD = 6  # every sixth layer of Gemma 3 looks back all the way
_GEMMA_27B_LAYERS = 62  # it alone scales its scores by width / heads
_HINT = "Use --backend llamacpp."


@dataclass(frozen=True, slots=True)
class Shape:
    """Numbers of a decoder.

    Attributes:
        n_layer, n_head, n_head_kv, head_dim, n_embd, n_vocab: as in the header.
        epsilon: of the RMS norms.
        rotation: of the positions, in layers that look back all the way.
        local_rotation: in layers with a window.
        windows: for each layer how many tokens it sees, its own one included; 0 is all of them.
        is_interleaved: a head's pairs that are rotated are neighbours in the file (Llama), not from its two halves.
        embedding_scale: factor of the embeddings.
        score_scale: factor of the products of queries and keys.
        rotates: for each layer whether it rotates queries and keys.
        branch_scale: factor of what attention and feed-forward part add.
        logit_scale: factor of the logits.
        is_gelu: the gate of the feed-forward part is GELU (its approximation by tanh), not SiLU.
    """

    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_embd: int
    n_vocab: int
    epsilon: float
    rotation: Rotation
    local_rotation: Rotation
    windows: tuple[int, ...]
    is_interleaved: bool
    embedding_scale: float
    score_scale: float
    rotates: tuple[bool, ...]
    branch_scale: float
    logit_scale: float
    is_gelu: bool

    def rotation_of(self, window: int) -> Rotation:
        """Return the rotation in layers with this window."""
        return self.local_rotation if window else self.rotation


def read_shape(header: GGUFHeader, path: Path, n_ctx: int) -> Shape:
    """Return the numbers of a decoder.

    Args:
        header: of the file.
        path: of it.
        n_ctx: tokens of context, on which the rotation of some models depends.

    Raises:
        UnsupportedError: the model is of a kind that the graph is not right for; which one, and what to do.
    """
    reason = why_not(header)
    if reason:
        raise UnsupportedError(f"The openvino backend cannot run {path.name}: {reason}.", _HINT)
    arch, n_head = header.architecture, header.n_head
    assert isinstance(n_head, int) and isinstance(header.n_head_kv, int)
    is_gemma = arch == "gemma3"
    rotation = read_rotation(header, Tensors(path, header), n_ctx)
    local = rotation
    if is_gemma:  # its windows have a rotation of their own, which nothing scales
        base = _number(header, "rope.freq_base_swa", 10_000.0)
        local = Rotation(base ** (-np.arange(len(rotation.frequencies)) / len(rotation.frequencies)))
    scaled_width = header.n_embd / n_head if is_gemma and header.n_layer == _GEMMA_27B_LAYERS else header.head_dim_k
    return Shape(
        n_layer=header.n_layer,
        n_head=n_head,
        n_head_kv=header.n_head_kv,
        head_dim=header.head_dim_k,
        n_embd=header.n_embd,
        n_vocab=header.n_vocab,
        epsilon=_number(header, "attention.layer_norm_rms_epsilon", 1e-5),
        rotation=rotation,
        local_rotation=local,
        windows=_windows(header),
        is_interleaved=arch in INTERLEAVED,
        embedding_scale=float(np.sqrt(header.n_embd)) if is_gemma else _factor(header, "embedding_scale"),
        score_scale=_factor(header, "attention.scale", float(scaled_width**-0.5)),
        rotates=tuple(arch != "smollm3" or (layer + 1) % _UNROTATED_PERIOD != 0 for layer in range(header.n_layer)),
        branch_scale=_factor(header, "residual_scale"),
        logit_scale=1 / _factor(header, "logit_scale"),
        is_gelu=is_gemma,
    )


def why_not(header: GGUFHeader) -> str:
    """Return why the graph is not right for a model; "" if it is."""
    arch = header.architecture
    about = header.metadata
    rotated = about.get(f"{arch}.rope.dimension_count", header.head_dim_k)
    unknown = sorted({tensor.type for tensor in header.tensors} - set(TYPES))
    names = {tensor.name.split(".", 2)[-1] if tensor.name.startswith("blk.") else tensor.name for tensor in header.tensors}
    pattern = about.get(f"{arch}.attention.sliding_window_pattern", 0)
    checks = (
        (header.split_count > 1, "it is split into several files"),
        (arch not in ARCHITECTURES, f"its architecture is {arch}, and {', '.join(ARCHITECTURES)} are known"),
        (isinstance(header.n_head, tuple) or isinstance(header.n_head_kv, tuple), "its layers have different numbers of heads"),
        (header.head_dim_k != header.head_dim_v, "its keys and values have different lengths"),
        (
            not isinstance(rotated, int) or not 0 < rotated <= header.head_dim_k or bool(rotated % 2),
            f"it rotates {rotated} of {header.head_dim_k} numbers of a head",
        ),
        (not isinstance(pattern, (int, tuple)) or (isinstance(pattern, tuple) and len(pattern) != header.n_layer),
            "which of its layers have a window is unclear"),
        (about.get(f"{arch}.rope.scaling.finetuned") is False and arch == "granite", "it has no positions"),
        (bool(about.get(f"{arch}.final_logit_softcapping", 0)), "it limits its logits"),
        (bool(about.get(f"{arch}.expert_count", 0)), "it has experts"),
        (bool(unknown), f"it has weights of the type {', '.join(unknown)}"),
        (bool(names - _NAMES), f"it has tensors of an unknown kind ({', '.join(sorted(names - _NAMES)[:3])})"),
        (header.n_embd % GROUP != 0, "its width is no multiple of 32"),
    )  # fmt: skip
    return next((text for is_wrong, text in checks if is_wrong), "")


_NAMES = {
    "token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight", "rope_factors_long.weight",
    "rope_factors_short.weight",
} | {
    f"{name}.weight"
    for name in (
        "attn_norm", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "attn_q_norm", "attn_k_norm",
        "post_attention_norm", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down", "post_ffw_norm",
    )
} | {f"attn_{part}.bias" for part in "qkv"}  # fmt: skip


def _windows(header: GGUFHeader) -> tuple[int, ...]:
    """Return how many tokens each layer sees; 0 is all of them.

    llama.cpp (of llama-cpp-python 0.3.36) ignores the windows of Mistral and Phi-3, which were trained with them.
    """
    window = header.sliding_window or 0
    default = _GEMMA_PERIOD if header.architecture == "gemma3" else 0
    pattern = header.metadata.get(f"{header.architecture}.attention.sliding_window_pattern", default)
    if isinstance(pattern, tuple):
        return tuple(window if is_local else 0 for is_local in pattern)
    period = pattern if isinstance(pattern, int) else 0  # the last layer of each period has none; 0: all layers have one
    return tuple(0 if period and (layer + 1) % period == 0 else window for layer in range(header.n_layer))


def _factor(header: GGUFHeader, key: str, default: float = 1.0) -> float:
    """Return a factor of Granite; llama.cpp takes 0 for one that is left out."""
    return (_number(header, key, default) if header.architecture == "granite" else default) or default


def _number(header: GGUFHeader, key: str, default: float) -> float:
    value = header.metadata.get(f"{header.architecture}.{key}", default)
    return float(value) if isinstance(value, (int, float)) else default
