"""An ONNX file, read without its package and without trusting it: inputs, outputs, weights and where their bytes are.

Weights are not loaded, only located. `only_last_logits` rewrites a decoder to compute the logits of a prompt's last position
only.

Source: onnx.proto3 of ONNX (IR version 10); only the fields named here are needed.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edge.errors import ModelFileError
from edge.files import open_file
from edge.formats.protobuf import Message, ProtobufError, bytes_field, fields, number_field

__all__ = ["FIRST_LOGITS", "Graph", "Port", "Weight", "check_external_files", "only_last_logits", "read_graph"]

FIRST_LOGITS = "edge/first_logits"
"""An optional input that `only_last_logits` adds, int64 of shape (1,): -n for the logits of the last n positions, else -1."""

_MAX_NESTING = 8
_MAX_NODES = 1_000_000
_AGAIN = "Download or convert the model again."
# TensorProto.DataType -> bits of an element; text tensors have none.
_BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
_TYPE_NAMES = {1: "f32", 10: "f16", 16: "bf16", 6: "i32", 7: "i64", 2: "u8", 3: "i8", 17: "f8", 18: "f8"}
# Field numbers.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_WEIGHT, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP, _NODE_ATTRIBUTE = 1, 2, 4, 5
_FUNCTION_NODE, _PORT_NAME = 7, 1
_ATTRIBUTE_NAME, _ATTRIBUTE_INT = 1, 3
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL = 1, 2, 8, 9, 13
_FLOAT, _INT64 = 1, 7
# Operators between the matrix product of the output layer and the logits: casts, scaling, Gemma's soft cap.
_ELEMENTWISE = ("Cast", "Mul", "Div", "Tanh", "Add", "Identity")
_PRODUCTS = ("MatMul", "MatMulNBits", "Gemm")


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the graph.

    Attributes:
        name: "input_ids", ...
        type: "f32", "f16", "i64", ...; "" for unusual ones.
        dims: lengths, None where one is free.
    """

    name: str
    type: str
    dims: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Weight:
    """A constant tensor.

    Attributes:
        name: of the tensor.
        type: as in Port.
        size_bytes: of its data.
        file: of its data, relative to the folder of the model; "" when it is in the model file.
        offset: of its first byte there.
    """

    name: str
    type: str
    size_bytes: int
    file: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX file.

    Attributes:
        inputs, outputs: of the main graph.
        weights: all constant tensors, those of nested graphs too.
        ops: number of each operator in the main graph.
        bits: bits of the weights of MatMulNBits -> number of them.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    weights: tuple[Weight, ...]
    ops: Counter[str]
    bits: Counter[int]


def read_graph(path: Path) -> Graph:
    """Read a model file without its weights.

    Raises:
        ModelFileError: it cannot be read, or is damaged.
    """
    reader = _Reader()
    try:
        model = Message(_map(path))
        for graph in model.all(_MODEL_GRAPH):
            reader.read_graph(graph, 0)
        for function in model.all(_MODEL_FUNCTIONS):
            for node in Message(function).all(_FUNCTION_NODE):
                reader.read_node(node, 1)
    except ProtobufError as error:
        raise ModelFileError(f"{path} is not an ONNX model, or is damaged: {error}.", _AGAIN) from error
    if not reader.inputs or not reader.ops:
        raise ModelFileError(f"{path} is not an ONNX model: it has no graph.", _AGAIN)
    return Graph(tuple(reader.inputs), tuple(reader.outputs), tuple(reader.weights), reader.ops, reader.bits)


def check_external_files(path: Path, graph: Graph) -> int:
    """Check that all weights are where the model says, inside its folder.

    Args:
        path: the model file.
        graph: of `read_graph`.

    Returns:
        Bytes of all weights.

    Raises:
        ModelFileError: a file lies outside of the folder, is missing, or is too short.
    """
    folder = path.parent.resolve()
    sizes: dict[str, int] = {}
    for weight in graph.weights:
        if not weight.file:
            continue
        if weight.file not in sizes:
            sizes[weight.file] = _external_size(path, folder, weight.file)
        if weight.offset + weight.size_bytes > sizes[weight.file]:
            raise ModelFileError(f"{path.parent / weight.file} is cut off: {weight.name} is not in it.", _AGAIN)
    return sum(weight.size_bytes for weight in graph.weights)


