"""The thread that asks the disk for a turn, so that the turn can go on when the disk does not answer.

A thread inside a system call cannot be interrupted: it is left alone, and the disk is not asked again before it is back.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Reader"]

T = TypeVar("T")


class _Job(Generic[T]):
    """One question to the disk; `done` is released when it was answered."""

    __slots__ = ("done", "error", "is_late", "on_late", "result", "work")

    def __init__(self, work: Callable[[], T], on_late: Callable[[], None]) -> None:
        self.work, self.on_late = work, on_late
        self.done = threading.Lock()
        self.done.acquire()
        self.result: T | None = None
        self.error: BaseException | None = None
        self.is_late = False


class Reader:
    """See the module. Thread-safe; questions are answered one after the other.

    Args:
        timeout_s: longest wait for one; 0 asks in the caller's thread, and waits as long as it takes.
        retry_s: after that, the disk is not asked for so long, nor before it has answered.
        timer: monotonic seconds.
    """

    def __init__(self, timeout_s: float, retry_s: float, timer: Callable[[], float]) -> None:
        self._timeout_s, self._retry_s, self._timer = timeout_s, retry_s, timer
        self._turn = threading.Lock()
        self._state = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job[object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._late: _Job[object] | None = None
        self._silent_until = float("-inf")

    @property
    def is_stuck(self) -> bool:
        """The disk has not answered yet, and may never do."""
        return self._late is not None

    def call(self, work: Callable[[], T], on_late: Callable[[], None] = lambda: None) -> T:
        """Return what `work` returns, or raise what it raises.

        Args:
            work: asks the disk.
            on_late: called in the reader's thread if `work` returns after nobody waits any more.

        Raises:
            TimeoutError: the disk does not answer, or has not lately.
        """
        if not self._timeout_s or not self._has_thread():
            return work()
        if self._late is not None or self._timer() < self._silent_until or not self._turn.acquire(timeout=self._timeout_s):
            raise _silence()
        try:
            job = _Job(work, on_late)
            self._jobs.put(job)  # type: ignore[arg-type]  # only this method looks at the result
            if not job.done.acquire(timeout=self._timeout_s):
                with self._state:
                    if not job.done.acquire(blocking=False):
                        job.is_late = True
                        self._late = job  # type: ignore[assignment]
                        self._silent_until = self._timer() + self._retry_s
                        raise _silence()
        finally:
            self._turn.release()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread once it is back."""
        self._jobs.put(None)

    def _has_thread(self) -> bool:
        if self._thread is None:
            with self._state:
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="edge-kv-read", daemon=True)
                    try:
                        thread.start()
                    except (RuntimeError, MemoryError):  # too many threads: the caller waits as long as it takes
                        return False
                    self._thread = thread
        return True

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._do(job)
            job = None  # its result may be large

    def _do(self, job: _Job[object]) -> None:
        try:
            job.result = job.work()
        except BaseException as error:  # noqa: BLE001 (raised in the caller's thread)
            job.error = error
        with self._state:
            job.done.release()
            if self._late is job:
                self._late = None
        if job.is_late and job.error is None:
            job.on_late()


def _silence() -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
