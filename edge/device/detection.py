"""Finds out what this machine is: `probe()`. Fast, without importing an engine, and never an error: what cannot be found out is
left empty.
"""

from __future__ import annotations

from dataclasses import replace

from edge.device.profile import DeviceProfile, Engine
from edge.device.system import System
from edge.registry import ENGINES, EnginePackage

__all__ = ["probe"]


def probe(system: System | None = None) -> DeviceProfile:
    """Return the profile of a machine.

    Args:
        system: where to look; None is this machine.
    """
    system = system or System()
    if system.os_name == "darwin":
        from edge.device.macos import read_mac

        return read_mac(system, _engines(system))
    return _probe_linux(system)


def _probe_linux(system: System) -> DeviceProfile:
    """Probe Linux, and as far as that works any other system: most of the profile is then empty."""
    from edge.device.cgroups import read_limits
    from edge.device.intel import read_intel_gpus, read_npu
    from edge.device.linux import read_cpu, read_host, read_memory, read_power, read_thermal
    from edge.device.nvidia import read_cuda_gpus, read_jetson

    limits = read_limits(system)
    cpu, memory, host, power = read_cpu(system, limits), read_memory(system, limits), read_host(system), read_power(system)
    jetson = read_jetson(system)
    if jetson is not None and jetson.power_mode:
        power = replace(power, mode=jetson.power_mode)
    board = system.read("/proc/device-tree/model")
    product = " ".join(
        system.read(f"/sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name") if not host.virtual_machine
    ).strip()
    kind = "jetson" if jetson else "raspberry-pi" if board.startswith("Raspberry Pi") else "computer"
    return DeviceProfile(
        name=board or (f"{product} ({cpu.name})" if product else cpu.name),
        kind=kind,
        host=host,
        cpu=cpu,
        memory=memory,
        gpus=(*read_cuda_gpus(system, jetson, memory), *read_intel_gpus(system, memory)),
        jetson=jetson,
        apple=None,
        power=power,
        thermal=read_thermal(system),
        engines=_engines(system),
        npu=read_npu(system),
    )


def _engines(system: System) -> tuple[Engine, ...]:
    """Look for the packages that run models."""
    return tuple(_engine(system, row.name, row.package) for row in ENGINES.values() if row.package is not None)


def _engine(system: System, name: str, package: EnginePackage) -> Engine:
    """Look for one package; the names of its shared libraries show what its build can use."""
    found = system.package(package.module, *package.distributions)
    is_mac = system.os_name == "darwin"
    accelerators: tuple[str, ...] = ()
    if found is not None and is_mac and package.on_mac:
        accelerators = package.on_mac
    elif found is not None and (is_mac or not package.is_mac_only):
        signs = package.libraries.items()
        accelerators = (*(api for api, sign in signs if any(sign in library for library in found.libraries)), "cpu")
    return Engine(name, package.distributions[0], found.version if found is not None else "", accelerators)
