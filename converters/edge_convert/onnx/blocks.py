"""Carry the int4 and int8 blocks of a GGUF over into an ONNX model, so that nothing is quantised a second time.

A GGUF block of 32 weights is w = d * q + m (Q4_1), d * (q - 8) (Q4_0) or d * q with a signed q (Q8_0). MatMulNBits of ONNX
Runtime computes d * (q - z) with one scale per block, z = 8 for 4 bits and 128 for 8 bits. Q4_0 and Q8_0 therefore fit as they
are. For Q4_1 the zero point -m/d is no integer, and the fast kernels of MatMulNBits take integers only; so the rest, c = m + 8
d per block, is added beside it as a small MatMul over the sums of each 32 inputs:

    x . w = sum_b d_b * (x_b . (q_b - 8)) + sum_b c_b * sum(x_b)

which is exact, and costs one float32 value per block (1 bit a weight).

Source: block layouts of ggml (ggml-common.h); MatMulNBits and GatherBlockQuantized in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["BLOCK", "Blocks", "can_carry", "carry_blocks", "read_blocks", "shrink_embedding"]

BLOCK = 32
"""Weights in a block."""

_CARRIED = ("Q4_0", "Q4_1", "Q8_0")
_PART_WEIGHTS = 1 << 20  # dequantised at a time; an embedding as a whole would take gigabytes
# What the model builder calls a matrix -> the GGUF tensors that are stacked in it.
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
        """The codes as MatMulNBits stores them: uint8 [n_rows, n_columns / 32, 4 * bits], the low half of a byte first."""
        import numpy as np

        rows = self.codes.reshape(len(self.codes), -1, BLOCK)
        if self.bits == 8:
            return rows
        packed: NDArray[np.uint8] = np.bitwise_or(rows[..., 0::2], np.left_shift(rows[..., 1::2], 4), dtype=np.uint8)
        return packed

    def dequantised(self) -> NDArray[np.float32]:
        """The weights: float32 [n_rows, n_columns]."""
        import numpy as np

        codes = self.codes.reshape(len(self.codes), -1, BLOCK).astype(np.float32) - 2 ** (self.bits - 1)
        values: NDArray[np.float32] = codes * self.scale[..., None]
        if self.rest is not None:
            values += self.rest[..., None]
        return values.reshape(self.codes.shape)

    def rows(self, order: NDArray[np.int64] | slice) -> Blocks:
        """Some of its rows, or all of them in another order."""
        rest = None if self.rest is None else self.rest[order]
        return Blocks(self.bits, self.codes[order], self.scale[order], rest)


def can_carry(source: Path) -> bool:
    """Whether all matrices of a GGUF are of types whose blocks fit, so that `carry_blocks` leaves nothing in float."""
    import gguf

    matrices = [tensor for tensor in gguf.GGUFReader(source).tensors if len(tensor.shape) > 1]
    return bool(matrices) and all(tensor.tensor_type.name in _CARRIED for tensor in matrices)


def read_blocks(kind: str, data: NDArray[np.uint8]) -> Blocks:
    """Take GGUF blocks apart.

    Args:
        kind: Q4_0, Q4_1 or Q8_0.
        data: uint8 [n_rows, bytes of a row], as in the file.
    """
    import numpy as np

    n_rows = len(data)
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    blocks = data.reshape(n_rows, -1, size)
    scale = blocks[..., :2].copy().view(np.float16)[..., 0].astype(np.float32)
    if kind == "Q8_0":
        codes = blocks[..., 2:] ^ np.uint8(0x80)  # signed -> offset by 128
        return Blocks(8, np.ascontiguousarray(codes).reshape(n_rows, -1), scale, None)
    nibbles = blocks[..., -16:]
    codes = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=-1).reshape(n_rows, -1)
    if kind == "Q4_0":
        return Blocks(4, codes, scale, None)
    least = blocks[..., 2:4].copy().view(np.float16)[..., 0].astype(np.float32)
    return Blocks(4, codes, scale, least + 8 * scale)


def carry_blocks(
    model: Path, source: Path, out: Path, on_progress: Callable[[str, float], None], *, accuracy_level: int
) -> None:
    """Replace the float matrices of an ONNX model by the blocks of the GGUF that its checkpoint was read from.

    Args:
        model: model.onnx in float32, written by onnxruntime-genai's model builder.
        source: the GGUF; `can_carry` holds.
        out: the new model.onnx; its weights go beside it as model.onnx.data.
        on_progress: called with what is being done and which part of it is done (0 to 1).
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
    """Give an embedding that the head does not share 8 bits a weight, where the builder leaves it in float32.

    Args:
        model: model.onnx.
        out: the new one; its weights go beside it as model.onnx.data.

    Returns:
        Whether there was such an embedding; if not, nothing is written.
    """
    import gguf
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
    """The GGUF, by the names that the model builder gives to matrices."""

    def __init__(self, path: Path) -> None:
        import gguf

        self._reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._architecture = self._field("general.architecture")
        self._n_head = self._field(f"{self._architecture}.attention.head_count")
        self._n_head_kv = self._field(f"{self._architecture}.attention.head_count_kv") or self._n_head

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        return field.contents() if field else None

    def matrix(self, name: str) -> Blocks:
        """The blocks of a matrix of the ONNX model, its rows being the outputs."""
        import numpy as np

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
        """The blocks of the token embedding, a row a token."""
        return self._blocks("token_embd.weight")

    def _blocks(self, name: str) -> Blocks:
        tensor = self._tensors.get(name)
        if tensor is None or tensor.tensor_type.name not in _CARRIED:
            kind = f"of type {tensor.tensor_type.name}" if tensor else "missing"
            raise UsageError(f"{name} is {kind} in the GGUF, so its blocks cannot be carried over.", _OTHERWISE)
        blocks = read_blocks(tensor.tensor_type.name, tensor.data)
        if self._architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            n_head = self._n_head if "attn_q" in name else self._n_head_kv
            return blocks.rows(_unpermuted(len(blocks.codes), n_head))
        return blocks


