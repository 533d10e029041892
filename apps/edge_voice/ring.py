"""A ring of samples between a sound device's callback and the thread that reads: fixed memory, one writer, one reader."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edge_voice.stages import Samples

__all__ = ["Ring"]


class Ring:
    """Samples in the order in which they were written. `write` neither waits nor allocates; what does not fit is dropped.

    Args:
        capacity: samples that it holds.

    Attributes:
        n_written: samples given to `write` so far, with those that were dropped.
        n_dropped: samples that did not fit.
    """

    def __init__(self, capacity: int) -> None:
        self._data = np.zeros(capacity, np.float32)
        self._arrived = threading.Event()
        self._n_stored = 0  # written by the writer alone
        self._n_read = 0  # written by the reader alone
        self.n_written = 0
        self.n_dropped = 0

    def __len__(self) -> int:
        return self._n_stored - self._n_read

    def write(self, samples: Samples) -> None:
        """Append samples; those for which there is no room are dropped and counted."""
        size = len(self._data)
        fits = min(len(samples), size - len(self))
        start = self._n_stored % size
        first = min(fits, size - start)
        self._data[start : start + first] = samples[:first]
        self._data[: fits - first] = samples[first:fits]
        self._n_stored += fits
        self.n_written += len(samples)
        self.n_dropped += len(samples) - fits
        self._arrived.set()

    def read(self) -> Samples:
        """Return all samples that are there, as a copy; none may be there."""
        size, n = len(self._data), len(self)
        start = self._n_read % size
        first = min(n, size - start)
        taken = np.concatenate([self._data[start : start + first], self._data[: n - first]])
        self._n_read += n
        return taken

    def wait(self, timeout_s: float) -> bool:
        """Wait until something was written, or `wake` called, since the last `wait`; return False after timeout_s."""
        arrived = self._arrived.wait(max(0.0, timeout_s))
        self._arrived.clear()
        return arrived

    def wake(self) -> None:
        """End a `wait` of another thread."""
        self._arrived.set()
