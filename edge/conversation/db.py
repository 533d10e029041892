"""The SQLite file of the conversation store: safe opening, schema, transactions, and translated errors.

A process has one connection that writes and one that reads, each with its own lock, so that a list can be shown while a
message is flushed to a slow card. Other processes have theirs; SQLite's write-ahead log lets all of them work at once.
"""

from __future__ import annotations

import os
import shlex
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from edge.errors import StorageError, UsageError
from edge.forks import ProcessLock

__all__ = ["MIGRATIONS", "Database", "is_alive", "process_mark"]

APPLICATION_ID = 0x65646765
"""Marks a SQLite file as edge's ("edge" in ASCII), so that a foreign database is never changed."""

BUSY_TIMEOUT_S = 10.0

MIGRATIONS: tuple[str, ...] = (
    # Version 1. Statements are separated by blank lines.
    # The list is ordered by activity, not by time: a board without a battery-backed clock starts in 1970 and then jumps.
    # parent < id makes a cycle impossible. Deferred keys, no cascades: those recurse once per message and stop at 1000.
    # spans has [length of name, length of text] of each attachment; attached has their texts, for the search.
    """
    CREATE TABLE conversation (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, system TEXT NOT NULL,
        model TEXT NOT NULL, draft TEXT NOT NULL, created REAL NOT NULL, updated REAL NOT NULL, activity INTEGER NOT NULL,
        head INTEGER REFERENCES node(id) DEFERRABLE INITIALLY DEFERRED)

    CREATE INDEX conversation_activity ON conversation(activity)

    CREATE INDEX conversation_head ON conversation(head)

    CREATE TABLE node (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation INTEGER NOT NULL REFERENCES conversation(key) DEFERRABLE INITIALLY DEFERRED,
        parent INTEGER REFERENCES node(id) DEFERRABLE INITIALLY DEFERRED CHECK (parent < id),
        role TEXT NOT NULL, name TEXT, content TEXT NOT NULL, attached TEXT NOT NULL, spans TEXT NOT NULL,
        status TEXT NOT NULL, writer TEXT NOT NULL, created REAL NOT NULL, model TEXT NOT NULL, record TEXT NOT NULL)

    CREATE INDEX node_tree ON node(conversation, parent)

    CREATE INDEX node_parent ON node(parent)

    CREATE VIRTUAL TABLE title_fts USING fts5(
        title, content='conversation', content_rowid='key', tokenize='unicode61 remove_diacritics 2')

    CREATE VIRTUAL TABLE node_fts USING fts5(
        content, attached, content='node', content_rowid='id', tokenize='unicode61 remove_diacritics 2')

    CREATE TRIGGER title_added AFTER INSERT ON conversation BEGIN
        INSERT INTO title_fts(rowid, title) VALUES (new.key, new.title); END

    CREATE TRIGGER title_changed AFTER UPDATE OF title ON conversation BEGIN
        INSERT INTO title_fts(title_fts, rowid, title) VALUES ('delete', old.key, old.title);
        INSERT INTO title_fts(rowid, title) VALUES (new.key, new.title); END

    CREATE TRIGGER title_removed AFTER DELETE ON conversation BEGIN
        INSERT INTO title_fts(title_fts, rowid, title) VALUES ('delete', old.key, old.title); END

    CREATE TRIGGER node_added AFTER INSERT ON node BEGIN
        INSERT INTO node_fts(rowid, content, attached) VALUES (new.id, new.content, new.attached); END

    CREATE TRIGGER node_changed AFTER UPDATE OF content, attached ON node BEGIN
        INSERT INTO node_fts(node_fts, rowid, content, attached)
            VALUES ('delete', old.id, old.content, old.attached);
        INSERT INTO node_fts(rowid, content, attached) VALUES (new.id, new.content, new.attached); END

    CREATE TRIGGER node_removed AFTER DELETE ON node BEGIN
        INSERT INTO node_fts(node_fts, rowid, content, attached)
            VALUES ('delete', old.id, old.content, old.attached); END
    """,
    # Version 2: see ConversationInfo.
    """
    ALTER TABLE conversation ADD COLUMN cache_namespace TEXT NOT NULL DEFAULT ''
    """,
    # Version 3: see Node; calls has [name, arguments, id] of each tool call.
    """
    ALTER TABLE node ADD COLUMN calls TEXT NOT NULL DEFAULT '[]'

    ALTER TABLE node ADD COLUMN call_id TEXT

    ALTER TABLE node ADD COLUMN reasoning TEXT NOT NULL DEFAULT ''
    """,
)
"""Script i brings a file from version i to i + 1. Append to it; never change a released script."""

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
    ("not a database", "{path} is not a conversation database, or it is damaged.", "{aside}"),
    ("malformed", "The conversation database {path} is damaged.", "{aside}"),
    (
        "no such module: fts5",
        "The SQLite of this Python has no full-text search (FTS5).",
        "Use a Python that has it: the one of your distribution, of python.org or of uv.",
    ),
    ("too big", "This text is larger than SQLite can hold (1 GB); it was not saved.", "Save less at once."),
)

