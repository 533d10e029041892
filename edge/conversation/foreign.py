"""Conversations of other programs: what their readers share.

A reader yields an `Export` for every conversation, and a text for everything that it could not read. Nothing in such a file is
trusted: types, order, references and times are checked here.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import msgspec

from edge.conversation.files import ConversationFile, NodeFile
from edge.conversation.tree import clean, default_title
from edge.messages import fence_for
from edge.types import Role

__all__ = [
    "Export",
    "ForeignNode",
    "Found",
    "arrange",
    "as_dict",
    "as_list",
    "as_seconds",
    "as_text",
    "fenced",
    "imported_id",
    "make_export",
    "make_node",
]

_LAST_SECOND = 253402300799.0  # the end of 9999
_MARK = "imported"


@dataclass(frozen=True, slots=True)
class Export:
    """One conversation of a file.

    Attributes:
        file: the conversation.
        origin: the same for the same conversation in every export, so that it is not added twice.
    """

    file: ConversationFile
    origin: str


Found = Export | str
"""A conversation, or a sentence about one that cannot be read."""


@dataclass(frozen=True, slots=True)
class ForeignNode:
    """A message of another program and its place.

    Attributes:
        parent: id of the message that it answers, if that is known.
        node: the message without its place; None for one that is not shown, whose answers belong to its parent.
        created: in seconds since 1970; 0 if unknown.
    """

    parent: str | None
    node: NodeFile | None
    created: float


def make_node(role: Role, content: str, *, program: str, id: str, **fields: Any) -> NodeFile:
    """Return a message that remembers its id in the other program."""
    return NodeFile(parent=None, role=role, content=content, record={_MARK: {"from": program, "id": clean(id)}}, **fields)


def imported_id(record: Mapping[str, Any]) -> str | None:
    """Return the id that a message had in another program; None for a message of edge."""
    mark = record.get(_MARK)
    return f"{mark.get('from')}:{mark.get('id')}" if isinstance(mark, dict) else None


def make_export(
    program: str,
    id: str,
    nodes: Mapping[str, ForeignNode],
    head: str | None,
    *,
    title: str = "",
    system: str = "",
    created: float = 0.0,
    updated: float = 0.0,
) -> Export | None:
    """Return a conversation; None if no message of it is shown.

    Args:
        program: that wrote it.
        id: of the conversation, there.
        nodes: its messages by their ids.
        head: the last message of the current path, if that is known.
        title: "" takes it from the first question.
        system: the system prompt.
        created, updated: in seconds since 1970; 0 takes the times of the messages.
    """
    placed, at = arrange(nodes, head, created)
    if not placed:
        return None
    created = created or min(node.created for node in placed)
    updated = max(updated, created, *(node.created for node in placed))
    asked = next((node.content for node in placed if node.role == "user"), "")
    # The model stays empty: it is not on this device, and opening the conversation would look for it.
    file = ConversationFile(
        title=title or default_title(asked, ()),
        system=system,
        model="",
        created=created,
        updated=updated,
        head=at,
        nodes=placed,
    )
    return Export(file, f"{program}:{id}")


def arrange(nodes: Mapping[str, ForeignNode], head: str | None, since: float = 0.0) -> tuple[list[NodeFile], int | None]:
    """Return the shown messages, every one after its parent and otherwise by time, and the position of the head.

    A message whose parent is missing, or that is its own ancestor, starts a branch. Without a usable head, it is the newest
    message that nobody answers. A message without a time gets its parent's, or `since`.
    """
    children: dict[str | None, list[str]] = {}
    for id, node in nodes.items():
        children.setdefault(node.parent if node.parent in nodes else None, []).append(id)
    places: dict[str, int | None] = {}  # id -> position of itself, or of its closest shown ancestor
    placed: list[NodeFile] = []
    order = {id: number for number, id in enumerate(nodes)}
    waiting: list[tuple[float, int, str]] = []

    def push(ids: Iterable[str], not_before: float) -> None:
        for id in ids:
            heapq.heappush(waiting, (max(nodes[id].created, not_before), order[id], id))

    def walk() -> None:
        while waiting:
            time, _, id = heapq.heappop(waiting)
            if id in places:
                continue
            above = nodes[id].parent
            place = places.get(above) if above is not None else None
            shown = nodes[id].node
            if shown is not None:
                placed.append(msgspec.structs.replace(shown, parent=place, created=nodes[id].created or time))
                place = len(placed) - 1
            places[id] = place
            push(children.get(id, ()), time)

    push(children.get(None, ()), since)
    walk()
    for id in nodes:  # circles have no start
        if id not in places:
            push([id], since)
            walk()
    if not placed:
        return [], None
    chosen = places.get(head) if head is not None else None
    if chosen is None:
        answered = {node.parent for node in placed}
        chosen = max(place for place in range(len(placed)) if place not in answered)
    return placed, chosen


def as_text(value: object) -> str:
    """Return a value that should be text; "" if it is not."""
    return value if isinstance(value, str) else ""


def as_dict(value: object) -> dict[str, Any]:
    """Return a value that should be a JSON object; {} if it is not."""
    return value if isinstance(value, dict) else {}


def as_list(value: object) -> list[Any]:
    """Return a value that should be a JSON array; [] if it is not."""
    return value if isinstance(value, list) else []


def as_seconds(value: object) -> float:
    """Return a time in seconds since 1970, given as a number or in ISO 8601 (UTC without an offset); 0 for anything else."""
    if isinstance(value, str):
        try:
            parsed = datetime.fromisoformat(value.replace("Z", "+00:00"))
            value = (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()
        except (ValueError, OverflowError):
            return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    if isinstance(value, float) and not math.isfinite(value):
        return 0.0
    return float(value) if 0 <= value <= _LAST_SECOND else 0.0


def fenced(text: str, language: str = "") -> str:
    """Return a text as a Markdown code block."""
    fence = fence_for(text)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
