"""The standard streams of the process, whatever they are: closed, full, without a reader, or not ready.

A failure of stdout is an error with a sentence, a failure of stderr changes nothing: the exit code says what happened.
"""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from edge.errors import StorageError, UsageError
from edge_cli.ascii import ERRORS

if TYPE_CHECKING:
    from typing_extensions import Buffer as ReadableBuffer

__all__ = ["OutputClosedError", "prepare", "read_bytes", "read_stdin", "stdout_failure"]

_CHUNK_BYTES = 1 << 20


class OutputClosedError(Exception):
    """The reader of stdout has left (`| head`): not an error, but the end of the work."""


def prepare() -> None:
    """Make stdout and stderr safe to write to for everybody, click and libraries included."""
    if os.name == "posix":
        _fill_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
    sys.stdout = _Output(sys.stdout)
    sys.stderr = _Notes(sys.stderr)


def _fill_descriptors() -> None:
    """Open the null device where a standard stream is closed: the next file would get its number, and what is printed."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free


def stdout_failure(error: Exception) -> Exception:
    """Return what to raise where stdout could not be written.

    Args:
        error: OSError, ValueError (closed) or AttributeError (there is none).
    """
    if isinstance(error, BrokenPipeError):
        return OutputClosedError()
    why = error.strerror if isinstance(error, OSError) and error.strerror else "it is closed"
    return StorageError(f"stdout cannot be written: {why}.", "Send the output somewhere else, or make room there.")


class _Output(io.TextIOBase):
    """A text stream that is written at once and to the end, also where the other end is slow (non-blocking)."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def buffer(self) -> _Bytes:
        """The stream for bytes, which click writes for the shell's completion."""
        return _Bytes(self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding if self._stream is not None else "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors if self._stream is not None else ERRORS

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        """Do nothing: every text is written at once."""

    def write(self, text: str) -> int:
        """Write a text.

        Raises:
            OutputClosedError, StorageError: see `stdout_failure`.
        """
        if os.name != "posix":
            text = text.replace("\n", os.linesep)
        self.write_bytes(text.encode(self.encoding, self.errors or "strict"))
        return len(text)

    def write_bytes(self, data: bytes) -> None:
        """Write all of the data. Raises as `write` does."""
        left = memoryview(data)
        try:
            while left:
                try:
                    left = left[os.write(self.fileno(), left) :]
                except BlockingIOError:
                    select.select([], [self], [])
        except (OSError, ValueError) as error:
            raise stdout_failure(error) from None


class _Notes(_Output):
    """The same for stderr: what cannot be written is dropped, since there is no other place for it."""

    def write_bytes(self, data: bytes) -> None:
        """Write the data if possible."""
        try:
            super().write_bytes(data)
        except (StorageError, OutputClosedError):
            pass


class _Bytes(io.RawIOBase):
    """Bytes for one of the streams above."""

    def __init__(self, stream: _Output) -> None:
        self._text = stream

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        self._text.write_bytes(bytes(data))
        return len(bytes(data))


def read_stdin(limit: int) -> bytes:
    """Read stdin, which a person named with "-", to its end, but not more than `limit` bytes.

    Raises:
        UsageError: the process was started without it (`<&-`), or it cannot be read.
    """
    hint = "Pipe something into the command, for example: cat notes.txt | edge run -f - Summarise"
    if sys.stdin is None:
        raise UsageError("stdin is closed, so there is nothing to read where the command says -.", hint)
    try:
        return read_bytes(sys.stdin, limit)
    except OSError as error:
        raise UsageError(f"stdin cannot be read: {error.strerror}.", hint) from error


def read_bytes(stream: TextIO | None, limit: int) -> bytes:
    """Read a stream to its end, but not more than `limit` bytes. Wait where it is not ready (non-blocking).

    A stream that the process was started without (`<&-`) is empty.

    Raises:
        OSError: it cannot be read.
    """
    if stream is None:
        return b""
    source = getattr(stream.buffer, "raw", stream.buffer)
    parts: list[bytes] = []
    n_left = limit
    while n_left > 0:
        part = source.read(min(n_left, _CHUNK_BYTES))
        if part is None:
            select.select([stream], [], [])
            continue
        if not part:
            break
        parts.append(part)
        n_left -= len(part)
    return b"".join(parts)
