"""Slot and session files of llama.cpp: keys and values of a prompt as llama-server and llama-cli save them.

`llama_state_seq_save_file` (llama-server's --slot-save-path) and `llama_state_save_file` (llama-cli's --prompt-cache) write,
little-endian and without padding:

    u32 magic "ggsq" or "ggsn" | u32 version | u32 n_tokens | n_tokens x i32 token
    session files only: u32 length of the architecture's name | the name
    u32 n_stream; for each stream: u32 n_cells; if that is not 0:
      n_cells x { i32 position, u32 1, i32 sequence }
      u32 v_trans | u32 n_layer
      for each layer, keys:   i32 type, u64 row_bytes, n_cells x row_bytes
      for each layer, values: the same; with v_trans: i32 type, u32 element_bytes, u32 n_embd, n_embd x n_cells x element_bytes

A KV block of this engine holds the same state after a header of its own. Nothing of a file reaches llama.cpp as it is: every
number is checked here, and blocks are written anew from rows of keys and values.

Source: llama.cpp, src/llama-context.cpp and src/llama-kv-cache.cpp, as of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from edge.errors import EdgeError, StorageError, UnsupportedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "STATE_HEAD_BYTES", "TYPES", "Layout", "Rows", "StateFile", "Tensor", "is_state_file", "open_state_file",
    "relative_error", "rows_of_block", "write_state",
]  # fmt: skip

_SLOT, _SESSION = 0x67677371, 0x6767736E
_VERSIONS = {_SLOT: 3, _SESSION: 10}
_MAX_TOKENS, _MAX_LAYERS, _MAX_ROW_BYTES, _MAX_NAME, _MAX_STREAMS = 1 << 22, 4096, 1 << 24, 256, 256
STATE_HEAD_BYTES = 8
"""Before a state that the engine exported: a magic number and the sequence."""
TYPES = {0: "f32", 1: "f16", 2: "q4_0", 8: "q8_0", 30: "bf16"}
_ELEMENTS = {0: 4, 1: 2, 30: 2}
"""Bytes of a number."""
_GROUPS = {2: 18, 8: 34}
"""Bytes of 32 quantised numbers: a scale of two bytes, and the rest."""


class Tensor(NamedTuple):
    """Keys or values of a layer: their type, as llama.cpp numbers it, and bytes per token."""

    type: int
    row_bytes: int


class Layout(NamedTuple):
    """Layout of a state: keys and values of each layer, and whether values are transposed (no flash attention)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    v_trans: bool

    def describe(self) -> str:
        """Return it in words."""
        types = "/".join(TYPES.get(each[0].type, str(each[0].type)) for each in (self.keys, self.values) if each)
        n_numbers = {each.row_bytes for each in (*self.keys, *self.values)}
        return f"{len(self.keys)} layers of {types}, {'/'.join(map(str, sorted(n_numbers)))} bytes a token"


class Rows(NamedTuple):
    """Keys and values of some tokens: for each layer an array of shape (tokens, row_bytes), uint8."""

    keys: list[npt.NDArray[np.uint8]]
    values: list[npt.NDArray[np.uint8]]


