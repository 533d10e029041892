"""The matrices of a GGUF as codes and parts of a grid, read from the file and written in their place.

Rows are those of the checkpoint: a GGUF of the llama architecture interleaves those of q and k. Nothing is quantised here, so
what is written is what was trained, bit for bit.

Source: ggml's block layouts (ggml-common.h).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import torch

from edge.formats.gguf import read_header
from edge_convert.checkpoint import Checkpoint
from edge_convert.gguf.blocks import BLOCK, checkpoint_rows, unpack_blocks
from edge_convert.gguf.tensors import PERMUTED, gguf_parts
from edge_convert.recover.grids import Grid, ListedGrid, OffsetGrid, Parts, ScaledGrid

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["GRIDS", "GgufBlocks", "pack"]

_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # kvalues_iq4nl

GRIDS: dict[str, Grid] = {"Q4_0": ScaledGrid(-8, 7), "Q4_1": OffsetGrid(15), "IQ4_NL": ListedGrid(_IQ4_NL)}
"""Types whose blocks can be trained."""

_LOWEST = {"Q4_0": -8, "Q4_1": 0, "IQ4_NL": 0}  # the code that is stored as 0
_LAYOUT = {"IQ4_NL": "Q4_0"}  # the same bytes


class GgufBlocks:
    """The tensors of a GGUF file by their names in the checkpoint that it was made from.

    Args:
        path: the file.
        checkpoint: its source.
    """

    def __init__(self, path: Path, checkpoint: Checkpoint) -> None:
        header = read_header(path)
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        self._names = {part.name: name for name, part in gguf_parts(checkpoint).items()}
        self._checkpoint, self._path, self._start = checkpoint, path, header.data_offset

    def kind(self, name: str) -> str:
        """Return the type of a tensor, such as "Q4_0"."""
        return self._tensors[self._names[name]].type

    def grid(self, name: str) -> Grid | None:
        """Return the grid of a tensor; None if its type has none here."""
        return GRIDS.get(self.kind(name))

    def read(self, name: str) -> tuple[Any, Parts]:
        """Return the codes of a matrix, int8 [n_rows, n_groups, 32], and its parts, float32 [n_rows, n_groups, 1]."""
        kind, order = self.kind(name), self._order(name)
        raw = unpack_blocks(_LAYOUT.get(kind, kind), np.array(self._data(name, "r")))
        codes = raw.codes[order].reshape(len(raw.codes), -1, BLOCK).astype(np.int8) + np.int8(_LOWEST[kind])
        parts = {"scale": raw.scale} if raw.least is None else {"scale": raw.scale, "least": raw.least}
        found = {part: torch.from_numpy(values[order].astype(np.float32))[..., None] for part, values in parts.items()}
        return torch.from_numpy(codes), found

    def floats(self, name: str) -> Any:
        """Return a tensor as the runtime computes with it, float32 in the checkpoint's shape and order of rows."""
        kind = gguf.GGMLQuantizationType[self.kind(name)]
        values = gguf.dequantize(np.array(self._data(name, "r")), kind)[self._order(name)]
        return torch.from_numpy(np.ascontiguousarray(values).reshape(self._checkpoint.tensors[name].shape))

    def write(self, name: str, codes: Any, parts: Parts) -> None:
        """Replace the blocks of a matrix."""
        packed = pack(
            self.kind(name), codes.cpu().numpy(), {part: values[..., 0].cpu().numpy() for part, values in parts.items()}
        )
        data = self._data(name, "r+")
        data[self._order(name)] = packed
        data.flush()

    def write_floats(self, name: str, values: Any) -> None:
        """Replace a norm or a bias, which every GGUF stores in float32."""
        shift = 1.0 if self._checkpoint.architecture.is_gemma and name.endswith("norm.weight") else 0.0
        data = self._data(name, "r+")
        data[self._order(name)] = (values.float() + shift).cpu().numpy().reshape(len(data), -1).view(np.uint8)
        data.flush()

    def _data(self, name: str, mode: Any) -> Any:
        """Map a tensor as it is stored, uint8 [n_rows, bytes of a row]; a vector has rows of one number."""
        tensor = self._tensors[self._names[name]]
        data = np.memmap(self._path, np.uint8, mode, offset=self._start + tensor.offset, shape=(tensor.size_bytes,))
        return data.reshape(self._checkpoint.tensors[name].shape[0], -1)

    def _order(self, name: str) -> slice | NDArray[np.intp]:
        found = PERMUTED.search(name) if self._checkpoint.architecture.gguf == "llama" else None
        if found is None:
            return slice(None)
        model = self._checkpoint.model
        return checkpoint_rows(self._checkpoint.tensors[name].shape[0], model.n_heads if found[1] == "q" else model.n_kv_heads)


def pack(kind: str, codes: NDArray[Any], parts: dict[str, NDArray[np.float32]]) -> NDArray[np.uint8]:
    """Return blocks as the file stores them.

    Args:
        kind: a key of GRIDS.
        codes: [n_rows, n_groups, 32].
        parts: scale, and least where the type has one, float32 [n_rows, n_groups].

    Returns:
        uint8 [n_rows, bytes of a row].
    """
    unsigned = (codes - _LOWEST[kind]).astype(np.uint8)
    halves = [parts[name].astype(np.float16)[..., None].view(np.uint8) for name in ("scale", "least") if name in parts]
    nibbles = unsigned[..., : BLOCK // 2] | (unsigned[..., BLOCK // 2 :] << np.uint8(4))
    packed: NDArray[np.uint8] = np.concatenate([*halves, nibbles], axis=-1).reshape(len(codes), -1)
    return packed
