"""Compares the users of blocks in the index with the log of uses.py: `forget` would delete too little or too much.

A line of the log names the last block of a run. Once that was evicted, nobody can tell which others the line meant: what such
a line could explain is believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edge.kv.rows import Use, View

__all__ = ["MOST_BLOCKS", "WrongRows", "wrong_owners"]

MOST_BLOCKS = 20_000
"""Of a store whose rows are compared, at about 10 us each."""


class WrongRows(NamedTuple):
    """Rows of the table of owners that contradict the log, as (owner, id of the block): those to add, those to delete."""

    missing: tuple[tuple[str, int], ...]
    extra: tuple[tuple[str, int], ...]


class _Replay:
    """What the lines of a log say.

    Attributes:
        users: row of a block -> owners, with the place of the line that names them.
        is_complete: rows of blocks whose storing is in the log.
        unsure: owners of lines whose last block is gone.
        unsure_new: the same of lines that say "new", with the place of the last: they overrule what was said before.
    """

    def __init__(self, view: View, uses: Sequence[Use]) -> None:
        self._view = view
        self.users: dict[int, dict[str, int]] = {}
        self.is_complete: set[int] = set()
        self.unsure: set[str] = set()
        self.unsure_new: dict[str, int] = {}
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
                    self.unsure_new[use.owner] = at
                return
            if use.kind == "new":
                self.users[row[0]] = {}
                self.is_complete.add(row[0])
            if use.owner and counts:
                self.users.setdefault(row[0], {})[use.owner] = at
            key = row[1]


def wrong_owners(view: View, uses: Sequence[Use], owners: Sequence[str] | None = None) -> WrongRows:
    """Return the rows that contradict a whole log.

    Args:
        view: of the index.
        uses: the lines of the log.
        owners: look only at blocks that these use, as the index or the log says; None looks at all.
    """
    replay = _Replay(view, uses)
    named = {(owner, id): at for id, users in replay.users.items() for owner, at in users.items()}
    found, strays = _rows(view, replay, owners), set[tuple[str, int]]()
    if owners is None:
        strays.update(view.sql.execute("SELECT name, block FROM owner WHERE block NOT IN (SELECT id FROM block)"))
    else:
        ids = {id for _, id in found}
        named = {row: at for row, at in named.items() if row[1] in ids or row[0] in owners}
    known = {use.owner for use in uses}
    users: dict[int, set[str]] = {}
    for owner, id in found:
        users.setdefault(id, {""}).add(owner)
    missing = {
        (owner, id)
        for (owner, id), at in named.items()
        if (owner, id) not in found and all(replay.unsure_new.get(other, -1) < at for other in users.get(id, {""}))
    }
    extra = {
        (owner, id)
        for owner, id in found - named.keys()
        if owner not in known or (id in replay.is_complete and owner not in replay.unsure)
    }
    return WrongRows(tuple(missing), tuple(extra | strays))


def _rows(view: View, replay: _Replay, owners: Sequence[str] | None) -> set[tuple[str, int]]:
    """Return the rows to look at."""
    if owners is None:
        return set(view.sql.execute("SELECT name, block FROM owner"))
    ids = {id for id, users in replay.users.items() if not users.keys().isdisjoint(owners)}
    for owner in owners:
        ids.update(id for (id,) in view.sql.execute("SELECT block FROM owner WHERE name = ?", (owner,)))
    found = set[tuple[str, int]]()
    for id in ids:
        found.update(view.sql.execute("SELECT name, block FROM owner WHERE block = ?", (id,)))
    return found
