"""What is resident in the KV cache and what is on the disk, together: the one thing that the scheduler asks.

A prompt's beginning comes from memory as far as it is there, then from the disk, and only the rest is computed. What is
computed is handed to the block store on the way: whole blocks as soon as they are full, the shorter last one at the end of
the turn. The next turn's blocks follow that one, so each token's keys and values are written once.

What is promised of the numbers:

- What comes from the disk is, bit for bit, what was handed to it: a conversation goes on after a restart exactly as it would
  have gone on without one.
- Keys and values that were made while decoding, or that end inside a chunk, differ in the last bits from what reading the same
  tokens in one go gives. With `exact`, only what was computed as whole chunks, counted from position 0, is reused: then a reply
  equals that of a cold run, and the rest of the last chunk and earlier replies are read again for it.

Models whose state cannot be cut into ranges (recurrent and hybrid ones) are kept as checkpoints of the whole state, at
positions that the scheduler chooses; blocks without bytes lead to them.

The engine thread owns this, like the backend itself.

Source: CachedAttention (Gao et al., 2024) for the disk below the cache; SGLang's radix attention for the tree above it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from edge.errors import BackendError, ContextFullError, EdgeError, UnsupportedError
from edge.kv.slots import Slot, Slots
from edge.kv.tree import Mark

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.kv.store import BlockRef, BlockStore, Match

__all__ = ["BLOCK_TOKENS", "NAMESPACE", "KVCache", "Reuse"]

T = TypeVar("T")
_log = logging.getLogger("edge.kv")
BLOCK_TOKENS = 128
"""Tokens of a full block; see docs/kv.md for why."""
NAMESPACE = ""
"""Everything one user's device has read is shared by that user's conversations."""
_MIN_RESTORE_TOKENS = 4
"""Fewer are computed: asking the disk takes as long."""
_MIN_STORE_TOKENS = 32
"""A prompt that is shorter, reply included, is not worth a file."""
_AHEAD = 16
"""So many blocks ahead of the one that the engine takes in, the system is told what will be read next."""
_SMOOTHING = 0.3


@dataclass(frozen=True, slots=True)
class Reuse:
    """What a prompt did not have to be computed for.

    Attributes:
        n_memory: tokens that were in the KV cache.
        n_disk: tokens that were restored from the disk.
        saved_ms: about what computing them would have taken, less what restoring took; 0 while nothing is known.
    """

    n_memory: int = 0
    n_disk: int = 0
    saved_ms: float = 0.0


class KVCache:
    """See the module.

    Args:
        backend: an open backend whose sequences are empty.
        store: the blocks on the disk; None keeps nothing there.
        model: fingerprint of weights and engine, 32 bytes; see `edge.kv.open`.
        exact: reuse only what equals a cold run bit for bit. Wants a backend with one sequence: several share one cache, and
            where the others' cells lie can change the last bits too.

    Attributes:
        chunk_size: prompts are to be computed in chunks of so many tokens, cut at multiples of it.
    """

    def __init__(self, backend: Backend, store: BlockStore | None = None, *, model: bytes = b"", exact: bool = False) -> None:
        able = backend.capabilities
        self._backend = backend
        self._store = store if able.export_kv or able.checkpoints else None
        self._model = model
        self.chunk_size = min(BLOCK_TOKENS, backend.chunk_size) if exact else backend.chunk_size
        # Blocks of a sliding-window model are exported while the window covers them.
        self._block_tokens = min(BLOCK_TOKENS, backend.kv_window // 2) if backend.kv_window else BLOCK_TOKENS
        self._slots = Slots(backend, self.chunk_size if exact else 1)
        self._ms_per_token = 0.0
        self._warned: set[str] = set()
        if self._store is not None:
            self._store.warm_up()

    @property
    def wants_checkpoints(self) -> bool:
        """Whether states are kept as a whole, so that somebody has to say where."""
        return self._store is not None and not self._backend.capabilities.export_kv

    def checkpoints(self, boundaries: Iterable[int]) -> frozenset[int]:
        """Where chunks have to end, and `checkpoint` be called, so that states are kept at or before these positions."""
        if not self.wants_checkpoints:
            return frozenset()
        return frozenset(self._slots.reusable(boundary) for boundary in boundaries) - {0}

    def acquire(self, prompt: Sequence[int], owner: str = "", boundaries: Iterable[int] = ()) -> tuple[Slot, Reuse] | None:
        """Take a sequence for a prompt, with as much of its beginning as memory and disk have.

        Args:
            prompt: token ids, at least one. At least the last one is left to compute, since its logits are needed.
            owner: who uses what will be stored: a conversation's id, or "" for nobody.
            boundaries: positions that later prompts are likely to share: blocks end there, so that this is stored once.

        Returns:
            The slot and what was reused, or None when every sequence is busy.

        Raises:
            BackendError: the engine failed; no slot was taken.
        """
        slot = self._slots.acquire(prompt)
        if slot is None:
            return None
        n_memory = slot.n_tokens
        n_disk, restore_ms = 0, 0.0
        if self._store is not None:
            started = time.perf_counter()
            try:
                n_memory, n_disk = self._restore(self._store, slot, prompt)
            except Exception:  # noqa: BLE001 (whatever it was, it must not end the reply: the prompt is computed instead)
                _log.exception("What is on the disk could not be restored")
                n_memory = 0
                self._start_again(slot)
            restore_ms = (time.perf_counter() - started) * 1000
        slot.owner, slot.n_prefilled, slot.boundaries = owner, slot.n_tokens, tuple(sorted(boundaries))
        saved_ms = max(0.0, (n_memory + n_disk) * self._ms_per_token - restore_ms)
        return slot, Reuse(n_memory, n_disk, saved_ms)

    def note_prefill(self, slot: Slot, tokens: Sequence[int], ms: float) -> None:
        """Note that part of a prompt was computed, and hand full blocks to the disk.

        Args:
            slot: a busy one.
            tokens: what was computed, after what it held.
            ms: what it took, in milliseconds.
        """
        if len(tokens) >= 16 or not self._ms_per_token:
            newest = ms / len(tokens)
            known = self._ms_per_token or newest
            self._ms_per_token = known + _SMOOTHING * (newest - known)
        self._slots.append(slot, tokens, is_prefill=True)
        slot.n_prefilled = slot.n_tokens
        self._store_new(slot, self._block_tokens)

    def note_decode(self, slot: Slot, token: int) -> None:
        """Note that a token of a reply was decoded, and hand full blocks to the disk."""
        self._slots.append(slot, [token], is_prefill=False)
        if slot.n_tokens % self._block_tokens == 0:
            self._store_new(slot, self._block_tokens)

    def checkpoint(self, slot: Slot) -> None:
        """Keep the whole state as it is now, where ranges of it cannot be kept."""
        if self.wants_checkpoints:
            self._try(lambda store: self._store_state(store, slot))

    def release(self, slot: Slot) -> None:
        """Give a slot back; what it holds stays in memory, and what is new of it goes to the disk."""
        self.checkpoint(slot)
        if slot.n_tokens >= _MIN_STORE_TOKENS:
            self._store_new(slot, 1)
        if self._store is not None and slot.owner:
            # All that its turn rests on, also what others wrote: they may be deleted and this one go on.
            self._store.touch(self._slots.tree.marks(slot.seq_id), owner=slot.owner)
        self._slots.release(slot)

    def discard(self, slot: Slot) -> None:
        """Give a slot back and let go of all it holds."""
        self._slots.truncate(slot, 0)
        self._slots.release(slot)

    def evict_one(self) -> bool:
        """As `Slots.evict_one`. What is on the disk stays there."""
        return self._slots.evict_one()

    def evict_idle(self, n_sequences: int) -> None:
        """Empty idle sequences until at most so many are left, the newest. What is on the disk stays there."""
        while self._slots.n_idle > n_sequences and self.evict_one():
            pass

    def resync(self, slot: Slot) -> None:
        """After a failure: believe the backend about how much of the sequence is there."""
        self._slots.resync(slot)

    def evict_and_retry(self, step: Callable[[], T]) -> T:
        """Run a step of the engine; when the shared cells are full, drop idle sequences, oldest first, and try again.

        Raises:
            ContextFullError: it does not fit beside the sequences that are in use.
        """
        while True:
            try:
                return step()
            except ContextFullError:
                if not self._backend.capabilities.shared_cells or not self.evict_one():
                    raise

    def _restore(self, store: BlockStore, slot: Slot, prompt: Sequence[int]) -> tuple[int, int]:
        """Bring in what the disk has beyond what is resident. Returns how many tokens came from memory and from the disk."""
        usable = prompt[: self._slots.reusable(len(prompt) - 1)]
        if len(usable) - slot.n_tokens < _MIN_RESTORE_TOKENS:
            return slot.n_tokens, 0
        ranges = self._backend.capabilities.export_kv
        match = store.match(self._model, NAMESPACE, usable, partial=ranges)
        if not match.blocks:
            return slot.n_tokens, 0
        store.touch([ref.key for ref in match.blocks])
        n_memory, lost = slot.n_tokens, set[bytes]()
        if match.n_tokens - slot.n_tokens >= _MIN_RESTORE_TOKENS:
            if not self._ms_per_token:
                self._ms_per_token = match.prefill_ms / match.n_tokens
            with store.lease(match):
                bring_in = self._restore_ranges if ranges else self._restore_state
                n_memory, lost = bring_in(store, slot, prompt, match)
            if self._slots.reusable(slot.n_tokens) < slot.n_tokens:  # a block went bad in the middle of a chunk
                self._slots.truncate(slot, self._slots.reusable(slot.n_tokens))
        for ref in match.blocks:
            end = ref.start + ref.n_tokens
            if ref.key in lost or end > self._slots.tree.length(slot.seq_id) or ref.n_used < ref.n_tokens:
                break
            self._slots.tree.set_mark(slot.seq_id, Mark(end, ref.key))
        self._slots.tree.forget_marks(lost)
        n_memory = min(n_memory, slot.n_tokens)
        return n_memory, slot.n_tokens - n_memory

    def _restore_ranges(self, store: BlockStore, slot: Slot, prompt: Sequence[int], match: Match) -> tuple[int, set[bytes]]:
        """Append the blocks behind what is resident. Returns how many tokens stayed from memory, and keys that are lost."""
        refs = [ref for ref in match.blocks if ref.start + ref.n_used > slot.n_tokens]
        if refs[0].start < slot.n_tokens:
            self._slots.truncate(slot, refs[0].start)
        n_memory = slot.n_tokens
        if n_memory < refs[0].start:  # the engine could not cut there and let go of everything
            n_memory, refs = 0, list(match.blocks)
        for ref, payload in _read_in_turn(store, refs):
            if payload is None:
                return n_memory, {ref.key}
            if not self._import_block(slot, payload, prompt[ref.start : ref.start + ref.n_used], ref.start + ref.n_used):
                break
        return n_memory, set()

    def _restore_state(self, store: BlockStore, slot: Slot, prompt: Sequence[int], match: Match) -> tuple[int, set[bytes]]:
        """As `_restore_ranges`, for states that are kept as a whole: the newest that goes further than what is resident."""
        lost: set[bytes] = set()
        for ref in reversed(match.blocks):
            end = ref.start + ref.n_tokens
            if end <= slot.n_tokens:
                break
            payload = store.read(ref)
            if payload is None:
                lost = {ref.key}
            elif payload:  # one without bytes only leads here
                self._slots.truncate(slot, 0)
                self._import_block(slot, payload, prompt[:end], end)
                return 0, lost
        return slot.n_tokens, lost

    def _import_block(self, slot: Slot, payload: memoryview, tokens: Sequence[int], end: int) -> bool:
        """Give bytes to the engine and keep the first positions up to `end` of them; False when it did not take them."""
        try:
            self.evict_and_retry(lambda: self._backend.import_kv(slot.seq_id, payload))
        except ContextFullError:
            return False  # what follows will not fit either
        except BackendError as error:
            _log.warning("The engine refused a KV block that is whole; its tokens are computed again: %s", error)
            return False
        if self._backend.length(slot.seq_id) > end:
            try:
                self._backend.rewind(slot.seq_id, end)
            except UnsupportedError:
                self._start_again(slot)
                return False
        self._slots.append(slot, tokens, is_prefill=True)
        return True

    def _start_again(self, slot: Slot) -> None:
        """Empty a busy slot whose sequence may hold something else than is noted.

        Raises:
            BackendError: the engine failed; the slot is given back.
        """
        try:
            self._backend.rewind(slot.seq_id, 0)
        except BaseException:
            slot.is_busy = False
            raise
        finally:
            self._slots.resync(slot)

    def _store_new(self, slot: Slot, least: int) -> None:
        """Hand over what is not stored yet, in blocks, as long as there are at least so many tokens for one."""
        if not self.wants_checkpoints:
            self._try(lambda store: self._store_ranges(store, slot, least))

    def _store_ranges(self, store: BlockStore, slot: Slot, least: int) -> None:
        tree = self._slots.tree
        start, parent = self._stored_end(store, slot)
        end = tree.length(slot.seq_id)
        if end - start < least:
            return
        tokens = tree.tokens(slot.seq_id, start)
        for size in self._block_sizes(start, end, slot.boundaries):
            if size < least and start + size == end:
                return  # the next tokens will fill it
            payload = self._backend.export_kv(slot.seq_id, start, start + size)
            parent = self._put(store, slot, parent, start, tokens[:size], payload)
            if parent is None:
                return  # the queue is full, or the disk failed: the next chance comes at the latest at the end of the turn
            start, tokens = start + size, tokens[size:]
            tree.set_mark(slot.seq_id, Mark(start, parent))

    def _stored_end(self, store: BlockStore, slot: Slot) -> tuple[int, bytes | None]:
        """Up to where a sequence is on the disk, and the key of the block there. Others may have deleted what was stored."""
        tree = self._slots.tree
        while (mark := tree.last_mark(slot.seq_id)) is not None and not store.has(mark.key):
            tree.forget_marks({mark.key})
        return mark or (0, None)

    def _store_state(self, store: BlockStore, slot: Slot) -> None:
        tree, end = self._slots.tree, slot.n_tokens
        if end < _MIN_STORE_TOKENS or end > tree.length(slot.seq_id):
            return
        start, parent = self._stored_end(store, slot)
        if end == start:
            return
        tokens = tree.tokens(slot.seq_id, start)
        # The block that carries the state holds one token, so that its key is not that of a block that leads elsewhere.
        for size in [*self._block_sizes(start, end - 1), 1]:
            is_last = start + size == end
            payload = self._backend.export_kv(slot.seq_id, 0, end) if is_last else b""
            parent = self._put(store, slot, parent, start, tokens[:size], payload)
            if parent is None:
                return
            start, tokens = start + size, tokens[size:]
        tree.set_mark(slot.seq_id, Mark(end, parent))  # type: ignore[arg-type]  # at least one block was put

    def _try(self, keep: Callable[[BlockStore], None]) -> None:
        """Nothing that goes wrong with keeping may end a reply."""
        store = self._store
        if store is None or store.problem is not None:
            return
        try:
            keep(store)
        except UnsupportedError:
            pass  # a sliding window has passed over it
        except EdgeError as error:
            if str(error) not in self._warned:
                self._warned.add(str(error))
                _log.warning("A part of what was read or written is not kept on the disk: %s", error)

    def _put(
        self, store: BlockStore, slot: Slot, parent: bytes | None, start: int, tokens: list[int], payload: bytes
    ) -> bytes | None:
        is_prefill = start + len(tokens) <= slot.n_prefilled
        return store.put(
            parent,
            tokens,
            payload,
            fingerprint=self._model,
            namespace=NAMESPACE,
            start=start,
            prefill_ms=self._ms_per_token * len(tokens),
            origin="prefill" if is_prefill else "decode",
            owner=slot.owner or None,
        )

    def _block_sizes(self, start: int, end: int, boundaries: Iterable[int] = ()) -> list[int]:
        """Sizes of the blocks for a range of positions: full ones, and shorter ones before a boundary and the end."""
        sizes = []
        for stop in [*(boundary for boundary in boundaries if start < boundary < end), end]:
            n_full, rest = divmod(stop - start, self._block_tokens)
            sizes += [self._block_tokens] * n_full + [rest] * (rest > 0)
            start = stop
        return sizes


def _read_in_turn(store: BlockStore, refs: Sequence[BlockRef]) -> Iterator[tuple[BlockRef, memoryview | None]]:
    """Blocks and their verified bytes. The disk fetches the next ones while the engine takes one in."""
    store.prefetch(refs[:_AHEAD])
    for number, ref in enumerate(refs, _AHEAD):
        store.prefetch(refs[number : number + 1])
        yield ref, store.read(ref)
