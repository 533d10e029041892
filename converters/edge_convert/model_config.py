"""config.json of a checkpoint as typed values, checked once for all formats.

Defaults and the meaning of each key are those of transformers. A value that would change the arithmetic and that no exporter
writes is refused here, so that nothing is dropped in silence; what only one format cannot do is refused by that format's plan.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from edge.units import reason
from edge_convert.architectures import Architecture
from edge_convert.rope import Rope, read_rope, wrong_config

__all__ = ["LayerKind", "ModelConfig", "read_model_config"]

LayerKind = Literal["full_attention", "sliding_attention"]

_Size = Annotated[int, Meta(ge=1, le=1 << 24)]
_Scale = Annotated[float, Meta(gt=0.0, le=1e9)]
_DType = Literal["auto", "float16", "bfloat16", "float32", "float64"]
HYBRIDS = "edge runs it as GGUF: look for a repository of that model whose name ends in -GGUF."
_GATED = {"silu": "silu", "swish": "silu"}
_GEMMA = {"gelu_pytorch_tanh": "gelu"}


class _Fields(msgspec.Struct, frozen=True, kw_only=True):
    """The keys of config.json that decide the arithmetic; the others are passed over."""

    vocab_size: _Size
    hidden_size: _Size
    intermediate_size: _Size
    shared_intermediate_size: _Size | None = None
    num_hidden_layers: Annotated[int, Meta(ge=1, le=10_000)]
    num_attention_heads: _Size
    max_position_embeddings: Annotated[int, Meta(ge=1, le=1 << 30)]
    model_type: str | None = None
    num_key_value_heads: _Size | None = None
    head_dim: _Size | None = None
    rms_norm_eps: Annotated[float, Meta(gt=0.0, lt=1.0)] | UnsetType = UNSET
    hidden_act: str | None = None
    hidden_activation: str | None = None
    tie_word_embeddings: bool | UnsetType = UNSET
    attention_bias: bool = False
    mlp_bias: bool = False
    dtype: _DType | None = None
    torch_dtype: _DType | None = None
    rope_theta: _Scale | None = None
    rope_local_base_freq: _Scale | None = None
    partial_rotary_factor: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    rope_parameters: dict[str, Any] | None = None
    rope_scaling: dict[str, Any] | None = None
    original_max_position_embeddings: Annotated[int, Meta(ge=2, le=1 << 30)] | None = None
    sliding_window: Annotated[int, Meta(ge=1, le=1 << 30)] | None = None
    use_sliding_window: bool = False
    max_window_layers: Annotated[int, Meta(ge=0)] = 28
    sliding_window_pattern: Annotated[int, Meta(ge=1)] | None = None
    layer_types: tuple[str, ...] | None = None
    use_bidirectional_attention: bool | str | None = None
    query_pre_attn_scalar: _Scale | None = None
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: Annotated[int, Meta(ge=1)] | None = None
    embedding_multiplier: _Scale | None = None
    residual_multiplier: _Scale | None = None
    attention_multiplier: _Scale | None = None
    logits_scaling: _Scale | None = None
    num_local_experts: int | None = None
    num_experts: Annotated[int, Meta(ge=1, le=4096)] | None = None
    num_experts_per_tok: Annotated[int, Meta(ge=0, le=4096)] | None = None
    moe_intermediate_size: _Size = 768
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] | None = None
    full_attn_idxs: tuple[int, ...] | None = None
    conv_L_cache: Annotated[int, Meta(ge=2, le=64)] = 3
    conv_bias: bool = False
    block_multiple_of: _Size = 256
    block_ffn_dim_multiplier: _Scale = 1.0
    block_auto_adjust_ff_dim: bool = True
    position_embedding_type: str | None = None
    attn_logit_softcapping: _Scale | None = None
    final_logit_softcapping: _Scale | None = None
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A model's sizes and constants, defaults filled in.

    Attributes:
        n_vocab: rows of the embedding.
        width: of the hidden state.
        inner: width of the feed-forward matrices.
        n_layers: of the model.
        n_heads, n_kv_heads: of queries; of keys and values.
        head_dim: width of a head.
        n_positions: longest text that it knows positions for.
        norm_eps: of the RMS norms.
        activation: "silu", or "gelu" (its tanh form).
        says_tied: config.json lets the head share the embedding; see Checkpoint.is_tied.
        attention_bias: q, k, v and o have a bias.
        mlp_bias: gate, up and down have a bias.
        n_experts, n_used_experts: of a layer; that a token goes through. 0 for none.
        expert_inner: width of the matrices of an expert.
        conv_width: tokens that the convolution of a layer sees; 0 for none.
        rope: the rotary embedding.
        window: tokens that a token sees in layers with a sliding window, itself included; None where there are none.
        layer_kinds: of each layer.
        rotates: whether each layer has the rotary embedding.
        embedding_scale: factor of the embeddings.
        branch_scale: factor of both halves of a layer, before they are added.
        logit_divisor: of the logits.
        attention_scalar: attention is scaled by its inverse root.
        attention_cap, final_cap: soft caps of the scores and of the logits.
        bos: id that begins a text.
        eos: ids that end a reply, the first is the model's own.
        pad: id that fills a batch up.
    """

    n_vocab: int
    width: int
    inner: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_positions: int
    norm_eps: float
    activation: str
    says_tied: bool
    attention_bias: bool
    mlp_bias: bool
    n_experts: int
    n_used_experts: int
    expert_inner: int
    conv_width: int
    rope: Rope
    window: int | None
    layer_kinds: tuple[str, ...]
    rotates: tuple[bool, ...]
    embedding_scale: float
    branch_scale: float
    logit_divisor: float
    attention_scalar: float
    attention_cap: float | None
    final_cap: float | None
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None

    @property
    def n_rotated(self) -> int:
        """Numbers of a head that are rotated."""
        return int(self.head_dim * self.rope.partial)

    @property
    def window_period(self) -> int | None:
        """The n of "every n-th layer has full attention, the others a window"; 1 without windows, None for another pattern."""
        full = [layer for layer, kind in enumerate(self.layer_kinds) if kind == "full_attention"]
        period = full[0] + 1 if full else self.n_layers + 1
        regular = all((kind == "full_attention") == ((layer + 1) % period == 0) for layer, kind in enumerate(self.layer_kinds))
        return period if regular else None


