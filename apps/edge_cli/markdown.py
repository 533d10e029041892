"""Markdown on a terminal, while it is generated and as a whole.

Finished blocks are written once and scroll away; the block that still grows is drawn again below them, since text to come can
change how it looks (a table gets wider columns). Only that block is ever erased.
"""

from __future__ import annotations

import os
import re
import sys
import time
from functools import lru_cache
from typing import TYPE_CHECKING

from edge_chat.format import takes_unicode
from edge_cli import output

if TYPE_CHECKING:
    from edge_chat.markup.document import Document
    from edge_chat.markup.lines import Line, Run

__all__ = ["Markdown", "is_possible", "render"]

MAX_WIDTH = 100
"""Longer lines are hard to read."""

_REDRAW_S = 0.05
_ADDRESS = re.compile(r"(?:https?://|mailto:)[!-~]{1,2000}")
_UP, _ERASE = "\x1b[{}A\r", "\x1b[K"


def is_possible() -> bool:
    """Return True if stdout is a terminal that can erase lines."""
    return output.is_terminal(sys.stdout) and os.environ.get("TERM") != "dumb"


def render(text: str) -> list[str]:
    """Return Markdown as lines for the terminal at stdout, with its colours."""
    document = _document()
    document.set_text(output.plain(text))
    return [_paint(line) for line in document.lines(_width())]


class Markdown:
    """Writes an answer as Markdown while it is generated (see `edge_cli.answer.Answer`)."""

    def __init__(self) -> None:
        self._document = _document()
        self._text = ""
        self._n_written = 0  # lines of the document that will not be drawn again
        self._drawn: list[str] = []  # the lines below them, as they are on the screen
        self._width = _width()
        self._drawn_at = 0.0

    def write(self, piece: str) -> None:
        self._text += output.plain(piece)
        if time.monotonic() - self._drawn_at >= _REDRAW_S:
            self._draw()

    def think(self, piece: str) -> None:
        pass  # the status line says so

    def end(self) -> None:
        self._draw(is_whole=True)
        self._n_written += len(self._drawn)
        self._drawn = []

    def _draw(self, *, is_whole: bool = False) -> None:
        width = _width()
        if width != self._width:  # the terminal has moved its lines: what is there stays
            self._n_written, self._drawn, self._width = 0, [], width
        self._document.set_text(self._text, is_whole=False)
        lines = self._document.lines(width)
        n_open, is_table = self._document.growing()
        n_done = len(lines) if is_whole else max(len(lines) - n_open, self._n_written)
        room = _height() - 1
        if not is_whole and len(lines) - n_done > room and not is_table:
            n_done = len(lines) - room  # it would not fit on the screen, from which it could be erased
        done = [_paint(line) for line in lines[self._n_written : n_done]]
        growing = [_paint(line) for line in lines[n_done:]][-room:]
        self._replace([*done, *growing])
        self._n_written, self._drawn = n_done, growing
        self._drawn_at = time.monotonic()

    def _replace(self, lines: list[str]) -> None:
        """Erase the drawn lines from the first that differs on, and write the others."""
        n_same = 0
        while n_same < min(len(lines), len(self._drawn)) and lines[n_same] == self._drawn[n_same]:
            n_same += 1
        n_up = len(self._drawn) - n_same
        if n_up == 0 and n_same == len(lines):
            return
        # Line by line: tmux takes erasing all below for clearing the screen, and keeps a copy of it in its history.
        new = lines[n_same:]
        n_left = max(0, n_up - len(new))
        up = _UP.format(n_up) if n_up else ""
        back = _UP.format(n_left) if n_left else ""
        end = f"{_ERASE}\n" if n_up else "\n"
        output.piece(up + "".join(f"{line}{end}" for line in new) + end * n_left + back)


def _document() -> Document:
    from edge_chat.markup.document import Document
    from edge_chat.markup.render import Options

    return Document(Options(is_ascii=not takes_unicode(sys.stdout)))


def _paint(line: Line) -> str:
    return "".join(f"{on}{_linked(run)}{off}" for run in line.runs for on, off in [_codes(run.style)])


def _linked(run: Run) -> str:
    """Return the text of a run, as a hyperlink where it has an address; terminals that know none show the text."""
    is_web = _ADDRESS.fullmatch(run.link) is not None
    return f"\x1b]8;;{run.link}\x1b\\{run.text}\x1b]8;;\x1b\\" if is_web else run.text


@lru_cache(maxsize=256)
def _codes(names: str) -> tuple[str, str]:
    """Return the control sequences before and after a text in these styles."""
    from rich.color import ColorSystem
    from rich.style import Style

    from edge_chat.markup.styles import STYLES

    style = Style.combine([Style.null(), *(Style.parse(STYLES.get(name) or "none") for name in names.split())])
    if os.environ.get("NO_COLOR"):
        style = style.without_color
    before, _, after = style.render("\0", color_system=ColorSystem.STANDARD).partition("\0")
    return before, after


def _width() -> int:
    return min(output.terminal_width(sys.stdout) - 1, MAX_WIDTH)


def _height() -> int:
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).lines, 5)
    except (OSError, ValueError, AttributeError):
        return 24
