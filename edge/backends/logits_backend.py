"""What engines have in common that compute logits and nothing else: `LogitsBackend`.

Such an engine (onnxruntime, Core ML) knows neither tokens nor sequences. On top of what `CellsBackend` keeps of the contract,
this class has a tokenizer, keeps the newest logits, and samples. An engine adds what is below "for the engine": a pass, and its
own buffers of keys and values, one a sequence.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge.backends.base import Capabilities, ModelInfo, Sampler
from edge.backends.cells_backend import CellsBackend
from edge.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.backends.sampling import Breakers
    from edge.prompt.tokenizers import Tokenizer
    from edge.types import Sampling

__all__ = ["LogitsBackend"]


class LogitsBackend(CellsBackend):
    """See the module and `Backend`.

    Args:
        tokenizer: of the model.
        info: the model.
        n_ctx: cells of each sequence.
        n_seq: sequences.
        chunk_size: as in `Backend`.
        block_magic: as in `CellsBackend`.
        capabilities: None is that of an engine whose buffers can be cut, read and written anywhere.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        n_ctx: int,
        n_seq: int,
        chunk_size: int,
        block_magic: bytes,
        capabilities: Capabilities | None = None,
    ) -> None:
        capabilities = capabilities or Capabilities(
            rewind=True, export_kv=True, checkpoints=True, n_seq=n_seq, shared_cells=False
        )
        super().__init__(info, capabilities, tokenizer, n_ctx=n_ctx, chunk_size=chunk_size, block_magic=block_magic)
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

    def _compute_one(self, seq_id: int, start: int, token: int) -> npt.NDArray[np.float32]:
        """`_compute` of one token of a reply, for engines that have a shorter way for it."""
        import numpy as np

        logits = self._compute(seq_id, start, np.array([token], dtype=np.int64), None)
        assert logits is not None  # nobody asked to stop
        return logits

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

    # -- choosing

    def logits(self, seq_id: int) -> npt.NDArray[np.float32]:
        with self._lock:
            copied: npt.NDArray[np.float32] = self._newest_logits(seq_id).copy()
            return copied

    def open_sampler(self, sampling: Sampling, history: Sequence[int] = ()) -> Sampler:
        from edge.backends.sampling import NumpySampler, find_breakers

        self._check_tokens(history)
        breakers = None
        if sampling.dry_multiplier:
            # Finding a breaker's tokens walks the whole vocabulary.
            texts = sampling.dry_sequence_breakers
            breakers = self._breakers.get(texts)
            if breakers is None:
                pieces = self.tokenizer.vocabulary()
                breakers = self._breakers[texts] = find_breakers(texts, pieces, self.tokenizer.tokenize)
        return NumpySampler(sampling, history, self._newest_logits, self.info.n_vocab, breakers)

    def close(self) -> None:
        with self._lock:
            super().close()
            self._newest.clear()

    # -- for CellsBackend

    def _read(self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None) -> bool:
        logits = self._compute(seq_id, start, ids, should_stop)
        if logits is None:
            return False
        self._newest[seq_id] = logits
        return True

    def _step(self, steps: Sequence[tuple[int, int]], starts: dict[int, int]) -> None:
        for seq_id, token in steps:
            self._newest[seq_id] = self._compute_one(seq_id, starts[seq_id], token)

    def _forget_logits(self, seq_id: int) -> None:
        self._newest.pop(seq_id, None)

    def _cut(self, seq_id: int, n_keep: int) -> None:
        if not n_keep:  # what is behind the end of a longer one is written over
            self._free_kv(seq_id)

    def _export(self, seq_id: int, start: int, end: int) -> bytes:
        block, payload = self._new_block(start, end, self._kv_bytes(end - start))
        self._read_kv(seq_id, start, end, payload)
        return block.tobytes()

    def _import(self, seq_id: int, start: int, end: int, payload: npt.NDArray[np.uint8]) -> None:
        if len(payload) != self._kv_bytes(end - start):
            raise BackendError(f"The KV block is of another model: it has {len(payload):,} bytes for {end - start} tokens.")
        self._write_kv(seq_id, start, end, payload)

    # -- inside

    def _newest_logits(self, seq_id: int) -> npt.NDArray[np.float32]:
        """Without a copy; good until the next pass of this sequence."""
        self.length(seq_id)
        newest = self._newest.get(seq_id)
        if newest is None:
            raise BackendError(f"Sequence {seq_id} has no newest logits.", "Prefill or decode at least one token.")
        return newest
