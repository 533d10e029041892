"""Takes over the blocks of a GGUF as Core ML blocks, so that a 4-bit model is not quantised a second time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge.formats.gguf import read_header
from edge_convert.architectures import Architecture
from edge_convert.gguf.blocks import BLOCK_BYTES, checkpoint_rows, map_tensors, unpack_blocks
from edge_convert.gguf.config import name_map

from .decoder import Decoder
from .grids import shift_scale
from .weights import Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CarriedWeights"]


class CarriedWeights:
    """The matrices of a GGUF by their names in a checkpoint.

    Args:
        path: the GGUF.
        decoder: of the checkpoint that was made from it.
        architecture: of the checkpoint.

    Raises:
        ModelNotFoundError, ModelFileError: this is not a GGUF.
    """

    def __init__(self, path: Path, decoder: Decoder, architecture: Architecture) -> None:
        header = read_header(path)
        self._data = map_tensors(path, header)
        self._types = {tensor.name: tensor.type for tensor in header.tensors}
        self._names = name_map(architecture.gguf, decoder.n_layers)
        self._decoder = decoder
        self._permuted = architecture.is_permuted

    def find(self, name: str, expected: NDArray[np.float32]) -> Blocks | None:
        """Return the blocks of a matrix, or None if the GGUF has none that fit.

        Args:
            name: in the checkpoint, without ".weight".
            expected: the checkpoint's values. Blocks that differ from them are not used: the checkpoint was changed since.
        """
        own = f"{self._names.get_name(name)}.weight"
        kind = self._types.get(own)
        if kind not in BLOCK_BYTES:
            return None
        blocks = _blocks(kind, self._data[own])
        if self._permuted and name.endswith(("q_proj", "k_proj")):
            n_heads = self._decoder.n_heads if name.endswith("q_proj") else self._decoder.n_kv_heads
            blocks = _in_order(blocks, checkpoint_rows(len(blocks.codes), n_heads))
        if blocks.codes.shape != expected.shape:
            return None
        tolerance = 0.01 * float(np.abs(expected).max())  # the offset has 11 bits; fp16 checkpoints were rounded themselves
        return blocks if bool(np.abs(blocks.dequantise() - expected).max() <= tolerance) else None


def _blocks(kind: str, data: NDArray[np.uint8]) -> Blocks:
    codes, scale, least = unpack_blocks(kind, data)
    if kind == "Q8_0":
        return Blocks(codes, scale, None, 8)
    if least is None:
        return Blocks(codes, scale, np.full(scale.shape, 8, np.float16), 4)
    # A block of one value (step 0) has codes of 0 already, as shift_scale needs.
    scale, offset = shift_scale(scale.astype(np.float32), least.astype(np.float32))
    return Blocks(codes, scale, offset, 4)


def _in_order(blocks: Blocks, order: NDArray[np.intp]) -> Blocks:
    offset = None if blocks.offset is None else blocks.offset[order]
    return Blocks(blocks.codes[order], blocks.scale[order], offset, blocks.bits)
