"""Conversations as files: JSON for the whole tree, Markdown for the current path.

Both formats are converted from and to a ConversationFile. A file is input from outside: nodes refer to each other by their
position in it, never by an id, and nothing in it is trusted unchecked.

The Markdown starts with a comment that names a marker which no text in it contains. Every part begins with a comment
`<!-- MARKER:kind {...} -->`; the text is between two of them, without the heading and one blank line at each end. A text that
would break the page around it (an unclosed fence, raw HTML) is put into a fence, which that comment names; characters that
files do not carry safely (carriage returns, other control characters) are escaped.
"""

from __future__ import annotations

import html
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

import msgspec

from edge.conversation import tree
from edge.conversation.tree import Attachment, ConversationInfo, Node, Status, to_line
from edge.errors import StorageError
from edge.types import Role

__all__ = ["ConversationFile", "NodeFile", "file_name", "from_json", "from_markdown", "to_json", "to_markdown"]

FORMAT: Literal["edge-conversation"] = "edge-conversation"
VERSION = 1

_LAST_S = 253402300799  # the end of 9999, the largest datetime
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=_LAST_S)]
_Index = Annotated[int, msgspec.Meta(ge=0)]


class AttachmentFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An attachment in a file."""

    name: str
    text: str


class NodeFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A message in a file; `parent` is the position of an earlier one."""

    parent: _Index | None
    role: Role
    content: str
    name: str | None = None
    attachments: list[AttachmentFile] = []
    status: Status = "complete"
    created: _Seconds = 0.0
    model: str = ""
    record: dict[str, Any] = {}

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
        )

    def to_node(self) -> Node:
        """Convert to a node for the store, without an id or a parent."""
        attachments = tuple(Attachment(attachment.name, attachment.text) for attachment in self.attachments)
        return Node(
            0, None, self.role, self.content, attachments, self.status, self.created, self.model, self.record, self.name
        )

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
    created: _Seconds
    updated: _Seconds
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


class _Envelope(msgspec.Struct):
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
    with _refusing("JSON"):
        envelope = msgspec.json.decode(data, type=_Envelope)
        _check_version(envelope.format, envelope.version)
        return msgspec.json.decode(data, type=ConversationFile)


def _in_range(seconds: float) -> float:
    """Return a time that a file can hold: clocks of devices without a battery may be anywhere."""
    return min(max(0.0, seconds), _LAST_S)


