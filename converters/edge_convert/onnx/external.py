"""Writes the weights of an ONNX model into the file beside it, a piece at a time, so that no tensor has to be in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto, external_data_helper, helper, numpy_helper

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Region", "WeightFile"]

_INLINE_BYTES = 256
_SMALL_STEP, _LARGE_STEP = 64, 1 << 16
"""Tensors begin at multiples of these. Windows maps a file at multiples of the second only, and onnxruntime maps large ones."""
_LARGE_BYTES = 1 << 20


class Region:
    """The place of one tensor, written from its beginning to its end.

    Args:
        file: open for writing.
        offset: of the first byte.
        size_bytes: of the tensor.
    """

    def __init__(self, file: Any, offset: int, size_bytes: int) -> None:
        self._file, self._next, self._end = file, offset, offset + size_bytes

    def write(self, values: NDArray[Any]) -> None:
        """Append values."""
        assert self._next + values.nbytes <= self._end
        self._file.seek(self._next)
        self._file.write(np.ascontiguousarray(values).data)
        self._next += values.nbytes

    @property
    def is_full(self) -> bool:
        """Whether all is written."""
        return self._next == self._end


class WeightFile:
    """The weights of a model, open for writing. Use it in a `with` block.

    Args:
        path: the new file.

    Attributes:
        tensors: of the graph: where each is, or its values where they are few.
    """

    def __init__(self, path: Path) -> None:
        self.tensors: list[TensorProto] = []
        self._path = path
        self._names: set[str] = set()
        self._regions: list[Region] = []
        self._end = 0

    def __enter__(self) -> WeightFile:
        self._file = self._path.open("wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._file.close()
        assert error or all(region.is_full for region in self._regions)

    def reserve(self, name: str, dtype: Any, shape: Sequence[int]) -> Region:
        """Give a tensor its place in the file; its values are to follow."""
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        step = _LARGE_STEP if size_bytes >= _LARGE_BYTES else _SMALL_STEP
        offset = -(-self._end // step) * step
        self._end = offset + size_bytes
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims=shape)
        tensor.raw_data = b""  # `set_external_data` asks for it
        external_data_helper.set_external_data(tensor, self._path.name, offset=offset, length=size_bytes)
        tensor.ClearField("raw_data")
        self._add(name, tensor)
        self._regions.append(Region(self._file, offset, size_bytes))
        return self._regions[-1]

    def add(self, name: str, values: NDArray[Any]) -> str:
        """Write a whole tensor, and return its name."""
        if values.nbytes < _INLINE_BYTES:
            self._add(name, numpy_helper.from_array(np.ascontiguousarray(values), name))
        else:
            self.reserve(name, values.dtype, values.shape).write(values)
        return name

    def constant(self, name: str, values: NDArray[Any]) -> str:
        """Return the name of a tensor that several nodes may share; written the first time."""
        return name if name in self._names else self.add(name, values)

    def _add(self, name: str, tensor: TensorProto) -> None:
        assert name not in self._names
        self._names.add(name)
        self.tensors.append(tensor)
