"""Styled pieces of text, and how they are wrapped into lines of a given width without losing a character."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len, chop_cells

__all__ = ["Line", "Run", "plain_text", "runs_len", "wrap"]


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of text in one style.

    Attributes:
        text: what is shown; never a line end.
        style: names of styles, separated by blanks; see `styles.STYLES`.
        link: address that it leads to.
        copied: what a selection of it copies, if that is not `text`: the LaTeX of a formula, the blank of a wrapped line.
        action: name of what a click on it does: "copy 2" copies the second code block, "wide 1" opens the first table.
        is_decor: drawn by us and no part of the reply: the bar of a quote, the indent of a wrapped line.
    """

    text: str
    style: str = ""
    link: str = ""
    copied: str | None = None
    action: str = ""
    is_decor: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the screen.

    Attributes:
        runs: from left to right.
        fill: style of the rest of the line.
        is_wrapped: it continues the line above, which was too long.
    """

    runs: tuple[Run, ...] = ()
    fill: str = ""
    is_wrapped: bool = False

    @property
    def text(self) -> str:
        """Return the text without its styles."""
        return plain_text(self.runs)


def plain_text(runs: Iterable[Run]) -> str:
    """Return the text of runs."""
    return "".join(run.text for run in runs)


def runs_len(runs: Iterable[Run]) -> int:
    """Return the width of runs in cells."""
    return sum(cell_len(run.text) for run in runs)


# Between ideographs a line may end anywhere, but not before a closing bracket or a full stop.
_WIDE = (
    "\u1100-\u115f\u2e80-\u3000\u3003-\u3007\u3012-\ua4cf\uac00-\ud7a3\uf900-\ufaff"
    "\uff02-\uff07\uff0a\uff0b\uff0d\uff0f-\uff19\uff1c-\uff1e\uff20-\uff3c\U00020000-\U0003fffd"
)
_CLOSING = "\u3001\u3002\u3009\u300b\u300d\u300f\u3011\uff01\uff09\uff0c\uff0e\uff1a\uff1b\uff1f\uff5d"
_WORD = re.compile(f" +|[^ {_WIDE}]*[{_WIDE}][{_CLOSING}]*|[^ {_WIDE}]+")


def wrap(runs: Sequence[Run], width: int, hanging: int = 0) -> list[list[Run]]:
    """Wrap text to lines of at most `width` cells, between words where possible.

    Args:
        runs: the text; a "\\n" alone in a run ends a line.
        width: cells of a line; a character that is wider gets a line to itself.
        hanging: cells that all lines but the first have less.

    Returns:
        The lines. The blanks at which a line was wrapped are in an empty run that copies them.
    """
    wrapped: list[list[Run]] = []
    for part in _paragraphs(runs):
        wrapped += _wrap_one(part, max(1, width), hanging)
    return wrapped


def _paragraphs(runs: Sequence[Run]) -> list[list[Run]]:
    parts: list[list[Run]] = [[]]
    for run in runs:
        if run.text == "\n":
            parts.append([])
        else:
            parts[-1].append(run)
    return parts


def _wrap_one(runs: list[Run], width: int, hanging: int) -> list[list[Run]]:
    text = plain_text(runs)
    if cell_len(text) <= width:
        return [runs]
    pieces: list[list[Run]] = []
    start = 0
    for end, blanks in _breaks(text, width, hanging):
        line = _slice(runs, start, end)
        if blanks:
            line.append(Run("", copied=" " * blanks, style=line[-1].style if line else ""))
        pieces.append(line)
        start = end + blanks
    return pieces


def _breaks(text: str, width: int, hanging: int) -> list[tuple[int, int]]:
    """Return for every line the index at which it ends, and how many blanks after it are not shown."""
    breaks: list[tuple[int, int]] = []
    room = width
    at = used = 0
    for match in _WORD.finditer(text):
        word = match[0]
        size = cell_len(word)
        if used + size <= room:
            used += size
            at = match.end()
            continue
        if word[0] == " ":
            fits = max(0, room - used)
            at = match.start() + fits
            hidden = len(word) - fits
            breaks.append((at, hidden))
            room, used, at = max(1, width - hanging), 0, match.end()
            continue
        if used:
            stripped = len(text[:at].rstrip(" "))
            start = breaks[-1][0] + breaks[-1][1] if breaks else 0
            end = max(stripped, start)
            if end == start:  # only blanks so far: they stay, as an indent
                end = at
            breaks.append((end, at - end))
            room, used = max(1, width - hanging), 0
        at = match.start()
        while cell_len(word) > room and len(word) > 1:
            piece = _first_cells(word, room)
            at += len(piece)
            word = word[len(piece) :]
            if not word:
                break
            breaks.append((at, 0))
            room = max(1, width - hanging)
        used = cell_len(word)
        at = match.end()
    breaks.append((len(text), 0))
    return breaks


def _first_cells(word: str, width: int) -> str:
    """Return the beginning of a word that fits into `width` cells, at least a character."""
    first = next((piece for piece in chop_cells(word[: 4 * width + 16], width) if piece), "")
    return first if first and word.startswith(first) else word[0]


def _slice(runs: Sequence[Run], start: int, end: int) -> list[Run]:
    """Return the part of the text from `start` to `end`."""
    out: list[Run] = []
    position = 0
    for run in runs:
        size = len(run.text)
        first, last = max(start - position, 0), min(end - position, size)
        if first < last or (not size and start <= position < end):
            # A formula that is wrapped copies what is shown.
            whole = first == 0 and last == size
            out.append(run if whole else replace(run, text=run.text[first:last], copied=None))
        position += size
        if position >= end:
            break
    return out
