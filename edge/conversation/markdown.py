"""Conversations as Markdown: the current path, readable on GitHub, and importable again exactly.

The Markdown starts with a comment that names a marker which no text in it contains. Every part begins with a comment
`<!-- MARKER:kind {...} -->`; the text is between two of them, without the heading and one blank line at each end. A text that
would break the page around it (an unclosed fence, raw HTML) is put into a fence, which that comment names; characters that
files do not carry safely (carriage returns, other control characters) are escaped.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Annotated, Any

import msgspec

from edge.conversation.files import (
    FORMAT,
    VERSION,
    AttachmentFile,
    CallFile,
    ConversationFile,
    Envelope,
    NodeFile,
    Seconds,
    check_version,
    refusing,
)
from edge.conversation.tree import Status, to_line
from edge.messages import fence_for
from edge.types import Role

__all__ = ["from_markdown", "to_markdown"]


def to_markdown(file: ConversationFile) -> str:
    """Return the file, whose nodes are one path, as Markdown without records."""
    texts = [file.system, *(node.content for node in file.nodes)]
    texts += [attachment.text for node in file.nodes for attachment in node.attachments]
    texts += [text for node in file.nodes for text in (node.reasoning, *(_arguments(call) for call in node.tool_calls))]
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
        lines += _message_lines(marker, node)
    return "\n".join([*lines, f"<!-- {marker}:end {{}} -->", ""])


def _message_lines(marker: str, node: NodeFile) -> list[str]:
    """Return the lines of one message, with what belongs to it folded below."""
    lines = _part(
        marker,
        "message",
        f"## {node.role.capitalize()}" + (f" ({_escape_markdown(node.name)})" if node.name else ""),
        node.content,
        role=node.role,
        name=node.name,
        status=node.saved_status,
        created=node.created,
        model=node.model or None,
        call=node.tool_call_id,
    )
    folded: list[tuple[str, str, str, dict[str, object]]] = [
        ("attachment", attachment.name, attachment.text, {"name": attachment.name}) for attachment in node.attachments
    ]
    if node.reasoning:
        folded.append(("reasoning", "Reasoning", node.reasoning, {}))
    folded += [
        ("call", f"Call of {call.name}", _arguments(call), {"name": call.name, "id": call.id}) for call in node.tool_calls
    ]
    for kind, title, text, about in folded:
        summary = f"<details><summary>{html.escape(' '.join(title.split()))}</summary>"
        lines += _part(marker, kind, summary, text, **about)
        lines[-1:] = ["", "</details>", ""]
    return lines


def _arguments(call: CallFile) -> str:
    return msgspec.json.format(msgspec.json.encode(call.arguments), indent=2).decode()


def from_markdown(data: str | bytes) -> ConversationFile:
    """Parse the Markdown of `to_markdown`. Texts may have been edited; the comments have to be there.

    Raises:
        StorageError: it is another file, damaged, truncated, or of a newer version.
    """
    with refusing("Markdown"):
        text = data.decode() if isinstance(data, bytes) else data
        # Texts never have a bare carriage return, so any of them is from a Windows editor or checkout.
        lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
        if not (lines[0].startswith(_START) and lines[0].endswith(" -->")):
            raise ValueError("the first line is not the comment that edge writes there")
        first = lines[0][len(_START) : -len(" -->")]
        check_version(FORMAT, msgspec.json.decode(first, type=Envelope).version)
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
                        tool_calls=[],
                        tool_call_id=about.call,
                    )
                )
            elif kind == "attachment" and nodes:
                named = msgspec.json.decode(meta, type=_AttachmentMeta)
                nodes[-1].attachments.append(AttachmentFile(named.name, _read_text(body, named)))
            elif kind == "reasoning" and nodes:
                reasoning = _read_text(body, msgspec.json.decode(meta, type=_TextMeta))
                nodes[-1] = msgspec.structs.replace(nodes[-1], reasoning=reasoning)
            elif kind == "call" and nodes:
                called = msgspec.json.decode(meta, type=_CallMeta)
                arguments = msgspec.json.decode(_read_text(body, called), type=dict[str, Any])
                call = CallFile(called.name, arguments, called.id)
                nodes[-1] = msgspec.structs.replace(nodes[-1], tool_calls=[*nodes[-1].tool_calls, call])
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


_FOLDED = ("attachment", "call", "reasoning")
_START = "<!-- edge conversation "
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_ESCAPE = re.compile(r"\\(?:\\|u([0-9a-f]{4}))")


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    marker: Annotated[str, msgspec.Meta(pattern="^edge(-[0-9]+)?$")]
    title: str
    model: str
    created: Seconds
    updated: Seconds


class _TextMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    fence: Annotated[str, msgspec.Meta(pattern="^`*$")] = ""
    is_escaped: bool = False


class _MessageMeta(_TextMeta, frozen=True, forbid_unknown_fields=True, kw_only=True):
    role: Role
    name: str | None = None
    status: Status = "complete"
    created: Seconds = 0.0
    model: str = ""
    call: str | None = None


class _AttachmentMeta(_TextMeta, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str


class _CallMeta(_TextMeta, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    id: str = ""


def _part(marker: str, kind: str, heading: str, text: str, **about: object) -> list[str]:
    """Return the lines of one part: its comment, heading, blank line, text, blank line."""
    is_escaped = bool(_UNSAFE.search(text))
    if is_escaped:
        text = _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text.replace("\\", "\\\\"))
        about["is_escaped"] = True
    lines = [heading, "", text, ""]
    if is_escaped or kind in _FOLDED or not _is_tame(text):
        fence = fence_for(text)
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
