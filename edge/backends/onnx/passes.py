"""Passes of an ONNX decoder: what onnxruntime reads and writes, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.backends.base import MAX_DRAFT
from edge.backends.onnx.kv import KVBuffers, open_buffers
from edge.backends.onnx.session import Session, to_edge_error, wrap_errors
from edge.backends.stopping import watching
from edge.errors import EdgeError
from edge.formats.onnx_graph import FIRST_LOGITS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.formats.onnx import OnnxFolder

    Floats = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int64]

__all__ = ["Passes"]

_WATCHED_FROM = 16  # a shorter chunk is over before a thread that watches it would help


@dataclass(frozen=True, slots=True)
class _Writer:
    """A binding for the passes that append one token to a sequence: only the mask's length changes from one to the next, the
    rest is written in place.

    Attributes:
        binding: onnxruntime's.
        ids, positions: int64 [1, 1].
        logits: [n_vocab], where a pass leaves them.
    """

    binding: Any
    ids: Ints
    positions: Ints
    logits: npt.NDArray[np.generic]


class Passes:
    """Runs passes over sequences whose lengths the caller counts.

    Args:
        folder: the model.
        session: of the model.
        n_ctx: rows of keys and values a sequence.
        n_seq: sequences.

    Attributes:
        folder, session: as above.
        kv: keys and values.
    """

    def __init__(self, folder: OnnxFolder, session: Session, n_ctx: int, n_seq: int) -> None:
        import numpy as np

        self.folder, self.session = folder, session
        kind = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}[folder.logits_type]
        self._logits = np.empty((n_seq, folder.n_vocab), kind)
        self._first_logits = -np.arange(1, 2 + MAX_DRAFT, dtype=np.int64)[:, None]
        self._bindings: dict[tuple[int, int], Any] = {}  # first sequence, how many -> onnxruntime's binding for them
        self._writers: dict[int, _Writer] = {}
        self.kv: KVBuffers
        self.allocate(n_ctx)

    def allocate(self, n_ctx: int) -> None:
        """Replace keys and values by empty ones of so many rows a sequence, unless there is no memory for it.

        Raises:
            ModelTooLargeError: there is none; nothing has changed.
        """
        import numpy as np

        with wrap_errors("allocate keys and values"):
            self.kv = open_buffers(self.folder, n_ctx, len(self._logits), self.session.runtime, self.session.device)
        self.drop_bindings()
        self._mask = np.ones((1, n_ctx), dtype=np.int64)
        self._mask_address = self._mask.ctypes.data
        self._positions = np.arange(n_ctx, dtype=np.int64)[None]

    def compute(self, seq_id: int, start: int, ids: Ints, should_stop: Callable[[], bool] | None) -> Floats | None:
        """Append tokens to a sequence, see `LogitsBackend._compute`."""
        import numpy as np

        n_new, end = len(ids), start + len(ids)
        with wrap_errors("compute"):
            n_rows = 1 if self.session.is_last_only else n_new
            shape = (n_rows, self.folder.n_vocab)
            logits = self._logits[seq_id : seq_id + 1] if n_rows == 1 else np.empty(shape, self._logits.dtype)
            binding = self._binding(seq_id, 1, start, n_new)
            self._bind(binding, ids[None], self._mask[:, :end], self._positions[:, start:end], logits[None])
            if not self.run(binding, should_stop if n_new >= _WATCHED_FROM else None):
                return None
            self.kv.commit(seq_id, end)
        return _as_float32(logits[-1] if n_rows == 1 else logits[-1].copy(), self.folder.logits_type)

    def compute_draft(self, seq_id: int, start: int, ids: Ints) -> Floats:
        """Append tokens to a sequence, and return the logits after each of them, shape (n, n_vocab)."""
        import numpy as np

        end = start + len(ids)
        with wrap_errors("compute"):
            logits = np.empty((len(ids), self.folder.n_vocab), self._logits.dtype)
            binding = self._binding(seq_id, 1, start, len(ids))
            self._bind(binding, ids[None], self._mask[:, :end], self._positions[:, start:end], logits[None])
            self.run(binding, None)
            self.kv.commit(seq_id, end)
        return _as_float32(logits, self.folder.logits_type)

    def compute_one(self, seq_id: int, start: int, token: int) -> Floats:
        """Append one token to a sequence, on providers that read in place.

        Every line of Python here is felt: a pass leaves nothing of it in the processor's caches.
        """
        folder = self.folder
        try:
            writer = self._writers.get(seq_id)
            if writer is None:
                writer = self._writers[seq_id] = self._new_writer(seq_id)
            writer.ids[0, 0], writer.positions[0, 0] = token, start
            self.kv.bind(writer.binding, seq_id, 1, start, 1)
            if folder.has_attention_mask:
                element = writer.ids.dtype.type
                writer.binding.bind_input(folder.attention_mask, "cpu", 0, element, (1, start + 1), self._mask_address)
            self.run(writer.binding, None)
            self.kv.commit(seq_id, start + 1)
        except EdgeError:
            raise
        except Exception as error:
            raise to_edge_error("compute", error) from error
        return _as_float32(writer.logits, folder.logits_type)

    def compute_neighbours(self, first: int, lengths: list[int], tokens: dict[int, int]) -> dict[int, Floats]:
        """Append one token to each of several neighbouring sequences, in one pass.

        Args:
            first: the first one.
            lengths: how many positions each of them has; there is room for one more.
            tokens: sequence -> token; sequences without one stay as they are.

        Returns:
            Logits of those that get a token.
        """
        import numpy as np

        n_seq, total = len(lengths), max(lengths) + 1
        with wrap_errors("compute"):
            ids = np.array([[tokens.get(seq_id, 0)] for seq_id in range(first, first + n_seq)], np.int64)
            positions = np.array(lengths, np.int64)[:, None]
            mask = (self._positions[:, :total] <= positions).astype(np.int64)
            newest = self._logits[first : first + n_seq]
            # The logits of an idle sequence must survive.
            logits = newest if len(tokens) == n_seq else np.empty_like(newest)
            binding = self._binding(first, n_seq, total - 1, 1)
            self._bind(binding, ids, mask, positions, logits[:, None])
            self.run(binding, None)
            for seq_id in tokens:
                row = seq_id - first
                if logits is not newest:
                    newest[row] = logits[row]
                self.kv.commit(seq_id, lengths[row] + 1)
        return {seq_id: _as_float32(newest[seq_id - first], self.folder.logits_type) for seq_id in tokens}

    def run(self, binding: Any, should_stop: Callable[[], bool] | None) -> bool:
        """Run one pass. Returns False when it was stopped."""
        if should_stop is None:
            self.session.native.run_with_iobinding(binding)
            return True
        options, is_done = self.session.runtime.RunOptions(), False
        with watching(should_stop, lambda: setattr(options, "terminate", True)):
            try:
                self.session.native.run_with_iobinding(binding, options)
                is_done = True  # also where it was over before the question was answered
            except Exception:
                if not options.terminate:
                    raise
        return is_done

    def free(self, seq_id: int) -> None:
        """Free the keys and values of a sequence that is empty now."""
        if not self.kv.can_batch:  # a binding holds its buffers until it is bound to others
            self._bindings.pop((seq_id, 1), None)
            self._writers.pop(seq_id, None)
        self.kv.free(seq_id)

    def drop_bindings(self) -> None:
        """Forget what is bound: a binding belongs to one session and one set of buffers."""
        self._bindings.clear()
        self._writers.clear()

    def close(self) -> None:
        """Free the model, and keys and values."""
        self.drop_bindings()
        self.session.close()
        del self.kv

    def _new_writer(self, seq_id: int) -> _Writer:
        import numpy as np

        ids, positions = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64)
        binding, logits = self.session.native.io_binding(), self._logits[seq_id : seq_id + 1]
        self._bind(binding, ids, self._mask[:, :1], positions, logits[None])
        return _Writer(binding, ids, positions, logits[0])

    def _binding(self, first: int, n_seq: int, start: int, n_new: int) -> Any:
        """Return a binding to the keys and values of these sequences."""
        binding = self._bindings.get((first, n_seq))
        if binding is None:
            binding = self._bindings[first, n_seq] = self.session.native.io_binding()
        self.kv.bind(binding, first, n_seq, start, n_new)
        return binding

    def _bind(self, binding: Any, ids: Ints, mask: Ints, positions: Ints, logits: npt.NDArray[np.generic]) -> None:
        """Bind everything else that a pass reads and writes: contiguous arrays that must outlive it."""
        import numpy as np

        folder = self.folder
        if self.session.takes_first_logits:
            first = self._first_logits[logits.shape[1] - 1]
            binding.bind_input(FIRST_LOGITS, "cpu", 0, np.int64, first.shape, first.ctypes.data)
        binding.bind_input(folder.input_ids, "cpu", 0, np.int64, ids.shape, ids.ctypes.data)
        if folder.has_attention_mask:
            binding.bind_input(folder.attention_mask, "cpu", 0, np.int64, mask.shape, mask.ctypes.data)
        if folder.has_position_ids:
            binding.bind_input(folder.position_ids, "cpu", 0, np.int64, positions.shape, positions.ctypes.data)
        element = 16 if folder.logits_type == "bf16" else logits.dtype.type
        binding.bind_output(folder.logits, "cpu", 0, element, logits.shape, logits.ctypes.data)


def _as_float32(logits: npt.NDArray[np.generic], kind: str) -> Floats:
    import numpy as np

    if kind == "bf16":  # the upper half of a float32
        return (logits.astype(np.uint32) << 16).view(np.float32)
    return logits.astype(np.float32, copy=False)
