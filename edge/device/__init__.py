"""This machine: its hardware, its sensors, and the cost of a turn.

detection.py  `probe()`: fast, no engine imported, never an error
profile.py    the result, as values
linux.py      Linux: processors, memory, power, heat, containers
macos.py      macOS, from small commands run at the same time
nvidia.py     CUDA devices and Jetsons
intel.py      Intel's integrated GPU and NPU
cgroups.py    limits of control groups, versions 1 and 2
system.py     files, commands and packages that the probe reads; captured ones can replace them
identity.py   the CPU and kernel that stored measurements belong to
sensors.py    memory, heat and battery right now
energy.py     energy meters: RAPL, tegrastats, powermetrics
cost.py       memory and energy of a turn
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge.device.detection import probe
    from edge.device.profile import Apple, Cpu, DeviceProfile, Engine, Gpu, Host, Jetson, Memory, Power, Thermal
    from edge.device.system import CapturedSystem, RecordingSystem, System

__all__ = [
    "Apple",
    "CapturedSystem",
    "Cpu",
    "DeviceProfile",
    "Engine",
    "Gpu",
    "Host",
    "Jetson",
    "Memory",
    "Power",
    "RecordingSystem",
    "System",
    "Thermal",
    "probe",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge.device.detection": ("probe",),
        "edge.device.profile": (
            "Apple",
            "Cpu",
            "DeviceProfile",
            "Engine",
            "Gpu",
            "Host",
            "Jetson",
            "Memory",
            "Power",
            "Thermal",
        ),
        "edge.device.system": ("CapturedSystem", "RecordingSystem", "System"),
    },
)
