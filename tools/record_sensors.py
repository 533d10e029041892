"""Records what a machine's sensors say while something goes on, for tests/fixtures/sensors: python tools/record_sensors.py OUT

One JSON object a line: seconds since the beginning, and the files and command outputs that differ from the line before.
Read it before you share it: it holds the paths of your control group and of what is mounted as one.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from edge.device.sensors import Sensors
from edge.device.system import CapturedSystem, RecordingSystem


def main() -> None:
    """Record until the time is over or Ctrl+C is pressed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--every", type=float, default=2.0, metavar="SECONDS")
    options = parser.parse_args()

    system = RecordingSystem()
    sensors = Sensors(system)
    before: dict[str, str] = {}
    began = time.monotonic()
    with options.out.open("w", encoding="utf-8") as out:
        while (now := time.monotonic() - began) <= options.seconds:
            readings = sensors.read()
            parts = CapturedSystem(system.capture()).parts
            changed = {name: body for name, body in parts.items() if before.get(name) != body}
            out.write(json.dumps({"t_s": round(now, 2), "parts": changed}) + "\n")
            out.flush()
            print(f"{now:6.1f} s  {readings}")
            before = parts
            time.sleep(max(0.0, began + now + options.every - time.monotonic()))


if __name__ == "__main__":
    main()
