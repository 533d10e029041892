"""Weights of a GGUF file in blocks, unpacked: w = scale * (codes - zero) + least.

Source: ggml's block layouts (ggml-common.h) and dequantize_row_* of ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

__all__ = ["UNPACKERS", "Unpacked", "nibbles"]


class Unpacked(NamedTuple):
    """A matrix in blocks along its rows.

    Attributes:
        codes: uint8 [n_rows, n_blocks, block].
        scale: float32 [n_rows, n_blocks].
        zero: the code that stands for `least`.
        least: float32 [n_rows, n_blocks]; None for 0 everywhere.
    """

    codes: Bytes
    scale: Floats
    zero: int
    least: Floats | None = None


def _half(data: Bytes, at: int) -> Floats:
    """Return a float16 of every block of bytes, float32 [n_rows, n_blocks]."""
    return np.ascontiguousarray(data[..., at : at + 2]).view(np.float16)[..., 0].astype(np.float32)


def nibbles(data: Bytes) -> Bytes:
    """Return the low halves of bytes, then the high ones, along the last axis."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _fifth_bits(data: Bytes) -> Bytes:
    bits: Bytes = np.unpackbits(np.ascontiguousarray(data), axis=-1, bitorder="little") * np.uint8(16)
    return bits


def _q5_0(data: Bytes) -> Unpacked:
    return Unpacked(nibbles(data[..., 6:]) | _fifth_bits(data[..., 2:6]), _half(data, 0), 16)


def _q5_1(data: Bytes) -> Unpacked:
    return Unpacked(nibbles(data[..., 8:]) | _fifth_bits(data[..., 4:8]), _half(data, 0), 0, _half(data, 2))


def _k_scales(data: Bytes) -> tuple[Floats, Floats]:
    """Return scales and minimums of the 8 blocks in each super-block of Q4_K or Q5_K, float32 [n_rows, n_blocks]."""
    low, middle, high = data[..., 4:8], data[..., 8:12], data[..., 12:16]
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=-1)
    minimum = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=-1)
    n_rows = len(data)
    return (
        (_half(data, 0)[..., None] * scale).reshape(n_rows, -1),
        (_half(data, 2)[..., None] * minimum).reshape(n_rows, -1),
    )


def _low_bits(data: Bytes) -> Bytes:
    """Return the low four bits of 256 weights in 128 bytes, uint8 [n_rows, n_super_blocks, 8, 32]."""
    n_rows, n_supers = data.shape[:2]
    return nibbles(data.reshape(n_rows, n_supers, 4, 32)).reshape(n_rows, n_supers, 8, 32)


def _q4_k(data: Bytes) -> Unpacked:
    scale, minimum = _k_scales(data)
    return Unpacked(_low_bits(data[..., 16:]).reshape(len(data), -1, 32), scale, 0, -minimum)


def _q5_k(data: Bytes) -> Unpacked:
    scale, minimum = _k_scales(data)
    fifth = (data[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    codes = _low_bits(data[..., 48:]) | (fifth * np.uint8(16))
    return Unpacked(codes.reshape(len(data), -1, 32), scale, 0, -minimum)


def _q6_k(data: Bytes) -> Unpacked:
    n_rows, n_supers = data.shape[:2]
    low = data[..., :128].reshape(n_rows, n_supers, 2, 2, 32)  # halves of 128 weights, then two runs of 32 bytes
    high = data[..., 128:192].reshape(n_rows, n_supers, 2, 1, 32)
    quarters = np.concatenate([low & 15, low >> 4], axis=3)  # runs 0 and 1 in the low halves, 2 and 3 in the high ones
    bits = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    scale = np.ascontiguousarray(data[..., 192:208]).view(np.int8).astype(np.float32) * _half(data, 208)[..., None]
    return Unpacked((quarters | (bits << 4)).reshape(n_rows, -1, 16), scale.reshape(n_rows, -1), 32)


UNPACKERS: dict[str, tuple[int, Callable[[Bytes], Unpacked]]] = {
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
"""Type -> bytes of a block or super-block, and what unpacks uint8 [n_rows, n_blocks, these bytes]."""
