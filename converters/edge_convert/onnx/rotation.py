"""Tables of cosines and sines for rotary embeddings, a row per position, as GroupQueryAttention reads them.

Source: `transformers.modeling_rope_utils`; frequencies and angles are rounded to float32 as there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_convert.gguf.limits import llama3_factors, yarn_factors
from edge_convert.model_config import ModelConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["frequencies", "rotation_rows"]


def frequencies(model: ModelConfig, theta: float, factors: str = "") -> NDArray[np.float32]:
    """Return the angle per position of each rotated pair, float32 [n_rotated / 2].

    Args:
        model: its rotary embedding, unless it is that of layers with a sliding window, which nothing scales.
        theta: base.
        factors: "short_factor" or "long_factor" of longrope, "plain" for no scaling, "" for that of the model.
    """
    rope, width = model.rope, model.n_rotated
    plain = theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    divisors: NDArray[np.floating] | float = 1.0
    if factors.endswith("_factor"):
        divisors = np.array(rope.scaling[factors], np.float64)
    elif factors != "plain" and rope.kind == "linear":
        divisors = float(rope.scaling["factor"])
    elif factors != "plain" and rope.kind == "llama3":
        divisors = llama3_factors(rope.scaling, theta, width, rope.original_context)
    elif factors != "plain" and rope.kind == "yarn":
        divisors = yarn_factors(rope, width)
    return (plain / divisors).astype(np.float32)


def rotation_rows(
    angles: NDArray[np.float32], start: int, stop: int, factor: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return cosines and sines of positions [start, stop), float32 [positions, n_rotated / 2] each.

    Args:
        angles: per position, of `frequencies`.
        start, stop: positions.
        factor: of both, `Rope.attention_factor`.
    """
    turned = np.arange(start, stop, dtype=np.float32)[:, None] * angles
    exact = turned.astype(np.float64)
    return (np.cos(exact) * factor).astype(np.float32), (np.sin(exact) * factor).astype(np.float32)
