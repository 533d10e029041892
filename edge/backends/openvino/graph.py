"""A decoder as an OpenVINO model, from the header and the blocks of a GGUF file.

The graph is that of a stateful decoder, as OpenVINO's own converters make it; `build` turns its state into tensors that the
caller allocates. The plug-in recognises RMS norms, rotations, products with compressed weights and paged attention by their
shape in the graph, so it is written exactly as they come out of those converters; `count_kinds` tells whether it did.

Source: Hugging Face's Llama, Mistral, Qwen2, Qwen3, Phi3, Gemma3, SmolLM3, Granite and Olmo2 (transformers); build_* of
llama.cpp for what GGUF stores differently.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.backends.openvino.weights import Packed, join_rows
from edge.errors import BackendError

if TYPE_CHECKING:
    import numpy.typing as npt

    from edge.backends.openvino.rotation import Rotation
    from edge.backends.openvino.shape import Shape
    from edge.backends.openvino.tensors import Tensors

__all__ = ["ATTENTION", "Graph", "NoPagedAttentionError", "build", "check_kinds", "count_kinds"]

ATTENTION = "PagedAttentionExtension"
"""The operation of paged attention."""
_WINDOW_INPUT = 10  # which of its inputs is the window
_TO_THE_END = np.iinfo(np.int64).max


class NoPagedAttentionError(BackendError):
    """Paged attention is missing, or does not take the model."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A decoder that was written.

    Attributes:
        model: the `openvino.Model`.
        expected: how many operations of each kind the compiled model must have, as `count_kinds` returns them; with fewer it
            would be right, and many times slower.
    """

    model: Any
    expected: Counter[str]


def build(ov: Any, shape: Shape, tensors: Tensors, *, is_paged: bool = True) -> Graph:
    """Return the model, with paged attention or with keys and values as its state.

    Paged, it has these inputs beside keys and values: input_ids, position_ids i64 [tokens]; past_lens, subsequence_begins,
    block_indices, block_indices_begins i32; max_context_len i32 []; rows i64 [n], the tokens whose logits are wanted. With a
    state: input_ids, position_ids i64 [1, tokens]; attention_mask i64 [1, past and tokens]; beam_idx i32 [1]; rows. Output:
    logits f32 [n, n_vocab].

    Raises:
        UnsupportedError: the file lacks a tensor.
        NoPagedAttentionError: this version of OpenVINO has none, or none for this model.
    """
    graph = _Builder(ov, shape, tensors, is_paged=is_paged).graph()
    if is_paged:
        try:
            from openvino._offline_transformations import paged_attention_transformation

            paged_attention_transformation(graph.model)
        except (ImportError, RuntimeError, TypeError) as error:  # private, so it may change
            raise NoPagedAttentionError(f"OpenVINO has no paged attention for this model ({error})") from error
        _check_windows(graph.model, shape)
    return graph


def count_kinds(ov: Any, compiled: Any) -> Counter[str]:
    """Return how many operations of each kind the compiled model has.

    They are "FullyConnected", "RoPE", "RMS", "PagedAttention", ...; products also by the type of their weights, such as
    "FullyConnected u4".
    """
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ops():
        about = node.get_rt_info()
        kind = str(about["layerType"].value)
        found[kind] += 1
        if kind == "FullyConnected":
            found[f"{kind} {about['runtimePrecision'].value}"] += 1
    return found


def _check_windows(model: Any, shape: Shape) -> None:
    """Refuse a model whose windows were not recognised. The operation has a constant 0 for a layer that sees everything."""
    sources = [op.input_value(_WINDOW_INPUT).get_node() for op in model.get_ops() if op.get_type_name() == ATTENTION]
    n_found = sum(node.get_type_name() != "Constant" or bool(node.data.any()) for node in sources)
    n_expected = sum(window > 0 for window in shape.windows)
    if n_found != n_expected:
        raise NoPagedAttentionError(f"OpenVINO recognises the windows of {n_found} of {n_expected} layers of the model.")


def check_kinds(kinds: Mapping[str, int], expected: Mapping[str, int]) -> None:
    """Refuse a model whose patterns the plug-in did not recognise: it would be right, and many times slower.

    Raises:
        NoPagedAttentionError: it is the attention.
        BackendError: it is anything else.
    """
    for kind, n_expected in expected.items():
        if kinds.get(kind, 0) < n_expected:
            text = (
                f"This version of OpenVINO recognises {kinds.get(kind, 0)} of {n_expected} operations of the model as {kind}."
            )
            if kind == "PagedAttention":
                raise NoPagedAttentionError(text)
            raise BackendError(text, "Use --backend llamacpp, and report this.")


class _Builder:
    """Writes one decoder."""

    def __init__(self, ov: Any, shape: Shape, tensors: Tensors, *, is_paged: bool) -> None:
        from openvino import opset15

        self._is_paged = is_paged
        self._ov, self._op, self._shape, self._tensors = ov, opset15, shape, tensors
        self._assigns: list[Any] = []
        self._variables: list[Any] = []
        self._expected: Counter[str] = Counter()

    def graph(self) -> Graph:
        op, ov, shape = self._op, self._ov, self._shape
        ids = self._parameter("input_ids", [-1, -1], ov.Type.i64)
        mask = self._parameter("attention_mask", [-1, -1], ov.Type.i64)
        positions = self._parameter("position_ids", [-1, -1], ov.Type.i64)
        beam = self._parameter("beam_idx", [-1], ov.Type.i32)
        rows = self._parameter("rows", [-1], ov.Type.i64)
        head = self._tensors.matrix("token_embd.weight")
        table = self._compressed(head)
        x = op.convert(op.gather(table, ids, op.constant(np.int64(0))), "f32")
        x = self._scaled(x, shape.embedding_scale)
        self._batch = op.gather(op.shape_of(ids), op.constant(np.array([0])), op.constant(np.int64(0)))
        self._beam = beam
        turns = {window: self._rotation(positions, shape.rotation_of(window)) for window in set(shape.windows)}
        masks = {window: self._mask(ids, mask, window) for window in set(shape.windows)}
        for layer, window in enumerate(shape.windows):
            x = self._layer(layer, x, *turns[window], masks[window])
        x = op.gather(x, rows, op.constant(np.int64(0 if self._is_paged else 1)))  # paged it is [tokens, 1, width]
        x = self._norm(x, "output_norm.weight")
        if "output.weight" in self._tensors:
            table = self._compressed(self._tensors.matrix("output.weight"))
        logits = self._scaled(op.matmul(x, op.convert(table, "f32"), False, True), shape.logit_scale)
        self._expected["FullyConnected"] += 1
        result = op.result(op.reshape(logits, op.constant(np.array([-1, shape.n_vocab])), False), name="logits")
        result.get_output_tensor(0).set_names({"logits"})
        model = ov.Model([result], self._assigns, [ids, mask, positions, beam, rows], self._variables)
        return Graph(model, self._expected)

    def _parameter(self, name: str, dims: Sequence[int], kind: Any) -> Any:
        made = self._op.parameter(list(dims), kind, name=name)
        made.get_output_tensor(0).set_names({name})
        return made

    def _layer(self, layer: int, x: Any, cos: Any, sin: Any, mask: Any) -> Any:
        op, shape, name = self._op, self._shape, f"blk.{layer}"
        h, kv, width = shape.n_head, shape.n_head_kv, shape.head_dim
        q, k, v = self._projections(name, self._norm_if_any(x, f"{name}.attn_norm.weight"))
        q, k = self._heads(q, h, f"{name}.attn_q_norm.weight"), self._heads(k, kv, f"{name}.attn_k_norm.weight")
        q, k = (self._rotate(part, cos, sin) if shape.rotates[layer] else part for part in (q, k))
        v = self._heads(v, kv)
        k, v = self._state(f"past_key_values.{layer}.key", k), self._state(f"past_key_values.{layer}.value", v)
        repeated = [self._repeat(part, h // kv) for part in (k, v)]
        a = op.scaled_dot_product_attention(q, *repeated, mask, op.constant(np.float32(shape.score_scale)), causal=False)
        self._expected["PagedAttention" if self._is_paged else "ScaledDotProductAttention"] += 1
        a = op.reshape(op.transpose(a, op.constant([0, 2, 1, 3])), op.constant(np.array([0, 0, h * width])), True)
        a = self._product(a, self._tensors.matrix(f"{name}.attn_output.weight"))
        x = op.add(x, self._scaled(self._norm_if_any(a, f"{name}.post_attention_norm.weight"), shape.branch_scale))
        gate, up = self._gate_and_up(name, self._norm_if_any(x, f"{name}.ffn_norm.weight"))
        y = op.multiply(op.gelu(gate, "TANH") if shape.is_gelu else op.swish(gate), up)
        y = self._product(y, self._tensors.matrix(f"{name}.ffn_down.weight"))
        return op.add(x, self._scaled(self._norm_if_any(y, f"{name}.post_ffw_norm.weight"), shape.branch_scale))

    def _scaled(self, x: Any, factor: float) -> Any:
        return x if factor == 1 else self._op.multiply(x, self._op.constant(np.float32(factor)))

    def _projections(self, name: str, x: Any) -> list[Any]:
        op, shape, tensors = self._op, self._shape, self._tensors
        sizes = [count * shape.head_dim for count in (shape.n_head, shape.n_head_kv, shape.n_head_kv)]
        if f"{name}.attn_qkv.weight" in tensors:
            products = self._split(self._product(x, tensors.matrix(f"{name}.attn_qkv.weight")), sizes)
        else:
            parts = [tensors.matrix(f"{name}.attn_{part}.weight") for part in "qkv"]
            if shape.is_interleaved:
                parts[:2] = [part.rows(_halves(part.shape[0], shape.head_dim)) for part in parts[:2]]
            products = self._products(x, parts)
        found = []
        for part, product in zip("qkv", products, strict=True):
            if f"{name}.attn_{part}.bias" in tensors:
                bias = tensors.vector(f"{name}.attn_{part}.bias")
                if shape.is_interleaved and part != "v":
                    bias = bias[_halves(len(bias), shape.head_dim)]
                product = op.add(product, op.constant(bias[None, None]))
            found.append(product)
        return found

    def _gate_and_up(self, name: str, x: Any) -> list[Any]:
        up = self._tensors.matrix(f"{name}.ffn_up.weight")
        if f"{name}.ffn_gate.weight" in self._tensors:
            parts = [self._tensors.matrix(f"{name}.ffn_gate.weight"), up]
            # In floats, taking a joined product apart costs more than one product less saves. Two of plain weights would be
            # fused with what is between them, which divides by zero for small ones (2026.4.1).
            if self._tensors.in_floats and all(part.scales is not None for part in parts):
                return [self._product(x, part) for part in parts]
            return self._products(x, parts)
        half = up.shape[0] // 2  # both in one tensor (Phi-3)
        return self._split(self._product(x, up), [half, half])

    def _products(self, x: Any, parts: Sequence[Packed]) -> list[Any]:
        """Return the products with several matrices, computed as one where they have the same format."""
        joined = join_rows(parts)
        if joined is None:
            return [self._product(x, part) for part in parts]
        return self._split(self._product(x, joined), [part.shape[0] for part in parts])

    def _split(self, x: Any, sizes: Sequence[int]) -> list[Any]:
        op = self._op
        return list(op.variadic_split(x, op.constant(np.int64(2)), op.constant(np.array(sizes, np.int64))).outputs())

    def _heads(self, x: Any, n_head: int, norm: str = "") -> Any:
        """Split the width into heads: [batch, heads, tokens, head_dim]; a norm is over each head, or over all (OLMo 2)."""
        op = self._op
        if norm in self._tensors and len(self._tensors.vector(norm)) == n_head * self._shape.head_dim:
            x, norm = self._norm(x, norm), ""
        x = op.reshape(x, op.constant(np.array([0, 0, n_head, self._shape.head_dim])), True)
        return op.transpose(self._norm_if_any(x, norm), op.constant([0, 2, 1, 3]))

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

    def _mask(self, ids: Any, mask: Any, window: int) -> Any:
        """Write the causal mask, in a window if it is not 0.

        The transformation drops it, and needs it to recognise the attention; a window has to look as in a gpt-oss that was
        exported from transformers.
        """
        op = self._op
        zero, one = op.constant(np.int64(0)), op.constant(np.int64(1))
        n_new = op.squeeze(op.gather(op.shape_of(ids), op.constant(np.array([1])), zero), zero)
        n_all = op.squeeze(op.gather(op.shape_of(mask), op.constant(np.array([1])), zero), zero)
        columns = op.unsqueeze(op.range(zero, n_all, one, "i64"), op.constant(np.array([0, 1, 2])))
        rows = op.unsqueeze(op.range(op.subtract(n_all, n_new), n_all, one, "i64"), op.constant(np.array([0, 1, 3])))
        allowed = op.less_equal(columns, rows)
        if window:
            inside, yes = op.greater(columns, op.add(rows, op.constant(np.int64(-window)))), op.constant(np.array(True))
            allowed = op.bitwise_and(op.bitwise_and(yes, op.bitwise_and(op.bitwise_and(allowed, inside), yes)), yes)
            allowed = op.broadcast(allowed, op.shape_of(allowed))
        scores = op.select(allowed, op.constant(np.float32(0)), op.constant(np.float32(-65504.0)))
        if not window:
            return scores
        end = op.unsqueeze(n_all, zero)
        return op.slice(scores, op.constant(np.array([0])), end, op.constant(np.array([1])), op.constant(np.array([3])))

    def _rotation(self, positions: Any, rotation: Rotation) -> tuple[Any, Any]:
        op = self._op
        frequencies = op.constant(rotation.frequencies.astype(np.float32)[None, :, None])
        one = op.constant(np.array([1]))
        wide = op.broadcast(frequencies, op.concat([self._batch, one, one], 0), broadcast_spec="BIDIRECTIONAL")
        angles = op.matmul(wide, op.convert(op.unsqueeze(positions, op.constant(np.int64(1))), "f32"), False, False)
        angles = op.transpose(angles, op.constant([0, 2, 1]))
        both = op.concat([angles, angles], -1)
        cos, sin = op.cos(both), op.sin(both)
        if rotation.scale != 1:
            cos, sin = (op.multiply(part, op.constant(np.float32(rotation.scale))) for part in (cos, sin))
        axis = op.constant(np.int64(1))
        return op.unsqueeze(cos, axis), op.unsqueeze(sin, axis)

    def _rotate(self, x: Any, cos: Any, sin: Any) -> Any:
        op, half = self._op, len(self._shape.rotation.frequencies)

        def part(of: Any, start: int, stop: int) -> Any:
            return op.slice(of, *(op.constant(np.array([value])) for value in (start, stop, 1, 3)))

        self._expected["RoPE"] += 1
        is_partial = 2 * half < self._shape.head_dim
        first = part(x, 0, 2 * half) if is_partial else x
        turned = op.concat([op.multiply(part(first, half, _TO_THE_END), op.constant(np.float32(-1))), part(first, 0, half)], -1)
        first = op.add(op.multiply(first, cos), op.multiply(turned, sin))
        return op.concat([first, part(x, 2 * half, _TO_THE_END)], -1) if is_partial else first

    def _norm_if_any(self, x: Any, name: str) -> Any:
        return self._norm(x, name) if name in self._tensors else x

    def _norm(self, x: Any, name: str) -> Any:
        op = self._op
        square = op.reduce_mean(op.power(x, op.constant(np.float32(2))), op.constant(np.array([-1])), keep_dims=True)
        epsilon = op.constant(np.full((1, 1, 1), self._shape.epsilon, np.float32))
        scale = op.divide(op.constant(np.float32(1)), op.sqrt(op.add(square, epsilon)))
        self._expected["RMS"] += 1
        return op.multiply(op.multiply(x, scale), op.constant(self._tensors.vector(name)))

    def _product(self, x: Any, weights: Packed) -> Any:
        op = self._op
        self._expected["FullyConnected"] += 1
        return op.matmul(x, op.convert(self._compressed(weights), "f32"), False, True)

    def _compressed(self, weights: Packed) -> Any:
        """Return the expression of a matrix in f16, which the plug-in keeps compressed."""
        op = self._op
        if weights.scales is None:
            return op.constant(weights.values.reshape(weights.shape).astype(np.float16))
        whole = op.convert(self._constant(weights.values, weights.bits), "f16")
        if weights.zeros is not None:
            zeros = np.full(weights.scales.shape, weights.zeros, np.uint8) if isinstance(weights.zeros, int) else weights.zeros
            is_whole = zeros.dtype == np.uint8
            whole = op.subtract(
                whole, op.convert(self._constant(zeros, weights.bits), "f16") if is_whole else op.constant(zeros)
            )
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
