"""The base of all engines: `CellsBackend`.

It keeps the contract of base.py as far as no engine is needed for it: it checks arguments, refuses what does not fit, cuts
prompts into chunks, rolls back failed passes, and frames KV blocks. An engine adds the methods below "for the engine": the
passes themselves, and what it does with its own keys and values.
"""

from __future__ import annotations

import struct
import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from edge.backends.base import MAX_DRAFT, NO_DRAFTS, Backend, Capabilities, ModelInfo, Part
from edge.backends.cells import CellAllocator
from edge.backends.neutral import MAKER_BYTES, describe_maker, maker_id
from edge.errors import BackendError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.adapters import Mix
    from edge.prompt.tokenizers import Tokenizer

__all__ = ["BLOCK_HEADER", "CellsBackend", "no_logits"]

BLOCK_HEADER = struct.Struct("<8siiQ")
"""Of a KV block: magic, first position, end, bytes that follow."""


def no_logits(seq_id: int) -> BackendError:
    """Return the error of a sequence without newest logits."""
    return BackendError(f"Sequence {seq_id} has no newest logits.", "Prefill or decode at least one token.")


class CellsBackend(Backend):
    """See the module and `Backend`.

    Args:
        info, capabilities, tokenizer, n_ctx, chunk_size: as in `Backend`.

    Attributes:
        block_magic: 8 bytes that KV blocks of this engine begin with; those of the neutral layout where `neutral` is set.
    """

    block_magic: bytes

    def __init__(
        self, info: ModelInfo, capabilities: Capabilities, tokenizer: Tokenizer, *, n_ctx: int, chunk_size: int
    ) -> None:
        self.info = info
        self.capabilities = capabilities
        self.tokenizer = tokenizer
        self.chunk_size = chunk_size
        # Held during every use of the native objects, so that close() from another thread waits for the pass.
        self._lock = threading.RLock()
        self._is_open = True
        self._maker: bytes | None = None
        self._allocate(n_ctx)

    # -- for the engine: all of it is called under the lock, with checked arguments

    @abstractmethod
    def _prefill_chunk(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> bool:
        """Run one pass over part of a prompt, and compute the logits after its last token.

        Args:
            seq_id: the sequence, which has `start` positions. Its buffers may hold more, from before it was truncated.
            start: position of the first token.
            ids: shape (n,), 1 to chunk_size of them; they fit.
            should_stop: may be asked while the pass runs, to stop it.

        Returns:
            False when the pass was stopped. It is rolled back then, as after an error.

        Raises:
            BackendError: the engine failed.
            ContextFullError: the engine itself found no room.
        """

    @abstractmethod
    def _decode(self, steps: Sequence[tuple[int, Sequence[int]]], starts: dict[int, int]) -> None:
        """Append a token, and a draft behind it, to each of several sequences, and compute the logits after each.

        Raises as `_prefill_chunk`.

        Args:
            steps: (seq_id, tokens); one each unless `capabilities.drafts` is true.
            starts: how many positions each of these sequences has, in the same order.
        """

    def _extend(self, parts: Sequence[Part], starts: dict[int, int]) -> None:
        """Append the parts in one pass, and compute their logits; for engines with `capabilities.max_outputs`.

        Raises as `_prefill_chunk`.

        Args:
            parts: as of `Backend.extend`.
            starts: as for `_decode`.
        """
        raise NotImplementedError

    @abstractmethod
    def _forget_logits(self, seq_id: int) -> None:
        """Drop the newest logits of a sequence that has changed, if it has any."""

    @abstractmethod
    def _truncate(self, seq_id: int, n_keep: int) -> None:
        """Drop what is behind the first `n_keep` positions of the engine's own keys and values.

        Raises:
            UnsupportedError: the engine cannot truncate there; nothing has changed.
        """

    def _roll_back(self, seq_id: int, n_keep: int) -> int:
        """Drop what a failed pass left behind the first `n_keep` positions. Returns how many of those are left."""
        self._truncate(seq_id, n_keep)
        return n_keep

    @abstractmethod
    def _copy(self, source: int, target: int, n_tokens: int) -> None:
        """Give an empty sequence the first positions of another one; at least one."""

    @abstractmethod
    def _export(self, seq_id: int, start: int, end: int) -> bytes:
        """Return positions [start, end) as a block, see `_new_block`.

        Raises:
            UnsupportedError: this range cannot be exported.
        """

    @abstractmethod
    def _import(self, seq_id: int, start: int, end: int, payload: npt.NDArray[np.uint8]) -> None:
        """Append positions [start, end): the bytes that follow the header of a block. They fit.

        Raises:
            BackendError: they are not of this model; the sequence is unchanged.
        """

    @abstractmethod
    def _free(self) -> None:
        """Free the model. Called once."""

    # -- cache

    def length(self, seq_id: int) -> int:
        self._check_open()
        return self._cells.length(seq_id)

    def prefill(self, seq_id: int, tokens: Sequence[int], *, should_stop: Callable[[], bool] | None = None) -> int:
        import numpy as np

        self.check_prefill(seq_id, tokens)
        ids = np.asarray(tokens, dtype=np.int64)
        n_done, start = 0, self.length(seq_id)
        while n_done < len(ids):
            if should_stop is not None and should_stop():
                return n_done
            n_chunk = self.chunk_size - (start + n_done) % self.chunk_size
            chunk = ids[n_done : n_done + n_chunk]
            with self._lock:
                self._check_open()
                if not self._prefill_or_roll_back(seq_id, chunk, should_stop):
                    return n_done
                n_done += len(chunk)
                if n_done < len(ids):
                    self._forget_logits(seq_id)  # only a whole prefill leaves some
        return n_done

    def check_prefill(self, seq_id: int, tokens: Sequence[int]) -> None:
        """Refuse what `prefill` would.

        Raises:
            UsageError: there is no token, or one that the vocabulary does not have, or no such sequence.
            ContextFullError: they do not fit.
            BackendError: it is closed.
        """
        if not tokens:
            raise UsageError("There is nothing to prefill.", "Give at least one token.")
        self._check_tokens(tokens)
        self._cells.check_room({seq_id: len(tokens)})

    def decode(self, steps: Sequence[tuple[int, int]], drafts: Mapping[int, Sequence[int]] = NO_DRAFTS) -> None:
        if not steps:
            raise UsageError("There is nothing to decode.", "Give at least one step.")
        with self._lock:
            whole = [(seq_id, (token, *drafts.get(seq_id, ()))) for seq_id, token in steps]
            self._check_tokens([token for _, tokens in whole for token in tokens])
            starts = {seq_id: self._cells.length(seq_id) for seq_id, _ in steps}
            if len(starts) != len(steps):
                raise UsageError("A sequence is in this step twice.", "Give every sequence at most once.")
            if drafts:
                self._check_drafts(drafts, starts)
            self._pass({seq_id: len(tokens) for seq_id, tokens in whole}, starts, lambda: self._decode(whole, starts))

    def extend(self, parts: Sequence[Part]) -> None:
        with self._lock:
            self._check_parts(parts)
            starts = {part.seq_id: self._cells.length(part.seq_id) for part in parts}
            if len(starts) != len(parts):
                raise UsageError("A sequence is in this pass twice.", "Give every sequence at most once.")
            self._pass({part.seq_id: len(part.tokens) for part in parts}, starts, lambda: self._extend(parts, starts))

    def _pass(self, lengths: Mapping[int, int], starts: Mapping[int, int], run: Callable[[], None]) -> None:
        """Run a pass over several sequences, and note their new lengths: all of them or none."""
        self._cells.check_room(lengths)
        try:
            run()
        except BaseException:  # also Ctrl-C
            for seq_id, n_before in starts.items():
                self._forget_pass(seq_id, n_before)
            raise
        for seq_id, n_tokens in lengths.items():
            self._cells.append(seq_id, n_tokens)

    def rewind(self, seq_id: int, n_keep: int) -> None:
        with self._lock:
            n_now = self.length(seq_id)
            self._check_truncate(seq_id, n_keep)
            if n_keep == n_now:
                return
            self._truncate(seq_id, n_keep)
            self._cells.truncate(seq_id, n_keep)
            self._forget_logits(seq_id)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        with self._lock:
            self._check_truncate(source, n_tokens)
            if source == target:
                self.rewind(source, n_tokens)
                return
            self.rewind(target, 0)
            if n_tokens:
                self._copy(source, target, n_tokens)
                self._cells.share(source, target, n_tokens)

    def export_kv(self, seq_id: int, start: int, end: int) -> bytes:
        with self._lock:
            n_now = self.length(seq_id)
            if not 0 <= start < end <= n_now:
                raise UsageError(f"Sequence {seq_id} has {n_now} tokens; [{start}, {end}) cannot be exported.")
            return self._export(seq_id, start, end)

    def import_kv(self, seq_id: int, block: bytes | memoryview) -> None:
        import numpy as np

        with self._lock:
            n_now = self.length(seq_id)
            if len(block) < self._head_bytes:
                raise BackendError("The KV block is truncated.")
            magic, start, end, size = BLOCK_HEADER.unpack_from(block)
            if magic != self.block_magic or len(block) != self._head_bytes + size or not 0 <= start < end:
                raise BackendError(f"This is not a whole KV block of the {self.name} backend.")
            if start != n_now:
                raise BackendError(f"The KV block starts at position {start}, but the sequence ends at {n_now}.")
            self._cells.check_room({seq_id: end - start})
            self._import(seq_id, start, end, np.frombuffer(block, np.uint8)[self._head_bytes :])
            self._cells.append(seq_id, end - start)
            self._forget_logits(seq_id)

    def set_adapters(self, mix: Mix) -> None:
        self._check_open()
        super().set_adapters(mix)

    def maker(self, block: bytes | memoryview) -> str:
        self._check_open()
        if self.neutral is None:
            return ""
        found = bytes(block[BLOCK_HEADER.size : self._head_bytes])
        return "" if found == self._own_maker() else describe_maker(found)

    def sign_as(self, identity: Mapping[str, str | int | float | bool]) -> None:
        """Let exported blocks say that another maker computed them, of which this engine is a part; see `maker_id`."""
        self._maker = maker_id(identity)

    def close(self) -> None:
        with self._lock:
            if self._is_open:
                self._is_open = False
                self.tokenizer.close()  # waits for the calls that use the model
                self._free()

    # -- inside

    def _prefill_or_roll_back(self, seq_id: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None) -> bool:
        start = self._cells.length(seq_id)
        is_done = False
        try:
            is_done = self._prefill_chunk(seq_id, start, ids, should_stop)
        finally:
            if not is_done:  # also Ctrl-C: the pass may be done, but nobody is told
                self._forget_pass(seq_id, start)
        if is_done:
            self._cells.append(seq_id, len(ids))
        return is_done

    def _forget_pass(self, seq_id: int, n_keep: int) -> None:
        """Make a sequence what it was before a failed pass."""
        self._forget_logits(seq_id)
        self._cells.truncate(seq_id, self._roll_back(seq_id, n_keep))

    def _new_block(self, start: int, end: int, size: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Return a block with its header, and the part of it where `size` bytes of positions [start, end) belong."""
        import numpy as np

        block = np.empty(self._head_bytes + size, dtype=np.uint8)
        BLOCK_HEADER.pack_into(block.data, 0, self.block_magic, start, end, size)
        if self.neutral is not None:
            block[BLOCK_HEADER.size : self._head_bytes] = np.frombuffer(self._own_maker(), np.uint8)
        return block, block[self._head_bytes :]

    @property
    def _head_bytes(self) -> int:
        """Bytes of a block before those of the engine."""
        return BLOCK_HEADER.size + (MAKER_BYTES if self.neutral is not None else 0)

    def _own_maker(self) -> bytes:
        if self._maker is None:
            self._maker = maker_id(self.kv_identity())
        return self._maker

    def _allocate(self, n_ctx: int) -> None:
        """Begin counting with so many cells and empty sequences."""
        self.n_ctx = n_ctx
        self._cells = CellAllocator(n_ctx, self.capabilities.n_seq, shared=self.capabilities.shared_cells)

    def _check_open(self) -> None:
        if not self._is_open:
            raise BackendError("The model is closed.", "Load it again.")

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        self._check_open()
        n_vocab = self.info.n_vocab
        if tokens and (min(tokens) < 0 or max(tokens) >= n_vocab):
            wrong = next(token for token in tokens if not 0 <= token < n_vocab)
            raise UsageError(f"There is no token {wrong}.", f"The vocabulary has {n_vocab} tokens.")

    def _check_drafts(self, drafts: Mapping[int, Sequence[int]], starts: Mapping[int, int]) -> None:
        if not self.capabilities.drafts:
            raise UnsupportedError(f"The {self.name} backend cannot verify draft tokens of this model.")
        for seq_id in drafts:
            if seq_id not in starts:
                raise UsageError(f"Sequence {seq_id} has a draft and no token in front of it.")
        n_drafted = sum(map(len, drafts.values()))
        if n_drafted > MAX_DRAFT:
            raise UsageError(f"{n_drafted} draft tokens are too many for a pass.", f"{MAX_DRAFT} are possible.")

    def _check_parts(self, parts: Sequence[Part]) -> None:
        most = self.capabilities.max_outputs
        if not most:
            raise UnsupportedError(f"The {self.name} backend computes one prompt at a time.")
        if not parts or not all(1 <= part.n_logits <= len(part.tokens) for part in parts):
            raise UsageError("A part has no tokens, or logits after more than it has.", "Give at least one of each.")
        self._check_tokens([token for part in parts for token in part.tokens])
        n_tokens, n_logits = (sum(numbers) for numbers in zip(*((len(one.tokens), one.n_logits) for one in parts), strict=True))
        if n_tokens > self.chunk_size or n_logits > most:
            raise UsageError(
                f"{n_tokens} tokens with {n_logits} logits are too many for a pass.",
                f"{self.chunk_size} with {most} are possible.",
            )

    def _check_truncate(self, seq_id: int, n_keep: int) -> None:
        """Refuse what no engine can; engines that cannot truncate everywhere extend it."""
        n_now = self.length(seq_id)
        if not 0 <= n_keep <= n_now:
            raise UsageError(f"Sequence {seq_id} has {n_now} tokens; it cannot keep {n_keep}.")

    def _check_threads(self, *numbers: int) -> None:
        self._check_open()
        if min(numbers) < 1:
            raise UsageError(f"{min(numbers)} threads are not possible.", "Use at least one.")

    def _check_resize(self, n_ctx: int) -> None:
        self._check_open()
        if n_ctx < 1:
            raise UsageError(f"A KV cache of {n_ctx} cells is not possible.", "Ask for 512 or more.")
        if any(self._cells.length(seq_id) for seq_id in range(self.capabilities.n_seq)):
            raise UsageError("A KV cache that is in use cannot be resized.", "Empty every sequence first: rewind(seq_id, 0).")
