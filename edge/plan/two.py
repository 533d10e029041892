"""The plans of two models, or of one on two engines, that have to fit beside each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.errors import ModelTooLargeError

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.plan.receipt import MemoryEstimate, Plan

__all__ = ["device_without", "plan_both"]


def plan_both(
    device: DeviceProfile, choose: Callable[[DeviceProfile], Plan], choose_second: Callable[[DeviceProfile, Plan], Plan]
) -> tuple[Plan, Plan]:
    """Return two plans that fit beside each other; the first one does with less where it has to.

    Args:
        device: from `edge.device.probe`.
        choose: plans the first one.
        choose_second: plans the second one beside it.

    Raises:
        ModelTooLargeError: one of them does not fit beside the other.
    """
    plan = choose(device)
    try:
        return plan, choose_second(device_without(device, plan.memory), plan)
    except ModelTooLargeError:  # the first one took what it could get
        plan = choose(device_without(device, choose_second(device, plan).memory))
        return plan, choose_second(device_without(device, plan.memory), plan)


def device_without(device: DeviceProfile, memory: MemoryEstimate) -> DeviceProfile:
    """Return the device with so much less main memory to give."""
    host_bytes = memory.total_bytes - memory.device_bytes
    left = max(0, device.memory.available_bytes - host_bytes)
    return replace(device, memory=replace(device.memory, available_bytes=left))
