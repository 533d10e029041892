"""Entries of a store's directory, links not followed: kinds, permissions, whole files."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import shutil
import sqlite3
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import StorageError

__all__ = [
    "CAREFUL", "check_owner", "is_full", "is_no_room", "is_trace", "is_transient", "kind_of_entry", "make_inside",
    "make_private", "make_shard", "opened", "regular_size", "set_aside", "write_file",
]  # fmt: skip

_log = logging.getLogger("edge.kv")
_WRITE_BYTES = 1 << 20
_OPENING_BYTES = 8 << 20
"""Room for the log of an index and the memory that processes share over it."""
_OPENING_FILES = 16
"""Files that opening a store creates, with some to spare."""
# No symbolic links, no waiting for the other end of a pipe, nothing inherited by child processes.
CAREFUL = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK"))


def is_transient(error: OSError) -> bool:
    """Return whether a read failed for lack of memory or file descriptors, which says nothing about the file."""
    return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EINTR)


def set_aside(path: Path) -> None:
    """Rename an entry that should be another kind of file, and does not belong to the store: nothing in it is lost."""
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        aside = path.rename(path.with_name(f"{path.name}.aside-{secrets.token_hex(4)}"))
        _log.warning("%s is not of the KV store: it was renamed to %s", path, aside.name)


def is_no_room(error: BaseException) -> bool:
    """Return whether a write failed since the disk, the user's quota or the number of files is used up."""
    if isinstance(error, sqlite3.Error):
        return "disk is full" in str(error)
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def is_full(directory: Path, n_bytes: int = _OPENING_BYTES) -> bool:
    """Return whether there is no room for opening an index: on the disk, within a quota, or for more files.

    Args:
        directory: of the store.
        n_bytes: room for something else instead.
    """
    try:
        if shutil.disk_usage(directory).free < n_bytes:
            return True
        state = os.statvfs(directory) if hasattr(os, "statvfs") else None
        # f_files is 0 where nothing limits their number.
        if state is not None and state.f_files > 0 and state.f_favail < _OPENING_FILES:
            return True
        _try_to_write(directory, n_bytes)
    except OSError as error:
        return is_no_room(error)
    return False


def _try_to_write(directory: Path, n_bytes: int) -> None:
    """Take room, and some files, and give them back: what a quota leaves cannot be asked."""
    paths = [directory / f"room-{secrets.token_hex(8)}" for _ in range(_OPENING_FILES)]
    try:
        for path in paths:
            with opened(path, os.O_CREAT | os.O_EXCL | os.O_RDWR) as fd:
                if path == paths[0] and hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(fd, 0, n_bytes)
    finally:
        for path in paths:
            path.unlink(missing_ok=True)


@contextmanager
def opened(path: Path | str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | CAREFUL, 0o600)
    try:
        yield fd
    finally:
        os.close(fd)


def write_file(path: Path, pieces: Iterable[bytes], *, sync: bool) -> None:
    with opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view[:_WRITE_BYTES]) :]
        if sync:
            os.fsync(fd)


def regular_size(fd: int) -> int:
    state = os.fstat(fd)
    if not stat.S_ISREG(state.st_mode):
        raise OSError("it is not a regular file")
    return state.st_size


def make_private(path: Path) -> None:
    """Create a directory that only its owner may enter, or make an existing one private.

    Raises:
        StorageError: it belongs to another user, or there is something else.
        OSError: it cannot be created.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = path.stat()
    except (FileExistsError, NotADirectoryError):
        raise StorageError(
            f"The KV cache needs the directory {path}, and there is something else at that path.",
            "Move that away, or set EDGE_CACHE_DIR to another directory.",
        ) from None
    check_owner(path, state)
    if state.st_mode & 0o077:
        path.chmod(0o700)


def make_inside(path: Path) -> None:
    """Make a private directory of a store. What is no directory there is set aside, except a link.

    Raises:
        StorageError: it is a link, or belongs to another user.
        OSError: it cannot be created.
    """
    kind = kind_of_entry(path)
    if kind == stat.S_IFLNK:
        raise StorageError(
            f"{path} is a link, and the KV cache neither follows nor removes links.",
            "Remove the link. To keep the cache on another disk, set EDGE_CACHE_DIR.",
        )
    if kind not in (None, stat.S_IFDIR):
        set_aside(path)
    make_private(path)


def make_shard(path: Path) -> None:
    if kind_of_entry(path) not in (None, stat.S_IFDIR):
        set_aside(path)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def kind_of_entry(path: Path) -> int | None:
    """Return the type of a directory entry, links not followed; None if there is none."""
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_trace(path: Path) -> bool:
    """Return whether an entry of live/ can be one of ours, which are empty files."""
    try:
        state = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(state.st_mode) and state.st_size == 0


def check_owner(path: Path, state: os.stat_result) -> None:
    if hasattr(os, "geteuid") and state.st_uid != os.geteuid():
        raise StorageError(
            f"{path} belongs to another user, who could read or change its content.",
            "Set EDGE_CACHE_DIR to a directory of yours.",
        )
