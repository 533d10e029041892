"""The input history, across sessions: Up and Down in the composer go through it.

One JSON string a line, newest last, in a private file that several chats may append to at once. It is locked for every access
and changed in place: replacing it would lose what others append to the old file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from edge.errors import StorageError
from edge.files import check_replaceable, lock_file

__all__ = ["HISTORY_FILE", "MAX_ENTRIES", "PromptHistory"]

HISTORY_FILE = "chat-history.jsonl"
"""In the data directory."""

MAX_ENTRIES = 1000
_MAX_ENTRY_CHARS = 20_000  # longer inputs would make the file slow to read


class PromptHistory:
    """Earlier inputs, and the position of Up and Down in them. Without a path the history is kept in memory only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._entries: list[str] = []
        self._position = 0
        self._unsent = ""

    @property
    def newest_first(self) -> list[str]:
        """Return the inputs, the newest first."""
        return self._entries[::-1]

    def load(self) -> None:
        """Read the file, and skip malformed lines.

        Raises:
            StorageError: it exists but cannot be read.
        """
        if self._path is None or not self._path.exists():
            return
        with self._locked("read") as file:
            lines = _lines(file)
        loaded = [entry for line in lines if (entry := _parse(line)) is not None]
        self._entries = (loaded + self._entries)[-MAX_ENTRIES:]
        self.reset()
        if len(lines) > 2 * MAX_ENTRIES:
            self._rewrite(lambda entries: entries[-MAX_ENTRIES:])

    def add(self, text: str) -> None:
        """Add an input, unless it repeats the newest one.

        Raises:
            StorageError: it cannot be written; the history of this session has it all the same.
        """
        text = text.strip()
        is_new = bool(text) and len(text) <= _MAX_ENTRY_CHARS and (not self._entries or self._entries[-1] != text)
        if is_new:
            self._entries.append(text)
            del self._entries[:-MAX_ENTRIES]
        self.reset()
        if is_new and self._path is not None:
            with self._locked("written") as file:
                file.write(json.dumps(text).encode() + b"\n")

    def forget(self, texts: Collection[str]) -> None:
        """Remove inputs, as when their conversation is deleted.

        Raises:
            StorageError: the file cannot be changed; the history of this session has lost them all the same.
        """
        unwanted = {text.strip() for text in texts}
        unwanted |= {f"/{text}" for text in unwanted if text.startswith("/")}  # a message "/x" is typed as "//x"
        self._entries = [entry for entry in self._entries if entry not in unwanted]
        self.reset()
        self._rewrite(lambda entries: [entry for entry in entries if entry not in unwanted])

    def previous(self, current: str) -> str | None:
        """Return the next older entry that differs from `current`, which is kept; None at the oldest."""
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
        """Return the next newer entry, at the end the unsent text; None when already there."""
        if self._position >= len(self._entries):
            return None
        self._position += 1
        return self._unsent if self._position == len(self._entries) else self._entries[self._position]

    def reset(self) -> None:
        """Go back to the newest end, as after sending."""
        self._position = len(self._entries)
        self._unsent = ""

    def _rewrite(self, change: Callable[[list[str]], list[str]]) -> None:
        """Change the entries of the file, including those that other chats have appended."""
        if self._path is None or not self._path.exists():
            return
        with self._locked("changed") as file:
            entries = [entry for line in _lines(file) if (entry := _parse(line)) is not None]
            kept = change(entries)
            if kept != entries:
                file.truncate(0)  # the file is open for appending, so this writes from its start
                file.write("".join(json.dumps(entry) + "\n" for entry in kept).encode())

    @contextmanager
    def _locked(self, what: str) -> Iterator[BinaryIO]:
        """Open and lock the file. `what` is the verb for the error."""
        assert self._path is not None
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            check_replaceable(self._path)
            with lock_file(self._path), self._path.open("a+b") as file:
                file.seek(0)
                yield file
        except OSError as error:
            raise StorageError(f"The input history cannot be {what} ({error}).", f"Check {self._path}.") from error


def _lines(file: BinaryIO) -> list[str]:
    return file.read().decode("utf-8", errors="replace").splitlines()


def _parse(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, str) and entry else None
