"""The engine for a model and the accelerators it could run on: the request against what this device has.

Engines are tried in the order of `edge.registry.ENGINES`, accelerators in the order of the engine's row.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from edge.errors import BackendUnavailableError, UsageError
from edge.names import TITLES, Accelerator
from edge.plan.receipt import PlanRequest
from edge.registry import ENGINES, EngineRow, load_entry

if TYPE_CHECKING:
    from pathlib import Path

    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact
    from edge.plan.receipt import Safety

__all__ = [
    "Missing", "Placement", "Target", "can_run", "find_targets", "install_hint", "is_installed", "place", "place_on",
    "readers", "rows_for", "safety_here", "tried_accelerators",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """An accelerator that can be used.

    Attributes:
        accelerator: its name.
        free_bytes: memory that layers on it may take; None for the CPU.
        is_unified: that memory is part of main memory.
        reason: the hardware's name, for the receipt.
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
        is_notable: the hardware is there and something else is missing, which the receipt should say.
    """

    accelerator: Accelerator
    reason: str
    hint: str
    is_notable: bool = False


@dataclass(frozen=True, slots=True)
class Placement:
    """An engine and the accelerators that a model could run on.

    Attributes:
        row: the engine.
        reason: why that one.
        targets: accelerators to try, the best first; at least one.
        missing: accelerators of the engine that cannot be used here.
    """

    row: EngineRow
    reason: str
    targets: tuple[Target, ...]
    missing: tuple[Missing, ...]


def place(device: DeviceProfile, artifact: Artifact, request: PlanRequest) -> Placement:
    """Find the engine for a model and the accelerators to try.

    Raises:
        BackendUnavailableError: no engine here, or not the one asked for, reads this model; or as `find_targets`.
        UsageError: as `find_targets`.
    """
    row, reason = _choose_engine(device, artifact, request)
    made_for = artifact.facts.made_for
    if made_for in row.accelerators:  # others may compute it wrongly, as the Neural Engine does with weights in blocks
        n_unfit = row.accelerators.index(made_for)
        on_request = (*row.on_request, *row.accelerators[:n_unfit])
        row = replace(row, accelerators=row.accelerators[n_unfit:], on_request=on_request)
    return Placement(row, reason, *find_targets(device, row, request))


def readers(device: DeviceProfile, artifact: Artifact) -> list[EngineRow]:
    """Return the engines here that read a model's format, whether they can run this one or not."""
    return [row for row in rows_for(PlanRequest()) if artifact.format in row.formats and is_installed(device, row)]


def can_run(device: DeviceProfile, row: EngineRow, artifact: Artifact) -> bool:
    """Return whether an engine is here, and can run a model as far as that shows before it is loaded."""
    if artifact.format not in row.formats or not is_installed(device, row):
        return False
    return not (row.why_not and load_entry(row.why_not)(artifact))


def place_on(
    device: DeviceProfile, artifact: Artifact, request: PlanRequest, engine: str, accelerator: Accelerator
) -> Placement | None:
    """Find the accelerators of one engine for a model; None if it cannot run it as asked for.

    Args:
        device, artifact: what is placed where.
        request: names no engine.
        engine: as in `edge.registry.ENGINES`.
        accelerator: that it was measured on. One that the engine does not use unasked is the only one then.
    """
    row = ENGINES.get(engine)
    if row is None or not row.is_automatic or not can_run(device, row, artifact):
        return None
    if request.require is None and accelerator in row.on_trial:
        request = replace(request, require=accelerator)
    try:
        return place(device, artifact, replace(request, backend=engine))
    except (BackendUnavailableError, UsageError):
        return None


def rows_for(request: PlanRequest) -> list[EngineRow]:
    """Return the engines that a request allows, the preferred ones first."""
    return [row for row in ENGINES.values() if row.name == request.backend or (request.backend is None and row.is_automatic)]


def is_installed(device: DeviceProfile, row: EngineRow) -> bool:
    """Return whether the package of an engine is there and can run models on this system."""
    engine = device.engine(row.name)
    return row.package is None or (engine is not None and engine.is_installed)