def only_last_logits(data: bytes, logits: str) -> bytes | None:
    """Rewrite a decoder so that it computes the logits of the last position only, or of the last ones (FIRST_LOGITS).

    A Slice before the output layer keeps those positions of the hidden states. The other layers, keys and values stay as they
    are.

    Args:
        data: the model file.
        logits: name of its output.

    Returns:
        The rewritten file, or None where the output layer is of an unknown kind.

    Raises:
        ProtobufError: the model is damaged.
    """
    places = [(start, end) for number, _, start, end in fields(memoryview(data)) if number == _MODEL_GRAPH]
    if len(places) != 1:
        raise ProtobufError(f"it has {len(places)} graphs")
    ((start, end),) = places
    (graph,) = Message(memoryview(data)).all(_MODEL_GRAPH)
    nodes: dict[str, tuple[str, list[str], int, int]] = {}  # name of an output -> operator, inputs, place
    constants: set[str] = set()
    place_of_output = (0, 0)
    for number, _, first, last in fields(graph):
        if number == _GRAPH_NODE:
            node = Message(graph[first:last]).inner(number)
            op, inputs, outputs = node.text(_NODE_OP), node.texts(_NODE_INPUT), node.texts(_NODE_OUTPUT)
            nodes |= dict.fromkeys(outputs, (op, inputs, first, last))
            if op == "Constant":
                constants.update(outputs)
        elif number == _GRAPH_WEIGHT:
            constants.add(Message(graph[first:last]).inner(number).text(_TENSOR_NAME))
        elif number == _GRAPH_OUTPUT and Message(graph[first:last]).inner(number).text(_PORT_NAME) == logits:
            place_of_output = (first, last)
    name = logits
    while name in nodes and nodes[name][0] in _ELEMENTWISE:
        name = next((each for each in nodes[name][1] if each not in constants), "")
    op, inputs, first, last = nodes.get(name, ("", [], 0, 0))
    if op not in _PRODUCTS or not inputs or inputs[0] in constants or not place_of_output[1]:
        return None
    edits = [
        (first, last, bytes_field(_GRAPH_NODE, _slice("edge/last_hidden", inputs[0])) + _with_input(graph, first, last)),
        (*place_of_output, b""),
        (len(graph), len(graph), _last_only(graph, place_of_output)),
    ]
    edited, position = bytearray(), 0
    for edit_start, edit_end, new in sorted(edits):
        edited += graph[position:edit_start]
        edited += new
        position = edit_end
    return data[:start] + bytes_field(_MODEL_GRAPH, bytes(edited)) + data[end:]


class _Reader:
    """Collects inputs, outputs, weights and operators of a graph and the graphs inside it."""

    def __init__(self) -> None:
        self.inputs: list[Port] = []
        self.outputs: list[Port] = []
        self.weights: list[Weight] = []
        self.ops: Counter[str] = Counter()
        self.bits: Counter[int] = Counter()
        self._n_nodes = 0

    def read_graph(self, data: memoryview, depth: int) -> None:
        if depth > _MAX_NESTING:
            raise ProtobufError("graphs are nested too deeply")
        graph = Message(data)
        for node in graph.all(_GRAPH_NODE):
            self.read_node(node, depth)
        self._add_weights(graph.all(_GRAPH_WEIGHT), graph.all(_GRAPH_SPARSE))
        if depth == 0:
            self.inputs += [_port(port) for port in graph.all(_GRAPH_INPUT)]
            self.outputs += [_port(port) for port in graph.all(_GRAPH_OUTPUT)]

    def read_node(self, data: memoryview, depth: int) -> None:
        self._n_nodes += 1
        if self._n_nodes > _MAX_NODES:
            raise ProtobufError(f"it has more than {_MAX_NODES:,} nodes")
        node = Message(data)
        op, is_top = node.text(_NODE_OP), depth == 0
        if is_top:
            self.ops[op] += 1
        for attribute in map(Message, node.all(_NODE_ATTRIBUTE)):
            self._add_weights(attribute.all(*_ATTRIBUTE_TENSORS), attribute.all(*_ATTRIBUTE_SPARSE))
            for graph in attribute.all(*_ATTRIBUTE_GRAPHS):
                self.read_graph(graph, depth + 1)
            bits = attribute.number(_ATTRIBUTE_INT)
            if is_top and op == "MatMulNBits" and bits is not None and attribute.text(_ATTRIBUTE_NAME) == "bits":
                self.bits[bits] += 1

    def _add_weights(self, tensors: Iterable[memoryview], sparse: Iterable[memoryview]) -> None:
        values_and_indices = (part for data in sparse for part in Message(data).all(1, 2))
        self.weights += [_weight(data) for data in (*tensors, *values_and_indices)]


def _map(path: Path) -> memoryview:
    """Map a file; it is unmapped when the last view is gone."""
    try:
        with open_file(path) as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise ModelFileError(f"{path} is empty.", _AGAIN) from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.", "Check its permissions and the disk.") from error


