"""The SQLite file of the conversation store: its schema, and the marks of processes that write there."""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from pathlib import Path

from edge import database

__all__ = ["MIGRATIONS", "Database", "is_alive", "process_mark"]

APPLICATION_ID = 0x65646765
"""Marks a SQLite file as edge's ("edge" in ASCII), so that a foreign database is never changed."""

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

_ASIDE = (
    "It was left as it is. Close edge and move it aside: mv {path} {damaged}; if there is {path}-wal, move it to "
    "{damaged}-wal. Edge then starts a new one. To restore what can still be read: "
    "python -m edge.conversation.rescue {damaged} {path}"
)


class Database(database.Database):
    """The file of the conversations; see `edge.database.Database`."""

    def __init__(self, path: Path | None) -> None:
        schema = database.Schema(
            APPLICATION_ID, MIGRATIONS, "conversation database", "conversation store", _ASIDE, item="message"
        )
        super().__init__(path, schema)


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
