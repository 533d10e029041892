"""Keys and values of all sequences, in buffers that stay where they are between passes.

Three kinds, the best that model and provider allow (see `open_buffers`):

    InPlaceBuffers   the model writes new rows into the buffer that holds the old ones: nothing is copied. The sequences of a
                     layer are contiguous, so a pass over neighbours sees them as one batch
    DeviceBuffers    the same in the memory of an accelerator, one sequence by itself, with a copy in main memory for export
    TurnedBuffers    the model returns a new tensor of all rows; two buffers take turns, so that nothing is allocated

Rows are positions. The keys and values of one sequence are an array of the shape (2 x layers, heads, rows, width): keys of
layer 0, its values, and so on.
"""

from __future__ import annotations

import mmap
import sys
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from edge.errors import UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.formats.onnx import OnnxFolder

__all__ = [
    "DeviceBuffers",
    "InPlaceBuffers",
    "KVBuffers",
    "Layout",
    "SeparateBuffers",
    "TurnedBuffers",
    "open_buffers",
]

_GROWTH = 256  # rows
_NUMPY = {"f32": "float32", "f16": "float16", "bf16": "uint16"}
_ONNX_BF16 = 16
# Frees pages while their mapping stays. Windows has no such call, and on macOS only the second name frees.
_FREE_PAGES: int | None = getattr(mmap, "MADV_FREE" if sys.platform == "darwin" else "MADV_DONTNEED", None)


class Layout:
    """Names, shape and type of rows.

    Args:
        folder: the model.

    Attributes:
        names: of past and present in the order of the array: key and value of each layer.
        heads, width: of keys and values.
        dtype: numpy's type of the numbers.
        element: onnxruntime's.
    """

    def __init__(self, folder: OnnxFolder) -> None:
        import numpy as np

        keys = zip(folder.past_key, folder.present_key, strict=True)
        values = zip(folder.past_value, folder.present_value, strict=True)
        self.names = [pair for layer in zip(keys, values, strict=True) for pair in layer]
        self.heads, self.width = folder.n_head_kv, folder.head_dim
        self.dtype = np.dtype(_NUMPY[folder.kv_type])
        self.element: Any = _ONNX_BF16 if folder.kv_type == "bf16" else self.dtype.type

    def row_bytes(self) -> int:
        """Return the bytes of one row of all layers."""
        return len(self.names) * self.heads * self.width * self.dtype.itemsize

    def view(self, data: npt.NDArray[np.uint8], n_rows: int) -> npt.NDArray[np.generic]:
        """Return bytes as the rows of one sequence, without a copy."""
        return data.view(self.dtype).reshape(len(self.names), self.heads, n_rows, self.width)


class KVBuffers(ABC):
    """The keys and values of all sequences. `bind` before a pass, `commit` after it; in between nothing else.

    Attributes:
        can_batch: a binding can take several neighbouring sequences.
    """

    can_batch = False

    @abstractmethod
    def bind(self, binding: Any, first: int, n_seq: int, start: int, n_new: int) -> None:
        """Bind keys and values.

        Args:
            binding: of onnxruntime; always the same one for the same sequences.
            first: the first sequence.
            n_seq: how many neighbours from there on; 1 unless `can_batch`.
            start: rows of the sequence, the most of several.
            n_new: rows that the pass will add.
        """

    @abstractmethod
    def commit(self, seq_id: int, end: int) -> None:
        """Note that a pass has written rows up to `end`."""

    @abstractmethod
    def rows(self, seq_id: int, end: int) -> npt.NDArray[np.generic]:
        """Return all rows up to `end` in main memory, shape (2 x layers, heads, end, width); a view to read from."""

    @abstractmethod
    def write(self, seq_id: int, start: int, values: npt.NDArray[np.generic]) -> None:
        """Put rows behind the first `start` ones; shape (2 x layers, heads, n, width)."""

    @abstractmethod
    def free(self, seq_id: int) -> None:
        """Free the memory of a sequence that is empty now."""


