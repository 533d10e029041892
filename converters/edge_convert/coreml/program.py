"""Reads an mlpackage for evaluation: functions, their steps, and the constants that they share.

It parses the weight file itself, so that the output of coremltools is checked by other code than coremltools.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import ModelFileError
from edge.formats.coreml import find_files

from .blobs import WeightFile
from .mil_ops import CONSTEXPR, OPERATIONS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["FunctionCode", "Package", "Step", "TensorType", "read_spec"]

_MAX_SPEC_BYTES = 512 << 20
# MIL.proto's numbering: (numpy type of an unpacked element, bits in the weight file)
_DTYPES: dict[int, tuple[Any, int]] = {
    1: (np.bool_, 8),
    10: (np.float16, 16),
    11: (np.float32, 32),
    21: (np.int8, 8),
    22: (np.int16, 16),
    23: (np.int32, 32),
    25: (np.int8, 4),
    31: (np.uint8, 8),
    32: (np.uint16, 16),
    33: (np.uint32, 32),
    35: (np.uint8, 4),
    36: (np.uint8, 2),
    37: (np.uint8, 1),
    38: (np.uint8, 6),
    39: (np.uint8, 3),
}
_STRING = 2
_STATE_OPERATIONS = ("read_state", "write_state")


@dataclass(frozen=True)
class TensorType:
    """Declared type of a value. dtype is None for a string."""

    dtype: Any
    shape: tuple[int, ...]
    is_state: bool = False

    @property
    def is_float(self) -> bool:
        """True if it is float32 in the evaluator."""
        return self.dtype in (np.float16, np.float32)


@dataclass
class Step:
    """One operation: names of what it reads and writes."""

    operation: str
    inputs: dict[str, str | list[str]]
    output: str
    type: TensorType
    frees: tuple[str, ...] = ()
    """Values that no later step reads."""
    in_place: bool = False
    """A slice_update of a state's own array, which the next step writes back: no copy is needed."""


@dataclass
class FunctionCode:
    """One function of a package. Weights among its constants stay float16; the rest is float32."""

    name: str
    inputs: dict[str, TensorType]
    states: dict[str, TensorType]
    outputs: dict[str, TensorType]
    steps: list[Step]
    constants: dict[str, Any]


def read_spec(path: Path) -> Any:
    """Parse a model.mlmodel, and return coremltools' Model protobuf.

    Raises:
        ModelFileError: it is damaged, too large, or not an ML program.
    """
    from google.protobuf.message import DecodeError

    from .tools import quiet_coremltools

    proto = quiet_coremltools().proto
    if path.stat().st_size > _MAX_SPEC_BYTES:
        raise ModelFileError(f"{path} is larger than any program that edge makes.", "Convert the model again.")
    spec = proto.Model_pb2.Model()
    try:
        spec.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise ModelFileError(f"{path} is damaged: it is not a Core ML model.", "Convert or copy the package again.") from error
    if spec.WhichOneof("Type") != "mlProgram":
        raise ModelFileError(f"{path} is not an ML program.", "Only packages made by `edge convert` can be evaluated.")
    return spec


