"""Chooses the adapters of the next pass: an engine applies them to all of it, so replies with others cannot share it.

Replies that are computed with the same adapters form a group, and the groups take turns. A turn is one pass while a prompt is
prefilled beside the replies, and otherwise several, as many as the longest gap between two tokens allows: going from one
group to another costs time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.adapters import Mix
    from edge.engine.generation import Generation

__all__ = ["MAX_PASSES", "AdapterTurns", "n_groups"]

MAX_PASSES = 8
"""Most passes of a turn: a group that waits sees its tokens come in bursts of so many."""


def n_groups(replies: Sequence[Generation]) -> int:
    """Return how many groups replies form."""
    return len({reply.mix for reply in replies})


class AdapterTurns:
    """Chooses the group of each pass.

    Args:
        max_gap_ms: longest gap between two tokens of a reply, in milliseconds; one pass of each group may take longer.
    """

    def __init__(self, max_gap_ms: float) -> None:
        self._max_gap_ms = max_gap_ms
        self._last: Mix | None = None
        self._n_passes = 0  # of the turn that runs
        self._served: dict[Mix, int] = {}  # number of the pass that a group had last
        self._clock = 0

    def choose(self, replies: Sequence[Generation], *, pass_ms: float, is_prefilling: bool) -> list[Generation]:
        """Return the replies of the next pass: one group.

        Args:
            replies: all that are decoded.
            pass_ms: time of a pass; 0 while nothing was measured.
            is_prefilling: a chunk of a prompt is computed before each pass.
        """
        mixes = {reply.mix for reply in replies}
        if len(mixes) < 2:
            self._served.clear()
            self._last = None
            return list(replies)
        self._served = {mix: self._served.get(mix, self._clock) for mix in mixes}  # a new group goes behind those that wait
        n_most = 1 if is_prefilling else self._turn_length(len(mixes), pass_ms)
        if self._last not in mixes or self._n_passes >= n_most:
            self._last = min((reply.mix for reply in replies), key=lambda mix: self._served[mix])
            self._n_passes = 0
        self._clock += 1
        self._n_passes += 1
        assert self._last is not None
        self._served[self._last] = self._clock
        return [reply for reply in replies if reply.mix == self._last]

    def _turn_length(self, n_mixes: int, pass_ms: float) -> int:
        if not pass_ms:
            return 1
        return max(1, min(MAX_PASSES, int(self._max_gap_ms / (pass_ms * (n_mixes - 1)))))
