"""Blocks of a GGUF file -> OpenVINO's compressed weights: integers with a scale for each group, which stay integers in memory.

The plug-in keeps `(integers - zero points) x scales` as they are where a matrix product reads them, and computes with integers,
eight bits a value of the input, where every group has 32 weights. Formats map onto it so:

    Q8_0          i8 x d
    Q4_0          (u4 - 8) x d
    Q4_1          w = d q + m, as u8: (16 q - round(-16 m / d)) x d / 16. So the zero point is off by at most d / 32
    Q4_K          as Q4_1, with the scale and minimum of each group of 32
    Q5_K, Q5_1    the same with 8 q; Q5_0 as (8 q - 128) x d / 8
    Q6_K          i8 x (d x scale), groups of 16: exact, and computed with floats
    F16, F32      as they are

Source: dequantize_row_* of ggml-quants.c; OpenVINO's documentation of weight compression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ModelFileError

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["TYPES", "Packed", "join_rows", "unpack"]

GROUP = 32


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix in groups.

    Attributes:
        values: (rows, groups, group) of u8 or i8, of f16 or f32 without scales; u4 values one a byte.
        scales: f16 (rows, groups, 1); None for plain numbers.
        zeros: u8 (rows, groups, 1), or one number for all; None for none.
        bits: of an integer, 4 or 8.
    """

    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float16] | None = None
    zeros: npt.NDArray[np.uint8] | int | None = None
    bits: int = 8

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.values.shape[0], int(np.prod(self.values.shape[1:]))

    def rows(self, order: npt.NDArray[np.int64]) -> Packed:
        """Return the same matrix with its rows in another order."""
        zeros = self.zeros[order] if isinstance(self.zeros, np.ndarray) else self.zeros
        return Packed(self.values[order], None if self.scales is None else self.scales[order], zeros, self.bits)

    def dense(self) -> npt.NDArray[np.float32]:
        """Return the matrix that this stands for, shape (rows, columns)."""
        values = self.values.astype(np.float32)
        if self.scales is not None:
            zeros = 0.0 if self.zeros is None else np.asarray(self.zeros, np.float32)
            values = (values - zeros) * self.scales.astype(np.float32)
        return values.reshape(self.shape)


def unpack(type_name: str, data: npt.NDArray[np.uint8], shape: Sequence[int]) -> Packed:
    """Return the matrix in the blocks of a tensor.

    Args:
        type_name: of GGUF, a key of TYPES.
        data: its bytes.
        shape: in ggml's order, the columns first.

    Raises:
        ModelFileError: a scale is no finite float16.
    """
    n_columns, n_rows = shape[0], int(np.prod(shape[1:]))
    block_bytes, read = TYPES[type_name]
    packed = read(data.reshape(n_rows, -1, block_bytes) if block_bytes > 4 else data.reshape(n_rows, n_columns, block_bytes))
    if packed.scales is not None and not np.isfinite(packed.scales).all():
        raise ModelFileError("A weight of the model is not a number.", "Download or convert the model again.")
    return packed


def join_rows(parts: Sequence[Packed]) -> Packed | None:
    """Return one matrix of the rows of several, so that they are one product; None if their formats differ."""
    first = parts[0]
    kinds = {(part.values.dtype, part.values.shape[1:], type(part.zeros), part.bits) for part in parts}
    if len(kinds) != 1 or (isinstance(first.zeros, int) and len({part.zeros for part in parts}) != 1):
        return None
    scales = None if first.scales is None else np.concatenate([part.scales for part in parts if part.scales is not None])
    zeros = np.concatenate([part.zeros for part in parts]) if isinstance(first.zeros, np.ndarray) else first.zeros
    return Packed(np.concatenate([part.values for part in parts]), scales, zeros, first.bits)


def _half(data: npt.NDArray[np.uint8], at: int) -> npt.NDArray[np.float16]:
    """Return a float16 of every block, shape (rows, blocks, 1)."""
    return np.ascontiguousarray(data[:, :, at : at + 2]).view(np.float16)


