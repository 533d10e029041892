"""Schema of a block store's index, with the queries and changes that a turn needs. Transactions and files are in index.py."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Iterable, Sequence, Set
from typing import NamedTuple

from edge.kv.blocks import Header
from edge.kv.keys import KEY_BYTES
from edge.kv.options import StoreOptions

__all__ = ["CONTRADICTIONS", "DISK_BLOCK_BYTES", "SCHEMA", "STATEMENTS", "TOTALS", "Change", "Row", "Use", "View", "disk_bytes"]

DISK_BLOCK_BYTES = 4096
"""Files take whole blocks of a disk; those count against the budget."""
COST_SHARE = 0.5
"""Most that the cost per byte moves a block in the order of eviction, as a share of the budget: see `Change.touch`."""

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

STATEMENTS = tuple(statement.strip() for statement in SCHEMA.strip().split("\n\n"))

TOTALS = """SELECT 1 FROM state WHERE (n_blocks, n_tokens, disk, 0, 0) IS NOT (SELECT count(*), total(block.n_tokens),
    total(block.disk), total(block.disk <> (size + 4095) / 4096 * 4096 OR size <= 0 OR block.n_tokens <= 0 OR start < 0),
    total(children) - total(start > 0) FROM block) OR (SELECT count(*) FROM state) <> 1"""
"""Finds wrong totals, sizes and numbers of children in one pass of 1.5 us a block. After a scan no block lacks its parent."""

CONTRADICTIONS = (
    """SELECT 1 FROM state WHERE (n_blocks, n_tokens, disk) IS NOT
        (SELECT count(*), total(block.n_tokens), total(block.disk) FROM block)""",
    """SELECT 1 FROM block LEFT JOIN (SELECT parent, count(*) AS n FROM block GROUP BY parent) AS below
        ON below.parent = block.key WHERE children <> coalesce(n, 0)""",
    "SELECT 1 FROM block WHERE space NOT IN (SELECT id FROM space)",
    "SELECT 1 FROM block WHERE typeof(key) <> 'blob' OR typeof(parent) <> 'blob' OR typeof(path) <> 'blob'",
)


def disk_bytes(size: int) -> int:
    """Return the disk space of a file of `size` bytes."""
    return -(-size // DISK_BLOCK_BYTES) * DISK_BLOCK_BYTES


def _spaces(models: Sequence[bytes]) -> str:
    return f"SELECT id FROM space WHERE model IN ({', '.join('?' * len(models))})"  # noqa: S608 (only question marks)


_ROW_TYPES = (bytes, bytes, bytes, int, int, float)


class Row(NamedTuple):
    """One block in the index. Fields as in `Header`."""

    key: bytes
    parent: bytes
    path: bytes
    start: int
    n_tokens: int
    prefill_ms: float


class Use(NamedTuple):
    """A change of pins or users, for the log of uses.py.

    Attributes:
        kind: "new", "use", "forget", "pin" or "unpin".
        key: of the block; empty for "forget".
        owner: who uses it; "" for pins.
        n: number of blocks, `key` and those before it.
        parent: the key of the block before `key`, if known.
    """

    kind: str
    key: bytes
    owner: str
    n: int = 1
    parent: bytes = b""


class View:
    """Queries, inside `Index.read` or `Index.write`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.sql = connection

    def get(self, key: bytes) -> Row | None:
        """Return one block."""
        return self._row("key = ?", key)

    def size(self, key: bytes) -> int | None:
        """Return the size of a block's file, in bytes; None if the block is not there."""
        row = self.sql.execute("SELECT size FROM block WHERE key = ?", (key,)).fetchone()
        return None if row is None else int(row[0])

    def at_or_before(self, parent: bytes, path: bytes) -> Row | None:
        """Return the last child of `parent` that does not sort after `path`."""
        return self._row("parent = ? AND path <= ? ORDER BY path DESC LIMIT 1", parent, path)

    def after(self, parent: bytes, path: bytes) -> Row | None:
        """Return the first child of `parent` that sorts after `path`."""
        return self._row("parent = ? AND path > ? ORDER BY path LIMIT 1", parent, path)

    def sizes_from(self, first: int) -> dict[bytes, int]:
        """Return all keys with this first byte, with the sizes of their files."""
        low, high = bytes([first]), bytes([first + 1]) if first < 255 else b"\xff" * (KEY_BYTES + 1)
        return dict(self.sql.execute("SELECT key, size FROM block WHERE key >= ? AND key < ?", (low, high)))

    def descendants(self, key: bytes) -> list[bytes]:
        """Return a block and its descendants, parents before children."""
        # UNION, not UNION ALL: it ends even where damage made parents a ring.
        sql = """WITH RECURSIVE below(key) AS (VALUES(?)
            UNION SELECT block.key FROM below JOIN block ON block.parent = below.key)
            SELECT key FROM below"""
        return [found for (found,) in self.sql.execute(sql, (key,))]

    def scanned(self) -> float | None:
        """Return the time of the last finished scan, in unix seconds."""
        found = self.sql.execute("SELECT scanned FROM state").fetchone()[0]
        return None if found is None else float(found)

    def last_id(self) -> int:
        """Return the largest id of a block's row."""
        return int(self.sql.execute("SELECT coalesce(max(id), 0) FROM block").fetchone()[0])

    def newest(self) -> bytes | None:
        """Return the key of the newest row."""
        row = self.sql.execute("SELECT key FROM block ORDER BY id DESC LIMIT 1").fetchone()
        return None if row is None else bytes(row[0])

    def has_plain(self) -> bool:
        """Return whether there are plain blocks."""
        return self.sql.execute("SELECT 1 FROM space WHERE NOT encrypted").fetchone() is not None

    def disk(self) -> int:
        """Return the disk space of all blocks, in bytes."""
        return int(self.sql.execute("SELECT disk FROM state").fetchone()[0])

    def disk_of(self, models: Sequence[bytes]) -> int:
        """Return the disk space of the blocks of these models, in bytes."""
        sql = f"SELECT total(disk) FROM block WHERE space IN ({_spaces(models)})"  # noqa: S608 (only question marks)
        return int(self.sql.execute(sql, models).fetchone()[0])

    def totals(self) -> tuple[int, int, int, float]:
        """Return blocks, tokens, bytes of disk, milliseconds of prefill."""
        row = self.sql.execute("SELECT n_blocks, n_tokens, disk, prefill_ms FROM state").fetchone()
        return int(row[0]), int(row[1]), int(row[2]), float(row[3])

    def spaces(self) -> tuple[tuple[str, str, int, int], ...]:
        """Return (fingerprint in hexadecimal, namespace, blocks, bytes of disk), largest first."""
        sql = """SELECT model, namespace, count(*), sum(disk) FROM block JOIN space ON space.id = block.space
            GROUP BY space.id ORDER BY sum(disk) DESC"""
        return tuple((model.hex(), name, count, total) for model, name, count, total in self.sql.execute(sql))

    def _row(self, where: str, *values: bytes) -> Row | None:
        sql = f"SELECT key, parent, path, start, n_tokens, prefill_ms FROM row WHERE {where}"  # noqa: S608
        row = self.sql.execute(sql, values).fetchone()
        if row is not None and tuple(map(type, row)) != _ROW_TYPES:
            raise TypeError("a value has another type")
        return None if row is None else Row._make(row)


