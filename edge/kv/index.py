"""Which blocks there are, in a SQLite file: to find the longest stored prefix, to know what to evict, who owns what.

The index proves nothing and may be thrown away: blocks are files that describe themselves, and a scan of them makes a new one
(pins, recency, and owners other than who had a block written are lost with it). What it says is checked against the file when
a block is read.

Two connections a process, one to read and one to write, each under its own lock, so that a search never waits for a write; in
other processes neither waits for a reader. An index is never repaired in place, nor its name used twice: a new one gets the
next number, so that a process that still has the old one open can harm nothing (https://sqlite.org/howtocorrupt.html).
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from edge.kv.blocks import KEY_BYTES, Header

__all__ = ["Change", "Index", "Row", "View", "is_damage"]

APPLICATION_ID = 0x65646B76
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 10.0
DISK_BLOCK_BYTES = 4096
"""Files take whole blocks of a disk; that is what counts against the budget."""
COST_SHARE = 0.5
"""How far cost per byte can move a block in the order of eviction, as a share of the budget: see `Change.touch`."""
_PAGE_BYTES = 8192  # keeps the paths of usual blocks out of overflow pages
_NONSENSE = (TypeError, ValueError, OverflowError, AttributeError)
"""What comes of a value whose type a flipped bit has changed."""
_PATTERN = "index-*.sqlite"

_SCHEMA = """
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

