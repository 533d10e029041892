"""Keys and values of one sequence, in buffers that stay where they are between passes.

Three kinds, the best that model and provider allow (see `open_buffers`):

    SharedBuffers    the model writes new rows into the buffer that holds the old ones: nothing is copied
    DeviceBuffers    the same, in the memory of an accelerator, with a copy in main memory for export and import
    TurnedBuffers    the model gives a new tensor of all rows; two buffers take turns, so that nothing is allocated

Rows are positions. All layers lie in one array, shape (2 x layers, heads, rows, width): keys of layer 0, its values, and so on.
"""

from __future__ import annotations

import mmap
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from edge.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.onnx_folder import OnnxFolder

__all__ = ["DeviceBuffers", "KVBuffers", "SharedBuffers", "TurnedBuffers", "open_buffers"]

_GROWTH = 256  # rows
_NUMPY = {"f32": "float32", "f16": "float16", "bf16": "uint16"}
_ONNX_BF16 = 16


class KVBuffers(ABC):
    """The buffers of one sequence. `bind` before a pass, `commit` after it; in between nothing else.

    Args:
        folder: names and sizes.
        n_rows: the most rows.
    """

    def __init__(self, folder: OnnxFolder, n_rows: int) -> None:
        import numpy as np

        self.n_rows = n_rows
        self._names = [
            *zip(folder.past_key, folder.present_key, strict=True),
            *zip(folder.past_value, folder.present_value, strict=True),
        ]
        # In the order of the array: key and value of each layer.
        self._names = [self._names[layer + part * folder.n_layer] for layer in range(folder.n_layer) for part in (0, 1)]
        self._heads, self._width = folder.n_head_kv, folder.head_dim
        self._dtype = np.dtype(_NUMPY[folder.kv_type])
        self._element: Any = _ONNX_BF16 if folder.kv_type == "bf16" else self._dtype.type

    @abstractmethod
    def bind(self, binding: Any, start: int, n_new: int) -> None:
        """Tell a binding where the first `start` rows are and where `n_new` more belong."""

    def commit(self, end: int) -> None:  # noqa: B027 (most have nothing to do)
        """A pass has written rows up to `end`."""

    @abstractmethod
    def rows(self, end: int) -> npt.NDArray[np.generic]:
        """All rows up to `end` in main memory, shape (2 x layers, heads, end, width); a view to read from."""

    @abstractmethod
    def write(self, start: int, values: npt.NDArray[np.generic]) -> None:
        """Put rows behind the first `start` ones; shape (2 x layers, heads, n, width)."""

    def row_bytes(self) -> int:
        """Bytes of one row of all layers."""
        return len(self._names) * self._heads * self._width * self._dtype.itemsize

    def view(self, data: npt.NDArray[np.uint8], n_rows: int) -> npt.NDArray[np.generic]:
        """Bytes as rows, without a copy."""
        return data.view(self._dtype).reshape(len(self._names), self._heads, n_rows, self._width)

    def _zeros(self, n_rows: int) -> npt.NDArray[np.generic]:
        """Zeros in pages of their own, which the system gives when they are first written: room that is not used costs nothing.

        numpy's own asks for huge pages, and then the whole context of a sequence is there from its first token on.
        """
        import numpy as np

        size = n_rows * self.row_bytes()
        # A private mapping is not what Python's default is where there is a choice.
        options = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        return self.view(np.frombuffer(mmap.mmap(-1, max(size, 1), **options), np.uint8, size), n_rows)


class SharedBuffers(KVBuffers):
    """One buffer that is past and present at once. See the module."""

    def __init__(self, folder: OnnxFolder, n_rows: int) -> None:
        super().__init__(folder, n_rows)
        self._values = self._zeros(n_rows)
        self._is_bound = False

    def bind(self, binding: Any, start: int, n_new: int) -> None:
        if self._is_bound:  # a binding keeps what it was told, and this never changes
            return
        shape = [1, self._heads, self.n_rows, self._width]
        for (past, present), values in zip(self._names, self._values, strict=True):
            address = values.ctypes.data
            binding.bind_input(past, "cpu", 0, self._element, shape, address)
            binding.bind_output(present, "cpu", 0, self._element, shape, address)
        self._is_bound = True

    def rows(self, end: int) -> npt.NDArray[np.generic]:
        return self._values[:, :, :end]

    def write(self, start: int, values: npt.NDArray[np.generic]) -> None:
        self._values[:, :, start : start + values.shape[2]] = values


