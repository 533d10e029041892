"""Memory and energy of a turn. With `edge.types.Timing` and `Usage` they are stored with a reply."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.device.energy import Meter

__all__ = ["Cost", "TurnMeter", "peak_bytes", "trim_heap"]


@dataclass(frozen=True, slots=True)
class Cost:
    """Memory and energy of one turn.

    Attributes:
        memory_bytes: main memory that this process held at the end of the turn, mapped weights included; 0 where unknown.
        peak_bytes: the most it has held since it was started; 0 where unknown.
        energy_j: energy of processor and memory during the turn, in joules, other programs included; None where the device
            does not report it (RAPL, which Linux shows to root only).
    """

    memory_bytes: int = 0
    peak_bytes: int = 0
    energy_j: float | None = None


class TurnMeter:
    """Measures from its creation on. Takes well below a millisecond; nothing here raises."""

    def __init__(self) -> None:
        self._meter = _find_counter()
        self._began_j = _joules(self._meter)

    def read(self) -> Cost:
        """Return the cost so far."""
        now_j = _joules(self._meter)
        is_known = now_j is not None and self._began_j is not None
        return Cost(_memory_bytes(), peak_bytes(), round(now_j - self._began_j, 3) if is_known else None)  # type: ignore[operator]


def _find_counter() -> Meter | None:
    """Return counters that can simply be read. Meters that are programs are for `edge bench`: they take power themselves."""
    from edge.device.energy import CounterMeter

    try:
        return CounterMeter()
    except (OSError, ValueError):
        return None


def _joules(meter: Meter | None) -> float | None:
    try:
        return meter.joules() if meter is not None else None
    except (OSError, ValueError):
        return None  # the counter went away, or forbids it from now on


def _memory_bytes() -> int:
    import psutil

    try:
        return int(psutil.Process().memory_info().rss)
    except psutil.Error:
        return 0


def peak_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Return the most memory that this process ever held, in bytes; 0 if unknown."""
    try:
        for line in status.read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # not Linux, or an unusual one
    try:
        import resource
    except ImportError:  # Windows
        return 0
    # On Linux this begins with the parent's memory at the start of this process, so it is only the second choice.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def trim_heap() -> None:
    """Have the C library return freed memory to the system. glibc keeps its heap, where a KV cache may lie."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # musl has none, and returns memory by itself
        trim(0)
