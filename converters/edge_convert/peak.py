"""How much memory a conversion took at most: this process and its children together.

Two numbers, because they mean different things. Memory that is held is gone for others until the process gives it back. Of a
file that is mapped (a checkpoint, a library's code), the system keeps in memory what has room, and drops it when others need
the room.
"""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

__all__ = ["PeakMemory"]

_EVERY_S = 0.05


class PeakMemory:
    """Looks at the memory of this process and of all below it, twenty times a second, while a `with` block runs.

    Attributes:
        n_bytes: the most that was held at once. Where the system does not tell mapped files apart (macOS), they count.
        resident_bytes: the most that was in memory at once, mapped files included; what processes share counts for each.
    """

    def __init__(self) -> None:
        self.n_bytes = self.resident_bytes = 0
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
        held = resident = 0
        for process in (own, *own.children(recursive=True)):
            try:
                info = process.memory_info()
            except psutil.Error:
                continue  # it has ended meanwhile
            held += info.rss - getattr(info, "shared", 0)
            resident += info.rss
        self.n_bytes, self.resident_bytes = max(self.n_bytes, held), max(self.resident_bytes, resident)
