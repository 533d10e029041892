"""What the index of a block store holds, and what can be asked of it and changed in it: all the SQL that a turn needs.

Transactions, files and what to do about damage are `index.py`'s.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterable, Set
from typing import NamedTuple

from edge.kv.blocks import Header
from edge.kv.keys import KEY_BYTES

__all__ = ["CONTRADICTIONS", "DISK_BLOCK_BYTES", "SCHEMA", "Change", "Row", "View", "disk_bytes"]

DISK_BLOCK_BYTES = 4096
"""Files take whole blocks of a disk; that is what counts against the budget."""
COST_SHARE = 0.5
"""How far cost per byte can move a block in the order of eviction, as a share of the budget: see `Change.touch`."""

SCHEMA = """
    CREATE TABLE space (
        id INTEGER PRIMARY KEY, root BLOB NOT NULL UNIQUE, model BLOB NOT NULL, namespace TEXT NOT NULL,
        encrypted INTEGER NOT NULL)

    CREATE TABLE block (
        id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, parent BLOB NOT NULL, path BLOB NOT NULL,
        space INTEGER NOT NULL, start INTEGER NOT NULL, n_tokens INTEGER NOT NULL, size INTEGER NOT NULL,
        disk INTEGER NOT NULL, prefill_ms REAL NOT NULL, origin TEXT NOT NULL, children INTEGER NOT NULL,
        pinned INTEGER NOT NULL DEFAULT 0, rank REAL NOT NULL, last_used REAL NOT NULL)

    CREATE VIEW row AS SELECT key, parent, path, start, n_tokens, size, disk, prefill_ms, origin, children, pinned,
        last_used FROM block

    CREATE UNIQUE INDEX block_tree ON block(parent, path)

    CREATE INDEX block_evictable ON block(rank) WHERE children = 0 AND pinned = 0

    CREATE INDEX block_space ON block(space)

    CREATE TABLE owner (name TEXT NOT NULL, block INTEGER NOT NULL, PRIMARY KEY (name, block)) WITHOUT ROWID

    CREATE INDEX owner_block ON owner(block)

    CREATE TABLE lease (live TEXT NOT NULL, key BLOB NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (live, key)) WITHOUT ROWID

    CREATE TABLE state (
        key_id BLOB NOT NULL, n_blocks INTEGER NOT NULL, n_tokens INTEGER NOT NULL, disk INTEGER NOT NULL,
        prefill_ms REAL NOT NULL, work INTEGER NOT NULL, scanned REAL)

    CREATE TRIGGER block_added AFTER INSERT ON block BEGIN
        UPDATE block SET children = children + 1 WHERE key = new.parent;
        UPDATE state SET n_blocks = n_blocks + 1, n_tokens = n_tokens + new.n_tokens, disk = disk + new.disk,
            prefill_ms = prefill_ms + new.prefill_ms; END

    CREATE TRIGGER block_removed AFTER DELETE ON block BEGIN
        UPDATE block SET children = children - 1 WHERE key = old.parent;
        UPDATE state SET n_blocks = n_blocks - 1, n_tokens = n_tokens - old.n_tokens, disk = disk - old.disk,
            prefill_ms = prefill_ms - old.prefill_ms;
        DELETE FROM owner WHERE block = old.id;
        DELETE FROM space WHERE id = old.space AND NOT EXISTS (SELECT 1 FROM block WHERE space = old.space); END
