"""Linux: processors, memory, power, heat, container or virtual machine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edge.device.cgroups import Limits, parse_cpu_list
from edge.device.profile import Cpu, Host, Memory, Power, Thermal
from edge.device.system import System
from edge.units import size_text

__all__ = [
    "find_zones",
    "parse_temperature",
    "read_cpu",
    "read_host",
    "read_memory",
    "read_pi_throttling",
    "read_power",
    "read_thermal",
]

_CPUS = "/sys/devices/system/cpu"
# A core below this share of the fastest one counts as an efficiency core. Between the kinds in use: Cortex-A55 beside A76
# has 0.5, Zen 5c beside Zen 5 0.65; above it are favoured cores of one kind, which differ by a few per cent.
_EFFICIENCY_SHARE = 0.75
_PARTS = {
    0x41: {
        0xD03: "Cortex-A53", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72", 0xD09: "Cortex-A73",
        0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0C: "Neoverse-N1", 0xD0D: "Cortex-A77", 0xD40: "Neoverse-V1",
        0xD41: "Cortex-A78", 0xD42: "Cortex-A78AE", 0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710",
        0xD48: "Cortex-X2", 0xD49: "Neoverse-N2", 0xD4B: "Cortex-A78C", 0xD4D: "Cortex-A715", 0xD4E: "Cortex-X3",
        0xD4F: "Neoverse-V2", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4", 0xD83: "Neoverse-V3AE",
        0xD84: "Neoverse-V3", 0xD85: "Cortex-X925", 0xD87: "Cortex-A725",
    },
    0x4E: {0x003: "Denver 2", 0x004: "Carmel"},
    0x51: {0x001: "Oryon"},
}  # fmt: skip
"""CPU implementer -> CPU part -> name. ARM's /proc/cpuinfo gives the numbers only."""

