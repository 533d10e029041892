"""A reply that grows. Blocks that are complete keep their tokens and their lines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.token import Token

from edge_chat.markup.inline import keep_latex
from edge_chat.markup.lines import Line
from edge_chat.markup.parser import make_parser
from edge_chat.markup.render import LOW_HEADINGS, Options, Rendering, render_tokens
from edge_chat.markup.tables import Table

__all__ = ["Document", "render"]


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    return make_parser()


def render(text: str, width: int, *, is_plain: bool = False) -> list[Line]:
    """Return Markdown as lines of a given width.

    Args:
        text: Markdown without control characters (`edge_chat.format.clean`).
        width: cells of a line.
        is_plain: no drawing, nothing that only a colour tells.

    Returns:
        The lines. Their runs name styles of `styles.STYLES`; those of links have the address in `link`.
    """
    document = Document(Options(is_plain=is_plain))
    document.set_text(text)
    return document.lines(width)


@dataclass(slots=True)
class _Block:
    """One top-level block.

    Attributes:
        start: index of its first character.
        tokens: of the block.
        rendering: its lines in the width they were last asked for in.
    """

    start: int
    tokens: list[Token]
    rendering: Rendering | None = None


class Document:
    """Markdown that grows at its end.

    Args:
        options: how to render it.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self.text = ""
        self._blocks: list[_Block] = []
        self._width = 0
        self._lines: list[Line] = []

    @property
    def codes(self) -> list[str]:
        """Return the code blocks in order."""
        return [
            token.content.rstrip() for block in self._blocks for token in block.tokens if token.type in ("fence", "code_block")
        ]

    @property
    def tables(self) -> list[Table]:
        """Return the tables in order, once the lines were asked for."""
        return [table for block in self._blocks if block.rendering for table in block.rendering.tables]

    def set_text(self, text: str, *, is_whole: bool = True) -> None:
        """Change the text.

        Args:
            text: all of it.
            is_whole: parse all of it, since a later line can change the meaning of an earlier one. Otherwise a text that only
                grew is parsed from its last block on.
        """
        if not is_whole and self._blocks and text.startswith(self.text):
            last = self._blocks.pop()
            start = last.start
        else:
            self._blocks.clear()
            start = 0
        self.text = text
        self._blocks += _parse(text, start, is_ascii=self._options.is_ascii)
        self._options = replace(self._options, is_growing=not is_whole)
        self._lines = []
        self._width = 0 if is_whole else self._width

    def growing(self) -> tuple[int, bool]:
        """Return the number of lines of the last block, which text to come may change, and whether it is a table.

        Call it after `lines`.
        """
        if not self._blocks or self._blocks[-1].rendering is None:
            return 0, False
        last = self._blocks[-1]
        return len(last.rendering.lines) if last.rendering else 0, last.tokens[0].type == "table_open"

    def lines(self, width: int) -> list[Line]:
        """Return the lines in a width."""
        if width != self._width:
            for block in self._blocks:
                block.rendering = None
            self._width, self._lines = width, []
        if not self._lines:
            n_codes = n_tables = 0
            previous = ""
            for block in self._blocks:
                if block.rendering is None:
                    block.rendering = render_tokens(
                        block.tokens, width, self._options, first_code=n_codes, first_table=n_tables
                    )
                n_codes += len(block.rendering.codes)
                n_tables += len(block.rendering.tables)
                if not block.rendering.lines:
                    continue
                if self._lines and previous not in LOW_HEADINGS:
                    self._lines.append(Line())
                self._lines += block.rendering.lines
                previous = block.tokens[0].tag
        return self._lines


def _parse(text: str, start: int, *, is_ascii: bool) -> list[_Block]:
    """Parse a text from a character on and split it into top-level blocks."""
    source = text[start:]
    offsets = [start]
    for line in source.split("\n"):
        offsets.append(offsets[-1] + len(line) + 1)
    blocks: list[_Block] = []
    for token in _parser().parse(source):
        if is_ascii:
            keep_latex(token)
        if token.level == 0 and token.nesting >= 0:
            first = token.map[0] if token.map else 0
            blocks.append(_Block(offsets[first], []))
        blocks[-1].tokens.append(token)
    return blocks