def install_hint(engine: str) -> str:
    """Return what installs an engine, given its name; "" where nothing has to be installed."""
    row = ENGINES.get(engine)
    return row.package.install if row is not None and row.package is not None else ""


def safety_here(device: DeviceProfile, rows: Iterable[EngineRow], cache_dir: Path) -> Safety | None:
    """Return how the first of these engines that asks for a trial may be loaded here; None where none of them does.

    Args:
        device: from `edge.device.probe`.
        rows: the engines that may be used.
        cache_dir: where the outcome of the trial is stored.
    """
    row = next((row for row in rows if row.safety and is_installed(device, row)), None)
    safety: Safety | None = load_entry(row.safety)(cache_dir) if row is not None else None
    return safety


def _choose_engine(device: DeviceProfile, artifact: Artifact, request: PlanRequest) -> tuple[EngineRow, str]:
    """Return the first engine that reads this model and is installed, and why it is taken."""
    rows = rows_for(request)
    if not rows:
        known = ", ".join(row.name for row in ENGINES.values() if row.is_automatic)
        raise BackendUnavailableError(f"There is no backend {request.backend!r}.", f"Known here: {known}.")
    able = [row for row in rows if artifact.format in row.formats]
    if not able:
        which = f"The {request.backend} backend" if request.backend else "No backend here"
        reads = ", ".join(dict.fromkeys(name for row in rows for name in row.formats))
        raise BackendUnavailableError(
            f"{which} cannot read {artifact.format} models, such as {artifact.name}.", f"Use a model in the format {reads}."
        )
    able.sort(key=lambda row: request.require not in (None, *row.accelerators, *row.on_request))
    for row in able:
        if is_installed(device, row):
            asked = "asked for; " if request.backend else ""
            engine = device.engine(row.name)
            if engine is None:
                return row, f"{asked}reads {artifact.format}"
            build = f"{engine.package} {engine.version} is installed, built for {' and '.join(engine.accelerators)}"
            return row, f"{asked}reads {artifact.format}; {build}"
    raise _not_installed(device, able[0])


def _not_installed(device: DeviceProfile, row: EngineRow) -> BackendUnavailableError:
    engine = device.engine(row.name)
    package = engine.package if engine else row.name
    if engine is not None and engine.version:
        return BackendUnavailableError(
            f"The {row.name} backend runs on a Mac only, and this is {device.host.os}. "
            f"{package} {engine.version} is installed, but only converts models here.",
            "Use the same model as GGUF or ONNX.",
        )
    message = f"The {row.name} backend needs the package {package}, which is not installed."
    return BackendUnavailableError(message, install_hint(row.name))


def find_targets(device: DeviceProfile, row: EngineRow, request: PlanRequest) -> tuple[tuple[Target, ...], tuple[Missing, ...]]:
    """Return the accelerators to try, the best first, and those that are missing.

    Raises:
        BackendUnavailableError: the accelerator that is required, or that layers were asked for on, is unavailable.
        UsageError: layers on an accelerator and the CPU alone were asked for at once.
    """
    found = [_find(device, row, name) for name in _wanted(row, request)]
    targets = tuple(item for item in found if isinstance(item, Target))
    missing = tuple(item for item in found if isinstance(item, Missing))
    if request.gpu_layers:
        targets = tuple(target for target in targets if target.free_bytes is not None)
        if not targets:
            item = next((item for item in missing if item.is_notable), None)
            layers = "All layers" if request.gpu_layers < 0 else f"{request.gpu_layers} layers"
            raise BackendUnavailableError(
                f"{layers} cannot be put on an accelerator. {item.reason if item else 'This device has none.'}",
                item.hint if item else "Leave out --gpu-layers.",
            )
    if not targets:
        raise BackendUnavailableError(missing[0].reason, missing[0].hint)
    return targets, missing


