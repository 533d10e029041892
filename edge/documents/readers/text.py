"""Plain text: paragraphs, which blank lines separate."""

from __future__ import annotations

from collections.abc import Iterator

from edge.documents.base import Block
from edge.documents.readers.encoding import decode

__all__ = ["paragraphs", "read"]


def read(data: bytes) -> tuple[str, Iterator[Block]]:
    """Return the paragraphs of a text. See `edge.documents.readers`."""
    return "", paragraphs(decode(data).split("\n"))


def paragraphs(lines: list[str], first: int = 1, path: tuple[str, ...] = (), *, begins: bool = False) -> Iterator[Block]:
    """Yield lines as blocks that blank lines separate.

    Args:
        lines: without line ends.
        first: number of the first one.
        path: of the blocks.
        begins: the first block begins a unit.
    """
    start: int | None = None
    for index in range(len(lines) + 1):
        is_blank = index == len(lines) or not lines[index].strip()
        if is_blank and start is not None:
            yield Block("\n".join(lines[start:index]), first + start, first + index - 1, path=path, begins=begins)
            start, begins = None, False
        elif not is_blank and start is None:
            start = index
