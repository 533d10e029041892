"""Reads the conversations of ChatGPT's data export: conversations.json, or several of them, in its ZIP file or outside.

Source: the format is not documented by OpenAI. https://github.com/mitkury/chatgpt-export-parser describes it.
"""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edge.conversation.foreign import (
    ForeignNode,
    Found,
    as_dict,
    as_list,
    as_seconds,
    as_text,
    fenced,
    make_export,
    make_node,
)
from edge.conversation.tree import Status, to_line
from edge.errors import StorageError
from edge.files import open_zip
from edge.types import Role
from edge.units import size_text

__all__ = ["MAX_BYTES", "is_part", "read_data", "read_zip"]

MAX_BYTES = 512 << 20
"""Of one conversations.json, unpacked. Newer exports have several of them, each smaller."""

_PART = re.compile(r"conversations(?:-\d+)?\.json", re.IGNORECASE)
_SPACE = re.compile(r"[\s,]*")
_NEXT = re.compile(r',\s*(?=\{\s*"(?:title|id|conversation_id|create_time|update_time|mapping)"\s*:)')
_MAX_TRIES = 1000
"""Places at which a conversation may begin that are tried after a damaged one."""

_CITATION = re.compile("\ue200[^\ue201]{0,4000}\ue201|[\ue200-\ue206]")
"""Marks of citations, which only ChatGPT's page can show."""

_INTERNAL = re.compile(r"(?:bio|browser|web|search|file_search|myfiles_browser|dalle|t2uay3k|canmore|api_tool|memento)\b")
"""Tools whose texts are notes to the model."""

_HIDDEN_TYPES = {
    "thoughts",
    "reasoning_recap",
    "user_editable_context",
    "model_editable_context",
    "tether_browsing_display",
    "sonic_webpage",
    "sonic_webpages",
    "super_widget",
    "app_pairing_content",
}
_STATUS: dict[str, Status] = {"in_progress": "stopped", "error": "failed", "finished_partial_completion": "stopped"}
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "tool": "tool"}


def is_part(name: str) -> bool:
    """Return True if a file of this name, in an export, has conversations."""
    return _PART.fullmatch(re.split(r"[/\\]", name)[-1]) is not None


def read_zip(path: Path) -> Iterator[Found]:
    """Yield the conversations of a ZIP file that ChatGPT made.

    Raises:
        StorageError: it is damaged, or another program's.
    """
    try:
        with open_zip(path) as archive:
            parts = sorted((info for info in archive.infolist() if is_part(info.filename)), key=lambda info: info.filename)
            if not parts:
                names = ", ".join(to_line(info.filename)[:60] for info in archive.infolist()[:3]) or "nothing"
                raise StorageError(
                    f"{path} is not an export of ChatGPT: it has no conversations.json (it has {names}).",
                    "A bundle with a KV cache is imported with: edge kv import",
                )
            for part in parts:
                yield from _read_member(archive, part)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise StorageError(f"{path} is a damaged or protected ZIP file: {error}.", "Download the export again.") from error


