"""A decoder as an ONNX graph: the layers of every architecture that edge converts, with past and present KV as inputs and
outputs. Nodes and their names are those of onnxruntime-genai's model builder, whose graphs tests compare these with.

Source: the model builder of onnxruntime-genai (0.18); GroupQueryAttention and SkipSimplifiedLayerNormalization in ONNX
Runtime's ContribOperators.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edge_convert.architectures import Architecture
from edge_convert.manifest import tool_versions
from edge_convert.model_config import ModelConfig
from edge_convert.onnx.external import WeightFile
from edge_convert.onnx.matrices import Matrices, Rows, Stored
from edge_convert.onnx.nodes import Nodes
from edge_convert.onnx.rotation import frequencies, rotation_rows
from edge_convert.onnx.sources import Weights
from edge_convert.shapes import EMBEDDING, HEAD

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Decoder"]

_OPSETS = {"": 22, "com.microsoft": 1}
_IR_VERSION = 10
_TABLE_ROWS = 4096


class Decoder:
    """Writes the graph and, into the weight file, all weights.

    Args:
        model, architecture: of the model.
        weights: of the model.
        file: for the weights.
        nodes: of the graph, empty so far.
        matrices: writes the products.
    """

    def __init__(
        self,
        model: ModelConfig,
        architecture: Architecture,
        weights: Weights,
        file: WeightFile,
        nodes: Nodes,
        matrices: Matrices,
    ) -> None:
        self._model, self._architecture, self._weights = model, architecture, weights
        self._file, self._nodes, self._matrices = file, nodes, matrices
        self._length = ""

    def build(self) -> ModelProto:
        """Write everything, and return the model without its weights."""
        model, architecture, matrices = self._model, self._architecture, self._matrices
        lengths, tables = self._lengths(), self._tables()
        head = matrices.write(
            "lm_head", [Rows(EMBEDDING if self._weights.is_tied else HEAD, 0, model.n_vocab)], is_sensitive=True
        )
        x = matrices.embedding(Rows(EMBEDDING, 0, model.n_vocab), "input_ids", head if self._weights.is_tied else None)
        if model.embedding_scale != 1.0:
            scale = self._nodes.number("FLOAT", float(np.float32(model.embedding_scale)))
            x = self._nodes.add("Mul", "/model/embed_tokens/Mul", [x, scale])
        new = ""  # is added to x before the next norm
        for layer in range(model.n_layers):
            name = f"model.layers.{layer}"
            normed, x = self._enter(f"{name}.attn", f"{name}.input_layernorm" if architecture.has_pre_norms else "", x, new)
            new = self._attention(layer, normed, lengths, tables[model.layer_kinds[layer]])
            if architecture.has_post_norms:
                new = self._plain_norm(f"{name}.post_attention_layernorm", new)
            new = self._scaled(f"{name}.attn", new)
            mlp_norm = f"{name}.{architecture.mlp_norm}" if architecture.mlp_norm else ""
            normed, x = self._enter(f"{name}.mlp", mlp_norm, x, new)
            new = self._mlp(layer, normed)
            if architecture.has_post_norms:
                new = self._plain_norm(f"{name}.post_feedforward_layernorm", new)
            new = self._scaled(f"{name}.mlp", new)
        normed, _ = self._norm(f"model.layers.{model.n_layers}.final_norm_layernorm", x, new, stored="model.norm")
        self._logits(head, normed)
        return self._proto()

    # -- inputs

    def _lengths(self) -> tuple[str, str]:
        """Return the nodes with the last position of each row and the length of the longest, of the attention mask."""
        nodes, name = self._nodes, "/model/attn_mask_reformat/attn_mask_subgraph"
        ones = nodes.integers([1])
        total = nodes.add("ReduceSum", f"{name}/ReduceSum", ["attention_mask", ones], keepdims=0)
        last = nodes.add("Sub", f"{name}/Sub", [total, ones])
        last = nodes.add("Cast", f"{name}/Sub/Cast", [last], to=TensorProto.INT32)
        shape = nodes.add("Shape", f"{name}/Shape", ["attention_mask"])
        self._length = nodes.add("Gather", f"{name}/Gather", [shape, nodes.number("INT64", 1)], axis=0)
        return last, nodes.add("Cast", f"{name}/Gather/Cast", [self._length], to=TensorProto.INT32)

    def _tables(self) -> dict[str, tuple[str, str]]:
        """Write the tables of the rotary embedding. Returns kind of a layer -> its cosines and sines."""
        model, rope = self._model, self._model.rope
        if rope.kind == "longrope":
            both = self._switched_tables()
            return {"full_attention": both, "sliding_attention": both}
        ends = ("_global", "_local") if rope.local_theta is not None else ("", "")
        plain = self._table(ends[0], frequencies(model, rope.theta))
        local = plain
        if rope.local_theta is not None:
            local = self._table(ends[1], frequencies(model, rope.local_theta, "plain"))
        return {"full_attention": plain, "sliding_attention": local}

    def _table(self, end: str, angles: NDArray[np.float32]) -> tuple[str, str]:
        names = (f"cos_cache{end}", f"sin_cache{end}")
        n_positions, factor = self._model.n_positions, self._model.rope.attention_factor
        regions = [self._file.reserve(name, np.float32, (n_positions, len(angles))) for name in names]
        for start in range(0, n_positions, _TABLE_ROWS):
            rows = rotation_rows(angles, start, min(start + _TABLE_ROWS, n_positions), factor)
            for region, values in zip(regions, rows, strict=True):
                region.write(values)
        return names

    def _switched_tables(self) -> tuple[str, str]:
        """Write both tables of longrope, and the choice between them by the length of the text."""
        model, rope, name = self._model, self._model.rope, "/model/rope_caches_subgraph"
        branches = {}
        for branch, kind, size, n_positions in (
            ("then_branch", "long", "large", model.n_positions),
            ("else_branch", "short", "small", rope.original_context),
        ):
            rows = rotation_rows(frequencies(model, rope.theta, f"{kind}_factor"), 0, n_positions, rope.attention_factor)
            outputs = [f"{part}_cache_{size}" for part in ("cos", "sin")]
            constants = [
                helper.make_node(
                    "Constant", [], [output], f"/{size}/{output[:3]}_cache/Constant", value=numpy_helper.from_array(values)
                )
                for output, values in zip(outputs, rows, strict=True)
            ]
            ports = [_port(output, TensorProto.FLOAT, values.shape) for output, values in zip(outputs, rows, strict=True)]
            branches[branch] = helper.make_graph(constants, f"{size}_rope_caches_graph", [], ports)
        limit = self._nodes.number("INT64", rope.original_context)
        is_long = self._nodes.add("Greater", f"{name}/Greater", [self._length, limit])
        cos, sin = self._nodes.add_several("If", f"{name}/If", [is_long], ["cos_cache", "sin_cache"], **branches)
        return cos, sin

    # -- a layer

    def _enter(self, name: str, norm: str, x: str, new: str) -> tuple[str, str]:
        """Begin a half of a layer: add to the hidden state, and normalise where there is a norm. Returns as `_norm`."""
        if norm:
            return self._norm(norm, x, new)
        x = self._nodes.add("Add", f"{_path(name)}/residual/Add", [x, new]) if new else x
        return x, x

    def _scaled(self, name: str, x: str) -> str:
        """Scale what a half of a layer adds."""
        scale = self._model.branch_scale
        if scale == 1.0:
            return x
        return self._nodes.add("Mul", f"{_path(name)}/residual/Mul", [x, self._nodes.number("FLOAT", float(np.float32(scale)))])

    def _norm(self, name: str, x: str, new: str, *, stored: str = "") -> tuple[str, str]:
        """Add to the hidden state, and normalise. Returns the normalised and the plain one.

        Args:
            name: of the norm in the graph.
            x: the hidden state.
            new: is added; "" in the first layer.
            stored: name of the weight in a checkpoint, if it is another one.
        """
        if not new:
            return self._plain_norm(name, x), x
        weight = self._file.add(f"{name}.weight", self._weights.vector(f"{stored or name}.weight"))
        node = _path(name)
        wanted = [f"{node}/output_0", *(() if stored else ("", "", f"{node}/output_3"))]
        outputs = self._nodes.add_several(
            "SkipSimplifiedLayerNormalization",
            f"{node}/SkipLayerNorm",
            [x, new, weight],
            wanted,
            is_contrib=True,
            epsilon=self._model.norm_eps,
        )
        return outputs[0], outputs[-1]

    def _plain_norm(self, name: str, x: str) -> str:
        weight = self._file.add(f"{name}.weight", self._weights.vector(f"{name}.weight"))
        return self._normalise(f"{_path(name)}/LayerNorm", x, weight, f"{_path(name)}/output_0")

    def _normalise(self, node: str, x: str, weight: str, output: str = "") -> str:
        options: dict[str, Any] = {"axis": -1, "epsilon": self._model.norm_eps, "stash_type": 1}
        return self._nodes.add("SimplifiedLayerNormalization", node, [x, weight], output=output, **options)

    def _attention(self, layer: int, x: str, lengths: tuple[str, str], tables: tuple[str, str]) -> str:
        model, name = self._model, f"model.layers.{layer}.attn"
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        slides, rotates = model.layer_kinds[layer] == "sliding_attention", model.rotates[layer]
        output, *_ = self._nodes.add_several(
            "GroupQueryAttention",
            f"{_path(name)}/GroupQueryAttention",
            [*self._projections(layer, x), *past, *lengths, *(tables if rotates else ("", "")), "", "", ""],
            [f"{_path(name)}/GroupQueryAttention/output_0", *present],
            is_contrib=True,
            do_rotary=int(rotates),
            kv_num_heads=model.n_kv_heads,
            local_window_size=model.window if slides else -1,
            num_heads=model.n_heads,
            rotary_interleaved=0,
            scale=model.attention_scalar**-0.5,
            softcap=model.attention_cap or 0.0,
        )
        o = f"model.layers.{layer}.self_attn.o_proj"
        found = self._matrices.product(f"{name}.o_proj", [self._whole(o)], output)
        return self._with_bias(f"{name}.o_proj", [o], found)

    def _projections(self, layer: int, x: str) -> list[str]:
        """Return queries, keys and values; the first are all of them where they need not be apart."""
        model, nodes, name = self._model, self._nodes, f"model.layers.{layer}.attn"
        stored = [f"model.layers.{layer}.self_attn.{part}_proj" for part in ("q", "k", "v")]
        if "self_attn.qkv_proj" in self._architecture.block_tensors:
            stored = [f"model.layers.{layer}.self_attn.qkv_proj"]
        parts = [self._whole(each) for each in stored]
        has_norms = "self_attn.q_norm" in self._architecture.block_tensors
        is_sensitive = self._is_sensitive(layer)
        widths = [count * model.head_dim for count in (model.n_heads, model.n_kv_heads, model.n_kv_heads)]
        if len(parts) == 1 or self._matrices.can_join(parts):
            qkv = self._matrices.product(f"{name}.qkv_proj", parts, x, is_sensitive=is_sensitive)
            qkv = self._with_bias(f"{name}.qkv_proj", stored, qkv)
            if not has_norms:
                return [qkv, "", ""]
            split = f"{_path(name)}/qkv_proj/Split"
            outputs = [f"{split}/output_{n}" for n in range(3)]
            found = list(nodes.add_several("Split", split, [qkv, nodes.integers(widths)], outputs, axis=-1))
        else:
            found = []
            for part, each, rows in zip("qkv", stored, parts, strict=True):
                base = f"{name}.{part}_proj"
                product = self._matrices.product(base, [rows], x, is_sensitive=is_sensitive and part == "v")
                found.append(self._with_bias(base, [each], product))
        if has_norms:
            for index, part in enumerate("qk"):
                norm = self._wide_norm if self._architecture.has_wide_norms else self._head_norm
                found[index] = norm(layer, part, found[index], widths[index])
        return found

    def _head_norm(self, layer: int, part: str, x: str, width: int) -> str:
        """Normalise each head by itself."""
        nodes, node = self._nodes, f"/model/layers.{layer}/attn/{part}_norm"
        values = self._weights.vector(f"model.layers.{layer}.self_attn.{part}_norm.weight")
        weight = self._file.add(f"model.layers.{layer}.attn.{part}_norm.layernorm.weight", values)
        heads = nodes.add("Reshape", f"{node}/Reshape_1", [x, nodes.integers([0, -1, self._model.head_dim])])
        heads = self._normalise(f"{node}/SimplifiedLayerNormalization", heads, weight)
        return nodes.add("Reshape", f"{node}/Reshape_2", [heads, nodes.integers([0, -1, width])])

    def _wide_norm(self, layer: int, part: str, x: str, width: int) -> str:
        """Normalise all heads at once."""
        values = self._weights.vector(f"model.layers.{layer}.self_attn.{part}_norm.weight")
        weight = self._file.add(f"model.layers.{layer}.attn.{part}_norm.layernorm.weight", values)
        return self._normalise(f"/model/layers.{layer}/attn/{part}_norm/SimplifiedLayerNormalization", x, weight)

    def _mlp(self, layer: int, x: str) -> str:
        nodes, name, layer_name = self._nodes, f"model.layers.{layer}.mlp", f"model.layers.{layer}"
        stored = f"{layer_name}.mlp"
        if self._architecture.gate_up:
            both, inner = f"{layer_name}.{self._architecture.gate_up}.weight", self._model.inner
            rows = [Rows(both, 0, inner), Rows(both, inner, 2 * inner)]
        else:
            rows = [self._whole(f"{stored}.{part}") for part in ("gate_proj", "up_proj")]
        gate, up = (
            self._with_bias(f"{name}.{part}", [f"{stored}.{part}"], self._matrices.product(f"{name}.{part}", [each], x))
            for part, each in zip(("gate_proj", "up_proj"), rows, strict=True)
        )
        node = _path(name)
        if self._model.activation == "gelu":
            active = nodes.add("Gelu", f"{node}/act_fn/FastGelu", [gate], approximate="tanh")
        else:
            sigmoid = nodes.add("Sigmoid", f"{node}/act_fn/Sigmoid", [gate])
            active = nodes.add("Mul", f"{node}/act_fn/Mul", [gate, sigmoid])
        inner_state = nodes.add("Mul", f"{node}/Mul", [active, up])
        down = f"{layer_name}.{self._architecture.down}"
        found = self._matrices.product(
            f"{name}.down_proj", [self._whole(down)], inner_state, is_sensitive=self._is_sensitive(layer)
        )
        return self._with_bias(f"{name}.down_proj", [down], found)

    def _is_sensitive(self, layer: int) -> bool:
        """Return whether qkv and down projections get 8 bits: in the outer eighths, and in every third layer between.

        Source: llama.cpp's mix for Q4_K_M (`llama_tensor_get_type`), as onnxruntime-genai's builder has it.
        """
        n = self._model.n_layers
        return layer < n / 8 or layer >= 7 * n / 8 or (layer - round(n / 8)) % 3 == 2

    def _whole(self, name: str) -> Rows:
        shape = self._weights.shape(f"{name}.weight")
        assert shape is not None
        return Rows(f"{name}.weight", 0, shape[0])

    def _with_bias(self, base: str, stored: Sequence[str], x: str) -> str:
        """Add the biases of matrices, if they have some that are not all 0."""
        found = [self._weights.vector(f"{name}.bias") for name in stored if self._weights.shape(f"{name}.bias")]
        if not any(values.any() for values in found):
            return x
        assert len(found) == len(stored)
        bias = self._file.add(f"{base}.Add.bias", np.concatenate(found))
        return self._nodes.add("Add", f"{_path(base)}/Add", [x, bias])

    # -- outputs

    def _logits(self, head: Stored, x: str) -> None:
        cap, nodes, divisor = self._model.final_cap, self._nodes, self._model.logit_divisor
        if divisor != 1.0:
            size = nodes.number("FLOAT", float(np.float32(divisor)))
            nodes.add("Div", "/lm_head/Div", [self._matrices.multiply(head, x), size], output="logits")
            return
        if not cap:
            self._matrices.multiply(head, x, output="logits")
            return
        size = nodes.number("FLOAT", cap)
        scaled = nodes.add("Div", "/lm_head/softcap/Div", [self._matrices.multiply(head, x), size])
        capped = nodes.add("Tanh", "/lm_head/softcap/Tanh", [scaled])
        nodes.add("Mul", "/lm_head/softcap/Mul", [capped, size], output="logits")

    def _proto(self) -> ModelProto:
        model, kinds = self._model, TensorProto
        batch, new, total = "batch_size", "sequence_length", "total_sequence_length"
        layers = [(layer, part) for part in ("key", "value") for layer in range(model.n_layers)]

        def cache(name: str, length: str) -> ValueInfoProto:
            return _port(name, kinds.FLOAT, (batch, model.n_kv_heads, length, model.head_dim))

        inputs = [_port("input_ids", kinds.INT64, (batch, new)), _port("attention_mask", kinds.INT64, (batch, total))]
        inputs += [cache(f"past_key_values.{layer}.{part}", "past_sequence_length") for layer, part in layers]
        outputs = [_port("logits", kinds.FLOAT, (batch, new, model.n_vocab))]
        outputs += [cache(f"present.{layer}.{part}", total) for layer, part in layers]
        graph = helper.make_graph(self._nodes.all, "main_graph", inputs, outputs, self._file.tensors)
        return helper.make_model(
            graph,
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()],
            producer_name="edge",
            producer_version=tool_versions()["edge-assistant"],
        )


def _path(name: str) -> str:
    """Return the name of a node: "/model/layers.0/mlp" of "model.layers.0.mlp"."""
    return "/" + name.replace(".", "/").replace("layers/", "layers.")


def _port(name: str, kind: int, dims: Sequence[int | str]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(dims))
