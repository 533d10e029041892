"""A decoder as an OpenVINO model, from the header and the blocks of a GGUF file.

The graph is that of a stateful decoder, as OpenVINO's own converters make it; `paged` turns its state into tensors that the
caller allocates. The plug-in recognises RMS norms, rotations, products with compressed weights and paged attention by their
shape in the graph, so it is written exactly as they come out of those converters; `count_kinds` tells whether it did.

Source: Hugging Face's Llama, Qwen2 and Qwen3 (transformers); build_* of llama.cpp for what GGUF stores differently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.backends.openvino.weights import GROUP, TYPES, Packed, join_rows, unpack
from edge.errors import UnsupportedError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from edge.formats.gguf import GGUFHeader, TensorInfo

__all__ = ["ARCHITECTURES", "Shape", "build", "count_kinds", "read_shape"]

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Of GGUF files that this graph is right for."""
_TO_THE_END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Shape:
    """Numbers of a decoder.

    Attributes:
        n_layer, n_head, n_head_kv, head_dim, n_embd, n_vocab: as in the header.
        epsilon: of the RMS norms.
        frequencies: rotation of each pair of a head's numbers, radians a position, shape (head_dim / 2,).
        is_interleaved: pairs are neighbours in the file (Llama), not the two halves of a head.
    """

    n_layer: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_embd: int
    n_vocab: int
    epsilon: float
    frequencies: npt.NDArray[np.float32]
    is_interleaved: bool


class _Weights:
    """The tensors of the file, by name."""

    def __init__(self, path: Path, header: GGUFHeader) -> None:
        self._data = np.memmap(path, np.uint8, "r", offset=header.data_offset)
        self._tensors = {tensor.name: tensor for tensor in header.tensors}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def tensor(self, name: str) -> TensorInfo:
        if name not in self._tensors:
            raise UnsupportedError(f"The file has no tensor {name}, which this kind of model needs.", "Use --backend llamacpp.")
        return self._tensors[name]

    def matrix(self, name: str) -> Packed:
        tensor = self.tensor(name)
        return unpack(tensor.type, self._data[tensor.offset : tensor.offset + tensor.size_bytes], tensor.shape)

    def vector(self, name: str) -> npt.NDArray[np.float32]:
        return self.matrix(name).dense().reshape(-1)


def read_shape(header: GGUFHeader, path: Path) -> Shape:
    """Return the numbers of a decoder.

    Raises:
        UnsupportedError: the model is of a kind that this graph is not right for; which one, and what to do.
    """
    reason = why_not(header)
    if reason:
        raise UnsupportedError(f"The openvino backend cannot run {path.name}: {reason}.", "Use --backend llamacpp.")
    arch, n_head = header.architecture, header.n_head
    assert isinstance(n_head, int) and isinstance(header.n_head_kv, int)

    def number(key: str, default: float) -> float:
        value = header.metadata.get(f"{arch}.{key}", default)
        return float(value) if isinstance(value, (int, float)) else default

    half = header.head_dim_k // 2
    frequencies = number("rope.freq_base", 10_000.0) ** (-np.arange(half, dtype=np.float64) / half)
    if header.metadata.get(f"{arch}.rope.scaling.type") == "linear":
        frequencies = frequencies / number("rope.scaling.factor", 1.0)
    weights = _Weights(path, header)
    if "rope_freqs.weight" in weights:
        frequencies = frequencies / weights.vector("rope_freqs.weight")[:half]
    return Shape(
        n_layer=header.n_layer,
        n_head=n_head,
        n_head_kv=header.n_head_kv,
        head_dim=header.head_dim_k,
        n_embd=header.n_embd,
        n_vocab=header.n_vocab,
        epsilon=number("attention.layer_norm_rms_epsilon", 1e-5),
        frequencies=frequencies.astype(np.float32),
        is_interleaved=arch == "llama",
    )


