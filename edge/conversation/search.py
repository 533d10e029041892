"""Full-text search over titles, messages and attachments. The user's text is searched for, never parsed as a query."""

# ruff: noqa: S608 -- SQL is put together from constants; values are always bound.

from __future__ import annotations

import re
import sqlite3
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from edge.conversation.tree import CONTROLS

__all__ = ["Found", "find_matches", "search"]

_MAX_WORDS = 32
_CONTEXT_CHARS = 60
_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: hardly any text has them, and one that has loses a highlight

# Scripts without spaces between words: FTS5 takes a whole sentence for one word, so these are found by a scan.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


@dataclass(frozen=True, slots=True)
class Found:
    """A hit: the key of the conversation, the node (None for its title), and the line around the words with their positions."""

    key: int
    node_id: int | None
    snippet: str
    matches: tuple[tuple[int, int], ...]


def search(db: sqlite3.Connection, text: str, limit: int) -> list[Found]:
    """Find titles, newest activity first, and then messages, newest first, that contain all words of `text`.

    Args:
        db: in a transaction.
        text: the user's; "double quotes" keep words together, the last word may be a prefix.
        limit: the most hits.
    """
    phrases = _read_phrases(text)
    if not phrases or limit <= 0:
        return []
    found = _by_scan if _UNSPACED.search(" ".join(phrases)) else _by_index
    return [hit for hit, _ in zip(found(db, phrases), range(limit), strict=False)]


def find_matches(text: str, wanted: str) -> list[tuple[int, int]]:
    """Return where a text has the words of a search, as (start, end): whole words or their beginnings, else any place."""
    folded = _fold_all(text)
    for boundary in (r"(?<!\w)", ""):
        patterns = [r"\W+".join(map(re.escape, _fold_all(phrase).split())) for phrase in _read_phrases(wanted)]
        found = [match.span() for pattern in patterns for match in re.finditer(boundary + pattern, folded)]
        if found:
            return sorted(found)
    return []


def _read_phrases(text: str) -> list[str]:
    # A NUL would end FTS5's query in the middle of a string.
    phrases = [(quoted or word).strip() for quoted, word in re.findall(r'"([^"]*)"|([^\s"]+)', text.replace("\0", " "))]
    return [phrase for phrase in phrases if any(c.isalnum() for c in phrase)][:_MAX_WORDS]


def _fold_all(text: str) -> str:
    return "".join(map(_fold, text))


def _fold(character: str) -> str:
    """Return a character without accent and case: always one, so that positions stay."""
    return unicodedata.normalize("NFD", character)[0].lower()[0]


def _by_index(db: sqlite3.Connection, phrases: list[str]) -> Iterator[Found]:
    query = " ".join(f'"{phrase}"' for phrase in phrases) + "*"
    titles = f"""SELECT key, NULL, snippet(title_fts, 0, '{_OPEN}', '{_CLOSE}', '…', 64)
        FROM title_fts JOIN conversation ON key = title_fts.rowid WHERE title_fts MATCH ? ORDER BY activity DESC"""
    messages = f"""SELECT conversation, id,
        snippet(node_fts, -1, '{_OPEN}', '{_CLOSE}', '…', 16)
        FROM node_fts CROSS JOIN node ON id = node_fts.rowid WHERE node_fts MATCH ? ORDER BY node_fts.rowid DESC"""
    for sql in (titles, messages):
        for key, node_id, snippet in db.execute(sql, (query,)):
            yield Found(key, node_id, *_read_marks(snippet))


def _by_scan(db: sqlite3.Connection, phrases: list[str]) -> Iterator[Found]:
    patterns = ["%" + re.sub(r"([%_\\])", r"\\\1", phrase) + "%" for phrase in phrases]
    titles = "SELECT key, NULL, title FROM conversation WHERE {} ORDER BY activity DESC".format(
        " AND ".join(["title LIKE ? ESCAPE '\\'"] * len(patterns))
    )
    messages = "SELECT conversation, id, content || '\n' || attached FROM node WHERE {} ORDER BY id DESC".format(
        " AND ".join(["content || '\n' || attached LIKE ? ESCAPE '\\'"] * len(patterns))
    )
    anything = re.compile("|".join(map(re.escape, phrases)), re.IGNORECASE)
    for sql in (titles, messages):
        for key, node_id, text in db.execute(sql, patterns):
            first = anything.search(text)
            start = max(first.start() - _CONTEXT_CHARS, 0) if first else 0
            part = text[start : start + 3 * _CONTEXT_CHARS]
            marked = anything.sub(lambda match: f"{_OPEN}{match[0]}{_CLOSE}", part)
            ends = "…" if start + len(part) < len(text) else ""
            yield Found(key, node_id, *_read_marks(("…" if start else "") + marked + ends))


def _read_marks(marked: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Remove the marks and return their positions; characters that could control a terminal become spaces."""
    characters: list[str] = []
    matches: list[tuple[int, int]] = []
    start: int | None = None
    for character in marked:
        if character == _OPEN:
            start = len(characters)
        elif character == _CLOSE:
            if start is not None:
                matches.append((start, len(characters)))
            start = None
        else:
            characters.append(CONTROLS.sub(" ", character))
    return "".join(characters), tuple(matches)