_CONTRADICTIONS = (
    """SELECT 1 FROM state WHERE (n_blocks, n_tokens, disk) IS NOT
        (SELECT count(*), total(block.n_tokens), total(block.disk) FROM block)""",
    """SELECT 1 FROM block LEFT JOIN (SELECT parent, count(*) AS n FROM block GROUP BY parent) AS below
        ON below.parent = block.key WHERE children <> coalesce(n, 0)""",
    "SELECT 1 FROM block WHERE space NOT IN (SELECT id FROM space)",
)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the index file itself is bad, rather than busy or on a full disk."""
    if type(error) in (sqlite3.DatabaseError, sqlite3.IntegrityError):
        return True
    return any(part in str(error) for part in ("malformed", "not a database", "no such table", "no such column", "UTF-8"))


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

    def below(self, key: bytes) -> list[bytes]:
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


class Index:
    """The index file of a store, opened or made. Whoever makes one holds the store's opening lock.

    Args:
        directory: the store's, private.
        key_id: of the store's secret; an index that was made with another is not used.
        distrusted: an index file that turned out to be damaged; another one takes its place.

    Attributes:
        is_new: it was made just now and knows nothing of the blocks there are.
        scanned: when, in unix seconds, it was last compared with the files; None for never.
        has_plain: there were blocks that are not encrypted when it was opened.

    Raises:
        sqlite3.Error, OSError: it can neither be opened nor made.
    """

    def __init__(self, directory: Path, key_id: bytes, distrusted: Path | None = None) -> None:
        self._read_lock, self._write_lock = threading.RLock(), threading.RLock()
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self.is_new, self.has_plain = False, False
        self.scanned: float | None = None
        known = sorted(directory.glob(_PATTERN))
        self.path = known[-1] if known else directory / "index-000000.sqlite"
        if not known or self.path == distrusted or not self._opens(key_id):
            self._make(directory, key_id, int(self.path.stem.partition("-")[2]) + 1)
        for stale in known:
            if stale != self.path:
                remove_index(stale)

    @contextmanager
    def read(self) -> Iterator[View]:
        """One unchanging view of the index until the block ends. For short questions: searches of other threads wait.

        Raises:
            sqlite3.Error: it cannot be read.
        """
        with self._read_lock, _viewing(self._usable(self._reader)) as view:
            yield view

    @contextmanager
    def look_through(self) -> Iterator[View]:
        """The same on a connection of its own, for what takes long.

        Raises:
            sqlite3.Error: it cannot be read.
        """
        self._usable(self._reader)
        connection = _connect(self.path)
        try:
            with _viewing(connection) as view:
                yield view
        finally:
            connection.close()

    @contextmanager
    def write(self, timeout_s: float = BUSY_TIMEOUT_S) -> Iterator[Change]:
        """Change the index; alone, in all processes. When the block ends all of it holds; if it raises, nothing.

        Files of blocks are given their names, and lose them, only in here: names and rows never disagree for long.

        Args:
            timeout_s: how long to wait for others that change it.

        Raises:
            sqlite3.Error: it cannot be changed, or the time is over.
        """
        if not self._write_lock.acquire(timeout=timeout_s):
            raise sqlite3.OperationalError("the index is locked by another thread")
        try:
            connection = self._usable(self._writer)
            connection.execute(f"PRAGMA busy_timeout = {int(timeout_s * 1000)}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield Change(connection)
                connection.execute("COMMIT")
            except _NONSENSE as error:
                raise sqlite3.DatabaseError(f"malformed row: {error}") from error
            finally:
                _roll_back(connection)
        finally:
            self._write_lock.release()

    def check(self) -> None:
        """Read all of it. A flipped bit can hide a block, or make it look as if it could not be evicted.

        Takes about 10 us a block.

        Raises:
            sqlite3.Error: it is damaged, or contradicts itself.
        """
        with self.look_through() as view:
            found = [row[0] for row in view.sql.execute("PRAGMA integrity_check(1)")]
            if found != ["ok"] or any(view.sql.execute(sql).fetchone() is not None for sql in _CONTRADICTIONS):
                raise sqlite3.DatabaseError(f"malformed: {found[0]}")

    def is_current(self) -> bool:
        """False when another process has put a new index in this one's place."""
        return self.path.exists()

    def checkpoint(self, *, emptying: bool = False) -> None:
        """Move what was written from the log into the file. Only the background thread does: it waits for the disk.

        Args:
            emptying: also empty the log, which still holds what was deleted. Readers can delay that.
        """
        with self._write_lock:
            self._usable(self._writer).execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if emptying else 'PASSIVE'})")

    def log_bytes(self) -> int:
        """Size of the log that a checkpoint would empty."""
        return _size(self.path, "-wal")

    def file_bytes(self) -> int:
        """Size of the index on disk."""
        return sum(_size(self.path, end) for end in ("", "-wal", "-shm"))

    def close(self) -> None:
        """Close it. May be called twice."""
        for lock, name in ((self._write_lock, "_writer"), (self._read_lock, "_reader")):
            with lock:
                connection = getattr(self, name)
                setattr(self, name, None)
                if connection is not None:
                    connection.close()

    def _opens(self, key_id: bytes) -> bool:
        try:
            self._reader, self._writer = _connect(self.path), _connect(self.path)
            self._reader.execute("PRAGMA query_only = ON")
            application = self._writer.execute("PRAGMA application_id").fetchone()[0]
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if (application, version) == (APPLICATION_ID, SCHEMA_VERSION):
                row = self._writer.execute("SELECT key_id FROM state").fetchone()
                if row is not None and row[0] == key_id:
                    self.scanned, self.has_plain = View(self._writer).scanned(), View(self._writer).has_plain()
                    return True
        except (sqlite3.Error, *_NONSENSE) as error:
            self.close()
            if isinstance(error, sqlite3.Error) and not is_damage(error):
                raise
        except BaseException:
            self.close()
            raise
        self.close()
        return False

    def _make(self, directory: Path, key_id: bytes, number: int) -> None:
        draft = directory / f"index-{number:06}.new"
        remove_index(draft)  # of a process that died here
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = OFF")  # after a power cut now, the next one makes it anew
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN")
            for statement in _SCHEMA.strip().split("\n\n"):
                connection.execute(statement)
            connection.execute("INSERT INTO state VALUES (?, 0, 0, 0, 0, 0, NULL)", (key_id,))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        finally:
            connection.close()
        self.path = draft.rename(draft.with_suffix(".sqlite"))
        self.is_new = True
        if not self._opens(key_id):
            raise sqlite3.DatabaseError(f"{self.path} cannot be read back")

    def _usable(self, connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise sqlite3.ProgrammingError("the index is closed")
        return connection


def remove_index(path: Path) -> None:
    """Remove an index file and its companions."""
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _connect(path: Path) -> sqlite3.Connection:
    # Several threads use a connection, one at a time: the locks see to that.
    # mode=rw: a file that is gone is not made anew, empty and readable by others.
    uri = f"{path.resolve().as_uri()}?mode=rw"
    connection = sqlite3.connect(uri, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=True)
    try:
        # Losing the last transactions in a power cut costs a scan at most. Deleted tokens are overwritten.
        for pragma in ("synchronous = NORMAL", "secure_delete = ON", "wal_autocheckpoint = 0", "temp_store = MEMORY"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA journal_size_limit = 4194304")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _viewing(connection: sqlite3.Connection) -> Iterator[View]:
    connection.execute("BEGIN")
    try:
        yield View(connection)
    except _NONSENSE as error:
        raise sqlite3.DatabaseError(f"malformed row: {error}") from error
    finally:
        _roll_back(connection)


def _size(path: Path, end: str) -> int:
    try:
        return path.with_name(path.name + end).stat().st_size
    except FileNotFoundError:
        return 0


def _roll_back(connection: sqlite3.Connection) -> None:
    # A COMMIT that failed (disk full) leaves the transaction open.
    if connection.in_transaction:
        connection.execute("ROLLBACK")
