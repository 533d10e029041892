"""Blocks of a GGUF as Core ML blocks: a model that is 4-bit already is not quantised a second time.

Source: ggml's block layouts (ggml-common.h): Q4_0 is d * (q - 8), Q4_1 is d * q + m, Q8_0 is d * q, 32 weights a block.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ModelFileError

from .decoder import Decoder
from .grids import shift_scale
from .weights import Blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CarriedWeights"]

_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


class CarriedWeights:
    """The matrices of a GGUF by their names in a checkpoint.

    Args:
        path: the GGUF.
        decoder: of the checkpoint that was made from it.
        architecture: the GGUF's name for the architecture ("llama").

    Raises:
        ModelFileError: this is no GGUF.
    """

    def __init__(self, path: Path, decoder: Decoder, architecture: str) -> None:
        import gguf

        try:
            self._reader = gguf.GGUFReader(path)
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path} cannot be read as a GGUF: {error}.", "Download it again.") from error
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
        self._names = gguf.get_tensor_name_map(kind, decoder.n_layers)
        self._decoder = decoder
        self._permuted = architecture == "llama"

    def find(self, name: str, expected: NDArray[np.float32]) -> Blocks | None:
        """The blocks of a matrix, or None where the GGUF has none that fit.

        Args:
            name: in the checkpoint, without ".weight".
            expected: the checkpoint's values. Blocks that differ from them are not used: the checkpoint was changed since.
        """
        own = self._names.get_name(name)
        tensor = self._tensors.get(f"{own}.weight")
        if tensor is None or tensor.tensor_type.name not in _BYTES:
            return None
        blocks = _read(tensor.tensor_type.name, tensor.data)
        if self._permuted and name.endswith(("q_proj", "k_proj")):
            n_heads = self._decoder.n_heads if name.endswith("q_proj") else self._decoder.n_kv_heads
            blocks = _unpermute(blocks, n_heads)
        if blocks.codes.shape != expected.shape:
            return None
        tolerance = 0.01 * float(np.abs(expected).max())  # the offset has 11 bits; fp16 checkpoints were rounded themselves
        return blocks if bool(np.abs(blocks.dequantise() - expected).max() <= tolerance) else None


def _read(kind: str, data: Any) -> Blocks:
    raw = np.asarray(data, np.uint8).reshape(len(data), -1, _BYTES[kind])

    def half(start: int) -> NDArray[np.float16]:
        return np.ascontiguousarray(raw[..., start : start + 2]).view(np.float16)[..., 0]

    if kind == "Q8_0":
        return Blocks(np.ascontiguousarray(raw[..., 2:]).view(np.int8).reshape(len(raw), -1), half(0), None, 8)
    nibbles = raw[..., -16:]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).reshape(len(raw), -1)
    if kind == "Q4_0":
        return Blocks(codes, half(0), np.full(raw.shape[:2], 8, np.float16), 4)
    # a block of one value (step 0) has codes of 0 already, which shift_scale relies on
    scale, offset = shift_scale(half(0).astype(np.float32), half(2).astype(np.float32))
    return Blocks(codes, scale, offset, 4)


def _unpermute(blocks: Blocks, n_heads: int) -> Blocks:
    """llama.cpp keeps the halves of a rotated head interleaved; the blocks lie along the rows, so they only change places."""
    n_rows = len(blocks.codes)
    order = np.arange(n_rows).reshape(n_heads, n_rows // n_heads // 2, 2).swapaxes(1, 2).reshape(-1)
    offset = None if blocks.offset is None else blocks.offset[order]
    return Blocks(blocks.codes[order], blocks.scale[order], offset, blocks.bits)