def read_model_config(config: Mapping[str, Any], architecture: Architecture, where: str) -> ModelConfig:
    """Check a config.json.

    Args:
        config: its content.
        architecture: that it names.
        where: the checkpoint, for messages.

    Raises:
        ModelFileError: a value is missing, of another type or out of range, or changes the arithmetic in a way that edge does
            not convert.
    """
    if architecture.conv_tensors:
        config = {**config, **_usual_keys(config)}
    try:
        fields = msgspec.convert(dict(config), _Fields)
    except msgspec.ValidationError as error:
        raise wrong_config(where, reason(error)) from error
    heads, kv_heads = fields.num_attention_heads, _n_kv_heads(config, fields, architecture)
    if heads % kv_heads:
        raise wrong_config(where, f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})")
    head_dim = _head_dim(config, fields, architecture, where)
    rotates = _rotates(fields, architecture, where)
    kinds = _layer_kinds(config, fields, architecture, where, rotates)
    rope = read_rope(fields, architecture, head_dim, where)
    if fields.use_bidirectional_attention:
        raise wrong_config(where, "use_bidirectional_attention is set: the model looks at later tokens, too")
    window = fields.sliding_window or architecture.window
    n_experts = (fields.num_experts or fields.num_local_experts or 128) if architecture.has_experts else 0
    return ModelConfig(
        n_vocab=fields.vocab_size,
        width=fields.hidden_size,
        inner=_inner(fields, architecture, where),
        n_layers=fields.num_hidden_layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        n_positions=fields.max_position_embeddings,
        norm_eps=architecture.norm_eps if fields.rms_norm_eps is UNSET else fields.rms_norm_eps,
        activation=_activation(fields, architecture, where),
        says_tied=architecture.is_tied if fields.tie_word_embeddings is UNSET else fields.tie_word_embeddings,
        attention_bias=fields.attention_bias and architecture.has_attention_bias,
        mlp_bias=fields.mlp_bias and architecture.has_mlp_bias,
        n_experts=n_experts,
        n_used_experts=_used_experts(fields, n_experts, where),
        expert_inner=fields.moe_intermediate_size if architecture.has_experts else 0,
        conv_width=fields.conv_L_cache if architecture.conv_tensors else 0,
        rope=rope,
        window=window if "sliding_attention" in kinds else None,
        layer_kinds=kinds,
        rotates=rotates,
        embedding_scale=_embedding_scale(fields, architecture),
        branch_scale=(fields.residual_multiplier or 1.0) if architecture.has_multipliers else 1.0,
        logit_divisor=(fields.logits_scaling or 1.0) if architecture.has_multipliers else 1.0,
        attention_scalar=_attention_scalar(fields, architecture, head_dim),
        attention_cap=_cap(config, fields, architecture, "attn_logit_softcapping"),
        final_cap=_cap(config, fields, architecture, "final_logit_softcapping"),
        bos=_token(fields.bos_token_id, "bos_token_id", fields.vocab_size, where),
        eos=_eos(fields, where),
        pad=fields.pad_token_id if 0 <= (fields.pad_token_id or 0) < fields.vocab_size else None,
    )


