"""Evaluates a Core ML package without Core ML: the prediction interface of coremltools' MLModel, in numpy, on any system.

It stands in for a Mac in tests, and checks a package where it was built. "fp16" rounds after every operation, as hardware does;
"fp32" rounds nothing but the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

import numpy as np

from edge.errors import ModelFileError, UsageError
from edge.hashes import file_stamp

from .mil_ops import OPERATIONS, slice_update
from .program import FunctionCode, Package, Step, TensorType

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MilModel", "MilState", "Precision"]

Precision = Literal["fp16", "fp32"]

_open_packages: WeakValueDictionary[tuple[object, ...], Package] = WeakValueDictionary()


class MilState:
    """The state of a function between predictions, from `make_state`. The interface of coremltools' MLState."""

    def __init__(self, types: Mapping[str, TensorType], precision: Precision) -> None:
        self._types = dict(types)
        self._precision = precision
        self._arrays = {name: np.zeros(kind.shape, np.float32) for name, kind in types.items()}

    def read_state(self, name: str) -> NDArray[np.float32]:
        """Return a copy of a state, float32 whatever type the package declares, as coremltools does.

        Raises:
            UsageError: there is no state of that name.
        """
        self._type(name)
        return np.array(self._arrays[name])

    def write_state(self, name: str, value: NDArray[Any]) -> None:
        """Replace a state.

        Args:
            name: of the state.
            value: float32 of the declared shape. float16 is refused, as by coremltools.

        Raises:
            UsageError: there is no state of that name, or the value has another shape or type.
        """
        kind = self._type(name)
        if value.dtype != np.float32 or value.shape != kind.shape:
            raise UsageError(
                f"State {name} takes float32 of shape {kind.shape}, not {value.dtype} of shape {value.shape}.",
                "Cast the value with .astype(numpy.float32) first.",
            )
        self._arrays[name] = _rounded(value.copy(), kind, self._precision)

    def _type(self, name: str) -> TensorType:
        if name not in self._types:
            raise UsageError(f"This model has no state {name!r}.", f"It has {', '.join(self._types) or 'none'}.")
        return self._types[name]


