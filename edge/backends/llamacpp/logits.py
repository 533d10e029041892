"""The newest logits of every sequence, which the backend and its samplers read."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from edge.backends.cells_backend import no_logits
from edge.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Logits"]


class Logits:
    """Rows of the engine's output, and copies of those that a later pass overwrote. Used under the backend's lock.

    Args:
        library: from `load_library`.
        n_vocab: size of the vocabulary.

    Attributes:
        context: the context pointer; None once the model is closed.
    """

    def __init__(self, library: Any, n_vocab: int) -> None:
        self._library = library
        self._n_vocab = n_vocab
        self.reset(None)

    def reset(self, context: Any) -> None:
        """Forget all logits and take them from another context."""
        self.context = context
        self._rows: dict[int, tuple[int, int]] = {}  # sequence -> its last row of the output, and how many are before it
        self._saved: dict[int, npt.NDArray[np.float32]] = {}
        self._views: dict[int, npt.NDArray[np.float32]] = {}  # address of a row -> the same memory as an array

    def newest(self, seq_id: int, n_back: int = 0) -> npt.NDArray[np.float32]:
        """Return the newest logits of a sequence without a copy, shape (n_vocab,); good until the next pass.

        Args:
            seq_id: the sequence.
            n_back: return those before its last so many draft tokens instead.

        Raises:
            BackendError: there are none: its last call was not a complete prefill or decode. Or the model is closed.
        """
        if self.context is None:
            raise BackendError("The model is closed.", "Load it again.")
        row = self.row(seq_id, n_back)
        if row is not None:
            return self._view(row)
        if n_back or seq_id not in self._saved:
            raise no_logits(seq_id)
        return self._saved[seq_id]

    def row(self, seq_id: int, n_back: int = 0) -> int | None:
        """Return the row of the engine's output that holds these logits, None if they are a copy or there are none."""
        last, n_before = self._rows.get(seq_id, (0, -1))
        return last - n_back if n_back <= n_before else None

    def forget(self, seq_id: int) -> None:
        """Drop the newest logits of a sequence, if it has any."""
        self._rows.pop(seq_id, None)
        self._saved.pop(seq_id, None)

    def save(self) -> None:
        """Copy the newest logits, which the next pass overwrites."""
        for seq_id, (row, _) in self._rows.items():
            self._saved[seq_id] = self._view(row).copy()
        self._rows = {}

    def set_rows(self, rows: dict[int, tuple[int, int]]) -> None:
        """Note which row of the output has the newest logits of each sequence of the newest pass.

        Args:
            rows: sequence -> that row, and how many rows in front of it are of its draft.
        """
        self._rows = rows

    def _view(self, row: int) -> npt.NDArray[np.float32]:
        import numpy as np

        pointer = self._library.llama_get_logits_ith(self.context, row)  # waits for the pass
        if not pointer:
            raise BackendError("llama.cpp gave no logits.", "Load the model again.")
        address = ctypes.addressof(pointer.contents)
        view = self._views.get(address)
        if view is None:
            view = self._views[address] = np.ctypeslib.as_array(pointer, (self._n_vocab,))
        return view
