"""Markdown: sections, and below them paragraphs, list items, tables and blocks of code."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from edge.documents.base import Block
from edge.documents.readers.encoding import decode
from edge.documents.readers.text import paragraphs
from edge.units import one_line

__all__ = ["read"]

_DEEPEST = 2  # list items in list items begin a block; deeper ones do not


def read(data: bytes) -> tuple[str, Iterator[Block]]:
    """Return the blocks of a page. See `edge.documents.readers`."""
    lines = decode(data).split("\n")
    n_front = _front_matter(lines)
    headings, starts = _structure("\n".join([""] * n_front + lines[n_front:]))
    title = next((text for level, text in headings.values() if level == 1), "")
    return title, _blocks(lines, headings, starts | ({n_front} if n_front else set()))


def _front_matter(lines: list[str]) -> int:
    """Return the number of lines of the YAML that some pages begin with."""
    if lines[0].rstrip() != "---":
        return 0
    for number, line in enumerate(lines[1:200], 1):
        if line.rstrip() in ("---", "..."):
            return number + 1
    return 0


def _structure(text: str) -> tuple[dict[int, tuple[int, str]], set[int]]:
    """Return the headings, line -> (level, text), and the lines that begin a block, from 0."""
    from markdown_it import MarkdownIt

    # Without what is within a paragraph, which takes most of the time.
    tokens = MarkdownIt("commonmark").enable("table").disable(["inline", "text_join"]).parse(text)
    headings: dict[int, tuple[int, str]] = {}
    starts: set[int] = set()
    depth = 0
    for token, after in zip(tokens, [*tokens[1:], None], strict=False):
        if token.type in ("bullet_list_open", "ordered_list_open"):
            depth += 1
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            depth -= 1
        if token.map is None:
            continue
        if token.type == "heading_open" and token.level == 0 and after is not None:
            headings[token.map[0]] = int(token.tag[1]), one_line(after.content)
            starts.update(token.map)
        elif token.level == 0:
            starts.update(token.map)
        elif token.type == "list_item_open" and depth <= _DEEPEST:
            starts.add(token.map[0])
    return headings, starts


def _blocks(lines: list[str], headings: dict[int, tuple[int, str]], starts: set[int]) -> Iterator[Block]:
    cuts = sorted({0, len(lines), *(start for start in starts if start < len(lines))})
    path: list[tuple[int, str]] = []
    for start, end in pairwise(cuts):
        heading = headings.get(start)
        if heading is not None:
            path = [*(one for one in path if one[0] < heading[0]), heading]
        names = tuple(text for _, text in path if text)
        held = list(paragraphs(lines[start:end], start + 1, names))
        if held:
            # What stays between two starts is one block, such as code with blank lines in it.
            first, last = held[0].first, held[-1].last
            yield Block("\n".join(lines[first - 1 : last]), first, last, path=names, begins=heading is not None)
