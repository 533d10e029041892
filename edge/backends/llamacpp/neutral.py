"""Blocks of llama.cpp in the neutral layout that engines share (edge/backends/neutral.py).

A state of llama.cpp (state_file.py) is such a block, once its fields stand in the bytes that are free there. Versions of
llama.cpp differ in those fields, so a state is made and read back once after loading.
"""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.backends.llamacpp.library import clear_log
from edge.backends.neutral import TENSOR_HEAD_BYTES, NeutralLayout, free_bytes
from edge.errors import BackendError

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge.formats.gguf import GGUFHeader
    from edge.plan.receipt import Plan

__all__ = ["NeutralState", "find_neutral"]

_F16 = 1
_MAGIC_BYTES = 4


class NeutralState:
    """Turns states into blocks and back.

    Args:
        layout: of the blocks.
        magic: first bytes of a state of this build.
    """

    def __init__(self, layout: NeutralLayout, magic: bytes) -> None:
        self.layout = layout
        self._magic = magic
        self._tensor = struct.pack("<iQ", _F16, layout.row_bytes)

    def to_neutral(self, state: npt.NDArray[np.uint8], start: int, end: int) -> None:
        """Make an exported state a neutral block, in place: its rows follow their positions, whatever cells they were in.

        Raises:
            BackendError: it is not such a state.
        """
        n = end - start
        positions = state[_MAGIC_BYTES + 12 :][: 12 * n].view("<u4")[::3] if len(state) == self.layout.size(n) else None
        if positions is None or not np.array_equal(np.sort(positions), np.arange(start, end)):
            raise BackendError("llama.cpp exported keys and values in an unknown form.", "Report this.")
        if (positions[:-1] > positions[1:]).any():
            numbers = self.layout.numbers(state, n)
            numbers[...] = numbers[:, :, positions.argsort()]
        self._put_fields(state, start, end)

    def to_state(self, payload: npt.NDArray[np.uint8], start: int, end: int) -> npt.NDArray[np.uint8]:
        """Return a neutral block as a state, without a copy if it was one.

        Raises:
            BackendError: it is of another model.
        """
        n = end - start
        if len(payload) != self.layout.size(n):
            raise BackendError(f"The KV block is of another model: it has {len(payload):,} bytes for {n} tokens.")
        tensors = self.layout.tensors(payload, n)[:, :TENSOR_HEAD_BYTES]
        is_state = payload[: free_bytes(n)].tobytes() == self._fields(start, end)
        if is_state and tensors.tobytes() == self._tensor * len(tensors):
            return payload
        state: npt.NDArray[np.uint8] = payload.copy()
        self._put_fields(state, start, end)
        return state

    def _fields(self, start: int, end: int) -> bytes:
        n = end - start
        cells = np.zeros((n, 3), "<u4")  # position, number of sequences, sequence; llama.cpp asks for the last one elsewhere
        cells[:, 0], cells[:, 1] = np.arange(start, end), 1
        parts = [self._magic, struct.pack("<III", 0, 1, n), cells.tobytes(), struct.pack("<II", 0, self.layout.n_layer)]
        return b"".join(parts)

    def _put_fields(self, state: npt.NDArray[np.uint8], start: int, end: int) -> None:
        state[: free_bytes(end - start)] = np.frombuffer(self._fields(start, end), np.uint8)
        self.layout.tensors(state, end - start)[:, :TENSOR_HEAD_BYTES] = np.frombuffer(self._tensor, np.uint8)


def find_neutral(
    library: Any, context: Any, header: GGUFHeader, plan: Plan, *, has_ranges: bool, n_window: int, seq_id: int
) -> NeutralState | None:
    """Return how states of a loaded model become such blocks; None where they cannot.

    Args:
        library, context: of llama.cpp.
        header, plan: of the model.
        has_ranges: its state has ranges of tokens.
        n_window: tokens of its sliding window, 0 for none.
        seq_id: an empty sequence to try it with; it is left empty.
    """
    if not has_ranges or n_window or not plan.flash_attention or (plan.kv_type_k, plan.kv_type_v) != ("f16", "f16"):
        return None
    if isinstance(header.n_head_kv, tuple) or header.head_dim_k != header.head_dim_v or not header.n_head_kv:
        return None
    clear_log()
    layout = NeutralLayout(header.n_layer, header.n_head_kv, header.head_dim_k)
    magic = np.zeros(max(library.llama_state_seq_get_size(context, seq_id), _MAGIC_BYTES), np.uint8)
    library.llama_state_seq_get_data(context, _address(magic), len(magic), seq_id)
    found = NeutralState(layout, magic[:_MAGIC_BYTES].tobytes())
    is_good = _round_trip(library, context, found, seq_id)
    clear_log()
    return found if is_good else None


def _round_trip(library: Any, context: Any, found: NeutralState, seq_id: int) -> bool:
    """Return whether llama.cpp takes a state of some tokens and gives it back."""
    start, end = 3, 5
    block = np.zeros(found.layout.size(end - start), np.uint8)
    numbers = found.layout.numbers(block, end - start)
    numbers[...] = np.arange(numbers.size).reshape(numbers.shape) % 2048
    state = found.to_state(block, start, end)
    back = np.empty_like(state)
    try:
        if library.llama_state_seq_set_data(context, _address(state), len(state), seq_id) != len(state):
            return False
        if library.llama_state_seq_get_size(context, seq_id) != len(state):
            return False
        library.llama_state_seq_get_data(context, _address(back), len(back), seq_id)
        found.to_neutral(back, start, end)
        return bool((back == state).all())
    except BackendError:
        return False
    finally:
        library.llama_memory_seq_rm(library.llama_get_memory(context), seq_id, -1, -1)


def _address(data: npt.NDArray[np.uint8]) -> Any:
    return data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
