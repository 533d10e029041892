"""k_quant: the search for the scale and the zero point of a block of weights with the least weighted error.

Source: `quant_tensor_k_quant_cpu` of ONNX Runtime (the builder of onnxruntime-genai calls it k_quant), after
`make_qkx2_quants` in ggml-quants.c. Here zero is always within the range of a block, as in llama.cpp: a block of one sign would
be cut off otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["search_blocks"]

_STEPS = 20
_STEP = 0.1


def search_blocks(weights: NDArray[np.float32], bits: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Quantise blocks.

    Args:
        weights: float32 [n, block].
        bits: 4 or 8.

    Returns:
        Codes, uint8 [n, block], scales, float32 [n], and zero points, uint8 [n]: weights are about scale * (code - zero).
    """
    top = 2**bits - 1
    importance = np.sqrt((weights**2).sum(1, keepdims=True) / weights.shape[1]) + np.abs(weights)
    low = np.minimum(weights.min(1, keepdims=True), 0)
    high = np.maximum(weights.max(1, keepdims=True), 0)
    sum_w = importance.sum(1, keepdims=True)
    weighted = importance * weights
    sum_x = weighted.sum(1, keepdims=True)
    scale: NDArray[np.float32] = np.reciprocal(_steps_per_unit(top, low, high))
    best = _error(importance, _codes(np.reciprocal(scale), low, weights, top), scale, low, weights)
    with np.errstate(divide="ignore", invalid="ignore"):  # blocks of equal codes have no best scale, and keep the first
        for step in range(_STEPS):
            codes = _codes(_steps_per_unit(np.float32(top - 1 + _STEP * step), low, high), low, weights, top)
            weighted_codes = importance * codes
            sum_l, sum_l2 = weighted_codes.sum(1, keepdims=True), (weighted_codes * codes).sum(1, keepdims=True)
            sum_xl = np.multiply(weighted_codes, weights, out=weighted_codes).sum(1, keepdims=True)
            determinant = sum_w * sum_l2 - sum_l**2
            its_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            its_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            error = _error(importance, codes, its_scale, its_low, weights)
            better = error < best
            best, scale = np.where(better, error, best), np.where(better, its_scale, scale)
            low = np.where(better, its_low, low)
    zero = np.clip(np.round(-low / scale), 0, top)
    found = np.round(weights / scale.astype(np.float64) + zero)
    return np.clip(found, 0, top, out=found).astype(np.uint8), scale[:, 0], zero[:, 0].astype(np.uint8)


def _steps_per_unit(steps: float, low: NDArray[np.float32], high: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the inverse of a scale with so many steps between both ends; 1 where they are the same."""
    span = high - low
    found: NDArray[np.float32] = np.divide(np.float32(steps), span, out=np.ones_like(span), where=span != 0)
    return found


def _codes(
    per_unit: NDArray[np.float32], low: NDArray[np.float32], weights: NDArray[np.float32], top: int
) -> NDArray[np.float32]:
    codes = weights - low
    codes *= per_unit
    np.round(codes, out=codes)
    return np.clip(codes, 0, top, out=codes)


def _error(
    importance: NDArray[np.float32],
    codes: NDArray[np.float32],
    scale: NDArray[np.float32],
    low: NDArray[np.float32],
    weights: NDArray[np.float32],
) -> NDArray[np.float32]:
    difference = codes * scale
    difference += low
    difference -= weights
    difference *= difference
    difference *= importance
    error: NDArray[np.float32] = difference.sum(1, keepdims=True)
    return error