def _read_member(archive: zipfile.ZipFile, part: zipfile.ZipInfo) -> Iterator[Found]:
    name = to_line(part.filename)
    try:
        with archive.open(part) as file:
            data = file.read(MAX_BYTES + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        yield f"{name} in the ZIP file is damaged or protected: {error}."
        return
    if len(data) > MAX_BYTES:
        yield f"{name} in the ZIP file is larger than {size_text(MAX_BYTES)}, so it was not read."
        return
    yield from read_data(data, name)


def read_data(data: bytes, name: str) -> Iterator[Found]:
    """Yield the conversations of a conversations.json, or of a file with a single one.

    Args:
        data: of the file.
        name: of the file, for messages.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        yield f"{name} is not UTF-8 text everywhere; what is not is shown as \ufffd (first at byte {error.start:,})."
        text = data.decode("utf-8-sig", "replace")
    del data
    n_unknown = 0
    for found in _objects(text, name):
        if isinstance(found, str):
            yield found
        elif not isinstance(found.get("mapping"), dict):
            n_unknown += 1
        elif (export := _convert(found)) is not None:
            yield export
    if n_unknown:
        many = "One conversation has" if n_unknown == 1 else f"{n_unknown:,} conversations have"
        yield f"{many} no messages in the form of ChatGPT's export, in {name}."


def _objects(text: str, name: str) -> Iterator[dict[str, Any] | str]:
    """Yield the JSON objects of an array, one parsed at a time; after a damaged one, go on at the next."""
    decoder = json.JSONDecoder()
    start = re.match(r'\s*(?:\{\s*"conversations"\s*:\s*)?\[', text)
    at = start.end() if start else len(text) - len(text.lstrip())
    n_read = n_tries = 0
    while True:
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        if at >= len(text) or (start and text[at] == "]"):
            break
        try:
            value, at = decoder.raw_decode(text, at)
            n_read += 1
            if isinstance(value, dict):
                yield value
        except (ValueError, RecursionError) as error:
            if n_tries == 0 or n_read:
                why = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply, or a number too long"
                yield f"{name} is damaged after {n_read:,} conversations ({why}, at character {at:,})."
            n_read, n_tries = 0, n_tries + 1
            following = _NEXT.search(text, at + 1)
            if following is None or n_tries >= _MAX_TRIES:
                return
            at = following.end()
        if not start:
            return
    if start and at >= len(text):
        yield f"{name} ends too early: conversations at its end may be missing."


def _convert(source: dict[str, Any]) -> Found | None:
    """Convert one conversation; None if it has nothing to show."""
    mapping = {id: as_dict(node) for id, node in source["mapping"].items()}
    named = {as_text(child): id for id, node in mapping.items() for child in as_list(node.get("children"))}
    nodes: dict[str, ForeignNode] = {}
    system = ""
    for id, node in mapping.items():
        message = as_dict(node.get("message"))
        parent = as_text(node.get("parent")) or named.get(id)
        role = as_text(as_dict(message.get("author")).get("role"))
        content = "" if _is_hidden(message) else _content(message)
        shown = None
        if role == "system" and not system:
            system = content
        elif role in _ROLES and content:
            shown = make_node(
                _ROLES[role],
                content,
                program="chatgpt",
                id=id,
                name=as_text(as_dict(message.get("author")).get("name")) or None if role == "tool" else None,
                status=_STATUS.get(as_text(message.get("status")), "complete"),
                model=as_text(as_dict(message.get("metadata")).get("model_slug")) if role == "assistant" else "",
            )
        nodes[id] = ForeignNode(parent, shown, as_seconds(message.get("create_time")))
    return make_export(
        "chatgpt",
        as_text(source.get("conversation_id")) or as_text(source.get("id")) or "/".join(sorted(nodes))[:4000],
        nodes,
        as_text(source.get("current_node")) or None,
        title=as_text(source.get("title")),
        system=system,
        created=as_seconds(source.get("create_time")),
        updated=as_seconds(source.get("update_time")),
    )


def _is_hidden(message: dict[str, Any]) -> bool:
    """Return True for what ChatGPT does not show: custom instructions, notes of tools to the model, its thinking."""
    about, author, content = (as_dict(message.get(key)) for key in ("metadata", "author", "content"))
    kind = as_text(content.get("content_type"))
    if about.get("is_visually_hidden_from_conversation") or kind in _HIDDEN_TYPES:
        return True
    return author.get("role") == "tool" and kind == "text" and _INTERNAL.match(as_text(author.get("name"))) is not None


def _content(message: dict[str, Any]) -> str:
    """Return a message as Markdown; "" if there is nothing in it. Pictures, sounds and files become their names in brackets."""
    content, about = as_dict(message.get("content")), as_dict(message.get("metadata"))
    kind, text = as_text(content.get("content_type")), as_text(content.get("text"))
    recipient = as_text(message.get("recipient"))
    if kind == "code" or (recipient not in ("", "all") and kind == "text"):
        language = as_text(content.get("language"))
        language = language if language not in ("", "unknown") else "python" if recipient == "python" else ""
        shown = text or "".join(_parts(content))
        return fenced(shown, re.sub(r"\W+", "", language)) if shown.strip() else ""
    if kind in ("execution_output", "system_error"):
        return fenced(text) if text.strip() else ""
    if kind == "tether_quote":
        source = to_line(as_text(content.get("title")) or as_text(content.get("url")))
        return f"{source}\n\n{fenced(text)}".strip() if text.strip() else ""
    shown = "\n\n".join(part for part in _parts(content) or [text] if part.strip())
    files = [f"[file: {to_line(as_text(each.get('name')))}]" for each in map(as_dict, as_list(about.get("attachments")))]
    named = [name for name in files if name != "[file: ]" and not _is_shown_as_picture(name, content)]
    return "\n\n".join(part for part in (_CITATION.sub("", shown).strip("\n"), " ".join(named)) if part.strip())


def _parts(content: dict[str, Any]) -> list[str]:
    """Return the parts of a message as texts."""
    parts = as_list(content.get("parts"))
    has_words = any(as_dict(part).get("content_type") == "audio_transcription" for part in parts)
    texts = []
    for part in parts:
        about = as_dict(part)
        text, kind = as_text(part) or as_text(about.get("text")), as_text(about.get("content_type"))
        media = next((name for name in ("image", "audio", "video") if name in kind), "file")
        if not text and kind.endswith("_pointer") and not (has_words and media != "image"):
            text = f"[{media}]"
        texts.append(text)
    return texts


def _is_shown_as_picture(name: str, content: dict[str, Any]) -> bool:
    """Return True for the name of a picture that is a part of the message, too."""
    has_picture = any(as_dict(part).get("content_type") == "image_asset_pointer" for part in as_list(content.get("parts")))
    return has_picture and name.lower().endswith((".png]", ".jpg]", ".jpeg]", ".webp]", ".gif]", ".heic]"))
