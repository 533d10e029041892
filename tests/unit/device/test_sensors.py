"""Readings of captured machines; nothing that they say, or fail to say, is an error."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.device.sensors import Readings, Sensors
from edge.device.system import CapturedSystem, System
from edge.engine.governor import Governor, Limits, Watch, Workload
from edge.errors import BackendError
from tests.sensor_traces import replay

DEVICES = Path(__file__).parents[2] / "fixtures" / "devices"
MIB = 1 << 20


def machine(os: str = "linux", **parts: str) -> CapturedSystem:
    facts = {"@system": json.dumps({"os": os, "machine": "aarch64"}), **parts}
    return CapturedSystem("".join(f"==> {name} <==\n{body}\n" for name, body in facts.items()))


def read(os: str = "linux", **parts: str) -> Readings:
    return Sensors(machine(os, **parts)).read()


GROUP = {
    "/proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 4194304 kB",
    "/proc/self/cgroup": "0::/app",
    "/proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate",
    "/sys/fs/cgroup/app/memory.max": str(512 * MIB),
    "/sys/fs/cgroup/app/memory.high": str(400 * MIB),
    "/sys/fs/cgroup/app/memory.current": str(390 * MIB),
    "/sys/fs/cgroup/app/memory.stat": f"anon 1\ninactive_file {20 * MIB}\nactive_file 0",
    "/sys/fs/cgroup/app/memory.events": "low 0\nhigh 814\nmax 3\noom 1\noom_kill 2\noom_group_kill 0",
    "/sys/fs/cgroup/app/memory.pressure": "some avg10=12.50 avg60=3.00 avg300=0.70 total=81\nfull avg10=9.00 avg60=0 total=1",
    "/proc/pressure/memory": "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0",
}


def test_a_control_group_of_version_2() -> None:
    """Above memory.high the kernel slows a group down, so that is the limit that counts."""
    readings = read(**GROUP)
    assert (readings.total_bytes, readings.available_bytes) == (400 * MIB, 30 * MIB)
    assert (readings.stall_percent, readings.n_oom_kills) == (12.5, 2)


def test_without_pressure_of_its_own_the_machines_counts() -> None:
    parts = {**GROUP, "/proc/pressure/memory": "some avg10=4.20 avg60=0.00 avg300=0.00 total=0"}
    del parts["/sys/fs/cgroup/app/memory.pressure"]
    assert read(**parts).stall_percent == 4.2


def test_the_recording_of_a_container() -> None:
    readings = [reading for _, reading in replay("container")]
    assert {reading.total_bytes for reading in readings} == {249 * MIB}
    assert min(reading.available_bytes or 0 for reading in readings) < 11 * MIB
    assert max(reading.stall_percent or 0 for reading in readings) > 15
    assert {reading.n_oom_kills for reading in readings} == {0}


def test_the_zone_nearest_to_its_own_limit_counts() -> None:
    zone = "/sys/class/thermal/thermal_zone"
    readings = read(
        **{
            f"{zone}0/type": "acpitz", f"{zone}0/temp": "90000",
            f"{zone}1/type": "cpu", f"{zone}1/temp": "70000",
            f"{zone}1/trip_point_0_type": "passive", f"{zone}1/trip_point_0_temp": "75000",
            f"{zone}2/type": "gpu", f"{zone}2/temp": "80000",
            f"{zone}2/trip_point_0_type": "passive", f"{zone}2/trip_point_0_temp": "99000",
        }
    )  # fmt: skip
    assert (readings.hottest_c, readings.headroom_c) == (90.0, 5.0)


def test_a_zone_that_is_off_says_nothing() -> None:
    first = next(readings for _, readings in replay("jetson"))
    assert first.hottest_c is not None and 55 < first.hottest_c < 65


@pytest.mark.parametrize(("flags", "is_throttled"), [("0x0", False), ("0x50000", False), ("0x50005", True), ("0x80008", True)])
def test_a_raspberry_pi_says_it_itself(flags: str, is_throttled: bool) -> None:
    """Bits from 16 up tell of the past; bit 0 is undervoltage, which is not heat."""
    parts = {"/proc/device-tree/model": "Raspberry Pi 5 Model B", "$ vcgencmd get_throttled": f"throttled={flags}"}
    assert read(**parts).is_throttled is is_throttled


def test_a_battery() -> None:
    course = [(readings.is_on_battery, readings.battery_percent) for _, readings in replay("laptop")]
    assert (True, 15) in course and (False, 20) in course
    assert min(percent or 0 for _, percent in course) == 8


def test_a_mac() -> None:
    course = dict(replay("mac"))
    assert [course[t_s].heat_level for t_s in (0, 28, 38)] == [0, 1, 2]
    assert (course[0].memory_level, course[100].memory_level) == (1, 2)
    assert course[0].total_bytes == 18 << 30
    assert course[0].available_bytes == (214318 + 331954 + 35181) * 16384
    assert not course[100].is_throttled


def test_a_mac_with_an_intel_processor_says_it_with_a_speed_limit() -> None:
    therm = "2026-08-20 05:08:37 -0700 CPU Power notify\n\tCPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= 46"
    readings = read("darwin", **{"$ pmset -g therm": therm})
    assert readings.is_throttled
    assert readings.heat_level is None


def test_a_machine_without_any_sensor() -> None:
    assert read() == Readings()
    assert read("darwin") == Readings()
    assert read("win32") == Readings()


@pytest.mark.parametrize("path", sorted(DEVICES.glob("*.txt")), ids=lambda path: path.stem)
def test_captured_machines_are_well(path: Path) -> None:
    readings = Sensors(CapturedSystem(path.read_text())).read()
    if not path.stem.startswith("mac-"):  # the probe asks sysctl for more at once, so these have nothing to replay here
        assert readings.total_bytes and readings.available_bytes
    governor = Governor(Workload(4, 4, 8192, 200 * MIB))
    assert governor.step(readings, 0.0).note == ""


def test_this_machine_agrees_with_psutil() -> None:
    readings = Sensors().read()
    assert readings.total_bytes is not None and readings.total_bytes <= psutil.virtual_memory().total
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    assert (readings.battery_percent is None) == (battery is None)


FILES = sorted({part for name in ("container", "jetson", "laptop") for part in json.loads(
    (DEVICES.parent / "sensors" / f"{name}.jsonl").read_text().splitlines()[0])["parts"]} | set(GROUP))  # fmt: skip
COMMANDS = sorted(json.loads((DEVICES.parent / "sensors" / "mac.jsonl").read_text().splitlines()[0])["parts"])
nonsense = st.one_of(
    st.text(max_size=40),
    st.integers().map(str),
    st.sampled_from(
        ["max", "-1", "nan", "some avg10=x", "oom_kill ?", "MemTotal: kB", "throttled=0xzz", "Page size of 0 bytes", "²"]
    ),
)


@given(st.sampled_from(["linux", "darwin"]), st.dictionaries(st.sampled_from([*FILES, *COMMANDS]), nonsense))
def test_nonsense_is_no_error(os: str, parts: dict[str, str]) -> None:
    system = machine(os)
    system.parts.update({name: body for name, body in parts.items() if name != "@system"})
    governor = Governor(Workload(4, 4, 8192, 200 * MIB))
    assert governor.step(Sensors(system).read(), 0.0).n_threads >= 1


class Broken(System):
    """Every file is there and none can be read; commands are missing."""

    def read(self, path: str) -> str:
        return ""

    def names(self, folder: str) -> list[str]:
        return ["thermal_zone0", "BAT0", "temp"]

    def run(self, *command: str, timeout_s: float = 2.0) -> str:
        return ""


def test_files_that_cannot_be_read_are_no_error() -> None:
    assert Sensors(Broken()).read() == Readings()


# The thread that reads them


class Scripted(Sensors):
    """Readings from a list; the last one stays."""

    def __init__(self, *readings: Readings) -> None:
        super().__init__(machine())
        self.left = list(readings)

    def read(self) -> Readings:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


HOT = Readings(hottest_c=98.0, headroom_c=1.0)


def test_a_watch_hands_over_what_changes_and_only_that() -> None:
    told: list[Limits] = []
    is_told = threading.Event()

    def apply(limits: Limits) -> None:
        told.append(limits)
        is_told.set()

    sensors = Scripted(Readings(), Readings(), HOT)
    watch = Watch(Governor(Workload(4, 4, 8192)), sensors, apply, period_s=0.001)
    assert is_told.wait(60)
    watch.close()
    watch.close()
    assert [limits.note for limits in told] == ["hot: 3 of 4 threads"]


def test_a_watch_goes_on_after_a_failure_and_says_it_once(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Scripted):
        def read(self) -> Readings:
            if len(self.left) > 1:
                self.left.pop()
                raise RuntimeError("no thread can be started")
            return HOT

    is_told = threading.Event()
    watch = Watch(Governor(Workload(4, 4, 8192)), Failing(HOT, HOT, HOT), lambda _: is_told.set(), period_s=0.001)
    assert is_told.wait(60)
    watch.close()
    assert caplog.text.count("The sensors could not be read") == 1


def test_a_watch_ends_when_nobody_wants_its_limits() -> None:
    def apply(limits: Limits) -> None:
        raise BackendError("This assistant is closed.")

    watch: Any = Watch(Governor(Workload(4, 4, 8192)), Scripted(HOT), apply, period_s=0.001)
    watch._thread.join(60)
    assert not watch._thread.is_alive()
