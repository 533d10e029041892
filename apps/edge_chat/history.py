"""What was sent before, across sessions: Up and Down in the composer walk through it.

One JSON string a line, newest last, in a private file that several chats append to at once. Whoever touches the file locks it,
and it is always changed in place: a file put in its place would lose what others append to the old one.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edge.errors import StorageError

__all__ = ["MAX_ENTRIES", "PromptHistory"]

MAX_ENTRIES = 1000
_MAX_ENTRY_CHARS = 20_000  # longer texts are attachments in spirit; keeping them would make the file slow to read


class PromptHistory:
    """Earlier inputs, and where Up and Down have got to.

    Args:
        path: the file; None keeps the history in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: list[str] = []
        self._position = 0
        self._unsent = ""

    def load(self) -> None:
        """Read the file. Lines that are not ours are skipped: a history is a convenience, not a record.

        Raises:
            StorageError: it is there and cannot be read.
        """
        if self._path is None:
            return
        try:
            with self._path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                lines = _lines(file)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"The input history cannot be read ({error}).", f"Check {self._path}.") from error
        loaded = [entry for line in lines if (entry := _parse(line)) is not None]
        self._entries = (loaded + self._entries)[-MAX_ENTRIES:]
        self.reset()
        if len(lines) > 2 * MAX_ENTRIES:
            self._rewrite(lambda entries: entries[-MAX_ENTRIES:])

    def add(self, text: str) -> None:
        """Remember an input, unless it repeats the newest one.

        Raises:
            StorageError: it cannot be written; it is remembered for this session all the same.
        """
        text = text.strip()
        is_new = bool(text) and len(text) <= _MAX_ENTRY_CHARS and (not self._entries or self._entries[-1] != text)
        if is_new:
            self._entries.append(text)
            del self._entries[:-MAX_ENTRIES]
        self.reset()
        if is_new and self._path is not None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with self._locked() as file:
                    file.write(json.dumps(text).encode() + b"\n")
            except OSError as error:
                raise StorageError(f"The input history cannot be written ({error}).", f"Check {self._path}.") from error

    def forget(self, texts: Collection[str]) -> None:
        """Drop inputs, here and in the file, as when the conversation that they belong to is deleted.

        Raises:
            StorageError: the file cannot be changed; they are forgotten for this session all the same.
        """
        unwanted = {text.strip() for text in texts}
        unwanted |= {f"/{text}" for text in unwanted if text.startswith("/")}  # a message "/x" is typed as "//x"
        self._entries = [entry for entry in self._entries if entry not in unwanted]
        self.reset()
        self._rewrite(lambda entries: [entry for entry in entries if entry not in unwanted])

    def previous(self, current: str) -> str | None:
        """The next older entry that differs from `current`; None at the oldest. What was being typed is kept."""
        if self._position == len(self._entries):
            self._unsent = current
        position = self._position
        while position > 0:
            position -= 1
            if self._entries[position] != current:
                self._position = position
                return self._entries[position]
        return None

    def next(self) -> str | None:
        """The next newer entry, at last what was being typed; None when already there."""
        if self._position >= len(self._entries):
            return None
        self._position += 1
        return self._unsent if self._position == len(self._entries) else self._entries[self._position]

    def reset(self) -> None:
        """Go back to the newest end, as after sending."""
        self._position = len(self._entries)
        self._unsent = ""

    def _rewrite(self, change: Callable[[list[str]], list[str]]) -> None:
        """Replace the entries of the file, those that other chats have appended among them."""
        if self._path is None or not self._path.exists():
            return
        try:
            with self._locked() as file:
                entries = [entry for line in _lines(file) if (entry := _parse(line)) is not None]
                kept = change(entries)
                if kept != entries:
                    file.truncate(0)  # what is written to a file that is open for appending goes to its end
                    file.write("".join(json.dumps(entry) + "\n" for entry in kept).encode())
        except OSError as error:
            raise StorageError(f"The input history cannot be changed ({error}).", f"Check {self._path}.") from error

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        assert self._path is not None
        with open(self._path, "a+b", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            yield file
            file.flush()  # before the lock goes, which closing the file gives back


def _lines(file: BinaryIO) -> list[str]:
    return file.read().decode("utf-8", errors="replace").splitlines()


def _parse(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, str) and entry else None
