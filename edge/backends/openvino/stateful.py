"""The same model without paged attention: a request a sequence, which has keys and values as its state.

For a version of OpenVINO whose paged attention is missing or does not take a model, and for devices other than the CPU. It is
slower at several replies, at sharing a prefix (which is a copy) and at export, since a state is read as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.backends.openvino.graph import build, check_kinds, count_kinds
from edge.backends.openvino.library import infer, wrap_errors
from edge.errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge.backends.openvino.passes import Piece
    from edge.backends.openvino.shape import Shape
    from edge.backends.openvino.tensors import Tensors
    from edge.plan.receipt import Plan

__all__ = ["KV_TYPES", "StatefulPasses", "States"]

KV_TYPES = {"f16": np.float16, "f32": np.float32}
"""A state is read and set as floats, so that only these keep their bits."""


class States:
    """Keys and values of all sequences, each in the state of a request of its own; the methods are those of `Blocks`.

    Args:
        ov: the module openvino.
        compiled: the model.
        row: heads and numbers of a head of a key or value.
        kv_type: a key of KV_TYPES.
        n_seq: sequences.
    """

    def __init__(self, ov: Any, compiled: Any, row: tuple[int, int], kv_type: str, n_seq: int) -> None:
        self._ov, self._compiled, self._row, self._kv_type = ov, compiled, row, KV_TYPES[kv_type]
        self._requests: list[Any] = [None] * n_seq

    def request(self, seq_id: int) -> Any:
        """Return the request of a sequence."""
        if self._requests[seq_id] is None:
            with wrap_errors("open a sequence"):
                self._requests[seq_id] = self._compiled.create_infer_request()
        return self._requests[seq_id]

    def extend(self, seq_id: int, n_now: int, n_new: int) -> None:
        """Do nothing: a state grows by itself."""

    def truncate(self, seq_id: int, n_keep: int) -> None:
        """Drop what is behind the first `n_keep` positions of a sequence."""
        request = self._requests[seq_id]
        if request is None:
            return
        if not n_keep:
            with wrap_errors("empty a sequence"):
                request.reset_state()
            return
        for state in self._states(seq_id):
            values = state.state.data
            if values.shape[2] > n_keep:
                self._set(state, values[:, :, :n_keep])

    def share(self, source: int, target: int, n_tokens: int) -> None:
        """Copy the first positions of a sequence to an empty one."""
        for old, new in zip(self._states(source), self._states(target), strict=True):
            self._set(new, old.state.data[:, :, :n_tokens])

    def row_bytes(self) -> int:
        """Return the bytes of the keys and values of one position."""
        return len(self._states(0)) * int(np.prod(self._row)) * np.dtype(self._kv_type).itemsize

    def rows(self, data: npt.NDArray[np.uint8], n: int) -> dict[str, npt.NDArray[np.generic]]:
        """Return bytes as the rows of n positions, without a copy: by the name of a state, shape (heads, n, width)."""
        heads, width = self._row
        parts = data.view(self._kv_type).reshape(-1, heads, n, width)
        return {str(state.name): rows for state, rows in zip(self._states(0), parts, strict=True)}

    def read(self, seq_id: int, start: int, end: int, out: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Copy positions [start, end) into `out`."""
        for state in self._states(seq_id):
            out[str(state.name)][...] = state.state.data[0, :, start:end]

    def write(self, seq_id: int, start: int, end: int, rows: Mapping[str, npt.NDArray[np.generic]]) -> None:
        """Put what `read` copied behind the first `start` positions."""
        heads, width = self._row
        for state in self._states(seq_id):
            old = state.state.data[:, :, :start] if start else np.empty((1, heads, 0, width), np.float32)
            self._set(state, np.concatenate([old, rows[str(state.name)][None].astype(np.float32)], axis=2))

    def _states(self, seq_id: int) -> list[Any]:
        """Return the states of a sequence, in one order for all."""
        return sorted(self.request(seq_id).query_state(), key=lambda state: str(state.name))

    def _set(self, state: Any, values: npt.NDArray[Any]) -> None:
        with wrap_errors("set keys and values"):
            state.state = self._ov.Tensor(np.ascontiguousarray(values))


class StatefulPasses:
    """Compiles a model and runs passes over it, one after the other, with the methods of `Passes`.

    Args:
        ov: the module openvino.
        shape, tensors: of the model.
        plan: KV types and sequences.
        device: OpenVINO's name of it, such as "CPU" or "GPU".
        properties: of the compiled model.

    Attributes:
        blocks: keys and values.
        device_name: as OpenVINO says it.
        kinds: operations of the compiled model, by kind.
        is_stored: never; see `compiled.py`.

    Raises:
        UsageError: keys or values cannot have the type of the plan.
        BackendError: OpenVINO did not recognise parts of the model, and would be slow.
        ModelTooLargeError: memory ran out.
    """

    is_stored = False

    def __init__(self, ov: Any, shape: Shape, tensors: Tensors, plan: Plan, *, device: str, properties: dict[str, Any]) -> None:
        kv_type = plan.kv_type_k
        if kv_type not in KV_TYPES:
            raise UsageError(f"Without paged attention OpenVINO cannot store a KV cache as {kv_type}.", "Use --kv-type f16.")
        self._ov = ov
        with wrap_errors("build the model"):
            graph = build(ov, shape, tensors, is_paged=False)
        with wrap_errors("compile the model"):
            core = ov.Core()
            self.device_name = str(core.get_property(device, "FULL_DEVICE_NAME"))
            self._compiled = core.compile_model(graph.model, device, properties)
        expected = graph.expected
        del graph  # the compiled one has its own weights
        self.kinds = count_kinds(ov, self._compiled)
        if device == "CPU":  # others name their operations differently
            check_kinds(self.kinds, expected)
        self._row, self._kv_type, self._n_seq = (shape.n_head_kv, shape.head_dim), kv_type, plan.n_seq
        self.allocate(plan.n_ctx)

    def allocate(self, n_ctx: int) -> None:
        """Free keys and values; states grow with what is in them."""
        self.blocks = States(self._ov, self._compiled, self._row, self._kv_type, self._n_seq)

    def run(
        self, pieces: Sequence[Piece], should_stop: Callable[[], bool] | None = None
    ) -> list[npt.NDArray[np.float32]] | None:
        """As `Passes.run`, with a pass for each piece."""
        found = []
        for seq_id, start, tokens, wanted in pieces:
            self.blocks.truncate(seq_id, start)
            request, n_tokens = self.blocks.request(seq_id), len(tokens)
            inputs = {
                "input_ids": np.asarray(tokens, np.int64)[None],
                "attention_mask": np.ones((1, start + n_tokens), np.int64),
                "position_ids": np.arange(start, start + n_tokens)[None],
                "beam_idx": np.zeros(1, np.int32),
                "rows": np.arange(n_tokens - wanted, n_tokens),
            }
            with wrap_errors("compute"):
                for name, values in inputs.items():
                    request.set_tensor(name, self._ov.Tensor(values, shared_memory=True))
                if not infer(request, n_tokens, should_stop):
                    return None
                found.append(request.get_output_tensor(0).data.copy())
        return found

    def close(self) -> None:
        """Free the model, and keys and values."""
        del self.blocks, self._compiled
