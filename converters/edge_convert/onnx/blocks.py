"""Carries the int4 and int8 blocks of a GGUF over into an ONNX model, so that nothing is quantised a second time.

A GGUF block of 32 weights is w = d * q + m (Q4_1), d * (q - 8) (Q4_0) or d * q with a signed q (Q8_0). MatMulNBits of ONNX
Runtime computes d * (q - z) with one scale per block, z = 8 for 4 bits and 128 for 8 bits. Q4_0 and Q8_0 therefore fit as they
are. For Q4_1 the zero point -m/d is not an integer, as the fast kernels of MatMulNBits need; so the rest, c = m + 8 d for each
block, is added as a small MatMul over the sums of each 32 inputs:

    x . w = sum_b d_b * (x_b . (q_b - 8)) + sum_b c_b * sum(x_b)

which is exact, and costs one float32 value per block (1 bit a weight).

Source: MatMulNBits and GatherBlockQuantized in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from edge.errors import UsageError
from edge_convert.gguf.blocks import BLOCK, BLOCK_BYTES, checkpoint_rows, unpack_blocks

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Blocks", "can_carry", "carry_blocks", "read_blocks", "shrink_embedding"]

_PART_WEIGHTS = 1 << 20  # dequantised at a time; a whole embedding would take gigabytes
# The model builder's name of a matrix -> the GGUF tensors that are stacked in it.
_MATRICES = {
    "attn.qkv_proj": ("attn_q", "attn_k", "attn_v"),
    "attn.q_proj": ("attn_q",),
    "attn.k_proj": ("attn_k",),
    "attn.v_proj": ("attn_v",),
    "attn.o_proj": ("attn_output",),
    "mlp.gate_proj": ("ffn_gate",),
    "mlp.up_proj": ("ffn_up",),
    "mlp.down_proj": ("ffn_down",),
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.MatMul\.weight")


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix of n_rows x n_columns weights in blocks of 32 along a row: scale * (codes - 2 ** (bits - 1)) + rest.

    Attributes:
        bits: 4 or 8.
        codes: uint8 [n_rows, n_columns], one code a weight.
        scale: float32 [n_rows, n_columns / 32].
        rest: float32 [n_rows, n_columns / 32]; None where it is 0 everywhere.
    """

    bits: int
    codes: NDArray[np.uint8]
    scale: NDArray[np.float32]
    rest: NDArray[np.float32] | None

    def packed(self) -> NDArray[np.uint8]:
        """Return the codes as MatMulNBits stores them, uint8 [n_rows, n_columns / 32, 4 * bits], low half of a byte first."""
        rows = self.codes.reshape(len(self.codes), -1, BLOCK)
        if self.bits == 8:
            return rows
        packed: NDArray[np.uint8] = np.bitwise_or(rows[..., 0::2], np.left_shift(rows[..., 1::2], 4), dtype=np.uint8)
        return packed

    def dequantised(self) -> NDArray[np.float32]:
        """Return the weights, float32 [n_rows, n_columns]."""
        codes = self.codes.reshape(len(self.codes), -1, BLOCK).astype(np.float32) - 2 ** (self.bits - 1)
        values: NDArray[np.float32] = codes * self.scale[..., None]
        if self.rest is not None:
            values += self.rest[..., None]
        return values.reshape(self.codes.shape)

    def rows(self, order: NDArray[np.int64] | slice) -> Blocks:
        """Return some of the rows, or all of them in another order."""
        rest = None if self.rest is None else self.rest[order]
        return Blocks(self.bits, self.codes[order], self.scale[order], rest)


def can_carry(source: Path) -> bool:
    """Return whether the blocks of all matrices of a GGUF fit, so that `carry_blocks` leaves nothing in float."""
    matrices = [tensor for tensor in gguf.GGUFReader(source).tensors if len(tensor.shape) > 1]
    return bool(matrices) and all(tensor.tensor_type.name in BLOCK_BYTES for tensor in matrices)


def read_blocks(kind: str, data: NDArray[np.uint8]) -> Blocks:
    """Unpack GGUF blocks; see `unpack_blocks` for the arguments."""
    codes, scale, least = unpack_blocks(kind, data)
    factor = scale.astype(np.float32)
    if kind == "Q8_0":
        return Blocks(8, codes.view(np.uint8) ^ np.uint8(0x80), factor, None)  # signed -> offset by 128
    return Blocks(4, codes.view(np.uint8), factor, None if least is None else least.astype(np.float32) + 8 * factor)