class InPlaceBuffers(KVBuffers):
    """Buffers that are past and present at once. See the module.

    Args:
        layout: of the rows.
        n_rows: the most rows of a sequence.
        n_seq: sequences.
    """

    can_batch = True

    def __init__(self, layout: Layout, n_rows: int, n_seq: int) -> None:
        self._layout = layout
        self._pages, data = _pages(n_seq * n_rows * layout.row_bytes())
        values: npt.NDArray[np.generic] = data.view(layout.dtype)
        # Freed pages may come back with other content; nothing reads behind the end of a sequence.
        self._values = values.reshape(len(layout.names), n_seq, layout.heads, n_rows, layout.width)
        self._bound: WeakSet[Any] = WeakSet()  # a binding would keep its session in memory

    def bind(self, binding: Any, first: int, n_seq: int, start: int, n_new: int) -> None:
        if binding in self._bound:  # addresses never change
            return
        shape = [n_seq, *self._values.shape[2:]]
        for (past, present), values in zip(self._layout.names, self._values[:, first], strict=True):
            address = values.ctypes.data
            binding.bind_input(past, "cpu", 0, self._layout.element, shape, address)
            binding.bind_output(present, "cpu", 0, self._layout.element, shape, address)
        self._bound.add(binding)

    def commit(self, seq_id: int, end: int) -> None:
        pass  # they are in place

    def rows(self, seq_id: int, end: int) -> npt.NDArray[np.generic]:
        return self._values[:, seq_id, :, :end]

    def write(self, seq_id: int, start: int, values: npt.NDArray[np.generic]) -> None:
        self._values[:, seq_id, :, start : start + values.shape[2]] = values

    def free(self, seq_id: int) -> None:
        if _FREE_PAGES is None:
            return
        base, page = self._values.ctypes.data, mmap.PAGESIZE
        for values in self._values[:, seq_id]:
            first = -(-(values.ctypes.data - base) // page) * page
            end = (values.ctypes.data - base + values.nbytes) // page * page
            if first < end:  # pages that it does not share with its neighbours
                self._pages.madvise(_FREE_PAGES, first, end - first)


class _SequenceBuffers:
    """The buffers of one sequence by itself; the methods are those of `KVBuffers`.

    Args:
        layout: of the rows.
        n_rows: the most rows.
    """

    def __init__(self, layout: Layout, n_rows: int) -> None:
        self._layout = layout
        self._n_rows = n_rows

    def _zeros(self, n_rows: int) -> npt.NDArray[np.generic]:
        return self._layout.view(_pages(n_rows * self._layout.row_bytes())[1], n_rows)


class SeparateBuffers(KVBuffers):
    """Independent buffers for each sequence.

    Args:
        make: makes those of one.
    """

    def __init__(self, make: Callable[[], DeviceBuffers | TurnedBuffers]) -> None:
        self._sequences: defaultdict[int, DeviceBuffers | TurnedBuffers] = defaultdict(make)

    def bind(self, binding: Any, first: int, n_seq: int, start: int, n_new: int) -> None:
        self._sequences[first].bind(binding, start, n_new)

    def commit(self, seq_id: int, end: int) -> None:
        self._sequences[seq_id].commit(end)

    def rows(self, seq_id: int, end: int) -> npt.NDArray[np.generic]:
        return self._sequences[seq_id].rows(end)

    def write(self, seq_id: int, start: int, values: npt.NDArray[np.generic]) -> None:
        self._sequences[seq_id].write(start, values)

    def free(self, seq_id: int) -> None:
        self._sequences.pop(seq_id, None)


class DeviceBuffers(_SequenceBuffers):
    """Buffers in an accelerator's memory. See the module.

    onnxruntime moves whole tensors between the two memories, so rows are fetched once for all reads after a pass, and sent once
    for all writes before one.

    Args:
        layout, n_rows: as in `_SequenceBuffers`.
        runtime: the module onnxruntime.
        device: "cuda", ...
    """

    def __init__(self, layout: Layout, n_rows: int, runtime: Any, device: str) -> None:
        super().__init__(layout, n_rows)
        shape = [1, layout.heads, n_rows, layout.width]
        self._tensors = [runtime.OrtValue.ortvalue_from_shape_and_type(shape, layout.element, device, 0) for _ in layout.names]
        self._host: npt.NDArray[np.generic] | None = None
        self._n_host = self._n_device = 0  # rows that are up to date there
        self._bound: WeakSet[Any] = WeakSet()

    def bind(self, binding: Any, start: int, n_new: int) -> None:
        if self._n_device < start and self._host is not None:
            for tensor, values in zip(self._tensors, self._host, strict=True):
                tensor.update_inplace(values[None])
        self._n_device = start
        self._n_host = min(self._n_host, start)
        if binding in self._bound:
            return
        for (past, present), tensor in zip(self._layout.names, self._tensors, strict=True):
            binding.bind_ortvalue_input(past, tensor)
            binding.bind_ortvalue_output(present, tensor)
        self._bound.add(binding)

    def commit(self, end: int) -> None:
        self._n_device = end

    def rows(self, end: int) -> npt.NDArray[np.generic]:
        if self._layout.element == _ONNX_BF16:
            raise UnsupportedError("Keys and values kept as bf16 on an accelerator cannot be read: numpy has no such type.")
        if self._host is None:
            self._host = self._zeros(self._n_rows)
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


class TurnedBuffers(_SequenceBuffers):
    """Two buffers that take turns. See the module. They grow in steps, since both are as long as the sequence."""

    def __init__(self, layout: Layout, n_rows: int) -> None:
        super().__init__(layout, n_rows)
        self._past, self._present = self._flat(0), self._flat(0)
        self._n_past = 0

    def bind(self, binding: Any, start: int, n_new: int) -> None:
        layout = self._layout
        self._truncate(start)
        if self._present.shape[1] < (start + n_new) * layout.heads * layout.width:
            self._present = self._flat(start + n_new)
        for (past, present), old, new in zip(layout.names, self._past, self._present, strict=True):
            shape = [1, layout.heads, start, layout.width]
            binding.bind_input(past, "cpu", 0, layout.element, shape, old.ctypes.data)
            shape = [1, layout.heads, start + n_new, layout.width]
            binding.bind_output(present, "cpu", 0, layout.element, shape, new.ctypes.data)

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

    def _truncate(self, n_rows: int) -> None:
        """Repack a truncated past: the model takes exactly the rows of its tensor."""
        if n_rows < self._n_past:
            new = self._flat(n_rows)
            self._shaped(new, n_rows)[:] = self.rows(n_rows)
            self._past, self._n_past = new, n_rows

    def _flat(self, n_rows: int) -> npt.NDArray[np.generic]:
        """Allocate so many rows and some more: shape (2 x layers, numbers)."""
        room = min(self._n_rows, -(-n_rows // _GROWTH) * _GROWTH) or 1
        return self._zeros(max(room, n_rows)).reshape(len(self._layout.names), -1)

    def _shaped(self, flat: npt.NDArray[np.generic], n_rows: int) -> npt.NDArray[np.generic]:
        layout = self._layout
        used = flat[:, : layout.heads * n_rows * layout.width]
        return used.reshape(len(layout.names), layout.heads, n_rows, layout.width)


def open_buffers(folder: OnnxFolder, n_rows: int, n_seq: int, runtime: Any, device: str) -> KVBuffers:
    """Return the best kind of buffers for a model.

    Args:
        folder: the model.
        n_rows: the most rows of a sequence.
        n_seq: sequences.
        runtime: the module onnxruntime.
        device: where the provider stores tensors: "cpu", "cuda".
    """
    layout = Layout(folder)
    if not folder.shares_buffer:
        return SeparateBuffers(lambda: TurnedBuffers(layout, n_rows))
    if device != "cpu":
        return SeparateBuffers(lambda: DeviceBuffers(layout, n_rows, runtime, device))
    return InPlaceBuffers(layout, n_rows, n_seq)


def _pages(size: int) -> tuple[mmap.mmap, npt.NDArray[np.uint8]]:
    """Map zeros, whose pages the system allocates when they are first written, so that unused room costs nothing.

    numpy's own allocation asks for huge pages, which back the whole context of a sequence from its first token on.
    """
    import numpy as np

    options = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    pages = mmap.mmap(-1, max(size, 1), **options)
    return pages, np.frombuffer(pages, np.uint8, size)
