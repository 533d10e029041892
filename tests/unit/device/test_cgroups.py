"""Limits of control groups: the smallest along the path counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.device import CapturedSystem, probe
from edge.device.cgroups import Limits, parse_cpu_list, read_limits

FIXTURES = Path(__file__).parents[2] / "fixtures" / "devices"
GIB = 2**30
MOUNT_2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"


def limits(parts: dict[str, str]) -> Limits:
    everything = {"@system": json.dumps({"os": "linux", "machine": "x86_64"}), **parts}
    return read_limits(CapturedSystem("".join(f"==> {name} <==\n{body}\n" for name, body in everything.items())))


def version_2(path: str, files: dict[str, str], mount: str = MOUNT_2) -> Limits:
    found = {f"/sys/fs/cgroup/{name}": body for name, body in files.items()}
    return limits({"/proc/self/cgroup": f"0::{path}", "/proc/self/mountinfo": mount, **found})


def test_a_container_with_version_2() -> None:
    device = probe(CapturedSystem((FIXTURES / "container-cgroup-v2.txt").read_text()))
    assert device.host.container == "docker"
    assert device.memory.total_bytes == 2 * GIB
    assert device.memory.host_total_bytes == 32783704 * 1024
    # 700 MiB are in use, of which 570 MiB are file cache that can be dropped.
    assert device.memory.available_bytes == 2 * GIB - 734003200 + 419430400 + 178257920
    assert device.memory.limit == "the cgroup's limit of 2.1 GB"
    assert (device.cpu.quota, device.cpu.usable_performance, device.cpu.usable_logical) == (1.5, 1, 2)
    assert device.cpu.n_physical == 8
    assert device.cpu.limits == ("the cgroup pays for 1.5 of 16 CPUs",)


def test_a_container_with_version_1() -> None:
    device = probe(CapturedSystem((FIXTURES / "container-cgroup-v1.txt").read_text()))
    assert device.memory.total_bytes == 4 * GIB
    assert device.memory.available_bytes == 4 * GIB - 1610612736 + 805306368 + 268435456
    # CPUs 0, 1, 4 and 5 are the hardware threads of two cores.
    assert (device.cpu.usable_performance, device.cpu.usable_logical, device.cpu.quota) == (2, 4, None)
    assert device.host.virtual_machine == "Amazon EC2 m5.2xlarge"


def test_the_smallest_limit_along_the_path_counts() -> None:
    found = version_2(
        "/kubepods.slice/pod1.slice/box.scope",
        {
            "kubepods.slice/memory.max": str(8 * GIB),
            "kubepods.slice/memory.current": str(7 * GIB),
            "kubepods.slice/memory.stat": "inactive_file 0\nactive_file 0",
            "kubepods.slice/pod1.slice/memory.max": str(2 * GIB),
            "kubepods.slice/pod1.slice/memory.current": str(GIB // 2),
            "kubepods.slice/pod1.slice/box.scope/memory.max": "max",
            "kubepods.slice/cpu.max": "300000 100000",
            "kubepods.slice/pod1.slice/cpu.max": "max 100000",
            "kubepods.slice/pod1.slice/box.scope/cpu.max": "50000 20000",
            "kubepods.slice/cpuset.cpus.effective": "0-5",
            "kubepods.slice/pod1.slice/cpuset.cpus.effective": "2-3",
        },
    )
    assert found.memory_bytes == 2 * GIB
    assert found.memory_free_bytes == GIB  # the outer group is fuller than the inner one
    assert found.cpu_quota == 2.5
    assert found.cpus == {2, 3}


def test_memory_high_slows_a_group_down_and_counts() -> None:
    found = version_2("/a", {"a/memory.max": str(4 * GIB), "a/memory.high": str(3 * GIB), "a/memory.current": "0"})
    assert (found.memory_bytes, found.memory_free_bytes) == (3 * GIB, 3 * GIB)


def test_more_in_use_than_allowed_leaves_nothing() -> None:
    found = version_2("/a", {"a/memory.max": "1000", "a/memory.current": "5000"})
    assert found.memory_free_bytes == 0


def test_a_path_outside_of_what_the_container_sees() -> None:
    """Without a namespace of its own, or seen from the host, the path does not begin with the mount's root."""
    files = {"memory.max": str(GIB), "cpu.max": "100000 100000"}
    for path, root in (("/../../other", "/"), ("/system.slice/x", "/docker/1"), ("/docker/1", "/docker/1")):
        found = version_2(path, files, MOUNT_2.replace(" / /sys", f" {root} /sys"))
        assert (found.memory_bytes, found.cpu_quota) == (GIB, 1.0)


def test_version_1_beside_an_empty_version_2() -> None:
    """systemd's hybrid layout: the controllers are on version 1."""
    mounts = [
        "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct",
        "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
    ]
    found = limits(
        {
            "/proc/self/cgroup": "4:memory:/jobs/7\n2:cpu,cpuacct:/jobs\n0::/",
            "/proc/self/mountinfo": "\n".join(mounts),
            "/sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes": "9223372036854771712",
            "/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes": str(GIB),
            "/sys/fs/cgroup/memory/jobs/memory.usage_in_bytes": "1024",
            "/sys/fs/cgroup/cpu/jobs/cpu.cfs_quota_us": "40000",
            "/sys/fs/cgroup/cpu/jobs/cpu.cfs_period_us": "20000",
        }
    )
    assert (found.memory_bytes, found.memory_free_bytes, found.cpu_quota) == (GIB, GIB - 1024, 2.0)


@pytest.mark.parametrize("quota", ["max 100000", "-1 100000", "0 100000", "100000 0", "100000", "", "x y"])
def test_no_quota(quota: str) -> None:
    assert version_2("/", {"cpu.max": quota}).cpu_quota is None


def test_no_control_group_at_all() -> None:
    assert limits({}) == Limits()


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("0-3,8", {0, 1, 2, 3, 8}),
        ("5", {5}),
        (" 1 , 3-4 ", {1, 3, 4}),
        ("", set()),
        ("3-", {3}),
        ("a-b", set()),
        ("4-2", set()),
        ("0-99999999999999", set()),
    ],
)
def test_lists_of_cpus(text: str, cpus: set[int]) -> None:
    assert parse_cpu_list(text) == cpus


@given(st.sets(st.integers(0, 300)))
def test_lists_of_cpus_come_back(cpus: set[int]) -> None:
    assert parse_cpu_list(",".join(str(cpu) for cpu in sorted(cpus))) == cpus


@given(st.lists(st.one_of(st.none(), st.integers(1, 2**50)), min_size=1, max_size=6))
def test_any_nesting(sizes: list[int | None]) -> None:
    names = [f"g{level}" for level in range(len(sizes))]
    files = {
        "/".join(names[: level + 1]) + "/memory.max": "max" if size is None else str(size) for level, size in enumerate(sizes)
    }
    found = version_2("/" + "/".join(names), files)
    assert found.memory_bytes == min((size for size in sizes if size is not None), default=None)
