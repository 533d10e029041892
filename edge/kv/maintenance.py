"""Work on a whole store: scan, verify, forget, clear.

Others may use the store meanwhile: the index's write lock is held for a few files at a time. Every function raises OSError or
sqlite3.Error if the disk fails, with part of its work done.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from itertools import islice
from typing import TypeVar

from edge.kv.blocks import BlockDamaged, Header, parse_header
from edge.kv.disk import Disk
from edge.kv.doubts import check_roots, wrong_sizes
from edge.kv.entries import is_transient
from edge.kv.records import ForgetReport, GcReport, VerifyReport
from edge.kv.rows import Use
from edge.kv.uses import pins_of

__all__ = ["clear", "forget", "forget_namespace", "scan", "verify"]

_log = logging.getLogger("edge.kv")
_AT_A_TIME = 32
"""Files handled in one transaction, before others get their turn."""
_PLACE = struct.Struct(">dI32s")  # sorts as its values do
_T = TypeVar("_T")


def scan(disk: Disk, should_stop: Callable[[], bool] = lambda: False) -> GcReport:
    """Make files and index agree, and keep the budget. Headers are trusted here; a block is verified when it is read.

    Args:
        disk: the store.
        should_stop: called every few milliseconds, outside of any transaction, so that it may do other work; True ends the scan
            early, and it counts as not done.
    """
    disk.index.check()
    check_roots(disk)
    n_missing = n_removed = n_foreign = 0
    log = disk.uses.read().uses
    pinned = pins_of(log)
    with disk.index.read() as view:
        last_id = 0 if view.scanned() is None else view.last_id()
    unknown: list[bytes] = []  # time, start and key: headers of a million files would not fit into memory
    for first in range(256):
        if should_stop():
            return GcReport()
        names, n_others = disk.files.shard(first)
        n_foreign += n_others
        with disk.index.read() as view:
            rows = view.sizes_from(first).keys()
        for keys in _portions(wrong_sizes(disk, first)):
            n_missing += _correct_sizes(disk, keys)
        for keys in _portions(rows - names):
            n_missing += _drop_missing(disk, keys)
            _bound_log(disk)
        for key in names - rows:
            header, time = _header_of(disk, key)
            if header is None:
                n_removed += _remove_unknown(disk, key)
            else:
                unknown.append(_PLACE.pack(max(0.0, time), header.start, key))
    n_indexed = 0
    if unknown:
        with disk.index.write() as change:  # until they have their users
            change.sql.execute("UPDATE state SET scanned = NULL")
    unknown.sort()  # in the order of writing, so that the oldest are evicted first
    for portion in _portions(unknown):
        if should_stop():
            return GcReport()
        headers = [(time, _header_of(disk, key)[0]) for time, _, key in map(_PLACE.unpack, portion)]
        indexed, removed = _index_unknown(disk, [(time, header) for time, header in headers if header is not None], pinned)
        n_indexed, n_removed = n_indexed + indexed, n_removed + removed
    n_missing += _drop_unreachable(disk)
    with disk.index.read() as view:
        is_healed = view.last_id() > last_id
    if is_healed and not _restore_uses(disk, log, last_id, should_stop):
        return GcReport()
    if disk.encrypts:
        n_removed += _drop_plain(disk)
    before = disk.n_evicted
    disk.make_room(0)
    with disk.index.write() as change:
        change.sql.execute("UPDATE state SET scanned = ?", (disk.options.clock(),))
    disk.heal_uses()
    disk.files.remove_dead()
    disk.needs_scan = False
    return GcReport(n_indexed, n_removed, n_missing, disk.n_evicted - before, n_foreign)


def verify(disk: Disk, on_progress: Callable[[int, int], None] | None = None) -> VerifyReport:
    """Read every block and drop damaged ones with their descendants.

    Args:
        disk: the store.
        on_progress: called with (blocks done, blocks in all).
    """
    with disk.index.read() as view:
        total = view.totals()[0]
    last_id = n_checked = size = 0
    damaged: list[tuple[str, str]] = []
    while True:
        with disk.index.long_read() as view:
            sql = "SELECT id, key FROM block WHERE id > ? ORDER BY id LIMIT ?"
            found = view.sql.execute(sql, (last_id, _AT_A_TIME)).fetchall()
        if not found:
            return VerifyReport(n_checked, size, tuple(damaged))
        last_id = found[-1][0]
        for _, key in found:
            n_checked += 1
            n_bytes, reason = _examine(disk, key)
            size += n_bytes
            if reason is None:
                continue
            with disk.index.write() as change:
                # Again under the lock: it may have been evicted meanwhile.
                if change.get(key) is not None and _examine(disk, key)[1] is not None:
                    disk.remove_subtree(change, key)
                    damaged.append((key.hex(), reason))
                    _log.warning("KV block %s is dropped: %s", key.hex()[:12], reason)
            _bound_log(disk)
        if on_progress is not None:
            on_progress(n_checked, max(total, n_checked))


def forget(disk: Disk, owners: Sequence[str]) -> list[ForgetReport]:
    """Remove the blocks that only one of these owners used, except pinned ones and parents of others' blocks.

    Returns:
        A report for each.
    """
    disk.heal_owners(owners)
    found = [_forget_one(disk, owner) for owner in owners]
    disk.others.clear()  # nobody can tell whose those are
    is_in_log = not _emptied(disk)
    return [ForgetReport(n_blocks, n_bytes, is_in_log=is_in_log) for n_blocks, n_bytes in found]


def _forget_one(disk: Disk, owner: str) -> tuple[int, int]:
    n_blocks = n_bytes = 0
    with disk.index.long_read() as view:
        # Children start after their parents, so they come first.
        sql = """SELECT block.key, block.disk FROM owner JOIN block ON block.id = owner.block WHERE owner.name = ?
            ORDER BY block.start DESC"""
        found = view.sql.execute(sql, (owner,)).fetchall()
    sql = """SELECT block.id FROM block WHERE key = ? AND children = 0 AND pinned = 0
        AND EXISTS (SELECT 1 FROM owner WHERE owner.block = block.id AND owner.name = ?)
        AND NOT EXISTS (SELECT 1 FROM owner WHERE owner.block = block.id AND owner.name <> ?)"""
    for portion in _portions(found):
        with disk.index.write() as change:
            for key, size in portion:
                if change.sql.execute(sql, (key, owner, owner)).fetchone() is not None:
                    disk.remove(change, key)
                    n_blocks, n_bytes = n_blocks + 1, n_bytes + size
    with disk.index.write() as change:
        change.forget(owner)
    _bound_log(disk)
    return n_blocks, n_bytes


def forget_namespace(disk: Disk, namespace: str) -> ForgetReport:
    """Remove all blocks of a namespace."""
    n_blocks = n_bytes = 0
    sql = """SELECT block.key, block.disk FROM space JOIN block ON block.space = space.id WHERE space.namespace = ?
        ORDER BY block.start DESC"""
    with disk.index.long_read() as view:
        found = view.sql.execute(sql, (namespace,)).fetchall()
    for portion in _portions(found):
        with disk.index.write() as change:
            for key, size in portion:
                if change.get(key) is not None:
                    disk.remove(change, key)
                    n_blocks, n_bytes = n_blocks + 1, n_bytes + size
        _bound_log(disk)
    return ForgetReport(n_blocks, n_bytes, is_in_log=not _emptied(disk))


def clear(disk: Disk) -> int:
    """Remove every block, and return how many there were."""
    n_blocks = 0
    # Leaves first: a scan by another process drops blocks whose parent is gone. The last pass is for a damaged tree.
    for which in ("WHERE children = 0 AND pinned = 0", "WHERE children = 0", ""):
        is_done = False
        while not is_done:
            with disk.index.write() as change:
                keys = [key for (key,) in change.sql.execute(f"SELECT key FROM block {which} LIMIT ?", (_AT_A_TIME,))]  # noqa: S608
                for key in keys:
                    disk.remove(change, key)
            n_blocks += len(keys)
            is_done = not keys
            _bound_log(disk)
    for first in range(256):
        names, _ = disk.files.shard(first)
        with disk.index.write() as change:
            for key in names:
                if change.get(key) is None:
                    disk.files.remove(key)
    with disk.index.write():
        disk.uses.clear()
    n_blocks += disk.others.clear()
    _emptied(disk)
    return n_blocks


def _examine(disk: Disk, key: bytes) -> tuple[int, str | None]:
    """Return the size of a block's file, and its damage if any."""
    try:
        header = disk.open(key).header
    except BlockDamaged as damage:
        return 0, str(damage)
    except OSError as error:
        if is_transient(error):
            raise
        return 0, f"its file cannot be read ({error.strerror or error})"
    with disk.index.read() as view:
        row = view.get(key)
    if row is not None and (row.parent, row.path, row.start) != (header.parent, header.path, header.start):
        return 0, "it contradicts the index"
    return header.file_bytes, None