class DeviceBuffers(KVBuffers):
    """Buffers in an accelerator's memory. See the module.

    onnxruntime moves whole tensors between the two memories, so rows are fetched once for all that is read after a pass, and
    sent once for all that is written before one.
    """

    def __init__(self, folder: OnnxFolder, n_rows: int, runtime: Any, device: str) -> None:
        super().__init__(folder, n_rows)
        shape = [1, self._heads, n_rows, self._width]
        self._tensors = [runtime.OrtValue.ortvalue_from_shape_and_type(shape, self._element, device, 0) for _ in self._names]
        self._host: npt.NDArray[np.generic] | None = None
        self._n_host = self._n_device = 0  # rows that are right there
        self._is_bound = False

    def bind(self, binding: Any, start: int, n_new: int) -> None:
        if self._n_device < start and self._host is not None:
            for tensor, values in zip(self._tensors, self._host, strict=True):
                tensor.update_inplace(values[None])
        self._n_device = start
        self._n_host = min(self._n_host, start)
        if self._is_bound:
            return
        for (past, present), tensor in zip(self._names, self._tensors, strict=True):
            binding.bind_ortvalue_input(past, tensor)
            binding.bind_ortvalue_output(present, tensor)
        self._is_bound = True

    def commit(self, end: int) -> None:
        self._n_device = end

    def rows(self, end: int) -> npt.NDArray[np.generic]:
        if self._element == _ONNX_BF16:
            raise UnsupportedError("Keys and values kept as bf16 on an accelerator cannot be read: numpy has no such type.")
        if self._host is None:
            self._host = self._zeros(self.n_rows)
        if self._n_host < end:
            for tensor, values in zip(self._tensors, self._host, strict=True):
                values[:, :end] = tensor.numpy()[0, :, :end]
            self._n_host = end
        return self._host[:, :, :end]

    def write(self, start: int, values: npt.NDArray[np.generic]) -> None:
        self.rows(start)
        end = start + values.shape[2]
        assert self._host is not None
        self._host[:, :, start:end] = values
        self._n_host, self._n_device = end, min(self._n_device, start)


class TurnedBuffers(KVBuffers):
    """Two buffers that take turns. See the module. They grow in steps, since both are as long as the sequence."""

    def __init__(self, folder: OnnxFolder, n_rows: int) -> None:
        super().__init__(folder, n_rows)
        self._past, self._present = self._flat(0), self._flat(0)
        self._n_past = 0

    def bind(self, binding: Any, start: int, n_new: int) -> None:
        self._cut(start)
        if self._present.shape[1] < (start + n_new) * self._heads * self._width:
            self._present = self._flat(start + n_new)
        for (past, present), old, new in zip(self._names, self._past, self._present, strict=True):
            shape = [1, self._heads, start, self._width]
            binding.bind_input(past, "cpu", 0, self._element, shape, old.ctypes.data)
            shape = [1, self._heads, start + n_new, self._width]
            binding.bind_output(present, "cpu", 0, self._element, shape, new.ctypes.data)

    def commit(self, end: int) -> None:
        self._past, self._present = self._present, self._past
        self._n_past = end

    def rows(self, end: int) -> npt.NDArray[np.generic]:
        return self._shaped(self._past, self._n_past)[:, :, :end]

    def write(self, start: int, values: npt.NDArray[np.generic]) -> None:
        end = start + values.shape[2]
        new = self._flat(end)
        rows = self._shaped(new, end)
        rows[:, :, :start] = self.rows(start)
        rows[:, :, start:] = values
        self._past, self._n_past = new, end

    def _cut(self, n_rows: int) -> None:
        """The model takes exactly what there is, so a shorter past has to be packed anew."""
        if n_rows < self._n_past:
            new = self._flat(n_rows)
            self._shaped(new, n_rows)[:] = self.rows(n_rows)
            self._past, self._n_past = new, n_rows

    def _flat(self, n_rows: int) -> npt.NDArray[np.generic]:
        """Room for so many rows and some more: shape (2 x layers, numbers)."""
        room = min(self.n_rows, -(-n_rows // _GROWTH) * _GROWTH) or 1
        return self._zeros(max(room, n_rows)).reshape(len(self._names), -1)

    def _shaped(self, flat: npt.NDArray[np.generic], n_rows: int) -> npt.NDArray[np.generic]:
        used = flat[:, : self._heads * n_rows * self._width]
        return used.reshape(len(self._names), self._heads, n_rows, self._width)


def open_buffers(folder: OnnxFolder, n_rows: int, runtime: Any, device: str) -> KVBuffers:
    """The best buffers for a model.

    Args:
        folder: the model.
        n_rows: the most rows.
        runtime: the module onnxruntime.
        device: where the provider keeps tensors: "cpu", "cuda".
    """
    if not folder.shares_buffer:
        return TurnedBuffers(folder, n_rows)
    return SharedBuffers(folder, n_rows) if device == "cpu" else DeviceBuffers(folder, n_rows, runtime, device)
