"""KV cache of the scheduler: sequences in memory, with the block store on disk below them.

A prompt's prefix comes from memory as far as possible, then from disk, and only the rest is computed. Computed tokens go to the
block store on the way: whole blocks as soon as they are full, the shorter last one at the end of the turn. The next turn's
blocks follow that one, so the keys and values of each token are written once.

Numerical promises:

- Restored bytes equal the stored ones: after a restart a conversation continues exactly as it would have without one.
- Keys and values made by decoding, or by a partial chunk, differ in the last bits from those of a whole prefill. With `exact`,
  only whole chunks from position 0 are reused: then a reply equals that of a cold run, and the rest of the last chunk and
  earlier replies are prefilled again.

Models whose state has no token ranges (recurrent and hybrid ones) are stored as checkpoints of the whole state, at positions
that the scheduler chooses; blocks without payload lead to them.

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
from edge.kv.blocks import with_adapters
from edge.kv.foreign import ForeignBlocks
from edge.kv.slots import Slot, Slots
from edge.kv.tree import Mark

if TYPE_CHECKING:
    from edge.adapters import Mix
    from edge.backends.base import Backend
    from edge.kv.store import BlockRef, BlockStore, Match
    from edge.names import CacheHint

__all__ = ["BLOCK_TOKENS", "KVCache", "Reuse"]

T = TypeVar("T")
_log = logging.getLogger("edge.kv")
BLOCK_TOKENS = 128
"""Of a full block; docs/kv.md explains the choice."""
_MIN_RESTORE_TOKENS = 4
"""Fewer are computed: searching the disk takes as long."""
_MIN_STORE_TOKENS = 32
"""A shorter prompt, reply included, is not worth a file."""
_AHEAD = 16
"""Blocks that are prefetched ahead of the one that the engine imports."""
_SMOOTHING = 0.3


@dataclass(frozen=True, slots=True)
class Reuse:
    """The part of a prompt that was not computed.

    Attributes:
        n_memory: tokens that were in the KV cache.
        n_disk: tokens restored from disk.
        n_foreign: those of them that another engine had computed.
        saved_ms: estimated time to compute them, less the time to restore them; 0 while nothing is known.
    """

    n_memory: int = 0
    n_disk: int = 0
    saved_ms: float = 0.0
    n_foreign: int = 0


class KVCache:
    """See the module.

    Args:
        backend: an open backend whose sequences are empty.
        store: the blocks on disk; None stores nothing.
        model: fingerprint of weights and engine, 32 bytes; see `edge.kv.open`.
        own: one that no other engine has, where `model` is that of several; b"" is the same as `model`.
        exact: reuse only what equals a cold run bit for bit. Needs a backend with one sequence: several share one cache, and
            the place of the others' cells can change the last bits too.

    Attributes:
        chunk_size: prompts must be computed in chunks of so many tokens, aligned to multiples of it.
        chunk_grain: least tokens of a piece that a chunk may be cut into.
        is_exact: as `exact`.
    """

    def __init__(
        self,
        backend: Backend,
        store: BlockStore | None = None,
        *,
        model: bytes = b"",
        own: bytes = b"",
        exact: bool = False,
    ) -> None:
        able = backend.capabilities
        self.is_exact = exact
        self._backend = backend
        self._store = store if able.export_kv or able.checkpoints else None
        self._model, self._own = model, own or model
        self.chunk_size = min(BLOCK_TOKENS, backend.chunk_size) if exact else backend.chunk_size
        self.chunk_grain = self.chunk_size if exact else backend.chunk_grain
        # Blocks of a sliding-window model are exported while the window covers them.
        self._block_tokens = min(BLOCK_TOKENS, backend.kv_window // 2) if backend.kv_window else BLOCK_TOKENS
        self._slots = Slots(backend, self.chunk_size if exact else 1)
        self._foreign = ForeignBlocks(backend)
        self._ms_per_token = 0.0
        self._warned: set[str] = set()
        if self._store is not None:
            self._store.warm_up()

    @property
    def wants_checkpoints(self) -> bool:
        """The state is stored as a whole, at positions that the scheduler chooses."""
        return self._store is not None and not self._backend.capabilities.export_kv

    @property
    def has_free_sequence(self) -> bool:
        """True if `acquire` would find a sequence."""
        return any(not slot.is_busy for slot in self._slots.slots)

    def n_resident(self, prompt: Sequence[int], namespace: str = "", mix: Mix = ()) -> int:
        """Return the number of tokens of a prompt that `acquire` would find in memory."""
        return self._slots.n_shared(prompt, _space(namespace, mix))

    def checkpoints(self, boundaries: Iterable[int]) -> frozenset[int]:
        """Return where chunks must end and `checkpoint` be called, to store the state at or before these positions."""
        if not self.wants_checkpoints:
            return frozenset()
        return frozenset(self._slots.reusable(boundary) for boundary in boundaries) - {0}

    def acquire(
        self,
        prompt: Sequence[int],
        owner: str = "",
        boundaries: Iterable[int] = (),
        hint: CacheHint = "disk",
        namespace: str = "",
        mix: Mix = (),
    ) -> tuple[Slot, Reuse] | None:
        """Take a sequence for a prompt, with as much of its prefix as memory and disk have.

        Args:
            prompt: token ids, at least one. At least the last one is left to compute, since its logits are needed.
            owner: of the blocks that will be stored: a conversation's id, or "" for none.
            boundaries: positions that later prompts are likely to share: blocks end there, so that this is stored once.
            hint: where what is computed now stays. What is stored already is reused in any case.
            namespace: only what was computed in it is reused, in memory and from disk.
            mix: the adapters that it is computed with; likewise.

        Returns:
            The slot and the reused part, or None if every sequence is busy.

        Raises:
            BackendError: the engine failed; no slot was taken.
        """
        slot = self._slots.acquire(prompt, _space(namespace, mix))
        if slot is None:
            return None
        slot.hint, slot.namespace, slot.mix, slot.n_foreign = hint, namespace, mix, 0
        n_memory = slot.n_tokens
        n_disk, restore_ms = 0, 0.0
        if self._store is not None:
            started = time.perf_counter()
            try:
                n_memory, n_disk = self._restore(self._store, slot, prompt)
                if self._foreign.has_far and self._model != self._own:
                    self._keep_apart()
                    n_disk += self._restore(self._store, slot, prompt)[1]
            except Exception:  # noqa: BLE001 (no error here may end the reply: the prompt is computed instead)
                _log.exception("Blocks on disk could not be restored")
                n_memory = 0
                self._reset(slot)
            restore_ms = (time.perf_counter() - started) * 1000
        slot.owner, slot.n_prefilled, slot.boundaries = owner, slot.n_tokens, tuple(sorted(boundaries))
        slot.n_found = slot.n_tokens
        saved_ms = max(0.0, (n_memory + n_disk) * self._ms_per_token - restore_ms)
        return slot, Reuse(n_memory, n_disk, saved_ms, min(slot.n_foreign, n_disk))

    def note_prefill(self, slot: Slot, tokens: Sequence[int], ms: float) -> None:
        """Note that part of a prompt was prefilled, and store full blocks.

        Args:
            slot: a busy one.
            tokens: the tokens after those it held.
            ms: time that it took, in milliseconds.
        """
        if len(tokens) >= 16 or not self._ms_per_token:
            newest = ms / len(tokens)
            known = self._ms_per_token or newest
            self._ms_per_token = known + _SMOOTHING * (newest - known)
        self._slots.append(slot, tokens, is_prefill=True)
        slot.n_prefilled = slot.n_tokens
        self._store_new(slot, self._block_tokens)

    def note_decode(self, slot: Slot, token: int) -> None:
        """Note that a token of a reply was decoded, and store full blocks."""
        self._slots.append(slot, [token], is_prefill=False)
        if slot.n_tokens % self._block_tokens == 0:
            self._store_new(slot, self._block_tokens)

    def drop_draft(self, slot: Slot) -> None:
        """Drop what the engine holds behind the tokens that were noted: the part of a draft that did not come true."""
        if self._backend.length(slot.seq_id) > slot.n_tokens:
            self._backend.rewind(slot.seq_id, slot.n_tokens)

    def checkpoint(self, slot: Slot) -> None:
        """Store the whole state as it is now, if it has no ranges."""
        if self.wants_checkpoints and _is_stored(slot):
            self._try(lambda store: self._store_state(store, slot))

    def release(self, slot: Slot) -> None:
        """Give a slot back; its tokens stay in memory and new ones go to the disk, as its hint says."""
        self.drop_draft(slot)
        self.checkpoint(slot)
        if slot.n_tokens >= _MIN_STORE_TOKENS:
            self._store_new(slot, 1)
        if self._store is not None and _is_stored(slot):
            keys = self._slots.tree.marks(slot.seq_id)
            if slot.owner:
                # All blocks of its turn, also those that others wrote: their owners may be deleted before this one.
                self._store.touch(keys, owner=slot.owner)
            for key in keys if slot.hint == "keep" else ():
                self._store.pin(key)
        self._slots.release(slot)
        if slot.hint == "off" and slot.n_tokens > slot.n_found:
            self._slots.truncate(slot, slot.n_found)

    def discard(self, slot: Slot) -> None:
        """Give a slot back and drop its tokens."""
        self._slots.truncate(slot, 0)
        self._slots.release(slot)

    def evict_one(self) -> bool:
        """As `Slots.evict_one`. Blocks on disk stay."""
        return self._slots.evict_one()

    def evict_idle(self, n_sequences: int) -> None:
        """Empty idle sequences, oldest first, until at most `n_sequences` are left. Blocks on disk stay."""
        while self._slots.n_idle > n_sequences and self.evict_one():
            pass

    def resync(self, slot: Slot) -> None:
        """After a failure, take the length of a sequence from the backend."""
        self._slots.resync(slot)

    def evict_and_retry(self, step: Callable[[], T]) -> T:
        """Run a step of the engine; while the shared cells are full, evict an idle sequence and retry.

        Raises:
            ContextFullError: it does not fit beside the busy sequences.
        """
        while True:
            try:
                return step()
            except ContextFullError:
                if not self._backend.capabilities.shared_cells or not self.evict_one():
                    raise

    def _keep_apart(self) -> None:
        """From now on share no blocks: those that are no use here stand where this engine's own would be stored."""
        self._model = self._own
        tree = self._slots.tree
        for slot in self._slots.slots:
            tree.forget_marks(set(tree.marks(slot.seq_id)))

    def _restore(self, store: BlockStore, slot: Slot, prompt: Sequence[int]) -> tuple[int, int]:
        """Restore what the disk has beyond the resident prefix. Returns the tokens from memory and from disk."""
        usable = prompt[: self._slots.reusable(len(prompt) - 1)]
        if len(usable) - slot.n_tokens < _MIN_RESTORE_TOKENS:
            return slot.n_tokens, 0
        ranges = self._backend.capabilities.export_kv
        match = store.match(self._fingerprint(slot.mix), slot.namespace, usable, partial=ranges)
        if not match.blocks:
            return slot.n_tokens, 0
        if _is_stored(slot):
            store.touch([ref.key for ref in match.blocks])
        n_memory, lost = slot.n_tokens, set[bytes]()
        if match.n_tokens - slot.n_tokens >= _MIN_RESTORE_TOKENS:
            if not self._ms_per_token:
                self._ms_per_token = match.prefill_ms / match.n_tokens
            with store.lease(match):
                restore = self._restore_ranges if ranges else self._restore_state
                n_memory, lost = restore(store, slot, prompt, match)
            if self._slots.reusable(slot.n_tokens) < slot.n_tokens:  # a block was damaged in the middle of a chunk
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
        """Append the blocks after the resident prefix. Returns the tokens that stayed from memory, and the lost keys."""
        refs = [ref for ref in match.blocks if ref.start + ref.n_used > slot.n_tokens]
        if refs[0].start < slot.n_tokens:
            self._slots.truncate(slot, refs[0].start)
        n_memory = slot.n_tokens
        if n_memory < refs[0].start:  # the engine could not truncate there and dropped everything
            n_memory, refs = 0, list(match.blocks)
        for ref, payload in _read_ahead(store, refs):
            if payload is None:
                return n_memory, {ref.key}
            if not self._import_block(slot, payload, prompt[ref.start : ref.start + ref.n_used], ref.start + ref.n_used):
                break
        return n_memory, set()

    def _restore_state(self, store: BlockStore, slot: Slot, prompt: Sequence[int], match: Match) -> tuple[int, set[bytes]]:
        """As `_restore_ranges`, for whole states: import the longest one beyond the resident prefix."""
        lost: set[bytes] = set()
        for ref in reversed(match.blocks):
            end = ref.start + ref.n_tokens
            if end <= slot.n_tokens:
                break
            payload = store.read(ref)
            if payload is None:
                lost = {ref.key}
            elif payload:  # one without payload only leads here
                self._slots.truncate(slot, 0)
                self._import_block(slot, payload, prompt[:end], end)
                return 0, lost
        return slot.n_tokens, lost

    def _import_block(self, slot: Slot, payload: memoryview, tokens: Sequence[int], end: int) -> bool:
        """Import a payload and truncate it at position `end`; return False if the engine refused it."""
        try:
            self.evict_and_retry(lambda: self._backend.import_kv(slot.seq_id, payload))
        except ContextFullError:
            return False  # the next ones will not fit either
        except BackendError as error:
            _log.warning("The engine refused an intact KV block; its tokens are computed again: %s", error)
            return False
        if self._backend.length(slot.seq_id) > end:
            try:
                self._backend.rewind(slot.seq_id, end)
            except UnsupportedError:
                self._reset(slot)
                return False
        maker = self._foreign.maker(payload)
        if maker and not self._foreign.are_usable(maker, slot, tokens):
            self._backend.rewind(slot.seq_id, slot.n_tokens)
            return False
        slot.n_foreign += len(tokens) if maker else 0
        self._slots.append(slot, tokens, is_prefill=True)
        return True

    def _reset(self, slot: Slot) -> None:
        """Empty a busy slot whose sequence may differ from its notes.

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
        """Store the new tokens in blocks of at least `least` tokens."""
        if not self.wants_checkpoints and _is_stored(slot):
            self._try(lambda store: self._store_ranges(store, slot, least))

    def _store_ranges(self, store: BlockStore, slot: Slot, least: int) -> None:
        tree = self._slots.tree
        start, parent = self._stored_end(store, slot)
        end = tree.length(slot.seq_id)
        if end - start < least:
            return
        tokens = tree.tokens(slot.seq_id, start)
        n_reused = slot.n_found if 0 < slot.n_found < end else 0
        boundaries = sorted({*slot.boundaries, n_reused}) if not store.takes(0, is_reused=False) else slot.boundaries
        for size in self._block_sizes(start, end, boundaries):
            if size < least and start + size == end:
                return  # later tokens will fill it
            if not store.takes(0, is_reused=_is_reused(slot, start + size)):
                return  # as much as is allowed was written today: perhaps once it is used again
            payload = self._backend.export_kv(slot.seq_id, start, start + size)
            parent = self._put(store, slot, parent, start, tokens[:size], payload)
            if parent is None:
                return  # the queue is full, or the disk failed: tried again at the end of the turn at the latest
            start, tokens = start + size, tokens[size:]
            tree.set_mark(slot.seq_id, Mark(start, parent))

    def _stored_end(self, store: BlockStore, slot: Slot) -> tuple[int, bytes | None]:
        """Return the end of a sequence's stored part and the key of the block there. Others may have deleted blocks."""
        tree = self._slots.tree
        while (mark := tree.last_mark(slot.seq_id)) is not None and not store.has(mark.key):
            tree.forget_marks({mark.key})
        return mark or (0, None)

    def _store_state(self, store: BlockStore, slot: Slot) -> None:
        tree, end = self._slots.tree, slot.n_tokens
        if end < _MIN_STORE_TOKENS or end > tree.length(slot.seq_id) or not store.takes(0, is_reused=_is_reused(slot, end)):
            return
        start, parent = self._stored_end(store, slot)
        if end == start:
            return
        tokens = tree.tokens(slot.seq_id, start)
        # The block with the state holds one token, so that its key differs from those of blocks that lead elsewhere.
        for size in [*self._block_sizes(start, end - 1), 1]:
            is_last = start + size == end
            payload = self._backend.export_kv(slot.seq_id, 0, end) if is_last else b""
            parent = self._put(store, slot, parent, start, tokens[:size], payload)
            if parent is None:
                return
            start, tokens = start + size, tokens[size:]
        tree.set_mark(slot.seq_id, Mark(end, parent))  # type: ignore[arg-type]  # at least one block was put

    def _try(self, save: Callable[[BlockStore], None]) -> None:
        """Call `save`; no failure to store may end a reply."""
        store = self._store
        if store is None or store.is_paused:
            return
        try:
            save(store)
        except UnsupportedError:
            pass  # a sliding window has moved past it
        except EdgeError as error:
            if str(error) not in self._warned:
                self._warned.add(str(error))
                _log.warning("Part of a conversation's KV cache is not stored on disk: %s", error)

    def _put(
        self, store: BlockStore, slot: Slot, parent: bytes | None, start: int, tokens: list[int], payload: bytes
    ) -> bytes | None:
        origin = "prefill" if start + len(tokens) <= slot.n_prefilled else "decode"
        return store.put(
            parent, tokens, payload, fingerprint=self._fingerprint(slot.mix), namespace=slot.namespace, start=start,
            prefill_ms=self._ms_per_token * len(tokens), origin=origin, owner=slot.owner or None,
            is_reused=_is_reused(slot, start + len(tokens)),
        )  # fmt: skip

    def _fingerprint(self, mix: Mix) -> bytes:
        """Return the fingerprint of blocks that are computed with these adapters."""
        return with_adapters(self._model, mix, self._backend.adapters)

    def _block_sizes(self, start: int, end: int, boundaries: Iterable[int] = ()) -> list[int]:
        """Return block sizes for a range of positions: full ones, and shorter ones before a boundary and the end."""
        sizes = []
        for stop in [*(boundary for boundary in boundaries if start < boundary < end), end]:
            n_full, rest = divmod(stop - start, self._block_tokens)
            sizes += [self._block_tokens] * n_full + [rest] * (rest > 0)
            start = stop
        return sizes


def _space(namespace: str, mix: Mix) -> str:
    """Return the name under which the tree has a namespace: sequences that were computed with other adapters share nothing."""
    return f"{namespace}\n{mix!r}" if mix else namespace


def _is_stored(slot: Slot) -> bool:
    """Return whether what the turn of a slot computes goes to the disk."""
    return slot.hint in ("disk", "keep")


def _is_reused(slot: Slot, end: int) -> bool:
    """Return whether all tokens before a position were reused by the turn of a slot, or are to be kept in any case."""
    return slot.hint == "keep" or end <= slot.n_found


def _read_ahead(store: BlockStore, refs: Sequence[BlockRef]) -> Iterator[tuple[BlockRef, memoryview | None]]:
    """Yield blocks and their verified bytes; the disk prefetches the next ones while the engine imports one."""
    store.prefetch(refs[:_AHEAD])
    for number, ref in enumerate(refs, _AHEAD):
        store.prefetch(refs[number : number + 1])
        yield ref, store.read(ref)
