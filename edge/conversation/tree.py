"""What a conversation is made of, and the SQL that reads and writes one row of it.

Everything here works inside a transaction that the caller (conversation.py) has begun.
"""

# ruff: noqa: S608 -- SQL is put together from constants; values are always bound.

from __future__ import annotations

import re
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import msgspec

from edge.conversation.db import is_alive, process_mark
from edge.errors import UsageError
from edge.types import Message, Role

__all__ = ["Attachment", "ConversationInfo", "Node", "SearchHit", "Status"]

Status = Literal["complete", "partial", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text that goes with a message.

    Attributes:
        name: of the file, or what the user called it.
        text: what is in it.
    """

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Node:
    """One saved message and its place in the tree.

    Attributes:
        id: its number, larger than that of every older node.
        parent: the node it answers; None at the start of a conversation.
        role, content: who speaks, and the text.
        attachments: texts that were sent with it.
        status: "partial" while it is being written, "stopped" when the user or the death of the process ended it early,
            "failed" after an error, otherwise "complete".
        created: when it was added, in seconds since 1970.
        model: what wrote it, "" for a user's message.
        record: how it came about (usage, timing, plan), as JSON values.
        name: the tool's or speaker's name, where the role has one.
        conversation_id: where it belongs.
    """

    id: int
    parent: int | None
    role: Role
    content: str
    attachments: tuple[Attachment, ...] = ()
    status: Status = "complete"
    created: float = 0.0
    model: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    conversation_id: str = ""

    def message(self) -> Message:
        """What the model reads: the attachments, each in a fence that nothing in it can close, then the text."""
        parts = []
        for attachment in self.attachments:
            runs = re.findall("`{3,}", attachment.text)
            fence = "`" * (max(map(len, runs), default=2) + 1)
            parts.append(f"File {' '.join(attachment.name.split())}:\n{fence}\n{attachment.text}\n{fence}")
        if self.content or not parts:
            parts.append(self.content)
        return Message(self.role, "\n\n".join(parts), self.name)


@dataclass(frozen=True, slots=True)
class ConversationInfo:
    """A conversation without its messages.

    Attributes:
        id: 13 letters and digits that sort by time; any beginning that only one conversation has will do for `get`.
        title: given, or taken from the first question; "" before there is one.
        system: the system prompt.
        model: the model it was last used with, as the user named it.
        head: the last node of the path that is shown; None when empty.
        draft: what is typed but not sent.
        created, updated: seconds since 1970.
        n_messages: how many nodes there are, all branches counted.
    """

    id: str
    title: str
    system: str
    model: str
    head: int | None
    draft: str
    created: float
    updated: float
    n_messages: int


@dataclass(frozen=True, slots=True)
class SearchHit:
    """Something that was found.

    Attributes:
        conversation: where.
        node_id: the message; None when it was the title.
        snippet: the words around it, one line without control characters.
        matches: (start, end) of the words found within `snippet`.
    """

    conversation: ConversationInfo
    node_id: int | None
    snippet: str
    matches: tuple[tuple[int, int], ...] = ()


INFO = """c.id, c.title, c.system, c.model, c.head, c.draft, c.created, c.updated,
    (SELECT count(*) FROM node WHERE conversation = c.key)"""
NODE = """n.id, n.parent, n.role, n.content, n.attached, n.spans, n.status, n.created, n.model, n.record, n.name,
    (SELECT id FROM conversation WHERE key = n.conversation), n.writer"""
BELOW = "WITH RECURSIVE below(id) AS (SELECT ? UNION ALL SELECT n.id FROM node n JOIN below b ON n.parent = b.id)"
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: no character in it can be taken for another."""

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters, line ends and what turns the direction of writing around: never in a title or a snippet."""

_TITLE_LENGTH = 60
_FORGOTTEN_S = 24 * 3600.0
"""A partial message this old, of a process that cannot be seen from here, is taken for stopped."""


def make_id(at_ms: int) -> str:
    """An id of 13 characters: 9 for the time, in milliseconds since 1970, 4 drawn at random."""
    number = (at_ms % (1 << 45)) << 20 | secrets.randbits(20)
    return "".join(ALPHABET[number >> shift & 31] for shift in range(60, -1, -5))


def clean(text: str) -> str:
    """The text as it can be stored: surrogates joined where they are pairs, otherwise U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def to_line(text: str) -> str:
    """The text as one line without what could steer a terminal."""
    return " ".join(CONTROLS.sub(" ", clean(text)).split())


def to_json(record: Mapping[str, object]) -> str:
    """A record as JSON.

    Raises:
        UsageError: something in it has no JSON form.
    """
    try:
        return msgspec.json.encode(dict(record)).decode()
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise UsageError(f"The record of a message cannot be saved: {error}.", "Use JSON values only.") from error


def check_status(status: str) -> Status:
    """The status, if it is one.

    Raises:
        UsageError: it is none.
    """
    for known in get_args(Status):
        if status == known:
            return known  # type: ignore[no-any-return]
    raise UsageError(f"There is no status {status!r}.", f"Use one of {', '.join(get_args(Status))}.")


def default_title(content: str, attachments: Sequence[Attachment]) -> str:
    """The first line that says something, at most 60 characters, cut between words; else the name of an attachment."""
    lines = (to_line(line) for line in [*content.splitlines(), *(attachment.name for attachment in attachments)])
    title = next((line for line in lines if line), "")
    if len(title) <= _TITLE_LENGTH:
        return title
    cut = title[:_TITLE_LENGTH]
    return (cut.rpartition(" ")[0] if " " in cut[_TITLE_LENGTH // 2 :] else cut[:-1]).rstrip(" ,;:.-") + "…"


def fork_title(title: str) -> str:
    """ "Title (fork)", then "Title (fork 2)" and so on; "" stays "", so that the fork gets one of its own."""
    match = re.fullmatch(r"(.*) \(fork(?: (\d{1,9}))?\)", title)
    if match:
        return f"{match[1]} (fork {int(match[2] or 1) + 1})"
    return f"{title} (fork)" if title else ""


def no_node(node_id: int) -> UsageError:
    """The error for a message that is not there."""
    return UsageError(f"There is no message {node_id}.", "It, or its conversation, may have been deleted.")


def find_key(db: sqlite3.Connection, id: str) -> int:
    """The key of the conversation with exactly this id.

    Raises:
        UsageError: there is none.
    """
    row = db.execute("SELECT key FROM conversation WHERE id = ?", (clean(id),)).fetchone()
    if row is None:
        raise UsageError(f"There is no conversation {id!r}.", "It may have been deleted.")
    return int(row[0])


def check_member(db: sqlite3.Connection, key: int, node_id: int, id: str) -> None:
    """See to it that a node is one of a conversation.

    Raises:
        UsageError: it is not.
    """
    if db.execute("SELECT 1 FROM node WHERE id = ? AND conversation = ?", (node_id, key)).fetchone() is None:
        raise UsageError(f"Message {node_id} is not in conversation {id}.", "It may have been deleted.")


def read_info(db: sqlite3.Connection, key: int) -> ConversationInfo:
    """The conversation with this key, which exists."""
    return ConversationInfo(*db.execute(f"SELECT {INFO} FROM conversation c WHERE key = ?", (key,)).fetchone())


def read_nodes(db: sqlite3.Connection, sql: str, values: Sequence[object]) -> list[Node]:
    """The nodes that a query for the columns NODE finds."""
    return [to_node(row) for row in db.execute(sql, values)]


def read_node(db: sqlite3.Connection, node_id: int) -> Node:
    """One node.

    Raises:
        UsageError: there is none with this number.
    """
    found = read_nodes(db, f"SELECT {NODE} FROM node n WHERE n.id = ?", (node_id,))
    if not found:
        raise no_node(node_id)
    return found[0]


def read_path(db: sqlite3.Connection, node_id: int) -> list[Node]:
    """The nodes from the start to this one. A parent's number is smaller, so their order is the path."""
    sql = f"""WITH RECURSIVE path(id, parent) AS (SELECT id, parent FROM node WHERE id = ?
        UNION ALL SELECT n.id, n.parent FROM node n JOIN path p ON n.id = p.parent)
        SELECT {NODE} FROM node n WHERE n.id IN (SELECT id FROM path) ORDER BY n.id"""
    return read_nodes(db, sql, (node_id,))


def insert_conversation(
    db: sqlite3.Connection, id: str, *, title: str, system: str, model: str, created: float, updated: float
) -> int:
    """Add a conversation without messages, as the one with the newest activity; gives its key."""
    sql = """INSERT INTO conversation(id, title, system, model, draft, created, updated, activity)
        VALUES (?, ?, ?, ?, '', ?, ?, (SELECT coalesce(max(activity), 0) + 1 FROM conversation))"""
    cursor = db.execute(sql, (id, to_line(title), clean(system), clean(model), created, updated))
    return int(cursor.lastrowid or 0)


def insert_node(db: sqlite3.Connection, key: int, node: Node, parent: int | None, status: Status) -> int:
    """Add what `node` says to a conversation, under `parent`, with a number of its own, which is returned."""
    attachments = [(clean(attachment.name), clean(attachment.text)) for attachment in node.attachments]
    sql = """INSERT INTO node(
        conversation, parent, role, name, content, attached, spans, status, writer, created, model, record)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
    values = (
        key,
        parent,
        node.role,
        None if node.name is None else clean(node.name),
        clean(node.content),
        "".join(f"{name}\n{text}\n" for name, text in attachments),
        msgspec.json.encode([(len(name), len(text)) for name, text in attachments]).decode(),
        status,
        process_mark() if status == "partial" else "",
        node.created,
        clean(node.model),
        to_json(node.record),
    )
    return int(db.execute(sql, values).lastrowid or 0)


def purge_index(db: sqlite3.Connection) -> None:
    """Rewrite the search index without the words of deleted texts, which it otherwise keeps, marked as deleted.

    FTS5's own "secure-delete" would do it in place, but an older SQLite cannot read a file that ever used it.
    """
    db.execute("INSERT INTO node_fts(node_fts) VALUES ('optimize')")
    db.execute("INSERT INTO title_fts(title_fts) VALUES ('optimize')")


def to_node(row: tuple[Any, ...]) -> Node:
    """A row of the columns NODE as a node."""
    id, parent, role, content, attached, spans, status, created, model, record, name, conversation_id, writer = row
    attachments, at = [], 0
    for name_length, text_length in msgspec.json.decode(spans, type=list[tuple[int, int]]):
        text_at = at + name_length + 1
        attachments.append(Attachment(attached[at : text_at - 1], attached[text_at : text_at + text_length]))
        at = text_at + text_length + 1
    if status == "partial" and _is_abandoned(writer, created):
        status = "stopped"
    values = msgspec.json.decode(record)
    return Node(id, parent, role, content, tuple(attachments), status, created, model, values, name, conversation_id)


def _is_abandoned(writer: str, created: float) -> bool:
    is_running = is_alive(writer)
    return time.time() - created > _FORGOTTEN_S if is_running is None else not is_running