def _header_of(disk: Disk, key: bytes) -> tuple[Header | None, float]:
    try:
        head, state = disk.files.head(key)
        header = parse_header(head, state.st_size)
    except BlockDamaged:
        return None, 0.0
    except OSError as error:
        if is_transient(error):
            raise
        return None, 0.0
    root = disk.keys.root(header.model, header.namespace, encrypted=header.encrypted)
    is_placed = header.start > 0 or header.parent == root
    return (header if header.key == key and header.key_id == disk.keys.id and is_placed else None), state.st_mtime


def _restore_uses(disk: Disk, log: Sequence[Use], last_id: int, should_stop: Callable[[], bool]) -> bool:
    """Give blocks that are new to the index their users; return False if that was stopped.

    Args:
        disk: the store.
        log: lines of uses.py; a block that they do not name belongs to the owner in its file.
        last_id: largest id of the rows that have their users already.
        should_stop: as for `scan`.
    """
    forgotten = {use.owner: at for at, use in enumerate(log) if use.kind == "forget"}
    named: set[int] = set()
    for portion in _portions(enumerate(log)):
        if should_stop():
            return False
        with disk.index.write() as change:
            for at, use in portion:
                if use.kind in ("new", "use"):
                    counts = at > forgotten.get(use.owner, -1)
                    named.update(change.own_again(use if counts else use._replace(owner=""), lambda id: id > last_id))
        _bound_log(disk)
    with disk.index.long_read() as view:
        found = [key for id, key in view.sql.execute("SELECT id, key FROM block WHERE id > ?", (last_id,)) if id not in named]
    for keys in _portions(found):
        if should_stop():
            return False
        headers = [header for header, _ in (_header_of(disk, key) for key in keys) if header is not None and header.owner]
        if headers:
            with disk.index.write() as change:
                for header in headers:
                    change.own(header.key, header.owner)
        _bound_log(disk)
    return True