def _external_size(path: Path, folder: Path, name: str) -> int:
    relative = PurePosixPath(name)
    file = path.parent / relative
    if relative.is_absolute() or ".." in relative.parts or "\\" in name or not file.resolve().is_relative_to(folder):
        raise ModelFileError(
            f"{path} stores weights in {name}, which is not in its own folder. edge does not read files from elsewhere.",
            "Copy the file itself (not a link to it) beside the model, or get the model from a source you trust.",
        )
    try:
        if not file.is_file():
            raise ModelFileError(f"{file} is missing: {path.name} stores its weights there.", _AGAIN)
        return file.stat().st_size
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read: {error.strerror}.", "Check its permissions.") from error


def _weight(data: memoryview) -> Weight:
    tensor = Message(data)
    name, kind, dims = tensor.text(_TENSOR_NAME), tensor.number(_TENSOR_TYPE) or 0, tensor.numbers(_TENSOR_DIMS)
    if any(length < 0 for length in dims):
        raise ProtobufError(f"the tensor {name} has a negative length")
    size = (math.prod(dims) * _BITS.get(kind, 0) + 7) // 8
    kind_name = _TYPE_NAMES.get(kind, "")
    external = {pair.text(1): pair.text(2) for pair in map(Message, tensor.all(_TENSOR_EXTERNAL))}
    if not external:
        raw = tensor.all(_TENSOR_RAW)
        return Weight(name, kind_name, len(raw[-1]) if raw else size)
    first, n_bytes = external.get("offset") or "0", external.get("length") or str(size)
    if not (first.isdecimal() and n_bytes.isdecimal() and len(first + n_bytes) < 40) or int(n_bytes) != size:
        raise ProtobufError(f"the tensor {name} does not say where its {size:,} bytes are")
    return Weight(name, kind_name, size, external.get("location") or ".", int(first))


def _port(data: memoryview) -> Port:
    """Read a ValueInfoProto: its name, and inside of type.tensor_type the element type and the shape."""
    port = Message(data)
    tensor = port.inner(2).inner(1)
    dims = tuple(Message(dim).number(1) for dim in tensor.inner(2).all(1))
    return Port(port.text(_PORT_NAME), _TYPE_NAMES.get(tensor.number(1) or 0, ""), dims)


def _slice(output: str, hidden: str) -> bytes:
    """Encode the node Slice(hidden, starts, ends, axes): the last positions. `_last_only` adds its numbers as weights."""
    names = [hidden, FIRST_LOGITS, "edge/last_end", "edge/last_axis"]
    inputs = b"".join(bytes_field(_NODE_INPUT, name.encode()) for name in names)
    return inputs + bytes_field(_NODE_OUTPUT, output.encode()) + bytes_field(3, b"edge/last") + bytes_field(_NODE_OP, b"Slice")


def _with_input(graph: memoryview, first: int, last: int) -> bytes:
    """Encode the node at this place with the slice as its first input."""
    (node,) = Message(graph[first:last]).all(_GRAPH_NODE)
    edited, is_first = bytearray(), True
    for number, _, start, end in fields(node):
        if number == _NODE_INPUT and is_first:
            edited += bytes_field(_NODE_INPUT, b"edge/last_hidden")
            is_first = False
        else:
            edited += node[start:end]
    return bytes_field(_GRAPH_NODE, bytes(edited))


def _last_only(graph: memoryview, place: tuple[int, int]) -> bytes:
    """Encode the constants of the slice, the input that overrides one of them, and the output with fewer positions."""
    start = bytes_field(2, bytes_field(1, number_field(1, _INT64) + bytes_field(2, bytes_field(1, number_field(1, 1)))))
    added = bytes_field(_GRAPH_INPUT, bytes_field(1, FIRST_LOGITS.encode()) + start)
    for name, value in ((FIRST_LOGITS, -1), ("edge/last_end", 2**63 - 1), ("edge/last_axis", 1)):
        tensor = number_field(_TENSOR_DIMS, 1) + number_field(_TENSOR_TYPE, _INT64)
        tensor += bytes_field(_TENSOR_NAME, name.encode())
        tensor += bytes_field(_TENSOR_RAW, value.to_bytes(8, "little", signed=True))
        added += bytes_field(_GRAPH_WEIGHT, tensor)
    (output,) = Message(graph[place[0] : place[1]]).all(_GRAPH_OUTPUT)
    port = _port(output)
    kind = next((code for code, name in _TYPE_NAMES.items() if name == port.type), _FLOAT)
    dims = (None, None, *port.dims[2:])
    shape = b"".join(bytes_field(1, b"" if dim is None else number_field(1, dim)) for dim in dims)
    tensor_type = number_field(1, kind) + bytes_field(2, shape)
    value_info = bytes_field(1, port.name.encode()) + bytes_field(2, bytes_field(1, tensor_type))
    return added + bytes_field(_GRAPH_OUTPUT, value_info)