_ASIDE = (
    "It was left as it is. Close edge and move it aside: mv {path} {damaged}; if there is {path}-wal, move it to "
    "{damaged}-wal. Edge then starts a new one. To restore what can still be read: "
    "python -m edge.conversation.rescue {damaged} {path}"
)

_creation_lock = ProcessLock()


class Database:
    """One SQLite file, or one in memory.

    Args:
        path: the file, created with its directories if missing. None keeps everything in memory.

    Raises:
        StorageError: it cannot be opened or created, is not edge's, is damaged, or is from a newer version of edge.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._name = str(path) if path is not None else "the conversation store in memory"
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
        if self._version(connection) < len(MIGRATIONS):
            self._migrate(connection)

    def _check_ours(self, connection: sqlite3.Connection) -> None:
        n_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        if n_tables and application_id != APPLICATION_ID:
            raise StorageError(
                f"{self._name} is the database of another program; it was not touched.",
                "Move it elsewhere, or set EDGE_DATA_DIR to another directory.",
            )
        version = self._version(connection)
        if version > len(MIGRATIONS):
            raise StorageError(
                f"{self._name} was written by a newer version of edge "
                f"(schema {version}, this one knows up to {len(MIGRATIONS)}); it was not touched.",
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
            for script in MIGRATIONS[self._version(connection) :]:
                for statement in script.strip().split("\n\n"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {max(self._version(connection), len(MIGRATIONS))}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _usable(self, connection: sqlite3.Connection | None) -> sqlite3.Connection:
        if connection is None:
            raise StorageError("The conversation store is closed.", "Open it again.")
        if os.getpid() != self._pid:
            raise StorageError(
                "This conversation store was opened before the process forked; using it here could damage the file.",
                "Open a ConversationStore in the child.",
            )
        return connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(error) from error
        except OverflowError as error:  # a larger integer cannot be a key
            raise UsageError("There is no message with a number that large.", "Numbers of messages have 64 bits.") from error
        except OSError as error:
            raise StorageError(
                f"{self._name} cannot be used: {error.strerror or error}.",
                "Check that the directory exists and is yours, or set EDGE_DATA_DIR to one that is.",
            ) from error

    def _explained(self, error: sqlite3.Error) -> StorageError:
        text = str(error).lower()
        for part, message, hint in _FAULTS:
            if part in text:
                paths = {"path": shlex.quote(self._name), "damaged": shlex.quote(f"{self._name}.damaged")}
                hint = hint.format(aside=_ASIDE.format_map(paths))
                return StorageError(message.format(path=self._name), hint)
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


def process_mark() -> str:
    """Return a mark that no other process has, not even a later one with the same number; see `is_alive`."""
    return _own_mark(os.getpid())


@lru_cache(maxsize=2)
def _own_mark(pid: int) -> str:
    return _mark(pid) or f"- - {pid} -"


def is_alive(mark: str) -> bool | None:
    """Return True if the process with this mark still runs; None if that cannot be seen from here (another container)."""
    if mark == process_mark():
        return True
    try:
        boot, namespace, pid, _ = mark.split(" ")
        own_boot, own_namespace, _, _ = process_mark().split(" ")
        if boot != own_boot:
            return False
        return _mark(int(pid)) == mark if namespace == own_namespace else None
    except ValueError:
        return None


def _mark(pid: int) -> str | None:
    """Return boot, PID namespace, number and start of a process; None if there is none or only a zombie."""
    if sys.platform == "linux":
        # In ticks since boot, which do not change when the clock is set, unlike the time of day that psutil returns.
        try:
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            namespace = Path("/proc/self/ns/pid").readlink()
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else f"{boot} {namespace} {pid} {int(fields[19])}"
    else:  # noqa: RET505 (after the block the type checker would take it for unreachable on Linux)
        import psutil

        try:
            process = psutil.Process(pid)
            is_zombie = process.status() == psutil.STATUS_ZOMBIE
            return None if is_zombie else f"- - {pid} {process.create_time()}"
        except psutil.Error:
            return None
