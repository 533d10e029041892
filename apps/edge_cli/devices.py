"""`edge devices`: this machine and its accelerators."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from edge.units import size_text
from edge_cli import output
from edge_cli.app import App, pass_app
from edge_cli.group import examples
from edge_cli.options import json_option

if TYPE_CHECKING:
    from edge.device import Cpu, DeviceProfile, Engine

__all__ = ["device_rows", "devices"]


@click.command(epilog=examples("edge devices", "edge devices --json | jq .cpu.features"))
@json_option
@pass_app
def devices(app: App, as_json: bool) -> None:
    """Show this machine and its accelerators."""
    profile = app.probe()
    if as_json:
        output.json_object(profile.to_dict())
    else:
        output.table(device_rows(profile))


def device_rows(profile: DeviceProfile) -> list[tuple[str, str]]:
    """Return a profile as rows of name and value, without unknown values."""
    host, memory, power, thermal = profile.host, profile.memory, profile.power, profile.thermal
    around = [f"in {host.container}" if host.container else "", "on a virtual machine" if host.virtual_machine else ""]
    rows = [
        ("machine", profile.name),
        ("system", ", ".join(part for part in (host.os, *around, f"Python {host.python}") if part)),
        *_board_rows(profile),
        ("processor", _cores(profile.cpu)),
        *(("", limit) for limit in profile.cpu.limits),
        ("instructions", " ".join(profile.cpu.features)),
        ("memory", f"{size_text(memory.total_bytes)}, {size_text(memory.available_bytes)} available"),
        ("", f"{memory.limit} (the machine has {size_text(memory.host_total_bytes)})" if memory.limit else ""),
    ]
    if memory.swap_total_bytes:
        rows.append(("swap", f"{size_text(memory.swap_total_bytes)}, {size_text(memory.swap_free_bytes)} free"))
    for gpu in profile.gpus:
        kind = "shared with the processor" if gpu.is_unified else "dedicated"
        details = [gpu.api, f"{size_text(gpu.total_bytes)} {kind}", f"{size_text(gpu.free_bytes)} free", f"driver {gpu.driver}"]
        rows.append(("graphics", f"{gpu.name} ({', '.join(details if gpu.driver else details[:-1])})"))
    if profile.npu:
        rows.append(("neural", f"{profile.npu}, which no engine of edge can use"))
    if not profile.gpus:
        rows.append(("graphics", "none that an engine can use"))
    if power.source != "unknown" or power.mode:
        percent = f"{power.battery_percent} %" if power.battery_percent is not None else ""
        saving = "saving power" if power.is_saving else ""
        rows.append(("power", ", ".join(part for part in (power.source, percent, power.mode, saving) if part)))
    if thermal.state != "unknown":
        degrees = f"{thermal.hottest_c:.0f} °C" if thermal.hottest_c is not None else ""
        rows.append(("heat", ", ".join(part for part in (thermal.state, degrees, thermal.detail) if part)))
    rows += [("engine", f"{engine.package} {_about(profile, engine)}") for engine in profile.engines]
    return [row for row in rows if row[1]]


def _about(profile: DeviceProfile, engine: Engine) -> str:
    from edge.plan.placement import install_hint

    if engine.is_installed:
        return f"{engine.version}, for {', '.join(profile.accelerators_of(engine))}"
    if engine.version:
        return f"{engine.version}, which only converts models on this system"
    return f"not installed. {install_hint(engine.name)}".rstrip()


def _board_rows(profile: DeviceProfile) -> list[tuple[str, str]]:
    rows = []
    if profile.jetson is not None:
        jetson = profile.jetson
        release = [f"JetPack {jetson.jetpack}" if jetson.jetpack else "", f"Jetson Linux {jetson.l4t}" if jetson.l4t else ""]
        rows.append(("jetson", ", ".join(part for part in (jetson.soc, *release) if part)))
    if profile.apple is not None:
        engine = "with a Neural Engine" if profile.apple.has_neural_engine else "no Neural Engine"
        rows.append(("apple", f"{profile.apple.chip}, macOS {profile.apple.macos}, {engine}"))
    return rows


def _cores(cpu: Cpu) -> str:
    kinds = f" ({cpu.n_performance} fast, {cpu.n_efficiency} efficient)" if cpu.n_efficiency else ""
    off = f", {cpu.n_offline} switched off" if cpu.n_offline else ""
    used = cpu.usable_logical
    usable = f"; {used} threads can run at once here" if used != cpu.n_logical else ""
    return f"{cpu.name}, {cpu.architecture}: {cpu.n_physical} cores{kinds}, {cpu.n_logical} threads{off}{usable}"
