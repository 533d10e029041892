"""Two engines for one model: `PairedBackend` prefills long prompts on one of them, and does everything else on the other.

Keys and values of a chunk go from the prefiller to the decoder in memory, in the layout that both have (neutral.py). The last
token of a chunk is computed by the decoder, which has its logits then; before the next chunk the prefiller takes over what it
lacks. So both always hold the same numbers, and which engine computes a chunk depends on its length and position alone: a
conversation that is restored from the disk goes on as it would have.

The prefiller holds one sequence, from the first long chunk of a prompt until a reply to it begins. If it fails, it is closed,
and the decoder goes on alone from what it has.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.backends.base import NO_DRAFTS, Backend, Sampler
from edge.backends.cells_backend import CellsBackend
from edge.errors import BackendError, EdgeError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.adapters import Mix
    from edge.plan.receipt import Plan
    from edge.types import Sampling

__all__ = ["PairedBackend", "pair_with"]

_log = logging.getLogger("edge.backends")
_TRIED = 40  # tokens that both engines compute once, to compare them


class PairedBackend(Backend):
    """See the module and `Backend`. Closes both engines.

    Args:
        decoder, prefiller: open engines with the same model and size of the KV cache, their sequences empty.
        least: fewest tokens of a chunk that the prefiller computes.
        per_token: how many more for each token before the chunk, since those are handed over first.

    Raises:
        UnsupportedError: their keys and values do not mean the same.
        BackendError: one of them failed.
    """

    def __init__(self, decoder: Backend, prefiller: Backend, *, least: int, per_token: float = 0.0) -> None:
        if not isinstance(decoder, CellsBackend) or not isinstance(prefiller, CellsBackend):
            raise UnsupportedError(f"{decoder.name} and {prefiller.name} cannot work together.")
        self._decoder = decoder
        self._prefiller: CellsBackend | None = prefiller
        self._least, self._per_token = max(least, 2), per_token
        self._held: int | None = None  # the sequence whose first positions the prefiller has, too
        self._has_mix = self._is_closed = False
        _check_alike(decoder, prefiller)
        self.name = decoder.name
        # A pass over several prompts would be the decoder's, and the prefiller is the faster one.
        self.capabilities, self.tokenizer = replace(decoder.capabilities, max_outputs=0), decoder.tokenizer
        self.chunk_size, self.chunk_grain, self.kv_window = decoder.chunk_size, decoder.chunk_grain, decoder.kv_window
        self.adapters, self.neutral = decoder.adapters, decoder.neutral
        self.is_faster_next = decoder.is_faster_next or prefiller.is_faster_next
        self.info = replace(decoder.info, details={**decoder.info.details, "prefill": prefiller.name})
        self._prefill_identity = f"{prefiller.name} {prefiller.kv_identity()}"
        decoder.sign_as(self.kv_identity())

    @property
    def n_ctx(self) -> int:  # type: ignore[override]  # the decoder changes it
        """Cells of the KV cache."""
        return self._decoder.n_ctx

    @property
    def is_paired(self) -> bool:
        """False once the prefiller has failed."""
        return self._prefiller is not None

    def length(self, seq_id: int) -> int:
        return self._decoder.length(seq_id)

    def prefill(self, seq_id: int, tokens: Sequence[int], *, should_stop: Callable[[], bool] | None = None) -> int:
        self._decoder.check_prefill(seq_id, tokens)
        n_done = 0
        while n_done < len(tokens):
            start = self._decoder.length(seq_id)
            chunk = tokens[n_done : n_done + self.chunk_size - start % self.chunk_size]
            n_handed = self._prefill_elsewhere(seq_id, start, chunk, should_stop) if self._pays(start, len(chunk)) else None
            n_chunk = self._decoder.prefill(seq_id, chunk, should_stop=should_stop) if n_handed is None else n_handed
            n_done += n_chunk
            if n_chunk < len(chunk):
                break
        return n_done

    def decode(self, steps: Sequence[tuple[int, int]], drafts: Mapping[int, Sequence[int]] = NO_DRAFTS) -> None:
        self._decoder.decode(steps, drafts)
        if any(seq_id == self._held for seq_id, _ in steps):
            self._drop()

    def rewind(self, seq_id: int, n_keep: int) -> None:
        self._decoder.rewind(seq_id, n_keep)
        self._drop_if(seq_id)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        self._decoder.copy(source, target, n_tokens)
        self._drop_if(target)

    def import_kv(self, seq_id: int, block: bytes | memoryview) -> None:
        self._decoder.import_kv(seq_id, block)
        self._drop_if(seq_id)

    def export_kv(self, seq_id: int, start: int, end: int) -> bytes:
        return self._decoder.export_kv(seq_id, start, end)

    def logits(self, seq_id: int, n_back: int = 0) -> npt.NDArray[np.float32]:
        return self._decoder.logits(seq_id, n_back)

    def open_sampler(self, sampling: Sampling, history: Sequence[int] = ()) -> Sampler:
        return self._decoder.open_sampler(sampling, history)

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        self._decoder.set_threads(n_threads, n_threads_batch)
        if self._prefiller is not None and self._prefiller.capabilities.threads:
            self._prefiller.set_threads(n_threads, n_threads_batch)

    def set_adapters(self, mix: Mix) -> None:
        self._decoder.set_adapters(mix)
        self._has_mix = bool(mix)  # which the prefiller does not have

    def resize(self, n_ctx: int) -> None:
        self._drop()
        self._decoder.resize(n_ctx)
        if self._prefiller is not None:
            try:
                self._prefiller.resize(self.n_ctx)
            except EdgeError as error:
                self._go_on_alone(error)

    def kv_identity(self) -> dict[str, str | int | float | bool]:
        return {**self._decoder.kv_identity(), "prefill": self._prefill_identity}

    def maker(self, block: bytes | memoryview) -> str:
        return self._decoder.maker(block)

    def close(self) -> None:
        self._is_closed = True
        self._decoder.close()
        if self._prefiller is not None:
            self._prefiller.close()

    # -- inside

    def _pays(self, start: int, n_tokens: int) -> bool:
        is_here = self._prefiller is not None and not self._has_mix and start + n_tokens <= self._prefiller.n_ctx
        return is_here and n_tokens >= self._least + self._per_token * start

    def _prefill_elsewhere(
        self, seq_id: int, start: int, chunk: Sequence[int], should_stop: Callable[[], bool] | None
    ) -> int | None:
        """Prefill a chunk on the prefiller, and hand its keys and values to the decoder.

        Returns:
            How many tokens are done: all, or none if it was stopped; None if the decoder has to compute them.
        """
        prefiller, n_handed = self._prefiller, len(chunk) - 1
        assert prefiller is not None
        is_done = False
        try:
            self._bring_up(prefiller, seq_id, start)
            if prefiller.prefill(0, chunk[:-1], should_stop=should_stop) == n_handed:
                self._decoder.import_kv(seq_id, prefiller.export_kv(0, start, start + n_handed))
                is_done = self._decoder.prefill(seq_id, chunk[-1:]) == 1
            return len(chunk) if is_done else 0
        except EdgeError as error:
            self._go_on_alone(error)
            return None
        finally:
            if not is_done:  # also Ctrl-C: all of the chunk or nothing
                self._take_back(seq_id, start)

    def _take_back(self, seq_id: int, start: int) -> None:
        """Truncate a sequence on both engines after a chunk that was not finished."""
        if self._is_closed:
            return
        self._decoder.rewind(seq_id, start)
        if self._prefiller is None or self._prefiller.length(0) <= start:
            return
        try:
            self._prefiller.rewind(0, start)
        except EdgeError as error:
            self._go_on_alone(error)

    def _bring_up(self, prefiller: CellsBackend, seq_id: int, start: int) -> None:
        """Give the prefiller the first positions of a sequence, as far as it lacks them."""
        if self._held != seq_id:
            self._drop()
            self._held = seq_id
        n_held = prefiller.length(0)
        if n_held > start:
            prefiller.rewind(0, start)
        elif n_held < start:
            prefiller.import_kv(0, self._decoder.export_kv(seq_id, n_held, start))

    def _drop_if(self, seq_id: int) -> None:
        if seq_id == self._held:
            self._drop()

    def _drop(self) -> None:
        """Empty the prefiller, and free the memory that its keys and values took."""
        prefiller, self._held = self._prefiller, None
        if prefiller is None or not prefiller.length(0):
            return
        try:
            prefiller.rewind(0, 0)
            if prefiller.capabilities.resize:
                prefiller.resize(prefiller.n_ctx)
        except EdgeError as error:
            self._go_on_alone(error)

    def _go_on_alone(self, error: EdgeError) -> None:
        """Close a prefiller that failed.

        Raises:
            BackendError: both were closed meanwhile.
        """
        if self._is_closed:
            raise BackendError("The model is closed.", "Load it again.") from error
        prefiller, self._prefiller, self._held = self._prefiller, None, None
        if prefiller is None:
            return
        _log.warning("%s failed, so %s prefills, too, until the model is loaded again: %s", prefiller.name, self.name, error)
        with contextlib.suppress(EdgeError):
            prefiller.close()


def _check_alike(decoder: CellsBackend, prefiller: CellsBackend) -> None:
    """Let both engines compute the same tokens, and compare their keys and values.

    Raises:
        As `PairedBackend`.
    """
    layout = decoder.neutral
    names = f"{prefiller.name} and {decoder.name}"
    is_alike = layout is not None and layout == prefiller.neutral and decoder.info.n_vocab == prefiller.info.n_vocab
    if layout is None or not is_alike or layout.common(decoder.kv_identity()) != layout.common(prefiller.kv_identity()):
        raise UnsupportedError(
            f"{names} cannot work together on this model: their keys and values have no common layout.",
            "Leave out --prefill-with.",
        )
    tokens = [1 + 7919 * index % max(1, decoder.info.n_vocab - 1) for index in range(_TRIED)]

    def compute(backend: CellsBackend) -> bytes:
        backend.prefill(0, tokens)
        block = backend.export_kv(0, 0, _TRIED)
        backend.rewind(0, 0)
        return block

    # In a thread that ends: OpenMP keeps workers for each thread that ever computed, and where those of all are more than the
    # cores, it lets none of them spin. Decoding took twice as long with those of the thread that loads.
    with ThreadPoolExecutor(1) as pool:
        blocks = list(pool.map(compute, (prefiller, decoder)))
    difference = layout.difference(blocks[0], blocks[1], _TRIED)
    if not difference <= layout.MAX_DIFFERENCE:  # NaN is more
        raise UnsupportedError(
            f"{names} do not compute the same: their keys and values differ by {difference:.0%}.", "Leave out --prefill-with."
        )


def pair_with(decoder: Backend, plan: Plan, open_engine: Callable[[Plan], Backend]) -> Backend:
    """Return an engine together with the one that prefills for it by its plan; itself if there is none.

    Args:
        decoder: opened by the plan. It stays open if this fails.
        plan: of the model.
        open_engine: opens the other one.

    Raises:
        EdgeError: the other one cannot be opened, or is of no use.
    """
    if plan.prefill is None:
        return decoder
    prefiller = open_engine(plan.prefill.plan)
    try:
        return PairedBackend(decoder, prefiller, least=plan.prefill.least, per_token=plan.prefill.per_token)
    except BaseException:
        prefiller.close()
        raise
