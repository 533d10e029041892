"""The tensors of a GGUF file, by name, and the parts of those that are fused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge.backends.openvino.weights import Packed, unpack
from edge.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from edge.formats.gguf import GGUFHeader, TensorInfo

__all__ = ["Tensors"]


class Tensors:
    """Reads tensors from a file.

    Args:
        path: of the file.
        header: of it.
        in_floats: products are computed in floats, see `edge.backends.openvino.weights`; an attribute, too.
    """

    def __init__(self, path: Path, header: GGUFHeader, *, in_floats: bool = False) -> None:
        self._data = np.memmap(path, np.uint8, "r", offset=header.data_offset)
        self._tensors = {tensor.name: tensor for tensor in header.tensors}
        self.in_floats = in_floats

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def matrix(self, name: str) -> Packed:
        """Return a tensor as a matrix.

        Raises:
            UnsupportedError: the file has no such tensor.
            ModelFileError: a scale is no finite float16.
        """
        tensor = self._find(name)
        data = self._data[tensor.offset : tensor.offset + tensor.size_bytes]
        return unpack(tensor.type, data, tensor.shape, in_floats=self.in_floats)

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        """Return a tensor as plain numbers. Raises as `matrix`."""
        return self.matrix(name).dense().reshape(-1)

    def _find(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise UnsupportedError(f"The file has no tensor {name}, which this kind of model needs.", "Use --backend llamacpp.")
        return self._tensors[name]
