"""ONNX decoders on onnxruntime: folders that `edge convert --to onnx` and onnxruntime-genai's model builder make.

The files beside this one: onnx_session.py (onnxruntime: providers, sessions, placement), onnx_kv.py (keys and values),
logits_backend.py (what engines share that give logits and nothing else). This one runs the passes.

A step for several sequences is one pass over neighbouring rows of the keys and values, each as long as it is: the model takes
the length of a row from the sum of its mask. Nothing is copied for that, so a row between two that take part is computed along,
and what comes out of it is behind its end and forgotten. Where a model cannot do this, they are computed one after another.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.backends.base import Capabilities, ModelInfo
from edge.backends.logits_backend import LogitsBackend
from edge.backends.onnx.kv import KVBuffers, Layout, open_buffers
from edge.backends.onnx.session import PROVIDERS, Session, error_of_ours, errors_of_ours, placement_text
from edge.backends.stopping import watching
from edge.errors import BackendError, BackendUnavailableError, CancelledError, EdgeError, UsageError
from edge.formats.onnx import OnnxFolder, read_onnx_folder
from edge.prompt.hf_tokenizer import HFTokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.plan.receipt import Plan

__all__ = ["OnnxBackend"]

_log = logging.getLogger("edge.onnx")
_BLOCK_MAGIC = b"EDGEOX1\0"
_WATCHED_FROM = 16  # a shorter chunk is over before a thread that watches it would help
_MOST_LOGITS_BYTES = 64 << 20  # of one pass, for models that compute those of every position
_MOST_IDLE_ROWS = 1  # between two that take part, rather than a pass of its own for each
_SAME = 0.05  # of the spread of logits; measured: 0.009 at most where rows are right, 0.28 at least where a length is wrong


class OnnxBackend(LogitsBackend):
    """See the module and `Backend`.

    Args:
        plan: what to load and how. The artifact is a folder with genai_config.json.
        on_progress: as in `open_backend`.

    Raises:
        BackendUnavailableError: onnxruntime or tokenizers is not installed, or the accelerator's provider is not there, could
            not start or got no nodes.
        ModelFileError: the folder is damaged, or of a kind that edge or onnxruntime does not know.
        ModelTooLargeError: memory ran out.
        UsageError: the plan wants keys and values kept in another way than the model does.
        CancelledError: on_progress said False.
    """

    name = "onnx"

    def __init__(self, plan: Plan, *, on_progress: Callable[[float], bool] | None = None) -> None:
        import numpy as np

        path = plan.artifact.path
        self._folder = folder = plan.artifact.onnx or read_onnx_folder(path)
        for name in (plan.kv_type_k, plan.kv_type_v):
            if name != folder.kv_type:
                raise UsageError(
                    f"The KV type {name} is asked for, and {plan.artifact.name} keeps its keys and values as {folder.kv_type}.",
                    "Leave out --kv-type.",
                )
        tokenizer = HFTokenizer(path, folder.n_vocab)
        self._n_threads = plan.n_threads
        self._session = Session(folder, plan, on_progress)
        chunk_size = min(plan.n_ubatch, plan.n_ctx)
        self._is_last_only = self._session.logits_rows == "the last position"
        if not self._is_last_only:
            chunk_size = max(1, min(chunk_size, _MOST_LOGITS_BYTES // (4 * folder.n_vocab)))
        is_host = self._session.device == "cpu"
        can_export = is_host or folder.kv_type != "bf16"  # numpy has no bfloat16 to move between memories
        super().__init__(
            tokenizer,
            _describe(plan, folder, tokenizer, self._session),
            n_ctx=plan.n_ctx,
            n_seq=plan.n_seq,
            chunk_size=chunk_size,
            block_magic=_BLOCK_MAGIC,
            capabilities=Capabilities(
                rewind=True,
                export_kv=can_export,
                checkpoints=can_export,
                n_seq=plan.n_seq,
                shared_cells=False,
                threads=plan.accelerator == "cpu",
                resize=True,
            ),
        )
        kind = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[folder.logits_type]
        self._logits = np.empty((plan.n_seq, folder.n_vocab), kind)
        self._layout = Layout(folder)
        self._bindings: dict[tuple[int, int], Any] = {}  # first sequence, how many -> onnxruntime's binding for them
        self._writers: dict[int, _Writer] = {}
        self._make_room(plan.n_ctx)
        # The first pass prepares much, and shows whether it works at all.
        first = self._compute(0, 0, np.zeros(1, dtype=np.int64), None)
        placement = self._session.placement()
        self._check_placement(plan, placement)
        reason = self._why_not_batched(first)
        self._is_batched = not reason
        for seq_id in range(plan.n_seq):
            self._free_kv(seq_id)
        self.info.details["placement"] = placement_text(placement)
        if plan.n_seq > 1:
            self.info.details["several replies"] = f"one after another: {reason}" if reason else "in one pass"
        if on_progress is not None and not on_progress(1.0):
            self.close()
            raise CancelledError("Loading was stopped.")

    def kv_identity(self) -> dict[str, str | int | float | bool]:
        from edge.device.identity import cpu_identity

        self._check_open()
        folder = self._folder
        return {
            "backend": self.name,
            "version": str(self._session.runtime.__version__),
            "providers": ",".join(self._session.providers),
            "processor": cpu_identity(),  # onnxruntime chooses its kernels by it
            "layout": _BLOCK_MAGIC.decode("ascii", "replace"),
            "type": folder.kv_type,
            "shape": f"{folder.n_layer}x{folder.n_head_kv}x{folder.head_dim}",
            "shared": folder.shares_buffer,
            "chunk_size": self.chunk_size,
        }

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        """One pool computes everything, so `n_threads` holds for prompts, too."""
        with self._lock:
            self._check_threads(n_threads, n_threads_batch)
            if not self.capabilities.threads:
                super().set_threads(n_threads, n_threads_batch)
            self._n_threads = n_threads  # for the next pass, see _fit_session

    def resize(self, n_ctx: int) -> None:
        with self._lock:
            self._check_resize(n_ctx)
            self._make_room(n_ctx)
            self._count_anew(n_ctx)

    # -- for LogitsBackend

    def _compute(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> npt.NDArray[np.float32] | None:
        import numpy as np

        n_new, end = len(ids), start + len(ids)
        with errors_of_ours("compute"):
            self._fit_session()
            n_rows = 1 if self._is_last_only else n_new
            shape = (n_rows, self._folder.n_vocab)
            logits = self._logits[seq_id : seq_id + 1] if n_rows == 1 else np.empty(shape, self._logits.dtype)
            binding = self._binding(seq_id, 1, start, n_new)
            self._bind(binding, ids[None], self._mask[:, :end], self._positions[:, start:end], logits[None])
            if not self._run(binding, should_stop if n_new >= _WATCHED_FROM else None):
                return None
            self._kv.commit(seq_id, end)
        return _as_float32(logits[-1] if n_rows == 1 else logits[-1].copy(), self._folder.logits_type)

    def _compute_one(self, seq_id: int, start: int, token: int) -> npt.NDArray[np.float32]:
        """Every line of Python here is felt: a pass leaves nothing of it in the processor's caches."""
        if not self._session.reads_in_place:
            return super()._compute_one(seq_id, start, token)
        folder = self._folder
        try:
            self._fit_session()
            writer = self._writers.get(seq_id)
            if writer is None:
                writer = self._writers[seq_id] = self._new_writer(seq_id)
            writer.ids[0, 0], writer.positions[0, 0] = token, start
            self._kv.bind(writer.binding, seq_id, 1, start, 1)
            if folder.has_attention_mask:
                element = writer.ids.dtype.type
                writer.binding.bind_input(folder.attention_mask, "cpu", 0, element, (1, start + 1), self._mask_address)
            self._run(writer.binding, None)
            self._kv.commit(seq_id, start + 1)
        except EdgeError:
            raise
        except Exception as error:
            raise error_of_ours("compute", error) from error
        return _as_float32(writer.logits, folder.logits_type)

    def _step(self, steps: Sequence[tuple[int, int]], starts: dict[int, int]) -> None:
        if len(steps) == 1 or not self._is_batched:
            super()._step(steps, starts)
            return
        lengths = [self._cells.length(seq_id) for seq_id in range(self.capabilities.n_seq)]
        for first, end in _neighbours(starts, lengths, self.n_ctx):
            tokens = {seq_id: token for seq_id, token in steps if first <= seq_id < end}
            self._newest |= self._compute_neighbours(first, lengths[first:end], tokens)

    def _compute_neighbours(self, first: int, lengths: list[int], tokens: dict[int, int]) -> dict[int, npt.NDArray[np.float32]]:
        """One pass over neighbouring sequences.

        Args:
            first: the first one.
            lengths: how many positions each of them has; there is room for one more.
            tokens: what is appended to which; the others stay as they are.

        Returns:
            Logits of those that take part.
        """
        import numpy as np

        n_seq, total = len(lengths), max(lengths) + 1
        with errors_of_ours("compute"):
            self._fit_session()
            ids = np.array([[tokens.get(seq_id, 0)] for seq_id in range(first, first + n_seq)], np.int64)
            positions = np.array(lengths, np.int64)[:, None]
            mask = (self._positions[:, :total] <= positions).astype(np.int64)
            newest = self._logits[first : first + n_seq]
            # Logits that an idle sequence has are still good.
            logits = newest if len(tokens) == n_seq else np.empty_like(newest)
            binding = self._binding(first, n_seq, total - 1, 1)
            self._bind(binding, ids, mask, positions, logits[:, None])
            self._run(binding, None)
            for seq_id in tokens:
                row = seq_id - first
                if logits is not newest:
                    newest[row] = logits[row]
                self._kv.commit(seq_id, lengths[row] + 1)
        return {seq_id: _as_float32(newest[seq_id - first], self._folder.logits_type) for seq_id in tokens}

    def _copy(self, source: int, target: int, n_tokens: int) -> None:
        with errors_of_ours("copy keys and values"):
            self._kv.write(target, 0, self._kv.rows(source, n_tokens))

    def _kv_bytes(self, n_tokens: int) -> int:
        return n_tokens * self._layout.row_bytes()

    def _read_kv(self, seq_id: int, start: int, end: int, out: npt.NDArray[np.uint8]) -> None:
        with errors_of_ours("read keys and values"):
            self._layout.view(out, end - start)[:] = self._kv.rows(seq_id, end)[:, :, start:]

    def _write_kv(self, seq_id: int, start: int, end: int, data: npt.NDArray[np.uint8]) -> None:
        with errors_of_ours("write keys and values"):
            self._kv.write(seq_id, start, self._layout.view(data, end - start))

    def _free_kv(self, seq_id: int) -> None:
        if not self._is_open:
            return
        if not self._kv.can_batch:  # a binding holds what it was told of, until it is told of something else
            self._bindings.pop((seq_id, 1), None)
            self._writers.pop(seq_id, None)
        self._kv.free(seq_id)  # room that was used is given back; fresh pages come when they are written

    def _free(self) -> None:
        self._drop_bindings()
        self._session.close()
        del self._kv

    # -- inside

    def _new_writer(self, seq_id: int) -> _Writer:
        import numpy as np

        ids, positions = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64)
        binding, logits = self._session.native.io_binding(), self._logits[seq_id : seq_id + 1]
        self._bind(binding, ids, self._mask[:, :1], positions, logits[None])
        return _Writer(binding, ids, positions, logits[0])

    def _make_room(self, n_ctx: int) -> None:
        """For so many rows a sequence; what there was is dropped, unless there is no memory for it."""
        import numpy as np

        with errors_of_ours("make room for keys and values"):
            session = self._session
            self._kv: KVBuffers = open_buffers(self._folder, n_ctx, self.capabilities.n_seq, session.runtime, session.device)
        self._drop_bindings()
        self._mask = np.ones((1, n_ctx), dtype=np.int64)
        self._mask_address = self._mask.ctypes.data
        self._positions = np.arange(n_ctx, dtype=np.int64)[None]

    def _binding(self, first: int, n_seq: int, start: int, n_new: int) -> Any:
        """What tells onnxruntime where the keys and values of these sequences are."""
        binding = self._bindings.get((first, n_seq))
        if binding is None:
            binding = self._bindings[first, n_seq] = self._session.native.io_binding()
        self._kv.bind(binding, first, n_seq, start, n_new)
        return binding

    def _bind(
        self,
        binding: Any,
        ids: npt.NDArray[np.int64],
        mask: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
        logits: npt.NDArray[np.generic],
    ) -> None:
        """Everything else that a pass reads and writes, which has to live as long; each array in one piece."""
        import numpy as np

        folder = self._folder
        binding.bind_input(folder.input_ids, "cpu", 0, np.int64, ids.shape, ids.ctypes.data)
        if folder.has_attention_mask:
            binding.bind_input(folder.attention_mask, "cpu", 0, np.int64, mask.shape, mask.ctypes.data)
        if folder.has_position_ids:
            binding.bind_input(folder.position_ids, "cpu", 0, np.int64, positions.shape, positions.ctypes.data)
        element = 16 if folder.logits_type == "bf16" else logits.dtype.type
        binding.bind_output(folder.logits, "cpu", 0, element, logits.shape, logits.ctypes.data)

    def _run(self, binding: Any, should_stop: Callable[[], bool] | None) -> bool:
        """One pass; False when it was given up."""
        if should_stop is None:
            self._session.native.run_with_iobinding(binding)
            return True
        options = self._session.runtime.RunOptions()
        is_stopped = False

        def stop() -> None:
            nonlocal is_stopped
            is_stopped = options.terminate = True

        try:
            with watching(should_stop, stop):
                self._session.native.run_with_iobinding(binding, options)
        except Exception:
            if is_stopped:
                return False
            raise
        return True  # it may have been over before the question was answered

    def _fit_session(self) -> None:
        """Another number of threads takes another session; keys and values are ours and stay where they are.

        Raises:
            BackendError: it could not be opened; the backend is closed.
        """
        if self._n_threads == self._session.n_threads:
            return
        self._drop_bindings()
        try:
            self._n_threads = self._session.reopen(self._n_threads)
        except EdgeError:
            self.close()
            raise

    def _drop_bindings(self) -> None:
        """They belong to one session, and know where one place for keys and values is."""
        self._bindings.clear()
        self._writers.clear()

    def _why_not_batched(self, first: npt.NDArray[np.float32] | None) -> str:
        """Why several sequences cannot be computed in one pass; "" when they can. It is tried out.

        Args:
            first: logits of sequence 0 after its only token, 0.
        """
        import numpy as np

        if self.capabilities.n_seq < 2 or self.n_ctx < 3:
            return "there is room for one only"
        if not self._kv.can_batch:
            return "their keys and values do not lie side by side"
        if self._folder.has_branches:
            return "the model computes in another way from some length on, for all rows alike"
        try:
            second = self._compute(1, 0, np.array([1, 2, 3], np.int64), None)
            assert first is not None and second is not None
            alone = [first.copy(), second.copy()]  # the next pass writes over them
            both = self._compute_neighbours(0, [0, 2], {0: 0, 1: 3})
        except BackendError as error:
            _log.info("Several rows in one pass: %s", error)
            return "the model takes one row only"
        is_same = all(_distance(both[row], alone[row]) < _SAME for row in both)
        return "" if is_same else "rows of different lengths disturb each other in this model"

    def _check_placement(self, plan: Plan, placement: Counter[str]) -> None:
        """An accelerator that takes nothing of a model would leave all of it to the CPU without a word."""
        wanted = [name for name, _ in PROVIDERS[plan.accelerator]]
        if wanted and not any(placement[name] for name in wanted):
            self.close()
            raise BackendUnavailableError(
                f"{' and '.join(wanted)} cannot compute any part of {plan.artifact.name}, so all would run on the CPU.",
                "Use --require cpu, or the same model as GGUF.",
            )


