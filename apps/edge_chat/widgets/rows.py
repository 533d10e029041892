"""The text of the rows in the conversation list, so that no two conversations look alike. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from rich.cells import cell_len, set_cell_size

from edge_chat import format as fmt

if TYPE_CHECKING:
    from edge.conversation import ConversationInfo

__all__ = ["Row", "fit", "make_rows"]

T = TypeVar("T")

_FORK = re.compile(r"(.*) \(fork(?: (\d{1,9}))?\)", re.DOTALL)
_LEAD = 8  # characters to keep of a common beginning of long titles


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation on one line: the mark of a fork in front, since the end of a long title is cut off, title and time."""

    fork: str
    title: str
    when: str


def make_rows(infos: Iterable[ConversationInfo], *, now: float, width: int, is_plain: bool = False) -> dict[str, Row]:
    """Return the rows of these conversations, possibly repeated, by id.

    Args:
        infos: the conversations.
        now: Unix time in seconds.
        width: cells of a line.
        is_plain: use words as marks.
    """
    known = {info.id: info for info in infos}
    full = {id: _full_row(info, now, is_plain) for id, info in known.items()}

    def cut(id: str, row: Row) -> Row:
        room = width - cell_len(row.fork) - cell_len(row.when) - 1
        return replace(row, title=fit(row.title, room))

    rows = {id: cut(id, row) for id, row in full.items()}
    for alike in _groups(rows, lambda row: (row.fork, row.title)):
        titles = {id: full[id].title for id in alike}
        start = max(0, _n_common(list(titles.values())) - _LEAD)
        if start and len(set(titles.values())) > 1:
            rows |= {id: cut(id, replace(full[id], title=f"…{title[start:]}")) for id, title in titles.items()}
    for alike in _groups(rows, lambda row: row):
        rows |= {id: cut(id, replace(full[id], when=fmt.exact_time(known[id].updated, now))) for id in alike}
    return rows


def _full_row(info: ConversationInfo, now: float, is_plain: bool) -> Row:
    title, fork = " ".join(fmt.clean(info.title).split()), ""
    found = _FORK.fullmatch(title)
    if found:
        title = found[1]
        fork = f"fork {found[2] or ''}".rstrip() + ": " if is_plain else f"↳{found[2] or ''} "
    if not title:
        title = f"Draft: {fmt.one_line(fmt.clean(info.draft), 200)}" if info.draft else "Untitled"
    return Row(fork, title, fmt.short_time(info.updated, now))


def fit(text: str, width: int) -> str:
    """Truncate a text to `width` terminal cells."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - 1)).rstrip() + "…"


def _n_common(texts: Sequence[str]) -> int:
    """Return the length of the common prefix."""
    first, last = min(texts), max(texts)
    return next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))


def _groups(rows: dict[str, T], key: Callable[[T], Hashable]) -> Sequence[list[str]]:
    """Return the ids of rows with the same key, for each key that several rows have."""
    found: dict[Hashable, list[str]] = {}
    for id, row in rows.items():
        found.setdefault(key(row), []).append(id)
    return [ids for ids in found.values() if len(ids) > 1]
