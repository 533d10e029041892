"""The tensors that a model must have, with their shapes: both follow from its architecture and config.json."""

from __future__ import annotations

from collections.abc import Mapping

from edge.errors import ModelFileError
from edge_convert.architectures import Architecture
from edge_convert.model_config import ModelConfig

__all__ = ["EMBEDDING", "HEAD", "check_tensors", "tensor_shapes"]

Shape = tuple[int, ...]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def tensor_shapes(architecture: Architecture, model: ModelConfig) -> dict[str, Shape]:
    """Return the tensors of a checkpoint, rows first as in torch, without the head, which tied checkpoints may omit."""
    queries, keys = model.n_heads * model.head_dim, model.n_kv_heads * model.head_dim
    parts: dict[str, Shape] = {
        "q_proj": (queries, model.width),
        "k_proj": (keys, model.width),
        "v_proj": (keys, model.width),
        "qkv_proj": (queries + 2 * keys, model.width),
        "o_proj": (model.width, queries),
        "gate_proj": (model.inner, model.width),
        "up_proj": (model.inner, model.width),
        "gate_up_proj": (2 * model.inner, model.width),
        "down_proj": (model.width, model.inner),
        "q_norm": (queries if architecture.has_wide_norms else model.head_dim,),
        "k_norm": (keys if architecture.has_wide_norms else model.head_dim,),
        "input_linear": (2 * model.inner, model.width),
        "output_linear": (model.width, model.inner),
        "out_proj": (model.width, queries),
        "q_layernorm": (model.head_dim,),
        "k_layernorm": (model.head_dim,),
        "w1": (model.inner, model.width),
        "w2": (model.width, model.inner),
        "w3": (model.inner, model.width),
        "gate": (model.n_experts, model.width),
    }
    in_conv: dict[str, Shape] = {
        "conv": (model.width, 1, model.conv_width),
        "in_proj": (3 * model.width, model.width),
        "out_proj": (model.width, model.width),
    }
    biased = {*architecture.biased, *(_ATTENTION if model.attention_bias else ()), *(_MLP if model.mlp_bias else ())}
    found: dict[str, Shape] = {EMBEDDING: (model.n_vocab, model.width), f"{architecture.final_norm}.weight": (model.width,)}
    for layer, kind in enumerate(model.layer_kinds):
        known = parts | (in_conv if kind == "conv" else {})
        for expert in range(model.n_experts):
            for part in _MLP:
                sizes = (model.expert_inner, model.width)
                name = f"model.layers.{layer}.mlp.experts.{expert}.{part.removeprefix('mlp.')}"
                found[f"{name}.weight"] = sizes[::-1] if part == "mlp.down_proj" else sizes
        for part in architecture.layer_tensors(kind):
            name, shape = f"model.layers.{layer}.{part}", known.get(part.rpartition(".")[2], (model.width,))
            found[f"{name}.weight"] = shape
            if part in biased:
                found[f"{name}.bias"] = shape[:1]
    return found


def check_tensors(
    tensors: Mapping[str, Shape], architecture: Architecture, model: ModelConfig, *, names: Mapping[str, str] | None = None
) -> None:
    """Refuse weights that are not those of the model that its configuration describes: an engine would misread them.

    Args:
        tensors: name as in a checkpoint -> shape.
        architecture: of the model.
        model: its configuration.
        names: name as in a checkpoint -> name in the file, for messages.

    Raises:
        ModelFileError: a tensor is missing, unknown or of another shape.
    """

    def named(name: str) -> str:
        return (names or {}).get(name, name)

    expected = tensor_shapes(architecture, model)
    needed = list(expected) if model.says_tied else [*expected, HEAD]
    expected[HEAD] = expected[EMBEDDING]
    missing = [name for name in needed if name not in tensors]
    if missing:
        rest = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelFileError(f"The model lacks the tensor {named(missing[0])}{rest}.", "Download it again.")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise ModelFileError(
            f"The model holds {named(unknown[0])}, which a {architecture.name} does not have.",
            "Its configuration does not say so: it is a variant that edge does not know, or an adapter, see --lora.",
        )
    for name, shape in expected.items():
        if name in tensors and tuple(tensors[name]) != shape:
            raise ModelFileError(
                f"{named(name)} has the shape {tuple(tensors[name])}, and the model's configuration says {shape}.",
                "They belong to different models, or one was changed: download the model again.",
            )
