"""Intel's integrated GPU and NPU, from what their drivers show in /sys; docs/openvino.md says what runs on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.device.profile import Gpu

if TYPE_CHECKING:
    from edge.device.profile import Memory
    from edge.device.system import System

__all__ = ["read_intel_gpus", "read_npu"]

_INTEL = "0x8086"
_INTEGRATED = "0000:00:02.0"  # the PCI address of Intel's integrated GPUs
_RENDER_NODES = range(128, 136)


def read_intel_gpus(system: System, memory: Memory) -> tuple[Gpu, ...]:
    """Return the integrated GPU that this process may use, if there is one.

    Args:
        system: where to look.
        memory: main memory, which it shares.
    """
    for number in _RENDER_NODES:
        device = f"/sys/class/drm/renderD{number}/device"
        about = _about(system, device)
        if about.get("PCI_SLOT_NAME") == _INTEGRATED and system.exists(f"/dev/dri/renderD{number}"):
            name = f"Intel integrated GPU ({about['PCI_ID']})"
            driver = about.get("DRIVER", "")
            return (Gpu(name, "intel-gpu", memory.total_bytes, memory.available_bytes, True, "", driver),)
    return ()


def read_npu(system: System) -> str:
    """Return the name of Intel's NPU, "" where this process cannot use one."""
    about = _about(system, "/sys/class/accel/accel0/device")
    return f"Intel NPU ({about['PCI_ID']})" if about and system.exists("/dev/accel/accel0") else ""


def _about(system: System, device: str) -> dict[str, str]:
    """Return what the kernel says of a device of Intel's: driver, PCI address and number; {} of anything else."""
    if system.read(f"{device}/vendor") != _INTEL:
        return {}
    lines = (line.partition("=") for line in system.read(f"{device}/uevent").splitlines())
    return {"PCI_ID": "", **{key: value for key, _, value in lines}}
