"""macOS, from small commands that run at the same time.

Source: sysctl(3), vm_stat(1) and pmset(1) of macOS; the share of memory that Metal may use, from what
MTLDevice.recommendedMaxWorkingSetSize gives on Macs of 8 to 192 GB.
"""

from __future__ import annotations

import re

from edge.device.profile import Apple, Cpu, DeviceProfile, Engine, Gpu, Host, Memory, Power, Thermal
from edge.device.system import System

__all__ = ["parse_memory", "parse_power", "parse_sysctl", "parse_thermal", "read_mac"]

_SYSCTL = (
    "sysctl", "hw", "machdep.cpu", "kern.osproductversion", "kern.hv_vmm_present", "vm.swapusage", "iogpu.wired_limit_mb",
)  # fmt: skip
_ARM_FEATURES = {
    "hw.optional.AdvSIMD": "neon",
    "hw.optional.neon": "neon",
    "hw.optional.arm.FEAT_DotProd": "dotprod",
    "hw.optional.arm.FEAT_FP16": "fp16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
}
_X86_FEATURES = {"AVX1.0": "avx", "AVX2": "avx2", "F16C": "f16c", "FMA": "fma", "AVX512F": "avx512f"}


def read_mac(system: System, engines: tuple[Engine, ...]) -> DeviceProfile:
    """Return the profile of a Mac."""
    sysctl, vm_stat, battery, heat, settings = system.run_all(
        [_SYSCTL, ("vm_stat",), ("pmset", "-g", "batt"), ("pmset", "-g", "therm"), ("pmset", "-g")]
    )
    values = parse_sysctl(sysctl)
    is_virtual = values.get("kern.hv_vmm_present") == "1"
    memory = parse_memory(values, vm_stat)
    macos = values.get("kern.osproductversion") or system.run("sw_vers", "-productVersion")
    chip, model = values.get("machdep.cpu.brand_string", ""), values.get("hw.model", "")
    is_apple_chip = values.get("hw.optional.arm64") == "1" or system.machine == "arm64"
    has_gpu = is_apple_chip and not is_virtual
    return DeviceProfile(
        name=(chip or "Mac") + (f" ({model})" if model else ""),
        kind="mac",
        host=Host(f"macOS {macos}".strip(), system.python, "", "Apple Virtualization" if is_virtual else ""),
        cpu=_cpu(values, chip, is_apple_chip),
        memory=memory,
        gpus=(_gpu(values, chip, memory),) if has_gpu else (),
        jetson=None,
        apple=Apple(chip, model, macos, has_neural_engine=has_gpu),
        power=parse_power(battery, settings),
        thermal=parse_thermal(heat),
        engines=engines,
    )


def parse_sysctl(text: str) -> dict[str, str]:
    """Return the values that `sysctl` printed, by their names."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name.strip(): value.strip() for name, separator, value in pairs if separator}


def _number(values: dict[str, str], name: str) -> int:
    text = values.get(name, "")
    return int(text) if text.isdecimal() else 0


def _cpu(values: dict[str, str], chip: str, is_apple_chip: bool) -> Cpu:
    physical = _number(values, "hw.physicalcpu") or 1
    fast = _number(values, "hw.perflevel0.physicalcpu") or physical
    slow = sum(_number(values, name) for name in values if re.fullmatch(r"hw\.perflevel[1-9]\.physicalcpu", name))
    logical = _number(values, "hw.logicalcpu") or _number(values, "hw.ncpu") or physical
    flags = f"{values.get('machdep.cpu.features', '')} {values.get('machdep.cpu.leaf7_features', '')}".split()
    found = [name for key, name in _ARM_FEATURES.items() if values.get(key) == "1"]
    found += [name for flag, name in _X86_FEATURES.items() if flag in flags]
    return Cpu(
        name=chip or "unknown CPU",
        architecture="aarch64" if is_apple_chip else "x86_64",
        n_logical=logical,
        n_offline=0,
        n_performance=fast,
        n_efficiency=slow,
        efficiency_speed=0.0 if slow else 1.0,  # macOS does not say how fast the efficiency cores are
        usable_performance=fast,
        usable_efficiency=slow,
        usable_logical=logical,
        quota=None,
        limits=(),
        features=tuple(dict.fromkeys(found)),
    )


def parse_memory(values: dict[str, str], vm_stat: str) -> Memory:
    """Return the memory in the outputs of `sysctl` (from `parse_sysctl`) and `vm_stat`."""
    total = _number(values, "hw.memsize")
    size = re.search(r"page size of (\d+) bytes", vm_stat)
    pages = {name: int(count) for name, count in re.findall(r"^Pages ([a-z ]+):\s+(\d+)\.?$", vm_stat, re.MULTILINE)}
    # Inactive and speculative pages are freed on demand, as the page cache is on Linux.
    free = sum(pages.get(name, 0) for name in ("free", "inactive", "speculative"))
    swap = dict(re.findall(r"(total|free) = ([\d.]+)M", values.get("vm.swapusage", "")))
    return Memory(
        total_bytes=total,
        available_bytes=min(total, free * (int(size[1]) if size else 0)),
        host_total_bytes=total,
        limit="",
        swap_total_bytes=int(float(swap.get("total", 0)) * 2**20),
        swap_free_bytes=int(float(swap.get("free", 0)) * 2**20),
    )


def _gpu(values: dict[str, str], chip: str, memory: Memory) -> Gpu:
    """Return the GPU. Metal may wire two thirds of up to 32 GiB, and three quarters of more, unless the user set a limit."""
    wired = _number(values, "iogpu.wired_limit_mb") * 2**20
    usual = memory.total_bytes * 2 // 3 if memory.total_bytes <= 32 * 2**30 else memory.total_bytes * 3 // 4
    budget = min(wired or usual, memory.total_bytes)
    return Gpu(f"{chip} GPU", "metal", budget, min(budget, memory.available_bytes), True, "", "")


def parse_power(battery: str, settings: str) -> Power:
    """Return the power in the outputs of `pmset -g batt` and `pmset -g`."""
    percent = re.search(r"(\d+)%", battery)
    is_saving = bool(re.search(r"^\s*lowpowermode\s+1\b", settings, re.MULTILINE))
    source = "battery" if "'Battery Power'" in battery else "mains" if "'AC Power'" in battery else "unknown"
    return Power(source, int(percent[1]) if percent else None, is_saving, "low power" if is_saving else "")


def parse_thermal(heat: str) -> Thermal:
    """Return the heat in the output of `pmset -g therm`: a speed limit below 100 or a warning level means throttling."""
    speed = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", heat)
    if speed and int(speed[1]) < 100:
        return Thermal("throttled", None, f"pmset gives a CPU speed limit of {speed[1]} %")
    warning = re.search(r"^(?!Note: No).*thermal warning level\D*(\d+)", heat, re.IGNORECASE | re.MULTILINE)
    if warning and int(warning[1]) > 0:
        return Thermal("throttled", None, f"pmset gives thermal warning level {warning[1]}")
    if speed or "No thermal warning level" in heat:
        return Thermal("nominal", None, "pmset has recorded no thermal warning")
    return Thermal("unknown", None, "pmset does not say")
