"""Energy meters of devices. `find_meter` takes the first that works here.

    RAPL            counters of an x86 processor, in /sys/class/powercap; readable by root only since CVE-2020-8694
    tegrastats      power of a Jetson's rails, a line every 100 ms
    powermetrics    power of an Apple chip, a line every 200 ms; needs root

All of them measure the whole device, idle draw and other programs included.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CounterMeter", "Meter", "PowerMeter", "find_meter", "powermetrics_watts", "tegrastats_watts"]

_POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")
_RAIL = re.compile(r"\b([A-Z][A-Z0-9_]*) (\d+)(?:mW)?/(\d+)(?:mW)?")
_TOTAL_RAILS = ("VDD_IN", "POM_5V_IN")
_APPLE = re.compile(r"(Combined Power|Package Power)[^:]*: (\d+(?:\.\d+)?) mW")


class Meter(ABC):
    """Counts energy from its creation on."""

    name: str

    @abstractmethod
    def joules(self) -> float:
        """Return the energy that the device has used so far."""

    def close(self) -> None:  # noqa: B027 (counters hold nothing)
        """Free what it holds."""


@dataclass
class _Counter:
    """One counter that wraps around."""

    file: Path
    range_uj: int
    last_uj: int
    total_uj: int = 0

    def advance(self) -> int:
        now = int(self.file.read_text("ascii"))
        self.total_uj += (now - self.last_uj) % (self.range_uj + 1)
        self.last_uj = now
        return self.total_uj


class CounterMeter(Meter):
    """RAPL: processor packages and, where they are counted apart, memory.

    Args:
        folder: the powercap class of the kernel.

    Raises:
        PermissionError: only root may read the counters.
        FileNotFoundError: there are none.
    """

    def __init__(self, folder: Path = _POWERCAP) -> None:
        zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if _is_counted(zone)]
        if not zones:
            raise FileNotFoundError(f"{folder} has no counters")
        self._counters = [
            _Counter(
                zone / "energy_uj",
                int((zone / "max_energy_range_uj").read_text("ascii")),
                int((zone / "energy_uj").read_text("ascii")),
            )
            for zone in zones
        ]
        self.name = "RAPL: " + ", ".join(_zone_name(zone) for zone in zones)

    def joules(self) -> float:
        return sum(counter.advance() for counter in self._counters) / 1e6


class PowerMeter(Meter):
    """Integrates the power that a program reports, line by line.

    Args:
        name: for people.
        lines: output of the program; read in a thread of its own.
        watts: the power in a line, or None where it has none.
        stop: ends the program.
        clock: seconds.
    """

    def __init__(
        self,
        name: str,
        lines: Iterable[str],
        watts: Callable[[str], float | None],
        stop: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._watts, self._stop, self._clock = watts, stop, clock
        self._lock = threading.Lock()
        self._joules, self._power, self._since = 0.0, 0.0, clock()
        self._has_begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(lines,), name="edge-energy", daemon=True)
        self._thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the first figure; return False where none came."""
        return self._has_begun.wait(timeout_s)

    def joules(self) -> float:
        with self._lock:
            return self._joules + self._power * (self._clock() - self._since)

    def close(self) -> None:
        self._stop()
        self._thread.join(timeout=2.0)

    def _read(self, lines: Iterable[str]) -> None:
        for line in lines:
            power = self._watts(line)
            if power is None:
                continue
            with self._lock:
                now = self._clock()
                # Power is an average over the time before the line, so the newest one stands for all of it.
                self._joules += power * (now - self._since) if self._has_begun.is_set() else 0.0
                self._power, self._since = power, now
            self._has_begun.set()


def tegrastats_watts(line: str) -> float | None:
    """Return the power in a line of tegrastats: of the whole module where that has a rail, else the sum of all rails."""
    rails = {name: int(now) / 1000 for name, now, _ in _RAIL.findall(line) if name not in ("RAM", "SWAP", "IRAM")}
    for name in _TOTAL_RAILS:
        if name in rails:
            return rails[name]
    return sum(rails.values()) if rails else None


def powermetrics_watts(line: str) -> float | None:
    """Return the power in a line of powermetrics: CPU, GPU and Neural Engine together."""
    found = _APPLE.search(line)
    return float(found[2]) / 1000 if found else None


def find_meter(
    powercap: Path = _POWERCAP,
    *,
    platform: str = sys.platform,
    which: Callable[[str], str | None] = shutil.which,
    is_root: bool | None = None,
) -> tuple[Meter | None, str]:
    """Return a meter and its name, or None and why there is none.

    Args:
        powercap: the kernel's folder of power domains.
        platform: as in sys.platform.
        which: finds a program.
        is_root: None asks the system.
    """
    if is_root is None:
        is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    if platform == "darwin":
        if not which("powermetrics"):
            return None, "macOS reports energy through powermetrics, which is not here"
        if not is_root:
            return None, "macOS reports energy to root only: sudo edge bench ..."
        command = ["powermetrics", "--samplers", "cpu_power", "-i", "200"]
        return _watch("powermetrics: CPU, GPU and Neural Engine", command, powermetrics_watts)
    if which("tegrastats"):
        return _watch("tegrastats: the whole module", ["tegrastats", "--interval", "100"], tegrastats_watts)
    try:
        meter = CounterMeter(powercap)
    except PermissionError:
        return None, "the processor's energy counters (RAPL) may be read by root only: sudo edge bench ..."
    except (OSError, ValueError):
        return None, "this device does not report energy: no RAPL counters, no tegrastats"
    return meter, meter.name


def _watch(name: str, command: list[str], watts: Callable[[str], float | None]) -> tuple[Meter | None, str]:
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True, errors="replace"
        )
    except OSError as error:
        return None, f"{command[0]} cannot be started ({error.strerror})"
    assert process.stdout is not None

    def stop() -> None:
        process.terminate()
        process.wait()

    meter = PowerMeter(name, process.stdout, watts, stop)
    if not meter.wait(3.0):
        meter.close()
        return None, f"{command[0]} reported nothing within 3 s"
    return meter, name


def _is_counted(zone: Path) -> bool:
    """Return whether a zone is a package or its memory. Cores and graphics are parts of a package, "psys" is everything."""
    name = _zone_name(zone)
    return (_PACKAGE.fullmatch(zone.name) is not None and name.startswith("package")) or name == "dram"


def _zone_name(zone: Path) -> str:
    try:
        return (zone / "name").read_text("ascii").strip()
    except OSError:
        return ""
