"""Peak memory of this process and its children together.

Two numbers, because they mean different things. Allocated memory is gone for others until the process releases it. Pages of a
mapped file (a checkpoint, a library's code) stay in memory only while nobody else needs it.
"""

from __future__ import annotations

import threading
from types import TracebackType

import psutil

__all__ = ["PeakMemory"]

_EVERY_S = 0.05


class PeakMemory:
    """Samples the memory of this process and its descendants, twenty times a second, while a `with` block runs.

    Attributes:
        n_bytes: peak of allocated memory. Where the system does not tell mapped files apart (macOS), they count.
        resident_bytes: peak of resident memory, mapped files included; shared pages count for each process.
    """

    def __init__(self) -> None:
        self.n_bytes = self.resident_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="edge-peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._sample()

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._sample()

    def _sample(self) -> None:
        own = psutil.Process()
        allocated = resident = 0
        for process in (own, *own.children(recursive=True)):
            try:
                info = process.memory_info()
            except psutil.Error:
                continue  # it has ended meanwhile
            allocated += info.rss - getattr(info, "shared", 0)
            resident += info.rss
        self.n_bytes, self.resident_bytes = max(self.n_bytes, allocated), max(self.resident_bytes, resident)
