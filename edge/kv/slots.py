"""Which tokens each sequence of a backend holds, and which sequence a new prompt should go to.

A turn takes the sequence that shares the longest beginning with its prompt, so that only the rest is computed. The tail it
replaces is kept in another sequence when one is free and the backend can share the common part (`Capabilities.rewind` and
`Backend.copy`). The engine thread owns this, like the backend itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.errors import UnsupportedError

if TYPE_CHECKING:
    from edge.backends.base import Backend

__all__ = ["Slot", "Slots", "common_prefix"]

_BLOCK = 256


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences have in common from the start.

    Compares whole blocks first: list comparison runs in C, a loop over 8,192 tokens does not.
    """
    end = min(len(a), len(b))
    start = 0
    while start < end and a[start : start + _BLOCK] == b[start : start + _BLOCK]:
        start += _BLOCK
    stop = min(start + _BLOCK, end)
    for index in range(min(start, end), stop):
        if a[index] != b[index]:
            return index
    return stop


@dataclass(slots=True)
class Slot:
    """One sequence of the backend.

    Attributes:
        seq_id: its number.
        tokens: what the KV cache holds for it, position by position.
        is_busy: a turn is using it.
        last_used: value of a counter that grows with every use.
    """

    seq_id: int
    tokens: list[int] = field(default_factory=list)
    is_busy: bool = False
    last_used: int = 0


class Slots:
    """All sequences of one backend.

    Args:
        backend: an open backend whose sequences are empty.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._slots = [Slot(seq_id) for seq_id in range(backend.capabilities.n_seq)]
        self._clock = 0

    def acquire(self, prompt: Sequence[int]) -> Slot | None:
        """Take a sequence for a prompt, with as much of its beginning as possible already in the cache.

        Args:
            prompt: token ids, at least one. At least the last one is left to compute, since its logits are needed.

        Returns:
            A busy slot whose `tokens` are the reused beginning of the prompt, or None when every sequence is busy.

        Raises:
            BackendError: the engine failed; no slot was taken.
        """
        idle = [slot for slot in self._slots if not slot.is_busy]
        if not idle:
            return None
        usable = prompt[: len(prompt) - 1]
        shared = {slot.seq_id: self._reusable(slot, usable) for slot in self._slots}
        source = max(self._slots, key=lambda slot: (shared[slot.seq_id], not slot.is_busy))
        n_shared = shared[source.seq_id]
        target = self._choose_target(idle, source, n_shared)
        if target is source:
            self._cut(target, n_shared)
        else:
            self._cut(target, 0)
            self._share(source, target, n_shared)
        target.is_busy = True
        self._clock += 1
        target.last_used = self._clock
        return target

    def release(self, slot: Slot) -> None:
        """Give a slot back; what it holds stays, for the next prompt that begins the same."""
        slot.is_busy = False

    def evict_one(self) -> bool:
        """Empty the idle sequence that was used longest ago, to free its cells.

        Returns:
            False when there was nothing to free.
        """
        candidates = [slot for slot in self._slots if not slot.is_busy and slot.tokens]
        if not candidates:
            return False
        self._cut(min(candidates, key=lambda slot: slot.last_used), 0)
        return True

    def clear(self, slot: Slot) -> None:
        """Empty a slot that nothing is to be reused of."""
        self._cut(slot, 0)

    def resync(self, slot: Slot) -> None:
        """After a failure: believe the backend about how much of the sequence is there."""
        del slot.tokens[self._backend.length(slot.seq_id) :]

    def _reusable(self, slot: Slot, prompt: Sequence[int]) -> int:
        n_shared = common_prefix(slot.tokens, prompt)
        if self._backend.capabilities.rewind or (n_shared == len(slot.tokens) and not slot.is_busy):
            return n_shared
        return 0  # this model can only go on where it stopped

    def _choose_target(self, idle: list[Slot], source: Slot, n_shared: int) -> Slot:
        """Go on in place when nothing, or not much, is lost by it; otherwise leave the other tail where it is."""
        empty = [slot for slot in idle if not slot.tokens]
        oldest = min(idle, key=lambda slot: slot.last_used)
        if n_shared == 0:
            return empty[0] if empty else oldest
        if not source.is_busy:
            loses_little = n_shared * 2 >= len(source.tokens)
            if n_shared == len(source.tokens) or (loses_little and not empty) or not self._backend.capabilities.rewind:
                return source
        return empty[0] if empty else oldest

    def _share(self, source: Slot, target: Slot, n_tokens: int) -> None:
        if n_tokens == 0:
            return
        try:
            self._backend.copy(source.seq_id, target.seq_id, n_tokens)
        except UnsupportedError:
            return  # then the beginning is computed once more
        target.tokens = list(source.tokens[:n_tokens])

    def _cut(self, slot: Slot, n_keep: int) -> None:
        if n_keep != len(slot.tokens):
            try:
                self._backend.rewind(slot.seq_id, n_keep)
            except UnsupportedError:
                # A sliding window has moved on, so what comes before the cut is gone: start again.
                n_keep = 0
                self._backend.rewind(slot.seq_id, 0)
            del slot.tokens[n_keep:]
