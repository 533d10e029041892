"""Matrices in blocks along their rows, as MatMulNBits of ONNX Runtime computes with them.

A block is scale * (codes - zero), with 4 or 8 bits a code; zero is 8 or 128 where there are no zero points. The blocks of a
GGUF are carried over without loss, so that nothing is quantised a second time:

    Q4_0          4 bits: d (q - 8)
    Q4_1, Q4_K    4 bits: d (q - 8) + (m + 8 d)
    Q5_0          8 bits: d (q - 16)
    Q5_1, Q5_K    8 bits: d (q - 16) + (m + 16 d)
    Q8_0          8 bits: d q
    Q6_K          8 bits: d q, in blocks of 16

Where a zero point would not be an integer, as the fast kernels need it, the rest in brackets is a small product of its own,
over the sums of the inputs of each block:

    x . w = sum_b d_b * (x_b . (q_b - 8)) + sum_b c_b * sum(x_b)

which is exact, and costs one float32 value per block (1 bit a weight).

Source: MatMulNBits and GatherBlockQuantized in ONNX Runtime's ContribOperators.md; ggml's block layouts (ggml-common.h).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np

from edge.formats.gguf import read_header
from edge.formats.gguf_blocks import UNPACKERS
from edge_convert.gguf.blocks import BLOCK, unpack_blocks
from edge_convert.onnx.k_quant import search_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "BLOCK",
    "BLOCK_TYPES",
    "BlockType",
    "Blocks",
    "carried_bytes",
    "carried_share",
    "quantise_rows",
    "read_blocks",
    "round_rows",
]


@dataclass(frozen=True, slots=True)
class BlockType:
    """How the blocks of a GGUF type are stored.

    Attributes:
        bits: 4 or 8.
        block: weights in a block.
        has_rest: whether a block has a rest.
    """

    bits: int
    block: int = BLOCK
    has_rest: bool = False


BLOCK_TYPES = {
    "Q4_0": BlockType(4),
    "Q4_1": BlockType(4, has_rest=True),
    "Q4_K": BlockType(4, has_rest=True),
    "Q5_0": BlockType(8),
    "Q5_1": BlockType(8, has_rest=True),
    "Q5_K": BlockType(8, has_rest=True),
    "Q6_K": BlockType(8, block=16),
    "Q8_0": BlockType(8),
}
"""Types of a GGUF whose blocks are carried over."""


def carried_share(source: Path) -> float:
    """Return the share of a GGUF's matrices, by weights, whose blocks are carried over."""
    sizes = [(tensor.type, math.prod(tensor.shape)) for tensor in read_header(source).tensors if len(tensor.shape) > 1]
    return sum(size for kind, size in sizes if kind in BLOCK_TYPES) / sum(size for _, size in sizes)


def carried_bytes(source: Path) -> int:
    """Return about the size of an int4 model that takes over what it can of a GGUF's blocks."""
    total = 0.0
    for tensor in read_header(source).tensors:
        kind = BLOCK_TYPES.get(tensor.type, BlockType(8))
        total += math.prod(tensor.shape) * (kind.bits / 8 + 4 * (1 + kind.has_rest) / kind.block)
    return int(total)


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix of n_rows x n_columns weights in blocks along a row: scale * (codes - zero) + rest.

    Attributes:
        bits: 4 or 8.
        codes: uint8 [n_rows, n_blocks, block], one code a weight.
        scale: float32 [n_rows, n_blocks].
        zero: uint8 [n_rows, n_blocks]; None for 8 (4 bits) or 128 everywhere.
        rest: float32 [n_rows, n_blocks]; None where it is 0 everywhere.
    """

    bits: int
    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.uint8] | None = None
    rest: NDArray[np.float32] | None = None

    def packed(self) -> NDArray[np.uint8]:
        """Return the codes as MatMulNBits stores them, uint8 [n_rows, n_blocks, block * bits / 8], low half of a byte first."""
        return self.codes if self.bits == 8 else _halves(self.codes)

    def packed_zero(self) -> NDArray[np.uint8]:
        """Return the zero points as MatMulNBits stores them: those of a row fill whole bytes."""
        assert self.zero is not None
        if self.bits == 8:
            return self.zero
        odd = self.zero.shape[1] % 2
        return _halves(np.pad(self.zero, ((0, 0), (0, odd)), constant_values=8))

    def dequantised(self) -> NDArray[np.float32]:
        """Return the weights, float32 [n_rows, n_columns]."""
        zero = np.float32(2 ** (self.bits - 1)) if self.zero is None else self.zero[..., None].astype(np.float32)
        values: NDArray[np.float32] = (self.codes.astype(np.float32) - zero) * self.scale[..., None]
        if self.rest is not None:
            values += self.rest[..., None]
        return values.reshape(len(self.codes), -1)


def _halves(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    packed: NDArray[np.uint8] = values[..., 0::2] | (values[..., 1::2] << np.uint8(4))
    return packed


def read_blocks(kind: str, data: NDArray[np.uint8]) -> Blocks:
    """Unpack GGUF blocks.

    Args:
        kind: a key of BLOCK_TYPES.
        data: uint8 [n_rows, bytes of a row], as in the file.
    """
    if kind in UNPACKERS:
        block_bytes, unpack = UNPACKERS[kind]
        found = unpack(data.reshape(len(data), -1, block_bytes))
        bits = BLOCK_TYPES[kind].bits
        middle = found.zero or (8 if bits == 4 else 16)  # codes are stored around it
        rest = None if found.least is None else found.least + middle * found.scale
        return Blocks(bits, found.codes + np.uint8(2 ** (bits - 1) - middle), found.scale, rest=rest)
    codes, scale, least = unpack_blocks(kind, data)
    factor = scale.astype(np.float32)
    in_blocks = codes.view(np.uint8).reshape(len(codes), -1, BLOCK)
    if kind == "Q8_0":
        return Blocks(8, in_blocks ^ np.uint8(0x80), factor)  # signed -> offset by 128
    return Blocks(4, in_blocks, factor, rest=None if least is None else least.astype(np.float32) + 8 * factor)


def quantise_rows(values: NDArray[np.float32], bits: int) -> Blocks:
    """Quantise rows in blocks of 32 by k_quant.

    Args:
        values: float32 [n_rows, n_columns]; the last block of a row is filled up with zeros.
        bits: 4 or 8.
    """
    n_rows, n_columns = values.shape
    padded = np.pad(values, ((0, 0), (0, -n_columns % BLOCK))) if n_columns % BLOCK else values
    codes, scale, zero = search_blocks(padded.reshape(-1, BLOCK), bits)
    return Blocks(bits, codes.reshape(n_rows, -1, BLOCK), scale.reshape(n_rows, -1), zero=zero.reshape(n_rows, -1))


def round_rows(values: NDArray[np.float32]) -> Blocks:
    """Round rows of whole blocks to 8 bits, as Q8_0 of a GGUF: for an embedding, which nothing is multiplied with."""
    return read_blocks("Q8_0", gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0))
