"""ONNX decoders on onnxruntime: folders that `edge convert --to onnx` and onnxruntime-genai's model builder make.

The files beside this one: onnx_session.py (onnxruntime: providers, sessions, placement), onnx_kv.py (the buffers of one
sequence), logits_backend.py (what engines share that give logits and nothing else). This one runs the passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.backends.base import Capabilities, ModelInfo
from edge.backends.hf_tokenizer import HFTokenizer
from edge.backends.logits_backend import LogitsBackend
from edge.backends.onnx_kv import KVBuffers, open_buffers
from edge.backends.onnx_session import PROVIDERS, Session, errors_of_ours, placement_text
from edge.backends.stopping import watching
from edge.errors import BackendUnavailableError, CancelledError, UsageError
from edge.onnx_folder import OnnxFolder, read_onnx_folder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.plan import Plan

__all__ = ["OnnxBackend"]

_BLOCK_MAGIC = b"EDGEOX1\0"
_WATCHED_FROM = 16  # a shorter chunk is over before a thread that watches it would help
_MOST_LOGITS_BYTES = 64 << 20  # of one pass, for models that compute those of every position


@dataclass(slots=True)
class _Sequence:
    """What one sequence has: its buffers, the binding that knows them, and room for its logits."""

    buffers: KVBuffers
    binding: Any
    logits: npt.NDArray[np.generic]


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
                grammar=False,
                embeddings=False,
                resize=True,
            ),
        )
        self._mask = np.ones((1, plan.n_ctx), dtype=np.int64)
        self._positions = np.arange(plan.n_ctx, dtype=np.int64)[None]
        self._sequences: dict[int, _Sequence] = {}
        # The first pass prepares much, and shows whether it works at all.
        self._compute(0, 0, np.zeros(1, dtype=np.int64), None)
        placement = self._session.placement()
        self._free_kv(0)
        self._check_placement(plan, placement)
        self.info.details["placement"] = placement_text(placement)
        if on_progress is not None and not on_progress(1.0):
            self.close()
            raise CancelledError("Loading was stopped.")

    def kv_identity(self) -> dict[str, str | int | float | bool]:
        from edge.backends.canary import cpu_identity

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

    def resize(self, n_ctx: int) -> None:
        import numpy as np

        with self._lock:
            self._check_resize(n_ctx)
            self._count_anew(n_ctx)
            self._mask = np.ones((1, n_ctx), dtype=np.int64)
            self._positions = np.arange(n_ctx, dtype=np.int64)[None]
            self._sequences.clear()

    # -- for LogitsBackend

    def _compute(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> npt.NDArray[np.float32] | None:
        import numpy as np

        folder, n_new = self._folder, len(ids)
        end = start + n_new
        ids = np.ascontiguousarray(ids)
        with errors_of_ours("compute"):
            sequence = self._sequence(seq_id)
            binding = sequence.binding
            binding.bind_input(folder.input_ids, "cpu", 0, np.int64, [1, n_new], ids.ctypes.data)
            if folder.has_attention_mask:
                binding.bind_input(folder.attention_mask, "cpu", 0, np.int64, [1, end], self._mask.ctypes.data)
            if folder.has_position_ids:
                address = self._positions.ctypes.data + 8 * start
                binding.bind_input(folder.position_ids, "cpu", 0, np.int64, [1, n_new], address)
            n_rows = 1 if self._is_last_only else n_new
            logits = sequence.logits if n_rows == 1 else np.empty((n_rows, folder.n_vocab), sequence.logits.dtype)
            element = 16 if folder.logits_type == "bf16" else logits.dtype.type
            binding.bind_output(folder.logits, "cpu", 0, element, [1, n_rows, folder.n_vocab], logits.ctypes.data)
            sequence.buffers.bind(binding, start, n_new)
            if not self._run(binding, should_stop if n_new >= _WATCHED_FROM else None):
                return None
            sequence.buffers.commit(end)
        return _as_float32(logits[-1] if n_rows == 1 else logits[-1].copy(), folder.logits_type)

    def _copy(self, source: int, target: int, n_tokens: int) -> None:
        with errors_of_ours("copy keys and values"):
            self._sequence(target).buffers.write(0, self._sequences[source].buffers.rows(n_tokens))

    def _kv_bytes(self, n_tokens: int) -> int:
        return n_tokens * self._folder.cell_bytes

    def _read_kv(self, seq_id: int, start: int, end: int, out: npt.NDArray[np.uint8]) -> None:
        with errors_of_ours("read keys and values"):
            buffers = self._sequences[seq_id].buffers
            buffers.view(out, end - start)[:] = buffers.rows(end)[:, :, start:]

    def _write_kv(self, seq_id: int, start: int, end: int, data: npt.NDArray[np.uint8]) -> None:
        with errors_of_ours("write keys and values"):
            buffers = self._sequence(seq_id).buffers
            buffers.write(start, buffers.view(data, end - start))

    def _free_kv(self, seq_id: int) -> None:
        self._sequences.pop(seq_id, None)  # room that was used is given back; fresh pages come when they are written

    def _free(self) -> None:
        self._sequences.clear()
        del self._session

    # -- inside

    def _sequence(self, seq_id: int) -> _Sequence:
        import numpy as np

        sequence = self._sequences.get(seq_id)
        if sequence is None:
            folder, session = self._folder, self._session
            buffers = open_buffers(folder, self.n_ctx, session.runtime, session.device)
            kind = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[folder.logits_type]
            sequence = _Sequence(buffers, session.native.io_binding(), np.empty((1, folder.n_vocab), kind))
            self._sequences[seq_id] = sequence
        return sequence

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

    def _check_placement(self, plan: Plan, placement: Counter[str]) -> None:
        """An accelerator that takes nothing of a model would leave all of it to the CPU without a word."""
        wanted = [name for name, _ in PROVIDERS[plan.accelerator]]
        if wanted and not any(placement[name] for name in wanted):
            self.close()
            raise BackendUnavailableError(
                f"{' and '.join(wanted)} cannot compute any part of {plan.artifact.name}, so all would run on the CPU.",
                "Use --require cpu, or the same model as GGUF.",
            )


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