def to_markdown(file: ConversationFile) -> str:
    """Return the file, whose nodes are one path, as Markdown without records."""
    texts = [file.system, *(node.content for node in file.nodes)]
    texts += [attachment.text for node in file.nodes for attachment in node.attachments]
    marker, n_tries = "edge", 0
    while any(f"<!-- {marker}:" in text for text in texts):
        n_tries += 1
        marker = f"edge-{n_tries}"
    header = _Header(VERSION, marker, file.title, file.model, file.created, file.updated)
    date = datetime.fromtimestamp(file.created, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    about = " · ".join(part for part in (date, _escape_markdown(file.model)) if part)
    lines = [f"{_START}{_comment_json(header)} -->", f"# {_escape_markdown(file.title) or 'Conversation'}", "", about, ""]
    if file.system:
        lines += _part(marker, "system", "## System prompt", file.system)
    for node in file.nodes:
        heading = f"## {node.role.capitalize()}" + (f" ({_escape_markdown(node.name)})" if node.name else "")
        lines += _part(
            marker,
            "message",
            heading,
            node.content,
            role=node.role,
            name=node.name,
            status=node.saved_status,
            created=node.created,
            model=node.model or None,
        )
        for attachment in node.attachments:
            summary = f"<details><summary>{html.escape(' '.join(attachment.name.split()))}</summary>"
            lines += _part(marker, "attachment", summary, attachment.text, name=attachment.name)
            lines[-1:] = ["", "</details>", ""]
    return "\n".join([*lines, f"<!-- {marker}:end {{}} -->", ""])


def from_markdown(data: str | bytes) -> ConversationFile:
    """Parse the Markdown of `to_markdown`. Texts may have been edited; the comments have to be there.

    Raises:
        StorageError: it is another file, damaged, truncated, or of a newer version.
    """
    with _refusing("Markdown"):
        text = data.decode() if isinstance(data, bytes) else data
        # Texts never have a bare carriage return, so any of them is from a Windows editor or checkout.
        lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
        if not (lines[0].startswith(_START) and lines[0].endswith(" -->")):
            raise ValueError("the first line is not the comment that edge writes there")
        first = lines[0][len(_START) : -len(" -->")]
        _check_version(FORMAT, msgspec.json.decode(first, type=_Envelope).version)
        header = msgspec.json.decode(first, type=_Header)
        system, nodes = "", list[NodeFile]()
        for kind, meta, body in _parts(lines[1:], header.marker):
            if kind == "system":
                system = _read_text(body, msgspec.json.decode(meta, type=_TextMeta))
            elif kind == "message":
                about = msgspec.json.decode(meta, type=_MessageMeta)
                nodes.append(
                    NodeFile(
                        parent=len(nodes) - 1 if nodes else None,
                        role=about.role,
                        content=_read_text(body, about),
                        name=about.name,
                        status=about.status,
                        created=about.created,
                        model=about.model,
                        attachments=[],
                    )
                )
            elif kind == "attachment" and nodes:
                named = msgspec.json.decode(meta, type=_AttachmentMeta)
                nodes[-1].attachments.append(AttachmentFile(named.name, _read_text(body, named)))
            else:
                raise ValueError(f"a part {kind!r} is in the wrong place")
        return ConversationFile(
            title=header.title,
            system=system,
            model=header.model,
            created=header.created,
            updated=header.updated,
            head=len(nodes) - 1 if nodes else None,
            nodes=nodes,
        )


def file_name(title: str) -> str:
    """Return a title as the name of a file, without an ending: letters and digits with hyphens between them."""
    return re.sub(r"\W+", "-", title.lower()).strip("-_")[:50] or "conversation"


_START = "<!-- edge conversation "
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_ESCAPE = re.compile(r"\\(?:\\|u([0-9a-f]{4}))")


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    marker: Annotated[str, msgspec.Meta(pattern="^edge(-[0-9]+)?$")]
    title: str
    model: str
    created: _Seconds
    updated: _Seconds


class _TextMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    fence: Annotated[str, msgspec.Meta(pattern="^`*$")] = ""
    is_escaped: bool = False


class _MessageMeta(_TextMeta, frozen=True, forbid_unknown_fields=True, kw_only=True):
    role: Role
    name: str | None = None
    status: Status = "complete"
    created: _Seconds = 0.0
    model: str = ""


class _AttachmentMeta(_TextMeta, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str


def _part(marker: str, kind: str, heading: str, text: str, **about: object) -> list[str]:
    """Return the lines of one part: its comment, heading, blank line, text, blank line."""
    is_escaped = bool(_UNSAFE.search(text))
    if is_escaped:
        text = _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\\", "\\\\"))
        about["is_escaped"] = True
    lines = [heading, "", text, ""]
    if is_escaped or kind == "attachment" or not _is_tame(text):
        fence = tree.fence_for(text)
        about["fence"] = fence
        lines[2:3] = [fence, text, fence]
    return [
        f"<!-- {marker}:{kind} {_comment_json({key: value for key, value in about.items() if value is not None})} -->",
        *lines,
    ]


def _parts(lines: list[str], marker: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield (kind, JSON, lines up to the next part) of every part but the end."""
    opening = f"<!-- {marker}:"
    pattern = re.compile(re.escape(opening) + r"([a-z]+) (\{.*\}) -->")
    starts = [place for place, line in enumerate(lines) if line.startswith(opening)]
    found = [pattern.fullmatch(lines[start].rstrip()) for start in starts]
    for start, end, match in zip(starts, [*starts[1:], len(lines)], found, strict=True):
        if match is None:
            raise ValueError(f"line {start + 2} is a damaged comment")
        if match[1] == "end":
            return
        yield match[1], match[2], lines[start + 1 : end]
    raise ValueError("the end is missing, so the file is truncated")


def _read_text(body: list[str], meta: _TextMeta) -> str:
    """Return the text in the lines of a part."""
    if meta.fence:
        fences = [place for place, line in enumerate(body) if line.rstrip() == meta.fence]
        if len(fences) < 2:
            raise ValueError("the fence around a text is missing")
        body = body[fences[0] + 1 : fences[-1]]
    else:
        if body and body[0].startswith("## "):
            body = body[1:]
        body = body[1:] if body and not body[0].strip() else body
        body = body[:-1] if body and not body[-1].strip() else body
    text = "\n".join(body)
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else "\\", text) if meta.is_escaped else text


def _is_tame(text: str) -> bool:
    """Return True if Markdown in `text` does not affect what follows: fences are closed, no raw HTML outside of code."""
    fence = ""
    for line in text.split("\n"):
        match = re.match(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)", line)
        if fence:
            is_end = match is not None and match[1].startswith(fence) and not match[2].strip()
            fence = "" if is_end else fence
        elif match:
            fence = match[1]
        elif re.search(r"<[A-Za-z/!?]", re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", line)):
            return False
    return not fence


def _comment_json(value: object) -> str:
    """Return JSON that cannot end the HTML comment around it."""
    text = msgspec.json.encode(value).decode()
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("--", "-\\u002d")


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", to_line(text))


def _check_version(format_name: str, version: int) -> None:
    if format_name != FORMAT or version < 1:
        raise ValueError("it is not marked as a conversation of edge")
    if version > VERSION:
        raise StorageError(
            f"This conversation was exported by a newer version of edge (format {version}, this one reads up to {VERSION}).",
            "Update: pip install --upgrade edge-assistant",
        )


@contextmanager
def _refusing(kind: str) -> Iterator[None]:
    """Translate the problems of a file into a StorageError."""
    try:
        yield
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise StorageError(
            f"This is not a conversation that edge exported as {kind}, or it is damaged: {error}.",
            "Nothing was imported. Export it again, or check that it is the right file.",
        ) from error
