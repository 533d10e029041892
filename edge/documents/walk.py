"""Which files are below the given paths, and why others are not read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from edge.documents.base import Skipped
from edge.documents.readers import kind_of_file, largest_bytes
from edge.units import reason, size_text

__all__ = ["Found", "Known", "walk"]

_LEFT_OUT = frozenset({"node_modules", "__pycache__", "venv"})
"""Folders that hold what programs installed or made. Hidden files and folders are left out, too."""
_SNIFFED_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """A file that can be read.

    Attributes:
        path: absolute.
        kind: of its format; see `edge.documents.readers`.
        size: in bytes; mtime, in nanoseconds.
    """

    path: Path
    kind: str
    size: int
    mtime: int


Known = Mapping[Path, tuple[int, int, str]]
"""Path -> (size, time, kind) of files that were looked at before."""


def walk(paths: Iterable[Path], known: Known = MappingProxyType({})) -> Iterator[Found | Skipped]:
    """Yield the files that paths name or that are below them, each once, and what cannot be read, by name.

    Links to files are followed, links to folders are not, so that no file is met for ever. Hidden files, and folders such as
    node_modules, are passed over in silence unless they are named themselves.

    Args:
        paths: absolute.
        known: files that need not be opened to see what they are, as long as size and time are the same.
    """
    seen: set[Path] = set()
    for path in paths:
        for found in _below(path, known):
            if found.path not in seen:
                seen.add(found.path)
                yield found


def _below(path: Path, known: Known) -> Iterator[Found | Skipped]:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        yield Skipped(path, _why_not(path, error))
        return
    if not stat.S_ISDIR(status.st_mode):
        yield _looked_at(path, status, known)
        return
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            yield Skipped(folder, f"the folder cannot be listed: {reason(error)}")
            continue
        inside: list[Path] = []
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _LEFT_OUT:
                continue
            if entry.is_dir(follow_symlinks=False):
                inside.append(Path(entry.path))
            else:
                yield _entry(entry, known)
        waiting.extend(reversed(inside))


def _entry(entry: os.DirEntry[str], known: Known) -> Found | Skipped:
    path = Path(entry.path)
    try:
        if entry.is_symlink() and entry.is_dir():
            return Skipped(path, "it is a link to a folder; add that folder itself")
        return _looked_at(path, entry.stat(), known)
    except OSError as error:
        return Skipped(path, _why_not(path, error))


def _looked_at(path: Path, status: os.stat_result, known: Known) -> Found | Skipped:
    if not stat.S_ISREG(status.st_mode):
        return Skipped(path, "it is not a file (a device, socket or pipe)")
    if not status.st_size:
        return Skipped(path, "it is empty")
    before = known.get(path)
    if before is not None and before[:2] == (status.st_size, status.st_mtime_ns):
        return Found(path, before[2], status.st_size, status.st_mtime_ns)
    try:
        kind = kind_of_file(path, _beginning(path))
    except OSError as error:
        return Skipped(path, _why_not(path, error))
    if kind.startswith("it "):
        return Skipped(path, kind)
    most = largest_bytes(kind)
    if status.st_size > most:
        return Skipped(path, f"it has {size_text(status.st_size)}, and files of this kind may have {size_text(most)}")
    return Found(path, kind, status.st_size, status.st_mtime_ns)


def _beginning(path: Path) -> bytes:
    from edge.files import open_file

    with open_file(path) as file:
        return file.read(_SNIFFED_BYTES)


def _why_not(path: Path, error: OSError | ValueError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is a link to a file that is missing" if path.is_symlink() else "it is missing"
    return f"it cannot be opened: {reason(error)}"
