"""Which engine runs a model, and on which accelerator: what is wanted against what is there.

Engines are tried in the order of ENGINES, accelerators in the order of each engine. A new one is a new row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.errors import BUILD_HINT, BackendUnavailableError, UsageError
from edge.names import Accelerator
from edge.plan.receipt import PlanRequest

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile, Engine, Gpu
    from edge.formats.artifact import Artifact
    from edge.names import Format

__all__ = ["ENGINES", "EngineRow", "Missing", "Target", "check_request", "choose_engine", "find_targets", "install_hint"]

# Engine -> what to do when its build lacks an accelerator, or when it is not there at all.
_BUILD_HINTS = {
    "llamacpp": f"Build llama.cpp for this machine: {BUILD_HINT}",
    "onnx": "Install onnxruntime's build for it in the place of onnxruntime; see docs/onnx.md.",
}
_INSTALL_HINTS = {
    "llamacpp": f"Install it: {BUILD_HINT}",
    "onnx": 'Install it: pip install "edge-assistant[onnx]"',
    "coreml": 'Install it on a Mac: pip install "edge-assistant[coreml]"',
}


@dataclass(frozen=True, slots=True)
class EngineRow:
    """One engine, as far as the plan has to know it.

    Attributes:
        name: key in edge.backends.BACKENDS.
        formats: of the artifacts it reads.
        accelerators: what it can compute on, the best first.
        on_request: what it computes on only if that is required, since how much of a model it takes differs by model.
        is_automatic: the plan may choose it unasked.
        needs_package: it is of no use without the package that the probe looks for.
        tries: it tries a model on an accelerator when it loads it, and takes the next one where that fails.
    """

    name: str
    formats: tuple[Format, ...]
    accelerators: tuple[Accelerator, ...]
    on_request: tuple[Accelerator, ...] = ()
    is_automatic: bool = True
    needs_package: bool = True
    tries: bool = False


ENGINES = (
    EngineRow("llamacpp", ("gguf",), ("cuda", "metal", "cpu")),
    EngineRow("onnx", ("onnx",), ("cuda", "cpu"), on_request=("tensorrt", "openvino", "qnn", "ane")),
    EngineRow("coreml", ("coreml",), ("ane", "metal", "cpu"), tries=True),
    EngineRow("fake", ("gguf", "onnx", "coreml"), ("cpu",), is_automatic=False, needs_package=False),
)


@dataclass(frozen=True, slots=True)
class Target:
    """An accelerator that can be used.

    Attributes:
        accelerator: its name.
        free_bytes: memory that layers on it may take; None for the CPU.
        is_unified: that memory is part of main memory.
        reason: why it is used, in words.
    """

    accelerator: Accelerator
    free_bytes: int | None
    is_unified: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Missing:
    """An accelerator that cannot be used.

    Attributes:
        accelerator: its name.
        reason: what is missing.
        hint: what would bring it.
        is_worth_a_word: the hardware is there and something else is missing, which the receipt should say.
    """

    accelerator: Accelerator
    reason: str
    hint: str
    is_worth_a_word: bool = False


def choose_engine(device: DeviceProfile, artifact: Artifact, request: PlanRequest) -> tuple[EngineRow, str]:
    """The engine for a model, and why.

    Raises:
        BackendUnavailableError: there is none of the name asked for, it cannot read this format, or its package is missing.
    """
    rows = [row for row in ENGINES if row.name == request.backend or (request.backend is None and row.is_automatic)]
    if not rows:
        known = ", ".join(row.name for row in ENGINES if row.is_automatic)
        raise BackendUnavailableError(f"There is no backend {request.backend!r}.", f"Known here: {known}.")
    able = [row for row in rows if artifact.format in row.formats]
    if not able:
        which = f"The {request.backend} backend" if request.backend else "No backend here"
        reads = ", ".join(dict.fromkeys(name for row in rows for name in row.formats))
        raise BackendUnavailableError(
            f"{which} cannot read {artifact.format} models, such as {artifact.name}.", f"Use a model in the format {reads}."
        )
    missing: Engine | None = None
    for row in able:
        engine = device.engine(row.name)
        if not row.needs_package:
            return row, "asked for"
        if engine is not None and engine.is_installed:
            build = " and ".join(engine.accelerators)
            asked = "asked for; " if request.backend else ""
            reason = f"{asked}reads {artifact.format}; {engine.package} {engine.version} is installed, built for {build}"
            return _for_artifact(row, artifact), reason
        missing = missing or engine
    name, package = able[0].name, missing.package if missing else able[0].name
    if missing is not None and missing.version:
        raise BackendUnavailableError(
            f"The {name} backend runs on a Mac only, and this is {device.host.os}. {package} {missing.version} is installed, "
            "but only converts models here.",
            "Use the same model as GGUF or ONNX.",
        )
    message = f"The {name} backend needs the package {package}, which is not installed."
    raise BackendUnavailableError(message, install_hint(name))


def _for_artifact(row: EngineRow, artifact: Artifact) -> EngineRow:
    """Packages with weights in blocks are made for the GPU: the Neural Engine is reported to compute blocks wrongly."""
    if row.name == "coreml" and artifact.coreml is not None and artifact.coreml.info.variant == "gpu":
        others = tuple(name for name in row.accelerators if name != "ane")
        return replace(row, accelerators=others, on_request=("ane",))
    return row


def install_hint(engine: str) -> str:
    """What installs an engine.

    Args:
        engine: its name, as in ENGINES.
    """
    return _INSTALL_HINTS.get(engine, "")


def check_request(device: DeviceProfile, request: PlanRequest) -> None:
    """Fail early, before anything is fetched, when no engine here could do what is asked for whatever the model.

    Raises:
        BackendUnavailableError, UsageError: as `find_targets`, of the first engine that might have been used.
    """
    first: BackendUnavailableError | None = None
    rows = [row for row in ENGINES if row.name == request.backend or (request.backend is None and row.is_automatic)]
    # What an engine lacks that could use the accelerator says more than that another one never can.
    able = [row for row in rows if request.require in (None, *row.accelerators, *row.on_request)]
    for row in able or rows:
        try:
            find_targets(device, row, request)
            return
        except BackendUnavailableError as error:
            first = first or error
    if first is not None:
        raise first


def find_targets(device: DeviceProfile, row: EngineRow, request: PlanRequest) -> tuple[list[Target], list[Missing]]:
    """The accelerators to try, best first, and those that are missing.

    Raises:
        BackendUnavailableError: the accelerator that is required, or that layers were asked for on, is not to be had.
        UsageError: layers on an accelerator and the CPU alone were asked for at once.
    """
    if request.require == "cpu" and request.gpu_layers:
        raise UsageError(
            f"{request.gpu_layers} layers on an accelerator and the CPU alone are asked for at once.",
            "Leave out --gpu-layers or --require cpu.",
        )
    if request.require is not None:
        if request.require not in (*row.accelerators, *row.on_request):
            able = ", ".join((*row.accelerators, *row.on_request))
            raise BackendUnavailableError(
                f"The {row.name} backend cannot use {_NAMES[request.require]}; it computes on: {able}.",
                "Require one of those, or another backend.",
            )
        names: tuple[Accelerator, ...] = (request.require,)
    elif request.gpu_layers == 0:
        names = ("cpu",)
    else:
        names = row.accelerators
    found = [_FINDERS[name](device, row) for name in names]
    targets = [item for item in found if isinstance(item, Target)]
    missing = [item for item in found if isinstance(item, Missing)]
    if request.gpu_layers and not any(target.free_bytes is not None for target in targets):
        item = next((item for item in missing if item.is_worth_a_word), None)
        reason = item.reason if item else "There is no accelerator on this device."
        raise BackendUnavailableError(
            f"{_layers(request.gpu_layers)} on an accelerator cannot be had. {reason}",
            item.hint if item else "Leave out --gpu-layers.",
        )
    if request.gpu_layers:
        targets = [target for target in targets if target.free_bytes is not None]
    if not targets:
        raise BackendUnavailableError(missing[0].reason, missing[0].hint)
    return targets, missing


def _layers(count: int) -> str:
    return "All layers" if count < 0 else f"{count} layers"


_NAMES: dict[Accelerator, str] = {
    "cuda": "CUDA",
    "metal": "Metal",
    "ane": "the Neural Engine",
    "cpu": "the CPU",
    "tensorrt": "TensorRT",
    "openvino": "OpenVINO",
    "qnn": "Qualcomm's QNN",
}


def _find_cpu(device: DeviceProfile, row: EngineRow) -> Target | Missing:
    return Target("cpu", None, is_unified=False, reason=device.cpu.name)


def _find_cuda(device: DeviceProfile, row: EngineRow) -> Target | Missing:
    gpus = device.gpus_of("cuda")
    if not gpus:
        return Missing("cuda", "There is no CUDA device here that this process can see.", "See: edge devices")
    return _find_gpu(device, row, "cuda", gpus)


def _find_tensorrt(device: DeviceProfile, row: EngineRow) -> Target | Missing:
    gpus = device.gpus_of("cuda")
    if not gpus:
        return Missing("tensorrt", "TensorRT needs a CUDA device, and this process can see none.", "See: edge devices")
    return _find_gpu(device, row, "tensorrt", gpus)


def _find_provider(api: Accelerator) -> Callable[[DeviceProfile, EngineRow], Target | Missing]:
    """An accelerator that is there when the engine's build has it: its own library looks for the hardware when it starts."""

    def find(device: DeviceProfile, row: EngineRow) -> Target | Missing:
        engine = device.engine(row.name)
        if engine is None or api not in engine.accelerators:
            package = engine.package if engine else row.name
            reason = f"The installed {package} was built without {_NAMES[api]}."
            return Missing(api, reason, _BUILD_HINTS.get(row.name, ""))
        return Target(api, None, is_unified=True, reason=_NAMES[api])

    return find