def why_not(header: GGUFHeader) -> str:
    """Return why this graph is not right for a model; "" if it is."""
    arch = header.architecture
    about = header.metadata
    rotated = about.get(f"{arch}.rope.dimension_count", header.head_dim_k)
    unknown = sorted({tensor.type for tensor in header.tensors} - set(TYPES))
    names = {tensor.name.split(".", 2)[-1] if tensor.name.startswith("blk.") else tensor.name for tensor in header.tensors}
    checks = (
        (arch not in ARCHITECTURES, f"its architecture is {arch}, and {', '.join(ARCHITECTURES)} are known"),
        (isinstance(header.n_head, tuple) or isinstance(header.n_head_kv, tuple), "its layers have different numbers of heads"),
        (header.head_dim_k != header.head_dim_v, "its keys and values have different lengths"),
        (rotated != header.head_dim_k, f"it rotates {rotated} of {header.head_dim_k} numbers of a head"),
        (
            about.get(f"{arch}.rope.scaling.type", "none") not in ("none", "linear"),
            "its positions are scaled in an unknown way",
        ),
        (bool(header.sliding_window), "it has a sliding window"),
        (bool(about.get(f"{arch}.expert_count", 0)), "it has experts"),
        (bool(unknown), f"it has weights of the type {', '.join(unknown)}"),
        (bool(names - _NAMES), f"it has tensors of an unknown kind ({', '.join(sorted(names - _NAMES)[:3])})"),
        (header.n_embd % GROUP != 0, "its width is no multiple of 32"),
    )
    return next((text for is_wrong, text in checks if is_wrong), "")


_NAMES = {"token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"} | {
    f"{name}.weight"
    for name in (
        "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm", "ffn_norm", "ffn_gate",
        "ffn_up", "ffn_down",
    )
} | {f"attn_{part}.bias" for part in "qkv"}  # fmt: skip


def build(ov: Any, path: Path, header: GGUFHeader) -> Any:
    """Return the model, with paged attention: an `openvino.Model`.

    Inputs beside keys and values: input_ids, position_ids i64 [tokens]; past_lens, subsequence_begins, block_indices,
    block_indices_begins i32; max_context_len i32 []; rows i64 [n], the tokens whose logits are wanted. Output: logits f32
    [n, n_vocab].

    Raises:
        UnsupportedError: see `read_shape`.
        ImportError: this version of OpenVINO has no such transformation.
    """
    from openvino._offline_transformations import paged_attention_transformation

    shape = read_shape(header, path)
    model = _Builder(ov, shape, _Weights(path, header)).model()
    paged_attention_transformation(model)
    return model


def count_kinds(ov: Any, compiled: Any) -> Counter[str]:
    """Return how many operations of each kind the compiled model has: "FullyConnected", "RoPE", "RMS", "PagedAttention", ..."""
    return Counter(str(node.get_rt_info()["layerType"].value) for node in compiled.get_runtime_model().get_ops())


