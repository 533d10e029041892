"""ONNX decoders on onnxruntime: folders that `edge convert --to onnx` and onnxruntime-genai's model builder make.

A step for several sequences is one pass over neighbouring rows of the keys and values, each with a length of its own: the model
takes the length of a row from the sum of its mask. Nothing is copied for that, so an idle row between two that take part is
computed along, and its result is ignored. Where a model cannot do this, sequences are computed one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from edge.backends.base import Capabilities, ModelInfo
from edge.backends.logits_backend import LogitsBackend
from edge.backends.onnx.kv import Layout
from edge.backends.onnx.passes import Passes
from edge.backends.onnx.session import Session, wrap_errors
from edge.backends.onnx.trial import try_model
from edge.errors import CancelledError, EdgeError, UsageError
from edge.formats.onnx import OnnxFolder, read_onnx_folder
from edge.prompt.hf_tokenizer import HFTokenizer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.plan.receipt import Plan

__all__ = ["OnnxBackend"]

_MOST_LOGITS_BYTES = 64 << 20  # of one pass, for models that compute those of every position
_MOST_IDLE_ROWS = 1  # between two that take part, rather than a pass of its own for each


class OnnxBackend(LogitsBackend):
    """See the module and `Backend`.

    Args:
        plan: what to load and how. The artifact is a folder with genai_config.json.
        on_progress: as in `open_backend`.

    Attributes:
        passes: runs the model.

    Raises:
        BackendUnavailableError: onnxruntime or tokenizers is not installed, or the accelerator's provider is missing, could not
            start or got no nodes.
        ModelFileError: the folder is damaged, or of a kind that edge or onnxruntime does not know.
        ModelTooLargeError: memory ran out.
        UsageError: the plan asks for another type of keys and values than the model has.
        CancelledError: on_progress said False.
    """

    name = "onnx"
    block_magic = b"EDGEOX1\0"

    def __init__(self, plan: Plan, *, on_progress: Callable[[float], bool] | None = None) -> None:
        path = plan.artifact.path
        folder = plan.artifact.onnx or read_onnx_folder(path)
        for name in (plan.kv_type_k, plan.kv_type_v):
            if name != folder.kv_type:
                raise UsageError(
                    f"The KV type {name} is asked for, and {plan.artifact.name} keeps its keys and values as {folder.kv_type}.",
                    "Leave out --kv-type.",
                )
        tokenizer = HFTokenizer(path, folder.n_vocab)
        self._n_threads = plan.n_threads
        session = Session(folder, plan, on_progress)
        self.passes = Passes(folder, session, plan.n_ctx, plan.n_seq)
        try:
            placement, reason = try_model(self.passes, plan)
            if on_progress is not None and not on_progress(1.0):
                raise CancelledError("Loading was stopped.")
        except BaseException:
            self.passes.close()
            raise
        self._is_batched = not reason
        self._layout = Layout(folder)
        chunk_size = min(plan.n_ubatch, plan.n_ctx)
        if not session.is_last_only:
            chunk_size = max(1, min(chunk_size, _MOST_LOGITS_BYTES // (4 * folder.n_vocab)))
        can_export = session.device == "cpu" or folder.kv_type != "bf16"  # numpy has no bfloat16 to move between memories
        several = {"several replies": f"one after another: {reason}" if reason else "in one pass"} if plan.n_seq > 1 else {}
        super().__init__(
            _describe(plan, folder, tokenizer, session, {"placement": placement, **several}),
            Capabilities(
                rewind=True,
                export_kv=can_export,
                checkpoints=can_export,
                n_seq=plan.n_seq,
                shared_cells=False,
                threads=plan.accelerator == "cpu",
                resize=True,
                drafts=session.takes_first_logits or not session.is_last_only,
            ),
            tokenizer,
            n_ctx=plan.n_ctx,
            chunk_size=chunk_size,
        )

    def kv_identity(self) -> dict[str, str | int | float | bool]:
        from edge.device.identity import cpu_identity

        self._check_open()
        folder, session = self.passes.folder, self.passes.session
        return {
            "backend": self.name,
            "version": str(session.runtime.__version__),
            "providers": ",".join(session.providers),
            "processor": cpu_identity(),  # onnxruntime chooses its kernels by it
            "layout": self.block_magic.decode("ascii", "replace"),
            "type": folder.kv_type,
            "shape": f"{folder.n_layer}x{folder.n_head_kv}x{folder.head_dim}",
            "shared": folder.shares_buffer,
            "chunk_size": self.chunk_size,
        }

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        """As `Backend.set_threads`. One pool computes everything, so `n_threads` counts for prompts, too."""
        with self._lock:
            self._check_threads(n_threads, n_threads_batch)
            if not self.capabilities.threads:
                super().set_threads(n_threads, n_threads_batch)
            self._n_threads = n_threads  # for the next pass, see _apply_threads

    def resize(self, n_ctx: int) -> None:
        with self._lock:
            self._check_resize(n_ctx)
            self.passes.allocate(n_ctx)
            self._allocate(n_ctx)

    # -- for LogitsBackend

    def _compute(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> npt.NDArray[np.float32] | None:
        self._apply_threads()
        return self.passes.compute(seq_id, start, ids, should_stop)

    def _compute_one(self, seq_id: int, start: int, token: int) -> npt.NDArray[np.float32]:
        if not self.passes.session.reads_in_place:
            return super()._compute_one(seq_id, start, token)
        self._apply_threads()
        return self.passes.compute_one(seq_id, start, token)

    def _compute_draft(self, seq_id: int, start: int, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        import numpy as np

        self._apply_threads()
        return self.passes.compute_draft(seq_id, start, np.array(tokens, np.int64))

    def _decode(self, steps: Sequence[tuple[int, Sequence[int]]], starts: dict[int, int]) -> None:
        if len(steps) == 1 or not self._is_batched or any(len(tokens) > 1 for _, tokens in steps):
            super()._decode(steps, starts)
            return
        self._apply_threads()
        lengths = [self._cells.length(seq_id) for seq_id in range(self.capabilities.n_seq)]
        for first, end in _neighbours(starts, lengths, self.n_ctx):
            tokens = {seq_id: token for seq_id, (token,) in steps if first <= seq_id < end}
            self._newest |= self.passes.compute_neighbours(first, lengths[first:end], tokens)

    def _copy(self, source: int, target: int, n_tokens: int) -> None:
        with wrap_errors("copy keys and values"):
            self.passes.kv.write(target, 0, self.passes.kv.rows(source, n_tokens))

    def _kv_bytes(self, n_tokens: int) -> int:
        return n_tokens * self._layout.row_bytes()

    def _read_kv(self, seq_id: int, start: int, end: int, out: npt.NDArray[np.uint8]) -> None:
        with wrap_errors("read keys and values"):
            self._layout.view(out, end - start)[:] = self.passes.kv.rows(seq_id, end)[:, :, start:]

    def _write_kv(self, seq_id: int, start: int, end: int, data: npt.NDArray[np.uint8]) -> None:
        with wrap_errors("write keys and values"):
            self.passes.kv.write(seq_id, start, self._layout.view(data, end - start))

    def _free_kv(self, seq_id: int) -> None:
        if self._is_open:
            self.passes.free(seq_id)

    def _free(self) -> None:
        self.passes.close()

    def _apply_threads(self) -> None:
        """Reopen the session if `set_threads` changed their number; keys and values stay where they are.

        Raises:
            BackendError: it could not be opened; the backend is closed.
        """
        if self._n_threads == self.passes.session.n_threads:
            return
        self.passes.drop_bindings()
        try:
            self._n_threads = self.passes.session.reopen(self._n_threads)
        except EdgeError:
            self.close()
            raise


def _neighbours(wanted: Iterable[int], lengths: list[int], n_ctx: int) -> list[tuple[int, int]]:
    """Group sequences into passes: ranges [first, end) of them.

    A few idle ones in between are computed along if they have room for the ignored position behind their end.
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


def _describe(plan: Plan, folder: OnnxFolder, tokenizer: HFTokenizer, session: Session, found: dict[str, str]) -> ModelInfo:
    details = {
        "weights": folder.quantisation,
        "layers": str(folder.n_layer),
        "width": str(folder.n_embd),
        "heads": f"{folder.n_head} (KV {folder.n_head_kv})",
        "KV buffers": "in place" if folder.shares_buffer else "two that take turns",
        "logits": "of the last position" if session.is_last_only else "of every position",
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
        details=details | found,
    )
