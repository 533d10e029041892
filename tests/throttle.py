"""Throttles an assistant to given limits, the way a governor does."""

from __future__ import annotations

import time
from collections.abc import Callable

from edge.assistant import Assistant
from edge.device.sensors import Readings, Sensors
from edge.engine.governor import Governor, Limits, Workload

FULL = Limits(4, 4, 0.0, 4096, False)
SHORT = Limits(4, 4, 0.0, 1024, True, "short of memory: window 1,024", "12 MiB available")


class QuickSensors(Sensors):
    """Readings that a test sets, read every millisecond."""

    def __init__(self) -> None:
        super().__init__()
        self.period_s = 0.001
        self.readings = Readings()

    def read(self) -> Readings:
        return self.readings


class SetGovernor(Governor):
    """Limits that a test sets."""

    def __init__(self, limits: Limits = FULL) -> None:
        super().__init__(Workload(4, 4, 4096))
        self.wanted = limits

    def step(self, readings: Readings, now_s: float) -> Limits:
        self.limits = self.wanted
        return self.limits

    def set(self, assistant: Assistant, limits: Limits) -> None:
        """Set limits and wait until the assistant has taken them on."""
        eventually(lambda: assistant.limits is not None)  # the first ones, which would be taken for these
        before, self.wanted = assistant.limits, limits
        eventually(lambda: assistant.limits is not before)


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    end_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end_s, "it never came true"
        time.sleep(0.001)