_X86_FEATURES = (
    "avx", "avx2", "f16c", "fma", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
)  # fmt: skip
_ARM_FEATURES = {
    "asimd": "neon", "asimddp": "dotprod", "asimdhp": "fp16", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve",
    "sve2": "sve2", "sme": "sme",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Core:
    """One physical core: its hardware threads and its speed (any unit, 0 where unknown)."""

    cpus: frozenset[int]
    speed: int
    is_efficiency: bool


def read_cpu(system: System, limits: Limits) -> Cpu:
    """Return the processors, and the part that the affinity and the control group leave."""
    info = system.read("/proc/cpuinfo")
    online = parse_cpu_list(system.read(f"{_CPUS}/online"))
    if not online:
        count = sum(line.startswith("processor") for line in info.splitlines())
        online = frozenset(range(count or 1))
    cores = _cores(system, online)
    allowed = online
    reasons: list[str] = []
    for subset, reason in ((system.affinity, "its CPU affinity"), (limits.cpus, "the cgroup's cpuset")):
        if subset is not None and allowed - subset and allowed & subset:
            allowed &= subset
            reasons.append(f"{reason} allows {len(allowed)} of {len(online)} CPUs")
    quota = limits.cpu_quota if limits.cpu_quota is not None and limits.cpu_quota < len(allowed) else None
    if quota is not None:
        reasons.append(f"the cgroup pays for {quota:g} of {len(allowed)} CPUs")
    paid = len(allowed) if quota is None else max(1, int(quota))
    fast = sum(1 for core in cores if core.cpus & allowed and not core.is_efficiency)
    slow = sum(1 for core in cores if core.cpus & allowed and core.is_efficiency)
    fast_speed = max((core.speed for core in cores), default=0)
    slow_speed = min((core.speed for core in cores if core.is_efficiency), default=fast_speed)
    return Cpu(
        name=_cpu_name(info),
        architecture={"arm64": "aarch64", "amd64": "x86_64"}.get(system.machine.lower(), system.machine),
        n_logical=len(online),
        n_offline=len(parse_cpu_list(system.read(f"{_CPUS}/offline"))),
        n_performance=sum(not core.is_efficiency for core in cores),
        n_efficiency=sum(core.is_efficiency for core in cores),
        efficiency_speed=slow_speed / fast_speed if fast_speed else 1.0,
        usable_performance=min(fast, paid),
        usable_efficiency=min(slow, max(0, paid - fast)),
        usable_logical=len(allowed) if quota is None else max(1, -int(-quota // 1)),
        quota=quota,
        limits=tuple(reasons),
        features=_features(info),
    )


def _cores(system: System, online: frozenset[int]) -> list[_Core]:
    """Return the physical cores of the CPUs that are switched on."""
    atoms = parse_cpu_list(system.read("/sys/devices/cpu_atom/cpus"))  # Intel's hybrid processors list them here
    threads: dict[frozenset[int], int] = {}
    for cpu in sorted(online):
        folder = f"{_CPUS}/cpu{cpu}"
        siblings = parse_cpu_list(
            system.read(f"{folder}/topology/core_cpus_list") or system.read(f"{folder}/topology/thread_siblings_list")
        )
        key = (siblings & online) | {cpu}
        if key not in threads:
            speed = system.read(f"{folder}/cpu_capacity") or system.read(f"{folder}/cpufreq/cpuinfo_max_freq")
            threads[key] = int(speed) if speed.isdecimal() else 0
    fastest = max(threads.values(), default=0)
    cores = [
        _Core(cpus, speed, bool(cpus & atoms) if atoms else speed < _EFFICIENCY_SHARE * fastest)
        for cpus, speed in threads.items()
    ]
    if all(core.is_efficiency for core in cores):  # processors of slow cores only (Intel N100)
        return [_Core(core.cpus, core.speed, False) for core in cores]
    return cores


def _fields(info: str, name: str) -> list[str]:
    """Return every value of a field of /proc/cpuinfo."""
    return [value.strip() for key, _, value in (line.partition(":") for line in info.splitlines()) if key.strip() == name]


def _cpu_name(info: str) -> str:
    numbers = zip(_fields(info, "CPU implementer"), _fields(info, "CPU part"), strict=False)
    names = [_PARTS.get(_hex(maker), {}).get(_hex(part), "") for maker, part in numbers]
    known = list(dict.fromkeys(name for name in names if name))
    if known:
        return " + ".join(known)
    return next(iter(_fields(info, "model name")), "") or "unknown CPU"


def _hex(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return -1


def _features(info: str) -> tuple[str, ...]:
    words = set(" ".join([*_fields(info, "flags")[:1], *_fields(info, "Features")[:1]]).split())
    arm = [name for flag, name in _ARM_FEATURES.items() if flag in words]
    return (*(name for name in _X86_FEATURES if name in words), *arm)


def read_memory(system: System, limits: Limits) -> Memory:
    """Return main memory and swap, and the part that the control group leaves."""
    info: dict[str, int] = {}
    for line in system.read("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        number = value.split()[0] if value.split() else ""
        info[name] = int(number) * 1024 if number.isdecimal() else 0
    total = info.get("MemTotal", 0)
    # Kernels before 3.14 do not say what is available.
    available = info.get("MemAvailable", info.get("MemFree", 0) + info.get("Cached", 0) + info.get("Buffers", 0))
    limit = limits.memory_bytes if limits.memory_bytes is not None and limits.memory_bytes < total else None
    if limit is not None and limits.memory_free_bytes is not None:
        available = min(available, limits.memory_free_bytes)
    return Memory(
        total_bytes=total if limit is None else limit,
        available_bytes=available,
        host_total_bytes=total,
        limit="" if limit is None else f"the cgroup's limit of {size_text(limit)}",
        swap_total_bytes=info.get("SwapTotal", 0),
        swap_free_bytes=info.get("SwapFree", 0),
    )


def read_host(system: System) -> Host:
    """Return operating system, container and virtual machine."""
    release = system.release
    return Host(f"Linux {release}".strip(), system.python, _container(system), _virtual_machine(system))


def _container(system: System) -> str:
    if "KUBERNETES_SERVICE_HOST" in system.environ:
        return "kubernetes"
    if system.exists("/.dockerenv"):
        return "docker"
    if system.exists("/run/.containerenv"):
        return "podman"
    if system.environ.get("container"):
        return system.environ["container"]
    groups = system.read("/proc/self/cgroup")
    return next((name for name in ("kubepods", "docker", "lxc", "containerd") if f"/{name}" in groups), "")


def _virtual_machine(system: System) -> str:
    if "microsoft" in system.release.lower():
        return "WSL 2"
    if "hypervisor" not in " ".join(_fields(system.read("/proc/cpuinfo"), "flags")[:1]).split():
        return ""
    vendor = system.read("/sys/class/dmi/id/sys_vendor") or system.read("/sys/hypervisor/type")
    product = system.read("/sys/class/dmi/id/product_name")
    return " ".join(dict.fromkeys(part for part in (vendor, product) if part)) or "yes"


def read_power(system: System) -> Power:
    """Return mains or battery, and the firmware's power profile."""
    folder = "/sys/class/power_supply"
    percent: int | None = None
    is_discharging = is_plugged_in = False
    for name in system.names(folder):
        kind = system.read(f"{folder}/{name}/type")
        if kind == "Battery" and system.read(f"{folder}/{name}/scope") != "Device":  # a mouse has a battery too
            text = system.read(f"{folder}/{name}/capacity")
            percent = int(text) if text.isdecimal() else percent
            is_discharging |= system.read(f"{folder}/{name}/status") == "Discharging"
        elif kind in ("Mains", "USB"):
            is_plugged_in |= system.read(f"{folder}/{name}/online") == "1"
    mode = system.read("/sys/firmware/acpi/platform_profile")
    if percent is None and not is_plugged_in:
        return Power("unknown", None, mode == "low-power", mode)
    source = "battery" if is_discharging and not is_plugged_in else "mains"
    return Power(source, percent, mode == "low-power", mode)


def read_thermal(system: System) -> Thermal:
    """Return the hottest sensor, and the state of throttling."""
    hottest, zone, name = _hottest(system)
    flags = read_pi_throttling(system)
    if flags:
        return Thermal("throttled", hottest, f"vcgencmd get_throttled says {flags}")
    if hottest is None:
        return Thermal("unknown", None, "no sensor")
    state, detail = "nominal", name
    trip = _passive_trip(system, zone)
    if trip is not None:
        state = "throttled" if hottest >= trip else "warm" if hottest >= trip - 10 else "nominal"
        detail = f"{name}, throttles at {trip:.0f} °C"
    return Thermal(state, hottest, detail)


def read_pi_throttling(system: System) -> str:
    """Return the flags of a Raspberry Pi that is throttled now; "" otherwise."""
    if not system.read("/proc/device-tree/model").startswith("Raspberry Pi"):
        return ""
    flags = system.run("vcgencmd", "get_throttled").removeprefix("throttled=")
    # Frequency capped, throttled, soft temperature limit.
    return flags if flags.startswith("0x") and max(0, _hex(flags)) & 0b1110 else ""


def _hottest(system: System) -> tuple[float | None, str, str]:
    """Return temperature, folder and name of the hottest thermal zone."""
    found: list[tuple[float, str, str]] = []
    for zone in _zone_folders(system):
        temperature = parse_temperature(system.read(f"{zone}/temp"))
        if temperature is not None:
            found.append((temperature, zone, system.read(f"{zone}/type")))
    return max(found, default=(None, "", ""))


def _zone_folders(system: System) -> list[str]:
    folder = "/sys/class/thermal"
    return [f"{folder}/{name}" for name in system.names(folder) if name.startswith("thermal_zone")]


def find_zones(system: System) -> dict[str, float | None]:
    """Return every thermal zone's folder, and the temperature at which the kernel throttles the CPU for it, None if unknown."""
    return {zone: _passive_trip(system, zone) for zone in _zone_folders(system)}


def parse_temperature(text: str) -> float | None:
    """Return the degrees Celsius in a zone's `temp`; None where it is switched off: 0, absolute zero or an error."""
    return int(text) / 1000 if text.lstrip("-").isdecimal() and 0 < int(text) < 150_000 else None


def _passive_trip(system: System, zone: str) -> float | None:
    """Return the temperature at which the kernel throttles the CPU for this zone; None if unknown."""
    trips: list[float] = []
    for name in _trip_points(system.names(zone)):
        text = system.read(f"{zone}/{name}_temp")
        if system.read(f"{zone}/{name}_type") in ("passive", "hot") and text.isdecimal() and int(text) > 0:
            trips.append(int(text) / 1000)
    return min(trips, default=None)


def _trip_points(names: Iterable[str]) -> list[str]:
    return [name.removesuffix("_type") for name in names if name.startswith("trip_point_") and name.endswith("_type")]
