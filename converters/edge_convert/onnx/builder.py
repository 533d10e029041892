"""The child process that runs onnxruntime-genai's model builder.

The builder (0.18) reads the RoPE settings of a config in the layout of older versions of transformers, and ignores those that
it does not know. Here they are laid out as it reads them, and the others are refused. The parent reads what it prints.
"""

from __future__ import annotations

import signal
from typing import Any

from edge.child import end_with_parent

__all__ = ["adapt_config", "main"]

_ROPE_TYPES = {
    "LlamaForCausalLM": ("default", "llama3", "linear"),
    "Phi3ForCausalLM": ("default", "longrope"),
    "Gemma3ForCausalLM": ("default", "linear"),
}
_OTHER_ROPE_TYPES = ("default", "linear")


def adapt_config(config: Any) -> Any:
    """Lay out the RoPE settings of a transformers config as the builder reads them.

    Raises:
        NotImplementedError: the builder has no such RoPE for this architecture.
    """
    name = config.architectures[0]
    rope = dict(getattr(config, "rope_parameters", None) or {})
    if "full_attention" in rope:  # Gemma 3: one entry a kind of layer
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]
        rope = dict(rope["full_attention"])
    kind = rope.setdefault("rope_type", "default")
    if kind not in _ROPE_TYPES.get(name, _OTHER_ROPE_TYPES):
        raise NotImplementedError(f"{name} with {kind} RoPE cannot become ONNX.")
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    n_rotated = int(head_size * rope.get("partial_rotary_factor", 1.0))
    if n_rotated % 16:
        raise NotImplementedError(f"{n_rotated} rotated numbers a head: GroupQueryAttention takes multiples of 16.")
    if name == "Phi3ForCausalLM":
        rope["type"] = kind
        if kind == "default":  # the builder tells long from plain RoPE by these two numbers
            config.original_max_position_embeddings = config.max_position_embeddings
        else:
            config.original_max_position_embeddings = rope["original_max_position_embeddings"]
    if rope:
        config.rope_parameters = rope
        config.rope_theta = rope.get("rope_theta", getattr(config, "rope_theta", 10000.0))
    return config


def main(out: str, cache: str, precision: str, checkpoint: str, *extra: str) -> None:
    """Build a model; `export_onnx` passes the arguments."""
    from onnxruntime_genai.models import builder

    end_with_parent(signal.SIGKILL)
    _fix(builder)
    options = builder.parse_extra_options(None, checkpoint, out, precision, "cpu", cache, list(extra))
    adapt_config(options["hf_details"]["hf_config"])
    builder.create_model(None, checkpoint, out, precision, "cpu", cache, **options)


def _fix(builder: Any) -> None:
    """Fix two places where the builder forgets a scaling of RoPE or applies it to the wrong layers."""
    plain = builder.Model.make_rope_init
    own = builder.LlamaModel.make_rope_init

    def make_rope_init(self: Any, config: Any) -> None:
        (own if config.rope_parameters["rope_type"] == "llama3" else plain)(self, config)

    builder.LlamaModel.make_rope_init = make_rope_init
    caches = builder.Model.make_rotary_embedding_caches

    def make_rotary_embedding_caches(self: Any, **names: Any) -> Any:
        if names.get("cos_cache_name") == "cos_cache_local":  # Gemma 3: the scaling is that of the global layers
            self.rope_attrs["rescale_factors"] = 1
        return caches(self, **names)

    builder.Model.make_rotary_embedding_caches = make_rotary_embedding_caches