def carry_blocks(
    model: Path, source: Path, out: Path, on_progress: Callable[[str, float], None], *, accuracy_level: int
) -> None:
    """Replace the float matrices of an ONNX model with the blocks of the GGUF that its checkpoint was read from.

    Args:
        model: model.onnx in float32, written by onnxruntime-genai's model builder.
        source: a GGUF that `can_carry` accepts.
        out: the new model.onnx; its weights go beside it as model.onnx.data.
        on_progress: called with what is done, and its share (0 to 1).
        accuracy_level: of MatMulNBits: 4 computes with int8 activations, 1 with float32.

    Raises:
        UsageError: the weights of the model are not those of the source, or a matrix has no counterpart there.
    """
    import onnx_ir as ir

    graph_model = ir.load(model)
    reader = _Source(source)
    work = [node for node in graph_model.graph if node.op_type == "MatMul" and _is_weight(node)]
    editor = _Editor(graph_model, accuracy_level)
    for done, node in enumerate(work):
        weight = node.inputs[1]
        on_progress("carrying blocks over", done / len(work))
        blocks = reader.matrix(weight.name)
        _check_same(weight.name, weight.const_value, blocks)
        editor.replace(node, blocks)
    editor.replace_embedding(reader.embedding())
    editor.save(out)


def shrink_embedding(model: Path, out: Path) -> bool:
    """Quantise an embedding that the head does not share to 8 bits, where the builder leaves it in float32.

    Args:
        model: model.onnx.
        out: the new one; its weights go beside it as model.onnx.data.

    Returns:
        Whether there was one; if not, nothing is written.
    """
    import onnx_ir as ir

    editor = _Editor(ir.load(model), accuracy_level=0)
    gather = editor.find_embedding()
    weight = gather.inputs[0].const_value if gather is not None else None
    if weight is None or weight.shape[1] % BLOCK:
        return False
    editor.replace_embedding(read_blocks("Q8_0", gguf.quants.quantize(weight.numpy(), gguf.GGMLQuantizationType.Q8_0)))
    editor.save(out)
    return True


def _is_weight(node: Any) -> bool:
    weight = node.inputs[1]
    return weight is not None and weight.const_value is not None and weight.name.endswith(".MatMul.weight")


class _Source:
    """The matrices of a GGUF by the model builder's names."""

    def __init__(self, path: Path) -> None:
        self._reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._architecture = self._field("general.architecture")
        self._n_head = self._field(f"{self._architecture}.attention.head_count")
        self._n_head_kv = self._field(f"{self._architecture}.attention.head_count_kv") or self._n_head

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        return field.contents() if field else None

    def matrix(self, name: str) -> Blocks:
        """Return the blocks of a matrix of the ONNX model; its rows are the outputs."""
        if name == "lm_head.MatMul.weight":
            return self._blocks("output.weight" if "output.weight" in self._tensors else "token_embd.weight")
        found = _LAYER.fullmatch(name)
        parts = _MATRICES.get(found[2]) if found else None
        if found is None or parts is None:
            raise UsageError(f"{name} has no counterpart in the GGUF, so its blocks cannot be carried over.", _OTHERWISE)
        pieces = [self._blocks(f"blk.{found[1]}.{part}.weight") for part in parts]
        if len(pieces) == 1:
            return pieces[0]
        if len({piece.bits for piece in pieces}) > 1:
            raise UsageError(f"The parts of {name} have different widths in the GGUF.", _OTHERWISE)
        rest = None
        if any(piece.rest is not None for piece in pieces):
            rest = np.concatenate([piece.rest if piece.rest is not None else 0 * piece.scale for piece in pieces])
        codes, scale = np.concatenate([piece.codes for piece in pieces]), np.concatenate([piece.scale for piece in pieces])
        return Blocks(pieces[0].bits, codes, scale, rest)

    def embedding(self) -> Blocks:
        """Return the blocks of the token embedding, a row per token."""
        return self._blocks("token_embd.weight")

    def _blocks(self, name: str) -> Blocks:
        tensor = self._tensors.get(name)
        if tensor is None or tensor.tensor_type.name not in BLOCK_BYTES:
            kind = f"of type {tensor.tensor_type.name}" if tensor else "missing"
            raise UsageError(f"{name} is {kind} in the GGUF, so its blocks cannot be carried over.", _OTHERWISE)
        blocks = read_blocks(tensor.tensor_type.name, tensor.data)
        if self._architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            n_head = self._n_head if "attn_q" in name else self._n_head_kv
            return blocks.rows(checkpoint_rows(len(blocks.codes), n_head))
        return blocks


_OTHERWISE = "Convert without the source GGUF: the weights are then quantised again."


