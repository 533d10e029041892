"""Blocks of a GGUF file -> OpenVINO's compressed weights: integers with a scale for each group, which stay integers in memory.

The plug-in keeps `(integers - zero points) x scales` as they are where a matrix product reads them. It computes with integers,
eight bits a value of the input, where every group has 32 weights and zero points are integers, too; in floats they may be any
numbers. Formats map onto it so:

    Q8_0          i8 x d
    Q4_0          (u4 - 8) x d
    Q4_1          w = d q + m, as u8: (16 q - round(-16 m / d)) x d / 16. So the zero point is off by at most d / 32.
                  In floats as u4: (q + m / d) x d
    Q4_K          as Q4_1, with the scale and minimum of each group of 32
    Q5_K, Q5_1    the same with 8 q, in floats as u8: (q + m / d) x d; Q5_0 as (8 q - 128) x d / 8
    Q6_K          i8 x (d x scale), groups of 16: exact, and computed with floats
    F16, F32      as they are

Source: dequantize_row_* of ggml-quants.c; OpenVINO's documentation of weight compression.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge.errors import ModelFileError
from edge.formats.gguf_blocks import UNPACKERS, Unpacked, nibbles

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
        zeros: u8 or f16 (rows, groups, 1), or one number for all; None for none.
        bits: of an integer, 4 or 8.
    """

    values: npt.NDArray[Any]
    scales: npt.NDArray[np.float16] | None = None
    zeros: npt.NDArray[np.uint8 | np.float16] | int | None = None
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


class _WithMinimum(NamedTuple):
    """A matrix of the weights `scale x codes + least`, float32 (rows, groups, 1) each, and the bits of a code."""

    codes: npt.NDArray[np.uint8]
    scale: npt.NDArray[np.float32]
    least: npt.NDArray[np.float32]
    bits: int


def unpack(type_name: str, data: npt.NDArray[np.uint8], shape: Sequence[int], *, in_floats: bool = False) -> Packed:
    """Return the matrix in the blocks of a tensor.

    Args:
        type_name: of GGUF, a key of TYPES.
        data: its bytes.
        shape: in ggml's order, the columns first.
        in_floats: products with it are computed in floats, of 32 or 16 bits.

    Raises:
        ModelFileError: a scale is no finite float16.
    """
    n_columns, n_rows = shape[0], int(np.prod(shape[1:]))
    block_bytes, read = TYPES[type_name]
    blocks = data.reshape(n_rows, -1, block_bytes) if block_bytes > 4 else data.reshape(n_rows, n_columns, block_bytes)
    found = read(blocks)
    if isinstance(found, Packed):
        packed = found
    else:
        _check_numbers(found.scale, found.least)
        packed = (_with_float_zeros if in_floats else _with_whole_zeros)(found)
    _check_numbers(packed.scales)
    return packed


def _check_numbers(*parts: npt.NDArray[Any] | None) -> None:
    """Refuse numbers that are not finite.

    Raises:
        ModelFileError: there are some.
    """
    if not all(part is None or np.isfinite(part).all() for part in parts):
        raise ModelFileError("A weight of the model is not a number.", "Download or convert the model again.")


def join_rows(parts: Sequence[Packed]) -> Packed | None:
    """Return one matrix of the rows of several, so that they are one product; None if their formats differ."""
    first = parts[0]
    kinds = {(part.values.dtype, part.values.shape[1:], type(part.zeros), part.bits) for part in parts}
    if len(kinds) != 1 or (isinstance(first.zeros, int) and len({part.zeros for part in parts}) != 1):
        return None
    scales = None if first.scales is None else np.concatenate([part.scales for part in parts if part.scales is not None])
    zeros = np.concatenate([part.zeros for part in parts]) if isinstance(first.zeros, np.ndarray) else first.zeros
    return Packed(np.concatenate([part.values for part in parts]), scales, zeros, first.bits)


_Read = Callable[["npt.NDArray[np.uint8]"], Packed | _WithMinimum]


