"""What all engines have in common that count cells: `CellsBackend`.

It keeps the contract of base.py as far as no engine is needed for it: it checks what it is asked, refuses what does not fit,
cuts prompts into chunks, takes back what a failed pass left, and frames KV blocks. An engine adds what is below "for the
engine": the pass itself, and what it does with its own keys and values.
"""

from __future__ import annotations

import struct
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge.backends.base import Backend, Capabilities, ModelInfo
from edge.backends.cells import CellAllocator
from edge.errors import BackendError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.prompt.tokenizers import Tokenizer

__all__ = ["CellsBackend"]

_BLOCK = struct.Struct("<8siiQ")  # magic, first position, end, bytes that follow


class CellsBackend(Backend):
    """See the module and `Backend`.

    Args:
        info, capabilities, tokenizer, n_ctx, chunk_size: as in `Backend`.
        block_magic: 8 bytes that KV blocks of this engine begin with.
    """

    def __init__(
        self,
        info: ModelInfo,
        capabilities: Capabilities,
        tokenizer: Tokenizer,
        *,
        n_ctx: int,
        chunk_size: int,
        block_magic: bytes,
    ) -> None:
        self.info = info
        self.capabilities = capabilities
        self.tokenizer = tokenizer
        self.n_ctx = n_ctx
        self.chunk_size = chunk_size
        self._block_magic = block_magic
        # Held during every use of the native objects, so that close() from another thread waits for the pass.
        self._lock = threading.RLock()
        self._is_open = True
        self._cells = CellAllocator(n_ctx, capabilities.n_seq, shared=capabilities.shared_cells)

    # -- for the engine: all of it is called under the lock, with arguments that were checked

    @abstractmethod
    def _read(self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None) -> bool:
        """One pass over part of a prompt, and the logits after its last token.

        Args:
            seq_id: the sequence, which has `start` positions.
            start: position of the first token.
            ids: shape (n,), 1 to chunk_size of them; they fit.
            should_stop: may be asked while the pass runs, to give it up.

        Returns:
            False when the pass was given up. What it left is taken back then, as after an error.

        Raises:
            BackendError: the engine failed.
            ContextFullError: the engine itself found no room.
        """

    @abstractmethod
    def _step(self, steps: Sequence[tuple[int, int]], starts: dict[int, int]) -> None:
        """One token for each of several sequences, and their logits. Raises as `_read`; what was done is taken back then.

        Args:
            steps: (seq_id, token).
            starts: how many positions each of these sequences has, in the same order.
        """

    @abstractmethod
    def _forget_logits(self, seq_id: int) -> None:
        """The sequence has changed: it has no newest logits any more. It may have had none."""

    @abstractmethod
    def _cut(self, seq_id: int, n_keep: int) -> None:
        """Drop what is behind the first `n_keep` positions of the engine's own keys and values.

        Raises:
            UnsupportedError: the engine cannot cut there; nothing has changed.
        """

    def _undo(self, seq_id: int, n_keep: int) -> int:
        """Drop what a failed pass left behind the first `n_keep` positions; says how many are left of those."""
        self._cut(seq_id, n_keep)
        return n_keep

    @abstractmethod
    def _copy(self, source: int, target: int, n_tokens: int) -> None:
        """Give an empty sequence the first positions of another one; at least one."""

    @abstractmethod
    def _export(self, seq_id: int, start: int, end: int) -> bytes:
        """Positions [start, end) as a block, see `_new_block`.

        Raises:
            UnsupportedError: this range cannot be written out.
        """

    @abstractmethod
    def _import(self, seq_id: int, start: int, end: int, payload: npt.NDArray[np.uint8]) -> None:
        """Append positions [start, end): the bytes that follow the header of a block. They fit.

        Raises:
            BackendError: they are not of this model; the sequence is as it was.
        """

    @abstractmethod
    def _free(self) -> None:
        """Let go of the model. Called once."""

    # -- cache

    def length(self, seq_id: int) -> int:
        self._check_open()
        return self._cells.length(seq_id)

    def prefill(self, seq_id: int, tokens: Sequence[int], *, should_stop: Callable[[], bool] | None = None) -> int:
        import numpy as np

        if not tokens:
            raise UsageError("There is nothing to prefill.", "Give at least one token.")
        self._check_tokens(tokens)
        ids = np.asarray(tokens, dtype=np.int64)
        n_done, start = 0, self.length(seq_id)
        self._cells.check_room({seq_id: len(ids)})
        while n_done < len(ids):
            if should_stop is not None and should_stop():
                return n_done
            n_chunk = self.chunk_size - (start + n_done) % self.chunk_size
            chunk = ids[n_done : n_done + n_chunk]
            with self._lock:
                self._check_open()
                if not self._read_chunk(seq_id, chunk, should_stop):
                    return n_done
                n_done += len(chunk)
                if n_done < len(ids):
                    self._forget_logits(seq_id)  # only a prefill that came to its end leaves some
        return n_done

    def decode(self, steps: Sequence[tuple[int, int]]) -> None:
        if not steps:
            raise UsageError("There is nothing to decode.", "Give at least one step.")
        with self._lock:
            self._check_tokens([token for _, token in steps])
            starts = {seq_id: self._cells.length(seq_id) for seq_id, _ in steps}
            if len(starts) != len(steps):
                raise UsageError("A sequence is in this step twice.", "Give every sequence at most once.")
            self._cells.check_room(dict.fromkeys(starts, 1))
            try:
                self._step(steps, starts)
            except BaseException:  # also Ctrl-C: all of the sequences or none
                for seq_id, n_before in starts.items():
                    self._take_back(seq_id, n_before)
                raise
            for seq_id in starts:
                self._cells.append(seq_id, 1)

    def rewind(self, seq_id: int, n_keep: int) -> None:
        with self._lock:
            n_now = self.length(seq_id)
            self._check_cut(seq_id, n_keep)
            if n_keep == n_now:
                return
            self._cut(seq_id, n_keep)
            self._cells.truncate(seq_id, n_keep)
            self._forget_logits(seq_id)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        with self._lock:
            self._check_cut(source, n_tokens)
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
            if len(block) < _BLOCK.size:
                raise BackendError("The KV block is cut off.")
            magic, start, end, size = _BLOCK.unpack_from(block)
            if magic != self._block_magic or len(block) != _BLOCK.size + size or not 0 <= start < end:
                raise BackendError(f"This is not a whole KV block of the {self.name} backend.")
            if start != n_now:
                raise BackendError(f"The KV block starts at position {start}, but the sequence ends at {n_now}.")
            self._cells.check_room({seq_id: end - start})
            self._import(seq_id, start, end, np.frombuffer(block, np.uint8)[_BLOCK.size :])
            self._cells.append(seq_id, end - start)
            self._forget_logits(seq_id)

    def close(self) -> None:
        with self._lock:
            if self._is_open:
                self._is_open = False
                self.tokenizer.close()  # waits for the calls that use the model
                self._free()

    # -- inside

    def _read_chunk(self, seq_id: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None) -> bool:
        """One pass, noted; False when it was given up, and then it left nothing behind."""
        start = self._cells.length(seq_id)
        try:
            is_done = self._read(seq_id, start, ids, should_stop)
        except BaseException:  # also Ctrl-C: the pass may be done, but nobody is told
            self._take_back(seq_id, start)
            raise
        if is_done:
            self._cells.append(seq_id, len(ids))
        else:
            self._take_back(seq_id, start)
        return is_done

    def _take_back(self, seq_id: int, n_keep: int) -> None:
        """After a failed pass."""
        self._forget_logits(seq_id)
        self._cells.truncate(seq_id, self._undo(seq_id, n_keep))

    def _new_block(self, start: int, end: int, size: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """A block with its header, and the part of it where `size` bytes of positions [start, end) belong."""
        import numpy as np

        block = np.empty(_BLOCK.size + size, dtype=np.uint8)
        _BLOCK.pack_into(block.data, 0, self._block_magic, start, end, size)
        return block, block[_BLOCK.size :]

    def _count_anew(self, n_ctx: int) -> None:
        """Another number of cells; all sequences are empty."""
        self._cells = CellAllocator(n_ctx, self.capabilities.n_seq, shared=self.capabilities.shared_cells)
        self.n_ctx = n_ctx

    def _check_open(self) -> None:
        if not self._is_open:
            raise BackendError("The model is closed.", "Open it again.")

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        self._check_open()
        n_vocab = self.info.n_vocab
        if tokens and (min(tokens) < 0 or max(tokens) >= n_vocab):
            wrong = next(token for token in tokens if not 0 <= token < n_vocab)
            raise UsageError(f"There is no token {wrong}.", f"The vocabulary has {n_vocab} tokens.")

    def _check_cut(self, seq_id: int, n_keep: int) -> None:
        """Engines that cannot cut everywhere add to it."""
        n_now = self.length(seq_id)
        if not 0 <= n_keep <= n_now:
            raise UsageError(f"Sequence {seq_id} has {n_now} tokens; {n_keep} of them are not possible.")

    def _check_threads(self, *numbers: int) -> None:
        """For engines that can `set_threads`."""
        self._check_open()
        if min(numbers) < 1:
            raise UsageError(f"{min(numbers)} threads are not possible.", "Use at least one.")

    def _check_resize(self, n_ctx: int) -> None:
        """For engines that can `resize`."""
        self._check_open()
        if n_ctx < 1:
            raise UsageError(f"A KV cache of {n_ctx} cells is not possible.", "Ask for 512 or more.")
        if any(self._cells.length(seq_id) for seq_id in range(self.capabilities.n_seq)):
            raise UsageError("A KV cache that is in use cannot be made anew.", "Empty every sequence first: rewind(seq_id, 0).")
