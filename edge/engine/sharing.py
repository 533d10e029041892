"""Prompts that begin alike are prefilled once: one goes first, and the others wait until it has passed what they share.

Without that, requests with one long system prompt that arrive together would each prefill it, since none finds it in the KV
cache yet. Waiting costs nobody more than computing the same tokens would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge.kv.tree import common_prefix

if TYPE_CHECKING:
    from edge.adapters import Mix
    from edge.engine.generation import Generation

__all__ = ["LEAST_SHARED", "Sharing"]

LEAST_SHARED = 64
"""Tokens; fewer are not waited for, such as the head that a chat template gives every prompt."""
_MOST_PAIRS = 4096


class Sharing:
    """Says which waiting generations another one is about to save work.

    Args:
        n_resident: returns how many tokens of a prompt are in memory, from the prompt, its namespace and its adapters.
        can_copy: a sequence can take over the prefix of another one that goes on.
    """

    def __init__(self, n_resident: Callable[[Sequence[int], str, Mix], int], *, can_copy: bool) -> None:
        self._n_resident, self._can_copy = n_resident, can_copy
        self._ends: dict[tuple[int, int], int] = {}  # see `_end_of_wait`; by the numbers of their arrival

    def admissible(self, waiting: Sequence[Generation], running: Sequence[Generation]) -> list[Generation]:
        """Return those that wait for nothing but a sequence.

        Args:
            waiting: without a sequence, the oldest first.
            running: with one.
        """
        prefilling = [one for one in running if one.is_prefilling]
        whole = {(id(one.shared), one.priority) for one in prefilling}
        found = []
        for one in waiting:
            if one.shared is not None and not one.shared.is_prefilled:
                if (id(one.shared), one.priority) in whole:
                    continue
                whole.add((id(one.shared), one.priority))
            if not self._is_served(one, prefilling):
                found.append(one)
        return found

    def _is_served(self, generation: Generation, prefilling: Sequence[Generation]) -> bool:
        """Tell if a running prefill is about to compute much of what this prompt lacks."""
        if not self._can_copy:
            return False
        return any(one.slot and one.slot.n_tokens < self._end_of_wait(one, generation) for one in prefilling)

    def _end_of_wait(self, one: Generation, other: Generation) -> int:
        """Return how far a prompt has to be prefilled before another one takes that over; 0 if it is not worth the wait."""
        pair = (one.arrived, other.arrived)
        known = self._ends.get(pair)
        if known is None:
            if len(self._ends) >= _MOST_PAIRS:
                self._ends.clear()
            known = self._ends[pair] = self._find_end(one, other)
        return known

    def _find_end(self, one: Generation, other: Generation) -> int:
        is_as_urgent = one.priority == "interactive" or other.priority == "background"
        if not is_as_urgent or (one.namespace, one.mix) != (other.namespace, other.mix):
            return 0
        n_common = min(common_prefix(one.tokens, other.tokens), len(other.tokens) - 1)  # the logits of its last are needed
        if n_common < LEAST_SHARED:
            return 0
        n_resident = self._n_resident(other.to_prefill, other.namespace, other.mix)
        return n_common if n_common - n_resident >= LEAST_SHARED else 0
