"""Compares the users of blocks in the index with the log of uses.py: `forget` would delete too little or too much.

A line of the log names the last block of a run. Once that was evicted, nobody can tell which others the line meant: what such
a line could explain is believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from edge.kv.rows import Use, View

__all__ = ["MOST_BLOCKS", "WrongRows", "wrong_owners"]

MOST_BLOCKS = 20_000
"""Of a store whose rows are compared; about 5 us each."""


class WrongRows(NamedTuple):
    """Rows of the table of owners that contradict the log, as (owner, id of the block): those to add, those to delete."""

    missing: tuple[tuple[str, int], ...]
    extra: tuple[tuple[str, int], ...]


class _Replay:
    """What the lines of a log say.

    Attributes:
        users: row of a block -> owners, with the place of the line that names them.
        is_complete: rows of blocks of which all is known since they were stored.
        unsure: owners of lines whose last block is gone.
        unsure_before: lines before this place may have been overruled by a line whose last block is gone.
    """

    def __init__(self, view: View, uses: Sequence[Use]) -> None:
        self._view = view
        self.users: dict[int, dict[str, int]] = {}
        self.is_complete: set[int] = set()
        self.unsure: set[str] = set()
        self.unsure_before = -1
        forgotten = {use.owner: at for at, use in enumerate(uses) if use.kind == "forget"}
        for at, use in enumerate(uses):
            if use.kind in ("new", "use"):
                self._add(at, use, counts=at > forgotten.get(use.owner, -1))

    def _add(self, at: int, use: Use, *, counts: bool) -> None:
        key = use.key
        for _ in range(use.n):
            row = self._view.sql.execute("SELECT id, parent FROM block WHERE key = ?", (key,)).fetchone()
            if row is None:
                self.unsure.add(use.owner)
                if use.kind == "new":
                    self.unsure_before = at
                    self.is_complete.clear()
                return
            if use.kind == "new":
                self.users[row[0]] = {}
                self.is_complete.add(row[0])
            if use.owner and counts:
                self.users.setdefault(row[0], {})[use.owner] = at
            key = row[1]


def wrong_owners(view: View, uses: Sequence[Use]) -> WrongRows:
    """Return the rows that contradict a whole log; none for a store of more than `MOST_BLOCKS`."""
    if view.totals()[0] > MOST_BLOCKS:
        return WrongRows((), ())
    replay = _Replay(view, uses)
    rows: Iterable[tuple[str, int]] = view.sql.execute("SELECT name, block FROM owner")
    found = set(rows)
    strays: Iterable[tuple[str, int]] = view.sql.execute(
        "SELECT name, block FROM owner WHERE block NOT IN (SELECT id FROM block)"
    )
    named = {(owner, id): at for id, owners in replay.users.items() for owner, at in owners.items()}
    known = {use.owner for use in uses}
    missing = {row for row, at in named.items() if row not in found and at > replay.unsure_before}
    extra = {
        (owner, id)
        for owner, id in found - named.keys()
        if owner not in known or (id in replay.is_complete and owner not in replay.unsure)
    }
    return WrongRows(tuple(missing), tuple(extra.union(strays)))