def _index_unknown(disk: Disk, found: Sequence[tuple[float, Header]], pinned: Set[bytes]) -> tuple[int, int]:
    """Index files with their times of writing, and return how many were indexed and how many removed."""
    n_indexed = n_removed = 0
    with disk.index.write() as change:
        for time, header in found:
            if change.get(header.key) is not None or not disk.files.path(header.key).exists():
                continue
            try:
                root = disk.keys.root(header.model, header.namespace, encrypted=header.encrypted)
                change.insert(header, root, pinned=header.key in pinned, is_found=True)
                change.sql.execute("UPDATE block SET last_used = min(last_used, ?) WHERE key = ?", (time, header.key))
                n_indexed += 1
            except sqlite3.IntegrityError:  # it claims the tokens of another block
                disk.files.remove(header.key)
                n_removed += 1
    return n_indexed, n_removed


def _remove_unknown(disk: Disk, key: bytes) -> int:
    with disk.index.write() as change:
        if change.get(key) is not None or not os.path.lexists(disk.files.path(key)):
            return 0  # written or evicted meanwhile
        disk.files.remove(key)
    return 1


def _correct_sizes(disk: Disk, keys: Sequence[bytes]) -> int:
    """Make sizes of rows those of their files; drop damaged files and their descendants, and return how many."""
    n_dropped = 0
    with disk.index.write() as change:
        for key in keys:
            size = change.size(key)
            try:
                if size is not None and not disk.files.has_size(key, size):
                    change.resize(key, disk.files.path(key).lstat().st_size)
            except BlockDamaged:
                n_dropped += disk.remove_subtree(change, key)
            except OSError as error:
                if is_transient(error):
                    raise
                n_dropped += disk.remove_subtree(change, key)
    return n_dropped


def _drop_missing(disk: Disk, keys: Sequence[bytes]) -> int:
    with disk.index.write() as change:
        return sum(
            disk.remove_subtree(change, key)
            for key in keys
            if change.get(key) is not None and not disk.files.path(key).exists()
        )


def _drop_unreachable(disk: Disk) -> int:
    """Drop blocks whose parent is missing or does not end where they start, and return how many."""
    sql = """SELECT block.key FROM block LEFT JOIN block AS parent ON parent.key = block.parent
        WHERE block.start > 0 AND parent.start + parent.n_tokens IS NOT block.start"""
    with disk.index.long_read() as view:
        found = [key for (key,) in view.sql.execute(sql)]
    n_missing = 0
    for portion in _portions(found):
        with disk.index.write() as change:
            for key in portion:
                row = change.get(key)
                parent = None if row is None else change.get(row.parent)
                if row is not None and (parent is None or parent.start + parent.n_tokens != row.start):
                    n_missing += disk.remove_subtree(change, key)
    return n_missing


def _drop_plain(disk: Disk) -> int:
    """Drop plain blocks, and return how many: encryption should hide older chats too."""
    with disk.index.write():
        pass  # a process that did not know yet has finished its transaction
    with disk.index.long_read() as view:
        sql = "SELECT key FROM block JOIN space ON space.id = block.space WHERE NOT space.encrypted"
        found = [key for (key,) in view.sql.execute(sql)]
    for portion in _portions(found):
        with disk.index.write() as change:
            for key in portion:
                change.remove(key)
                disk.files.remove(key)
    if found:
        _emptied(disk)
    return len(found)


def _bound_log(disk: Disk) -> None:
    """Keep the log small during long work, also where the disk is nearly full."""
    if disk.index.log_bytes() > disk.options.log_bytes // 4:
        disk.index.checkpoint()


def _emptied(disk: Disk) -> bool:
    is_empty = disk.empty_log()
    if not is_empty:
        _log.info("Deleted tokens stay in the log of the KV index while another process reads it; it is emptied after that.")
    return is_empty


def _portions(items: Iterable[_T]) -> Iterator[list[_T]]:
    iterator = iter(items)
    while portion := list(islice(iterator, _AT_A_TIME)):
        yield portion