class _Source:
    """Bytes that are read in order, or at an offset, never beyond their end."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self.size, self.at = file, size, 0

    def take(self, fields: str) -> tuple[Any, ...]:
        """Read the next fields."""
        form = struct.Struct("<" + fields)
        data = self.bytes(form.size, self.at)
        self.at += form.size
        return form.unpack(data)

    def bytes(self, n_bytes: int, offset: int) -> bytes:
        """Read `n_bytes` at an offset."""
        if offset + n_bytes > self.size:
            raise ValueError("it ends early")
        self._file.seek(offset)
        data = self._file.read(n_bytes)
        if len(data) != n_bytes:
            raise ValueError("it ends early")
        return data

    def skip(self, n_bytes: int) -> None:
        """Move on without reading."""
        self.at += n_bytes
        if self.at > self.size:
            raise ValueError("it ends early")


class State:
    """Keys and values of one sequence, from a source up to its end.

    Attributes:
        layout: of the keys and values.
        n_cells: number of its cells, a token each.

    Raises:
        ValueError: it is damaged, or not the state of one sequence.
    """

    def __init__(self, source: _Source) -> None:
        self._source = source
        positions, n_streams_left = self._cells()
        self.n_cells = len(positions)
        self.layout, self._offsets = self._layers()
        if source.take(f"{n_streams_left}I") != (0,) * n_streams_left:
            raise ValueError("it holds several sequences; save a single slot")
        if source.at != source.size:
            raise ValueError(f"{source.size - source.at} bytes follow it; models with a sliding window or a state save more")
        self._order = positions.argsort(kind="stable")
        self._positions = positions[self._order]

    def rows(self, start: int, end: int) -> Rows:
        """Return the keys and values of the cells [start, end), in the order of their positions.

        Raises:
            ValueError: the file was truncated meanwhile, or a number is infinite or NaN.
        """
        cells = self._order[start:end]
        found = Rows([], [])
        for tensors, offsets, rows in zip(
            (self.layout.keys, self.layout.values), self._offsets, (found.keys, found.values), strict=True
        ):
            read = self._columns if self.layout.v_trans and rows is found.values else self._lines
            for tensor, offset in zip(tensors, offsets, strict=True):
                rows.append(read(offset, tensor, cells))
                if not is_finite(tensor.type, rows[-1]):
                    raise ValueError("a number in it is infinite or NaN")
        return found

    def _cells(self) -> tuple[npt.NDArray[np.int64], int]:
        """Read the cells of the first stream that has some. Returns their positions, and how many streams follow."""
        import numpy as np

        source = self._source
        (n_streams,) = source.take("I")
        if not 1 <= n_streams <= _MAX_STREAMS:
            raise ValueError(f"it says that it has {n_streams} streams")
        n_cells, n_left = 0, n_streams
        while not n_cells and n_left:
            (n_cells,), n_left = source.take("I"), n_left - 1
        if not 1 <= n_cells <= _MAX_TOKENS:
            raise ValueError("it holds nothing" if not n_cells else f"it says that it has {n_cells} cells")
        cells = np.frombuffer(source.bytes(12 * n_cells, source.at), "<u4").reshape(n_cells, 3)
        source.skip(12 * n_cells)
        if (cells[:, 1] != 1).any() or (cells[:, 2] != cells[0, 2]).any():
            raise ValueError("it holds several sequences, or a kind of model that edge does not know; save a single slot")
        return cells[:, 0].astype(np.int64), n_left

    def _layers(self) -> tuple[Layout, tuple[list[int], list[int]]]:
        """Read the layout, and skip the numbers. Returns where those of each layer begin, too."""
        source = self._source
        v_trans, n_layers = source.take("II")
        if v_trans > 1 or not 1 <= n_layers <= _MAX_LAYERS:
            raise ValueError("it describes its layers wrongly")
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        offsets: tuple[list[int], list[int]] = ([], [])
        for tensors, places, is_transposed in zip(found, offsets, (False, bool(v_trans)), strict=True):
            for _ in range(n_layers):
                if is_transposed:
                    kind, element, n_embd = source.take("iII")
                    row_bytes = element * n_embd
                    if element != _ELEMENTS.get(kind):
                        raise ValueError("it describes its values wrongly")
                else:
                    kind, row_bytes = source.take("iQ")
                if kind not in TYPES or not 1 <= row_bytes <= _MAX_ROW_BYTES or row_bytes % (_GROUPS | _ELEMENTS)[kind]:
                    raise ValueError(f"it has keys or values of type {kind} in rows of {row_bytes} bytes")
                tensors.append(Tensor(kind, row_bytes))
                places.append(source.at)
                source.skip(row_bytes * self.n_cells)
        return Layout(tuple(found[0]), tuple(found[1]), bool(v_trans)), offsets

    def _lines(self, offset: int, tensor: Tensor, cells: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        """Return the rows of some cells. Cells that follow each other are read at once."""
        import numpy as np

        parts = [self._source.bytes(n * tensor.row_bytes, offset + first * tensor.row_bytes) for first, n in _runs(cells)]
        return np.frombuffer(b"".join(parts), np.uint8).reshape(len(cells), tensor.row_bytes)

    def _columns(self, offset: int, tensor: Tensor, cells: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        """Return the rows of some cells from a transposed tensor."""
        import numpy as np

        element = _ELEMENTS[tensor.type]
        n_embd, first, last = tensor.row_bytes // element, int(cells.min()), int(cells.max())
        lines = [
            self._source.bytes((last + 1 - first) * element, offset + (number * self.n_cells + first) * element)
            for number in range(n_embd)
        ]
        columns = np.frombuffer(b"".join(lines), np.uint8).reshape(n_embd, last + 1 - first, element)
        return np.ascontiguousarray(columns[:, cells - first].transpose(1, 0, 2)).reshape(len(cells), tensor.row_bytes)


class StateFile(State):
    """An open file. See `open_state_file`.

    Attributes:
        tokens: those whose keys and values it holds, from position 0.
        architecture: of the model, where the file says it; else "".
    """

    def __init__(self, file: IO[bytes]) -> None:
        source = _Source(file, os.fstat(file.fileno()).st_size)
        tokens, self.architecture = _head(source)
        super().__init__(source)
        if (self._positions != range(self.n_cells)).any():
            raise ValueError("its positions have gaps: the context was shifted, or a part of it removed")
        if len(tokens) < self.n_cells:
            raise ValueError(f"it holds {self.n_cells} tokens, and names only {len(tokens)}")
        self.tokens = tokens[: self.n_cells]


def _head(source: _Source) -> tuple[tuple[int, ...], str]:
    """Read what precedes the state: the tokens, and the architecture or ""."""
    magic, version, n_tokens = source.take("III")
    if magic not in _VERSIONS:
        raise ValueError("it is neither a slot nor a session file of llama.cpp")
    if version != _VERSIONS[magic]:
        raise ValueError(f"its format is version {version}; version {_VERSIONS[magic]} is known here")
    if not 1 <= n_tokens <= _MAX_TOKENS:
        raise ValueError(f"it says that it has {n_tokens} tokens")
    tokens = source.take(f"{n_tokens}i")
    if min(tokens) < 0:
        raise ValueError("a token is negative")
    if magic == _SLOT:
        return tokens, ""
    (n_bytes,) = source.take("I")
    if n_bytes > _MAX_NAME:
        raise ValueError("the name of its architecture is too long")
    return tokens, source.take(f"{n_bytes}s")[0].decode("utf-8", "replace")


def is_state_file(path: Path) -> bool:
    """Return whether a file begins like a slot or session file of llama.cpp."""
    try:
        if not path.is_file():  # opening a FIFO would wait for its other end
            return False
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return False
    return len(head) == 4 and struct.unpack("<I", head)[0] in _VERSIONS


@contextmanager
def open_state_file(path: Path) -> Iterator[StateFile]:
    """Open a slot or session file and check its structure.

    Raises:
        StorageError: it cannot be read, is damaged or of another version, or does not hold exactly one sequence from
            position 0.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise ValueError("it is not a regular file")
            yield StateFile(file)
    except EdgeError:  # of the caller; one of them is a ValueError
        raise
    except (ValueError, struct.error) as error:
        raise StorageError(
            f"{path} cannot be imported: {error}.", "Save the slot again, with llama.cpp's own tools."
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror or error}).", "Check its name and permissions.") from error