def _usual_keys(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what LFM2 has other keys for, by the usual ones."""
    others = (("norm_eps", "rms_norm_eps"), ("block_ff_dim", "intermediate_size"), ("tie_embedding", "tie_word_embeddings"))
    return {usual: config[own] for own, usual in others if own in config}


def _used_experts(fields: _Fields, n_experts: int, where: str) -> int:
    """Return the number of experts that a token goes through."""
    if not n_experts:
        return 0
    if fields.decoder_sparse_step != 1 or fields.mlp_only_layers:
        raise wrong_config(where, "only some of its layers have experts, which edge does not convert", HYBRIDS)
    used = 8 if fields.num_experts_per_tok is None else fields.num_experts_per_tok
    if not 1 <= used <= n_experts:
        raise wrong_config(where, f"num_experts_per_tok is {used}, and there are {n_experts} experts")
    if not fields.norm_topk_prob:
        raise wrong_config(where, "norm_topk_prob is off, and llama.cpp always normalises the weights of experts", HYBRIDS)
    return used


def _lfm2_inner(fields: _Fields) -> int:
    """Return the width of LFM2's feed-forward matrices, as transformers computes it."""
    inner = fields.intermediate_size
    if not fields.block_auto_adjust_ff_dim:
        return inner
    inner, multiple = int(fields.block_ffn_dim_multiplier * (2 * inner // 3)), fields.block_multiple_of
    return -(-inner // multiple) * multiple


def _conv_kinds(fields: _Fields, where: str) -> tuple[str, ...]:
    """Return the kind of each layer of a LFM2."""
    n_layers = fields.num_hidden_layers
    attending = range(n_layers) if fields.full_attn_idxs is None else fields.full_attn_idxs
    kinds = fields.layer_types or tuple("full_attention" if layer in attending else "conv" for layer in range(n_layers))
    if len(kinds) != n_layers or set(kinds) - {"full_attention", "conv"}:
        raise wrong_config(where, f"layer_types names {', '.join(sorted(set(kinds)))}, for {len(kinds)} of {n_layers} layers")
    if fields.conv_bias:
        raise wrong_config(where, "its convolutions have a bias, which edge does not convert", HYBRIDS)
    return kinds


def _inner(fields: _Fields, architecture: Architecture, where: str) -> int:
    """Return the width of the feed-forward matrices; of a Granite 4 those of its shared expert, if there is no other."""
    if architecture.conv_tensors:
        return _lfm2_inner(fields)
    if architecture.module != "granitemoehybrid":
        return fields.intermediate_size
    if fields.num_local_experts != 0:
        raise wrong_config(where, "it has experts, and edge converts a Granite 4 without them", HYBRIDS)
    return fields.shared_intermediate_size or 1024


def _rotates(fields: _Fields, architecture: Architecture, where: str) -> tuple[bool, ...]:
    """Return whether each layer has the rotary embedding."""
    n_layers, period = fields.num_hidden_layers, fields.no_rope_layer_interval or architecture.unrotated_period
    if not architecture.unrotated_period:
        if architecture.module == "granitemoehybrid" and fields.position_embedding_type != "rope":
            raise wrong_config(where, "its attention has no positions", HYBRIDS)
        return (True,) * n_layers
    if fields.no_rope_layers is None:
        return tuple((layer + 1) % period != 0 for layer in range(n_layers))
    if len(fields.no_rope_layers) < n_layers:
        raise wrong_config(where, f"no_rope_layers names {len(fields.no_rope_layers)} of {n_layers} layers")
    return tuple(bool(rotates) for rotates in fields.no_rope_layers[:n_layers])


def _embedding_scale(fields: _Fields, architecture: Architecture) -> float:
    if architecture.is_gemma:
        return math.sqrt(fields.hidden_size)
    return (fields.embedding_multiplier or 1.0) if architecture.has_multipliers else 1.0


def _attention_scalar(fields: _Fields, architecture: Architecture, head_dim: int) -> float:
    if architecture.has_multipliers:
        return (fields.attention_multiplier or 1.0) ** -2
    return float((fields.query_pre_attn_scalar or 256) if architecture.is_gemma else head_dim)


def _n_kv_heads(config: Mapping[str, Any], fields: _Fields, architecture: Architecture) -> int:
    default = fields.num_attention_heads if "num_key_value_heads" in config else architecture.n_kv_heads
    return fields.num_key_value_heads or default or fields.num_attention_heads


def _head_dim(config: Mapping[str, Any], fields: _Fields, architecture: Architecture, where: str) -> int:
    width, heads = fields.hidden_size, fields.num_attention_heads
    if architecture.head_dim and "head_dim" in config and fields.head_dim is None:
        raise wrong_config(where, "head_dim is null")
    found = fields.head_dim or architecture.head_dim
    if (not found or architecture.has_even_width) and width % heads:
        raise wrong_config(where, f"hidden_size ({width}) is not a multiple of num_attention_heads ({heads})")
    found = found or width // heads
    if found % 2:
        raise wrong_config(where, f"head_dim is odd ({found}), so that positions cannot be rotated in pairs")
    return found


def _activation(fields: _Fields, architecture: Architecture, where: str) -> str:
    known = _GEMMA if architecture.is_gemma else _GATED
    # Old configs of Gemma name a "gelu" that transformers never used where hidden_activation is there.
    named = (fields.hidden_activation if architecture.is_gemma else fields.hidden_act) or next(iter(known))
    if named not in known:
        raise wrong_config(where, f"its activation is {named}, which edge does not convert for a {architecture.title}")
    return known[named]


def _layer_kinds(
    config: Mapping[str, Any], fields: _Fields, architecture: Architecture, where: str, rotates: tuple[bool, ...]
) -> tuple[str, ...]:
    """Return the kind of attention of each layer, as transformers derives it."""
    n_layers, window = fields.num_hidden_layers, fields.sliding_window
    if architecture.conv_tensors:
        return _conv_kinds(fields, where)
    if architecture.windows == "moe":
        slides = fields.use_sliding_window and (window is not None or "sliding_window" not in config)
        return ("sliding_attention" if slides else "full_attention",) * n_layers
    if architecture.windows == "all":  # layer_types are not read there
        has_window = window is not None or ("sliding_window" not in config and architecture.window is not None)
        return ("sliding_attention" if has_window else "full_attention",) * n_layers
    if architecture.windows == "none":
        if architecture.module == "granitemoehybrid":
            _check_all_attend(fields, where)
        return ("full_attention",) * n_layers
    if fields.layer_types is not None:
        unknown = set(fields.layer_types) - {"full_attention", "sliding_attention"}
        if unknown or len(fields.layer_types) != n_layers:
            what = f"names {', '.join(sorted(unknown))}" if unknown else f"names {len(fields.layer_types)} of {n_layers} layers"
            raise wrong_config(where, f"layer_types {what}")
        kinds = fields.layer_types
    elif architecture.windows == "unrotated":
        slides = fields.use_sliding_window and window is not None
        kinds = tuple("full_attention" if turns or not slides else "sliding_attention" for turns in rotates)
    elif architecture.windows == "upper":
        first = fields.max_window_layers
        slides = fields.use_sliding_window and (window is not None or "sliding_window" not in config)
        kinds = tuple("sliding_attention" if slides and layer >= first else "full_attention" for layer in range(n_layers))
    else:
        period = fields.sliding_window_pattern if architecture.gguf == "gemma3" else None
        kinds = architecture.layer_kinds(n_layers, period)
    if "sliding_attention" in kinds:
        if architecture.windows in ("upper", "unrotated") and not fields.use_sliding_window:
            raise wrong_config(where, "layer_types has layers with a window, and use_sliding_window is off")
        if "sliding_window" in config and window is None:
            raise wrong_config(where, "some layers have a sliding window, and sliding_window is null")
    return kinds


def _check_all_attend(fields: _Fields, where: str) -> None:
    """Refuse a Granite 4 with Mamba layers; older files say "attention" where newer ones say "full_attention"."""
    kinds = fields.layer_types or ()
    if len(kinds) != fields.num_hidden_layers or set(kinds) - {"attention", "full_attention"}:
        raise wrong_config(where, "it has Mamba layers, and edge converts a Granite 4 without them", HYBRIDS)


def _cap(config: Mapping[str, Any], fields: _Fields, architecture: Architecture, key: str) -> float | None:
    if not architecture.is_gemma:
        return None
    return getattr(fields, key) if key in config else dict(architecture.caps).get(key)


def _eos(fields: _Fields, where: str) -> tuple[int, ...]:
    given = fields.eos_token_id
    ids = given if isinstance(given, tuple) else (given,) if given is not None else ()
    for token in ids:
        _token(token, "eos_token_id", fields.vocab_size, where)
    return tuple(dict.fromkeys(ids))


def _token(token: int | None, key: str, n_vocab: int, where: str) -> int | None:
    if token is not None and not 0 <= token < n_vocab:
        raise wrong_config(where, f"{key} is {token}, and the vocabulary has {n_vocab} tokens")
    return token