class MilModel:
    """One function of a package, ready to predict. Same interface as coremltools' MLModel.

    Args:
        model: path of the .mlpackage.
        function_name: None is the package's default.
        precision: "fp16" rounds the result of every operation that is declared fp16; "fp32" does not.

    Raises:
        ModelFileError: the package is missing, damaged, or uses an operation that the evaluator does not have.
    """

    def __init__(self, model: str | Path, *, function_name: str | None = None, precision: Precision = "fp16") -> None:
        self._package = _open_package(Path(model))
        self._code: FunctionCode = self._package.function(function_name)
        self._precision: Precision = precision

    @property
    def user_defined_metadata(self) -> dict[str, str]:
        """The exporter's metadata."""
        return dict(self._package.metadata)

    def make_state(self) -> MilState:
        """Return a new state, all zeros. Functions of one package can use each other's states."""
        return MilState(self._code.states, self._precision)

    def predict(self, data: Mapping[str, Any], state: MilState | None = None) -> dict[str, NDArray[Any]]:
        """Run the function once.

        Args:
            data: input name -> array of the declared shape; floats of any width for float inputs, integers for integer inputs.
            state: from `make_state`; required and changed by a stateful function.

        Returns:
            Output name -> array: float16 where the program declares fp16 (float32 in "fp32" precision).

        Raises:
            UsageError: an input or the state is missing, unknown, or of the wrong shape or type.
            ModelFileError: the program contradicts itself: an operation gives another shape than declared.
        """
        values = self._check_inputs(data)
        states = self._check_state(state)
        with np.errstate(all="ignore"):  # overflow gives infinity or NaN, as in hardware
            for step in self._code.steps:
                self._run(step, values, states)
        halves = self._precision == "fp16"
        return {
            name: values[name].astype(np.float16) if halves and kind.dtype == np.float16 else np.array(_wide(values[name]))
            for name, kind in self._code.outputs.items()
        }

    def _check_inputs(self, data: Mapping[str, Any]) -> dict[str, Any]:
        declared = self._code.inputs
        if data.keys() != declared.keys():
            raise UsageError(
                f"The function {self._code.name} got the inputs {', '.join(sorted(data)) or 'none'}.",
                f"It takes {', '.join(sorted(declared))}.",
            )
        values: dict[str, Any] = dict(self._code.constants)
        for name, kind in declared.items():
            array = np.asarray(data[name])
            fits = np.issubdtype(array.dtype, np.floating if kind.is_float else np.integer)
            if array.shape != kind.shape or not fits:
                raise UsageError(
                    f"Input {name} is {array.dtype} of shape {array.shape}.",
                    f"The function takes {np.dtype(kind.dtype)} of shape {kind.shape}.",
                )
            array = array.astype(np.float32 if kind.is_float else kind.dtype)
            values[name] = _rounded(array, kind, self._precision)
        return values

    def _check_state(self, state: MilState | None) -> dict[str, NDArray[np.float32]]:
        if not self._code.states:
            if state is not None:
                raise UsageError("This function has no state.", "Call predict without one.")
            return {}
        if state is None:
            raise UsageError("This function needs a state.", "Make one with make_state() and pass it to every predict.")
        shapes = {name: array.shape for name, array in state._arrays.items()}
        if shapes != {name: kind.shape for name, kind in self._code.states.items()}:
            raise UsageError("This state belongs to another model.", "Make one with make_state() of this model.")
        return state._arrays

    def _run(self, step: Step, values: dict[str, Any], states: dict[str, NDArray[np.float32]]) -> None:
        try:
            if step.operation == "write_state":
                states[str(step.inputs["input"])] = values[str(step.inputs["data"])]
            elif step.operation == "read_state":
                # not a copy: only the update that hands an array back changes it in place (see program._plan_memory)
                values[step.output] = states[str(step.inputs["input"])]
            else:
                # A gather takes a few rows of a table: do not widen all of it.
                read = values.__getitem__ if step.operation == "gather" else lambda name: _wide(values[name])
                inputs = {
                    key: read(names) if isinstance(names, str) else [read(name) for name in names]
                    for key, names in step.inputs.items()
                }
                if step.operation == "slice_update":
                    result = slice_update(inputs, in_place=step.in_place)
                else:
                    result = OPERATIONS[step.operation](inputs)
                values[step.output] = self._checked(step, result)
        except (KeyError, ValueError, IndexError, NotImplementedError) as error:
            raise ModelFileError(
                f"{self._package.folder.name}: {step.output} ({step.operation}) cannot be computed: {error}.",
                "If the inputs are in range, the package is damaged: convert it again.",
            ) from error
        for name in step.frees:
            del values[name]

    def _checked(self, step: Step, result: NDArray[Any]) -> NDArray[Any]:
        """Check a result against its declaration, then round it to that type."""
        declared = step.type
        fits = result.dtype.kind == "f" if declared.is_float else result.dtype == declared.dtype
        if result.shape != declared.shape or not fits:
            raise ValueError(f"declared {np.dtype(declared.dtype)} {declared.shape}, computed {result.dtype} {result.shape}")
        if step.operation == "slice_update":  # both sides were rounded before
            return result
        return _rounded(result, declared, self._precision)


def _wide(value: Any) -> Any:
    """Widen a float16 weight for the one operation that reads it."""
    return value.astype(np.float32) if isinstance(value, np.ndarray) and value.dtype == np.float16 else value


def _rounded(array: NDArray[Any], kind: TensorType, precision: Precision) -> NDArray[Any]:
    if kind.dtype != np.float16 or precision == "fp32":
        return array.astype(np.float32, copy=False) if kind.is_float else array
    return array.astype(np.float16).astype(np.float32)


def _open_package(folder: Path) -> Package:
    """Open a package, or return the open one: its functions share their weights."""
    weights = folder / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    try:
        key = (str(folder.resolve()), *file_stamp(weights.stat()))
    except OSError:  # no weight file, or no package at all, as opening it will show
        return Package(folder)
    package = _open_packages.get(key)
    if package is None:
        package = _open_packages[key] = Package(folder)
    return package
