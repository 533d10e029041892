"""Adds conversations of files to the store, each once: what is there already is recognised, and only new messages are added."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

from edge.conversation import tree
from edge.conversation.foreign import Export, imported_id
from edge.conversation.tree import ConversationInfo

__all__ = ["Merged", "merge"]


@dataclass(frozen=True, slots=True)
class Merged:
    """The outcome for one conversation of a file.

    Attributes:
        conversation: as it is in the store now.
        n_messages: that were added.
        is_new: it was not there before.
    """

    conversation: ConversationInfo
    n_messages: int
    is_new: bool


def merge(db: sqlite3.Connection, exports: Iterable[Export]) -> list[Merged]:
    """Add conversations in a transaction, at their place in the list by their date."""
    merged = [_merge_one(db, export) for export in exports]
    _sort_in(db, {one.conversation.id for one in merged if one.n_messages})
    return merged


def _merge_one(db: sqlite3.Connection, export: Export) -> Merged:
    file, id = export.file, tree.derive_id(export.file.created, export.origin)
    row = db.execute("SELECT key, head FROM conversation WHERE id = ?", (id,)).fetchone()
    if row is None:
        return Merged(file.save(db, id), len(file.nodes), is_new=True)
    key, head = row
    sql = f"SELECT {tree.NODE} FROM node n WHERE conversation = ? ORDER BY n.id"  # noqa: S608 -- a constant
    nodes = tree.read_nodes(db, sql, (key,))
    known = {mark: node.id for node in nodes if (mark := imported_id(node.record))}
    ids: list[int | None] = []
    n_added = 0
    for node in file.nodes:
        mark = imported_id(node.record)
        there = known.get(mark) if mark else None
        if mark and there is None:
            above = None if node.parent is None else ids[node.parent]
            there = tree.insert_node(db, key, node.to_node(), above, node.saved_status)
            n_added += 1
        ids.append(there)
    if n_added:
        # The head follows, unless the conversation went on here.
        goes_on_here = head is not None and head not in known.values()
        new_head = head if goes_on_here or file.head is None else ids[file.head]
        db.execute("UPDATE conversation SET head = ?, updated = max(updated, ?) WHERE key = ?", (new_head, file.updated, key))
    return Merged(tree.read_info(db, key), n_added, is_new=False)


def _sort_in(db: sqlite3.Connection, ids: set[str]) -> None:
    """Move conversations of the list to where their date belongs. The others keep their order, whatever their dates."""
    if not ids:
        return
    rows = db.execute("SELECT key, id, activity, updated FROM conversation ORDER BY activity").fetchall()
    dated: list[tuple[float, int, int]] = []
    latest = 0.0
    for key, id, activity, updated in rows:
        latest = latest if id in ids else max(latest, updated)
        dated.append((updated if id in ids else latest, key, activity))
    dated.sort(key=lambda row: row[0])
    changed = [(place, key) for place, (_, key, activity) in enumerate(dated, start=1) if place != activity]
    db.executemany("UPDATE conversation SET activity = ? WHERE key = ?", changed)


def content_origin(data: bytes) -> str:
    """Return the origin of a conversation without an id of its own: a hash of its file."""
    return f"edge:{hashlib.sha256(data).hexdigest()}"
