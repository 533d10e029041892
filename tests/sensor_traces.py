"""Replays traces of tests/fixtures/sensors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from edge.device.sensors import Readings, Sensors
from edge.device.system import CapturedSystem

__all__ = ["FOLDER", "replay"]

FOLDER = Path(__file__).parent / "fixtures" / "sensors"


def replay(name: str) -> Iterator[tuple[float, Readings]]:
    """Return the readings of `Sensors` at each time of a trace; one Sensors for all of it, as on the machine."""
    system: CapturedSystem | None = None
    for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        step = json.loads(line)
        if system is None:
            system = CapturedSystem("".join(f"==> {part} <==\n{body}\n" for part, body in step["parts"].items()))
            sensors = Sensors(system)
        system.parts.update(step["parts"])
        yield step["t_s"], sensors.read()
