"""Finds where JSON and quoted text end in a text that may still grow."""

from __future__ import annotations

import re

__all__ = ["find_outside", "json_end"]

_JSON = re.compile(r'"(?:[^"\\]|\\.)*(?P<open>"?)|[{}\[\]]', re.DOTALL)
_QUOTED = re.compile(r"""(?P<quote>["'])(?:(?!(?P=quote))[^\\]|\\.)*(?P<end>(?P=quote)?)""", re.DOTALL)


def json_end(text: str, start: int = 0) -> int | None:
    """Return the position behind the JSON object or array that begins at `start`; None if it is not complete."""
    depth = 0
    for match in _JSON.finditer(text, start):
        mark = match.group()
        if mark in "{[":
            depth += 1
        elif mark in "}]":
            depth -= 1
            if depth <= 0:
                return match.end()
        elif not match["open"]:
            return None  # inside of a string
    return None


def find_outside(text: str, word: str, start: int = 0) -> int | None:
    """Return where a word first stands outside of quotes; None if it does not (yet)."""
    position = start
    while True:
        found = text.find(word, position)
        quoted = _QUOTED.search(text, position)
        if found < 0 or quoted is None or found < quoted.start():
            return found if found >= 0 else None
        if not quoted["end"]:
            return None  # inside of quotes
        position = quoted.end()
