"""Reads files in a child process, within time and memory: a file that is too much for a parser costs that file only."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec

from edge.child import Child, Ended, python_command
from edge.documents.db import path_key
from edge.documents.reader_child import Answer, Question
from edge.errors import BackendUnavailableError
from edge.units import duration_text, size_text

__all__ = ["FileReader"]

TIMEOUT_S = 60.0
MEMORY_BYTES = 2 << 30
_POLL_S = 0.05
_MOST_WAITING = 5


class FileReader:
    """A child process that reads one file after the other, started when the first is read. Use it in a `with` block.

    Args:
        timeout_s: longest processor time for one file, in seconds; five times as long on the clock.
        memory_bytes: most memory of the process.
    """

    def __init__(self, *, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._timeout_s, self._memory_bytes = timeout_s, memory_bytes
        self._child: Child | None = None

    def read(self, path: Path, kind: str) -> Answer:
        """Return the blocks of a file, or why it has none.

        Args:
            path: absolute.
            kind: of `edge.documents.readers.KINDS`.

        Raises:
            BackendUnavailableError: no child process can be started.
        """
        child = self._child or self._start()
        question = msgspec.msgpack.encode(Question(path_key(path), kind)).hex().encode("ascii")
        with _Watch(child, self._timeout_s, self._memory_bytes) as watch:
            line = child.ask(question)
        if line.endswith(b"\n"):
            answer = msgspec.json.decode(line, type=Answer)
            if answer.is_last:
                self.close()
            return answer
        ended = child.wait()
        self.close()
        return Answer(refused=watch.verdict or _crash(ended))

    def close(self) -> None:
        """End the process. May be called twice."""
        child, self._child = self._child, None
        if child is not None:
            child.close(0.0)

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _start(self) -> Child:
        try:
            self._child = Child(python_command("edge.documents.reader_child:main", str(self._memory_bytes)))
        except OSError as error:
            raise BackendUnavailableError(
                f"The process that reads files cannot be started: {error.strerror or error}.",
                "Close other programs, and try again.",
            ) from error
        return self._child


class _Watch:
    """Kills a child that takes too long or too much. `verdict` says which, "" if it did neither."""

    def __init__(self, child: Child, timeout_s: float, memory_bytes: int) -> None:
        self._child, self._timeout_s, self._memory_bytes = child, timeout_s, memory_bytes
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="edge-read-watch", daemon=True)
        self.verdict = ""

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        # Processor time, so that what is refused does not depend on what else runs.
        latest = self._child.cpu_s + self._timeout_s
        deadline = time.monotonic() + _MOST_WAITING * self._timeout_s
        while not self._is_over.wait(_POLL_S):
            if time.monotonic() > deadline or self._child.cpu_s > latest:
                self.verdict = f"reading it takes longer than {duration_text(self._timeout_s)}"
            elif self._child.memory_bytes > self._memory_bytes:
                self.verdict = f"reading it takes more than {size_text(self._memory_bytes)} of memory"
            if self.verdict:
                self._child.stop()
                return


def _crash(ended: Ended) -> str:
    return f"its parser {ended.reason}"
