"""The values of a conversation, and the SQL that reads and writes one row.

Everything here runs in a transaction that the caller (store.py) has begun.
"""

# ruff: noqa: S608 -- SQL is put together from constants; values are always bound.

from __future__ import annotations

import hashlib
import re
import secrets
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import msgspec

from edge.citations import frame, read_citations
from edge.conversation.db import is_alive, process_mark
from edge.errors import UsageError
from edge.messages import fence_for
from edge.types import Message, Role, ToolCall, kind_of

__all__ = ["Attachment", "ConversationInfo", "Node", "SearchHit", "Status"]

Status = Literal["complete", "partial", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text attached to a message.

    Attributes:
        name: of the file, or given by the user.
        text: its content.

    Raises:
        UsageError: one of them is not a str.
    """

    name: str
    text: str

    def __post_init__(self) -> None:
        for what, value in (("name", self.name), ("text", self.text)):
            if not isinstance(value, str):
                raise UsageError(f"The {what} of an attachment is text, not {kind_of(value)}.", "Pass a str.")


@dataclass(frozen=True, slots=True)
class Node:
    """One saved message and its place in the tree.

    Attributes:
        id: larger than that of every older node.
        parent: the node that it answers; None at the start of a conversation.
        role, content: of the message.
        attachments: sent with it.
        status: "partial" while it is generated, "stopped" if the user or the end of the process ended it early, "failed" after
            an error, otherwise "complete".
        created: in seconds since 1970.
        model: that generated it; "" for a user's message.
        record: usage, timing and plan, as JSON values.
        name: the tool's or speaker's name, if the role has one.
        conversation_id: of its conversation.
        tool_calls, tool_call_id, reasoning: of the message; see `Message`.
    """

    id: int
    parent: int | None
    role: Role
    content: str
    attachments: tuple[Attachment, ...] = ()
    status: Status = "complete"
    created: float = 0.0
    model: str = ""
    record: dict[str, Any] = field(default_factory=dict, repr=False)  # 2 kB of receipt
    name: str | None = None
    conversation_id: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str = ""

    def message(self) -> Message:
        """Return the message for the model: passages of documents, attachments, each in a fence that its text cannot close, and
        the text.
        """
        parts = [passages] if (passages := frame(*read_citations(self.record))) else []
        for attachment in self.attachments:
            fence = fence_for(attachment.text)
            parts.append(f"File {' '.join(attachment.name.split())}:\n{fence}\n{attachment.text}\n{fence}")
        if self.content or not parts:
            parts.append(self.content)
        return Message(self.role, "\n\n".join(parts), self.name, self.tool_calls, self.tool_call_id, self.reasoning)


@dataclass(frozen=True, slots=True)
class ConversationInfo:
    """A conversation without its messages.

    Attributes:
        id: 13 letters and digits that sort by time; `get` accepts any unique prefix.
        title: given, or taken from the first question; "" before there is one.
        system: the system prompt.
        model: the last used model, as the user named it.
        head: the last node of the current path; None if empty.
        draft: typed but not sent.
        created, updated: in seconds since 1970.
        n_messages: number of nodes in all branches.
        cache_namespace: of the KV cache: what others of that namespace have prefilled is reused, and nothing else. An imported
            conversation has one of its own, which its forks share.
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
    cache_namespace: str = ""


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One hit of a search.

    Attributes:
        conversation: with the hit.
        node_id: the message; None for the title.
        snippet: the words around the match, one line without control characters.
        matches: (start, end) of the found words in `snippet`.
    """

    conversation: ConversationInfo
    node_id: int | None
    snippet: str
    matches: tuple[tuple[int, int], ...] = ()


INFO = """c.id, c.title, c.system, c.model, c.head, c.draft, c.created, c.updated,
    (SELECT count(*) FROM node WHERE conversation = c.key), c.cache_namespace"""
NODE = """n.id, n.parent, n.role, n.content, n.attached, n.spans, n.status, n.created, n.model, n.record, n.name,
    n.calls, n.call_id, n.reasoning, (SELECT id FROM conversation WHERE key = n.conversation), n.writer"""
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32: no two characters look alike."""

CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters, line ends and direction overrides: never in a title or a snippet."""

_TITLE_LENGTH = 60
_FORGOTTEN_S = 24 * 3600.0
"""A partial message this old, of a process that cannot be seen from here, counts as stopped."""


def make_id(at_ms: int) -> str:
    """Return an id of 13 characters: 9 for the time in milliseconds since 1970, 4 random."""
    number = (at_ms % (1 << 45)) << 20 | secrets.randbits(20)
    return _spell_id(number)


def derive_id(created: float, origin: str) -> str:
    """Return an id like those of `make_id` that is always the same for an origin.

    Args:
        created: time of the conversation, in seconds since 1970; 0 if it is unknown.
        origin: names the conversation in all the world.
    """
    digest = int.from_bytes(hashlib.sha256(clean(origin).encode()).digest()[:9], "big")
    at_ms = int(created * 1000) or digest >> 20
    number = (at_ms % (1 << 45)) << 20 | digest % (1 << 20)
    return _spell_id(number)


def _spell_id(number: int) -> str:
    return "".join(ALPHABET[number >> shift & 31] for shift in range(60, -1, -5))


def short_prefix(id: str, others: Sequence[str]) -> str:
    """Return the shortest prefix of an id, of at least 4 characters, that no id in `others` nor any later one begins with."""
    now = make_id(time.time_ns() // 1_000_000)
    return next(id[:n] for n in range(4, len(id) + 5) if n >= len(id) or not any(o.startswith(id[:n]) for o in (*others, now)))


def clean(text: str) -> str:
    """Return the text as it can be stored: pairs of surrogates joined, single ones replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def to_line(text: str) -> str:
    """Return the text as one line without characters that could control a terminal."""
    return " ".join(CONTROLS.sub(" ", clean(text)).split())


def to_json(record: Mapping[str, object]) -> str:
    """Return a record as JSON.

    Raises:
        UsageError: it holds a value without a JSON form.
    """
    try:
        try:
            return msgspec.json.encode(dict(record)).decode()
        except UnicodeEncodeError:  # such as a path that is not UTF-8
            return msgspec.json.encode(_clean_all(dict(record))).decode()
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise UsageError(f"The record of a message cannot be saved: {error}.", "Use JSON values only.") from error


def _clean_all(value: object) -> object:
    """Return a value with all its texts cleaned."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {_clean_all(key): _clean_all(below) for key, below in value.items()}
    return [_clean_all(below) for below in value] if isinstance(value, (list, tuple)) else value


def check_status(status: str) -> Status:
    """Return the status, checked.

    Raises:
        UsageError: there is no such status.
    """
    if status not in get_args(Status):
        raise UsageError(f"There is no status {status!r}.", f"Use one of {', '.join(get_args(Status))}.")
    return cast("Status", status)


def default_title(content: str, attachments: Sequence[Attachment]) -> str:
    """Return the first non-empty line, at most 60 characters and split between words, or the name of an attachment."""
    lines = (to_line(line) for line in [*content.splitlines(), *(attachment.name for attachment in attachments)])
    title = next((line for line in lines if line), "")
    if len(title) <= _TITLE_LENGTH:
        return title
    cut = title[:_TITLE_LENGTH]
    return (cut.rpartition(" ")[0] if " " in cut[_TITLE_LENGTH // 2 :] else cut[:-1]).rstrip(" ,;:.-") + "…"


def fork_title(title: str) -> str:
    """Return "Title (fork)", then "Title (fork 2)" and so on; "" stays "", so that the fork gets its own title."""
    match = re.fullmatch(r"(.*) \(fork(?: (\d{1,9}))?\)", title)
    if match:
        return f"{match[1]} (fork {int(match[2] or 1) + 1})"
    return f"{title} (fork)" if title else ""


def no_node(node_id: int) -> UsageError:
    """Return the error for a missing message."""
    return UsageError(f"There is no message {node_id}.", "It, or its conversation, may have been deleted.")


def find_key(db: sqlite3.Connection, id: str) -> int:
    """Return the key of the conversation with exactly this id.

    Raises:
        UsageError: there is none.
    """
    row = db.execute("SELECT key FROM conversation WHERE id = ?", (clean(id),)).fetchone()
    if row is None:
        raise UsageError(f"There is no conversation {id!r}.", "It may have been deleted.")
    return int(row[0])


def check_member(db: sqlite3.Connection, key: int, node_id: int, id: str) -> None:
    """Check that a node belongs to a conversation.

    Raises:
        UsageError: it does not.
    """
    if db.execute("SELECT 1 FROM node WHERE id = ? AND conversation = ?", (node_id, key)).fetchone() is None:
        raise UsageError(f"Message {node_id} is not in conversation {id}.", "It may have been deleted.")


def read_info(db: sqlite3.Connection, key: int) -> ConversationInfo:
    """Return the conversation with this key, which exists."""
    return ConversationInfo(*db.execute(f"SELECT {INFO} FROM conversation c WHERE key = ?", (key,)).fetchone())


def read_nodes(db: sqlite3.Connection, sql: str, values: Sequence[object]) -> list[Node]:
    """Return the nodes of a query for the columns NODE."""
    return [to_node(row) for row in db.execute(sql, values)]


def read_node(db: sqlite3.Connection, node_id: int) -> Node:
    """Return one node.

    Raises:
        UsageError: there is none with this number.
    """
    found = read_nodes(db, f"SELECT {NODE} FROM node n WHERE n.id = ?", (node_id,))
    if not found:
        raise no_node(node_id)
    return found[0]


def read_path(db: sqlite3.Connection, node_id: int | None) -> list[Node]:
    """Return the nodes from the start to this one, ordered by id, since a parent's id is smaller; [] for None."""
    sql = f"""WITH RECURSIVE path(id, parent) AS (SELECT id, parent FROM node WHERE id = ?
        UNION ALL SELECT n.id, n.parent FROM node n JOIN path p ON n.id = p.parent)
        SELECT {NODE} FROM node n WHERE n.id IN (SELECT id FROM path) ORDER BY n.id"""
    return read_nodes(db, sql, (node_id,))


def insert_conversation(
    db: sqlite3.Connection,
    id: str,
    *,
    title: str,
    system: str,
    model: str,
    created: float,
    updated: float,
    cache_namespace: str = "",
) -> int:
    """Add a conversation without messages as the one with the newest activity, and return its key."""
    sql = """INSERT INTO conversation(id, title, system, model, draft, created, updated, cache_namespace, activity)
        VALUES (?, ?, ?, ?, '', ?, ?, ?, (SELECT coalesce(max(activity), 0) + 1 FROM conversation))"""
    cursor = db.execute(sql, (id, to_line(title), clean(system), clean(model), created, updated, clean(cache_namespace)))
    return int(cursor.lastrowid or 0)


def node_of(
    message: Message,
    *,
    attachments: Sequence[Attachment] = (),
    status: Status = "complete",
    model: str = "",
    record: Mapping[str, object] | None = None,
) -> Node:
    """Return a message of now as a node that is still without an id and a parent."""
    return Node(
        0,
        None,
        message.role,
        message.content,
        tuple(attachments),
        status,
        time.time(),
        model,
        dict(record or {}),
        message.name,
        tool_calls=message.tool_calls,
        tool_call_id=message.tool_call_id,
        reasoning=message.reasoning,
    )


def insert_node(db: sqlite3.Connection, key: int, node: Node, parent: int | None, status: Status) -> int:
    """Add a copy of `node` to a conversation, under `parent`, and return its new id."""
    attachments = [(clean(attachment.name), clean(attachment.text)) for attachment in node.attachments]
    sql = """INSERT INTO node(
        conversation, parent, role, name, content, attached, spans, status, writer, created, model, record,
        calls, call_id, reasoning)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
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
        calls_to_json(node.tool_calls),
        None if node.tool_call_id is None else clean(node.tool_call_id),
        clean(node.reasoning),
    )
    return int(db.execute(sql, values).lastrowid or 0)


def purge_index(db: sqlite3.Connection) -> None:
    """Rewrite the search index without the words of deleted texts, which otherwise stay in it, marked as deleted.

    FTS5's own "secure-delete" does this in place, but older versions of SQLite cannot read a file that ever used it.
    """
    db.execute("INSERT INTO node_fts(node_fts) VALUES ('optimize')")
    db.execute("INSERT INTO title_fts(title_fts) VALUES ('optimize')")


def to_node(row: tuple[Any, ...]) -> Node:
    """Convert a row of the columns NODE."""
    id, parent, role, content, attached, spans, status, created, model, record, name, *more = row
    calls, call_id, reasoning, conversation_id, writer = more
    attachments, at = [], 0
    for name_length, text_length in msgspec.json.decode(spans, type=list[tuple[int, int]]):
        text_at = at + name_length + 1
        attachments.append(Attachment(attached[at : text_at - 1], attached[text_at : text_at + text_length]))
        at = text_at + text_length + 1
    if status == "partial" and _is_abandoned(writer, created):
        status = "stopped"
    values = msgspec.json.decode(record)
    return Node(
        id, parent, role, content, tuple(attachments), status, created, model, values, name, conversation_id,
        _read_calls(calls), call_id, reasoning,
    )  # fmt: skip


def calls_to_json(calls: Sequence[ToolCall]) -> str:
    """Return tool calls as the column `calls` has them."""
    return msgspec.json.encode([(call.name, call.arguments, call.id) for call in calls]).decode()


def _read_calls(data: str) -> tuple[ToolCall, ...]:
    return tuple(ToolCall(*values) for values in msgspec.json.decode(data, type=list[tuple[str, dict[str, Any], str]]))


def _is_abandoned(writer: str, created: float) -> bool:
    is_running = is_alive(writer)
    return time.time() - created > _FORGOTTEN_S if is_running is None else not is_running
