"""SQLite index of the blocks: prefix search, order of eviction, owners.

The index can be deleted: blocks describe themselves, and a scan of their files builds a new one. Pins and users come from the
log of uses.py; only the order of eviction is lost. A read checks what the index says against the file.

Each process has two connections, one to read and one to write, each under its own lock, so that a search never waits for a
write. An index is never repaired in place, and its name never used twice: a new one gets the next number, so that a process
that still has the old one open can do no harm (https://sqlite.org/howtocorrupt.html).
"""

from __future__ import annotations

import errno
import math
import os
import re
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge.errors import EdgeError
from edge.kv.entries import set_aside
from edge.kv.files import StoreBusyError
from edge.kv.options import StoreOptions
from edge.kv.rows import CONTRADICTIONS, STATEMENTS, Change, Use, View

__all__ = ["Index", "explain", "is_busy", "is_damage"]

APPLICATION_ID = 0x65646B76
SCHEMA_VERSION = 1
_READ_TIMEOUT_S = 1.0
"""Longest wait of a search, which only a process that repairs the log after a crash can block."""
_SLICE_S = 0.1
_EMPTYING_TIMEOUT_S = 2.0
"""Longest wait for readers in other processes, which may be suspended."""
_PAGE_BYTES = 8192  # keeps the paths of usual blocks out of overflow pages
_NONSENSE = (TypeError, ValueError, OverflowError, AttributeError)
"""Raised for a value whose type a flipped bit has changed."""
_NUMBERED = r"index{}-(\d{{6,12}})\.sqlite"
_OURS = r"index{}-\d{{6,12}}\.(sqlite|new)(-wal|-shm|-journal)?"

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files may not grow that large here",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "its files may not be used by this user",
    errno.EPERM: "its files may not be used by this user",
    errno.EIO: "the disk has errors",
    errno.EMFILE: "too many files are open",
    errno.ETIMEDOUT: "the disk does not answer",
}


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether the index file itself is damaged, rather than busy or on a full disk."""
    if type(error) in (sqlite3.DatabaseError, sqlite3.IntegrityError):
        return True
    return any(part in str(error) for part in ("malformed", "not a database", "no such table", "no such column", "UTF-8"))


def is_busy(error: BaseException) -> bool:
    """Return whether the error only means that others kept the store busy for too long."""
    if isinstance(error, sqlite3.OperationalError):
        return any(part in str(error) for part in ("locked", "locking protocol"))
    return isinstance(error, StoreBusyError)


def explain(error: BaseException) -> str:
    """Return the meaning of a failure, as the end of a sentence."""
    if isinstance(error, EdgeError):
        return error.message.rstrip(".")
    if isinstance(error, MemoryError):
        return "there is too little memory"
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
    return str(error) or type(error).__name__


class Index:
    """The index file of a store, opened or created. The caller holds the store's opening lock.

    Args:
        directory: of the store, private.
        key_id: of the store's secret; an index with another one is replaced.
        options: of the store.
        suffix: of the names of this format; see formats.py.
        note: called in each transaction that changes pins or users, before it is committed.
        distrusted: a damaged index file, to be replaced.

    Attributes:
        waits_since: monotonic time since which `write` waits for another process; inf if it does not.
        is_hurried: `write` waits no longer for other processes.
        scanned: time of the last finished scan when it was opened, in unix seconds, or None.
        has_plain: it held plain blocks when it was opened.
        taken_bytes: disk space of its blocks when it was opened.

    Raises:
        OSError, sqlite3.Error: here and from every method: it cannot be used, or not in time.
    """

    def __init__(
        self,
        directory: Path,
        key_id: bytes,
        options: StoreOptions,
        *,
        suffix: str = "",
        note: Callable[[Sequence[Use]], None] = lambda uses: None,
        distrusted: Path | None = None,
    ) -> None:
        self._options, self._suffix, self._note = options, suffix, note
        self._read_lock, self._write_lock = threading.RLock(), threading.RLock()
        self.waits_since, self.is_hurried = math.inf, False
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self.has_plain, self.taken_bytes = False, 0
        self.scanned: float | None = None
        _set_strangers_aside(directory, re.compile(_OURS.format(re.escape(suffix))))
        pattern = re.compile(_NUMBERED.format(re.escape(suffix)))
        names = [entry.name for entry in os.scandir(directory)]
        numbered = [(int(found[1]), name) for name in names if (found := pattern.fullmatch(name))]
        known = [directory / name for _, name in sorted(numbered)]
        self.path = known[-1] if known else directory / f"index{suffix}-000000.sqlite"
        if not known or self.path == distrusted or not self._opens(key_id):
            self._make(directory, key_id, int(self.path.stem.rpartition("-")[2]) + 1)
        for stale in known:
            if stale != self.path:
                remove_index(stale)

    @contextmanager
    def read(self) -> Iterator[View]:
        """Give an unchanging view of the index. For short queries: searches of other threads wait."""
        with self._read_lock, _viewing(self._usable(self._reader)) as view:
            yield view

    @contextmanager
    def long_read(self) -> Iterator[View]:
        """Give an unchanging view on a connection of its own, for long queries."""
        self._usable(self._reader)
        connection = self._connect()
        try:
            with _viewing(connection) as view:
                yield view
        finally:
            connection.close()

    @contextmanager
    def write(self, timeout_s: float | None = None) -> Iterator[Change]:
        """Run a transaction, excluding all others in all processes. It is rolled back if the block raises.

        Block files get and lose their names only in here, so that names and rows do not disagree for long.

        Args:
            timeout_s: longest wait for others; None is the options' `busy_timeout_s`.
        """
        timeout_s = self._options.busy_timeout_s if timeout_s is None else timeout_s
        if not self._write_lock.acquire(timeout=timeout_s):
            raise sqlite3.OperationalError("the index is locked by another thread")
        try:
            connection = self._usable(self._writer)
            self._begin(connection, timeout_s)
            try:
                change = Change(connection, self._options)
                yield change
                if change.noted:
                    self._note(change.noted)
                connection.execute("COMMIT")
            except _NONSENSE as error:
                raise sqlite3.DatabaseError(f"malformed row: {error}") from error
            finally:
                _roll_back(connection)
        finally:
            self._write_lock.release()

    def _begin(self, connection: sqlite3.Connection, timeout_s: float) -> None:
        """Begin a transaction, asking now and then whether it is still worth waiting for others."""
        deadline = time.monotonic() + timeout_s
        try:
            while True:
                left_s = max(0.0, deadline - time.monotonic())
                connection.execute(f"PRAGMA busy_timeout = {int(min(left_s, _SLICE_S) * 1000)}")
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError as error:
                    if left_s <= _SLICE_S or self.is_hurried or "locked" not in str(error):
                        raise
                self.waits_since = min(self.waits_since, time.monotonic())
        finally:
            self.waits_since = math.inf

    def check(self) -> None:
        """Read all of it, at about 10 us a block: a flipped bit can hide a block, or protect it from eviction."""
        with self.long_read() as view:
            found = [row[0] for row in view.sql.execute("PRAGMA integrity_check(1)")]
            if found != ["ok"]:
                raise sqlite3.DatabaseError(f"malformed: {found[0]}")
            if any(view.sql.execute(sql).fetchone() is not None for sql in CONTRADICTIONS):
                raise sqlite3.DatabaseError("malformed: its rows contradict each other")

    def is_current(self) -> bool:
        """Return False once another process has replaced this index."""
        return self.path.exists()

    def checkpoint(self, *, emptying: bool = False) -> bool:
        """Move the log into the file. For the background thread, since it waits for the disk.

        Args:
            emptying: also empty the log, which still holds deleted rows. Readers can delay that.

        Returns:
            False if not all was moved, or the log not emptied.
        """
        with self._write_lock:
            writer = self._usable(self._writer)
            writer.execute(f"PRAGMA busy_timeout = {int(_EMPTYING_TIMEOUT_S * 1000)}")
            busy, _, _ = writer.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if emptying else 'PASSIVE'})").fetchone()
            return not busy

    def start_log(self) -> None:
        """Write to the log without changing anything: the first write to an empty log waits for the disk."""
        with self.write() as change:
            change.sql.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")  # an unchanged row would not be written

    def log_bytes(self) -> int:
        """Return the size of the log."""
        return _size(self.path, "-wal")

    def file_bytes(self) -> int:
        """Return the size of the index on disk."""
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
            self._reader, self._writer = self._connect(), self._connect()
            self._reader.execute("PRAGMA query_only = ON")
            self._reader.execute(f"PRAGMA busy_timeout = {int(_READ_TIMEOUT_S * 1000)}")
            application = self._writer.execute("PRAGMA application_id").fetchone()[0]
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if (application, version) == (APPLICATION_ID, SCHEMA_VERSION):
                # A trigger or a view from elsewhere could hide blocks, keep them from going, or never end.
                found = {sql for (sql,) in self._writer.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
                row = self._writer.execute("SELECT key_id FROM state").fetchone() if found == set(STATEMENTS) else None
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
        draft = directory / f"index{self._suffix}-{number:06}.new"
        remove_index(draft)  # left by a process that died here
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = OFF")  # after a power cut now, the next process creates it again
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("BEGIN")
            for statement in STATEMENTS:
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

    def _connect(self) -> sqlite3.Connection:
        # Several threads share a connection under the locks. mode=rw: a file that is gone is not created again, empty and
        # readable by others.
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        timeout_s = self._options.busy_timeout_s
        connection = sqlite3.connect(uri, timeout=timeout_s, isolation_level=None, check_same_thread=False, uri=True)
        try:
            # Losing the last transactions in a power cut costs a scan at most. Deleted tokens are overwritten.
            for pragma in ("synchronous = NORMAL", "secure_delete = ON", "wal_autocheckpoint = 0", "temp_store = MEMORY"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA journal_size_limit = 4194304")
        except BaseException:
            connection.close()
            raise
        return connection

    def _usable(self, connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise sqlite3.ProgrammingError("the index is closed")
        return connection


def _set_strangers_aside(directory: Path, ours: re.Pattern[str]) -> None:
    """Rename links, directories and the like that have the name of an index file: SQLite would fail at each opening."""
    for entry in list(os.scandir(directory)):
        if ours.fullmatch(entry.name) and not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            set_aside(Path(entry.path))


def remove_index(path: Path) -> None:
    """Remove an index file, its log and its shared memory."""
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


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
