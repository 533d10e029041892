"""An encoder as an ONNX graph: tokens, their mask and types in, a vector for each token out. What reads it pools.

Source: `transformers.models.bert.modeling_bert`; MultiHeadAttention in ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

from typing import Any

from onnx import ModelProto, TensorProto, helper

from edge_convert.encoder.config import EncoderConfig
from edge_convert.manifest import tool_versions
from edge_convert.onnx.external import WeightFile
from edge_convert.onnx.matrices import Matrices, Rows
from edge_convert.onnx.nodes import Nodes
from edge_convert.onnx.sources import Weights

__all__ = ["Encoder"]

_OPSETS = {"": 22, "com.microsoft": 1}
_IR_VERSION = 10


class Encoder:
    """Writes the graph and, into the weight file, all weights.

    Args:
        model: its sizes.
        weights: of the model.
        file: for the weights.
        nodes: of the graph, empty so far.
        matrices: writes the products.
    """

    def __init__(self, model: EncoderConfig, weights: Weights, file: WeightFile, nodes: Nodes, matrices: Matrices) -> None:
        self._model, self._weights, self._file, self._nodes, self._matrices = model, weights, file, nodes, matrices

    def build(self) -> ModelProto:
        """Write everything, and return the model without its weights."""
        nodes, model = self._nodes, self._model
        x = self._embed()
        mask = nodes.add("Cast", "/mask/Cast", ["attention_mask"], to=TensorProto.INT32)
        for layer in range(model.n_layers):
            x = self._layer(f"encoder.layer.{layer}", x, mask, is_last=layer == model.n_layers - 1)
        dims = ("batch_size", "sequence_length")
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, dims) for name in names]
        outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, (*dims, model.width))]
        graph = helper.make_graph(nodes.all, "main_graph", inputs, outputs, self._file.tensors)
        return helper.make_model(
            graph,
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in _OPSETS.items()],
            producer_name="edge",
            producer_version=tool_versions()["edge-assistant"],
        )

    def _embed(self) -> str:
        """Add the embeddings of tokens, positions and types."""
        nodes, model, name = self._nodes, self._model, "embeddings"
        words = self._matrices.embedding(Rows(f"{name}.word_embeddings.weight", 0, model.n_vocab), "input_ids", None)
        positions = self._table("position", model.first_position, model.n_positions)
        length = nodes.add("Shape", "/length/Shape", ["input_ids"], start=1, end=2)
        positions = nodes.add("Slice", "/positions/Slice", [positions, nodes.integers([0]), length, nodes.integers([0])])
        types = nodes.add("Gather", "/types/Gather", [self._table("token_type", 0, model.n_types), "token_type_ids"])
        x = nodes.add("Add", "/embeddings/Add", [words, types])
        return self._norm(f"{name}.LayerNorm", nodes.add("Add", "/embeddings/Add_1", [x, positions]))

    def _table(self, name: str, start: int, stop: int) -> str:
        rows = self._weights.rows(f"embeddings.{name}_embeddings.weight", start, stop)
        return self._file.add(f"embeddings.{name}_embeddings.weight", rows)

    def _layer(self, name: str, x: str, mask: str, *, is_last: bool) -> str:
        nodes, node = self._nodes, _path(name)
        parts = [self._linear(f"{name}.attention.self.{part}", x) for part in ("query", "key", "value")]
        a = nodes.add(
            "MultiHeadAttention",
            f"{node}/attention/MultiHeadAttention",
            [*parts, "", mask],
            is_contrib=True,
            num_heads=self._model.n_heads,
        )
        a = self._linear(f"{name}.attention.output.dense", a)
        x = self._norm(f"{name}.attention.output.LayerNorm", nodes.add("Add", f"{node}/attention/Add", [a, x]))
        y = nodes.add("Gelu", f"{node}/Gelu", [self._linear(f"{name}.intermediate.dense", x)])
        y = nodes.add("Add", f"{node}/Add", [self._linear(f"{name}.output.dense", y), x])
        return self._norm(f"{name}.output.LayerNorm", y, output="last_hidden_state" if is_last else "")

    def _linear(self, name: str, x: str) -> str:
        shape = self._weights.shape(f"{name}.weight")
        assert shape is not None
        found = self._matrices.product(name, [Rows(f"{name}.weight", 0, shape[0])], x)
        bias = self._file.add(f"{name}.bias", self._weights.vector(f"{name}.bias"))
        return self._nodes.add("Add", f"{_path(name)}/Add", [found, bias])

    def _norm(self, name: str, x: str, *, output: str = "") -> str:
        parts = [self._file.add(f"{name}.{part}", self._weights.vector(f"{name}.{part}")) for part in ("weight", "bias")]
        options: dict[str, Any] = {"axis": -1, "epsilon": self._model.norm_eps}
        return self._nodes.add("LayerNormalization", _path(name), [x, *parts], output=output, **options)


def _path(name: str) -> str:
    return "/" + name.replace(".", "/")
