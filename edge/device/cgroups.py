"""Limits of control groups, versions 1 and 2: in a container they count, and not the host's memory and cores.

Source: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/ of the Linux kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from edge.device.system import System

__all__ = ["Limits", "group_folders", "parse_cpu_list", "read_limits"]

# Version 1 says "no limit" with the largest multiple of the page size; nothing real comes near it.
_UNLIMITED_BYTES = 1 << 60
_MAX_CPUS = 1 << 16


@dataclass(frozen=True, slots=True)
class Limits:
    """The smallest limits along the path from this process's group up to the root.

    Attributes:
        memory_bytes: most memory the group may hold, or None.
        memory_free_bytes: the part of it that is left, droppable caches included; None without a limit.
        cpu_quota: CPU time per second of wall clock, or None.
        cpus: CPUs the group may run on, or None for all.
    """

    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    cpu_quota: float | None = None
    cpus: frozenset[int] | None = None


def parse_cpu_list(text: str) -> frozenset[int]:
    """Parse "0-3,8" as {0, 1, 2, 3, 8}; anything else gives the empty set."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last.isdecimal() or not last) and int(last or first) < _MAX_CPUS:
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def read_limits(system: System) -> Limits:
    """Return the limits of this process; all None where there is no control group."""
    memory: list[tuple[int, int]] = []
    quotas: list[float] = []
    cpus: frozenset[int] | None = None
    for folder, version in group_folders(system):
        files = _FILES[version]
        if (found := _memory(system, folder, files)) is not None:
            memory.append(found)
        if (quota := _quota(system, folder, files)) is not None:
            quotas.append(quota)
        listed = next(filter(None, (parse_cpu_list(system.read(f"{folder}/{name}")) for name in files.cpus)), None)
        if listed:
            cpus = listed if cpus is None else cpus & listed
    return Limits(
        memory_bytes=min((limit for limit, _ in memory), default=None),
        memory_free_bytes=min((free for _, free in memory), default=None),
        cpu_quota=min(quotas, default=None),
        cpus=cpus,
    )


def group_folders(system: System) -> list[tuple[str, int]]:
    """Return the folders of every group from this process's own up to the mounted root, with the version of their hierarchy."""
    paths: dict[str, str] = {}  # controller -> path; "" is version 2
    for line in system.read("/proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                paths[controller] = parts[2]
    folders: list[tuple[str, int]] = []
    seen: set[str] = set()
    for line in system.read("/proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        mount, tail = before.split(), after.split()
        if len(mount) < 5 or len(tail) < 3 or tail[0] not in ("cgroup", "cgroup2"):
            continue
        root, mount_point = mount[3], mount[4]
        wanted = [""] if tail[0] == "cgroup2" else [c for c in tail[2].split(",") if c in ("memory", "cpu", "cpuset")]
        for controller in wanted:
            if controller not in paths:
                continue
            for folder in _upwards(mount_point, root, paths[controller]):
                if folder not in seen:
                    seen.add(folder)
                    folders.append((folder, 2 if tail[0] == "cgroup2" else 1))
    return folders


def _upwards(mount_point: str, root: str, path: str) -> list[str]:
    """Return the group's folder below the mount point, then its parents up to the mount point.

    Inside a container the mount shows only the part below `root`, and the group's path may lie outside of it.
    """
    root = root.rstrip("/")
    inside = path == root or path.startswith(root + "/")
    relative = path[len(root) :].strip("/") if inside else ""
    names = [name for name in relative.split("/") if name]
    if ".." in names:
        names = []
    return ["/".join([mount_point.rstrip("/"), *names[:n]]) for n in range(len(names), -1, -1)]


def _number(text: str) -> int | None:
    """Parse a limit; "max" and absurdly large ones are none."""
    value = int(text) if text.isdecimal() else None
    return value if value is not None and value < _UNLIMITED_BYTES else None


def _droppable(stat: str, *names: str) -> int:
    """Return the bytes of file cache in a memory.stat."""
    values = dict(line.split(" ", 1) for line in stat.splitlines() if " " in line)
    return sum(_number(values.get(name, "")) or 0 for name in names)


def _memory(system: System, folder: str, files: _Files) -> tuple[int, int] | None:
    """Return the memory limit of a group, and the part of it that is left; None without a limit."""
    known = [limit for name in files.limits if (limit := _number(system.read(f"{folder}/{name}"))) is not None]
    if not known:
        return None
    limit, used = min(known), _number(system.read(f"{folder}/{files.used}")) or 0
    cache = _droppable(system.read(f"{folder}/memory.stat"), *files.caches)
    return limit, max(0, min(limit, limit - used + cache))


def _quota(system: System, folder: str, files: _Files) -> float | None:
    """Return the CPUs that a group may use; "max" and -1 mean no quota. Quota and period are in microseconds."""
    quota, period, *_ = (*" ".join(system.read(f"{folder}/{name}") for name in files.quota).split(), "", "")
    if not (quota.isdecimal() and period.isdecimal()) or int(period) == 0 or int(quota) == 0:
        return None
    return int(quota) / int(period)


class _Files(NamedTuple):
    """Names of the files of a group, which differ by version."""

    limits: tuple[str, ...]
    used: str
    caches: tuple[str, ...]
    quota: tuple[str, ...]
    cpus: tuple[str, ...]


_FILES = {
    1: _Files(
        limits=("memory.limit_in_bytes",),
        used="memory.usage_in_bytes",
        caches=("total_inactive_file", "total_active_file"),
        quota=("cpu.cfs_quota_us", "cpu.cfs_period_us"),
        cpus=("cpuset.effective_cpus", "cpuset.cpus"),
    ),
    2: _Files(
        # Above memory.high a group is not killed but slowed to a crawl, which suits a model no better.
        limits=("memory.max", "memory.high"),
        used="memory.current",
        caches=("inactive_file", "active_file"),
        quota=("cpu.max",),
        cpus=("cpuset.cpus.effective",),
    ),
}
