"""Counts and names that limits need, for all processes that use a store: bytes written on a day, models by name, ends of pins.

They are in a small SQLite file of their own, since the index is replaced when it is damaged. If this file is lost or cannot be
used, the day's count starts again, models have no names until they are loaded, and pins that should end do not.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from edge.kv.entries import kind_of_entry, set_aside
from edge.kv.options import StoreOptions

__all__ = ["Limits"]

T = TypeVar("T")
_NAME = "limits.sqlite"
_DAY_S = 86_400
_DAYS = 30
"""Days whose counts are kept."""
_APPLICATION_ID = 0x65646C6D
_STATEMENTS = (
    "CREATE TABLE written (day INTEGER PRIMARY KEY, bytes INTEGER NOT NULL)",
    "CREATE TABLE model (fingerprint BLOB PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE pin_end (key BLOB PRIMARY KEY, until REAL NOT NULL) WITHOUT ROWID",
)


class Limits:
    """See the module. Thread-safe; nothing here raises an error of the disk.

    Args:
        directory: of the store; it exists.
        options: of the store.

    Attributes:
        has_ends: some pins end.
    """

    def __init__(self, directory: Path, options: StoreOptions) -> None:
        self._path, self._options = directory / _NAME, options
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._own: dict[int, int] = {}  # bytes by day, where the file cannot be used
        self._names: dict[bytes, str] = {}
        self.has_ends = self._path.exists() and bool(self.ends())

    def reserve(self, n_bytes: int, limit_bytes: int | None) -> bool:
        """Count bytes that are about to be written; return False, and count nothing, if they exceed the day's limit.

        Args:
            n_bytes: of block files; below 0 for some that were not written after all.
            limit_bytes: of the day; None is none.
        """
        if not n_bytes:
            return True
        day = self.day()

        def add(sql: sqlite3.Connection) -> bool:
            written = self._written(sql, day)
            if limit_bytes is not None and n_bytes > 0 and written + n_bytes > limit_bytes:
                return False
            sql.execute("INSERT INTO written VALUES (?, max(0, ?)) ON CONFLICT (day) DO UPDATE SET bytes = max(0, bytes + ?)",
                        (day, n_bytes, n_bytes))  # fmt: skip
            sql.execute("DELETE FROM written WHERE day < ? OR day > ?", (day - _DAYS, day))
            return True

        own = self._own.get(day, 0)
        is_allowed = self._try(add, limit_bytes is None or n_bytes <= 0 or own + n_bytes <= limit_bytes)
        if is_allowed:
            self._own = {day: max(0, own + n_bytes)}
        return is_allowed

    def day(self) -> int:
        """Return the number of this day (UTC)."""
        now = self._options.clock()
        return int(now // _DAY_S) if math.isfinite(now) else 0

    def written_today(self) -> int:
        """Return the bytes of block files written on this day (UTC) by all processes."""
        day = self.day()
        return self._try(lambda sql: self._written(sql, day), self._own.get(day, 0))

    def name_model(self, fingerprint: bytes, name: str) -> None:
        """Note the name of a model."""
        is_known = self.names().get(fingerprint) == name
        self._names[fingerprint] = name
        if not is_known:
            self._try(lambda sql: sql.execute("REPLACE INTO model VALUES (?, ?)", (fingerprint, name)).rowcount, 0)

    def names(self) -> dict[bytes, str]:
        """Return the names of models by fingerprint."""
        nothing: dict[Any, Any] = {}
        found = self._try(lambda sql: dict(sql.execute("SELECT fingerprint, name FROM model").fetchall()), nothing)
        return {**self._names, **{key: name for key, name in found.items() if isinstance(key, bytes) and isinstance(name, str)}}

    def set_ends(self, ends: Iterable[tuple[bytes, float | None]]) -> None:
        """Note when pins end, in unix seconds; None is never."""
        ends = list(ends)
        self.has_ends = self.has_ends or any(until is not None for _, until in ends)
        if not self.has_ends:
            return

        def change(sql: sqlite3.Connection) -> None:
            for key, until in ends:
                if until is None:
                    sql.execute("DELETE FROM pin_end WHERE key = ?", (key,))
                else:
                    sql.execute("REPLACE INTO pin_end VALUES (?, ?)", (key, until))

        self._try(change, None)

    def ends(self) -> dict[bytes, float]:
        """Return when pins end, by the key of the block."""
        nothing: dict[Any, Any] = {}
        found = self._try(lambda sql: dict(sql.execute("SELECT key, until FROM pin_end").fetchall()), nothing)
        return {key: until for key, until in found.items() if isinstance(key, bytes) and isinstance(until, float)}

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._close()

    def _written(self, sql: sqlite3.Connection, day: int) -> int:
        row = sql.execute("SELECT bytes FROM written WHERE day = ?", (day,)).fetchone()
        return max(0, int(row[0])) if row is not None else 0

    def _try(self, work: Callable[[sqlite3.Connection], T], default: T) -> T:
        """Do something in a transaction; with a file that is damaged, once more with a new one."""
        with self._lock:
            for _ in range(2):
                try:
                    connection = self._connection = self._connection or self._open()
                    connection.execute("BEGIN IMMEDIATE")
                    result = work(connection)
                    connection.execute("COMMIT")
                    return result
                except (sqlite3.Error, OSError, TypeError, ValueError, OverflowError) as error:
                    self._close()
                    if not isinstance(error, sqlite3.OperationalError | OSError):
                        self._remove()
                        continue
                    if "no such" in str(error):
                        self._remove()
                        continue
                    break
            return default

    def _open(self) -> sqlite3.Connection:
        for end in ("", "-journal", "-wal", "-shm"):  # SQLite would wait for the other end of a FIFO
            path = self._path.with_name(_NAME + end)
            if kind_of_entry(path) not in (None, stat.S_IFREG):
                set_aside(path)
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0), 0o600))
        connection = sqlite3.connect(
            self._path, timeout=self._options.turn_timeout_s, isolation_level=None, check_same_thread=False
        )
        try:
            # A crash in a commit may cost the counts; a journal would cost writes to the disk, which they are to limit.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("PRAGMA journal_mode = MEMORY")
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("BEGIN IMMEDIATE")
            found = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
            if not found:
                for statement in _STATEMENTS:
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            elif sorted(found) != sorted(_STATEMENTS):
                raise sqlite3.DatabaseError("another schema")
            connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            for end in ("", "-journal"):
                self._path.with_name(_NAME + end).unlink(missing_ok=True)