def _check_same(name: str, weight: Any, blocks: Blocks) -> None:
    """Refuse a checkpoint that does not hold the weights of the GGUF, but for rounding to 16 bits."""
    held = weight.numpy().T
    is_same = held.shape == blocks.codes.shape
    if is_same:
        difference = largest = 0.0
        step = max(1, _PART_WEIGHTS // held.shape[1])
        for start in range(0, len(held), step):
            exact = blocks.rows(slice(start, start + step)).dequantised()
            largest = max(largest, float(np.abs(exact).max()))
            difference = max(difference, float(np.abs(held[start : start + step] - exact).max()))
        is_same = difference <= largest / 128
    if not is_same:
        raise UsageError(
            f"{name} of the checkpoint differs from the source GGUF, so the checkpoint was changed since.", _OTHERWISE
        )


class _Editor:
    """Replaces float matrices with blocks in a graph of onnx_ir."""

    def __init__(self, model: Any, accuracy_level: int) -> None:
        self._model, self._graph = model, model.graph
        self._accuracy_level = accuracy_level
        self._sums: dict[str, Any] = {}
        self._head: tuple[Any, Any] | None = None
        model.opset_imports.setdefault("com.microsoft", 1)

    def _constant(self, name: str, array: Any) -> Any:
        import onnx_ir as ir

        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
            self._graph.register_initializer(value)
        return self._graph.initializers[name]

    def _node(self, op: str, name: str, inputs: list[Any], before: Any, *, domain: str = "", **attributes: Any) -> Any:
        import onnx_ir as ir

        node = ir.node(op, inputs, attributes or None, domain=domain, name=name)
        node.outputs[0].name = f"{name}/output_0"
        self._graph.insert_before(before, node)
        return node.outputs[0]

    def replace(self, node: Any, blocks: Blocks) -> None:
        """Replace a MatMul with MatMulNBits, for Q4_1 plus a MatMul of the sums."""
        source, weight, base = node.inputs[0], node.inputs[1].name, node.inputs[1].name.removesuffix(".MatMul.weight")
        n_rows, n_columns = blocks.codes.shape
        codes = self._constant(f"{base}.MatMulNBits.qweight", blocks.packed())
        scale = self._constant(f"{base}.MatMulNBits.scales", blocks.scale)
        if weight == "lm_head.MatMul.weight":
            self._head = codes, scale
        result = self._node(
            "MatMulNBits",
            f"{node.name}NBits",
            [source, codes, scale],
            node,
            domain="com.microsoft",
            K=n_columns,
            N=n_rows,
            bits=blocks.bits,
            block_size=BLOCK,
            accuracy_level=self._accuracy_level,
        )
        if blocks.rest is not None:
            rest = self._constant(f"{base}.rest.MatMul.weight", np.ascontiguousarray(blocks.rest.T))
            product = self._node("MatMul", f"{node.name}/rest", [self._block_sums(source, node), rest], node)
            result = self._node("Add", f"{node.name}/sum", [result, product], node)
        self._supersede(node, result)

    def _block_sums(self, source: Any, before: Any) -> Any:
        """Return the sums of each 32 inputs; matrices that read the same input share them."""
        if source.name not in self._sums:
            shape = self._constant("edge/blocks_shape", np.array([0, 0, -1, BLOCK], np.int64))
            axes = self._constant("edge/blocks_axis", np.array([-1], np.int64))
            split = self._node("Reshape", f"{source.name}/blocks", [source, shape], before)
            self._sums[source.name] = self._node("ReduceSum", f"{source.name}/block_sums", [split, axes], before, keepdims=0)
        return self._sums[source.name]

    def find_embedding(self) -> Any:
        """Return the node that looks up tokens in float weights, or None."""
        return next((node for node in self._graph if node.op_type == "Gather" and "embed_tokens" in (node.name or "")), None)

    def replace_embedding(self, blocks: Blocks) -> None:
        """Look up tokens in the blocks, if they have no rest; a tied embedding reads the blocks of the head."""
        gather = self.find_embedding()
        if gather is None or blocks.rest is not None:
            return
        n_rows, n_columns = blocks.codes.shape
        is_tied = gather.inputs[0].const_value is None  # a transposed head rather than a matrix of its own
        if is_tied and self._head is not None:
            codes, scale = self._head
            shape = self._constant("edge/embedding_shape", np.array([n_rows, n_columns * blocks.bits // 8], np.int64))
            codes = self._node("Reshape", "/model/embed_tokens/Reshape", [codes, shape], gather)
        else:
            codes = self._constant("model.embed_tokens.qweight", blocks.packed().reshape(n_rows, -1))
            scale = self._constant("model.embed_tokens.scales", blocks.scale)
        result = self._node(
            "GatherBlockQuantized",
            "/model/embed_tokens/GatherBlockQuantized",
            [codes, gather.inputs[1], scale],
            gather,
            domain="com.microsoft",
            bits=blocks.bits,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )
        self._supersede(gather, result)

    def _supersede(self, node: Any, result: Any) -> None:
        import onnx_ir as ir

        old = node.outputs[0]
        result.dtype, result.shape = old.dtype, old.shape
        is_output = old.is_graph_output()
        ir.convenience.replace_all_uses_with(old, result, replace_graph_outputs=True)
        if is_output:
            old.name, result.name = f"{old.name}/superseded", old.name
        self._graph.remove(node, safe=True)

    def save(self, out: Path) -> None:
        """Write the graph without unused float matrices."""
        import onnx_ir as ir

        for node in reversed(list(self._graph)):
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                self._graph.remove(node, safe=True)
        for name, value in list(self._graph.initializers.items()):
            if not value.uses():
                del self._graph.initializers[name]
        self._graph.sort()
        ir.save(self._model, out, external_data=out.name + ".data", size_threshold_bytes=256)