@dataclass(frozen=True, slots=True)
class _Writer:
    """A binding of its own for the passes that append one token to a sequence: only the mask's length changes from one to the
    next, the rest is written where it was.

    Attributes:
        binding: onnxruntime's.
        ids, positions: int64 [1, 1].
        logits: [n_vocab], where a pass leaves them.
    """

    binding: Any
    ids: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    logits: npt.NDArray[np.generic]


def _neighbours(wanted: Iterable[int], lengths: list[int], n_ctx: int) -> list[tuple[int, int]]:
    """Which sequences go together into a pass: ranges [first, end) of them.

    A few idle ones in between are computed along where they have room for what then comes behind their end.
    """
    spans: list[tuple[int, int]] = []
    for seq_id in sorted(wanted):
        if spans:
            first, end = spans[-1]
            idle = lengths[end:seq_id]
            if len(idle) <= _MOST_IDLE_ROWS and all(length < n_ctx for length in idle):
                spans[-1] = (first, seq_id + 1)
                continue
        spans.append((seq_id, seq_id + 1))
    return spans


def _distance(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """How far apart logits are, as a share of their spread."""
    return float(((one - other) ** 2).mean() ** 0.5 / max(float(other.std()), 1e-9))


def _as_float32(logits: npt.NDArray[np.generic], kind: str) -> npt.NDArray[np.float32]:
    import numpy as np

    if kind == "bf16":  # the upper half of a float32
        return (logits.astype(np.uint32) << 16).view(np.float32)
    return logits.astype(np.float32, copy=False)


def _describe(plan: Plan, folder: OnnxFolder, tokenizer: HFTokenizer, session: Session) -> ModelInfo:
    details = {
        "weights": folder.quantisation,
        "layers": str(folder.n_layer),
        "width": str(folder.n_embd),
        "heads": f"{folder.n_head} (KV {folder.n_head_kv})",
        "KV buffers": "in place" if folder.shares_buffer else "two that take turns",
        "logits": f"of {session.logits_rows}",
    }
    return ModelInfo(
        name=plan.artifact.name,
        architecture=folder.architecture,
        n_params=0,
        size_bytes=folder.weights_bytes,
        n_vocab=folder.n_vocab,
        n_ctx_train=folder.n_ctx_train,
        chat_template=tokenizer.chat_template,
        bos_text=tokenizer.bos_text,
        eos_text=tokenizer.eos_text,
        adds_bos=tokenizer.adds_bos,
        details=details,
    )
