"""The store of conversations. A message is a node under the one that it answers.

Editing a question or asking for another answer adds a sibling; nothing is overwritten. The head of a conversation is the last
node of the current path, the one that is on the screen.
"""

# ruff: noqa: S608 -- SQL is put together from constants; values are always bound.

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from edge.conversation import tree
from edge.conversation.db import Database, process_mark
from edge.conversation.tree import Attachment, ConversationInfo, Node, SearchHit, Status
from edge.errors import UsageError
from edge.names import import_namespace
from edge.types import Message, ToolCall, kind_of

if TYPE_CHECKING:
    import sqlite3
    from types import TracebackType

    from edge.conversation.files import ConversationFile
    from edge.conversation.foreign import Export
    from edge.conversation.merge import Merged

__all__ = ["Attachment", "ConversationInfo", "ConversationStore", "Node", "SearchHit", "Status"]

_ACTIVE = "updated = ?, activity = (SELECT max(activity) + 1 FROM conversation)"


class ConversationStore:
    """All conversations of a user. Threads may share it, and several processes may have the same file open.

    The changes of a method are on the disk when it returns. When it raises, nothing is changed, and the store stays usable.
    Halves of surrogate pairs, which no file can hold, become U+FFFD.

    Args:
        path: the database file, created if missing. None keeps everything in memory.
        on_delete: called with the ids of deleted conversations, in the thread that deleted them, to delete other data about
            them. See `edge.kv.open.forget_conversations`.

    Raises:
        StorageError: here, the file cannot be opened, is not edge's, is damaged, or was written by a newer edge; in every
            method, the disk is full, read-only or failing, the file stays locked, or the store was closed.
        UsageError: in every method that takes an id, there is no such conversation or message (any more).
    """

    def __init__(self, path: Path | str | None, *, on_delete: Callable[[Sequence[str]], None] | None = None) -> None:
        if path is not None and not isinstance(path, str | os.PathLike):
            raise UsageError(f"The path of a store is text or a Path, not {kind_of(path)}.", "None keeps it in memory.")
        self._db = Database(Path(path) if path is not None else None)
        self._on_delete = on_delete
        self._last_ms = 0

    @property
    def file(self) -> Path | None:
        """The database file; None for a store in memory."""
        return self._db.path

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._db.close()

    def __enter__(self) -> ConversationStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # Conversations

    def create(
        self,
        *,
        system: str = "",
        title: str = "",
        model: str = "",
        id: str | None = None,
        cache_namespace: str = "",
        history: Sequence[Message] = (),
    ) -> ConversationInfo:
        """Start a conversation.

        Args:
            system: the system prompt.
            title: "" takes it from the first user message.
            model: name of its model.
            id: letters, digits, - and _, at most 64; None generates one.
            cache_namespace: of its KV cache, see `ConversationInfo`.
            history: its first messages.

        Raises:
            UsageError: the id is malformed or taken.
        """
        if id is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", id):
            raise UsageError(f"{id!r} cannot be the id of a conversation.", "Use letters, digits, - and _, at most 64.")
        with self._db.write() as db:
            if id is not None and db.execute("SELECT 1 FROM conversation WHERE id = ?", (id,)).fetchone():
                raise UsageError(f"There is a conversation {id!r} already.", "Choose another id, or open that one.")
            now = time.time()
            new_id = id or self._new_id(db)
            key = tree.insert_conversation(
                db, new_id, title=title, system=system, model=model, created=now, updated=now, cache_namespace=cache_namespace
            )
            head = None
            for message in history:
                head = _append(db, key, tree.node_of(message), head)
            return tree.read_info(db, key)

    def get(self, id: str) -> ConversationInfo:
        """Return the conversation with this id or unique prefix of one; case does not matter, nor o for 0 and l for 1.

        Raises:
            UsageError: there is none, or more than one.
        """
        typed = tree.clean(id).strip()
        plain = typed.lower().translate(str.maketrans("oil", "011", " -"))
        with self._db.read() as db:
            found = db.execute(f"SELECT {tree.INFO} FROM conversation c WHERE id = ?", (typed,)).fetchall()
            for prefix in dict.fromkeys((typed, plain)):
                if not found and prefix:
                    sql = f"SELECT {tree.INFO} FROM conversation c WHERE id >= ? AND id < ? ORDER BY id DESC LIMIT 4"
                    found = db.execute(sql, (prefix, prefix + "\U0010ffff")).fetchall()
        if not found:
            raise UsageError(f"There is no conversation {typed!r}.", "edge conversations ls lists the ids.")
        if len(found) > 1:
            some = "; ".join(f"{row[0]} ({row[1] or 'no title'})" for row in found[:3])
            raise UsageError(f"Several conversations begin with {typed!r}: {some}.", "Type more of the id.")
        return ConversationInfo(*found[0])

    def short_id(self, id: str) -> str:
        """Return a prefix of an id, of 4 characters or more, that `get` will find it by, also after newer ones were made."""
        with self._db.read() as db:
            sql = "SELECT max(id) FROM conversation WHERE id < ?1 UNION ALL SELECT min(id) FROM conversation WHERE id > ?1"
            others = [row[0] for row in db.execute(sql, (id,)) if row[0] is not None]
        return tree.short_prefix(id, others)

    def search(self, text: str, limit: int = 50) -> list[SearchHit]:
        """Find titles, messages and attachments with all these words: titles first, then the newest messages.

        The last word may be a prefix. "Words in double quotes" are a phrase. Accents and case do not matter. No text is an
        error; one without a word finds nothing.

        Args:
            text: the user's; its first 32 words count.
            limit: the most hits.
        """
        from edge.conversation.search import search

        with self._db.read() as db:
            found = search(db, tree.clean(text), limit)
            return [SearchHit(tree.read_info(db, hit.key), hit.node_id, hit.snippet, hit.matches) for hit in found]

    def rename(self, id: str, title: str) -> None:
        """Give a conversation a title; "" takes it from the first user message again."""
        with self._db.write() as db:
            key = tree.find_key(db, id)
            new = tree.to_line(title)
            if not new:
                sql = f"SELECT {tree.NODE} FROM node n WHERE conversation = ? AND role = 'user' ORDER BY id LIMIT 1"
                new = "".join(tree.default_title(node.content, node.attachments) for node in tree.read_nodes(db, sql, (key,)))
            db.execute("UPDATE conversation SET title = ? WHERE key = ?", (new, key))

    def set_system(self, id: str, system: str) -> None:
        """Change the system prompt."""
        self._set(id, "system", system)

    def set_model(self, id: str, model: str) -> None:
        """Remember the conversation's model."""
        self._set(id, "model", model)

    def set_cache_namespace(self, id: str, namespace: str) -> None:
        """Change the namespace of the KV cache: what it had prefilled in the old one is not reused any more."""
        self._set(id, "cache_namespace", namespace)

    def set_draft(self, id: str, draft: str) -> None:
        """Save a text that is typed but not sent."""
        self._set(id, "draft", draft)

    def set_head(self, id: str, node_id: int | None) -> None:
        """Make the path that ends at this node the current one; None is an empty path.

        Raises:
            UsageError: the node does not belong to this conversation.
        """
        with self._db.write() as db:
            key = tree.find_key(db, id)
            if node_id is not None:
                tree.check_member(db, key, node_id, id)
            db.execute("UPDATE conversation SET head = ? WHERE key = ?", (node_id, key))

    def delete(self, *ids: str) -> None:
        """Delete conversations for good: their text is overwritten in the file and in the search index.

        Raises:
            UsageError: one of them is missing; none is deleted.
        """
        with self._db.write() as db:
            keys = [tree.find_key(db, id) for id in ids]
            for key in keys:
                db.execute("DELETE FROM node WHERE conversation = ?", (key,))
                db.execute("DELETE FROM conversation WHERE key = ?", (key,))
            tree.purge_index(db)
        self._db.forget_deleted()
        if self._on_delete is not None and ids:
            self._on_delete(ids)

    def fork(self, id: str, node_id: int) -> ConversationInfo:
        """Start a new conversation with a copy of the path that ends at this node.

        Raises:
            UsageError: the node does not belong to this conversation.
        """
        from edge.conversation.files import ConversationFile

        with self._db.write() as db:
            file, now = ConversationFile.load(db, id, self._read_path(db, id, node_id)), time.time()
            copy = msgspec.structs.replace(file, title=tree.fork_title(file.title), created=now, updated=now)
            return copy.save(db, self._new_id(db), tree.read_info(db, tree.find_key(db, id)).cache_namespace)

    # Messages

    def append(
        self,
        conversation_id: str,
        message: Message,
        *,
        parent: int | None,
        attachments: Sequence[Attachment] = (),
        status: Status = "complete",
        model: str = "",
        record: Mapping[str, object] | None = None,
    ) -> Node:
        """Add a message and move the head to it.

        Args:
            conversation_id: the whole id.
            message: role, text, name, tool calls and reasoning.
            parent: the node that it answers, None at the start of a conversation. Siblings have the same parent.
            attachments: texts attached to it.
            status: "partial" for a reply that `update` will finish.
            model: that generated it.
            record: usage, timing and plan; must be JSON values.

        Raises:
            UsageError: there is no such conversation or parent, or the record is not JSON.
        """
        status = tree.check_status(status)
        node = tree.node_of(message, attachments=attachments, status=status, model=model, record=record)
        with self._db.write() as db:
            key = tree.find_key(db, conversation_id)
            if parent is not None:
                tree.check_member(db, key, parent, conversation_id)
            return tree.read_node(db, _append(db, key, node, parent))

    def update(
        self,
        node_id: int,
        *,
        content: str | None = None,
        status: Status | None = None,
        record: Mapping[str, object] | None = None,
        tool_calls: Sequence[ToolCall] | None = None,
        reasoning: str | None = None,
    ) -> Node:
        """Extend or finish a partial message. Of a finished one only the record may change.

        Args:
            node_id: a message whose status is "partial".
            content: the whole text so far.
            status: any but "partial" finishes it.
            record: replaces the record.
            tool_calls, reasoning: all of them so far.

        Raises:
            UsageError: there is no such message (any more), it is finished, or the record is not JSON.
        """
        with self._db.write() as db:
            row = db.execute("SELECT status, conversation FROM node WHERE id = ?", (node_id,)).fetchone()
            if row is None:
                raise tree.no_node(node_id)
            texts = {
                "content": None if content is None else tree.clean(content),
                "calls": None if tool_calls is None else tree.calls_to_json(tool_calls),
                "reasoning": None if reasoning is None else tree.clean(reasoning),
            }
            given = {column: text for column, text in texts.items() if text is not None}
            if row[0] != "partial" and (given or status is not None):
                raise UsageError(f"Message {node_id} is finished.", "Add a sibling to it instead of changing it.")
            for column, text in given.items():
                db.execute(f"UPDATE node SET {column} = ? WHERE id = ?", (text, node_id))
            if record is not None:
                db.execute("UPDATE node SET record = ? WHERE id = ?", (tree.to_json(record), node_id))
            if status is not None and tree.check_status(status) != "partial":
                db.execute("UPDATE node SET status = ?, writer = '' WHERE id = ?", (status, node_id))
                db.execute(f"UPDATE conversation SET {_ACTIVE} WHERE key = ?", (time.time(), row[1]))
            return tree.read_node(db, node_id)

    def reopen(self, node_id: int) -> Node:
        """Make a finished answer partial again and the head, so that `update` can extend it.

        Raises:
            UsageError: it is not an answer, it is still being generated, or other messages follow it.
        """
        with self._db.write() as db:
            node = _open_end(db, node_id)
            db.execute("UPDATE node SET status = 'partial', writer = ? WHERE id = ?", (process_mark(), node_id))
            sql = f"UPDATE conversation SET head = ?, {_ACTIVE} WHERE id = ?"
            db.execute(sql, (node_id, time.time(), node.conversation_id))
            return tree.read_node(db, node_id)

    def shorten(self, node_id: int, length: int, record: Mapping[str, object]) -> Node:
        """Cut a finished answer after so many characters; it counts as stopped then.

        Args:
            node_id: an answer that no message follows.
            length: characters that stay; more than it has leave it as it is.
            record: replaces the record. What is cut off is only what the caller puts there.

        Raises:
            UsageError: it is not an answer, it is still being generated, or other messages follow it.
        """
        with self._db.write() as db:
            node = _open_end(db, node_id)
            sql = "UPDATE node SET content = ?, record = ?, status = 'stopped' WHERE id = ?"
            db.execute(sql, (node.content[:length], tree.to_json(record), node_id))
            db.execute(f"UPDATE conversation SET {_ACTIVE} WHERE id = ?", (time.time(), node.conversation_id))
            return tree.read_node(db, node_id)

    def claim(self, id: str) -> Callable[[], None]:
        """Claim a conversation for a turn, and return a function that releases it.

        Raises:
            UsageError: another process, or another store of this one, has claimed it.
        """
        from edge.conversation.claims import claim

        release = claim(self.file, id) if self.file is not None else lambda: None
        if release is None:
            hint = "Wait for that reply, stop it there, or fork the conversation."
            raise UsageError("This conversation is being answered in another window.", hint)
        return release

    def data_version(self) -> int:
        """Return a number that changes when another connection, such as another process, changes the file."""
        with self._db.read() as db:
            return int(db.execute("PRAGMA data_version").fetchone()[0])

    def node(self, node_id: int) -> Node:
        """Return one message.

        Raises:
            UsageError: there is none with this id.
        """
        with self._db.read() as db:
            return tree.read_node(db, node_id)

    def path(self, conversation_id: str, head: int | None = None) -> list[Node]:
        """Return the messages from the start to a node.

        Args:
            conversation_id: the whole id.
            head: the last node; None is the head of the conversation.

        Raises:
            UsageError: there is no such conversation, or the node is not in it.
        """
        with self._db.read() as db:
            return self._read_path(db, conversation_id, head)

    def siblings(self, node_id: int) -> list[Node]:
        """Return the versions of a message, itself included, oldest first."""
        sql = f"""SELECT {tree.NODE} FROM node n JOIN node this ON this.id = ? AND n.conversation = this.conversation
            AND n.parent IS this.parent ORDER BY n.id"""
        with self._db.read() as db:
            found = tree.read_nodes(db, sql, (node_id,))
        if not found:
            raise tree.no_node(node_id)
        return found

    def branches(self, conversation_id: str) -> dict[int, tuple[int, ...]]:
        """Return, for every message with several versions, the ids of all of them, itself included, oldest first."""
        sql = """SELECT group_concat(id) FROM (SELECT id, parent FROM node WHERE conversation = ? ORDER BY id)
            GROUP BY parent HAVING count(*) > 1"""
        with self._db.read() as db:
            rows = db.execute(sql, (tree.find_key(db, conversation_id),)).fetchall()
        groups = [tuple(sorted(int(part) for part in row[0].split(","))) for row in rows]
        return {node_id: group for group in groups for node_id in group}

    def leaf(self, node_id: int) -> Node:
        """Return the newest descendant of a message, or itself if nothing answers it."""
        sql = """WITH RECURSIVE below(id) AS (SELECT ? UNION ALL SELECT n.id FROM node n JOIN below b ON n.parent = b.id)
            SELECT max(id) FROM below"""
        with self._db.read() as db:
            tree.read_node(db, node_id)
            newest = db.execute(sql, (node_id,)).fetchone()[0]
            return tree.read_node(db, newest)

    # Files

    def export_json(self, id: str) -> str:
        """Return the whole conversation with all branches as JSON, without the draft."""
        from edge.conversation.files import ConversationFile, to_json

        with self._db.read() as db:
            file = ConversationFile.load(db, id)
        return to_json(file)

    def import_json(self, data: str | bytes) -> ConversationInfo:
        """Add a conversation from `export_json`, under a new id.

        Raises:
            StorageError: it is another file, damaged, or of a newer version.
        """
        from edge.conversation.files import from_json

        return self._save(from_json(data))

    def export_markdown(self, id: str) -> str:
        """Return the current path as Markdown that reads well on GitHub and can be imported again exactly.

        Records (usage, timing, plan) and other branches are left out; `export_json` has them.
        """
        from edge.conversation.files import ConversationFile
        from edge.conversation.markdown import to_markdown

        with self._db.read() as db:
            file = ConversationFile.load(db, id, self._read_path(db, id))
        return to_markdown(file)

    def import_markdown(self, text: str | bytes) -> ConversationInfo:
        """Add a conversation from `export_markdown`, which may have been edited by hand, under a new id.

        Raises:
            StorageError: it is another file, damaged, or of a newer version.
        """
        from edge.conversation.markdown import from_markdown

        return self._save(from_markdown(text))

    def merge(self, exports: Iterable[Export]) -> list[Merged]:
        """Add conversations of a file, each once; see `edge.conversation.imports`, which reads them."""
        from edge.conversation.merge import merge

        with self._db.write() as db:
            return merge(db, exports)

    def check(self) -> list[str]:
        """Return the problems of the file, a line each: pages, keys, trees, search index. Reads all of it."""
        from edge.conversation.check import find_problems

        with self._db.write(rollback=True) as db:
            return find_problems(db)

    def _read_path(self, db: sqlite3.Connection, id: str, head: int | None = None) -> list[Node]:
        key = tree.find_key(db, id)
        if head is None:
            head = db.execute("SELECT head FROM conversation WHERE key = ?", (key,)).fetchone()[0]
        else:
            tree.check_member(db, key, head, id)
        return tree.read_path(db, head)

    def _save(self, file: ConversationFile) -> ConversationInfo:
        with self._db.write() as db:
            id = self._new_id(db)
            return file.save(db, id, import_namespace(id))

    def new_id(self) -> str:
        """Return an id for a conversation that `create` makes later."""
        with self._db.read() as db:
            return self._new_id(db)

    def _new_id(self, db: sqlite3.Connection) -> str:
        while True:
            # Never the same millisecond twice, so that these ids sort in the order of their creation.
            self._last_ms = max(self._last_ms + 1, time.time_ns() // 1_000_000)
            id = tree.make_id(self._last_ms)
            if db.execute("SELECT 1 FROM conversation WHERE id = ?", (id,)).fetchone() is None:
                return id

    def _set(self, id: str, column: Literal["system", "model", "draft", "cache_namespace"], value: str) -> None:
        with self._db.write() as db:
            key = tree.find_key(db, id)
            db.execute(f"UPDATE conversation SET {column} = ? WHERE key = ?", (tree.clean(value), key))

    # Last, because in the class this name hides the type.

    def list(self, *, limit: int | None = None, offset: int = 0) -> list[ConversationInfo]:
        """List conversations, the one with the newest message first.

        Args:
            limit: the most to return; None is all.
            offset: number to skip at the start.
        """
        sql = f"SELECT {tree.INFO} FROM conversation c ORDER BY activity DESC LIMIT ? OFFSET ?"
        with self._db.read() as db:
            rows = db.execute(sql, (-1 if limit is None else max(limit, 0), max(offset, 0))).fetchall()
        return [ConversationInfo(*row) for row in rows]


def _open_end(db: sqlite3.Connection, node_id: int) -> Node:
    """Return a finished answer that no message follows.

    Raises:
        UsageError: it is not one.
    """
    node = tree.read_node(db, node_id)
    if node.role != "assistant":
        raise UsageError("Only an answer can be continued or shortened.", "Send a message instead.")
    if node.status == "partial":
        raise UsageError("This answer is still being generated.", "Wait for it, or stop it.")
    if db.execute("SELECT 1 FROM node WHERE parent = ?", (node_id,)).fetchone() is not None:
        raise UsageError("Other messages follow this answer, so it stays as it is.", "Fork the conversation at it.")
    return node


def _append(db: sqlite3.Connection, key: int, node: Node, parent: int | None) -> int:
    """Add a message to a conversation, move the head to it, and return its id. The first question gives the title."""
    node_id = tree.insert_node(db, key, node, parent, node.status)
    db.execute(f"UPDATE conversation SET head = ?, {_ACTIVE} WHERE key = ?", (node_id, node.created, key))
    title = tree.default_title(node.content, node.attachments) if node.role == "user" else ""
    if title:
        db.execute("UPDATE conversation SET title = ? WHERE key = ? AND title = ''", (title, key))
    return node_id