def _wanted(row: EngineRow, request: PlanRequest) -> tuple[Accelerator, ...]:
    """Return the accelerators that a request allows an engine to use."""
    if request.require == "cpu" and request.gpu_layers:
        raise UsageError(
            f"{request.gpu_layers} layers on an accelerator and the CPU alone are asked for at once.",
            "Leave out --gpu-layers or --require cpu.",
        )
    if request.require is None:
        return ("cpu",) if request.gpu_layers == 0 else row.accelerators
    able = (*row.accelerators, *row.on_request)
    if request.require in _UNUSED:
        raise BackendUnavailableError(f"No backend can use the {TITLES[request.require]}: {_UNUSED[request.require]}", _OTHERS)
    if request.require not in able:
        the = "the " if request.require in ("ane", "cpu") else ""
        raise BackendUnavailableError(
            f"The {row.name} backend cannot use {the}{TITLES[request.require]}; it computes on: {', '.join(able)}.",
            "Require one of those, or another backend.",
        )
    return (request.require,)


def tried_accelerators(device: DeviceProfile, row: EngineRow, *, on_trial: bool) -> list[Accelerator]:
    """Return the accelerators of an engine that are here, the best first.

    Args:
        device: from `edge.device.probe`.
        row: the engine.
        on_trial: also those that are only used once they were measured to be faster.
    """
    found: list[Accelerator] = []
    for request in (PlanRequest(), *(PlanRequest(require=name) for name in row.on_trial if on_trial)):
        with suppress(BackendUnavailableError):
            found += [target.accelerator for target in find_targets(device, row, replace(request, backend=row.name))[0]]
    return found


_UNUSED: dict[str, str] = {
    "intel-npu": "OpenVINO's plug-in for it takes inputs of fixed sizes only, and keys and values grow with a conversation."
}
"""Accelerator that a profile may show -> why none of the engines computes on it."""
_OTHERS = "Leave out --require, or require intel-gpu or cpu."
_GPU_APIS = {"cuda": "cuda", "tensorrt": "cuda", "metal": "metal"}
_NO_GPU = {
    "cuda": "There is no CUDA device here that this process can see.",
    "tensorrt": "TensorRT needs a CUDA device, and this process can see none.",
    "metal": "Metal needs a Mac with an Apple chip.",
}


def _find(device: DeviceProfile, row: EngineRow, name: Accelerator) -> Target | Missing:
    """Look for an accelerator: the hardware, and an engine that was built for it."""
    if name == "cpu":
        return Target(name, None, is_unified=False, reason=device.cpu.name)
    gpus = device.gpus_of(_GPU_APIS[name]) if name in _GPU_APIS else ()
    if name in _GPU_APIS and not gpus:
        if name == "metal" and device.apple is not None and device.host.virtual_machine:
            return Missing(name, "Metal is not used in a virtual machine, whose GPU lacks what llama.cpp needs.", "")
        return Missing(name, _NO_GPU[name], "See: edge devices")
    if name == "intel-gpu" and not device.gpus_of(name):
        return Missing(name, "There is no integrated GPU of Intel's here that this process can see.", "See: edge devices")
    if name == "ane" and (device.apple is None or not device.apple.has_neural_engine):
        return Missing(name, "There is no Neural Engine here: that needs a Mac with an Apple chip.", "See: edge devices")
    engine = device.engine(row.name)
    if engine is None or name not in engine.accelerators:
        if name == "ane":
            reason = f"The {row.name} backend is not installed with Core ML."
            return Missing(name, reason, install_hint(row.name), is_notable=True)
        here = f"{' and '.join(gpu.name for gpu in gpus)} is here, but the" if gpus else "The"
        reason = f"{here} installed {engine.package if engine else row.name} was built without {TITLES[name]}."
        return Missing(name, reason, row.package.rebuild if row.package else "", is_notable=bool(gpus))
    if gpus:
        free = sum(gpu.free_bytes for gpu in gpus)
        return Target(name, free, all(gpu.is_unified for gpu in gpus), " and ".join(gpu.name for gpu in gpus))
    # The library of any other accelerator looks for the hardware itself when it starts.
    chip = device.apple.chip if name == "ane" and device.apple is not None else TITLES[name]
    if name == "intel-gpu":
        chip = f"{device.gpus_of(name)[0].name}, on which edge has not been run yet"
    return Target(name, None, is_unified=True, reason=chip)