def rows_of_block(state: memoryview, n_tokens: int) -> tuple[Layout, Rows]:
    """Split a state that this engine exported: positions that follow each other, of one sequence.

    Args:
        state: the block without its header.
        n_tokens: tokens in it.

    Raises:
        UnsupportedError: states of this model have another form, which slot files cannot be turned into.
    """
    try:
        read = State(_Source(io.BytesIO(state[STATE_HEAD_BYTES:]), len(state) - STATE_HEAD_BYTES))
        if read.n_cells != n_tokens:
            raise ValueError(f"it holds {read.n_cells} cells for {n_tokens} tokens")
        return read.layout, read.rows(0, n_tokens)
    except (ValueError, struct.error) as error:
        raise UnsupportedError(f"Slot files of this kind of model cannot be imported ({error}).") from error


def write_state(head: bytes, layout: Layout, rows: Rows, start: int) -> bytes:
    """Return the state of some positions as this engine exports it.

    Args:
        head: the first bytes of a state that it exported.
        layout: of that state.
        rows: keys and values.
        start: position of the first.
    """
    import numpy as np

    n = len(rows.keys[0])
    cells = np.empty((n, 3), "<u4")
    cells[:, 0], cells[:, 1], cells[:, 2] = np.arange(start, start + n), 1, int.from_bytes(head[4:8], "little")
    parts = [
        head[:STATE_HEAD_BYTES],
        struct.pack("<II", 1, n),
        cells.tobytes(),
        struct.pack("<II", layout.v_trans, len(layout.keys)),
    ]
    for tensor, data in zip(layout.keys, rows.keys, strict=True):
        parts += [struct.pack("<iQ", tensor.type, tensor.row_bytes), data.tobytes()]
    for tensor, data in zip(layout.values, rows.values, strict=True):
        if layout.v_trans:
            element = _ELEMENTS[tensor.type]
            n_embd = tensor.row_bytes // element
            parts.append(struct.pack("<iII", tensor.type, element, n_embd))
            parts.append(np.ascontiguousarray(data.reshape(n, n_embd, element).transpose(1, 0, 2)).tobytes())
        else:
            parts += [struct.pack("<iQ", tensor.type, tensor.row_bytes), data.tobytes()]
    return b"".join(parts)


