"""Memory, heat and battery right now: read repeatedly, where `edge.device.probe` asks once.

    Linux   /proc/meminfo, limits of control groups, memory.pressure (PSI) and memory.events of the group,
            /sys/class/thermal (a Jetson's zones too), vcgencmd on a Raspberry Pi, /sys/class/power_supply
    macOS   vm_stat, kern.memorystatus_vm_pressure_level, pmset -g therm, the thermal pressure that macOS notifies programs of
            (notifyutil), pmset -g batt

Source: Documentation/accounting/psi.rst and driver-api/thermal of the Linux kernel; OSThermalNotification.h of macOS for the
levels of thermal pressure (0 nominal, 1 moderate, 2 heavy, 3 trapping, 4 sleeping); dispatch/source.h for those of memory
(1 normal, 2 warning, 4 critical).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edge.device.system import System

__all__ = ["Readings", "Sensors"]

_PRESSURE_KEY = "com.apple.system.thermalpressurelevel"
_MAC_COMMANDS: tuple[tuple[str, ...], ...] = (
    ("sysctl", "hw.memsize", "kern.memorystatus_vm_pressure_level"),
    ("vm_stat",),
    ("pmset", "-g", "batt"),
    ("pmset", "-g", "therm"),
    ("notifyutil", "-g", _PRESSURE_KEY),
)


@dataclass(frozen=True, slots=True)
class Readings:
    """One reading of all sensors. None is a value that this machine does not have.

    Attributes:
        total_bytes: memory this process may use at most: the machine's, or the limit of its control group.
        available_bytes: the part that is free, or could be freed by dropping caches.
        stall_percent: share of the last ten seconds in which a process waited for memory (PSI, some avg10).
        n_oom_kills: processes of this control group that the kernel has killed for memory, ever since.
        memory_level: of macOS: 1 normal, 2 warning, 4 critical.
        hottest_c: the highest temperature, in degrees Celsius.
        headroom_c: degrees left until the kernel throttles, of the nearest zone; negative beyond.
        is_throttled: the system says that it is throttled because of heat.
        heat_level: of macOS: 0 nominal, 1 moderate, 2 heavy, 3 trapping, 4 sleeping.
        battery_percent: charge of the battery; None without one.
        is_on_battery: no charger is connected.
    """

    total_bytes: int | None = None
    available_bytes: int | None = None
    stall_percent: float | None = None
    n_oom_kills: int | None = None
    memory_level: int | None = None
    hottest_c: float | None = None
    headroom_c: float | None = None
    is_throttled: bool = False
    heat_level: int | None = None
    battery_percent: int | None = None
    is_on_battery: bool = False


class Sensors:
    """The sensors of one machine. A sensor that cannot be read is left out; nothing here raises.

    Args:
        system: where to look; None is this machine.

    Attributes:
        period_s: how often they are worth reading. Commands, which macOS needs, cost more than files.
    """

    def __init__(self, system: System | None = None) -> None:
        self._system = system or System()
        self._is_mac = self._system.os_name == "darwin"
        self.period_s = 10.0 if self._is_mac else 2.0
        self._zones: dict[str, float | None] = {}
        self._groups: list[tuple[str, int]] = []
        if not self._is_mac:
            from edge.device.cgroups import group_folders
            from edge.device.linux import find_zones

            self._zones = find_zones(self._system)  # trip points do not change, only the temperature is read again
            self._groups = group_folders(self._system)  # its own first, then those around it

    def read(self) -> Readings:
        """Read all of them."""
        return self._read_mac() if self._is_mac else self._read_linux()

    def _read_linux(self) -> Readings:
        from edge.device.cgroups import read_limits
        from edge.device.linux import parse_temperature, read_memory, read_pi_throttling, read_power

        system = self._system
        memory, power = read_memory(system, read_limits(system)), read_power(system)
        found = [(parse_temperature(system.read(f"{zone}/temp")), trip) for zone, trip in self._zones.items()]
        warm = [(temperature, trip) for temperature, trip in found if temperature is not None]
        return Readings(
            total_bytes=memory.total_bytes or None,
            available_bytes=memory.available_bytes if memory.total_bytes else None,
            stall_percent=self._stall(),
            n_oom_kills=self._oom_kills(),
            hottest_c=max((temperature for temperature, _ in warm), default=None),
            headroom_c=min((trip - temperature for temperature, trip in warm if trip is not None), default=None),
            is_throttled=bool(read_pi_throttling(system)),
            battery_percent=power.battery_percent,
            is_on_battery=power.source == "battery",
        )

    def _stall(self) -> float | None:
        """Return the stall of the group, where the kernel has it: the machine's includes other groups."""
        texts = [self._system.read(f"{folder}/memory.pressure") for folder, _ in self._groups]
        for text in [*texts, self._system.read("/proc/pressure/memory")]:
            some = re.search(r"^some avg10=(\d+(?:\.\d+)?)", text, re.MULTILINE)
            if some:
                return float(some[1])
        return None

    def _oom_kills(self) -> int | None:
        for folder, version in self._groups:
            text = self._system.read(f"{folder}/{'memory.events' if version == 2 else 'memory.oom_control'}")
            kills = re.search(r"^oom_kill (\d+)", text, re.MULTILINE)
            if kills:
                return int(kills[1])
        return None

    def _read_mac(self) -> Readings:
        from edge.device.macos import parse_memory, parse_power, parse_sysctl, parse_thermal

        sysctl, vm_stat, battery, heat, pressure = self._system.run_all(_MAC_COMMANDS)
        values = parse_sysctl(sysctl)
        memory, power = parse_memory(values, vm_stat), parse_power(battery, "")
        level = re.search(rf"{re.escape(_PRESSURE_KEY)} (\d+)", pressure)
        memory_level = values.get("kern.memorystatus_vm_pressure_level", "")
        is_known = bool(memory.total_bytes and vm_stat)
        return Readings(
            total_bytes=memory.total_bytes or None,
            available_bytes=memory.available_bytes if is_known else None,
            memory_level=int(memory_level) if memory_level.isdecimal() else None,
            is_throttled=parse_thermal(heat).state == "throttled",
            heat_level=int(level[1]) if level else None,
            battery_percent=power.battery_percent,
            is_on_battery=power.source == "battery",
        )
