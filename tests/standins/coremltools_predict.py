"""coremltools' prediction interface away from a Mac: the same package, computed by the converters' evaluator.

`make_coremltools()` gives an object to use in place of the package `coremltools`. What it accepts, refuses, copies and converts
follows Apple's sources, since a backend that works with something kinder would fail on a Mac:

- `predict` replaces float16 arrays in the dictionary it is given by float32 ones (MLModel._update_float16_...);
- arrays must be int32, float32 or float64 and writable (CoreMLPythonArray.mm), anything else is "value type not convertible";
- float16 outputs and states come out as float32 (convertArrayValueToPython);
- `write_state` refuses float16 for the same reason, and other shapes;
- a compiled model knows nothing of the package's metadata, and `compile_model` moves its result to where it is told to.

Apple's engine itself, its units and its speed are what this cannot stand in for.

Source: coremltools 9, models/_compiled_model.py, models/utils.py, coremlpython/*.mm.
"""

from __future__ import annotations

import ctypes
import enum
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from edge.errors import EdgeError
from edge_convert.coreml.mil import MilModel, MilState

__all__ = ["Fault", "make_coremltools"]

Fault = Callable[[str, dict[str, Any]], None]
"""Called with the function's name and its outputs before they are handed out; may change them, or raise."""

_INNER = "package.mlpackage"


def _compute_in_one_thread() -> None:
    """numpy's OpenBLAS starts as many threads as there are CPUs, which wait for each other in loops: matrices here are tiny."""
    for library in (Path(np.__file__).parent.parent / "numpy.libs").glob("*openblas*"):
        set_threads = getattr(ctypes.CDLL(str(library)), "scipy_openblas_set_num_threads64_", None)
        if set_threads is not None:
            set_threads(1)


class ComputeUnit(enum.Enum):
    """As coremltools'."""

    ALL = 1
    CPU_AND_GPU = 2
    CPU_ONLY = 3
    CPU_AND_NE = 4


class MLCPUComputeDevice:
    """The CPU."""


class MLGPUComputeDevice:
    """The GPU."""


class MLNeuralEngineComputeDevice:
    """The Neural Engine."""


_DEVICES = {"cpu": MLCPUComputeDevice, "gpu": MLGPUComputeDevice, "ane": MLNeuralEngineComputeDevice}


class MLState:
    """As coremltools'."""

    def __init__(self, proxy: MilState) -> None:
        self.__proxy__ = proxy

    def read_state(self, name: str) -> Any:
        """float32, whatever the state is kept as."""
        with _errors_of_core_ml():
            return self.__proxy__.read_state(name)

    def write_state(self, name: str, value: Any) -> None:
        """float32 or float64 of the state's shape."""
        array = _convertible(value)
        with _errors_of_core_ml():
            self.__proxy__.write_state(name, array.astype(np.float32))


class _errors_of_core_ml:
    """The evaluator's errors as the RuntimeError that pybind makes of Core ML's."""

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, EdgeError):
            raise RuntimeError(str(error)) from error


def _convertible(value: Any) -> Any:
    is_known = isinstance(value, np.ndarray) and value.dtype in (np.int32, np.float32, np.float64)
    if not is_known or not value.flags.writeable:
        raise RuntimeError("value type not convertible")
    return value


class CompiledMLModel:
    """As coremltools', for a function of a model that `compile_model` made."""

    def __init__(
        self,
        path: str,
        compute_units: ComputeUnit = ComputeUnit.ALL,
        function_name: str | None = None,
        *,
        fault: Fault | None = None,
    ) -> None:
        if not isinstance(path, str):
            raise TypeError('The "path" parameter must be of type "str".')
        if not isinstance(compute_units, ComputeUnit):
            raise TypeError('The "compute_units" parameter must be of type: "coremltools.ComputeUnit".')
        self._fault = fault
        self.function_name = function_name
        self.compute_unit = compute_units
        with _errors_of_core_ml():
            self._model = MilModel(Path(path) / _INNER, function_name=function_name)

    def predict(self, data: dict[str, Any], state: MLState | None = None) -> dict[str, Any]:
        """One prediction."""
        if type(data) is not dict:
            raise TypeError(f'"data" parameter must be either a dict or list of dict, but got {type(data)}.')
        for name, value in data.items():
            if isinstance(value, np.ndarray) and value.dtype == np.float16:
                data[name] = value.astype(np.float32)
        for value in data.values():
            _convertible(value)
        with _errors_of_core_ml():
            found = self._model.predict(data, None if state is None else state.__proxy__)
        result = {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in found.items()}
        if self._fault is not None:
            self._fault(str(self.function_name), result)
        return result

    def make_state(self) -> MLState:
        """For functions with a state."""
        if not self._model._code.states:
            raise RuntimeError("The model has no state.")
        return MLState(self._model.make_state())


def compile_model(model: str, destination_path: str | None = None) -> str:
    """A folder with the package in it. As with coremltools, a destination that is there already gets it inside."""
    if not model.rstrip("/").endswith((".mlpackage", ".mlmodel")):
        raise ValueError(f"Invalid model file path: '{model}'.")
    if destination_path is None or not destination_path.rstrip("/").endswith(".mlmodelc"):
        raise Exception('"destination_path" parameter must have ".mlmodelc" file extension.')
    with _errors_of_core_ml():
        MilModel(Path(model), function_name="decode")  # the compiler refuses what is damaged
    destination = Path(destination_path)
    target = destination / Path(model).name if destination.exists() else destination
    shutil.copytree(model, target / _INNER)
    return destination_path


def make_coremltools(*, device_of: Callable[[str], str] = lambda operation: "cpu", fault: Fault | None = None) -> Any:
    """Return a stand-in for the package.

    Args:
        device_of: type of an operation -> "cpu", "gpu" or "ane", for the compute plan.
        fault: see `Fault`.
    """
    _compute_in_one_thread()

    class MLComputePlan:
        def __init__(self, path: str) -> None:
            code = MilModel(Path(path) / _INNER, function_name="decode")._code
            operations = [SimpleNamespace(operator_name=step.operation) for step in code.steps]
            operations += [SimpleNamespace(operator_name="const") for _ in code.constants]
            block = SimpleNamespace(operations=operations)
            program = SimpleNamespace(functions={"decode": SimpleNamespace(block=block)})
            self.model_structure = SimpleNamespace(program=program)

        @classmethod
        def load_from_path(cls, path: str, compute_units: ComputeUnit = ComputeUnit.ALL) -> MLComputePlan:
            assert isinstance(compute_units, ComputeUnit)
            return cls(path)

        def get_compute_device_usage_for_mlprogram_operation(self, operation: Any) -> Any:
            if operation.operator_name == "const":
                return None
            device = _DEVICES[device_of(operation.operator_name)]()
            return SimpleNamespace(preferred_compute_device=device, supported_compute_devices=[device])

        def get_estimated_cost_for_mlprogram_operation(self, operation: Any) -> Any:
            return SimpleNamespace(weight=0.9 if operation.operator_name == "conv" else 0.1)

    def load(path: str, compute_units: ComputeUnit = ComputeUnit.ALL, function_name: str | None = None) -> CompiledMLModel:
        return CompiledMLModel(path, compute_units, function_name, fault=fault)

    return SimpleNamespace(
        __version__="9.0",
        ComputeUnit=ComputeUnit,
        models=SimpleNamespace(
            CompiledMLModel=load,
            utils=SimpleNamespace(compile_model=compile_model),
            compute_plan=SimpleNamespace(MLComputePlan=MLComputePlan),
        ),
    )
