"""Conversations as files: JSON for the whole tree. `edge.conversation.markdown` has the other form, for the current path.

Both formats are converted from and to a ConversationFile. A file is input from outside: nodes refer to each other by their
position in it, never by an id, and nothing in it is trusted unchecked.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

import msgspec

from edge.conversation import tree
from edge.conversation.tree import Attachment, ConversationInfo, Node, Status
from edge.errors import StorageError
from edge.types import Message, Role, ToolCall

__all__ = ["AttachmentFile", "CallFile", "ConversationFile", "NodeFile", "file_name", "from_json", "to_json"]

FORMAT: Literal["edge-conversation"] = "edge-conversation"
VERSION = 2
"""Of both formats. Since 2 messages may have tool calls and reasoning."""

LAST_S = 253402300799  # the end of 9999, the largest datetime
Seconds = Annotated[float, msgspec.Meta(ge=0, le=LAST_S)]
_Index = Annotated[int, msgspec.Meta(ge=0)]


class AttachmentFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An attachment in a file."""

    name: str
    text: str


class CallFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool call in a file."""

    name: str
    arguments: dict[str, Any]
    id: str = ""


class NodeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A message in a file; `parent` is the position of an earlier one."""

    parent: _Index | None
    role: Role
    content: str
    name: str | None = None
    attachments: list[AttachmentFile] = []
    status: Status = "complete"
    created: Seconds = 0.0
    model: str = ""
    record: dict[str, Any] = {}
    tool_calls: list[CallFile] = []
    tool_call_id: str | None = None
    reasoning: str = ""

    def __post_init__(self) -> None:
        Message(self.role, self.content, self.name, self._calls, self.tool_call_id, self.reasoning)  # raises if it cannot be

    @classmethod
    def from_node(cls, node: Node, places: Mapping[int, int]) -> NodeFile:
        """Convert a node of the store; `places` maps ids to positions in the file."""
        return cls(
            parent=None if node.parent is None else places[node.parent],
            role=node.role,
            content=node.content,
            name=node.name,
            attachments=[AttachmentFile(attachment.name, attachment.text) for attachment in node.attachments],
            status=node.status,
            created=_in_range(node.created),
            model=node.model,
            record=node.record,
            tool_calls=[CallFile(call.name, dict(call.arguments), call.id) for call in node.tool_calls],
            tool_call_id=node.tool_call_id,
            reasoning=node.reasoning,
        )

    def to_node(self) -> Node:
        """Convert to a node for the store, without an id or a parent."""
        attachments = tuple(Attachment(attachment.name, attachment.text) for attachment in self.attachments)
        return Node(
            0, None, self.role, self.content, attachments, self.status, self.created, self.model, self.record, self.name,
            tool_calls=self._calls, tool_call_id=self.tool_call_id, reasoning=self.reasoning,
        )  # fmt: skip

    @property
    def _calls(self) -> tuple[ToolCall, ...]:
        return tuple(ToolCall(call.name, call.arguments, call.id) for call in self.tool_calls)

    @property
    def saved_status(self) -> Status:
        """The status after import: nobody finishes a partial message then, so it is a stopped one."""
        return "stopped" if self.status == "partial" else self.status


class ConversationFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A conversation in a file. Every node comes after its parent."""

    format: Literal["edge-conversation"] = FORMAT
    version: int = VERSION
    title: str
    system: str
    model: str
    created: Seconds
    updated: Seconds
    head: _Index | None
    nodes: list[NodeFile]

    def __post_init__(self) -> None:
        for place, node in enumerate(self.nodes):
            if node.parent is not None and node.parent >= place:
                raise ValueError(f"node {place} does not come after its parent {node.parent}")
        if self.head is not None and self.head >= len(self.nodes):
            raise ValueError(f"the head is node {self.head}, and there are {len(self.nodes)}")

    @classmethod
    def load(cls, db: sqlite3.Connection, id: str, path: Sequence[Node] | None = None) -> ConversationFile:
        """Read a conversation from the store: its whole tree, or only a path of it.

        Raises:
            UsageError: there is no such conversation.
        """
        key = tree.find_key(db, id)
        info, nodes = tree.read_info(db, key), path
        if nodes is None:
            sql = f"SELECT {tree.NODE} FROM node n WHERE conversation = ? ORDER BY n.id"  # noqa: S608 -- a constant
            nodes = tree.read_nodes(db, sql, (key,))
        head = info.head if path is None else path[-1].id if path else None
        places = {node.id: place for place, node in enumerate(nodes)}
        return cls(
            title=info.title,
            system=info.system,
            model=info.model,
            created=_in_range(info.created),
            updated=_in_range(info.updated),
            head=None if head is None else places[head],
            nodes=[NodeFile.from_node(node, places) for node in nodes],
        )

    def save(self, db: sqlite3.Connection, id: str, cache_namespace: str = "") -> ConversationInfo:
        """Add the conversation to the store, with new ids for its nodes. No file says which namespace it has."""
        key = tree.insert_conversation(
            db, id, title=self.title, system=self.system, model=self.model, created=self.created, updated=self.updated,
            cache_namespace=cache_namespace,
        )  # fmt: skip
        ids: list[int] = []
        for node in self.nodes:
            parent = None if node.parent is None else ids[node.parent]
            ids.append(tree.insert_node(db, key, node.to_node(), parent, node.saved_status))
        head = None if self.head is None else ids[self.head]
        db.execute("UPDATE conversation SET head = ? WHERE key = ?", (head, key))
        return tree.read_info(db, key)


class Envelope(msgspec.Struct):
    format: str = ""
    version: int = 0


def to_json(file: ConversationFile) -> str:
    """Return the file as JSON text."""
    return msgspec.json.format(msgspec.json.encode(file), indent=2).decode() + "\n"


def from_json(data: str | bytes) -> ConversationFile:
    """Parse the JSON of `to_json`.

    Raises:
        StorageError: it is another file, damaged, or of a newer version.
    """
    with refusing("JSON"):
        envelope = msgspec.json.decode(data, type=Envelope)
        check_version(envelope.format, envelope.version)
        return msgspec.json.decode(data, type=ConversationFile)


def _in_range(seconds: float) -> float:
    """Return a time that a file can hold: clocks of devices without a battery may be anywhere."""
    return min(max(0.0, seconds), LAST_S)


def file_name(title: str) -> str:
    """Return a title as the name of a file, without an ending: letters and digits with hyphens between them."""
    return re.sub(r"\W+", "-", title.lower()).strip("-_")[:50] or "conversation"


def check_version(format_name: str, version: int) -> None:
    if format_name != FORMAT or version < 1:
        raise ValueError("it is not marked as a conversation of edge")
    if version > VERSION:
        raise StorageError(
            f"This conversation was exported by a newer version of edge (format {version}, this one reads up to {VERSION}).",
            "Update: pip install --upgrade edge-assistant",
        )


@contextmanager
def refusing(kind: str) -> Iterator[None]:
    """Translate the problems of a file into a StorageError."""
    try:
        yield
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise StorageError(
            f"This is not a conversation that edge exported as {kind}, or it is damaged: {error}.",
            "Nothing was imported. Export it again, or check that it is the right file.",
        ) from error
