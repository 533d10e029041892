"""llama.cpp, through the low-level functions of llama-cpp-python.

The files beside this one: llamacpp_library.py (the shared library, its log, stopping a pass), llamacpp_model.py (opening
and describing a model), llamacpp_sampler.py (the sampler chain). This one owns the KV cache and runs the passes.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edge.backends.base import Backend, Sampler, check_resize, check_threads
from edge.backends.cells import Ledger
from edge.backends.llamacpp_library import (
    AbortFlag,
    Batch,
    forget_log,
    give_memory_back,
    library_version,
    load_library,
    recent_log,
)
from edge.backends.llamacpp_model import capabilities_of, check_usable, describe, load_model, open_context, rope_variant
from edge.backends.llamacpp_sampler import DryCache, LlamaCppSampler
from edge.errors import BackendError, ContextFullError, EdgeError, UnsupportedError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.plan import Plan
    from edge.types import Sampling

__all__ = ["LlamaCppBackend"]

_OK, _NO_ROOM, _ABORTED = 0, 1, 2  # what llama_decode returns; below 0 it failed
_BLOCK = struct.Struct("<8siiQ")
_BLOCK_MAGIC = b"EDGEKV1\0"
_WATCHED_FROM = 16  # a shorter chunk is over before a thread that watches it would help


class LlamaCppBackend(Backend):
    """See the module and `Backend`.

    Args:
        plan: what to load and how.
        on_progress: as in `open_backend`.

    Raises:
        BackendUnavailableError: llama.cpp is not installed, or was built without the accelerator of the plan.
        ModelFileError: the file is missing its end, is no model, or of a kind that llama.cpp or edge does not know.
        ModelTooLargeError: memory ran out.
        UsageError: the plan names a KV type or a number of sequences that does not exist.
        CancelledError: on_progress said False.
    """

    name = "llamacpp"

    def __init__(self, plan: Plan, *, on_progress: Callable[[float], bool] | None = None) -> None:
        from edge.gguf import read_header

        path = plan.artifact.path
        header = plan.artifact.header or read_header(path)  # llama.cpp ends the process on some damaged files
        self._lock = threading.RLock()
        self._model: Any = None
        self._context: Any = None
        self._library = library = load_library()
        self._abort = AbortFlag(library)
        self._dry = DryCache(library)
        try:
            self._model = load_model(library, plan, header.architecture, on_progress)
            check_usable(library, self._model, path)
            self._context = open_context(library, plan, self._model, header.architecture, self._abort)
        except BaseException:
            self._free()
            raise
        self._plan, self._architecture = plan, header.architecture
        self._vocab = library.llama_model_get_vocab(self._model)
        self._memory = library.llama_get_memory(self._context)
        self.kv_window = library.llama_model_n_swa(self._model)
        self._spare = plan.n_seq
        self.capabilities = capabilities_of(library, self._model, plan.n_seq)
        self.info = describe(library, self._model)
        self.n_ctx = library.llama_n_ctx(self._context)
        self.chunk_size = min(library.llama_n_ubatch(self._context), library.llama_n_batch(self._context))
        self._identity: dict[str, str | int | float | bool] = {
            "kv_type_k": plan.kv_type_k,
            "kv_type_v": plan.kv_type_v,
            "flash_attention": plan.flash_attention,
            "n_ubatch": plan.n_ubatch,
            "accelerator": plan.accelerator,
            "gpu_layers": plan.gpu_layers,
            "extra_buffers": plan.use_extra_buffers,
            "unified": True,
            "layout": _BLOCK_MAGIC.decode("ascii", "replace"),
            "rope": rope_variant(library, self._model, self.n_ctx),
        }
        self._ledger = Ledger(self.n_ctx, plan.n_seq)
        self._batch = Batch(library, max(self.chunk_size, plan.n_seq))
        self._rows: dict[int, int] = {}  # sequence -> row of its newest logits in the engine's output
        self._kept: dict[int, npt.NDArray[np.float32]] = {}  # newest logits that a later pass would have overwritten
        self._views: dict[int, npt.NDArray[np.float32]] = {}  # address of an output row -> the same memory as an array
        self._pieces: tuple[dict[int, bytes], dict[int, bytes]] = ({}, {})

    # -- text

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        data = text.encode("utf-8", "replace")
        with self._lock:
            self._check_open()
            room = len(data) + 8
            while True:
                tokens = (ctypes.c_int32 * room)()
                count = self._library.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, parse_special)
                if count >= 0:
                    return tokens[:count]
                if -count <= room:
                    raise BackendError(f"llama.cpp could not tokenize a text of {len(data):,} bytes.")
                room = -count

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        with self._lock:
            self._check_tokens((token,))
            cache = self._pieces[special]
            piece = cache.get(token)
            if piece is None:
                size = 64
                while True:
                    buffer = ctypes.create_string_buffer(size)
                    count = self._library.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
                    if count >= 0:
                        break
                    size = -count
                piece = cache[token] = buffer.raw[:count]
            return piece

    def is_end(self, token: int) -> bool:
        with self._lock:
            self._check_tokens((token,))
            return bool(self._library.llama_vocab_is_eog(self._vocab, token))

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
        ids = np.asarray(tokens, dtype=np.int32)
        n_done, start = 0, self.length(seq_id)
        self._ledger.check_room(len(ids))
        while n_done < len(ids):
            if should_stop is not None and should_stop():
                return n_done
            n_chunk = self.chunk_size - (start + n_done) % self.chunk_size
            chunk = ids[n_done : n_done + n_chunk]
            with self._lock:
                self._check_open()
                if not self._prefill_chunk(seq_id, chunk, should_stop):
                    return n_done
            n_done += len(chunk)
            if on_progress is not None:
                on_progress(n_done, len(ids))
        return n_done

    def decode(self, steps: Sequence[tuple[int, int]]) -> None:
        if not steps:
            raise UsageError("There is nothing to decode.", "Give at least one step.")
        with self._lock:
            self._check_tokens([token for _, token in steps])
            rows = {seq_id: row for row, (seq_id, _) in enumerate(steps)}
            if len(rows) != len(steps):
                raise UsageError("A sequence is in this step twice.", "Give every sequence at most once.")
            lengths = [self._ledger.length(seq_id) for seq_id in rows]
            self._ledger.check_room(len(steps))
            batch = self._batch
            for row, (seq_id, token) in enumerate(steps):
                batch.tokens[row] = token
                batch.positions[row] = lengths[row]
                batch.seq_ids[row] = seq_id
                batch.wants_logits[row] = 1
            code = self._run(len(steps), rows)
            if code != _OK:
                for seq_id, n_before in zip(rows, lengths, strict=True):
                    self._restore(seq_id, n_before)
                raise self._failure(code, len(steps))
            for seq_id in rows:
                self._ledger.append(seq_id, 1)
            self._rows = rows

    def rewind(self, seq_id: int, n_keep: int) -> None:
        with self._lock:
            n_now = self.length(seq_id)
            self._check_cut(seq_id, n_keep)
            if n_keep == n_now:
                return
            # Emptying a sequence is asked for as such: a recurrent state has no positions to cut at.
            first = n_keep if n_keep else -1
            if not self._library.llama_memory_seq_rm(self._memory, seq_id, first, -1):
                raise UnsupportedError(f"This model cannot be rewound to {n_keep} tokens.")
            self._ledger.cut(seq_id, n_keep)
            self._forget_logits(seq_id)

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        with self._lock:
            self._check_cut(source, n_tokens)
            if source == target:
                self.rewind(source, n_tokens)
                return
            self.rewind(target, 0)
            if n_tokens:
                self._library.llama_memory_seq_cp(self._memory, source, target, 0, n_tokens)
                self._ledger.share(source, target, n_tokens)

    def export_kv(self, seq_id: int, start: int, end: int) -> bytes:
        with self._lock:
            n_now = self.length(seq_id)
            if not 0 <= start < end <= n_now:
                raise UsageError(f"Sequence {seq_id} has {n_now} tokens; [{start}, {end}) cannot be exported.")
            if not self.capabilities.export_kv:
                if (start, end) != (0, n_now):
                    raise UnsupportedError(f"The state of this model ({self.info.architecture}) is exported as a whole only.")
                return self._export(seq_id, start, end)
            if self.kv_window:
                self._check_window(seq_id, start, end)
            # The spare sequence shares just these cells for a moment, and is what gets written out.
            self._library.llama_memory_seq_cp(self._memory, seq_id, self._spare, start, end)
            try:
                return self._export(self._spare, start, end)
            finally:
                self._library.llama_memory_seq_rm(self._memory, self._spare, -1, -1)

    def import_kv(self, seq_id: int, block: bytes | memoryview) -> None:
        with self._lock:
            n_now = self.length(seq_id)
            if len(block) < _BLOCK.size:
                raise BackendError("The KV block is cut off.")
            magic, start, end, size = _BLOCK.unpack_from(block)
            if magic != _BLOCK_MAGIC or len(block) != _BLOCK.size + size or not 0 <= start < end:
                raise BackendError("This is not a whole KV block of the llamacpp backend.")
            if start != n_now:
                raise BackendError(f"The KV block starts at position {start}, but the sequence ends at {n_now}.")
            self._ledger.check_room(end - start)
            library, memory = self._library, self._memory
            # llama.cpp clears the sequence that it reads into, so what is to be appended goes through the spare one.
            target = self._spare if self.capabilities.export_kv else seq_id
            is_taken = False
            try:
                self._import(target, block, start, end)
                if target != seq_id:
                    library.llama_memory_seq_cp(memory, target, seq_id, start, end)
                is_taken = True
            finally:
                if target != seq_id or not is_taken:
                    library.llama_memory_seq_rm(memory, target, -1, -1)
            self._ledger.append(seq_id, end - start)
            self._forget_logits(seq_id)

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        with self._lock:
            self._check_open()
            check_threads(n_threads, n_threads_batch)
            self._plan = replace(self._plan, n_threads=n_threads, n_threads_batch=n_threads_batch)  # for the next context
            self._library.llama_set_n_threads(self._context, n_threads, n_threads_batch)

    def resize(self, n_ctx: int) -> None:
        with self._lock:
            self._check_open()
            check_resize(n_ctx, [self._ledger.length(seq_id) for seq_id in range(self.capabilities.n_seq)])
            library, before = self._library, self._plan.n_ctx
            if rope_variant(library, self._model, n_ctx) != self._identity["rope"]:
                raise UnsupportedError(f"This model turns positions another way in a window of {n_ctx:,} tokens.")
            try:
                self._reopen(n_ctx)  # the old one goes first: both at once would be what there is no memory for
            except EdgeError:
                try:
                    self._reopen(before)
                except EdgeError as error:
                    self._free()
                    raise BackendError(
                        f"The KV cache could not be made anew: {error.message}", "Load the model again."
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

    def logits(self, seq_id: int) -> npt.NDArray[np.float32]:
        with self._lock:
            copied: npt.NDArray[np.float32] = self.newest_logits(seq_id).copy()
            return copied

    def open_sampler(self, sampling: Sampling, history: Sequence[int] = ()) -> Sampler:
        with self._lock:
            self._check_open()
            self._check_tokens(history)
            return LlamaCppSampler(self, self._library, self._vocab, self._dry, sampling, history)

    def close(self) -> None:
        with self._lock:
            self._free()

    # -- for the sampler, under the lock

    @property
    def lock(self) -> threading.RLock:
        """Held during every use of the native objects, so that close() from another thread waits for the pass."""
        return self._lock

    def newest_logits(self, seq_id: int) -> npt.NDArray[np.float32]:
        """The newest logits without a copy, shape (n_vocab,); good until the next pass.

        Raises:
            BackendError: there are none: the last call for this sequence was not a complete prefill or decode.
        """
        self.length(seq_id)
        row = self._rows.get(seq_id)
        if row is not None:
            return self._row(row)
        kept = self._kept.get(seq_id)
        if kept is None:
            raise BackendError(f"Sequence {seq_id} has no newest logits.", "Prefill or decode at least one token.")
        return kept

    def native_row(self, seq_id: int) -> tuple[Any, int] | None:
        """(context, row) when the newest logits are still in the engine's own output, else None."""
        row = self._rows.get(seq_id)
        return None if row is None else (self._context, row)

    # -- inside

    def _reopen(self, n_ctx: int) -> None:
        """Another context of the same model, for so many tokens, in the place of this one."""
        library = self._library
        if self._context:
            library.llama_free(self._context)
            give_memory_back()
        self._context = self._memory = None
        self._rows, self._kept, self._views = {}, {}, {}
        plan = replace(self._plan, n_ctx=n_ctx)
        self._context = open_context(library, plan, self._model, self._architecture, self._abort)
        self._plan, self._memory = plan, library.llama_get_memory(self._context)
        self.n_ctx = library.llama_n_ctx(self._context)
        self._ledger = Ledger(self.n_ctx, plan.n_seq)

    def _prefill_chunk(self, seq_id: int, chunk: npt.NDArray[np.int32], should_stop: Callable[[], bool] | None) -> bool:
        """Compute one chunk; False when it was stopped, and then it left nothing behind."""
        n_chunk, start = len(chunk), self._ledger.length(seq_id)
        batch = self._batch
        batch.tokens[:n_chunk] = chunk
        batch.positions[:n_chunk] = range(start, start + n_chunk)
        batch.seq_ids[:n_chunk] = seq_id
        batch.wants_logits[:n_chunk] = 0
        batch.wants_logits[n_chunk - 1] = 1
        # Half a pass can be taken back from an attention cache, not from a recurrent state.
        is_stoppable = self.capabilities.rewind and n_chunk >= _WATCHED_FROM
        try:
            with self._abort.watching(should_stop if is_stoppable else None):
                code = self._run(n_chunk, (seq_id,))
        except BaseException:  # also Ctrl-C: the pass may be done, but nobody is told
            self._restore(seq_id, start)
            raise
        if code == _OK:
            self._ledger.append(seq_id, n_chunk)
            self._rows = {seq_id: n_chunk - 1}
            return True
        self._restore(seq_id, start)
        if code == _ABORTED:
            return False
        raise self._failure(code, n_chunk)

    def _run(self, n_tokens: int, changing: Iterable[int]) -> int:
        """One pass over the filled batch. Logits of the other sequences are put aside, since it overwrites them."""
        for seq_id in changing:
            self._forget_logits(seq_id)
        for seq_id, row in self._rows.items():
            self._kept[seq_id] = self._row(row).copy()
        self._rows = {}
        self._batch.native.n_tokens = n_tokens
        forget_log()
        return int(self._library.llama_decode(self._context, self._batch.native))

    def _row(self, row: int) -> npt.NDArray[np.float32]:
        import numpy as np

        pointer = self._library.llama_get_logits_ith(self._context, row)  # waits for the pass
        if not pointer:
            raise BackendError("llama.cpp gave no logits.", "Load the model again.")
        address = ctypes.addressof(pointer.contents)
        view = self._views.get(address)
        if view is None:
            view = self._views[address] = np.ctypeslib.as_array(pointer, (self.info.n_vocab,))
        return view

    def _forget_logits(self, seq_id: int) -> None:
        self._rows.pop(seq_id, None)
        self._kept.pop(seq_id, None)

    def _restore(self, seq_id: int, n_keep: int) -> None:
        """After a failed pass: what it left of a sequence is removed; a state that cannot be cut is emptied."""
        self._forget_logits(seq_id)
        if n_keep and self._library.llama_memory_seq_rm(self._memory, seq_id, n_keep, -1):
            self._ledger.cut(seq_id, n_keep)
        else:
            self._library.llama_memory_seq_rm(self._memory, seq_id, -1, -1)
            self._ledger.cut(seq_id, 0)

    def _failure(self, code: int, n_tokens: int) -> BackendError | ContextFullError:
        if code == _NO_ROOM:
            return ContextFullError(
                f"llama.cpp found no room for {n_tokens} tokens in the context window of {self.n_ctx:,}.",
                "Shorten the conversation, or load the model with a larger context.",
            )
        reason = recent_log() or "it gave no reason"
        return BackendError(f"llama.cpp failed while computing (code {code}): {reason}.", "Load the model again.")

    def _check_open(self) -> None:
        if not self._context:
            raise BackendError("The model is closed.", "Open it again.")

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        self._check_open()
        n_vocab = self.info.n_vocab
        if tokens and (min(tokens) < 0 or max(tokens) >= n_vocab):
            wrong = next(token for token in tokens if not 0 <= token < n_vocab)
            raise UsageError(f"There is no token {wrong}.", f"The vocabulary has {n_vocab} tokens.")

    def _export(self, seq_id: int, start: int, end: int) -> bytes:
        """All that llama.cpp has of a sequence, behind a header that says which positions it is."""
        library = self._library
        size = library.llama_state_seq_get_size(self._context, seq_id)
        buffer = ctypes.create_string_buffer(_BLOCK.size + size)
        payload = (ctypes.c_uint8 * size).from_buffer(buffer, _BLOCK.size)
        forget_log()
        if library.llama_state_seq_get_data(self._context, payload, size, seq_id) != size:
            raise BackendError(f"llama.cpp could not export its KV cache: {recent_log() or 'it gave no reason'}.")
        _BLOCK.pack_into(buffer, 0, _BLOCK_MAGIC, start, end, size)
        return buffer.raw

    def _import(self, seq_id: int, block: bytes | memoryview, start: int, end: int) -> None:
        """Give a block to llama.cpp, which empties the sequence first."""
        import numpy as np

        library = self._library
        payload = np.frombuffer(block, np.uint8)[_BLOCK.size :]  # the address of the bytes, without a copy
        data = payload.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        forget_log()
        n_read = library.llama_state_seq_set_data(self._context, data, len(payload), seq_id)
        first = library.llama_memory_seq_pos_min(self._memory, seq_id)
        last = library.llama_memory_seq_pos_max(self._memory, seq_id)
        if not self.capabilities.export_kv:
            first = start  # a recurrent state has no first position
        if n_read != len(payload) or (first, last) != (start, end - 1):
            raise BackendError(f"llama.cpp refused the KV block: {recent_log() or 'it is of another model'}.")

    def _check_window(self, seq_id: int, start: int, end: int) -> None:
        """llama.cpp leaves out of a state what its window has passed over, and may give those cells away in any later pass."""
        oldest = self._library.llama_memory_seq_pos_min(self._memory, seq_id)
        is_recent = self.length(seq_id) - start <= self.kv_window + self.chunk_size
        if end - start >= self.kv_window or start < oldest or not is_recent:
            raise UnsupportedError(
                f"The sliding window of this model has moved on: [{start}, {end}) of sequence {seq_id} cannot be exported."
            )

    def _check_cut(self, seq_id: int, n_keep: int) -> None:
        n_now = self.length(seq_id)
        if not 0 <= n_keep <= n_now:
            raise UsageError(f"Sequence {seq_id} has {n_now} tokens; {n_keep} of them are not possible.")
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

    def _free(self) -> None:
        self._dry.close()
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._context = self._model = self._memory = self._vocab = None
        self._rows, self._kept, self._views = {}, {}, {}
