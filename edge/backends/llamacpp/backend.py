"""llama.cpp's KV cache and passes: the contract over the files beside this one."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edge.backends.base import MAX_DRAFT, Part, Sampler
from edge.backends.cells_backend import CellsBackend
from edge.backends.llamacpp.adapters import Adapters
from edge.backends.llamacpp.library import (
    AbortFlag,
    Batch,
    clear_log,
    library_version,
    load_library,
    recent_log,
)
from edge.backends.llamacpp.logits import Logits
from edge.backends.llamacpp.model import capabilities_of, check_usable, describe, load_model, open_context, rope_variant
from edge.backends.llamacpp.neutral import find_neutral
from edge.backends.llamacpp.sampler import DryCache, LlamaCppSampler
from edge.backends.llamacpp.vocabulary import Vocabulary
from edge.backends.neutral import MAGIC
from edge.device.cost import trim_heap
from edge.errors import BackendError, ContextFullError, EdgeError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.adapters import Mix
    from edge.plan.receipt import Plan
    from edge.types import Sampling

__all__ = ["LlamaCppBackend"]

_OK, _NO_ROOM, _ABORTED = 0, 1, 2  # what llama_decode returns; below 0 it failed
_WATCHED_FROM = 16  # a shorter chunk is over before a thread that watches it would help


class LlamaCppBackend(CellsBackend):
    """See `Backend`.

    Args:
        plan: what to load and how.
        on_progress: as in `open_backend`.

    Raises:
        BackendUnavailableError: llama.cpp is not installed, or was built without the accelerator of the plan.
        ModelFileError: the file is truncated, not a model, or of a kind that llama.cpp or edge does not know.
        ModelTooLargeError: memory ran out.
        UsageError: the plan names a KV type or a number of sequences that does not exist.
        CancelledError: on_progress said False.
    """

    name = "llamacpp"
    block_magic = b"EDGEKV1\0"

    def __init__(self, plan: Plan, *, on_progress: Callable[[float], bool] | None = None) -> None:
        from edge.formats.gguf import read_header

        path = plan.artifact.path
        header = plan.artifact.header or read_header(path)  # llama.cpp ends the process on some damaged files
        self._model: Any = None
        self._context: Any = None
        self._library = library = load_library()
        self._abort = AbortFlag(library)
        self._dry = DryCache(library)
        try:
            self._model = load_model(library, plan, header.architecture, on_progress)
            check_usable(library, self._model, path)
            self._adapters = Adapters(library, self._model, plan.adapters)
            self._context = open_context(library, plan, self._model, header.architecture, self._abort)
        except BaseException:
            self._free_pointers()
            raise
        self._plan, self._architecture = plan, header.architecture
        self.adapters = plan.adapters
        self._vocab = library.llama_model_get_vocab(self._model)
        self._memory = library.llama_get_memory(self._context)
        self.kv_window = library.llama_model_n_swa(self._model)
        self._spare = plan.n_seq  # a sequence beyond those of the plan, for export and import
        info = describe(library, self._model)
        super().__init__(
            info,
            capabilities_of(library, self._model, plan.n_seq),
            Vocabulary(library, self._vocab),
            n_ctx=library.llama_n_ctx(self._context),
            chunk_size=min(library.llama_n_ubatch(self._context), library.llama_n_batch(self._context)),
        )
        self._neutral = find_neutral(
            library, self._context, header, plan,
            has_ranges=self.capabilities.export_kv, n_window=self.kv_window, seq_id=self._spare,
        )  # fmt: skip
        if self._neutral is not None:
            self.neutral, self.block_magic = self._neutral.layout, MAGIC
        self._identity: dict[str, str | int | float | bool] = {
            "flash_attention": plan.flash_attention,
            "n_ubatch": plan.n_ubatch,
            "accelerator": plan.accelerator,
            "gpu_layers": plan.gpu_layers,
            "extra_buffers": plan.use_extra_buffers,
            "unified": True,
            "layout": str(self.neutral or f"{self.block_magic.decode('ascii')} {plan.kv_type_k} {plan.kv_type_v}"),
            "rope": rope_variant(library, self._model, self.n_ctx),
        }
        self._batch = Batch(library, max(self.chunk_size, plan.n_seq + MAX_DRAFT))
        self._logits = Logits(library, info.n_vocab)
        self._logits.reset(self._context)

    # -- for CellsBackend

    def _prefill_chunk(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> bool:
        n_chunk, batch = len(ids), self._batch
        batch.tokens[:n_chunk] = ids
        batch.positions[:n_chunk] = range(start, start + n_chunk)
        batch.seq_ids[:n_chunk] = seq_id
        batch.wants_logits[:n_chunk] = 0
        batch.wants_logits[n_chunk - 1] = 1
        # Half a pass can be rolled back in an attention cache, not in a recurrent state.
        is_stoppable = self.capabilities.rewind and n_chunk >= _WATCHED_FROM
        with self._abort.watching(should_stop if is_stoppable else None):
            code = self._run(n_chunk, (seq_id,))
        if code == _ABORTED:
            return False
        if code != _OK:
            raise self._failure(code, n_chunk)
        self._logits.set_rows({seq_id: (n_chunk - 1, 0)})
        return True

    def _decode(self, steps: Sequence[tuple[int, Sequence[int]]], starts: dict[int, int]) -> None:
        batch, row = self._batch, 0
        rows: dict[int, tuple[int, int]] = {}
        for seq_id, tokens in steps:
            for position, token in enumerate(tokens, starts[seq_id]):
                batch.tokens[row] = token
                batch.positions[row] = position
                batch.seq_ids[row] = seq_id
                batch.wants_logits[row] = 1
                row += 1
            rows[seq_id] = (row - 1, len(tokens) - 1)
        code = self._run(row, starts)
        if code != _OK:
            raise self._failure(code, row)
        self._logits.set_rows(rows)

    def _extend(self, parts: Sequence[Part], starts: dict[int, int]) -> None:
        batch, row = self._batch, 0
        rows: dict[int, tuple[int, int]] = {}
        for part in parts:
            n_tokens, start = len(part.tokens), starts[part.seq_id]
            end = row + n_tokens
            batch.tokens[row:end] = part.tokens
            batch.positions[row:end] = range(start, start + n_tokens)
            batch.seq_ids[row:end] = part.seq_id
            batch.wants_logits[row:end] = 0
            batch.wants_logits[end - part.n_logits : end] = 1
            rows[part.seq_id] = (end - 1, part.n_logits - 1)
            row = end
        code = self._run(row, starts)
        if code != _OK:
            raise self._failure(code, row)
        self._logits.set_rows(rows)

    def _forget_logits(self, seq_id: int) -> None:
        self._logits.forget(seq_id)

    def _truncate(self, seq_id: int, n_keep: int) -> None:
        # A sequence is emptied by -1: a recurrent state has no positions to truncate at.
        first = n_keep if n_keep else -1
        if not self._library.llama_memory_seq_rm(self._memory, seq_id, first, -1):
            raise UnsupportedError(f"This model cannot be rewound to {n_keep} tokens.")

    def _roll_back(self, seq_id: int, n_keep: int) -> int:
        if n_keep and self._library.llama_memory_seq_rm(self._memory, seq_id, n_keep, -1):
            return n_keep
        self._library.llama_memory_seq_rm(self._memory, seq_id, -1, -1)  # a state that cannot be truncated is emptied
        return 0

    def _copy(self, source: int, target: int, n_tokens: int) -> None:
        self._library.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)

    def _export(self, seq_id: int, start: int, end: int) -> bytes:
        if not self.capabilities.export_kv:
            if (start, end) != (0, self.length(seq_id)):
                raise UnsupportedError(f"The state of this model ({self.info.architecture}) is exported as a whole only.")
            return self._export_all(seq_id, start, end)
        if self.kv_window:
            self._check_window(seq_id, start, end)
        # The spare sequence shares just these cells for a moment, and is exported.
        self._library.llama_memory_seq_cp(self._memory, seq_id, self._spare, start, end)
        try:
            return self._export_all(self._spare, start, end)
        finally:
            self._library.llama_memory_seq_rm(self._memory, self._spare, -1, -1)

    def _import(self, seq_id: int, start: int, end: int, payload: npt.NDArray[np.uint8]) -> None:
        library, memory = self._library, self._memory
        # llama.cpp clears the sequence that it reads into, so a block that is appended goes through the spare one.
        target = self._spare if self.capabilities.export_kv else seq_id
        is_taken = False
        try:
            self._import_all(target, start, end, payload)
            if target != seq_id:
                library.llama_memory_seq_cp(memory, target, seq_id, start, end)
            is_taken = True
        finally:
            if target != seq_id or not is_taken:
                library.llama_memory_seq_rm(memory, target, -1, -1)

    def _free(self) -> None:
        self._logits.reset(None)
        self._free_pointers()

    # -- adapters, and what a governor changes

    def set_adapters(self, mix: Mix) -> None:
        with self._lock:
            self._check_open()
            self._check_mix(mix)
            self._adapters.apply(self._context, mix)

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        with self._lock:
            self._check_threads(n_threads, n_threads_batch)
            self._plan = replace(self._plan, n_threads=n_threads, n_threads_batch=n_threads_batch)  # for the next context
            self._library.llama_set_n_threads(self._context, n_threads, n_threads_batch)

    def resize(self, n_ctx: int) -> None:
        with self._lock:
            self._check_resize(n_ctx)
            before = self._plan.n_ctx
            if rope_variant(self._library, self._model, n_ctx) != self._identity["rope"]:
                raise UnsupportedError(f"This model rotates positions differently in a window of {n_ctx:,} tokens.")
            try:
                self._reopen(n_ctx)
            except EdgeError:
                try:
                    self._reopen(before)
                except EdgeError as error:
                    self.close()
                    raise BackendError(
                        f"The KV cache could not be re-created: {error.message}", "Load the model again."
                    ) from error
                raise

    def kv_identity(self) -> dict[str, str | int | float | bool]:
        self._check_open()
        return {
            "backend": self.name,
            "version": library_version(),
            "instructions": self._library.llama_print_system_info().decode("utf-8", "replace"),
            **self._identity,
        }

    # -- choosing

    def logits(self, seq_id: int, n_back: int = 0) -> npt.NDArray[np.float32]:
        import numpy as np

        with self._lock:
            self.length(seq_id)
            return np.array(self._logits.newest(seq_id, n_back))

    def open_sampler(self, sampling: Sampling, history: Sequence[int] = ()) -> Sampler:
        with self._lock:
            self._check_tokens(history)
            return LlamaCppSampler(
                self._library,
                self._vocab,
                self._logits,
                self._dry,
                sampling,
                history,
                lock=self._lock,
                n_ctx=self.n_ctx,
                n_vocab=self.info.n_vocab,
            )

    # -- inside

    def _reopen(self, n_ctx: int) -> None:
        """Replace the context by one for so many tokens. The old one is freed first: there may be no memory for both."""
        library = self._library
        self._logits.reset(None)
        if self._context:
            library.llama_free(self._context)
            trim_heap()
        self._context = self._memory = None
        plan = replace(self._plan, n_ctx=n_ctx)
        self._context = open_context(library, plan, self._model, self._architecture, self._abort)
        self._adapters.reapply(self._context)
        self._plan, self._memory = plan, library.llama_get_memory(self._context)
        self._logits.reset(self._context)
        self._allocate(library.llama_n_ctx(self._context))

    def _run(self, n_tokens: int, changing: Iterable[int]) -> int:
        """Run one pass over the filled batch. Save the other sequences' logits first; the pass overwrites them."""
        for seq_id in changing:
            self._logits.forget(seq_id)
        self._logits.save()
        self._batch.native.n_tokens = n_tokens
        clear_log()
        return int(self._library.llama_decode(self._context, self._batch.native))

    def _failure(self, code: int, n_tokens: int) -> BackendError | ContextFullError:
        if code == _NO_ROOM:
            return ContextFullError(
                f"llama.cpp found no room for {n_tokens} tokens in the context window of {self.n_ctx:,}.",
                "Shorten the conversation, or load the model with a larger context.",
            )
        reason = recent_log() or "it gave no reason"
        return BackendError(f"llama.cpp failed while computing (code {code}): {reason}.", "Load the model again.")

    def _export_all(self, seq_id: int, start: int, end: int) -> bytes:
        """Return all that llama.cpp has of a sequence as a block of positions [start, end)."""
        library = self._library
        size = library.llama_state_seq_get_size(self._context, seq_id)
        block, payload = self._new_block(start, end, size)
        clear_log()
        if library.llama_state_seq_get_data(self._context, _address(payload), size, seq_id) != size:
            raise BackendError(f"llama.cpp could not export its KV cache: {recent_log() or 'it gave no reason'}.")
        if self._neutral is not None:
            self._neutral.to_neutral(payload, start, end)
        return block.tobytes()

    def _import_all(self, seq_id: int, start: int, end: int, payload: npt.NDArray[np.uint8]) -> None:
        """Give the bytes of a block to llama.cpp, which empties the sequence first."""
        library = self._library
        if self._neutral is not None:
            payload = self._neutral.to_state(payload, start, end)
        clear_log()
        n_read = library.llama_state_seq_set_data(self._context, _address(payload), len(payload), seq_id)
        first = library.llama_memory_seq_pos_min(self._memory, seq_id)
        last = library.llama_memory_seq_pos_max(self._memory, seq_id)
        if not self.capabilities.export_kv:
            first = start  # a recurrent state has no first position
        if n_read != len(payload) or (first, last) != (start, end - 1):
            raise BackendError(f"llama.cpp refused the KV block: {recent_log() or 'it is of another model'}.")

    def _check_window(self, seq_id: int, start: int, end: int) -> None:
        """Refuse to export what the sliding window has moved past: llama.cpp may reuse its cells in any later pass."""
        oldest = self._library.llama_memory_seq_pos_min(self._memory, seq_id)
        is_recent = self.length(seq_id) - start <= self.kv_window + self.chunk_size
        if end - start >= self.kv_window or start < oldest or not is_recent:
            raise UnsupportedError(
                f"The sliding window of this model has moved on: [{start}, {end}) of sequence {seq_id} cannot be exported."
            )

    def _check_truncate(self, seq_id: int, n_keep: int) -> None:
        super()._check_truncate(seq_id, n_keep)
        n_now = self.length(seq_id)
        if n_keep in (0, n_now):
            return
        if not self.capabilities.rewind:
            raise UnsupportedError(
                f"This model ({self.info.architecture}) is recurrent: its state cannot be cut at {n_keep} of {n_now} tokens."
            )
        oldest = self._library.llama_memory_seq_pos_min(self._memory, seq_id) if self.kv_window else 0
        if oldest > max(0, n_keep - self.kv_window):
            raise UnsupportedError(
                f"The sliding window of this model has moved on: sequence {seq_id} cannot be cut at {n_keep} of {n_now}."
            )

    def _free_pointers(self) -> None:
        self._dry.close()
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._context = self._model = self._memory = self._vocab = None
        trim_heap()


def _address(data: npt.NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
