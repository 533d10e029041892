"""Weights of a model by their names in a checkpoint, some rows at a time: from safetensors, or from the blocks of a GGUF."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import gguf
import numpy as np

from edge.errors import ModelFileError
from edge.formats.gguf import read_header
from edge_convert.architectures import Architecture
from edge_convert.checkpoint import Checkpoint
from edge_convert.gguf.blocks import checkpoint_rows, map_tensors
from edge_convert.gguf.from_header import checkpoint_tensors
from edge_convert.model_config import ModelConfig
from edge_convert.onnx.blocks import BLOCK_TYPES, Blocks, read_blocks
from edge_convert.shapes import HEAD

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CheckpointWeights", "GgufWeights", "Weights"]

_PERMUTED = re.compile(r"self_attn\.([qk])_proj\.")


class Weights(Protocol):
    """See the module. Norms are given as what is multiplied by: Gemma's checkpoints store one less.

    Attributes:
        is_tied: the head shares the embedding's weights.
    """

    is_tied: bool

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor, rows first; None where the model has no such tensor."""

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a norm or a bias."""

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows [start, stop) of a matrix, float32 [rows, columns]."""

    def block_type(self, name: str) -> str | None:
        """Return the type of a matrix whose blocks `block_rows` reads, a key of BLOCK_TYPES; None for floats and others."""

    def block_rows(self, name: str, start: int, stop: int) -> Blocks:
        """Return rows [start, stop) of a matrix in its own blocks."""


class CheckpointWeights:
    """The weights of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.is_tied = checkpoint.is_tied

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor."""
        info = self._checkpoint.tensors.get(name)
        return info.shape if info else None

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a norm or a bias."""
        values = self._checkpoint.load_f32(name)
        is_less = self._checkpoint.architecture.is_gemma and name.endswith("norm.weight")
        return values + np.float32(1.0) if is_less else values

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows of a matrix."""
        return self._checkpoint.load_rows(name, start, stop).reshape(stop - start, -1).astype(np.float32)

    def block_type(self, name: str) -> None:
        """Return None: nothing here is in blocks."""

    def block_rows(self, name: str, start: int, stop: int) -> Blocks:
        """Fail: nothing here is in blocks."""
        raise NotImplementedError


class GgufWeights:
    """The weights of a GGUF file.

    Args:
        path: the file.
        architecture, model: of its configuration, see edge_convert.gguf.from_header.

    Raises:
        ModelFileError: the file is damaged, or holds another model.
    """

    def __init__(self, path: Path, architecture: Architecture, model: ModelConfig) -> None:
        header = read_header(path)
        self._tensors = checkpoint_tensors(header, architecture, model)
        self._stored = map_tensors(path, header)
        self._model, self._is_permuted = model, architecture.is_permuted
        self.is_tied = HEAD not in self._tensors

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor."""
        tensor = self._tensors.get(name)
        return tuple(reversed(tensor.shape)) if tensor is not None else None

    def vector(self, name: str) -> NDArray[np.float32]:
        """Return a norm or a bias."""
        size = math.prod(self.shape(name) or ())
        values = self._dequantised(name, self._stored[self._tensors[name].name]).reshape(-1)
        return values[self._order(name, 0, size)]

    def rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows of a matrix."""
        return self._dequantised(name, self._stored_rows(name, start, stop))

    def block_type(self, name: str) -> str | None:
        """Return the type of a matrix if its blocks can be carried over."""
        kind = self._tensors[name].type
        return kind if kind in BLOCK_TYPES else None

    def block_rows(self, name: str, start: int, stop: int) -> Blocks:
        """Return rows of a matrix in its own blocks."""
        blocks = read_blocks(self._tensors[name].type, self._stored_rows(name, start, stop))
        self._check(name, blocks.scale)
        return blocks

    def _stored_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        return np.array(self._stored[self._tensors[name].name][self._order(name, start, stop)])

    def _order(self, name: str, start: int, stop: int) -> slice | NDArray[np.intp]:
        """Return where rows are in the file: that of a Llama interleaves those of q and k for llama.cpp's RoPE."""
        found = _PERMUTED.search(name) if self._is_permuted else None
        if found is None:
            return slice(start, stop)
        heads = self._model.n_heads if found[1] == "q" else self._model.n_kv_heads
        return checkpoint_rows((self.shape(name) or (0,))[0], heads)[start:stop]

    def _dequantised(self, name: str, data: NDArray[np.uint8]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = gguf.dequantize(data, gguf.GGMLQuantizationType[self._tensors[name].type])
        self._check(name, values)
        return values

    def _check(self, name: str, values: NDArray[np.float32]) -> None:
        if not np.isfinite(values).all():
            raise ModelFileError(
                f"The tensor {self._tensors[name].name} holds values that are not numbers.", "Download it again."
            )
