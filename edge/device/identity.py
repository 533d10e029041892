"""Identity of the CPU and kernel: which stored measurements and verdicts still hold on this machine."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["cpu_identity"]


def cpu_identity(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU, and the kernel, which must allow AMX to each process: they decide which compute kernels run."""
    lines = [platform.system(), platform.release(), platform.machine(), platform.processor()]
    wanted = ("vendor_id", "cpu family", "model", "stepping", "microcode", "flags", "features", "cpu implementer", "cpu part")
    try:
        with cpuinfo.open("rb") as file:
            first = file.read(16384).decode("utf-8", "replace").split("\n\n", 1)[0]
    except OSError:
        first = ""  # macOS and Windows have none
    for line in first.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in wanted or name.strip() == "model name":
            lines.append(f"{name.strip()}:{value.strip()}")
    return "\n".join(lines)