def _find_metal(device: DeviceProfile, row: EngineRow) -> Target | Missing:
    gpus = device.gpus_of("metal")
    if not gpus:
        if device.apple is not None and device.host.virtual_machine:
            return Missing("metal", "Metal is not used in a virtual machine, whose GPU lacks what llama.cpp needs.", "")
        return Missing("metal", "Metal needs a Mac with an Apple chip, which this is not.", "See: edge devices")
    return _find_gpu(device, row, "metal", gpus)


def _find_gpu(device: DeviceProfile, row: EngineRow, api: Accelerator, gpus: tuple[Gpu, ...]) -> Target | Missing:
    """A GPU is of use if the engine was built for it."""
    names = " and ".join(gpu.name for gpu in gpus)
    engine = device.engine(row.name)
    if engine is None or api not in engine.accelerators:
        package = engine.package if engine else row.name
        return Missing(
            api,
            f"{names} is here, but the installed {package} was built without {_NAMES[api]}.",
            _BUILD_HINTS.get(row.name, ""),
            is_worth_a_word=True,
        )
    is_unified = all(gpu.is_unified for gpu in gpus)
    free = sum(gpu.free_bytes for gpu in gpus)
    return Target(api, free, is_unified, names)


def _find_ane(device: DeviceProfile, row: EngineRow) -> Target | Missing:
    if device.apple is None or not device.apple.has_neural_engine:
        return Missing("ane", "There is no Neural Engine here: that needs a Mac with an Apple chip.", "See: edge devices")
    engine = device.engine(row.name)
    if engine is None or "ane" not in engine.accelerators:
        reason = f"The {row.name} backend is not installed with Core ML."
        return Missing("ane", reason, install_hint(row.name), is_worth_a_word=True)
    return Target("ane", None, is_unified=True, reason=device.apple.chip)


_FINDERS: dict[Accelerator, Callable[[DeviceProfile, EngineRow], Target | Missing]] = {
    "cuda": _find_cuda,
    "metal": _find_metal,
    "ane": _find_ane,
    "cpu": _find_cpu,
    "tensorrt": _find_tensorrt,
    "openvino": _find_provider("openvino"),
    "qnn": _find_provider("qnn"),
}