class Change(View):
    """Changes, inside `Index.write`.

    Attributes:
        noted: changes of pins and users, which go to the log of uses.py before they are committed.
    """

    def __init__(self, connection: sqlite3.Connection, options: StoreOptions) -> None:
        super().__init__(connection)
        self._options = options
        self.noted: list[Use] = []

    def insert(self, header: Header, root: bytes, *, pinned: bool = False, is_found: bool = False) -> None:
        """Add a block, or an owner to a known one. Its parent need not be there.

        Args:
            header: the block's.
            root: of its fingerprint and namespace.
            pinned: never evict it.
            is_found: a scan has found the file: the log knows its users.
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
                disk_bytes(header.file_bytes), header.prefill_ms, header.origin, children, space[0], 0.0, pinned,
            )  # fmt: skip
            added = self.sql.execute(
                "INSERT INTO block (key, parent, path, start, n_tokens, size, disk, prefill_ms, origin, children,"
                " space, last_used, pinned, rank) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
                values,
            )
            known = (added.lastrowid,)
            self.touch([header.key])
            if header.owner and not is_found:
                self.sql.execute("INSERT INTO owner VALUES (?, ?)", (header.owner, known[0]))
            if not is_found:
                self.noted.append(Use("new", header.key, header.owner, parent=header.parent))
        elif header.owner and not is_found:
            self._own(header.owner, known[0], header.key, header.parent)

    def remove(self, key: bytes) -> None:
        """Delete the row of a block.

        Raises:
            sqlite3.DatabaseError: it is still there: nothing that evicts would ever end.
        """
        if not self.sql.execute("DELETE FROM block WHERE key = ?", (key,)).rowcount and self.size(key) is not None:
            raise sqlite3.DatabaseError("malformed: a row cannot be deleted")

    def resize(self, key: bytes, size: int) -> None:
        """Correct the size of a block's file."""
        disk = disk_bytes(size)
        was = self.sql.execute("SELECT disk FROM block WHERE key = ?", (key,)).fetchone()
        if was is not None:
            self.sql.execute("UPDATE block SET size = ?, disk = ? WHERE key = ?", (size, disk, key))
            self.sql.execute("UPDATE state SET disk = disk + ?", (disk - was[0],))

    def touch(self, keys: Iterable[bytes], owner: str = "") -> None:
        """Note a use of blocks.

        Blocks are evicted in the order of their rank: a position in the stream of all bytes ever written or used, so that
        clock jumps do not matter, moved by what the block saves. One that took twice the store's average of milliseconds per
        byte to compute ranks as if it had been used half a budget of bytes later, one that took half as if earlier; cost moves
        it no further.

        Args:
            keys: of the blocks; unknown ones are skipped.
            owner: also becomes their owner.

        Source: least recently used, with the cost per size of GreedyDual-Size (Cao and Irani, 1997).
        """
        work, disk, prefill_ms = self.sql.execute("SELECT work, disk, prefill_ms FROM state").fetchone()
        average = prefill_ms / disk if disk else 0.0
        now = self._now()
        for key in keys:
            found = self.sql.execute("SELECT id, disk, prefill_ms, parent FROM block WHERE key = ?", (key,)).fetchone()
            if found is None:
                continue
            work += found[1]
            bonus = 0.0
            if average > 0 and found[2] > 0:
                bonus = COST_SHARE * self._options.budget_bytes * max(-1.0, min(1.0, math.log2(found[2] / found[1] / average)))
            self.sql.execute("UPDATE block SET rank = ?, last_used = ? WHERE id = ?", (work + bonus, now, found[0]))
            if owner:
                self._own(owner, found[0], key, found[3])
        self.sql.execute("UPDATE state SET work = ?", (work,))

    def pin(self, key: bytes, is_pinned: bool) -> None:
        """Pin or unpin a block, if it is there."""
        if self.sql.execute("UPDATE block SET pinned = ? WHERE key = ? AND pinned <> ?1", (is_pinned, key)).rowcount:
            self.noted.append(Use("pin" if is_pinned else "unpin", key, ""))

    def set_pins(self, keys: Set[bytes]) -> None:
        """Pin these blocks and no others, as the log says."""
        for (key,) in self.sql.execute("SELECT key FROM block WHERE pinned").fetchall():
            if key not in keys:
                self.sql.execute("UPDATE block SET pinned = 0 WHERE key = ?", (key,))
        for key in keys:
            self.sql.execute("UPDATE block SET pinned = 1 WHERE key = ? AND NOT pinned", (key,))

    def set_owners(self, missing: Iterable[tuple[str, int]], extra: Iterable[tuple[str, int]]) -> None:
        """Add and delete users, (owner, id of the block), as the log says."""
        self.sql.executemany("DELETE FROM owner WHERE name = ? AND block = ?", extra)
        self.sql.executemany("INSERT OR IGNORE INTO owner VALUES (?, ?)", missing)

    def forget(self, owner: str) -> None:
        """Delete an owner."""
        self.sql.execute("DELETE FROM owner WHERE name = ?", (owner,))
        self.noted.append(Use("forget", b"", owner, 0))

    def own(self, key: bytes, owner: str) -> None:
        """Make someone an owner of a block, if that is there."""
        row = self.sql.execute("SELECT id, parent FROM block WHERE key = ?", (key,)).fetchone()
        if row is not None:
            self._own(owner, row[0], key, row[1])

    def own_again(self, use: Use, is_new: Callable[[int], bool]) -> list[int]:
        """Repeat a line of the log, for blocks that are there and new to this index.

        Args:
            use: "new" or "use"; an owner "" is nobody.
            is_new: returns whether the log is believed about a row.

        Returns:
            The ids of those rows.
        """
        key, found = use.key, list[int]()
        for _ in range(use.n):
            row = self.sql.execute("SELECT id, parent FROM block WHERE key = ?", (key,)).fetchone()
            if row is None:
                break
            if is_new(row[0]):
                found.append(row[0])
                if use.kind == "new":
                    self.sql.execute("DELETE FROM owner WHERE block = ?", (row[0],))
                if use.owner:
                    self.sql.execute("INSERT OR IGNORE INTO owner VALUES (?, ?)", (use.owner, row[0]))
            key = row[1]
        return found

    def next_victim(self, protected: Set[bytes], models: Sequence[bytes] | None = None) -> tuple[bytes, int] | None:
        """Return the block to evict next and its bytes of disk: a leaf that is not pinned and not in `protected`.

        Args:
            protected: keys that stay.
            models: only blocks of these; None is all.
        """
        of_models = "" if models is None else f" AND space IN ({_spaces(models)})"
        sql = f"SELECT key, disk FROM block WHERE children = 0 AND pinned = 0{of_models} ORDER BY rank"  # noqa: S608 (as above)
        cursor = self.sql.execute(sql, models or ())
        try:
            return next(((key, disk) for key, disk in cursor if key not in protected), None)
        finally:
            cursor.close()

    def leased(self, is_live: Callable[[str], bool]) -> set[bytes]:
        """Return the keys that living processes use now, and remove the leases of dead ones."""
        for (live,) in self.sql.execute("SELECT DISTINCT live FROM lease").fetchall():
            if not is_live(live):
                self.sql.execute("DELETE FROM lease WHERE live = ?", (live,))
        return {key for (key,) in self.sql.execute("SELECT key FROM lease")}

    def lease(self, live: str, key: bytes, change: int) -> None:
        """Count one more (+1) or one less (-1) use of a block by a process."""
        sql = "INSERT INTO lease VALUES (?, ?, ?) ON CONFLICT (live, key) DO UPDATE SET n = n + excluded.n"
        self.sql.execute(sql, (live, key, change))
        if change < 0:
            self.sql.execute("DELETE FROM lease WHERE live = ? AND key = ? AND n <= 0", (live, key))

    def _own(self, owner: str, block: int, key: bytes, parent: bytes) -> None:
        if self.sql.execute("INSERT OR IGNORE INTO owner VALUES (?, ?)", (owner, block)).rowcount:
            self.noted.append(Use("use", key, owner, parent=parent))

    def _now(self) -> float:
        now = self._options.clock()
        return now if math.isfinite(now) else 0.0