def relative_error(layout: Layout, found: Rows, wanted: Rows) -> float:
    """Return the largest difference of a layer's keys or values: the norm of the difference over the norm.

    Args:
        layout: types and sizes of both.
        found, wanted: keys and values of the same tokens.
    """
    import numpy as np

    worst = 0.0
    for tensors, ours, theirs in ((layout.keys, found.keys, wanted.keys), (layout.values, found.values, wanted.values)):
        for tensor, one, other in zip(tensors, ours, theirs, strict=True):
            a, b = _numbers(tensor.type, one), _numbers(tensor.type, other)
            worst = max(worst, float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-9)))
    return worst


def is_finite(kind: int, data: npt.NDArray[np.uint8]) -> bool:
    """Return whether no number, and no scale of quantised ones, is infinite or NaN."""
    import numpy as np

    if kind in _GROUPS:
        scales = np.ascontiguousarray(data.reshape(-1, _GROUPS[kind])[:, :2]).view("<f2")
        return bool(np.isfinite(scales).all())
    return bool(np.isfinite(_numbers(kind, data)).all())


def _numbers(kind: int, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return keys or values as float32."""
    import numpy as np

    name = TYPES[kind]
    if name in ("f16", "f32"):
        return np.ascontiguousarray(data).view("<f2" if name == "f16" else "<f4").astype(np.float32)
    if name == "bf16":
        return (np.ascontiguousarray(data).view("<u2").astype(np.uint32) << 16).view(np.float32)
    groups = data.reshape(-1, _GROUPS[kind])
    scales = np.ascontiguousarray(groups[:, :2]).view("<f2").astype(np.float32)
    if name == "q8_0":
        return np.asarray(scales * np.ascontiguousarray(groups[:, 2:]).view(np.int8), np.float32)
    halves = np.concatenate([groups[:, 2:] & 15, groups[:, 2:] >> 4], axis=1)
    return np.asarray(scales * (halves.astype(np.float32) - 8), np.float32)


def _runs(cells: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
    """Yield (first cell, number) of cells that follow each other."""
    import numpy as np

    breaks = np.flatnonzero(np.diff(cells) != 1) + 1
    for part in np.split(cells, breaks):
        yield int(part[0]), len(part)