def _half(data: npt.NDArray[np.uint8], at: int) -> npt.NDArray[np.float16]:
    """Return a float16 of every block, shape (rows, blocks, 1)."""
    return np.ascontiguousarray(data[:, :, at : at + 2]).view(np.float16)


def _with_float_zeros(found: _WithMinimum) -> Packed:
    """Return a matrix as (q - z) x d. Groups of weights that are equal, or nearly so and far from zero, get one value."""
    q, scale, offset, bits = found
    zeros = np.divide(-offset, scale, out=np.full_like(scale, np.inf), where=scale != 0)
    flat = np.abs(zeros) > np.finfo(np.float16).max
    if flat.any():
        q = np.where(flat, np.uint8(1), q)
        scale, zeros = np.where(flat, offset + scale * ((1 << bits) / 2), scale), np.where(flat, 0, zeros)
    return Packed(q, scale.astype(np.float16), zeros.astype(np.float16), bits=4 if bits == 4 else 8)


def _with_whole_zeros(found: _WithMinimum) -> Packed:
    """Return a matrix as (2^k q - z) x d / 2^k in eight bits, z rounded. Groups of equal weights keep their value."""
    q, scale, offset, bits = found
    step = 1 << (8 - bits)
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
    return Packed(nibbles(data[:, :, 2:]), _half(data, 0), 8, bits=4)


def _q4_1(data: npt.NDArray[np.uint8]) -> _WithMinimum:
    return _WithMinimum(nibbles(data[:, :, 4:]), _half(data, 0).astype(np.float32), _half(data, 2).astype(np.float32), 4)


def _q8_0(data: npt.NDArray[np.uint8]) -> Packed:
    return Packed(data[:, :, 2:].view(np.int8), _half(data, 0))


def _unpacked(type_name: str, pack: Callable[[Unpacked], Packed | _WithMinimum]) -> tuple[int, _Read]:
    """Return the row of TYPES for blocks that edge/formats unpacks."""
    block_bytes, read = UNPACKERS[type_name]
    return block_bytes, lambda data: pack(read(data))


def _minimum_packer(bits: int) -> Callable[[Unpacked], _WithMinimum]:
    def pack(found: Unpacked) -> _WithMinimum:
        assert found.least is not None  # these types have one
        return _WithMinimum(found.codes, found.scale[..., None], found.least[..., None], bits)

    return pack


def _pack_q5_0(found: Unpacked) -> Packed:
    return Packed(found.codes * np.uint8(8), (found.scale[..., None] / 8).astype(np.float16), 8 * found.zero)


def _pack_q6_k(found: Unpacked) -> Packed:
    return Packed(found.codes.astype(np.int8) - np.int8(found.zero), found.scale[..., None].astype(np.float16))


def _plain(kind: type[np.generic]) -> Callable[[npt.NDArray[np.uint8]], Packed]:
    return lambda data: Packed(np.ascontiguousarray(data).view(kind)[:, :, 0][:, None, :])


def _bf16(data: npt.NDArray[np.uint8]) -> Packed:
    wide = np.ascontiguousarray(data).view(np.uint16)[:, :, 0].astype(np.uint32) << 16
    return Packed(wide.view(np.float32)[:, None, :])


TYPES: dict[str, tuple[int, _Read]] = {
    "F32": (4, _plain(np.float32)),
    "F16": (2, _plain(np.float16)),
    "BF16": (2, _bf16),
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": _unpacked("Q5_0", _pack_q5_0),
    "Q5_1": _unpacked("Q5_1", _minimum_packer(5)),
    "Q8_0": (34, _q8_0),
    "Q4_K": _unpacked("Q4_K", _minimum_packer(4)),
    "Q5_K": _unpacked("Q5_K", _minimum_packer(5)),
    "Q6_K": _unpacked("Q6_K", _pack_q6_k),
}
"""Type in a GGUF file -> bytes of a block, and what reads it."""
