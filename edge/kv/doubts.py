"""Cheap checks of an index that is whole and may still be wrong: edited, restored from a backup, of other files.

`Index.check` reads all of it; these run once after opening, in the thread, before anything is written.
"""

from __future__ import annotations

import secrets
import sqlite3

from edge.kv.disk import Disk
from edge.kv.rows import TOTALS

__all__ = ["check_opened", "check_roots", "wrong_sizes"]


def check_opened(disk: Disk) -> None:
    """Compare the index with itself, its log and some of the files; about 3 us a block.

    Sets `needs_scan` where files and rows differ.

    Raises:
        sqlite3.DatabaseError: it contradicts itself.
        OSError, sqlite3.Error: the disk failed.
    """
    check_roots(disk)
    if disk.needs_scan:
        return  # that does the rest, too
    with disk.index.long_read() as view:
        if view.sql.execute(TOTALS).fetchone() is not None:
            raise sqlite3.DatabaseError("malformed: the totals are wrong")
    first = secrets.randbelow(256)
    disk.needs_scan = _differs(disk) or bool(wrong_sizes(disk, first))
    if not disk.needs_scan:
        disk.heal_uses()


def check_roots(disk: Disk) -> None:
    """Check that fingerprints and namespaces have the roots that follow from them.

    Raises:
        sqlite3.DatabaseError: one has not.
    """
    with disk.index.read() as view:
        for root, model, namespace, encrypted in view.sql.execute("SELECT root, model, namespace, encrypted FROM space"):
            if disk.keys.root(model, namespace, encrypted=bool(encrypted)) != root:
                raise sqlite3.DatabaseError("malformed: a namespace does not match its root")


def wrong_sizes(disk: Disk, first: int) -> list[bytes]:
    """Return the blocks with a first byte whose files have another size than the index says."""
    sizes = disk.files.sizes(first)
    with disk.index.read() as view:
        rows = view.sizes_from(first)
    return [key for key, size in sizes.items() if key in rows and rows[key] != size]


def _differs(disk: Disk) -> bool:
    """Return whether there are more or fewer files than rows."""
    with disk.index.read() as view:
        n_rows = view.totals()[0]
    if disk.files.count() == n_rows:
        return False
    with disk.index.write() as change:  # others may be writing just now
        return disk.files.count() != change.totals()[0]
