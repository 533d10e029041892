"""SHA-256 of large files, remembered, so that a model is read through once and not at every start.

A remembered hash counts as long as the file's size, time of change and inode are those it had. That finds every change made
through the file system; it does not find bits that rot on the disk, for which `edge models show --verify` reads again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from edge.errors import ModelFileError, StorageError
from edge.files import write_private

__all__ = ["CHUNK_BYTES", "file_sha256", "files_sha256", "join_sha256"]

CHUNK_BYTES = 1 << 20
_FILE = "hashes.json"
_MAX_BYTES = 4 << 20
_MAX_ENTRIES = 1000


def file_sha256(
    path: Path, *, cache_dir: Path | None = None, fresh: bool = False, on_bytes: Callable[[int], None] | None = None
) -> str:
    """The SHA-256 of a file, in hexadecimal.

    Args:
        path: the file.
        cache_dir: where hashes are remembered; None reads the file every time.
        fresh: read the file even if its hash is remembered.
        on_bytes: called with the number of bytes read so far; not called when the hash was remembered.

    Raises:
        ModelFileError: the file cannot be read.
    """
    try:
        real = path.resolve()
        state = real.stat()
        stamp = [state.st_size, state.st_mtime_ns, state.st_ino]
        known = _load(cache_dir) if cache_dir and not fresh else {}
        entry = known.get(str(real))
        if entry is not None and entry[:3] == stamp:
            return str(entry[3])
        digest = _read(real, on_bytes)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.", "Check its permissions and the disk.") from error
    if cache_dir:
        _remember(cache_dir, str(real), [*stamp, digest])
    return digest


def files_sha256(paths: Sequence[Path], *, cache_dir: Path | None = None, fresh: bool = False) -> str:
    """One SHA-256 for several files; that of the file where it is only one. Their names and order count.

    Args:
        paths: at least one.
        cache_dir, fresh: as for `file_sha256`.

    Raises:
        ModelFileError: a file cannot be read.
    """
    return join_sha256([(path.name, file_sha256(path, cache_dir=cache_dir, fresh=fresh)) for path in paths])


def join_sha256(digests: Sequence[tuple[str, str]]) -> str:
    """What `files_sha256` gives for files whose names and SHA-256 are known."""
    if len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in digests).encode()).hexdigest()


def _read(path: Path, on_bytes: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if on_bytes:
                on_bytes(done)
    return digest.hexdigest()


def _load(cache_dir: Path) -> dict[str, list[int | str]]:
    """What is remembered. A file that is missing or damaged is no error: it only saves time."""
    try:
        with (cache_dir / _FILE).open("rb") as file:
            known = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {path: entry for path, entry in known.items() if isinstance(entry, list) and len(entry) == 4}


def _remember(cache_dir: Path, path: str, entry: list[int | str]) -> None:
    known = _load(cache_dir)
    known.pop(path, None)
    known[path] = entry
    while len(known) > _MAX_ENTRIES:
        known.pop(next(iter(known)))
    try:
        write_private(cache_dir / _FILE, json.dumps(known).encode())
    except StorageError:
        # A read-only or full cache costs time at the next start, nothing else.
        pass
