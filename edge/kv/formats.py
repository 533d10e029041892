"""Formats of blocks and index, and what other versions of edge have stored in the same directory.

    blocks, live, tmp, uses, index-000001.sqlite                            blocks of version 1, index of version 1
    blocks-2.1, live-2.1, tmp-2.1, uses-2.1, index-2.1-000001.sqlite        blocks of version 2, index of version 1

A version of edge reads and changes only the names of its own format. Blocks of the others count against the budget and are
evicted before its own; nobody can tell how useful those are.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from os import DirEntry, scandir
from pathlib import Path

from edge.files import try_lock
from edge.kv import blocks, index
from edge.kv.entries import kind_of_entry, opened
from edge.kv.index import remove_index
from edge.kv.rows import disk_bytes

__all__ = ["OtherFormats", "format_suffix"]

_FIRST = (1, 1)
_COUNT_EVERY_S = 600.0
_BLOCKS = re.compile(r"blocks((?:-\d{1,4}\.\d{1,4})?)")
_SHARD = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(r"[0-9a-f]{62}")
_LIVE = re.compile(r"[0-9a-f]{16}")


def format_suffix() -> str:
    """Return the end of the names of this version's format; "" for the first one."""
    version = blocks.FORMAT_VERSION, index.SCHEMA_VERSION
    return "" if version == _FIRST else f"-{version[0]}.{version[1]}"


class OtherFormats:
    """Blocks of other formats in a directory.

    Args:
        directory: of the store.
        suffix: of the own format.

    Attributes:
        size_bytes: disk space that they took when `count` last looked.

    Raises:
        OSError: from `evict` and `clear`: a file cannot be deleted.
    """

    def __init__(self, directory: Path, suffix: str) -> None:
        self._directory, self._suffix = directory, suffix
        self._counted_at = float("-inf")
        self.size_bytes = 0

    def count(self, now: float) -> None:
        """Look how much they take, at most every ten minutes: another version may be running."""
        if now - self._counted_at >= _COUNT_EVERY_S:
            self._counted_at = now
            self.size_bytes = sum(_size(file) for suffix in self._suffixes() for file in self._files(suffix))

    def evict(self, n_bytes: int) -> int:
        """Delete blocks, in no order, until so many bytes of disk are free, and return how many are."""
        freed = 0
        for suffix in self._suffixes() if self.size_bytes else ():
            for file in self._files(suffix):
                if freed >= n_bytes:
                    return freed
                size = _size(file)
                Path(file.path).unlink(missing_ok=True)
                freed += size
                self.size_bytes = max(0, self.size_bytes - size)
            if not self._is_in_use(suffix):
                self._remove_rest(suffix)
        return freed

    def clear(self) -> int:
        """Delete all of their blocks, except of formats in use by a running process, and return how many those were."""
        n_blocks = 0
        for suffix in self._suffixes():
            if not self._is_in_use(suffix):
                for file in self._files(suffix):
                    Path(file.path).unlink(missing_ok=True)
                    n_blocks += 1
                self._remove_rest(suffix)
        self._counted_at = float("-inf")
        return n_blocks

    def _suffixes(self) -> list[str]:
        found = (_BLOCKS.fullmatch(entry.name) for entry in _entries(self._directory))
        suffixes = sorted(name[1] for name in found if name is not None and name[1] != self._suffix)
        return [suffix for suffix in suffixes if kind_of_entry(self._directory / f"blocks{suffix}") == stat.S_IFDIR]

    def _files(self, suffix: str) -> Iterator[DirEntry[str]]:
        for shard in _entries(self._directory / f"blocks{suffix}"):
            if _SHARD.fullmatch(shard.name) and shard.is_dir(follow_symlinks=False):
                for file in _entries(shard.path):
                    if _NAME.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                        yield file

    def _is_in_use(self, suffix: str) -> bool:
        live = self._directory / f"live{suffix}"
        for entry in _entries(live) if kind_of_entry(live) == stat.S_IFDIR else ():
            if _LIVE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with opened(entry.path, os.O_RDWR) as fd:
                    if not try_lock(fd):
                        return True
        return False

    def _remove_rest(self, suffix: str) -> None:
        """Remove the index of a format without blocks. A process that has it open makes a new one."""
        pattern = re.compile(rf"index{re.escape(suffix)}-\d{{6,12}}\.sqlite")
        for entry in _entries(self._directory):
            if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                remove_index(Path(entry.path))
        path = self._directory / f"uses{suffix}"
        if kind_of_entry(path) == stat.S_IFREG:
            path.unlink(missing_ok=True)


def _entries(path: Path | str) -> list[DirEntry[str]]:
    try:
        return list(scandir(path))
    except OSError:  # it is gone, or not ours to read
        return []


def _size(file: DirEntry[str]) -> int:
    try:
        return disk_bytes(file.stat(follow_symlinks=False).st_size)
    except FileNotFoundError:  # its own version evicted it just now
        return 0
