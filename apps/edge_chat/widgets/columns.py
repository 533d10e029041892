"""The lines of a list to pick from: mark, label, columns, detail, and a text at the right edge. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from textual.content import Content

from edge_chat import format as fmt
from edge_chat.commands import Completion
from edge_chat.widgets.rows import fit

__all__ = ["lay_out"]

_MAX_LABEL = 40
_MAX_COLUMN = 18
_MIN_COLUMN = 8  # a column is cut to this before it is left out
_MIN_DETAIL = 12  # in less room the detail is left out
_GAP = 2
_FAINT = "auto 80%"  # readable on the highlight too, in any theme


def lay_out(choices: Sequence[Completion], width: int, *, in_use: str | None = None, is_plain: bool = False) -> list[Content]:
    """Return a line for each choice, aligned with the others.

    Where there is too little room, the detail goes first, then the columns from the last one on, then the end of the labels.

    Args:
        choices: the choices.
        width: cells of a line.
        in_use: the value of the choice to mark as being in use; None leaves no room for a mark.
        is_plain: mark it with an asterisk.
    """
    n_mark = 2 if in_use is not None else 0
    n_label = min(_MAX_LABEL, max((cell_len(c.label) for c in choices), default=0))
    n_aside = max((cell_len(c.aside) + _GAP for c in choices if c.aside), default=0)
    rows = [tuple(c.columns) for c in choices]
    used = [n for n in range(max(map(len, rows), default=0)) if any(n < len(row) and row[n] for row in rows)]
    rows = [tuple(row[n] if n < len(row) else "" for n in used) for row in rows]
    n_columns = [min(_MAX_COLUMN, max(map(cell_len, column))) for column in zip(*rows, strict=True)]
    excess = n_mark + n_label + n_aside + sum(n + _GAP for n in n_columns) - width
    while n_columns and excess > 0:
        least = min(n_columns[-1], _MIN_COLUMN)
        if n_columns[-1] > least:
            removed = min(excess, n_columns[-1] - least)
            n_columns[-1] -= removed
        else:
            removed = n_columns.pop() + _GAP
        excess -= removed
    n_taken = n_mark + n_aside + sum(n + _GAP for n in n_columns)
    n_label = max(4, min(n_label, width - n_taken))
    n_detail = width - n_taken - n_label - _GAP
    lines = []
    for choice, cells in zip(choices, rows, strict=True):
        is_used = choice.value == in_use
        mark = ("* " if is_plain else "● ") if is_used else "  "
        label = _pad(choice.label, n_label)
        parts: list[str | tuple[str, str]] = [(mark[:n_mark], "bold"), (label, "bold" if is_used else "")]
        for cell, room in zip(cells, n_columns, strict=False):
            text = fit(cell, room)
            parts += [" " * (_GAP + room - cell_len(text)), text]
        detail = fit(fmt.clean(choice.detail), n_detail) if n_detail >= _MIN_DETAIL else ""
        parts += [" " * _GAP if detail or n_aside else "", (detail, _FAINT)]
        if choice.aside:
            n_used = n_mark + n_label + sum(n + _GAP for n in n_columns) + _GAP + cell_len(detail)
            parts += [" " * max(0, width - n_used - cell_len(choice.aside)), (choice.aside, "bold")]
        lines.append(Content.assemble(*parts))
    return lines


def _pad(text: str, width: int) -> str:
    shown = fit(fmt.clean(text), width)
    return shown + " " * (width - cell_len(shown))
