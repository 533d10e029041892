"""What llama.cpp can compute of a model's configuration. Plans ask it, so it imports no library of a conversion.

Source: `llama_model::load_hparams` in llama.cpp: what it takes for granted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edge.errors import ModelFileError
from edge_convert.architectures import Architecture
from edge_convert.model_config import ModelConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["check_config", "context_length", "llama3_factors", "yarn_factor"]

_BIASED = ("llama",)
"""Architectures whose attention has optional biases in llama.cpp."""


def check_config(model: ModelConfig, architecture: Architecture) -> None:
    """Refuse a model that llama.cpp would compute otherwise than transformers.

    Raises:
        ModelFileError: llama.cpp cannot run this variant.
    """
    if model.attention_bias and architecture.gguf not in _BIASED:
        raise _cannot("its attention has biases")
    if model.rope.kind == "yarn":
        # llama.cpp rounds the bounds, and a context takes 32 and 1 whatever the file says.
        for key, usual in (("truncate", True), ("beta_fast", 32), ("beta_slow", 1)):
            if model.rope.scaling.get(key) not in (None, usual):
                raise _cannot(f"its positions are scaled by YaRN with {key} = {model.rope.scaling[key]}", "coreml")
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


def _cannot(why: str, others: str = "onnx or --to coreml") -> ModelFileError:
    return ModelFileError(f"llama.cpp cannot run this variant: {why}.", f"Convert to another format: --to {others}")
