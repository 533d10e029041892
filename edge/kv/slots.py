"""Sequences of a backend: what each of them holds, and which one a new prompt goes to.

A turn takes the sequence that shares the longest prefix with its prompt, so that only the rest is computed. The tail that it
replaces stays in another sequence if one is free and the backend can share the common part (`Capabilities.rewind` and
`Backend.copy`). The engine thread owns this, like the backend itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import UnsupportedError
from edge.kv.tree import PrefixTree

if TYPE_CHECKING:
    from edge.adapters import Mix
    from edge.backends.base import Backend
    from edge.names import CacheHint

__all__ = ["Slot", "Slots"]


@dataclass(slots=True)
class Slot:
    """One sequence of the backend.

    Attributes:
        seq_id: its number.
        n_tokens: tokens that the KV cache holds for it.
        is_busy: a turn is using it.
        last_used: value of a counter that grows with every use.
        owner: the conversation whose turn uses it, "" for none.
        namespace: what it was computed in; the tree's has the adapters with it.
        mix: the adapters that it was computed with.
        hint: where what the turn computes stays.
        n_found: tokens that it had when the turn began.
        n_prefilled: position up to which it was prefilled; the rest was decoded.
        n_foreign: tokens that were restored for the turn and that another engine had computed.
        boundaries: positions that later prompts are likely to share, in order.
    """

    seq_id: int
    n_tokens: int = 0
    is_busy: bool = False
    last_used: int = 0
    owner: str = ""
    namespace: str = ""
    mix: Mix = ()
    hint: CacheHint = "disk"
    n_found: int = 0
    n_prefilled: int = 0
    n_foreign: int = 0
    boundaries: tuple[int, ...] = ()


class Slots:
    """All sequences of one backend.

    Args:
        backend: an open backend whose sequences are empty.
        alignment: only whole multiples of so many tokens are reused; 1 reuses every token.

    Attributes:
        slots: one for each sequence.
        tree: the tokens that may be reused; with an alignment, less than a slot holds.
    """

    def __init__(self, backend: Backend, alignment: int = 1) -> None:
        self._backend = backend
        self._alignment = alignment
        self._clock = 0
        self.slots = [Slot(seq_id) for seq_id in range(backend.capabilities.n_seq)]
        self.tree = PrefixTree(len(self.slots))

    def acquire(self, prompt: Sequence[int], namespace: str = "") -> Slot | None:
        """Take a sequence for a prompt, with as much of its prefix as possible already in the cache.

        Args:
            prompt: token ids, at least one. At least the last one is left to compute, since its logits are needed.
            namespace: only what was computed in it is reused.

        Returns:
            A busy slot that holds the reused prefix, or None if every sequence is busy.

        Raises:
            BackendError: the engine failed; no slot was taken.
        """
        idle = [slot for slot in self.slots if not slot.is_busy]
        if not idle:
            return None
        source, n_shared = self._find(prompt, namespace)
        target = self._choose_target(idle, source, n_shared)
        if target is source:
            self.truncate(target, n_shared)
        else:
            self.truncate(target, 0)
            self.tree.move(target.seq_id, namespace)
            if source is not None:
                self._share(source, target, n_shared)
        target.is_busy = True
        self._clock += 1
        target.last_used = self._clock
        return target

    def n_shared(self, prompt: Sequence[int], namespace: str = "") -> int:
        """Return the length of the prefix of a prompt that is in the cache and may be reused in a namespace."""
        return self._find(prompt, namespace)[1]

    def reusable(self, n_tokens: int) -> int:
        """Round a length down to the alignment."""
        return n_tokens // self._alignment * self._alignment

    def append(self, slot: Slot, tokens: Sequence[int], *, is_prefill: bool) -> None:
        """Note that the backend has computed or imported more tokens.

        Args:
            slot: a busy one.
            tokens: those after what it held.
            is_prefill: they were not decoded one by one. With an alignment only prefilled tokens are reused.
        """
        start = self.tree.length(slot.seq_id)
        slot.n_tokens += len(tokens)
        if self._alignment == 1:
            self.tree.extend(slot.seq_id, tokens)
        elif is_prefill and start == slot.n_tokens - len(tokens):
            self.tree.extend(slot.seq_id, tokens[: self.reusable(slot.n_tokens) - start])

    def release(self, slot: Slot) -> None:
        """Give a slot back; it keeps its tokens for the next prompt with the same prefix."""
        slot.is_busy = False
        if slot.n_tokens > self.tree.length(slot.seq_id):
            self.truncate(slot, self.tree.length(slot.seq_id))

    @property
    def n_idle(self) -> int:
        """Number of idle sequences that hold tokens."""
        return len(self._idle())

    def evict_one(self) -> bool:
        """Empty the least recently used idle sequence, those to be kept last; return False if there is none."""
        candidates = self._idle()
        if not candidates:
            return False
        self.truncate(min(candidates, key=_order), 0)
        return True

    def truncate(self, slot: Slot, n_keep: int) -> None:
        """Truncate a slot; to nothing if the engine cannot truncate there."""
        if n_keep != slot.n_tokens:
            try:
                self._backend.rewind(slot.seq_id, n_keep)
            except UnsupportedError:
                # A sliding window has moved past this position.
                n_keep = 0
                self._backend.rewind(slot.seq_id, 0)
        self._note_length(slot, n_keep)

    def resync(self, slot: Slot) -> None:
        """After a failure, take the length of a sequence from the backend."""
        self._note_length(slot, self._backend.length(slot.seq_id))

    def _idle(self) -> list[Slot]:
        return [slot for slot in self.slots if not slot.is_busy and slot.n_tokens]

    def _note_length(self, slot: Slot, n_tokens: int) -> None:
        slot.n_tokens = n_tokens
        if self.tree.length(slot.seq_id) > n_tokens:
            self.tree.truncate(slot.seq_id, n_tokens)

    def _find(self, prompt: Sequence[int], namespace: str) -> tuple[Slot | None, int]:
        """As `_longest`, of the part of a whole prompt that may be reused."""
        return self._longest(prompt[: self.reusable(len(prompt) - 1)], namespace)

    def _longest(self, prompt: Sequence[int], namespace: str) -> tuple[Slot | None, int]:
        """Find the slot with the longest usable prefix of a prompt, an idle one if possible."""
        if self._backend.capabilities.rewind:
            found = self.tree.match(prompt, namespace)
            n_shared = self.reusable(found.n_tokens)
            holders = [self.slots[seq_id] for seq_id in found.holders] if n_shared else []
            return min(holders, key=lambda slot: slot.is_busy, default=None), n_shared
        # This model can only continue at the end.
        here = (slot for slot in self._idle() if self.tree.namespace(slot.seq_id) == namespace)
        whole = [slot for slot in here if self._is_prefix(slot, prompt)]
        longest = max(whole, key=lambda slot: slot.n_tokens, default=None)
        return longest, longest.n_tokens if longest else 0

    def _is_prefix(self, slot: Slot, prompt: Sequence[int]) -> bool:
        tokens = self.tree.tokens(slot.seq_id)
        return bool(tokens) and list(prompt[: len(tokens)]) == tokens

    def _choose_target(self, idle: list[Slot], source: Slot | None, n_shared: int) -> Slot:
        """Continue in place if that loses nothing, or little; otherwise leave the other tail where it is."""
        empty = [slot for slot in idle if not slot.n_tokens]
        oldest = min(idle, key=_order)
        if source is not None and not source.is_busy:
            loses_little = n_shared * 2 >= source.n_tokens
            if n_shared == source.n_tokens or (loses_little and not empty) or not self._backend.capabilities.rewind:
                return source
        return empty[0] if empty else oldest

    def _share(self, source: Slot, target: Slot, n_tokens: int) -> None:
        try:
            self._backend.copy(source.seq_id, target.seq_id, n_tokens)
        except UnsupportedError:
            return  # then the prefix is computed once more
        self.tree.share(source.seq_id, target.seq_id, n_tokens)
        target.n_tokens = n_tokens


def _order(slot: Slot) -> tuple[bool, int]:
    """Return what sequences are evicted by: the least recently used first, those to be kept last."""
    return slot.hint == "keep", slot.last_used
