"""How much memory a conversion took at most: this process and its children together."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

__all__ = ["PeakMemory"]

_EVERY_S = 0.05


class PeakMemory:
    """Looks at the resident memory of this process and of all below it, twenty times a second, while a `with` block runs.

    Memory that processes share, such as mapped files, counts once for each of them.

    Attributes:
        n_bytes: the most that was seen.
    """

    def __init__(self) -> None:
        self.n_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="edge-peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._is_over.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        own = psutil.Process()
        total = own.memory_info().rss
        for child in own.children(recursive=True):
            try:
                total += child.memory_info().rss
            except psutil.Error:
                continue  # it has ended meanwhile
        self.n_bytes = max(self.n_bytes, total)
