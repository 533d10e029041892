"""A decoder as the exporter needs it: sizes, switches, rotary tables and the source of each weight."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge.errors import ModelFileError, UsageError
from edge_convert.architectures import ARCHITECTURES
from edge_convert.tokenizer_files import library_reads

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Decoder", "Linear", "layer_linears", "read_decoder", "rotary_tables"]

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu"}


class Linear(msgspec.Struct, frozen=True):
    """A matrix: rows [start, stop) of a tensor of the checkpoint (Phi-3 stores several in one)."""

    tensor: str
    start: int
    stop: int


class Decoder(msgspec.Struct, frozen=True):
    """A decoder-only transformer. Sizes are numbers of elements."""

    architecture: str
    n_layers: int
    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    norm_eps: float
    activation: str
    attention_scale: float
    tied: bool
    windows: tuple[int | None, ...]
    """Per layer: tokens that a token sees, itself included; None is all."""
    layer_types: tuple[str, ...]
    """Per layer: its rotary table."""
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embed_scale: float = 1.0
    norm_plus_one: bool = False
    """The checkpoint stores norm weights minus one (Gemma)."""
    has_pre_norms: bool = True
    """Norms before attention and MLP."""
    has_post_norms: bool = False
    """Norms after attention and MLP (Gemma, OLMo 2)."""
    has_wide_norms: bool = False
    """The norms of q and k are over all heads at once (OLMo 2)."""
    rotates: tuple[bool, ...] = ()
    """Per layer: whether it has the rotary embedding; empty if all have."""
    branch_scale: float = 1.0
    """Factor of what attention and MLP add (Granite)."""
    logit_divisor: float = 1.0
    residual_scale: float = 1.0
    """Power of two that scales the residual stream, so that fp16 does not overflow."""
    qkv: str = ""
    """The tensor that holds q, k and v (Phi-3)."""
    gate_up: str = ""
    """The tensor that holds gate and up (Phi-3, Granite 4)."""
    down: str = "mlp.down_proj"

    @property
    def groups(self) -> int:
        """Query heads that share one key head."""
        return self.n_heads // self.n_kv_heads

    def window(self, layer: int, context: int) -> int | None:
        """Return the sliding window of a layer, or None if it is not shorter than `context`."""
        window = self.windows[layer]
        return None if window is None or window >= context else window


def read_decoder(folder: Path) -> Decoder:
    """Read a checkpoint's config.json.

    Raises:
        ModelFileError: this exporter does not build the architecture, or something in its config.
    """
    config = _config(folder)
    names = list(getattr(config, "architectures", None) or [])
    architecture = next((name for name in names if name in ARCHITECTURES), None)
    if architecture is None:
        found = ", ".join(names) or getattr(config, "model_type", "none")
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelFileError(
            f"This checkpoint's architecture ({found}) cannot be exported to Core ML.", f"Known architectures: {known}."
        )
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in ACTIVATIONS:
        raise ModelFileError(
            f"The activation {activation!r} of this checkpoint is not built by the Core ML exporter.",
            f"It builds {', '.join(sorted(ACTIVATIONS))}. Convert to GGUF or ONNX instead.",
        )
    row = ARCHITECTURES[architecture]
    gemma = row.is_gemma
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    query_scalar = getattr(config, "query_pre_attn_scalar", None) or head_dim
    types = _layer_types(config)
    window = getattr(config, "sliding_window", None)
    return Decoder(
        architecture=architecture,
        n_layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        vocab=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        activation=ACTIVATIONS[activation],
        attention_scale=float(query_scalar) ** -0.5,
        tied=bool(config.tie_word_embeddings),
        windows=tuple(window if kind == "sliding_attention" else None for kind in types),
        layer_types=types,
        attention_softcap=getattr(config, "attn_logit_softcapping", None) if gemma else None,
        final_softcap=getattr(config, "final_logit_softcapping", None) if gemma else None,
        embed_scale=float(config.hidden_size) ** 0.5 if gemma else 1.0,
        norm_plus_one=gemma,
        has_pre_norms=row.has_pre_norms,
        has_post_norms=row.has_post_norms,
        has_wide_norms=row.has_wide_norms,
        residual_scale=1 / 16 if gemma else 1.0,
        qkv=next((name for name in row.block_tensors if name.endswith("qkv_proj")), ""),
        gate_up=row.gate_up,
        down=row.down,
    )


def _config(folder: Path) -> Any:
    from transformers import AutoConfig

    with library_reads(f"config.json of {folder.name}"):
        return AutoConfig.from_pretrained(folder, local_files_only=True)


def _layer_types(config: Any) -> tuple[str, ...]:
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kind = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
        kinds = [kind] * config.num_hidden_layers
    if getattr(config, "use_bidirectional_attention", False) or set(kinds) - {"full_attention", "sliding_attention"}:
        raise ModelFileError(
            f"This checkpoint uses attention that the Core ML exporter does not build ({', '.join(sorted(set(kinds)))}).",
            "Convert to GGUF instead.",
        )
    return tuple(kinds)


def rotary_tables(folder: Path, decoder: Decoder, context: int) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Compute cosines and sines by the code of transformers, so that every kind of rope scaling is the reference's.

    Returns:
        For each layer type in use: (cos, sin), each [context, rotated dims / 2].
    """
    import torch

    config = _config(folder)
    limit = config.max_position_embeddings
    if context > limit:
        raise UsageError(
            f"A context of {context} tokens was asked for, but this model knows positions up to {limit}.",
            f"Choose a context of at most {limit}.",
        )
    row = ARCHITECTURES[decoder.architecture]
    module_name = row.module
    module = importlib.import_module(f"transformers.models.{module_name}.modeling_{module_name}")
    rotary = getattr(module, f"{row.classes}RotaryEmbedding")(config)
    per_type = module_name == "gemma3"
    tables = {}
    for kind in sorted(set(decoder.layer_types)):
        with torch.no_grad():
            positions = torch.arange(context)[None]
            cos, sin = rotary(torch.zeros(1), positions, *([kind] if per_type else []))
        half = cos.shape[-1] // 2
        tables[kind] = (cos[0, :, :half].float().numpy(), sin[0, :, :half].float().numpy())
    return tables


def layer_linears(decoder: Decoder, layer: int) -> dict[str, Linear]:
    """Return the seven matrices of a layer by their usual names (q, k, v, o, gate, up, down)."""
    attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
    n_q, n_kv, wide = decoder.n_heads * decoder.head_dim, decoder.n_kv_heads * decoder.head_dim, decoder.intermediate
    prefix = f"model.layers.{layer}."
    linears = {"o": Linear(attention + "o_proj", 0, decoder.hidden), "down": Linear(prefix + decoder.down, 0, decoder.hidden)}
    if decoder.qkv:
        qkv = prefix + decoder.qkv
        linears |= {
            "q": Linear(qkv, 0, n_q),
            "k": Linear(qkv, n_q, n_q + n_kv),
            "v": Linear(qkv, n_q + n_kv, n_q + 2 * n_kv),
        }
    else:
        linears |= {part: Linear(f"{attention}{part}_proj", 0, n_q if part == "q" else n_kv) for part in "qkv"}
    if decoder.gate_up:
        gate_up = prefix + decoder.gate_up
        linears |= {"gate": Linear(gate_up, 0, wide), "up": Linear(gate_up, wide, 2 * wide)}
    else:
        linears |= {part: Linear(f"{mlp}{part}_proj", 0, wide) for part in ("gate", "up")}
    return linears
