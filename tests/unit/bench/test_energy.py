"""Meters of energy, from captured lines and counters in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge.device.energy import CounterMeter, PowerMeter, find_meter, powermetrics_watts, tegrastats_watts
from tests.unit.bench.fakes import Clock

ORIN = (
    "11-26-2026 10:00:00 RAM 2943/7620MB (lfb 4x2MB) SWAP 0/3810MB (cached 0MB) CPU [3%@1510,off,off] EMC_FREQ 0%@2133 "
    "GR3D_FREQ 0%@[305] CPU@47.5C SOC2@46.1C VDD_IN 4967mW/4812mW VDD_CPU_GPU_CV 798mW/810mW VDD_SOC 1437mW/1440mW"
)
AGX = (
    "RAM 5000/30000MB (lfb 2x4MB) SWAP 0/15000MB (cached 0MB) CPU [1%@729] GR3D_FREQ 0% CPU@40C "
    "VDD_GPU_SOC 2400mW/2400mW VDD_CPU_CV 400mW/400mW VIN_SYS_5V0 3200mW/3200mW"
)
NANO = "RAM 1500/3956MB (lfb 400x4MB) SWAP 0/1978MB CPU [5%@1479] POM_5V_IN 2345/2400 POM_5V_GPU 40/40 POM_5V_CPU 500/500"


@pytest.mark.parametrize(("line", "watts"), [(ORIN, 4.967), (AGX, 6.0), (NANO, 2.345), ("RAM 1/2MB SWAP 0/1MB", None)])
def test_lines_of_tegrastats(line: str, watts: float | None) -> None:
    assert tegrastats_watts(line) == (watts if watts is None else pytest.approx(watts))


def test_lines_of_powermetrics() -> None:
    assert powermetrics_watts("Combined Power (CPU + GPU + ANE): 3120 mW") == pytest.approx(3.12)
    assert powermetrics_watts("CPU Power: 2100 mW") is None


def zone(folder: Path, name: str, title: str, uj: int, most: int = 1000) -> Path:
    made = folder / name
    made.mkdir(parents=True)
    (made / "name").write_text(title + "\n")
    (made / "energy_uj").write_text(f"{uj}\n")
    (made / "max_energy_range_uj").write_text(f"{most}\n")
    return made


def test_counters_that_run_over(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 900)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 10)
    zone(tmp_path, "intel-rapl:1", "psys", 77)
    meter = CounterMeter(tmp_path)
    assert meter.name == "RAPL: package-0, dram"
    (package / "energy_uj").write_text("100\n")
    (memory / "energy_uj").write_text("40\n")
    # From 900 over the end at 1,000 (0 follows it) to 100, and 30 of memory.
    assert meter.joules() == pytest.approx((201 + 30) / 1e6)
    assert meter.joules() == pytest.approx(231 / 1e6)


def test_power_is_integrated() -> None:
    clock = Clock()

    def lines() -> object:
        for seconds, line in ((0.0, "4"), (1.0, "6"), (1.0, "noise"), (2.0, "1")):
            clock.now += seconds
            yield line

    meter = PowerMeter("test", lines(), lambda line: float(line) if line != "noise" else None, clock=clock)  # type: ignore[arg-type]
    assert meter.wait(120)
    meter.close()
    # Each line speaks for the time since the one before: 6 W for 1 s, 1 W for 3 s; then the last one goes on.
    assert meter.joules() == pytest.approx(9.0)
    clock.now += 2.0
    assert meter.joules() == pytest.approx(11.0)


def test_why_there_is_no_meter(tmp_path: Path) -> None:
    nothing = find_meter(tmp_path, platform="linux", which=lambda name: None)
    assert nothing[0] is None
    assert "does not report" in nothing[1]
    mac = find_meter(tmp_path, platform="darwin", which=lambda name: "/usr/bin/powermetrics", is_root=False)
    assert mac[0] is None
    assert "sudo" in mac[1]
    gone = find_meter(tmp_path, platform="linux", which=lambda name: "/nowhere/tegrastats" if name == "tegrastats" else None)
    assert gone[0] is None
    assert "tegrastats" in gone[1]


def test_counters_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    plain = Path.read_text

    def refuse(self: Path, *args: object, **options: object) -> str:
        if self.name == "energy_uj":
            raise PermissionError
        return plain(self, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", refuse)
    meter, why = find_meter(tmp_path, platform="linux", which=lambda name: None)
    assert meter is None
    assert "root only" in why
