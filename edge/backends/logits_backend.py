"""What engines have in common that compute logits and nothing else: `LogitsBackend`.

Such an engine (onnxruntime, Core ML) knows neither tokens nor sequences. This class keeps the contract of base.py for it: it
checks what it is asked, counts cells, cuts prompts into chunks, keeps the newest logits, samples, and frames KV blocks. An
engine adds what is below "for the engine": one pass, and its own buffers of keys and values, one a sequence.
"""

from __future__ import annotations

import struct
import threading
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge.backends.base import Backend, Capabilities, ModelInfo, Sampler, check_resize
from edge.backends.cells import Ledger
from edge.errors import BackendError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.backends.hf_tokenizer import HFTokenizer
    from edge.decode.sampling import Breakers
    from edge.types import Sampling

__all__ = ["LogitsBackend"]

_BLOCK = struct.Struct("<8siiQ")  # magic, first position, end, bytes that follow


class LogitsBackend(Backend):
    """See the module and `Backend`.

    Args:
        tokenizer: of the model.
        info: the model.
        n_ctx: cells; every sequence alone may fill them.
        n_seq: sequences.
        chunk_size: as in `Backend`.
        block_magic: 8 bytes that KV blocks of this engine begin with.
        capabilities: None is that of an engine whose buffers can be cut, read and written anywhere.
    """

    def __init__(
        self,
        tokenizer: HFTokenizer,
        info: ModelInfo,
        *,
        n_ctx: int,
        n_seq: int,
        chunk_size: int,
        block_magic: bytes,
        capabilities: Capabilities | None = None,
    ) -> None:
        self.info = info
        self.n_ctx = n_ctx
        self.chunk_size = chunk_size
        self.capabilities = capabilities or Capabilities(
            rewind=True, export_kv=True, checkpoints=True, n_seq=n_seq, grammar=False, embeddings=False
        )
        self._tokenizer = tokenizer
        self._block_magic = block_magic
        # Held during every use of the native objects, so that close() from another thread waits for the pass.
        self._lock = threading.RLock()
        self._is_open = True
        self._ledger = Ledger(n_ctx, n_seq)
        self._newest: dict[int, npt.NDArray[np.float32]] = {}
        self._breakers: dict[tuple[str, ...], Breakers] = {}

    # -- for the engine

    @abstractmethod
    def _compute(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> npt.NDArray[np.float32] | None:
        """One pass: append tokens to a sequence.

        Args:
            seq_id: the sequence, which has `start` tokens. Its buffers may hold more; those are of the past.
            start: position of the first token.
            ids: shape (n,), 1 to chunk_size of them; they fit.
            should_stop: may be asked while the pass runs, to give it up.

        Returns:
            Logits after the last one, shape (n_vocab,). They must stay as they are until the next pass of this sequence.
            None when the pass was given up.

        Raises:
            BackendError: the engine failed.
        """

    @abstractmethod
    def _copy_kv(self, source: int, target: int, n_tokens: int) -> None:
        """Copy the first positions of one sequence's buffers over those of another; at least one."""

    @abstractmethod
    def _kv_bytes(self, n_tokens: int) -> int:
        """Bytes of the keys and values of so many positions."""

    @abstractmethod
    def _read_kv(self, seq_id: int, start: int, end: int, out: npt.NDArray[np.uint8]) -> None:
        """Write positions [start, end) into `out`, which has `_kv_bytes(end - start)` bytes."""

    @abstractmethod
    def _write_kv(self, seq_id: int, start: int, end: int, data: npt.NDArray[np.uint8]) -> None:
        """Put positions [start, end) into the buffers; `data` is what `_read_kv` wrote."""

    @abstractmethod
    def _free_kv(self, seq_id: int) -> None:
        """The sequence is empty now: its buffers may be let go. Called on the empty ones, too."""

    @abstractmethod
    def _free(self) -> None:
        """Let go of the model. Called once."""

    # -- text

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        self._check_open()
        return self._tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        self._check_tokens((token,))
        return self._tokenizer.token_bytes(token, special=special)

    def is_end(self, token: int) -> bool:
        self._check_tokens((token,))
        return self._tokenizer.is_end(token)

    # -- cache

    def length(self, seq_id: int) -> int:
        self._check_open()
        return self._ledger.length(seq_id)

    def prefill(
        self,
        seq_id: int,
        tokens: Sequence[int],
        *,
        should_stop: Callable[[], bool] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> int:
        import numpy as np

        if not tokens:
            raise UsageError("There is nothing to prefill.", "Give at least one token.")
        self._check_tokens(tokens)
        ids = np.asarray(tokens, dtype=np.int64)
        n_done, start = 0, self.length(seq_id)
        self._ledger.check_room(len(ids))
        while n_done < len(ids):
            if should_stop is not None and should_stop():
                return n_done
            n_chunk = self.chunk_size - (start + n_done) % self.chunk_size
            chunk = ids[n_done : n_done + n_chunk]
            with self._lock:
                self._check_open()
                if not self._append(seq_id, chunk, should_stop):
                    return n_done
            n_done += len(chunk)
            if n_done < len(ids):
                self._newest.pop(seq_id, None)  # only a prefill that came to its end leaves some
            if on_progress is not None:
                on_progress(n_done, len(ids))
        return n_done

    def decode(self, steps: Sequence[tuple[int, int]]) -> None:
        import numpy as np

        if not steps:
            raise UsageError("There is nothing to decode.", "Give at least one step.")
        with self._lock:
            self._check_tokens([token for _, token in steps])
            if len({seq_id for seq_id, _ in steps}) != len(steps):
                raise UsageError("A sequence is in this step twice.", "Give every sequence at most once.")
            lengths = [self._ledger.length(seq_id) for seq_id, _ in steps]
            self._ledger.check_room(len(steps))
            try:
                for seq_id, token in steps:
                    self._append(seq_id, np.array([token], dtype=np.int64), None)
            except BaseException:  # also Ctrl-C: all of the sequences or none
                for (seq_id, _), n_before in zip(steps, lengths, strict=True):
                    self._newest.pop(seq_id, None)
                    self._ledger.cut(seq_id, n_before)
                raise

    def rewind(self, seq_id: int, n_keep: int) -> None:
        with self._lock:
            n_now = self.length(seq_id)
            self._check_cut(seq_id, n_keep)
            if n_keep == n_now:
                return
            self._ledger.cut(seq_id, n_keep)
            self._newest.pop(seq_id, None)
            if not n_keep:
                self._free_kv(seq_id)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        with self._lock:
            self._check_cut(source, n_tokens)
            if source == target:
                self.rewind(source, n_tokens)
                return
            self.rewind(target, 0)
            if n_tokens:
                self._copy_kv(source, target, n_tokens)
                self._ledger.share(source, target, n_tokens)

    def export_kv(self, seq_id: int, start: int, end: int) -> bytes:
        import numpy as np

        with self._lock:
            n_now = self.length(seq_id)
            if not 0 <= start < end <= n_now:
                raise UsageError(f"Sequence {seq_id} has {n_now} tokens; [{start}, {end}) cannot be exported.")
            size = self._kv_bytes(end - start)
            block = np.empty(_BLOCK.size + size, dtype=np.uint8)
            _BLOCK.pack_into(block.data, 0, self._block_magic, start, end, size)
            self._read_kv(seq_id, start, end, block[_BLOCK.size :])
            return block.tobytes()

    def import_kv(self, seq_id: int, block: bytes | memoryview) -> None:
        import numpy as np

        with self._lock:
            n_now = self.length(seq_id)
            if len(block) < _BLOCK.size:
                raise BackendError("The KV block is cut off.")
            magic, start, end, size = _BLOCK.unpack_from(block)
            is_whole = magic == self._block_magic and len(block) == _BLOCK.size + size and 0 <= start < end
            if not is_whole or size != self._kv_bytes(end - start):
                raise BackendError(f"This is not a whole KV block of the {self.name} backend and this model.")
            if start != n_now:
                raise BackendError(f"The KV block starts at position {start}, but the sequence ends at {n_now}.")
            self._ledger.check_room(end - start)
            self._write_kv(seq_id, start, end, np.frombuffer(block, np.uint8)[_BLOCK.size :])
            self._ledger.append(seq_id, end - start)
            self._newest.pop(seq_id, None)

    # -- choosing

    def logits(self, seq_id: int) -> npt.NDArray[np.float32]:
        with self._lock:
            copied: npt.NDArray[np.float32] = self._newest_logits(seq_id).copy()
            return copied

    def open_sampler(self, sampling: Sampling, history: Sequence[int] = ()) -> Sampler:
        from edge.decode.sampling import NumpySampler, find_breakers

        self._check_tokens(history)
        breakers = None
        if sampling.dry_multiplier:
            # Finding a breaker's tokens walks the whole vocabulary.
            texts = sampling.dry_sequence_breakers
            breakers = self._breakers.get(texts)
            if breakers is None:
                pieces = [self._tokenizer.token_bytes(token, special=True) for token in range(self.info.n_vocab)]
                breakers = self._breakers[texts] = find_breakers(texts, pieces, self._tokenizer.tokenize)
        return NumpySampler(sampling, history, self._newest_logits, self.info.n_vocab, breakers)

    def close(self) -> None:
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._newest.clear()
                self._free()

    # -- inside

    def _resize_cells(self, n_ctx: int) -> None:
        """For engines that can `resize`: check, and count other cells from now on. They make their buffers anew themselves."""
        self._check_open()
        check_resize(n_ctx, [self._ledger.length(seq_id) for seq_id in range(self.capabilities.n_seq)])
        self._ledger = Ledger(n_ctx, self.capabilities.n_seq)
        self.n_ctx = n_ctx

    def _append(self, seq_id: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None) -> bool:
        """One pass, noted; False when it was given up. Whatever a pass that fails left in the buffers is behind the end."""
        self._newest.pop(seq_id, None)
        logits = self._compute(seq_id, self._ledger.length(seq_id), ids, should_stop)
        if logits is None:
            return False
        self._ledger.append(seq_id, len(ids))
        self._newest[seq_id] = logits
        return True

    def _newest_logits(self, seq_id: int) -> npt.NDArray[np.float32]:
        """Without a copy; good until the next pass of this sequence."""
        self.length(seq_id)
        newest = self._newest.get(seq_id)
        if newest is None:
            raise BackendError(f"Sequence {seq_id} has no newest logits.", "Prefill or decode at least one token.")
        return newest

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
        n_now = self.length(seq_id)
        if not 0 <= n_keep <= n_now:
            raise UsageError(f"Sequence {seq_id} has {n_now} tokens; {n_keep} of them are not possible.")
