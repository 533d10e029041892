"""The plan of a model together with LoRA adapters: they take memory, and only some engines apply them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.errors import UnsupportedError
from edge.plan.receipt import Choice
from edge.registry import ENGINES
from edge.units import size_text

if TYPE_CHECKING:
    from edge.adapters import Adapter
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact
    from edge.plan.receipt import Plan

__all__ = ["check_formats", "engine_for_adapters", "plan_with_adapters"]

_MERGE = "Or merge the adapter into the model: edge convert MODEL --lora FOLDER"


def engine_for_adapters(backend: str | None) -> str:
    """Return the engine that applies adapters: the one asked for, or the first that can.

    Raises:
        UnsupportedError: the one asked for cannot.
    """
    able = [row for row in ENGINES.values() if row.takes_adapters and row.is_automatic]
    if backend is None:
        return able[0].name
    if backend in ENGINES and not ENGINES[backend].takes_adapters:
        raise UnsupportedError(
            f"{ENGINES[backend].title} cannot apply adapters; {able[0].title} can.",
            f"Leave out --backend {backend}. {_MERGE}",
        )
    return backend


def check_formats(artifacts: Sequence[Artifact], backend: str) -> None:
    """Refuse a model without a file for the engine that applies adapters.

    Raises:
        UnsupportedError: it has none.
    """
    row = ENGINES.get(backend)
    if row is not None and artifacts and not any(artifact.format in row.formats for artifact in artifacts):
        raise UnsupportedError(
            f"{artifacts[0].name} is here as {artifacts[0].kind}, to which no adapter can be applied; {row.title} can.",
            f"Get the model as {row.formats[0].upper()}. {_MERGE}",
        )


def plan_with_adapters(
    device: DeviceProfile,
    choose: Callable[[DeviceProfile], Plan],
    find: Callable[[Artifact], tuple[Adapter, ...]],
    *,
    is_engine_asked: bool,
) -> Plan:
    """Return the plan of a model, with its adapters in it and in its memory.

    Args:
        device: from `edge.device.probe`.
        choose: plans the model.
        find: reads the adapters for a model.
        is_engine_asked: the user named the engine.

    Raises:
        EdgeError: as `choose` and `find`; ModelTooLargeError also if the model does not fit beside the adapters.
    """
    adapters = find(choose(device).artifact)
    n_bytes = sum(adapter.size_bytes for adapter in adapters)
    plan = choose(_without(device, n_bytes))
    own = plan.memory
    is_on_device = plan.gpu_layers > 0 and own.device_available_bytes > 0
    device_bytes = n_bytes if is_on_device else 0
    memory = replace(
        own,
        total_bytes=own.total_bytes + n_bytes,
        available_bytes=own.available_bytes + n_bytes + device_bytes,
        device_bytes=own.device_bytes + device_bytes,
        device_available_bytes=own.device_available_bytes + device_bytes,
        adapter_bytes=n_bytes,
    )
    reason = "the engine that applies adapters"
    choices = [replace(one, reason=reason) if one.what == "backend" and not is_engine_asked else one for one in plan.choices]
    return replace(plan, adapters=adapters, memory=memory, choices=(*choices, *map(_line, adapters)))


def _line(adapter: Adapter) -> Choice:
    """Return the line of the receipt."""
    name = adapter.text if adapter.scale else f"{adapter.name}, not applied"
    reason = "asked for" if adapter.scale else "for replies that ask for it"
    changes = f"changes {adapter.n_changed:,} of its matrices"
    return Choice("adapter", name, f"{reason}; of rank {adapter.rank}, {changes}, {size_text(adapter.size_bytes)} of memory")


def _without(device: DeviceProfile, n_bytes: int) -> DeviceProfile:
    """Return the device with so much less memory to give, wherever the layers go."""
    memory = replace(device.memory, available_bytes=max(0, device.memory.available_bytes - n_bytes))
    gpus = tuple(replace(gpu, free_bytes=max(0, gpu.free_bytes - n_bytes)) for gpu in device.gpus)
    return replace(device, memory=memory, gpus=gpus)
