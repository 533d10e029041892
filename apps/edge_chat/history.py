"""What was sent before, across sessions: Up and Down in the composer walk through it.

One JSON string a line, newest last, in a private file that several chats append to at once.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

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
            lines = self._path.read_text("utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StorageError(f"The input history cannot be read ({error}).", f"Check {self._path}.") from error
        loaded = [entry for line in lines if (entry := _parse(line)) is not None]
        self._entries = (loaded + self._entries)[-MAX_ENTRIES:]
        self.reset()
        if len(lines) > 2 * MAX_ENTRIES:
            self._rewrite()

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
                file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                try:
                    os.write(file, json.dumps(text).encode() + b"\n")
                finally:
                    os.close(file)
            except OSError as error:
                raise StorageError(f"The input history cannot be written ({error}).", f"Check {self._path}.") from error

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

    def _rewrite(self) -> None:
        assert self._path is not None
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(file, "w", encoding="utf-8") as writer:
                writer.writelines(json.dumps(entry) + "\n" for entry in self._entries)
            temporary.replace(self._path)
        except OSError as error:
            raise StorageError(f"The input history cannot be trimmed ({error}).", f"Check {self._path}.") from error


def _parse(line: str) -> str | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, str) and entry else None
