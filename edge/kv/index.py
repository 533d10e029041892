"""Which blocks there are, in a SQLite file: to find the longest stored prefix, to know what to evict, who owns what.

The index proves nothing and may be thrown away: blocks are files that describe themselves, and a scan of them makes a new one
(pins, recency, and owners other than who had a block written are lost with it). What it says is checked against the file when
a block is read.

Two connections a process, one to read and one to write, each under its own lock, so that a search never waits for a write; in
other processes neither waits for a reader. An index is never repaired in place, nor its name used twice: a new one gets the
next number, so that a process that still has the old one open can harm nothing (https://sqlite.org/howtocorrupt.html).
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge.errors import EdgeError
from edge.kv.files import StoreBusyError
from edge.kv.rows import CONTRADICTIONS, SCHEMA, Change, View

__all__ = ["BUSY_TIMEOUT_S", "FAILURES", "Index", "explain", "is_busy", "is_damage"]

APPLICATION_ID = 0x65646B76
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 60.0
"""How long to wait for other processes. They hold it for milliseconds, but a loaded machine may stop them right there."""
_READ_TIMEOUT_S = 1.0
"""The same for searches, which wait for nobody but a process that repairs the log after a crash."""
_PAGE_BYTES = 8192  # keeps the paths of usual blocks out of overflow pages
_NONSENSE = (TypeError, ValueError, OverflowError, AttributeError)
"""What comes of a value whose type a flipped bit has changed."""
_PATTERN = "index-*.sqlite"
FAILURES = (OSError, sqlite3.Error, EdgeError, ImportError)
"""What a disk, an index or a missing `cryptography` can raise."""

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files may not grow that large here",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "its files may not be used by this user",
    errno.EPERM: "its files may not be used by this user",
    errno.EIO: "the disk has errors",
    errno.EMFILE: "too many files are open",
}


def is_damage(error: sqlite3.Error) -> bool:
    """Whether an error says that the index file itself is bad, rather than busy or on a full disk."""
    if type(error) in (sqlite3.DatabaseError, sqlite3.IntegrityError):
        return True
    return any(part in str(error) for part in ("malformed", "not a database", "no such table", "no such column", "UTF-8"))


def is_busy(error: BaseException) -> bool:
    """Whether an error says that others keep the store, for longer than one was ready to wait, and nothing else."""
    if isinstance(error, sqlite3.OperationalError):
        return any(part in str(error) for part in ("locked", "locking protocol"))
    return isinstance(error, StoreBusyError)


def explain(error: BaseException) -> str:
    """What a failure means, as the end of a sentence."""
    if isinstance(error, EdgeError):
        return error.message.rstrip(".")
    if isinstance(error, OSError):
        if error.errno in _REASONS:
            return _REASONS[error.errno]
        return (error.strerror or str(error)) + (f" ({error.filename})" if error.filename else "")
    if isinstance(error, sqlite3.Error) and is_busy(error):
        return "other processes have kept its index busy for too long"
    if isinstance(error, sqlite3.Error):
        for part, reason in (("disk is full", "the disk is full"), ("readonly", "its files may not be changed")):
            if part in str(error):
                return reason
        return f"its index cannot be used ({error})"
    return str(error)


class Index:
    """The index file of a store, opened or made. Whoever makes one holds the store's opening lock.

    Args:
        directory: the store's, private.
        key_id: of the store's secret; an index that was made with another is not used.
        distrusted: an index file that turned out to be damaged; another one takes its place.

    Attributes:
        scanned: when, in unix seconds, it was last compared with the files; None for never.
        has_plain: there were blocks that are not encrypted when it was opened.
        taken_bytes: what blocks took of the disk when it was opened.

    Raises:
        sqlite3.Error, OSError: it can neither be opened nor made.
    """

    def __init__(self, directory: Path, key_id: bytes, distrusted: Path | None = None) -> None:
        self._read_lock, self._write_lock = threading.RLock(), threading.RLock()
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self.has_plain, self.taken_bytes = False, 0
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
    def long_read(self) -> Iterator[View]:
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
    def write(self, timeout_s: float | None = None) -> Iterator[Change]:
        """Change the index; alone, in all processes. When the block ends all of it holds; if it raises, nothing.

        Files of blocks are given their names, and lose them, only in here: names and rows never disagree for long.

        Args:
            timeout_s: how long to wait for others that change it; None is BUSY_TIMEOUT_S.

        Raises:
            sqlite3.Error: it cannot be changed, or the time is over.
        """
        timeout_s = BUSY_TIMEOUT_S if timeout_s is None else timeout_s
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
        with self.long_read() as view:
            found = [row[0] for row in view.sql.execute("PRAGMA integrity_check(1)")]
            if found != ["ok"] or any(view.sql.execute(sql).fetchone() is not None for sql in CONTRADICTIONS):
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

    def start_log(self) -> None:
        """Write to the log, changing nothing. SQLite waits for the disk when an empty log gets its first lines, and a turn that
        notes its lease should not be the one that meets this. For the background thread, like `checkpoint`.

        Raises:
            sqlite3.Error: it cannot be written to.
        """
        with self.write() as change:
            change.sql.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # a row that stays as it is would not be written

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
            self._reader.execute(f"PRAGMA busy_timeout = {int(_READ_TIMEOUT_S * 1000)}")
            application = self._writer.execute("PRAGMA application_id").fetchone()[0]
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if (application, version) == (APPLICATION_ID, SCHEMA_VERSION):
                row = self._writer.execute("SELECT key_id FROM state").fetchone()
                if row is not None and row[0] == key_id:
                    view = View(self._writer)
                    self.scanned, self.has_plain, self.taken_bytes = view.scanned(), view.has_plain(), view.disk()
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
            for statement in SCHEMA.strip().split("\n\n"):
                connection.execute(statement)
            connection.execute("INSERT INTO state VALUES (?, 0, 0, 0, 0, 0, NULL)", (key_id,))
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            connection.execute("COMMIT")
        finally:
            connection.close()
        self.path = draft.rename(draft.with_suffix(".sqlite"))
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
