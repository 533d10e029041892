"""Tables in a given width: every column is visible and no character is lost.

Where all cells fit they stand side by side. Where they do not, the long columns share what is left in proportion to what they
need, and their cells are wrapped. Where even words do not fit, each row becomes a record of "Head: value" lines.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.cells import cell_len

from edge_chat.markup.lines import Line, Run, plain_text, runs_len, wrap

__all__ = ["GAP", "Table", "column_widths", "is_narrowed", "table_lines"]

GAP = "  "
"""Between two columns."""

_WORD_LIMITS = (24, 16, 12, 9)  # a longer word is broken rather than making its column wider
_LINE_END = "\n"


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        head: the cells of the head; each cell is a list of runs.
        rows: the rows, with as many cells as the head.
        aligns: "left", "center" or "right" of each column.
    """

    head: tuple[tuple[Run, ...], ...]
    rows: tuple[tuple[tuple[Run, ...], ...], ...]
    aligns: tuple[str, ...]


def table_lines(table: Table, width: int | None, *, is_plain: bool = False) -> list[Line]:
    """Lay a table out.

    Args:
        table: the table.
        width: cells of a line; None for as many as it wants.
        is_plain: draw no rule below the head.
    """
    head = tuple(_emphasised(cell) for cell in table.head)
    widths = column_widths(_natural(table), _longest_words(table), width)
    if widths is None:
        return _records(Table(head, table.rows, table.aligns), width or 1)
    lines: list[Line] = []
    has_head = any(plain_text(cell).strip() for cell in head)
    if has_head:
        lines += _row_lines(head, widths, table.aligns)
    if not is_plain:
        lines.append(Line((Run(GAP.join("─" * size for size in widths), "rule", is_decor=True),)))
    was_tall = False
    for index, row in enumerate(table.rows):
        drawn = _row_lines(row, widths, table.aligns)
        if index and (was_tall or len(drawn) > 1):
            lines.append(Line())  # cells of several lines keep apart
        was_tall = len(drawn) > 1
        lines += drawn
    return lines


def is_narrowed(table: Table, width: int) -> bool:
    """Return whether a table has wrapped cells or records in that width."""
    natural = _natural(table)
    return sum(natural) + len(GAP) * (len(natural) - 1) > width


def column_widths(natural: Sequence[int], words: Sequence[int], width: int | None) -> list[int] | None:
    """Divide a width among columns.

    Args:
        natural: the width that each column would need to wrap no cell.
        words: the width of the longest word of each column.
        width: cells of a line; None for no limit.

    Returns:
        Their widths, or None if there is no room for words.
    """
    if width is None:
        return list(natural)
    room = width - len(GAP) * (len(natural) - 1)
    if sum(natural) <= room:
        return list(natural)
    short = _short_columns(natural, room)
    for limit in _WORD_LIMITS:
        least = [min(size, max(3, min(word, limit))) for size, word in zip(natural, words, strict=True)]
        kept = [size if is_short else few for size, few, is_short in zip(natural, least, short, strict=True)]
        for smallest in (kept, least):
            if sum(smallest) <= room:
                return _shared(smallest, natural, room)
    return None


def _short_columns(natural: Sequence[int], room: int) -> list[bool]:
    """Return which columns need no more than an equal part of the room, counting what others leave of theirs."""
    is_short = [False] * len(natural)
    while True:
        rest = room - sum(size for size, short in zip(natural, is_short, strict=True) if short)
        n_long = is_short.count(False)
        found = [short or size * n_long <= rest for size, short in zip(natural, is_short, strict=True)]
        if found == is_short:
            return is_short
        is_short = found


def _shared(least: Sequence[int], natural: Sequence[int], room: int) -> list[int]:
    """Give each column its least width, and a part of the rest in proportion to what it would still need."""
    needs = [wanted - has for wanted, has in zip(natural, least, strict=True)]
    rest, total = room - sum(least), sum(needs)
    shares = [rest * need / total for need in needs]
    widths = [has + int(share) for has, share in zip(least, shares, strict=True)]
    by_fraction = sorted(range(len(shares)), key=lambda i: int(shares[i]) - shares[i])
    for i in by_fraction[: room - sum(widths)]:
        widths[i] += 1
    return widths


def _cell_lines(cell: Sequence[Run]) -> list[str]:
    return plain_text(cell).split(_LINE_END)


def _columns(table: Table) -> list[list[str]]:
    """Return the lines of all cells of each column."""
    rows = [table.head, *table.rows]
    return [[line for row in rows for line in _cell_lines(row[i])] for i in range(len(table.head))]


def _natural(table: Table) -> list[int]:
    return [max(1, *map(cell_len, lines)) for lines in _columns(table)]


def _longest_words(table: Table) -> list[int]:
    return [max((cell_len(word) for line in lines for word in re.split(" +", line)), default=1) for lines in _columns(table)]


def _row_lines(row: Sequence[Sequence[Run]], widths: Sequence[int], aligns: Sequence[str]) -> list[Line]:
    cells = [wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines: list[Line] = []
    for index in range(max(map(len, cells))):
        runs: list[Run] = []
        for column, (cell, width, align) in enumerate(zip(cells, widths, aligns, strict=True)):
            if column:
                runs.append(Run(GAP))
            runs += _aligned(cell[index] if index < len(cell) else [], width, align)
        lines.append(Line(_stripped(runs)))
    return lines


def _aligned(runs: list[Run], width: int, align: str) -> list[Run]:
    # What is wrapped keeps its blanks for copying, which a row of cells does not need.
    runs = [run for run in runs if run.text]
    room = max(0, width - runs_len(runs))
    left = {"right": room, "center": room // 2}.get(align, 0)
    return [*([Run(" " * left)] if left else []), *runs, *([Run(" " * (room - left))] if room > left else [])]


def _stripped(runs: list[Run]) -> tuple[Run, ...]:
    while runs and not runs[-1].text.strip(" ") and not runs[-1].style:
        runs.pop()
    return tuple(runs)


def _records(table: Table, width: int) -> list[Line]:
    """Return a block of "Head: value" lines for each row."""
    lines: list[Line] = []
    if not table.rows:
        for cell in table.head:
            lines += [Line(tuple(part)) for part in wrap(cell, width)]
    for index, row in enumerate(table.rows):
        if index:
            lines.append(Line())
        for head, cell in zip(table.head, row, strict=True):
            name = [run for run in head if run.text != _LINE_END]
            label = [*name, Run(": ", "table-head")] if plain_text(name).strip() else []
            indent = 2 if label and width > 12 else 0
            for number, part in enumerate(wrap([*label, *cell], width, hanging=indent)):
                is_wrapped = number > 0
                prefix = (Run(" " * indent, is_decor=True),) if is_wrapped and indent else ()
                lines.append(Line((*prefix, *part), is_wrapped=is_wrapped))
    return lines


def _emphasised(cell: Sequence[Run]) -> tuple[Run, ...]:
    return tuple(replace(run, style=f"{run.style} table-head".strip()) for run in cell)
