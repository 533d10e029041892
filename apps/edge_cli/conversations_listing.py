"""Tables, pages and JSON of `edge conversations`."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.units import plural, size_text
from edge_cli import markdown, output

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.conversation import ConversationInfo, Node, SearchHit
    from edge.conversation.imports import ImportReport

__all__ = [
    "HEADINGS",
    "UNTITLED",
    "file_name",
    "hit_json",
    "info_json",
    "info_row",
    "node_json",
    "report_json",
    "show",
    "show_hits",
]

HEADINGS = ("id", "last message", "messages", "model", "title")
UNTITLED = "(no title)"


def info_row(info: ConversationInfo, now: float) -> tuple[str, ...]:
    """Return a line of the list."""
    return info.id, time_text(info.updated, now), f"{info.n_messages:,}", info.model or "-", info.title or UNTITLED


def time_text(when: float, now: float) -> str:
    """Return a local time to the minute, without the year if that is this one; "-" if it is unknown. In seconds since 1970."""
    if not when:
        return "-"
    time = datetime.fromtimestamp(when)
    return f"{time:%m-%d %H:%M}" if time.year == datetime.fromtimestamp(now).year else f"{time:%Y-%m-%d}"


def info_json(info: ConversationInfo) -> dict[str, Any]:
    """Return a conversation without its messages. Times are in seconds since 1970."""
    return {
        "id": info.id,
        "title": info.title,
        "model": info.model,
        "system": info.system,
        "created": info.created,
        "updated": info.updated,
        "n_messages": info.n_messages,
    }


def node_json(node: Node) -> dict[str, Any]:
    """Return a message."""
    return {
        "id": node.id,
        "role": node.role,
        "name": node.name,
        "content": node.content,
        "attachments": [{"name": file.name, "text": file.text} for file in node.attachments],
        "status": node.status,
        "created": node.created,
        "model": node.model,
    }


def hit_json(hit: SearchHit) -> dict[str, Any]:
    """Return a hit of a search. `matches` has the start and end of each found word in `snippet`."""
    return {
        "id": hit.conversation.id,
        "title": hit.conversation.title,
        "message": hit.node_id,
        "snippet": hit.snippet,
        "matches": [list(match) for match in hit.matches],
    }


def report_json(file: Path, report: ImportReport) -> dict[str, Any]:
    """Return the outcome of an import."""
    outcomes = (("added", report.added), ("updated", report.grown), ("known", report.known))
    found: dict[str, Any] = {
        name: [{"id": one.conversation.id, "title": one.conversation.title, "n_messages": one.n_messages} for one in several]
        for name, several in outcomes
    }
    return {"file": str(file), **found, "problems": report.problems}


def show(info: ConversationInfo, nodes: Sequence[Node]) -> None:
    """Print a conversation to read."""
    about = [info.id, info.model, plural(info.n_messages, "message"), f"{datetime.fromtimestamp(info.updated):%Y-%m-%d %H:%M}"]
    output.line(output.paint(output.plain(info.title or UNTITLED), "bold", sys.stdout))
    output.line(" · ".join(part for part in about if part))
    if info.system:
        _show_part("System prompt", info.system)
    for node in nodes:
        named = {"user": "You", "assistant": node.model or "Assistant", "tool": f"Tool {node.name or ''}".strip()}
        state = "" if node.status == "complete" else f" ({node.status})"
        _show_part(named.get(node.role, node.role) + state, node.content)
        for file in node.attachments:
            output.line(f"[{output.plain(file.name)}, {size_text(len(file.text.encode('utf-8', 'replace')))} attached]")


def _show_part(heading: str, text: str) -> None:
    output.line()
    output.line(output.paint(output.plain(heading), "bold", sys.stdout))
    if markdown.is_possible():
        for line in markdown.render(text):
            output.line(line)
    else:
        output.line(output.plain(text).rstrip("\n"))


def show_hits(hits: Sequence[SearchHit]) -> None:
    """Print hits: below their conversation with marked words on a terminal, a line each in a pipe."""
    if not output.is_terminal(sys.stdout):
        output.table([(hit.conversation.id, hit.conversation.title or UNTITLED, hit.snippet) for hit in hits])
        return
    groups: dict[str, list[SearchHit]] = {}
    for hit in hits:
        groups.setdefault(hit.conversation.id, []).append(hit)
    for number, (id, found) in enumerate(groups.items()):
        if number:
            output.line()
        titles = [hit for hit in found if hit.node_id is None]
        title = _marked(titles[0]) if titles else output.plain(found[0].conversation.title or UNTITLED)
        output.line(f"{output.paint(id, 'bold', sys.stdout)}  {title}")
        for hit in found:
            if hit.node_id is not None:
                output.line(f"  {_marked(hit)}")


def _marked(hit: SearchHit) -> str:
    """Return the text around a hit with the found words marked."""
    parts, at = [], 0
    for start, end in hit.matches:
        parts += [output.plain(hit.snippet[at:start]), output.paint(output.plain(hit.snippet[start:end]), "yellow", sys.stdout)]
        at = end
    return "".join([*parts, output.plain(hit.snippet[at:])])


def file_name(info: ConversationInfo, form: str) -> str:
    """Return the name of a file for a conversation: its title and its id."""
    from edge.conversation.files import file_name

    return f"{file_name(info.title)}-{info.id}.{form}"
