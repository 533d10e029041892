"""Restores what can still be read of a damaged conversation file.

python -m edge.conversation.rescue DAMAGED TARGET      adds what can be read of DAMAGED to the store in TARGET
"""

# ruff: noqa: S608 -- SQL is put together from constants; values are always bound.

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge.conversation import tree
from edge.conversation.files import ConversationFile, NodeFile, to_json
from edge.conversation.store import ConversationStore
from edge.errors import EdgeError, StorageError

__all__ = ["Rescued", "rescue"]

_LAST_RESORT = "Restore it from a backup, or have SQLite's own tool list what it finds: sqlite3 FILE .recover"

_N_PROBED = 100_000
"""Row numbers to try if the largest cannot be read."""


@dataclass(frozen=True, slots=True)
class Rescued:
    """The result of a rescue.

    Attributes:
        n_conversations, n_messages: added to the store.
        n_lost: row numbers that cannot be read. If whole pages are lost, numbers that were never used or belonged to deleted
            messages count as well.
    """

    n_conversations: int
    n_messages: int
    n_lost: int


def rescue(damaged: Path, store: ConversationStore) -> Rescued:
    """Add the readable rows of a damaged file to `store`; the file itself is not changed.

    A message whose parent is lost is put under the newest message before it, so that no readable message is hidden.

    Raises:
        StorageError: nothing can be read, or the store cannot be written.
    """
    if not damaged.is_file():
        raise StorageError(f"There is no file {damaged}.", "Name the file that was moved aside.")
    try:
        # Not immutable: a write-ahead log beside it has the newest messages.
        with closing(sqlite3.connect(f"{damaged.resolve().as_uri()}?mode=ro", uri=True)) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # without the first page nothing can be read
            db.text_factory = lambda data: data.decode("utf-8", "replace")
            conversations, _ = _read_rows(db, "conversation", "key", "title, system, model, created, updated, head")
            columns = (
                "conversation, parent, role, content, attached, spans, status, created, model, record, name, {}, '', writer"
            )
            has_calls = any(row[1] == "calls" for row in db.execute("PRAGMA table_info(node)"))  # since schema 3
            columns = columns.format("calls, call_id, reasoning" if has_calls else "'[]', NULL, ''")
            nodes, n_lost = _read_rows(db, "node", "id", columns)
    except sqlite3.Error as error:
        raise StorageError(f"Nothing can be read of {damaged}: {error}.", _LAST_RESORT) from error
    members: dict[int, list[tuple[int, int | None, NodeFile]]] = {key: [] for key in conversations}
    for node_id, (key, parent, *values) in sorted(nodes.items()):
        try:
            node = tree.to_node((node_id, None, *values))
            checked = msgspec.convert(msgspec.to_builtins(NodeFile.from_node(node, {})), NodeFile)
            members.setdefault(key, []).append((node_id, parent, checked))
        except (msgspec.MsgspecError, TypeError, ValueError):
            n_lost += 1  # the row is not a message
    if not members:
        raise StorageError(f"{damaged} holds no conversation that can be read.", _LAST_RESORT)
    for key, found in members.items():
        store.import_json(to_json(_to_file(conversations.get(key), found)))
    return Rescued(len(members), sum(map(len, members.values())), n_lost)


def _read_rows(db: sqlite3.Connection, table: str, key: str, columns: str) -> tuple[dict[int, tuple[Any, ...]], int]:
    """Return the readable rows of a table by key, and the number of unreadable ones."""
    largest = 0
    for sql in (f"SELECT max({key}) FROM {table}", f"SELECT seq FROM sqlite_sequence WHERE name = '{table}'"):
        try:
            largest = max(largest, *(row[0] or 0 for row in db.execute(sql)), 0)
        except (sqlite3.DatabaseError, TypeError):
            largest = max(largest, _N_PROBED)
    rows, n_lost = dict[int, tuple[Any, ...]](), 0
    for number in range(1, largest + 1):
        try:
            row = db.execute(f"SELECT {columns} FROM {table} WHERE {key} = ?", (number,)).fetchone()
        except sqlite3.DatabaseError:
            n_lost += 1
        else:
            if row is not None:
                rows[number] = row
    return rows, n_lost


def _to_file(conversation: tuple[Any, ...] | None, found: Sequence[tuple[int, int | None, NodeFile]]) -> ConversationFile:
    places: dict[int | None, int | None] = {None: None}
    nodes: list[NodeFile] = []
    for node_id, parent, node in found:
        nodes.append(msgspec.structs.replace(node, parent=places.get(parent, len(nodes) - 1 if nodes else None)))
        places[node_id] = len(nodes) - 1
    last, now = len(nodes) - 1 if nodes else None, time.time()
    file = ConversationFile(title="Rescued conversation", system="", model="", created=now, updated=now, head=last, nodes=nodes)
    if conversation is None:
        return file
    *values, head = conversation
    row = dict(zip(("title", "system", "model", "created", "updated"), values, strict=True), head=places.get(head, last))
    try:
        return msgspec.convert({**msgspec.to_builtins(file), **row}, ConversationFile)
    except (msgspec.MsgspecError, TypeError):
        return file  # the row is garbage: the messages get a new title


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return the exit code."""
    if len(arguments) != 2:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    try:
        with ConversationStore(arguments[1]) as store:
            result = rescue(Path(arguments[0]), store)
    except EdgeError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(
        f"{result.n_messages} messages in {result.n_conversations} conversations came back; "
        f"{result.n_lost} could not be read.\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
