"""NVIDIA: CUDA devices through nvidia-smi, and Jetsons.

nvidia-smi wakes a sleeping GPU, which can take a second, so it runs only where a driver is loaded. It does not know a Jetson's
integrated GPU (its fields read "[N/A]"), which is described from the device tree instead.
"""

from __future__ import annotations

import re

from edge.device.profile import Gpu, Jetson, Memory
from edge.device.system import System

__all__ = ["read_cuda_gpus", "read_jetson"]

_QUERY = "index,uuid,name,memory.total,memory.free,driver_version,compute_cap"
_DRIVER_FILES = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg")  # the last one is WSL's
_JETSON_GPU_FILES = ("/dev/nvgpu", "/dev/nvhost-gpu", "/dev/nvmap")
_SOCS = {
    "tegra264": ("Thor", "11.0"),
    "tegra234": ("Orin", "8.7"),
    "tegra194": ("Xavier", "7.2"),
    "tegra186": ("TX2", "6.2"),
    "tegra210": ("Tegra X1", "5.3"),
}
"""Part of the device tree's `compatible` -> name and compute capability of the GPU in it."""

_JETPACKS = {
    "39.2.0": "7.2", "38.4.0": "7.1", "38.2.2": "7.0", "38.2.1": "7.0", "38.2.0": "7.0",
    "36.5.2": "6.2.3", "36.5.0": "6.2.2", "36.4.7": "6.2.1", "36.4.4": "6.2.1", "36.4.3": "6.2", "36.4.2": "6.1",
    "36.4.0": "6.1", "36.3.0": "6.0", "36.2.0": "6.0 DP",
    "35.6.4": "5.1.6", "35.6.3": "5.1.5", "35.6.2": "5.1.5", "35.6.1": "5.1.5", "35.6.0": "5.1.4", "35.5.0": "5.1.3",
    "35.4.1": "5.1.2", "35.3.1": "5.1.1", "35.2.1": "5.1", "35.1.0": "5.0.2",
    "32.7.6": "4.6.6", "32.7.5": "4.6.5", "32.7.4": "4.6.4", "32.7.3": "4.6.3", "32.7.2": "4.6.2", "32.7.1": "4.6.1",
    "32.6.1": "4.6", "32.5.2": "4.5.1", "32.5.1": "4.5.1", "32.5.0": "4.5", "32.4.4": "4.4.1", "32.4.3": "4.4",
}  # fmt: skip
"""Release of Jetson Linux -> JetPack. Source: developer.nvidia.com/embedded/jetpack-archive."""


def read_jetson(system: System) -> Jetson | None:
    """Return the parts of a profile that only a Jetson has; None on any other machine."""
    compatible = system.read("/proc/device-tree/compatible")
    soc = next((name for name in _SOCS if name in compatible), "")
    release = system.read("/etc/nv_tegra_release")
    model = system.read("/proc/device-tree/model")
    if not release and not (soc and "jetson" in model.lower()):
        return None
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", release)
    l4t = f"{found[1]}.{found[2]}" if found else ""
    modes = dict(re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", system.read("/etc/nvpmodel.conf")))
    return Jetson(
        model=model,
        soc=soc,
        l4t=l4t,
        jetpack=_jetpack(l4t),
        power_mode=_power_mode(system, modes),
        power_modes=tuple((int(number), name) for number, name in modes.items()),
    )


def _jetpack(l4t: str) -> str:
    """Return the JetPack of a release of Jetson Linux; of one that is newer than the table, its major version."""
    padded = l4t if l4t.count(".") == 2 else f"{l4t}.0"
    if padded in _JETPACKS:
        return _JETPACKS[padded]
    major = l4t.partition(".")[0]
    same = {jetpack.partition(".")[0] for known, jetpack in _JETPACKS.items() if known.startswith(f"{major}.")}
    return f"{same.pop()}.x" if len(same) == 1 and major else ""


def _power_mode(system: System, modes: dict[str, str]) -> str:
    """Return nvpmodel's mode: from its status file, or else by asking it."""
    status = re.search(r"pmode:0*(\d+)", system.read("/var/lib/nvpmodel/status"))
    if status and status[1] in modes:
        return modes[status[1]]
    asked = re.search(r"NV Power Mode: (\S+)", system.run("nvpmodel", "-q"))
    return asked[1] if asked else ""


def read_cuda_gpus(system: System, jetson: Jetson | None, memory: Memory) -> tuple[Gpu, ...]:
    """Return the CUDA devices that this process may see, in CUDA's order.

    Args:
        system: where to look.
        jetson: from `read_jetson`.
        memory: main memory, which an integrated GPU shares.
    """
    visible = system.environ.get("CUDA_VISIBLE_DEVICES")
    if jetson is not None and jetson.soc:
        # In a container without NVIDIA's runtime the device tree is there but the GPU is not.
        if not any(system.exists(path) for path in _JETSON_GPU_FILES) or visible in ("", "-1"):
            return ()
        name, capability = _SOCS[jetson.soc]
        cuda = re.search(r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', system.read("/usr/local/cuda/version.json"))
        driver = f"CUDA {cuda[1]}" if cuda else ""
        return (Gpu(f"{name} (integrated)", "cuda", memory.total_bytes, memory.available_bytes, True, capability, driver),)
    if not any(system.exists(path) for path in _DRIVER_FILES):
        return ()
    rows = _query(system)
    return tuple(_gpu(row, memory) for row in _visible(rows, visible))


def _query(system: System) -> list[list[str]]:
    """Return rows of nvidia-smi: index, UUID, name, total, free (MiB), driver, compute capability ("" on old drivers)."""
    for fields in (_QUERY, _QUERY.rpartition(",")[0]):
        text = system.run("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", timeout_s=3.0)
        rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
        rows = [row for row in rows if len(row) == fields.count(",") + 1 and row[0].isdecimal()]
        if rows:
            return [[*row, ""][:7] for row in rows]
    return []


def _visible(rows: list[list[str]], visible: str | None) -> list[list[str]]:
    """Return the rows that CUDA_VISIBLE_DEVICES names, in its order, up to the first entry that names none."""
    if visible is None:
        return rows
    chosen: list[list[str]] = []
    for entry in visible.split(","):
        wanted = entry.strip()
        row = next((row for row in rows if row[0] == wanted or (wanted.startswith("GPU-") and row[1].startswith(wanted))), None)
        if row is None:
            break
        chosen.append(row)
    return chosen


def _gpu(row: list[str], memory: Memory) -> Gpu:
    _, _, name, total, free, driver, capability = row
    is_unified = not total.isdecimal()  # "[N/A]": the GPU has no memory of its own (DGX Spark)
    return Gpu(
        name=name,
        api="cuda",
        total_bytes=memory.total_bytes if is_unified else int(total) * 2**20,
        free_bytes=memory.available_bytes if not free.isdecimal() else int(free) * 2**20,
        is_unified=is_unified,
        compute_capability=capability if capability[:1].isdecimal() else "",
        driver=driver,
    )
