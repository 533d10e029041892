"""Source code of any language: a block for each function, method or class, with the comments above it.

Definitions are recognised by their first line; what is missed is part of the block above it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from edge.documents.base import Block
from edge.documents.readers.encoding import decode

__all__ = ["read"]

_LONGEST_LINE = 300  # longer ones are no definitions
_WORDS = (
    "export default public private protected internal static final abstract async pub unsafe extern inline virtual override "
    "open sealed data partial declare"
)
_KEYWORD = re.compile(
    rf"\s*(?:(?:{'|'.join(_WORDS.split())})(?:\([\w\s:]*\))?\s+)*"
    r"(?:class|interface|struct|enum|trait|impl|module|namespace|object|protocol|extension|def|defp|defmodule|func|fun|function|fn|sub"
    r"|type|record)\b\s*(?:<[^>]*>\s*|\([^)]*\)\s*|\*\s*)?([\w.:$]+)"
)
_ASSIGNED = re.compile(
    r"\s*(?:export\s+)?(?:const|let|var)\s+([\w$]+)\s*=\s*(?:async\s*)?(?:function\b|\([^)]*\)\s*(?::[^=]*)?=>|\w+\s*=>)"
)
_C_LIKE = re.compile(
    r"(?!(?:if|for|while|switch|return|else|case|do|try|catch)\b)[A-Za-z_][\w:<>,*&\[\] ]*[ *&]([A-Za-z_~][\w:~]*)\s*\([^;]*$"
)
_ABOVE = re.compile(r"\s*(?:#|//|/\*|\*|--|;;|%|@|\[|\"\"\"|///)")


def read(data: bytes) -> tuple[str, Iterator[Block]]:
    """Return the definitions of a source file. See `edge.documents.readers`."""
    return "", _blocks(decode(data).split("\n"))


def _blocks(lines: list[str]) -> Iterator[Block]:
    path: list[tuple[int, str]] = []
    start, begins = 0, False
    names: tuple[str, ...] = ()
    for number, line in enumerate(lines):
        found = _definition(line)
        if found is None:
            continue
        indent = len(line) - len(line.lstrip())
        above = _comment_above(lines, number, start)
        yield from _block(lines, start, above, names, begins)
        path = [*(one for one in path if one[0] < indent), (indent, found)]
        start, names, begins = above, tuple(name for _, name in path), True
    yield from _block(lines, start, len(lines), names, begins)


def _block(lines: list[str], start: int, end: int, names: tuple[str, ...], begins: bool) -> Iterator[Block]:
    while start < end and not lines[start].strip():
        start += 1
    while start < end and not lines[end - 1].strip():
        end -= 1
    if start < end:
        yield Block("\n".join(lines[start:end]), start + 1, end, path=names, begins=begins)


def _definition(line: str) -> str | None:
    """Return the name that a line defines."""
    if len(line) > _LONGEST_LINE:
        return None
    found = _KEYWORD.match(line) or _ASSIGNED.match(line) or _C_LIKE.match(line)
    return found[1] if found else None


def _comment_above(lines: list[str], number: int, start: int) -> int:
    """Return the first of the lines of comments and decorators directly above a line."""
    while number > start and _ABOVE.match(lines[number - 1]):
        number -= 1
    return number