"""

CONTRADICTIONS = (
    """SELECT 1 FROM state WHERE (n_blocks, n_tokens, disk) IS NOT
        (SELECT count(*), total(block.n_tokens), total(block.disk) FROM block)""",
    """SELECT 1 FROM block LEFT JOIN (SELECT parent, count(*) AS n FROM block GROUP BY parent) AS below
        ON below.parent = block.key WHERE children <> coalesce(n, 0)""",
    "SELECT 1 FROM block WHERE space NOT IN (SELECT id FROM space)",
)


def disk_bytes(size: int) -> int:
    """What a file of `size` bytes takes of the disk."""
    return -(-size // DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES


class Row(NamedTuple):
    """One block as the index knows it.

    Attributes:
        key, parent, path, start, n_tokens, prefill_ms, origin: as in `Header`.
        size: of the file, in bytes.
        disk: what the file takes of the disk, in bytes.
        children: how many blocks follow it.
        pinned: 1 or 0.
        last_used: unix seconds.
    """

    key: bytes
    parent: bytes
    path: bytes
    start: int
    n_tokens: int
    size: int
    disk: int
    prefill_ms: float
    origin: str
    children: int
    pinned: int
    last_used: float


class View:
    """What can be asked of the index, inside `Index.read` or `Index.write`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.sql = connection

    def get(self, key: bytes) -> Row | None:
        """One block."""
        return self._row("SELECT * FROM row WHERE key = ?", key)

    def at_or_before(self, parent: bytes, path: bytes) -> Row | None:
        """The child of `parent` that is the last one not after `path`, in the order of bytes."""
        return self._row("SELECT * FROM row WHERE parent = ? AND path <= ? ORDER BY path DESC LIMIT 1", parent, path)

    def after(self, parent: bytes, path: bytes) -> Row | None:
        """The child of `parent` that is the first one after `path`."""
        return self._row("SELECT * FROM row WHERE parent = ? AND path > ? ORDER BY path LIMIT 1", parent, path)

    def keys_from(self, first: int) -> set[bytes]:
        """All keys whose first byte this is."""
        low, high = bytes([first]), bytes([first + 1]) if first < 255 else b"\xff" * (KEY_BYTES + 1)
        return {key for (key,) in self.sql.execute("SELECT key FROM block WHERE key >= ? AND key < ?", (low, high))}

    def descendants(self, key: bytes) -> list[bytes]:
        """The block and everything that hangs below it, parents before children."""
        # UNION, not UNION ALL: parents that a damaged file turned into a ring would go round for ever.
        sql = """WITH RECURSIVE below(key) AS (VALUES(?)
            UNION SELECT block.key FROM below JOIN block ON block.parent = below.key)
            SELECT key FROM below"""
        return [found for (found,) in self.sql.execute(sql, (key,))]

    def scanned(self) -> float | None:
        """When the index was last compared with the files, in unix seconds."""
        found = self.sql.execute("SELECT scanned FROM state").fetchone()[0]
        return None if found is None else float(found)

    def has_plain(self) -> bool:
        """Whether there are blocks that are not encrypted."""
        return self.sql.execute("SELECT 1 FROM space WHERE NOT encrypted").fetchone() is not None

    def disk(self) -> int:
        """Bytes of disk that all blocks take."""
        return int(self.sql.execute("SELECT disk FROM state").fetchone()[0])

    def totals(self) -> tuple[int, int, int, float]:
        """Blocks, tokens, bytes of disk, milliseconds of prefill."""
        row = self.sql.execute("SELECT n_blocks, n_tokens, disk, prefill_ms FROM state").fetchone()
        return int(row[0]), int(row[1]), int(row[2]), float(row[3])

    def spaces(self) -> tuple[tuple[str, str, int, int], ...]:
        """(fingerprint in hexadecimal, namespace, blocks, bytes of disk), largest first."""
        sql = """SELECT model, namespace, count(*), sum(disk) FROM block JOIN space ON space.id = block.space
            GROUP BY space.id ORDER BY sum(disk) DESC"""
        return tuple((model.hex(), name, count, total) for model, name, count, total in self.sql.execute(sql))

    def _row(self, sql: str, *values: bytes) -> Row | None:
        row = self.sql.execute(sql, values).fetchone()
        return None if row is None else Row._make(row)


