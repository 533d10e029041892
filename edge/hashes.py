"""SHA-256 of large files, remembered, so that a model is hashed once and not at every start.

A remembered hash holds while the stamp of the file stays the same: see `file_stamp`. Bits that rot on the disk leave it as it
is: for those `edge models show --verify` hashes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edge.errors import ModelFileError, StorageError
from edge.files import open_file, read_bytes, write_private

__all__ = ["CHUNK_BYTES", "file_sha256", "file_stamp", "files_sha256", "is_sha256", "join_sha256"]

CHUNK_BYTES = 1 << 20
_FILE = "hashes.json"
_MAX_BYTES = 4 << 20
_MAX_ENTRIES = 1000
_TICK_NS = 20_000_000  # two changes within one tick of the kernel's clock get the same times
_MAX_TRIES = 3
_Entry = list[int | str]  # a stamp, and the SHA-256


def file_stamp(state: os.stat_result) -> list[int]:
    """Return numbers that differ once a file was changed through the file system.

    The time of its content (mtime) can be set, as `cp -p`, `rsync -t` and archives do; the time of its status (ctime) cannot.
    Renames, links and changed permissions also change the latter.

    Returns:
        Size in bytes, mtime in ns, inode, ctime in ns.
    """
    return [state.st_size, state.st_mtime_ns, state.st_ino, state.st_ctime_ns]


def file_sha256(
    path: Path, *, cache_dir: Path | None = None, fresh: bool = False, on_bytes: Callable[[int], None] | None = None
) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Args:
        path: the file.
        cache_dir: where hashes are remembered; None hashes every time.
        fresh: hash the file even if its hash is remembered.
        on_bytes: called with the number of bytes read so far, unless the hash was remembered.

    Raises:
        ModelFileError: the file cannot be read, or was changed meanwhile.
    """
    try:
        real = path.resolve()
        stamp = file_stamp(real.stat())
        known = _load(cache_dir) if cache_dir and not fresh else {}
        entry = known.get(str(real))
        if entry is not None and entry[:-1] == stamp:
            return str(entry[-1])
        digest = ""
        for _ in range(_MAX_TRIES):
            if 0 <= time.time_ns() - stamp[-1] < _TICK_NS:
                time.sleep(_TICK_NS / 1e9)
            before, digest = stamp, _read(real, on_bytes)
            stamp = file_stamp(real.stat())
            if stamp == before:
                break
        else:
            raise ModelFileError(f"{path} changes while it is read.", "Try again when nothing writes to it any more.")
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.", "Check its permissions and the disk.") from error
    if cache_dir:
        _remember(cache_dir, str(real), [*stamp, digest])
    return digest


def files_sha256(paths: Sequence[Path], *, cache_dir: Path | None = None, fresh: bool = False) -> str:
    """Return one SHA-256 for several files, or that of the only file. Their names and order count.

    Args:
        paths: at least one.
        cache_dir, fresh: as for `file_sha256`.

    Raises:
        ModelFileError: a file cannot be read.
    """
    return join_sha256([(path.name, file_sha256(path, cache_dir=cache_dir, fresh=fresh)) for path in paths])


def join_sha256(digests: Sequence[tuple[str, str]]) -> str:
    """Return what `files_sha256` returns for files whose names and SHA-256 are known."""
    if len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in digests).encode()).hexdigest()


def is_sha256(text: str) -> bool:
    """Return True if a text is a SHA-256 in lower-case hexadecimal."""
    return re.fullmatch("[0-9a-f]{64}", text) is not None


def _read(path: Path, on_bytes: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    done = 0
    with open_file(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if on_bytes:
                on_bytes(done)
    return digest.hexdigest()


def _load(cache_dir: Path) -> dict[str, _Entry]:
    """Return the remembered hashes; none if the file is missing or damaged, since it only saves time."""
    try:
        known = json.loads(read_bytes(cache_dir / _FILE, _MAX_BYTES))  # msgspec refuses paths that are not UTF-8
    except (ModelFileError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {path: entry for path, entry in known.items() if isinstance(entry, list) and len(entry) == 5}


def _remember(cache_dir: Path, path: str, entry: _Entry) -> None:
    known = _load(cache_dir)
    known.pop(path, None)
    known[path] = entry
    while len(known) > _MAX_ENTRIES:
        known.pop(next(iter(known)))
    with contextlib.suppress(StorageError):  # a read-only or full cache only costs time at the next start
        write_private(cache_dir / _FILE, json.dumps(known).encode())