_OTHERWISE = "Convert without the source GGUF: the weights are then quantised anew."


def _unpermuted(n_rows: int, n_head: int) -> NDArray[np.int64]:
    """Where each row of the checkpoint is in a GGUF of the llama architecture, whose q and k rows are interleaved for its RoPE.

    Source: LlamaModel.permute in llama.cpp's conversion.
    """
    import numpy as np

    order: NDArray[np.int64] = np.arange(n_rows).reshape(n_head, n_rows // n_head // 2, 2).swapaxes(1, 2).reshape(-1)
    return order


def _check_same(name: str, weight: Any, blocks: Blocks) -> None:
    """The checkpoint may have been rounded to 16 bits, but must hold the weights of the GGUF."""
    import numpy as np

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
            f"{name} of the checkpoint is not what the source GGUF holds, so the checkpoint was changed since.", _OTHERWISE
        )


class _Editor:
    """Puts blocks in the place of float matrices in a graph of onnx_ir."""

    def __init__(self, model: Any, accuracy_level: int) -> None:
        self._model, self._graph = model, model.graph
        self._accuracy_level = accuracy_level
        self._sums: dict[str, Any] = {}
        self._heads: dict[str, tuple[Any, Any, Blocks]] = {}
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
        """One MatMul with a float matrix becomes MatMulNBits, and for Q4_1 the MatMul of the sums beside it."""
        import numpy as np

        source, weight, base = node.inputs[0], node.inputs[1].name, node.inputs[1].name.removesuffix(".MatMul.weight")
        n_rows, n_columns = blocks.codes.shape
        codes = self._constant(f"{base}.MatMulNBits.qweight", blocks.packed())
        scale = self._constant(f"{base}.MatMulNBits.scales", blocks.scale)
        if weight == "lm_head.MatMul.weight":
            self._heads[weight] = (codes, scale, blocks)
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
        """The sum of each 32 inputs; matrices that read the same input share it."""
        import numpy as np

        if source.name not in self._sums:
            shape = self._constant("edge/blocks_shape", np.array([0, 0, -1, BLOCK], np.int64))
            axes = self._constant("edge/blocks_axis", np.array([-1], np.int64))
            split = self._node("Reshape", f"{source.name}/blocks", [source, shape], before)
            self._sums[source.name] = self._node("ReduceSum", f"{source.name}/block_sums", [split, axes], before, keepdims=0)
        return self._sums[source.name]

    def find_embedding(self) -> Any:
        """The node that looks tokens up in float weights; None where there is none."""
        return next((node for node in self._graph if node.op_type == "Gather" and "embed_tokens" in (node.name or "")), None)

    def replace_embedding(self, blocks: Blocks) -> None:
        """Look tokens up in the blocks where those need no rest; a tied embedding reads the blocks of the head."""
        import numpy as np

        gather = self.find_embedding()
        if gather is None or blocks.rest is not None:
            return
        n_rows, n_columns = blocks.codes.shape
        is_tied = gather.inputs[0].const_value is None  # a transposed head rather than a matrix of its own
        if is_tied and "lm_head.MatMul.weight" in self._heads:
            codes, scale, _ = self._heads["lm_head.MatMul.weight"]
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
        """Write the graph without the float matrices that nothing reads any more."""
        import onnx_ir as ir

        for node in reversed(list(self._graph)):
            if not any(output.uses() or output.is_graph_output() for output in node.outputs):
                self._graph.remove(node, safe=True)
        for name, value in list(self._graph.initializers.items()):
            if not value.uses():
                del self._graph.initializers[name]
        self._graph.sort()
        ir.save(self._model, out, external_data=out.name + ".data", size_threshold_bytes=256)
