"""Opens the directory of a block store: on a full disk, and a second time after failures."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from pathlib import Path

from edge.kv.disk import Disk
from edge.kv.entries import is_full, is_no_room
from edge.kv.files import give_way
from edge.kv.formats import format_suffix
from edge.kv.options import StoreOptions

__all__ = ["close_disk", "lacks_room", "open_disk", "reopen_disk"]

_log = logging.getLogger("edge.kv")


def open_disk(directory: Path, options: StoreOptions, distrusted: Path | None, *, is_again: bool) -> Disk:
    """Open a store. On a full disk, on which no index can be opened, blocks make room for that first.

    Args:
        directory, options, distrusted, is_again: as for `Disk`.

    Raises:
        As `Disk`.
    """
    n = 0
    while True:
        try:
            disk = Disk(directory, options, distrusted, is_again=is_again)
        except (OSError, sqlite3.Error) as error:
            if not lacks_room(directory, error):
                raise
            n_deleted = give_way(directory, format_suffix(), lambda *_: not is_full(directory))
            if not n_deleted:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            n += n_deleted
        else:
            break
    if n:
        _log.warning("The disk is full: %d KV blocks were deleted to open their index", n)
        disk.needs_scan = True
    return disk


def lacks_room(directory: Path, error: BaseException) -> bool:
    """Return whether something failed since the disk, the user's quota or the number of files is used up.

    SQLite does not always say so: it calls a quota a "disk I/O error", and is "unable to open database file" where no more
    files fit.
    """
    is_vague = isinstance(error, sqlite3.OperationalError) and any(part in str(error) for part in ("disk", "unable to open"))
    return is_no_room(error) or (is_vague and is_full(directory))


def reopen_disk(disk: Disk, directory: Path, options: StoreOptions) -> Disk:
    """Open a store a second time and close the first; return that where it is still the better one.

    A missing directory is made again then, and an index that could not be opened for writing is opened again.
    """
    try:
        again = Disk(directory, options, is_again=True)
    except Exception as error:  # noqa: BLE001 (the old one may still read)
        _log.debug("the KV store was not opened again: %s", error)
        return disk
    again.needs_scan = again.needs_scan or disk.needs_scan
    again.n_evicted = disk.n_evicted
    close_disk(disk)
    return again


def close_disk(disk: Disk) -> None:
    """Close a store; a failure is logged only."""
    try:
        disk.close()
    except Exception as error:  # noqa: BLE001 (nothing in a cache ends a chat)
        _log.debug("the KV store was not closed cleanly: %s", error)