class Change(View):
    """What can be changed, inside `Index.write`."""

    def insert(self, header: Header, *, root: bytes, budget_bytes: int, now: float) -> None:
        """Add a block; one that is there already only gets a new owner. Its parent need not be there.

        Args:
            header: what the block says of itself.
            root: of its fingerprint and namespace.
            budget_bytes: see `touch`.
            now: unix seconds.
        """
        known = self.sql.execute("SELECT id FROM block WHERE key = ?", (header.key,)).fetchone()
        if known is None:
            space = self.sql.execute("SELECT id FROM space WHERE root = ?", (root,)).fetchone()
            if space is None:
                sql = "INSERT INTO space (root, model, namespace, encrypted) VALUES (?, ?, ?, ?)"
                space = (self.sql.execute(sql, (root, header.model, header.namespace, header.encrypted)).lastrowid,)
            children = self.sql.execute("SELECT count(*) FROM block WHERE parent = ?", (header.key,)).fetchone()[0]
            values = (
                header.key, header.parent, header.path, header.start, header.n_tokens, header.file_bytes,
                disk_bytes(header.file_bytes), header.prefill_ms, header.origin, children, space[0], now,
            )  # fmt: skip
            added = self.sql.execute(
                "INSERT INTO block (key, parent, path, start, n_tokens, size, disk, prefill_ms, origin, children,"
                " space, last_used, rank) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                values,
            )
            known = (added.lastrowid,)
            self.touch([header.key], budget_bytes=budget_bytes, now=now)
        if header.owner:
            self.sql.execute("INSERT OR IGNORE INTO owner VALUES (?, ?)", (header.owner, known[0]))

    def remove(self, key: bytes) -> None:
        """Forget one block."""
        self.sql.execute("DELETE FROM block WHERE key = ?", (key,))

    def touch(self, keys: Iterable[bytes], *, budget_bytes: int, now: float, owner: str = "") -> None:
        """Say that blocks were used.

        Blocks are evicted in the order of their rank. It is a position in the stream of all bytes ever written or used (so
        that a clock that jumps changes nothing), moved by what the block saves: one that took twice the store's average of
        milliseconds per byte to compute ranks as if it had been used half a budget of bytes later, one that took half as if
        earlier; further than that cost does not reach.

        Args:
            keys: of the blocks; unknown ones are passed over.
            budget_bytes: of the store.
            now: unix seconds; for people only.
            owner: also note that it uses them.

        Source: least recently used, with the cost per size of GreedyDual-Size (Cao and Irani, 1997).
        """
        work, disk, prefill_ms = self.sql.execute("SELECT work, disk, prefill_ms FROM state").fetchone()
        average = prefill_ms / disk if disk else 0.0
        for key in keys:
            found = self.sql.execute("SELECT id, disk, prefill_ms FROM block WHERE key = ?", (key,)).fetchone()
            if found is None:
                continue
            work += found[1]
            bonus = 0.0
            if average > 0 and found[2] > 0:
                bonus = COST_SHARE * budget_bytes * max(-1.0, min(1.0, math.log2(found[2] / found[1] / average)))
            self.sql.execute("UPDATE block SET rank = ?, last_used = ? WHERE id = ?", (work + bonus, now, found[0]))
            if owner:
                self.sql.execute("INSERT OR IGNORE INTO owner VALUES (?, ?)", (owner, found[0]))
        self.sql.execute("UPDATE state SET work = ?", (work,))

    def next_victim(self, kept: Set[bytes]) -> tuple[bytes, int] | None:
        """The block to evict next, with its bytes of disk: nothing hangs below it, it is not pinned and not in `kept`."""
        cursor = self.sql.execute("SELECT key, disk FROM block WHERE children = 0 AND pinned = 0 ORDER BY rank")
        try:
            return next(((key, disk) for key, disk in cursor if key not in kept), None)
        finally:
            cursor.close()

    def leased(self, is_live: Callable[[str], bool]) -> set[bytes]:
        """Keys that a living process uses just now. What dead ones left behind is removed."""
        for (live,) in self.sql.execute("SELECT DISTINCT live FROM lease").fetchall():
            if not is_live(live):
                self.sql.execute("DELETE FROM lease WHERE live = ?", (live,))
        return {key for (key,) in self.sql.execute("SELECT key FROM lease")}

    def lease(self, live: str, key: bytes, change: int) -> None:
        """Count one more (+1) or one fewer (-1) use of a block by a process."""
        sql = "INSERT INTO lease VALUES (?, ?, ?) ON CONFLICT (live, key) DO UPDATE SET n = n + excluded.n"
        self.sql.execute(sql, (live, key, change))
        self.sql.execute("DELETE FROM lease WHERE live = ? AND key = ? AND n <= 0", (live, key))
