"""Weights of a GGUF file as they are stored, and its blocks of 32, unpacked: Q4_0 is d * (q - 8), Q4_1 d * q + m, Q8_0 d * q.

Source: ggml's block layouts (ggml-common.h).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge.formats.gguf import GGUFHeader

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BLOCK", "BLOCK_BYTES", "RawBlocks", "checkpoint_rows", "map_tensors", "unpack_blocks"]

BLOCK = 32
"""Weights in a block."""

BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}
"""Types that other formats can take over, and the size of their blocks."""


class RawBlocks(NamedTuple):
    """A matrix in blocks along its rows.

    Attributes:
        codes: q, uint8 below 16 (Q4_0, Q4_1) or int8 (Q8_0) [n_rows, n_columns].
        scale: d, float16 [n_rows, n_columns / 32].
        least: m of Q4_1, float16 [n_rows, n_columns / 32]; None for the other types.
    """

    codes: NDArray[np.uint8] | NDArray[np.int8]
    scale: NDArray[np.float16]
    least: NDArray[np.float16] | None


def map_tensors(path: Path, header: GGUFHeader) -> dict[str, NDArray[np.uint8]]:
    """Map the tensors of a GGUF file into memory: name -> uint8 [n_rows, bytes of a row].

    The library's reader would take seconds for the vocabulary, and hold it in ten times its size.

    Args:
        path: the file, one that is not split.
        header: what `read_header` says about it.
    """
    data = np.memmap(path, np.uint8, "r", offset=header.data_offset)
    return {
        info.name: data[info.offset : info.offset + info.size_bytes].reshape(math.prod(info.shape[1:]), -1)
        for info in header.tensors
    }


def unpack_blocks(kind: str, data: Any) -> RawBlocks:
    """Unpack GGUF blocks.

    Args:
        kind: a key of BLOCK_BYTES.
        data: uint8 [n_rows, bytes of a row], as in the file.
    """
    blocks = np.asarray(data, np.uint8).reshape(len(data), -1, BLOCK_BYTES[kind])

    def half(start: int) -> NDArray[np.float16]:
        return np.ascontiguousarray(blocks[..., start : start + 2]).view(np.float16)[..., 0]

    if kind == "Q8_0":
        return RawBlocks(np.ascontiguousarray(blocks[..., 2:]).view(np.int8).reshape(len(data), -1), half(0), None)
    nibbles = blocks[..., -16:]
    codes = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=-1).reshape(len(data), -1)
    return RawBlocks(codes, half(0), half(2) if kind == "Q4_1" else None)


def checkpoint_rows(n_rows: int, n_heads: int) -> NDArray[np.intp]:
    """Return the place of each checkpoint row in a GGUF of the llama architecture, which interleaves q and k rows for its RoPE.

    Source: LlamaModel.permute in llama.cpp's conversion.
    """
    order: NDArray[np.intp] = np.arange(n_rows).reshape(n_heads, n_rows // n_heads // 2, 2).swapaxes(1, 2).reshape(-1)
    return order
