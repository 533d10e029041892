"""Files with a JSON value a line: those that are worked through, and the results, which survive the end of the process."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge.errors import StorageError, UsageError
from edge.files import open_file, sync_folder, try_lock
from edge_cli.streams import read_stdin

__all__ = ["Journal", "Lines"]

MAX_LINE_BYTES = 8 << 20
MAX_STDIN_BYTES = 1 << 30


class Lines:
    """The lines of a file that are not blank, counted first; "-" is stdin.

    Raises:
        UsageError: it cannot be read, or a line is longer than 8 MiB.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data = read_stdin(MAX_STDIN_BYTES + 1) if str(path) == "-" else None
        if self._data is not None and len(self._data) > MAX_STDIN_BYTES:
            raise UsageError("stdin is longer than 1 GiB.", "Write it to a file, and name that.")
        self._n = sum(1 for _ in self)

    def __len__(self) -> int:
        return self._n

    def __iter__(self) -> Generator[tuple[int, bytes], None, None]:
        """Yield the number of each line, from 1 up, and its bytes."""
        try:
            with open_file(self._path) if self._data is None else io.BytesIO(self._data) as file:
                number = 0
                while line := file.readline(MAX_LINE_BYTES + 1):
                    number += 1
                    if len(line) > MAX_LINE_BYTES:
                        raise UsageError(
                            f"Line {number:,} of {self._path} is longer than 8 MiB.", "Is it a file of JSON lines?"
                        )
                    line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                    if line.strip():
                        yield number, line.strip()
        except OSError as error:
            raise UsageError(f"{self._path} cannot be read: {error.strerror}.", "Check the path.") from error


class Journal:
    """A file of results that only grows, a line at a time, each on the disk before the next. Use it in a `with` block.

    What a process that was killed left unfinished at the end is dropped when it is opened.

    Args:
        path: the file; it is made if it is missing.
        fresh: begin without what it has.

    Raises:
        StorageError: it cannot be read or written, or has a line that is not JSON.
        UsageError: another process writes it now.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        self.path = Path(os.path.realpath(path))
        self._places: list[tuple[int, int]] = []  # of each line: where it begins, and its bytes
        with self._telling():
            is_new = not self.path.exists()
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o666)
            try:
                with contextlib.suppress(OSError):  # this file system has no locks
                    if not try_lock(self._file):
                        raise UsageError(f"Another process writes {path} now.", "Wait for it, or name another file.")
                if fresh:
                    os.ftruncate(self._file, 0)
                self._find_lines()
                if is_new:
                    sync_folder(self.path.parent)
            except BaseException:
                os.close(self._file)
                raise

    def _find_lines(self) -> None:
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._places.append((end, len(line)))
                end += len(line)
        os.ftruncate(self._file, end)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Any]:
        """Yield the value of each line."""
        for number in range(len(self._places)):
            yield self[number]

    def __getitem__(self, number: int) -> Any:
        """Return the value of a line.

        Raises:
            StorageError: it is not JSON, or cannot be read.
        """
        try:
            return msgspec.json.decode(self._read(number))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            n = range(1, len(self) + 1)[number]
            hint = "Name another file, or move this one away."
            raise StorageError(f"Line {n:,} of {self.path} is not JSON, so it is not a file of results.", hint) from None

    def _read(self, number: int) -> bytes:
        begin, size = self._places[number]
        with self._telling(), os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(begin)
            return file.read(size)

    def append(self, line: bytes) -> None:
        """Add a line, with its end, and wait until it is on the disk."""
        begin = sum(self._places[-1]) if self._places else 0
        with self._telling():
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
            os.fsync(self._file)
        self._places.append((begin, len(line)))

    def reorder(self, numbers: Iterable[int]) -> None:
        """Write the lines in another order, all at once: a process that is killed leaves the one or the other."""
        numbers = list(numbers)
        if numbers == list(range(len(self))):
            return
        part = self.path.with_name(f".{self.path.name}.part")
        with self._telling():
            with part.open("wb") as file:
                for number in numbers:
                    file.write(self._read(number))
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
            sync_folder(self.path.parent)

    def remove(self) -> None:
        """Remove the file."""
        with self._telling():
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._file)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"{self.path} cannot be written: {error.strerror}.", "Choose another place.") from error
