"""Imports a file of conversations: of edge, of ChatGPT or of llm."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge.conversation.foreign import Export, Found
from edge.conversation.merge import Merged, content_origin
from edge.errors import StorageError, UsageError
from edge.files import open_file
from edge.units import plural, size_text

if TYPE_CHECKING:
    from edge.conversation.store import ConversationStore

__all__ = ["ImportReport", "import_file"]

_BATCH = 50
"""Conversations of one transaction: other programs may write in between."""

_MAX_PROBLEMS = 50


@dataclass(slots=True)
class ImportReport:
    """The outcome for a file.

    Attributes:
        added: conversations that are new here.
        grown: those that were here, and have new messages.
        known: those that were here, without anything new.
        problems: sentences about what could not be read.
    """

    added: list[Merged] = field(default_factory=list)
    grown: list[Merged] = field(default_factory=list)
    known: list[Merged] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def found(self) -> list[Merged]:
        """All conversations of the file that are in the store now."""
        return [*self.added, *self.grown, *self.known]

    def summary(self) -> str:
        """Return the outcome in a sentence: "3 conversations imported, 1 has new messages, 2 were here already."."""
        n_messages = sum(one.n_messages for one in self.added)
        parts = [
            f"{plural(len(self.added), 'conversation')} imported ({plural(n_messages, 'message')})" if self.added else "",
            f"{plural(len(self.grown), 'conversation')} updated with new messages" if self.grown else "",
            f"{plural(len(self.known), 'conversation')} here already" if self.known else "",
        ]
        return f"{', '.join(part for part in parts if part) or 'Nothing was imported'}."


def import_file(
    store: ConversationStore, path: Path, *, on_progress: Callable[[int], None] = lambda n_read: None
) -> ImportReport:
    """Add the conversations of a file or folder, each once. What is damaged is reported, and the rest is added.

    Args:
        store: to add them to.
        path: JSON or Markdown of edge, conversations.json of ChatGPT, its ZIP file or the folder in it, logs.db of llm.
        on_progress: called with the number of conversations read so far.

    Raises:
        UsageError: there is no such file.
        StorageError: nothing in it can be imported; the store cannot be written.
    """
    report = ImportReport()
    waiting: list[Export] = []

    def add() -> None:
        for one in store.merge(waiting):
            (report.added if one.is_new else report.grown if one.n_messages else report.known).append(one)
        waiting.clear()
        on_progress(len(report.found))

    for found in _read_until_damage(path):
        if isinstance(found, Export):
            waiting.append(found)
            if len(waiting) >= _BATCH:
                add()
        elif found not in report.problems and len(report.problems) < _MAX_PROBLEMS:
            report.problems.append(found)
    add()
    if not report.found:
        why = " ".join(report.problems[:3]) or f"There is no conversation in {path}."
        raise StorageError(f"Nothing was imported. {why}", "Check that it is the right file, and that it is whole.")
    return report


def _read_until_damage(path: Path) -> Iterator[Found]:
    """Yield what is in a file. If reading ends with an error after something was found, the error is the last thing found."""
    n_found = 0
    try:
        for found in _read(path):
            n_found += 1
            yield found
    except StorageError as error:
        if not n_found:
            raise
        yield str(error)


def _read(path: Path) -> Iterator[Found]:
    """Yield what is in a file, by what it is and not by its name."""
    from edge.conversation import chatgpt

    try:
        if path.is_dir():
            parts = sorted(part for part in path.iterdir() if chatgpt.is_part(part.name) and part.is_file())
            if not parts:
                raise UsageError(f"{path} is a directory without a conversations.json.", "Name a file in it.")
            for part in parts:
                yield from chatgpt.read_data(_bytes(part), part.name)
            return
        if not path.is_file():
            what = f"{path} is not a regular file." if path.exists() else f"There is no file {path}."
            raise UsageError(what, "Check the path.")
        with open_file(path) as file:
            start = file.read(4096)
        if start.startswith(b"SQLite format 3\0"):
            from edge.conversation.llm_log import read_log

            yield from read_log(path)
        elif start.startswith(b"PK\x03\x04"):
            yield from chatgpt.read_zip(path)
        else:
            yield from _read_text(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror or error}.", "Check its owner and the disk.") from error
    except ValueError as error:  # a NUL in the path
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{str(path)!r} cannot be a path: {error}.", "Check the path.") from error


def _read_text(path: Path) -> Iterator[Found]:
    from edge.conversation import chatgpt
    from edge.conversation.files import from_json
    from edge.conversation.markdown import from_markdown

    data = _bytes(path)
    start = data[:4096].removeprefix(BOM_UTF8).lstrip()
    if start.startswith(b"[") or (start.startswith(b"{") and b'"edge-conversation"' not in start):
        yield from chatgpt.read_data(data, path.name)
    else:
        data = data.removeprefix(BOM_UTF8)
        yield Export(from_json(data) if start.startswith(b"{") else from_markdown(data), content_origin(data))


def _bytes(path: Path) -> bytes:
    from edge.conversation.chatgpt import MAX_BYTES

    with open_file(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise StorageError(f"{path} is larger than {size_text(MAX_BYTES)}, so it was not read.", "It has no conversations.")
    if b"\0" in data[:4096]:
        raise StorageError(f"{path} is not text, so edge finds no conversations in it.", "Check that it is the right file.")
    return data