class Package:
    """A package opened for evaluation.

    Args:
        folder: the .mlpackage.

    Attributes:
        metadata: the exporter's user-defined metadata.
        default_function: the function that runs unless another is named.

    Raises:
        ModelFileError: something is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        spec_path, weight_path = find_files(folder)
        spec = read_spec(spec_path)
        self.metadata: dict[str, str] = dict(spec.description.metadata.userDefined)
        self.default_function: str = spec.description.defaultFunctionName or "main"
        self._program = spec.mlProgram
        self._weights = WeightFile(weight_path)
        self._shared: dict[Any, NDArray[Any]] = {}
        self._functions: dict[str, FunctionCode] = {}

    @property
    def functions(self) -> list[str]:
        """Names of the functions, sorted."""
        return sorted(self._program.functions)

    def function(self, name: str | None = None) -> FunctionCode:
        """Prepare a function: load and dequantise its constants, and check its operations.

        Raises:
            ModelFileError: it does not exist, is damaged, or uses an operation that the evaluator does not have.
        """
        name = self.default_function if name is None else name
        if name not in self._program.functions:
            raise ModelFileError(
                f"{self.folder.name} has no function {name!r}.", f"It has {', '.join(self.functions) or 'none'}."
            )
        if name not in self._functions:
            try:
                self._functions[name] = self._prepare(name)
            except (KeyError, ValueError, IndexError, TypeError) as error:
                what = f"{self.folder.name} is damaged: function {name}: {error}."
                raise ModelFileError(what, "Convert or copy the package again.") from error
            except NotImplementedError as error:
                raise ModelFileError(
                    f"{self.folder.name} uses {error}, which the evaluator does not have.",
                    "Only packages made by `edge convert` can be evaluated away from a Mac.",
                ) from error
        return self._functions[name]

    # -- preparation --------------------------------------------------------------------------------------------

    def _prepare(self, name: str) -> FunctionCode:
        function = self._program.functions[name]
        block = function.block_specializations[function.opset]
        inputs: dict[str, TensorType] = {}
        states: dict[str, TensorType] = {}
        for value in function.inputs:
            kind = self._type(value.type)
            (states if kind.is_state else inputs)[value.name] = kind
        code = FunctionCode(name, inputs, states, {}, [], {})
        types = dict(inputs)
        for operation in block.operations:
            self._add(code, types, operation)
        code.outputs = {output: types[output] for output in block.outputs}
        _plan_memory(code)
        return code

    def _add(self, code: FunctionCode, types: dict[str, TensorType], operation: Any) -> None:
        kind = operation.type
        if kind == "const":
            name = operation.outputs[0].name
            code.constants[name] = self._value(operation.attributes["val"], keep_half=True)
            types[name] = self._type(operation.outputs[0].type)
            return
        if kind in CONSTEXPR:  # what a weight is made of is not kept
            name, declared = operation.outputs[0].name, self._type(operation.outputs[0].type)
            code.constants[name] = self._constexpr(kind, operation, declared)
            types[name] = declared
            return
        inputs = {key: self._binding(code, argument) for key, argument in operation.inputs.items()}
        if kind not in OPERATIONS and kind not in _STATE_OPERATIONS:
            raise NotImplementedError(f"the operation {kind}")
        if kind == "write_state":
            state = inputs["input"]
            assert isinstance(state, str)
            code.steps.append(Step(kind, inputs, "", code.states[state]))
            return
        if len(operation.outputs) != 1:
            raise NotImplementedError(f"{kind} with {len(operation.outputs)} outputs")
        output = operation.outputs[0]
        types[output.name] = self._type(output.type)
        code.steps.append(Step(kind, inputs, output.name, types[output.name]))

    def _binding(self, code: FunctionCode, argument: Any) -> str | list[str]:
        """Return the names that an argument is bound to; an immediate value gets a name of its own."""
        names = []
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                names.append(binding.name)
            else:
                names.append(f"%{len(code.constants)}")
                code.constants[names[-1]] = self._value(binding.value)
        return names[0] if len(names) == 1 else names

    def _constexpr(self, kind: str, operation: Any, declared: TensorType) -> NDArray[Any]:
        """Dequantise a weight, to float16 where the program says so. Functions that share its data share the result."""
        sources = {name: argument.arguments[0].value for name, argument in operation.inputs.items()}
        sources |= {name: value for name, value in operation.attributes.items() if name != "name"}
        identity = (kind, *((name, _identity(kind, value)) for name, value in sorted(sources.items())))
        if identity not in self._shared:
            result = CONSTEXPR[kind]({name: self._read(value) for name, value in sources.items()})
            self._shared[identity] = result.astype(np.float16) if declared.dtype == np.float16 else result
        result = self._shared[identity]
        if result.shape != declared.shape:
            raise ValueError(f"{operation.outputs[0].name} is declared as {declared.shape} but holds {result.shape}")
        return result

    def _type(self, kind: Any) -> TensorType:
        is_state = kind.WhichOneof("type") == "stateType"
        tensor = kind.stateType.wrappedType.tensorType if is_state else kind.tensorType
        if any(not dimension.HasField("constant") for dimension in tensor.dimensions):
            raise NotImplementedError("a flexible shape")
        shape = tuple(int(dimension.constant.size) for dimension in tensor.dimensions)
        if tensor.dataType == _STRING:
            return TensorType(None, shape)
        if tensor.dataType not in _DTYPES:
            raise NotImplementedError(f"values of type {tensor.dataType}")
        return TensorType(_DTYPES[tensor.dataType][0], shape, is_state)

    def _value(self, value: Any, *, keep_half: bool = False) -> Any:
        """Return a constant as `_read` does. Functions that share its data share the result."""
        if value.WhichOneof("value") != "blobFileValue":
            return self._read(value)
        key = (keep_half, int(value.blobFileValue.offset))
        if key not in self._shared:
            self._shared[key] = self._read(value, keep_half=keep_half)
        return self._shared[key].reshape(self._type(value.type).shape)

    def _read(self, value: Any, *, keep_half: bool = False) -> Any:
        """Return a constant: a string or an array; floats as float32, or as float16 if the weight file has them so."""
        declared = self._type(value.type)
        if value.WhichOneof("value") != "blobFileValue":
            return _immediate(value.immediateValue.tensor, declared)
        dtype, bits = _DTYPES[value.type.tensorType.dataType]
        n_values = int(np.prod(declared.shape, dtype=np.int64))
        found = self._weights.read(int(value.blobFileValue.offset), n_values, dtype, bits).reshape(declared.shape)
        is_half = keep_half and dtype == np.float16
        return found.astype(np.float32) if declared.is_float and not is_half else found


def _identity(kind: str, value: Any) -> int | bytes:
    """Return the offset of a stored value, or the bytes of an immediate one."""
    if value.WhichOneof("value") == "blobFileValue":
        return int(value.blobFileValue.offset)
    if not value.HasField("immediateValue"):
        raise NotImplementedError(f"{kind} of computed values")
    return bytes(value.immediateValue.SerializeToString(deterministic=True))


def _immediate(tensor: Any, declared: TensorType) -> Any:
    kind = tensor.WhichOneof("value")
    if declared.dtype is None:
        return str(tensor.strings.values[0])
    if kind == "bytes":  # fp16 and small integers
        array = np.frombuffer(tensor.bytes.values, declared.dtype)
    elif kind is None:
        array = np.zeros(0, declared.dtype)
    else:
        array = np.array(getattr(tensor, kind).values, declared.dtype)
    array = array.astype(np.float32) if declared.is_float else array
    return array.reshape(declared.shape)


def _plan_memory(code: FunctionCode) -> None:
    """Decide after which step each value can go, and which updates of a state need no copy."""
    last: dict[str, int] = {}
    uses: dict[str, int] = {}
    for index, step in enumerate(code.steps):
        for name in _names(step):
            last[name] = index
            uses[name] = uses.get(name, 0) + 1
    kept = code.outputs.keys() | code.constants.keys() | code.inputs.keys() | code.states.keys()
    made_by = {step.output: index for index, step in enumerate(code.steps)}
    for index, step in enumerate(code.steps):
        step.frees = tuple(name for name in dict.fromkeys(_names(step)) if last[name] == index and name not in kept)
        if step.operation != "slice_update" or index + 1 >= len(code.steps):
            continue
        source, after = step.inputs["x"], code.steps[index + 1]
        made = code.steps[made_by[str(source)]] if source in made_by else None
        if made is None or made.operation != "read_state" or source not in step.frees:
            continue
        state = made.inputs["input"]
        written_back = after.operation == "write_state" and after.inputs == {"input": state, "data": step.output}
        if written_back and uses[step.output] == 1 and step.output not in kept:
            step.in_place = not _has_other_view(code, state, str(source), index, last)


def _has_other_view(code: FunctionCode, state: str | list[str], source: str, index: int, last: dict[str, int]) -> bool:
    """Return whether a value that is needed after step `index` may share memory with a state's array."""
    for step in code.steps[:index]:
        if step.operation == "read_state" and step.inputs["input"] == state and step.output != source:
            if last.get(step.output, index) > index or step.output in code.outputs:
                return True
        elif source in _names(step) and step.operation != "slice_by_index":  # which copies
            return True
    return False


def _names(step: Step) -> list[str]:
    return [name for value in step.inputs.values() for name in ([value] if isinstance(value, str) else value)]
