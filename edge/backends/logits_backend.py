"""The base of engines that compute logits and nothing else (onnxruntime, Core ML): `LogitsBackend`.

On top of `CellsBackend` it keeps the newest logits and samples. An engine adds the methods below "for the engine": a pass, and
its own buffers of keys and values, one a sequence.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge.backends.base import Capabilities, ModelInfo, Part, Sampler
from edge.backends.cells_backend import CellsBackend, no_logits
from edge.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.backends.sampling import Breakers
    from edge.prompt.tokenizers import Tokenizer
    from edge.types import Sampling

__all__ = ["LogitsBackend"]


class LogitsBackend(CellsBackend):
    """See the module. Takes the arguments of `CellsBackend`."""

    def __init__(
        self, info: ModelInfo, capabilities: Capabilities, tokenizer: Tokenizer, *, n_ctx: int, chunk_size: int
    ) -> None:
        super().__init__(info, capabilities, tokenizer, n_ctx=n_ctx, chunk_size=chunk_size)
        self._newest: dict[int, npt.NDArray[np.float32]] = {}
        self._drafted: dict[int, npt.NDArray[np.float32]] = {}  # after the token and each draft token, the newest ones last
        self._breakers: dict[tuple[str, ...], Breakers] = {}

    # -- for the engine

    @abstractmethod
    def _compute(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> npt.NDArray[np.float32] | None:
        """Run one pass, with the arguments of `CellsBackend._prefill_chunk`.

        Returns:
            Logits after the last token, shape (n_vocab,), which must not change until the next pass of this sequence; empty
            where `_late_logits` computes them; None when the pass was stopped.

        Raises:
            BackendError: the engine failed.
        """

    def _compute_one(self, seq_id: int, start: int, token: int) -> npt.NDArray[np.float32]:
        """Run `_compute` on one token of a reply; for engines that have a shorter way."""
        import numpy as np

        logits = self._compute(seq_id, start, np.array([token], dtype=np.int64), None)
        assert logits is not None  # nobody asked to stop
        return logits

    def _compute_draft(self, seq_id: int, start: int, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Run one pass over a token and a draft behind it; for engines with `capabilities.drafts`.

        Returns:
            Logits after each, shape (len(tokens), n_vocab), which must not change until the next pass of this sequence.

        Raises:
            BackendError: the engine failed.
        """
        raise NotImplementedError

    def _late_logits(self, seq_id: int) -> npt.NDArray[np.float32]:
        """Compute the newest logits of a sequence when they are first asked for, if `_compute` did not."""
        raise NotImplementedError

    @abstractmethod
    def _kv_bytes(self, n_tokens: int) -> int:
        """Return the bytes of the keys and values of so many positions."""

    @abstractmethod
    def _read_kv(self, seq_id: int, start: int, end: int, out: npt.NDArray[np.uint8]) -> None:
        """Write positions [start, end) into `out`, which has `_kv_bytes(end - start)` bytes."""

    @abstractmethod
    def _write_kv(self, seq_id: int, start: int, end: int, data: npt.NDArray[np.uint8]) -> None:
        """Put positions [start, end) into the buffers; `data` is what `_read_kv` wrote."""

    @abstractmethod
    def _free_kv(self, seq_id: int) -> None:
        """Free the buffers of a sequence that is empty now, if it has any."""

    # -- choosing

    def logits(self, seq_id: int, n_back: int = 0) -> npt.NDArray[np.float32]:
        import numpy as np

        with self._lock:
            return np.array(self._newest_logits(seq_id, n_back))

    def open_sampler(self, sampling: Sampling, history: Sequence[int] = ()) -> Sampler:
        from edge.backends.sampling import NumpySampler, find_breakers

        self._check_tokens(history)
        breakers, texts = None, sampling.dry_sequence_breakers
        if sampling.dry_multiplier:
            breakers = self._breakers.get(texts)
            if breakers is None:  # finding a breaker's tokens walks the whole vocabulary
                breakers = find_breakers(texts, self.tokenizer.vocabulary(), self.tokenizer.tokenize)
                self._breakers[texts] = breakers
        return NumpySampler(sampling, history, self._newest_logits, self.info.n_vocab, breakers)

    def close(self) -> None:
        with self._lock:
            super().close()
            self._newest.clear()
            self._drafted.clear()

    # -- for CellsBackend

    def _prefill_chunk(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> bool:
        logits = self._compute(seq_id, start, ids, should_stop)
        if logits is None:
            return False
        self._note_logits(seq_id, logits)
        return True

    def _decode(self, steps: Sequence[tuple[int, Sequence[int]]], starts: dict[int, int]) -> None:
        for seq_id, tokens in steps:
            if len(tokens) == 1:
                self._note_logits(seq_id, self._compute_one(seq_id, starts[seq_id], tokens[0]))
            else:
                self._note_logits(seq_id, self._compute_draft(seq_id, starts[seq_id], tokens))

    def _extend(self, parts: Sequence[Part], starts: dict[int, int]) -> None:
        import numpy as np

        for part in parts:  # one after the other: a pass has one buffer of keys and values
            n_head, start = len(part.tokens) - part.n_logits, starts[part.seq_id]
            if n_head:
                self._compute(part.seq_id, start, np.asarray(part.tokens[:n_head], dtype=np.int64), None)
            self._note_logits(part.seq_id, self._compute_draft(part.seq_id, start + n_head, part.tokens[n_head:]))

    def _forget_logits(self, seq_id: int) -> None:
        self._newest.pop(seq_id, None)
        self._drafted.pop(seq_id, None)

    def _truncate(self, seq_id: int, n_keep: int) -> None:
        if not n_keep:  # positions behind the end of a longer one are overwritten later
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

    def _note_logits(self, seq_id: int, logits: npt.NDArray[np.float32]) -> None:
        """Note what a pass computed: the newest logits (n_vocab,), or those after each token of a draft (n, n_vocab)."""
        self._drafted.pop(seq_id, None)
        if logits.ndim == 2:
            self._drafted[seq_id] = logits
            logits = logits[-1]
        self._newest[seq_id] = logits

    def _newest_logits(self, seq_id: int, n_back: int = 0) -> npt.NDArray[np.float32]:
        """Return the newest logits, or those before the last `n_back` draft tokens, without a copy.

        They are good until the next pass of this sequence.
        """
        with self._lock:
            self.length(seq_id)
            if n_back:
                rows = self._drafted.get(seq_id)
                if rows is None or n_back >= len(rows):
                    raise no_logits(seq_id)
                row: npt.NDArray[np.float32] = rows[-1 - n_back]
                return row
            newest = self._newest.get(seq_id)
            if newest is None:
                raise no_logits(seq_id)
            if not newest.size:
                newest = self._newest[seq_id] = self._late_logits(seq_id)
            return newest
