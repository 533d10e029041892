"""Blocks of a file to passages of a bounded number of tokens, each with its place.

A passage ends where a section, function or page does, if it is large enough by then. No text is lost or repeated: the lines of
a passage are those of the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from edge.documents.base import HEADING_SIGN, Block

__all__ = ["Chunk", "CountTokens", "estimate_tokens", "split"]

CountTokens = Callable[[str], int]

_WORDS = re.compile(r"[^\W_]+|[^\w\s]|_")
_CHARS_PER_TOKEN = 6
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s+")
_BLANKS = re.compile(r"\s+")
_NEAR = 2000  # characters around the middle of a line in which a place to split it is looked for
_SMALL = 4  # a passage of less than a quarter of the most tokens goes on into the next section
_LONGEST_HEADING = 200


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage before it is stored.

    Attributes:
        text: never blank.
        heading: the headings it is below; those that all of it is below, if it has several sections.
        first, last, page: as in `Block`.
    """

    text: str
    heading: str
    first: int
    last: int
    page: int


def estimate_tokens(text: str) -> int:
    """Return about as many tokens as an embedding model counts, without one."""
    return 2 + sum(-(-len(word) // (_CHARS_PER_TOKEN if word.isascii() else 2)) for word in _WORDS.findall(text))


def split(blocks: Iterable[Block], max_tokens: int, count: CountTokens = estimate_tokens) -> list[Chunk]:
    """Return the passages of a file, in order.

    Args:
        blocks: of the file, in order.
        max_tokens: most tokens of a passage, without its headings; at least 16.
        count: tokens of a text.
    """
    chunks: list[Chunk] = []
    current = _Part()
    for block in blocks:
        for piece, n_tokens in _pieces(block, max_tokens, count):
            if current.blocks and current.must_end(piece, n_tokens, max_tokens):
                chunks.append(current.finished())
                current = _Part()
            current.add(piece, n_tokens)
    if current.blocks:
        chunks.append(current.finished())
    return chunks


@dataclass
class _Part:
    blocks: list[Block] = field(default_factory=list)
    n_tokens: int = 0
    path: tuple[str, ...] = ()

    def must_end(self, block: Block, n_tokens: int, max_tokens: int) -> bool:
        if block.page != self.blocks[-1].page or self.n_tokens + n_tokens > max_tokens:
            return True
        return block.begins and self.n_tokens * _SMALL >= max_tokens

    def add(self, block: Block, n_tokens: int) -> None:
        self.path = _common(self.path, block.path) if self.blocks else block.path
        self.blocks.append(block)
        self.n_tokens += n_tokens

    def finished(self) -> Chunk:
        text = self.blocks[0].text
        for before, block in pairwise(self.blocks):
            # Blank lines between them stay; two parts of one line are joined by nothing but a line end.
            n_ends = block.first - before.last if before.last and block.is_verbatim else 1
            text += "\n" * max(1, n_ends) + block.text
        return Chunk(text, heading_text(self.path), self.blocks[0].first, self.blocks[-1].last, self.blocks[0].page)


def heading_text(path: Sequence[str]) -> str:
    """Return the headings above a passage as one line."""
    return HEADING_SIGN.join(path)[:_LONGEST_HEADING]


def _common(one: tuple[str, ...], two: tuple[str, ...]) -> tuple[str, ...]:
    n_same = 0
    for first, second in zip(one, two, strict=False):
        if first != second:
            break
        n_same += 1
    return one[:n_same]


def _pieces(block: Block, max_tokens: int, count: CountTokens) -> Iterator[tuple[Block, int]]:
    """Yield a block with its tokens, in pieces that fit: by lines, then by sentences, words and characters."""
    longest = max_tokens * 16  # characters that are surely too many, so that megabytes are not tokenised in one go
    if len(block.text) <= longest and (n_tokens := count(block.text)) <= max_tokens:
        yield block, n_tokens
        return
    lines = block.text.split("\n")
    has_lines = block.first > 0 and block.is_verbatim and len(lines) == block.last - block.first + 1
    begins = block.begins
    for first, text, n_tokens in _packed(lines, max_tokens, count):
        piece = replace(block, text=text, begins=begins)
        if has_lines:
            here = block.first + first
            piece = replace(piece, first=here, last=here + text.count("\n"))
        yield piece, n_tokens
        begins = False


def _packed(lines: Sequence[str], room: int, count: CountTokens) -> Iterator[tuple[int, str, int]]:
    """Yield (index of the first line, text, tokens): as many whole lines as fit, or parts of a line that does not."""
    start, n_held = 0, 0
    held: list[str] = []
    for number, line in enumerate(lines):
        if not line.strip():
            if held:
                held.append(line)
            continue
        parts = list(_parts(line, room, count))
        if len(parts) == 1 and n_held + parts[0][1] <= room:
            if not held:
                start = number
            held.append(line)
            n_held += parts[0][1]
            continue
        if held:
            yield start, "\n".join(held).rstrip(), n_held
            held, n_held = [], 0
        if len(parts) == 1:
            start, held, n_held = number, [line], parts[0][1]
        else:
            yield from ((number, text, n_tokens) for text, n_tokens in parts)
    if held:
        yield start, "\n".join(held).rstrip(), n_held


def _parts(line: str, room: int, count: CountTokens) -> Iterator[tuple[str, int]]:
    """Yield a line in parts that fit, with their tokens: the whole, sentences, words, characters."""
    if len(line) <= room * 16 and (n_tokens := count(line)) <= room:
        yield line, n_tokens
        return
    middle = len(line) // 2
    start, end = max(1, middle - min(middle // 2, _NEAR)), middle + min(middle // 2, _NEAR)
    for pattern in (_SENTENCE, _BLANKS):
        cuts = [found.end() for found in pattern.finditer(line, start, end)]
        if cuts:
            middle = min(cuts, key=lambda cut: abs(cut - len(line) / 2))
            break
    for half in (line[:middle], line[middle:]):
        if half.strip():
            yield from _parts(half, room, count)