def _nibbles(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the low halves of bytes, then the high ones, along the last axis."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


def _with_minimum(q: npt.NDArray[np.uint8], d: npt.NDArray[Any], minimum: npt.NDArray[Any], bits: int) -> Packed:
    """Return `d q + minimum` as (2^k q - z) x d / 2^k in eight bits, z rounded. Groups of equal weights keep their value."""
    step = 1 << (8 - bits)
    scale, offset = d.astype(np.float32), minimum.astype(np.float32)
    flat = scale == 0
    zeros = np.divide(-offset * step, scale, out=np.zeros_like(scale), where=~flat).round()
    outside = (zeros < 0) | (zeros > 255)
    values = q * np.uint8(step)
    scales = scale / step
    if (outside | flat).any():  # weights of one sign, far from zero: stored by themselves, in 255 steps
        dense = scale * q + offset
        low, high = np.minimum(dense.min(-1, keepdims=True), 0), np.maximum(dense.max(-1, keepdims=True), 0)
        own_scale = np.maximum((high - low) / 255, np.float32(6e-8))
        own_zero = (-low / own_scale).round()
        own = np.clip((dense / own_scale).round() + own_zero, 0, 255)
        pick = outside | flat
        values = np.where(pick, own, values).astype(np.uint8)
        scales, zeros = np.where(pick, own_scale, scales), np.where(pick, own_zero, zeros)
    return Packed(values, scales.astype(np.float16), zeros.astype(np.uint8))


def _q4_0(data: npt.NDArray[np.uint8]) -> Packed:
    return Packed(_nibbles(data[:, :, 2:]), _half(data, 0), 8, bits=4)


def _q4_1(data: npt.NDArray[np.uint8]) -> Packed:
    return _with_minimum(_nibbles(data[:, :, 4:]), _half(data, 0), _half(data, 2), 4)


def _fifth_bits(data: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the fifth bits of 32 weights in 4 bytes, one a byte."""
    bits: npt.NDArray[np.uint8] = np.unpackbits(data, axis=-1, bitorder="little") * np.uint8(16)
    return bits


def _q5_0(data: npt.NDArray[np.uint8]) -> Packed:
    q = _nibbles(data[:, :, 6:]) | _fifth_bits(data[:, :, 2:6])
    return Packed(q * np.uint8(8), (_half(data, 0).astype(np.float32) / 8).astype(np.float16), 128)


def _q5_1(data: npt.NDArray[np.uint8]) -> Packed:
    q = _nibbles(data[:, :, 8:]) | _fifth_bits(data[:, :, 4:8])
    return _with_minimum(q, _half(data, 0), _half(data, 2), 5)


def _q8_0(data: npt.NDArray[np.uint8]) -> Packed:
    return Packed(data[:, :, 2:].view(np.int8), _half(data, 0))


def _k_scales(data: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the scales and minimums of the 8 groups of a super-block of Q4_K or Q5_K, shape (rows, blocks, 8)."""
    d, least = _half(data, 0).astype(np.float32), _half(data, 2).astype(np.float32)
    raw = data[:, :, 4:16]
    low, middle, high = raw[:, :, 0:4], raw[:, :, 4:8], raw[:, :, 8:12]
    scale = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=-1)
    minimum = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=-1)
    return d * scale, least * minimum


def _groups(values: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    return values.reshape(values.shape[0], -1, size)


def _q4_k(data: npt.NDArray[np.uint8]) -> Packed:
    scale, minimum = _k_scales(data)
    rows, blocks = data.shape[:2]
    q = _nibbles(data[:, :, 16:].reshape(rows, blocks, 4, 32)).reshape(rows, -1, GROUP)
    return _with_minimum(q, _groups(scale, 1), -_groups(minimum, 1), 4)


def _q5_k(data: npt.NDArray[np.uint8]) -> Packed:
    scale, minimum = _k_scales(data)
    rows, blocks = data.shape[:2]
    low = _nibbles(data[:, :, 48:].reshape(rows, blocks, 4, 32)).reshape(rows, blocks, 8, 32)
    bit = (data[:, :, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    return _with_minimum((low | (bit * np.uint8(16))).reshape(rows, -1, GROUP), _groups(scale, 1), -_groups(minimum, 1), 5)


def _q6_k(data: npt.NDArray[np.uint8]) -> Packed:
    rows, blocks = data.shape[:2]
    low = data[:, :, :128].reshape(rows, blocks, 2, 2, 32)  # halves of 128 weights, then two runs of 32 bytes
    high = data[:, :, 128:192].reshape(rows, blocks, 2, 1, 32)
    quarters = np.concatenate([low & 15, low >> 4], axis=3)  # runs 0 and 1 in the low halves, 2 and 3 in the high ones
    bits = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None]) & 3
    q = (quarters | (bits << 4)).astype(np.int8) - np.int8(32)
    scales = data[:, :, 192:208].view(np.int8).astype(np.float32) * _half(data, 208).astype(np.float32)
    return Packed(q.reshape(rows, -1, 16), _groups(scales, 1).astype(np.float16))


def _plain(kind: type[np.generic]) -> Callable[[npt.NDArray[np.uint8]], Packed]:
    return lambda data: Packed(np.ascontiguousarray(data).view(kind)[:, :, 0][:, None, :])


def _bf16(data: npt.NDArray[np.uint8]) -> Packed:
    wide = np.ascontiguousarray(data).view(np.uint16)[:, :, 0].astype(np.uint32) << 16
    return Packed(wide.view(np.float32)[:, None, :])


TYPES: dict[str, tuple[int, Callable[[npt.NDArray[np.uint8]], Packed]]] = {
    "F32": (4, _plain(np.float32)),
    "F16": (2, _plain(np.float16)),
    "BF16": (2, _bf16),
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
}
"""Type in a GGUF file -> bytes of a block, and what reads it."""
