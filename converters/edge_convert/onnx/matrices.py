"""Puts the matrices of a model into the weight file and the products with them into the graph, in one of three ways: the blocks
of a GGUF as they are, quantised anew, or in float32."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edge_convert.onnx.blocks import BLOCK, BLOCK_TYPES, Blocks, BlockType, quantise_rows, round_rows
from edge_convert.onnx.external import WeightFile
from edge_convert.onnx.nodes import Nodes
from edge_convert.onnx.sources import Weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Matrices", "Rows", "Stored"]

_EMBEDDING = "model.embed_tokens"
_PIECE_WEIGHTS = 1 << 16
"""Weights that are quantised at a time, on each thread: the search takes 50 bytes for each."""
_FLOAT_WEIGHTS = 1 << 24
"""Weights in float32 at a time."""


class Rows(NamedTuple):
    """Rows [start, stop) of a matrix of the model, by its name in a checkpoint."""

    name: str
    start: int
    stop: int


class Stored(NamedTuple):
    """A matrix in the weight file: names of its tensors, "" for none.

    Attributes:
        base: its name in the graph.
        kind: of its blocks; None in float32.
        n_rows, n_columns: of the matrix.
        codes, scale, zero, rest: see `Blocks`; rest is transposed. In float32 codes are the weights, transposed.
    """

    base: str
    kind: BlockType | None
    n_rows: int
    n_columns: int
    codes: str
    scale: str = ""
    zero: str = ""
    rest: str = ""


class Matrices:
    """See the module.

    Args:
        weights: of the model.
        file: for the weights.
        nodes: of the graph.
        precision: "int4", "int8" or "fp32".
        accuracy_level: of MatMulNBits.
        on_weights: called with the number of weights whenever some are written; may raise to stop.
    """

    def __init__(
        self,
        weights: Weights,
        file: WeightFile,
        nodes: Nodes,
        *,
        precision: str,
        accuracy_level: int,
        on_weights: Callable[[int], None],
    ) -> None:
        self._weights, self._file, self._nodes = weights, file, nodes
        self._precision, self._accuracy_level, self._on_weights = precision, accuracy_level, on_weights
        self._sums: dict[str, str] = {}

    def carried_type(self, parts: Sequence[Rows]) -> BlockType | None:
        """Return the type in which a matrix of these parts is carried over; None if it is not, or they have several."""
        if self._precision != "int4":
            return None
        kinds = {BLOCK_TYPES.get(self._weights.block_type(part.name) or "") for part in parts}
        return kinds.pop() if len(kinds) == 1 else None

    def can_join(self, parts: Sequence[Rows]) -> bool:
        """Return whether matrices of these rows can be one: their blocks are carried over and have one type, or none are."""
        kinds = {self.carried_type([part]) for part in parts}
        return len(kinds) == 1

    def product(self, base: str, parts: Sequence[Rows], x: str, *, is_sensitive: bool = False) -> str:
        """Write a matrix and multiply by it; see `write` and `multiply`."""
        return self.multiply(self.write(base, parts, is_sensitive=is_sensitive), x)

    def write(self, base: str, parts: Sequence[Rows], *, is_sensitive: bool = False) -> Stored:
        """Write a matrix.

        Args:
            base: its name in the graph: "model.layers.0.mlp.up_proj".
            parts: its rows.
            is_sensitive: 8 bits, where others are quantised to 4.
        """
        if self._precision == "fp32":
            return self._write_floats(base, parts)
        kind = self.carried_type(parts)
        if kind:
            return self._write(base, parts, kind, lambda rows: self._weights.block_rows(*rows))
        bits = 8 if is_sensitive or self._precision == "int8" else 4
        return self._write(
            base, parts, BlockType(bits), lambda rows: quantise_rows(self._weights.rows(*rows), bits), has_zero=True
        )

    def multiply(self, stored: Stored, x: str, *, output: str = "") -> str:
        """Multiply x by a matrix; the result is called `output`, or has a name of its own."""
        nodes = self._nodes
        node = "/" + stored.base.replace(".", "/").replace("layers/", "layers.") + "/MatMul"
        if stored.kind is None:
            return nodes.add("MatMul", node, [x, stored.codes], output=output)
        inputs = [x, stored.codes, stored.scale, *([stored.zero] if stored.zero else [])]
        options: dict[str, Any] = {
            "K": stored.n_columns,
            "N": stored.n_rows,
            "accuracy_level": self._accuracy_level,
            "bits": stored.kind.bits,
            "block_size": stored.kind.block,
        }
        name = f"{node}_Q{stored.kind.bits}"
        if not stored.rest:
            return nodes.add("MatMulNBits", name, inputs, output=output, is_contrib=True, **options)
        result = nodes.add("MatMulNBits", name, inputs, is_contrib=True, **options)
        rest = nodes.add("MatMul", f"{node}/rest", [self._block_sums(x, stored.kind.block), stored.rest])
        return nodes.add("Add", f"{node}/sum", [result, rest], output=output)

    def embedding(self, rows: Rows, ids: str, head: Stored | None) -> str:
        """Look up tokens.

        Args:
            rows: the whole matrix.
            ids: the tokens.
            head: of the last product, if the embedding shares its weights.
        """
        node, n_columns = "/model/embed_tokens", self._n_columns(rows)
        if head and head.kind is None:
            table = self._nodes.add("Transpose", f"{node}/Transpose", [head.codes], perm=[1, 0])
            return self._nodes.add("Gather", f"{node}/Gather", [table, ids])
        if head:
            return self._look_up(node, head, ids)
        kind = self.carried_type([rows])
        if kind:
            stored = self._write(_EMBEDDING, [rows], kind, lambda piece: self._weights.block_rows(*piece))
            return self._look_up(node, stored, ids)
        if self._precision != "fp32" and n_columns % BLOCK == 0:
            rounded = lambda piece: round_rows(self._weights.rows(*piece))  # noqa: E731
            return self._look_up(node, self._write(_EMBEDDING, [rows], BlockType(8), rounded), ids)
        name = f"{_EMBEDDING}.weight"
        region = self._file.reserve(name, np.float32, (rows.stop - rows.start, n_columns))
        for piece in self._pieces([rows], n_columns, _FLOAT_WEIGHTS):
            region.write(self._weights.rows(*piece))
            self._on_weights((piece.stop - piece.start) * n_columns)
        return self._nodes.add("Gather", f"{node}/Gather", [name, ids])

    # -- nodes

    def _block_sums(self, x: str, block: int) -> str:
        """Return the sums of the inputs of each block; matrices that read the same input share them."""
        if x not in self._sums:
            shape = self._nodes.integers([0, 0, -1, block])
            split = self._nodes.add("Reshape", f"{x}/blocks", [x, shape])
            axes = self._nodes.integers([-1])
            self._sums[x] = self._nodes.add("ReduceSum", f"{x}/block_sums", [split, axes], keepdims=0)
        return self._sums[x]

    def _look_up(self, node: str, stored: Stored, ids: str) -> str:
        kind, nodes = stored.kind, self._nodes
        assert kind is not None
        n_blocks, codes = -(-stored.n_columns // kind.block), stored.codes
        if stored.base != _EMBEDDING:
            flat = nodes.integers([stored.n_rows, n_blocks * kind.block * kind.bits // 8])
            codes = nodes.add("Reshape", f"{node}/Reshape", [codes, flat])
        inputs = [codes, ids, stored.scale, *([stored.zero] if stored.zero else [])]
        options: dict[str, Any] = {"bits": kind.bits, "block_size": kind.block, "gather_axis": 0, "quantize_axis": 1}
        found = nodes.add("GatherBlockQuantized", f"{node}/GatherBlockQuantized", inputs, is_contrib=True, **options)
        if stored.rest:
            by_token = nodes.add("Transpose", f"{node}/rest/Transpose", [stored.rest], perm=[1, 0])
            rest = nodes.add("Gather", f"{node}/rest/Gather", [by_token, ids])
            rest = nodes.add("Unsqueeze", f"{node}/rest/Unsqueeze", [rest, nodes.integers([-1])])
            split = nodes.add("Reshape", f"{node}/blocks", [found, nodes.integers([0, 0, -1, kind.block])])
            whole = nodes.add("Add", f"{node}/sum", [split, rest])
            found = nodes.add("Reshape", f"{node}/joined", [whole, nodes.integers([0, 0, -1])])
        if stored.n_columns % kind.block:
            limits = [nodes.integers([0]), nodes.integers([stored.n_columns]), nodes.integers([-1])]
            found = nodes.add("Slice", f"{node}/Slice", [found, *limits])
        return found

    # -- weights

    def _n_columns(self, rows: Rows) -> int:
        shape = self._weights.shape(rows.name)
        assert shape is not None
        return shape[1]

    def _write_floats(self, base: str, parts: Sequence[Rows]) -> Stored:
        """Write a matrix in float32, transposed."""
        pieces = [self._weights.rows(*part) for part in parts]
        whole = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        n_rows, n_columns = whole.shape
        name = f"{base}.MatMul.weight"
        region = self._file.reserve(name, np.float32, (n_columns, n_rows))
        step = max(1, _FLOAT_WEIGHTS // n_rows)
        for start in range(0, n_columns, step):
            region.write(whole[:, start : start + step].T)
            self._on_weights(n_rows * min(step, n_columns - start))
        return Stored(base, None, n_rows, n_columns, name)

    def _write(
        self, base: str, parts: Sequence[Rows], kind: BlockType, blocks_of: Callable[[Rows], Blocks], *, has_zero: bool = False
    ) -> Stored:
        """Write a matrix in blocks of a kind, which `blocks_of` returns of some rows."""
        n_columns = self._n_columns(parts[0])
        n_rows = sum(part.stop - part.start for part in parts)
        n_blocks, per_byte = -(-n_columns // kind.block), 8 // kind.bits
        is_table = base == _EMBEDDING  # looked up, not multiplied with
        names = [f"{base}.MatMul.weight_{end}" for end in (f"Q{kind.bits}G{kind.block}", "scale", "zp")]
        names = [f"{base}.qweight", f"{base}.scales", ""] if is_table else names
        of_block = kind.block // per_byte
        codes = self._file.reserve(
            names[0], np.uint8, (n_rows, n_blocks * of_block) if is_table else (n_rows, n_blocks, of_block)
        )
        scale = self._file.reserve(names[1], np.float32, (n_rows, n_blocks))
        zero = self._file.reserve(names[2], np.uint8, (n_rows, -(-n_blocks // per_byte))) if has_zero else None
        rest: list[NDArray[np.float32]] = []
        for blocks in _in_threads(blocks_of, self._pieces(parts, n_columns, _PIECE_WEIGHTS)):
            codes.write(blocks.packed())
            scale.write(blocks.scale)
            if zero:
                zero.write(blocks.packed_zero())
            if blocks.rest is not None:
                rest.append(blocks.rest)
            self._on_weights(len(blocks.codes) * n_columns)
        added = self._file.add(f"{base}.rest.MatMul.weight", np.concatenate(rest).T) if rest else ""
        return Stored(base, kind, n_rows, n_columns, names[0], names[1], names[2] if zero else "", added)

    @staticmethod
    def _pieces(parts: Sequence[Rows], n_columns: int, n_weights: int) -> Iterator[Rows]:
        step = max(1, n_weights // n_columns)
        for part in parts:
            for start in range(part.start, part.stop, step):
                yield Rows(part.name, start, min(start + step, part.stop))


def _in_threads(work: Callable[[Rows], Blocks], pieces: Iterable[Rows]) -> Iterator[Blocks]:
    """Yield the results in order; a few pieces are in memory at a time."""
    n_threads = os.cpu_count() or 1
    with ThreadPoolExecutor(n_threads) as pool:
        waiting: deque[Future[Blocks]] = deque()
        for piece in pieces:
            waiting.append(pool.submit(work, piece))
            if len(waiting) > n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
