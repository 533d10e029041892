"""A SQLite file of edge's: safe opening, migrations, transactions, and translated errors.

A process has one connection that writes and one that reads, each with its own lock, so that a list can be shown while a
change is flushed to a slow card. Other processes have theirs; SQLite's write-ahead log lets all of them work at once.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge.errors import StorageError, UsageError
from edge.forks import ProcessLock
from edge.units import quoted

__all__ = ["BUSY_TIMEOUT_S", "Database", "Schema"]

BUSY_TIMEOUT_S = 10.0
_SHRUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Schema:
    """What a file holds, and its words in messages.

    Attributes:
        application_id: marks a SQLite file as one of this kind, so that a foreign database is never changed.
        migrations: script i brings a file from version i to i + 1; its statements are separated by blank lines.
        title: of the file, such as "conversation database".
        store: of the object that holds it open, such as "conversation store".
        damaged_hint: what to do with a damaged one; {path} and {damaged}, its new name, are replaced.
        item: what a key stands for, such as "message".
    """

    application_id: int
    migrations: tuple[str, ...]
    title: str
    store: str
    damaged_hint: str
    item: str


_FAULTS = (
    # A part of SQLite's message (stable, and all that Python 3.10 has), its meaning, and the hint.
    (
        "disk is full",
        "The disk is full, so {path} was not written. What was saved before is still there.",
        "Free some space and try again.",
    ),
    (
        "readonly database",
        "{path} cannot be written: the file, its directory or the disk is read-only.",
        "Give yourself write permission, or set EDGE_DATA_DIR to a directory you can write.",
    ),
    (
        "is locked",
        "Another program keeps {path} locked; nothing was written.",
        "Close other edge windows, backup or sync programs that use it, and try again.",
    ),
    (
        "disk i/o error",
        "The system could not read or write {path} (disk I/O error).",
        "The disk is full, over its quota, or failing: look at `df -h` and at the system log, then try again.",
    ),
    (
        "unable to open database file",
        "{path} cannot be opened.",
        "Check that its directory is a directory, that you may write in it, and that the disk is not full.",
    ),
    ("not a database", "{path} is not a {title}, or it is damaged.", "{aside}"),
    ("malformed", "The {title} {path} is damaged.", "{aside}"),
    (
        "no such module: fts5",
        "The SQLite of this Python has no full-text search (FTS5).",
        "Use a Python that has it: the one of your distribution, of python.org or of uv.",
    ),
    ("too big", "This text is larger than SQLite can hold (1 GB); it was not saved.", "Save less at once."),
)

_creation_lock = ProcessLock()


class Database:
    """One SQLite file, or one in memory.

    Args:
        path: the file, created with its directories if missing. None keeps everything in memory.
        schema: what it holds.

    Raises:
        StorageError: it cannot be opened or created, is not edge's, is damaged, or is from a newer version of edge.
    """

    def __init__(self, path: Path | None, schema: Schema) -> None:
        self.path = path
        self._schema = schema
        self._name = str(path) if path is not None else f"the {schema.store} in memory"
        self._pid = os.getpid()
        self._write_lock = threading.RLock()
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        with self._translated():
            if path is not None:
                _prepare_file(path)
            self._writer = self._connect()
            try:
                self._open_writer(self._writer)
                if path is None:
                    self._reader, self._read_lock = self._writer, self._write_lock
                else:
                    self._reader, self._read_lock = self._connect(), threading.RLock()
                    self._reader.execute("PRAGMA query_only = ON")
            except BaseException:
                self.close()
                raise

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection to read from, with one unchanging view of the data until the block ends.

        Raises:
            StorageError: the file cannot be read, or the store is closed.
        """
        with self._translated(), self._read_lock:
            connection = self._usable(self._reader)
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    @contextmanager
    def write(self, *, rollback: bool = False) -> Iterator[sqlite3.Connection]:
        """Yield a connection to write with. When the block ends all changes are on the disk; if it raises, none.

        Args:
            rollback: undo the changes at the end.

        Raises:
            StorageError: they could not be saved, or the store is closed.
        """
        with self._translated(), self._write_lock:
            connection = self._usable(self._writer)
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("ROLLBACK" if rollback else "COMMIT")
            finally:
                # A COMMIT that failed (disk full) leaves the transaction open.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def forget_deleted(self) -> None:
        """Empty the write-ahead log, which still has pages from before a deletion. Current readers delay this.

        Raises:
            StorageError: it could not be emptied; what was deleted stays deleted.
        """
        with self._translated(), self._write_lock, self._read_lock:
            connection = self._usable(self._writer)
            try:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.Error as error:
                raise StorageError(
                    f"It was deleted, but {self._name}-wal still has traces of it, because it could not be emptied: {error}.",
                    "They disappear when edge next writes there; free some space if the disk is full.",
                ) from error

    def shrink(self) -> None:
        """Give free pages back to the file system, if they are most of a large file. Waits for nobody: it is left for later.

        Raises:
            StorageError: the disk is full, or the file cannot be written.
        """
        with self._translated(), self._write_lock, self._read_lock:
            connection = self._usable(self._writer)
            n_free, n_pages, page_bytes = (
                connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count", "page_size")
            )
            if n_free * page_bytes < _SHRUNK_BYTES or 2 * n_free < n_pages:
                return
            try:
                connection.execute("VACUUM")
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):
                    raise

    def close(self) -> None:
        """Close the file. May be called twice."""
        with self._write_lock:
            reader, self._reader = self._reader, None
            writer, self._writer = self._writer, None
        if reader is not None and reader is not writer:
            with self._read_lock:
                reader.close()
        if writer is not None:
            writer.close()

    def _connect(self) -> sqlite3.Connection:
        # Several threads use a connection, one at a time by the locks above.
        connection = sqlite3.connect(
            self.path if self.path is not None else ":memory:",
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            for pragma in ("foreign_keys = ON", "secure_delete = ON", "temp_store = MEMORY", "synchronous = FULL"):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("PRAGMA fullfsync = ON")  # On macOS, fsync alone leaves data in the drive's cache.
            connection.execute("PRAGMA journal_size_limit = 4194304")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_writer(self, connection: sqlite3.Connection) -> None:
        self._check_ours(connection)  # before anything is changed
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # SQLite does not wait here, because two programs that switch at once would wait for each other.
                if "is locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if self._version(connection) < len(self._schema.migrations):
            self._migrate(connection)

    def _check_ours(self, connection: sqlite3.Connection) -> None:
        n_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        if n_tables and application_id != self._schema.application_id:
            raise StorageError(
                f"{self._name} is the database of another program; it was not touched.",
                "Move it elsewhere, or set EDGE_DATA_DIR to another directory.",
            )
        version = self._version(connection)
        if version > len(self._schema.migrations):
            raise StorageError(
                f"{self._name} was written by a newer version of edge "
                f"(schema {version}, this one knows up to {len(self._schema.migrations)}); it was not touched.",
                "Update: pip install --upgrade edge-assistant",
            )

    @staticmethod
    def _version(connection: sqlite3.Connection) -> int:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return version

    def _migrate(self, connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Check again: another process may have migrated while this one waited for the lock.
            for script in self._schema.migrations[self._version(connection) :]:
                for statement in script.strip().split("\n\n"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {self._schema.application_id}")
            connection.execute(f"PRAGMA user_version = {max(self._version(connection), len(self._schema.migrations))}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _usable(self, connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise StorageError(f"The {self._schema.store} is closed.", "Open it again.")
        if os.getpid() != self._pid:
            raise StorageError(
                f"This {self._schema.store} was opened before the process forked; using it here could damage the file.",
                "Open it in the child.",
            )
        return connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(error) from error
        except OverflowError as error:  # a larger integer cannot be a key
            item = self._schema.item
            raise UsageError(f"There is no {item} with a number that large.", f"Numbers of {item}s have 64 bits.") from error
        except OSError as error:
            raise StorageError(
                f"{self._name} cannot be used: {error.strerror or error}.",
                "Check that the directory exists and is yours, or set EDGE_DATA_DIR to one that is.",
            ) from error

    def _explained(self, error: sqlite3.Error) -> StorageError:
        text = str(error).lower()
        for part, message, hint in _FAULTS:
            if part in text:
                paths = {"path": quoted(self._name), "damaged": quoted(f"{self._name}.damaged")}
                hint = hint.format(aside=self._schema.damaged_hint.format_map(paths))
                return StorageError(message.format(path=self._name, title=self._schema.title), hint)
        return StorageError(f"SQLite refused to work on {self._name}: {error}.", "Nothing of this change was saved.")


def _prepare_file(path: Path) -> None:
    """Create or check the file and its directories: nobody else may read them."""
    missing = [parent for parent in path.parents if not parent.exists()]
    for directory in reversed(missing):
        directory.mkdir(mode=0o700, exist_ok=True)
    # Under a lock, and never for an existing file: closing any descriptor of it would silently drop the locks that
    # SQLite holds in this process (https://sqlite.org/howtocorrupt.html, section 2.2).
    with _creation_lock:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            pass
    if not stat.S_ISREG(path.stat().st_mode):
        raise StorageError(f"{path} is not a regular file.", "Move it away, or set EDGE_DATA_DIR to another directory.")
    for file in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        try:
            if os.name == "posix" and file.stat().st_mode & 0o077:
                file.chmod(0o600)
        except FileNotFoundError:
            pass  # -wal and -shm come and go; SQLite makes them with the mode of the main file