class _Builder:
    """Writes one decoder."""

    def __init__(self, ov: Any, shape: Shape, weights: _Weights) -> None:
        from openvino import opset15

        self._ov, self._op, self._shape, self._weights = ov, opset15, shape, weights
        self._assigns: list[Any] = []
        self._variables: list[Any] = []

    def model(self) -> Any:
        op, ov, shape = self._op, self._ov, self._shape
        ids = self._parameter("input_ids", [-1, -1], ov.Type.i64)
        mask = self._parameter("attention_mask", [-1, -1], ov.Type.i64)
        positions = self._parameter("position_ids", [-1, -1], ov.Type.i64)
        beam = self._parameter("beam_idx", [-1], ov.Type.i32)
        rows = self._parameter("rows", [-1], ov.Type.i64)
        head = self._weights.matrix("token_embd.weight")
        table = self._compressed(head)
        x = op.convert(op.gather(table, ids, op.constant(np.int64(0))), "f32")
        self._batch = op.gather(op.shape_of(ids), op.constant(np.array([0])), op.constant(np.int64(0)))
        self._beam = beam
        cos, sin = self._rotation(positions)
        attention = self._mask(ids, mask)
        for layer in range(shape.n_layer):
            x = self._layer(layer, x, cos, sin, attention)
        x = op.gather(x, rows, op.constant(np.int64(0)))  # [tokens, 1, width] behind the transformation
        x = self._norm(x, "output_norm.weight")
        if "output.weight" in self._weights:
            table = self._compressed(self._weights.matrix("output.weight"))
        logits = op.matmul(x, op.convert(table, "f32"), False, True)
        result = op.result(op.reshape(logits, op.constant(np.array([-1, shape.n_vocab])), False), name="logits")
        result.get_output_tensor(0).set_names({"logits"})
        return ov.Model([result], self._assigns, [ids, mask, positions, beam, rows], self._variables)

    def _parameter(self, name: str, dims: Sequence[int], kind: Any) -> Any:
        made = self._op.parameter(list(dims), kind, name=name)
        made.get_output_tensor(0).set_names({name})
        return made

    def _layer(self, layer: int, x: Any, cos: Any, sin: Any, mask: Any) -> Any:
        op, shape, name = self._op, self._shape, f"blk.{layer}"
        h, kv, width = shape.n_head, shape.n_head_kv, shape.head_dim
        q, k, v = self._projections(name, self._norm(x, f"{name}.attn_norm.weight"))
        q, k = self._heads(q, h, f"{name}.attn_q_norm.weight"), self._heads(k, kv, f"{name}.attn_k_norm.weight")
        q, k, v = self._rotate(q, cos, sin), self._rotate(k, cos, sin), self._heads(v, kv)
        k, v = self._state(f"past_key_values.{layer}.key", k), self._state(f"past_key_values.{layer}.value", v)
        repeated = [self._repeat(part, h // kv) for part in (k, v)]
        a = op.scaled_dot_product_attention(q, *repeated, mask, causal=False)
        a = op.reshape(op.transpose(a, op.constant([0, 2, 1, 3])), op.constant(np.array([0, 0, h * width])), True)
        x = op.add(x, self._product(a, self._weights.matrix(f"{name}.attn_output.weight")))
        gate, up = self._gate_and_up(name, self._norm(x, f"{name}.ffn_norm.weight"))
        y = op.multiply(op.swish(gate), up)
        return op.add(x, self._product(y, self._weights.matrix(f"{name}.ffn_down.weight")))

    def _projections(self, name: str, x: Any) -> list[Any]:
        op, shape, weights = self._op, self._shape, self._weights
        sizes = [count * shape.head_dim for count in (shape.n_head, shape.n_head_kv, shape.n_head_kv)]
        parts = [weights.matrix(f"{name}.attn_{part}.weight") for part in "qkv"]
        if shape.is_interleaved:
            parts[:2] = [part.rows(_halves(part.shape[0], shape.head_dim)) for part in parts[:2]]
        joined = join_rows(parts)
        if joined is not None:
            products = op.variadic_split(
                self._product(x, joined), op.constant(np.int64(2)), op.constant(np.array(sizes, np.int64))
            ).outputs()
        else:
            products = [self._product(x, part) for part in parts]
        found = []
        for part, product in zip("qkv", products, strict=True):
            if f"{name}.attn_{part}.bias" in weights:
                bias = weights.vector(f"{name}.attn_{part}.bias")
                if shape.is_interleaved and part != "v":
                    bias = bias[_halves(len(bias), shape.head_dim)]
                product = op.add(product, op.constant(bias[None, None]))
            found.append(product)
        return found

    def _gate_and_up(self, name: str, x: Any) -> list[Any]:
        op = self._op
        parts = [self._weights.matrix(f"{name}.ffn_{part}.weight") for part in ("gate", "up")]
        joined = join_rows(parts)
        if joined is None:
            return [self._product(x, part) for part in parts]
        sizes = np.array([part.shape[0] for part in parts], np.int64)
        return list(op.variadic_split(self._product(x, joined), op.constant(np.int64(2)), op.constant(sizes)).outputs())

    def _heads(self, x: Any, n_head: int, norm: str = "") -> Any:
        """Split the width into heads: [batch, heads, tokens, head_dim]."""
        op = self._op
        x = op.reshape(x, op.constant(np.array([0, 0, n_head, self._shape.head_dim])), True)
        if norm and norm in self._weights:
            x = self._norm(x, norm)
        return op.transpose(x, op.constant([0, 2, 1, 3]))

    def _state(self, name: str, new: Any) -> Any:
        """Append to a state, and return all of it."""
        op, ov, shape = self._op, self._ov, self._shape
        dims = [-1, shape.n_head_kv, -1, shape.head_dim]
        info = ov.op.util.VariableInfo()
        info.data_shape, info.data_type, info.variable_id = ov.PartialShape(dims), ov.Type.f32, name
        variable = ov.op.util.Variable(info)
        empty = op.concat([self._batch, op.constant(np.array([shape.n_head_kv, 0, shape.head_dim]))], 0)
        past = op.read_value(op.broadcast(op.constant(np.float32(0)), empty), variable)
        past = op.gather(past, self._beam, op.constant(np.int64(0)))
        both = op.concat([past, new], 2)
        self._assigns.append(op.assign(both, variable))
        self._variables.append(variable)
        return both

    def _repeat(self, x: Any, n: int) -> Any:
        """Give each query head its key head."""
        if n == 1:
            return x
        op, shape = self._op, self._shape
        dims = op.shape_of(x)
        zero = op.constant(np.int64(0))
        length = op.gather(dims, op.constant(np.array([2])), zero)
        target = op.concat(
            [self._batch, op.constant(np.array([shape.n_head_kv, n])), length, op.constant(np.array([shape.head_dim]))], 0
        )
        wide = op.broadcast(op.unsqueeze(x, op.constant(np.int64(2))), target, broadcast_spec="BIDIRECTIONAL")
        return op.reshape(wide, op.constant(np.array([0, shape.n_head, -1, shape.head_dim])), True)

    def _mask(self, ids: Any, mask: Any) -> Any:
        """Write the causal mask. The transformation drops it, and needs it to recognise the attention."""
        op = self._op
        zero, one = op.constant(np.int64(0)), op.constant(np.int64(1))
        n_new = op.squeeze(op.gather(op.shape_of(ids), op.constant(np.array([1])), zero), zero)
        n_all = op.squeeze(op.gather(op.shape_of(mask), op.constant(np.array([1])), zero), zero)
        columns = op.unsqueeze(op.range(zero, n_all, one, "i64"), zero)
        rows = op.unsqueeze(op.range(op.subtract(n_all, n_new), n_all, one, "i64"), one)
        allowed = op.unsqueeze(op.less_equal(columns, rows), op.constant(np.array([0, 1])))
        return op.select(allowed, op.constant(np.float32(0)), op.constant(np.float32(-65504.0)))

    def _rotation(self, positions: Any) -> tuple[Any, Any]:
        op, shape = self._op, self._shape
        frequencies = op.constant(shape.frequencies[None, :, None])
        one = op.constant(np.array([1]))
        wide = op.broadcast(frequencies, op.concat([self._batch, one, one], 0), broadcast_spec="BIDIRECTIONAL")
        angles = op.matmul(wide, op.convert(op.unsqueeze(positions, op.constant(np.int64(1))), "f32"), False, False)
        angles = op.transpose(angles, op.constant([0, 2, 1]))
        both = op.concat([angles, angles], -1)
        axis = op.constant(np.int64(1))
        return op.unsqueeze(op.cos(both), axis), op.unsqueeze(op.sin(both), axis)

    def _rotate(self, x: Any, cos: Any, sin: Any) -> Any:
        op, half = self._op, self._shape.head_dim // 2

        def part(start: int, stop: int) -> Any:
            return op.slice(x, *(op.constant(np.array([value])) for value in (start, stop, 1, 3)))

        turned = op.concat([op.multiply(part(half, _TO_THE_END), op.constant(np.float32(-1))), part(0, half)], -1)
        return op.add(op.multiply(x, cos), op.multiply(turned, sin))

    def _norm(self, x: Any, name: str) -> Any:
        op = self._op
        square = op.reduce_mean(op.power(x, op.constant(np.float32(2))), op.constant(np.array([-1])), keep_dims=True)
        epsilon = op.constant(np.full((1, 1, 1), self._shape.epsilon, np.float32))
        scale = op.divide(op.constant(np.float32(1)), op.sqrt(op.add(square, epsilon)))
        return op.multiply(op.multiply(x, scale), op.constant(self._weights.vector(name)))

    def _product(self, x: Any, weights: Packed) -> Any:
        op = self._op
        return op.matmul(x, op.convert(self._compressed(weights), "f32"), False, True)

    def _compressed(self, weights: Packed) -> Any:
        """Return the expression of a matrix in f16, which the plug-in keeps compressed."""
        op = self._op
        if weights.scales is None:
            return op.constant(weights.values.reshape(weights.shape).astype(np.float16))
        whole = op.convert(self._constant(weights.values, weights.bits), "f16")
        if weights.zeros is not None:
            zeros = np.full(weights.scales.shape, weights.zeros, np.uint8) if isinstance(weights.zeros, int) else weights.zeros
            whole = op.subtract(whole, op.convert(self._constant(zeros, weights.bits), "f16"))
        whole = op.multiply(whole, op.constant(weights.scales))
        return op.reshape(whole, op.constant(np.array(weights.shape)), False)

    def _constant(self, values: npt.NDArray[Any], bits: int) -> Any:
        """Return a constant that owns its bytes."""
        if bits == 8:
            return self._op.constant(np.ascontiguousarray(values))
        flat = values.reshape(-1)
        tensor = self._ov.Tensor(self._ov.Type.u4, self._ov.Shape(values.shape))
        tensor.data.reshape(-1).view(np.uint8)[:] = flat[0::2] | (flat[1::2] << 4)
        return self._op.constant(tensor)


def _halves(n_rows: int, head_dim: int) -> npt.NDArray[np.int64]:
    """Return the order of rows that turns neighbours into the two halves of a head."""
    one = np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])
    order: npt.NDArray[np.int64] = (np.arange(0, n_rows, head_dim)[:, None] + one).reshape(-1)
    return order
