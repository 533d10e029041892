"""Rotary positions: how fast each pair of a head's numbers turns, with what stretches a model to longer contexts.

Source: Su et al., 2021 (RoPE); Peng et al., 2023 (YaRN); rope_yarn of ggml, and llama.cpp's choice between LongRoPE's factors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge.backends.openvino.tensors import Tensors
    from edge.formats.gguf import GGUFHeader

__all__ = ["Rotation", "read_rotation", "rotation_variant"]


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """See the module.

    Attributes:
        frequencies: radians a position of each pair, shape (rotated numbers of a head / 2,).
        scale: factor of the rotated numbers.
    """

    frequencies: npt.NDArray[np.float64]
    scale: float = 1.0


def read_rotation(header: GGUFHeader, tensors: Tensors, n_ctx: int) -> Rotation:
    """Return the rotation of a model in a context of so many tokens."""
    n_rotated = int(_number(header, "rope.dimension_count", header.head_dim_k))
    half = n_rotated // 2
    base = _number(header, "rope.freq_base", 10_000.0)
    frequencies = base ** (-np.arange(half, dtype=np.float64) / half)
    for name in ("rope_freqs.weight", f"rope_factors_{rotation_variant(header, n_ctx)}.weight"):
        if name in tensors:
            frequencies = frequencies / tensors.vector(name)[:half]
    kind = header.metadata.get(f"{header.architecture}.rope.scaling.type", "linear")
    factor = _number(header, "rope.scaling.factor", _number(header, "rope.scale_linear", 1.0)) or 1.0
    scale = _number(header, "rope.scaling.attn_factor", 1.0)
    if kind == "none" or factor == 1.0:
        return Rotation(frequencies, scale)
    if kind != "yarn":
        return Rotation(frequencies / factor, scale)
    original = _number(header, "rope.scaling.original_context_length", header.n_ctx_train)
    first, last = (
        half * math.log(original / (_number(header, f"rope.scaling.yarn_beta_{name}", turns) * math.tau)) / math.log(base)
        for name, turns in (("fast", 32.0), ("slow", 1.0))
    )  # pairs that turn so often within the original context: faster ones stay, slower ones are slowed down
    first, last = max(0, math.floor(first)), min(n_rotated - 1, math.ceil(last))
    kept = 1 - np.clip((np.arange(half) - first) / max(0.001, last - first), 0, 1)
    frequencies = frequencies * kept + frequencies / factor * (1 - kept)
    return Rotation(frequencies, scale * (1 + 0.1 * math.log(factor)))


def rotation_variant(header: GGUFHeader, n_ctx: int) -> str:
    """Return "long" or "short" where a model has factors for contexts beyond the original one (Phi-3), else "one"."""
    original = header.metadata.get(f"{header.architecture}.rope.scaling.original_context_length")
    if not isinstance(original, int):
        return "one"
    return "long" if n_ctx > original else "short"


def _number(header: GGUFHeader, key: str, default: float) -> float:
    value = header.metadata.get(f"{header.architecture}.{key}", default)
    return float(value) if isinstance(value, (int, float)) else default
