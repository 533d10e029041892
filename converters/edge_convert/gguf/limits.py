"""What llama.cpp can compute of a model's configuration. Plans ask it, so it imports no library of a conversion.

Source: `llama_model::load_hparams` in llama.cpp: what it takes for granted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge.errors import ModelFileError
from edge_convert.architectures import Architecture
from edge_convert.checkpoint import Checkpoint
from edge_convert.model_config import ModelConfig
from edge_convert.rope import Rope

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "OUTPUT_BIAS",
    "check_config",
    "check_output_bias",
    "context_length",
    "has_output_bias",
    "has_own_yarn",
    "llama3_factors",
    "yarn_factor",
    "yarn_factors",
]

OUTPUT_BIAS = "self_attn.o_proj.bias"
"""End of the name of the bias behind attention."""


_READS_FACTORS = ("llama", "granite")
"""Architectures whose files may list the factors of frequencies, and have a bias behind attention."""
_PLAIN_POSITIONS = ("smollm3", "olmo2", "lfm2", "qwen3moe")
"""Newer architectures whose files list no factors of frequencies."""
_USUAL_YARN: dict[str, Any] = {"truncate": True, "beta_fast": 32, "beta_slow": 1}
"""Numbers that a llama.cpp context takes for these architectures, whatever the file says. It also rounds the bounds."""


def check_config(model: ModelConfig, architecture: Architecture) -> None:
    """Refuse a model that llama.cpp would compute otherwise than transformers.

    Raises:
        ModelFileError: llama.cpp cannot run this variant.
    """
    own = _own_yarn(model.rope)
    if own and architecture.gguf not in _READS_FACTORS:
        number = model.rope.scaling[own]
        raise _cannot(f"its positions are scaled by YaRN with {own} = {number}, and it knows that of Llama only", "coreml")
    if architecture.unrotated_period and model.rotates != _usual_rotates(architecture, model.n_layers):
        raise _cannot("it has rotary embeddings in other layers than llama.cpp has")
    if architecture.unrotated_period and model.mlp_bias:
        raise _cannot("its feed-forward matrices have a bias")
    if architecture.gguf in _PLAIN_POSITIONS and model.rope.kind in ("llama3", "longrope"):
        raise _cannot(f"its positions are scaled by {model.rope.kind}, which it does not read for a {architecture.title}")
    if architecture.gguf in ("olmo2", "lfm2") and model.head_dim * model.n_heads != model.width:
        raise _cannot(f"its {model.n_heads} heads of {model.head_dim} are not as wide as its hidden state")
    if not architecture.is_gemma:
        return
    if model.window_period is None or (architecture.gguf == "gemma3" and model.window_period == 1):
        raise _cannot("its layers with a sliding window are not those that it can be told")
    if architecture.gguf == "gemma2" and not (model.attention_cap and model.final_cap):
        raise _cannot("its scores or logits have no soft cap")
    if architecture.gguf == "gemma3" and model.attention_cap:
        raise _cannot("its scores have a soft cap")
    by_width = model.width // model.n_heads
    if model.attention_scalar != (by_width if model.n_layers == architecture.n_wide_layers else model.head_dim):
        raise _cannot(f"its attention is scaled by {model.attention_scalar:g}")


def _usual_rotates(architecture: Architecture, n_layers: int) -> tuple[bool, ...]:
    """Return the layers that llama.cpp rotates."""
    return tuple((layer + 1) % architecture.unrotated_period != 0 for layer in range(n_layers))


def has_output_bias(architecture: Architecture) -> bool:
    """Return whether llama.cpp has a bias behind attention: the other biases of attention_bias it reads everywhere."""
    return architecture.gguf in _READS_FACTORS


def check_output_bias(checkpoint: Checkpoint) -> None:
    """Refuse a bias behind attention that llama.cpp has no place for; one of zeros it does not need.

    Raises:
        ModelFileError: the checkpoint has one.
    """
    if has_output_bias(checkpoint.architecture):
        return
    if checkpoint.architecture.gguf == "olmo2" and checkpoint.is_tied:
        raise _cannot("its head shares the embedding, and llama.cpp reads one of its own there")
    for name in checkpoint.tensors:
        if name.endswith(OUTPUT_BIAS) and checkpoint.load_f32(name).any():
            raise _cannot(f"of the biases of its attention, it has no place for {name} in a {checkpoint.architecture.title}")


def has_own_yarn(rope: Rope) -> bool:
    """Return whether YaRN's bounds are others than llama.cpp's, so that a file has to list its factors."""
    return _own_yarn(rope) is not None


def _own_yarn(rope: Rope) -> str | None:
    """Return the first of YaRN's numbers that is another one than llama.cpp's."""
    if rope.kind != "yarn":
        return None
    return next((key for key, usual in _USUAL_YARN.items() if rope.scaling.get(key) not in (None, usual)), None)


def context_length(model: ModelConfig, architecture: Architecture) -> int:
    """Return the context of a GGUF file.

    llama.cpp has sliding windows for Gemma only. Other models with one end their context at it: so far, all layers see all.
    """
    return model.n_positions if architecture.is_gemma else min(model.n_positions, model.window or model.n_positions)


def llama3_factors(scaling: Mapping[str, Any], theta: float, width: int, context: int) -> NDArray[np.float32]:
    """Return Llama 3's factors of the frequencies, float32 [width / 2].

    Args:
        scaling: factor, low_freq_factor and high_freq_factor.
        theta: base of the frequencies.
        width: numbers of a head that are rotated.
        context: positions of the training before they were scaled.
    """
    import numpy as np

    factor, low, high = (float(scaling[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    wavelengths = 2 * math.pi * theta ** (np.arange(0, width, 2, dtype=np.float64) / width)
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    factors: NDArray[np.float64] = 1.0 / ((1.0 - smooth) / factor + smooth)
    return factors.astype(np.float32)


def yarn_factor(factor: float) -> float:
    """Return YaRN's own factor of cosines and sines, which llama.cpp multiplies with the file's."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def yarn_factors(rope: Rope, width: int) -> NDArray[np.float32]:
    """Return YaRN's factors of the frequencies, float32 [width / 2].

    Args:
        rope: of the kind "yarn".
        width: numbers of a head that are rotated.

    Source: `_compute_yarn_parameters` of transformers.
    """
    import numpy as np

    def dimension(rotations: float) -> float:
        return width * math.log(rope.original_context / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    scaling = rope.scaling
    low, high = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate") is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / (high - low or 0.001), 0.0, 1.0)
    factors: NDArray[np.float64] = 1.0 / (ramp / float(scaling["factor"]) + 1.0 - ramp)
    return factors.astype(np.float32)


def _cannot(why: str, others: str = "onnx or --to coreml") -> ModelFileError:
    return ModelFileError(f"llama.cpp cannot run this variant: {why}.", f"Convert to another format: --to {others}")
