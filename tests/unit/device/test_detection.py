"""The probe: captured machines replayed, odd and missing answers, and this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.device import CapturedSystem, DeviceProfile, RecordingSystem, System, probe
from edge.errors import BackendUnavailableError, UsageError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "devices"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.txt"))
GIB = 2**30


def captured(name: str, **changes: str) -> DeviceProfile:
    """A captured machine, with some of its parts replaced (or taken away, where the replacement is empty)."""
    system = CapturedSystem((FIXTURES / f"{name}.txt").read_text())
    for heading, body in changes.items():
        if body:
            system.parts[heading] = body
        else:
            system.parts.pop(heading)
    return probe(system)


def machine(parts: dict[str, str], **facts: object) -> System:
    """A machine made up of files and commands."""
    system = {"os": "linux", "machine": "x86_64", "release": "6.8.0", **facts}
    text = "".join(f"==> {heading} <==\n{body}\n" for heading, body in {"@system": json.dumps(system), **parts}.items())
    return CapturedSystem(text)


def test_every_kind_of_machine_is_there() -> None:
    assert len(NAMES) >= 8
    assert {captured(name).kind for name in NAMES} == {"jetson", "raspberry-pi", "mac", "computer"}


@pytest.mark.parametrize("name", NAMES)
def test_a_profile_survives_json(name: str) -> None:
    device = captured(name)
    assert DeviceProfile.from_dict(json.loads(json.dumps(device.to_dict()))) == device


@pytest.mark.parametrize("name", NAMES)
def test_what_holds_for_every_machine(name: str) -> None:
    device = captured(name)
    cpu, memory = device.cpu, device.memory
    assert 0 < cpu.usable_performance <= cpu.n_performance
    assert cpu.usable_efficiency <= cpu.n_efficiency
    assert cpu.usable_performance + cpu.usable_efficiency <= cpu.usable_logical <= cpu.n_logical
    assert 0 < memory.available_bytes <= memory.total_bytes <= memory.host_total_bytes
    engine = device.engine("llamacpp")
    assert engine is not None and engine.version == "0.3.36"
    assert device.name and cpu.features


def test_a_profile_with_a_hole_is_refused() -> None:
    values = captured("mac-m1").to_dict()
    del values["cpu"]["name"]
    with pytest.raises(UsageError, match="name"):
        DeviceProfile.from_dict(values)


# -- Jetson


def test_jetson_orin_nano() -> None:
    device = captured("jetson-orin-nano")
    assert device.jetson is not None
    assert (device.jetson.l4t, device.jetson.jetpack, device.jetson.soc) == ("36.4.7", "6.2.1", "tegra234")
    assert (device.jetson.power_mode, device.power.mode) == ("15W", "15W")
    assert device.jetson.power_modes == ((0, "15W"), (1, "25W"), (2, "MAXN_SUPER"), (3, "7W"))
    assert device.name == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert (device.cpu.name, device.cpu.n_physical) == ("Cortex-A78AE", 6)
    assert device.cpu.features == ("neon", "dotprod", "fp16")
    (gpu,) = device.gpus
    assert (gpu.api, gpu.is_unified, gpu.compute_capability, gpu.driver) == ("cuda", True, "8.7", "CUDA 12.6.11")
    assert gpu.free_bytes == device.memory.available_bytes == 4910080 * 1024
    assert device.engine("llamacpp").accelerators == ("cuda", "cpu")  # type: ignore[union-attr]
    assert (device.thermal.state, device.thermal.hottest_c) == ("nominal", 50.343)
    assert device.memory.limit == ""  # the cgroups' "max"


def test_jetson_agx_orin_with_a_part_of_its_cores_and_without_cuda() -> None:
    device = captured("jetson-agx-orin")
    assert device.jetson is not None
    assert (device.jetson.l4t, device.jetson.jetpack) == ("36.4.4", "6.2.1")
    assert device.jetson.power_mode == "MODE_30W"  # from nvpmodel -q: its file is not readable here
    assert (device.cpu.n_logical, device.cpu.n_offline) == (8, 4)
    assert device.engine("llamacpp").accelerators == ("cpu",)  # type: ignore[union-attr]
    assert device.thermal.state == "warm"
    assert "99 °C" in device.thermal.detail


@pytest.mark.parametrize(
    ("release", "l4t", "jetpack"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref", "35.4.1", "5.1.2"),
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref", "32.7.1", "4.6.1"),
        ("# R36 (release), REVISION: 4, GCID: 1, BOARD: generic", "36.4", "6.1"),
        ("# R36 (release), REVISION: 99.1, GCID: 1, BOARD: generic", "36.99.1", "6.x"),
        ("# R90 (release), REVISION: 1.0, GCID: 1, BOARD: generic", "90.1.0", ""),
        ("something else", "", ""),
    ],
)
def test_jetson_linux_to_jetpack(release: str, l4t: str, jetpack: str) -> None:
    device = captured("jetson-orin-nano", **{"/etc/nv_tegra_release": release})
    assert device.jetson is not None
    assert (device.jetson.l4t, device.jetson.jetpack) == (l4t, jetpack)


def test_a_container_on_a_jetson_without_its_gpu() -> None:
    device = captured("jetson-orin-nano", **{"/dev/nvmap": "", "/dev/nvhost-gpu": "", "/etc/nv_tegra_release": ""})
    assert device.kind == "jetson"  # the device tree still says so
    assert device.jetson is not None and device.jetson.l4t == ""
    assert device.gpus == ()


# -- Mac


def test_mac_m1() -> None:
    device = captured("mac-m1")
    assert device.apple is not None
    assert (device.apple.chip, device.apple.model, device.apple.macos) == ("Apple M1", "MacBookAir10,1", "14.6.1")
    assert device.apple.has_neural_engine
    assert (device.cpu.n_performance, device.cpu.n_efficiency) == (4, 4)
    assert device.cpu.features == ("neon", "dotprod", "fp16")
    assert device.memory.total_bytes == 8 * GIB
    assert device.memory.available_bytes == (11253 + 149871 + 2317) * 16384
    assert device.memory.swap_free_bytes == int(760.5 * 2**20)
    assert (device.power.source, device.power.battery_percent, device.power.is_saving) == ("battery", 72, True)
    assert device.thermal.state == "nominal"
    (gpu,) = device.gpus
    # llama.cpp prints recommendedMaxWorkingSetSize = 5726.63 MB on a Mac of 8 GB.
    assert gpu.total_bytes == pytest.approx(5726.63e6, rel=1e-4)
    assert device.engine("coreml").accelerators == ("ane", "metal", "cpu")  # type: ignore[union-attr]


def test_mac_m3_pro() -> None:
    device = captured("mac-m3-pro")
    assert (device.cpu.n_performance, device.cpu.n_efficiency, device.cpu.n_logical) == (5, 6, 11)
    assert {"i8mm", "bf16"} <= set(device.cpu.features)
    assert (device.power.source, device.power.battery_percent, device.power.is_saving) == ("mains", 79, False)
    assert device.thermal.state == "nominal"  # the notes and a speed limit of 100 stand side by side
    assert device.engine("llamacpp").accelerators == ("metal", "cpu")  # type: ignore[union-attr]
    assert device.host.os == "macOS 15.5"


SYSCTL = "$ sysctl hw machdep.cpu kern.osproductversion kern.hv_vmm_present vm.swapusage iogpu.wired_limit_mb"


def changed_mac(old: str, new: str) -> DeviceProfile:
    text = (FIXTURES / "mac-m3-pro.txt").read_text()
    assert old in text
    return probe(CapturedSystem(text.replace(old, new)))


def test_a_mac_in_a_virtual_machine_has_neither_gpu_nor_neural_engine() -> None:
    device = changed_mac("kern.hv_vmm_present: 0", "kern.hv_vmm_present: 1")
    assert device.gpus == ()
    assert device.apple is not None and not device.apple.has_neural_engine
    assert device.host.virtual_machine


def test_a_mac_whose_user_let_the_gpu_have_more() -> None:
    device = changed_mac("iogpu.wired_limit_mb: 0", "iogpu.wired_limit_mb: 16384")
    assert device.gpus[0].total_bytes == 16 * GIB


@pytest.mark.parametrize(
    ("therm", "state"),
    [
        ("CPU_Scheduler_Limit \t= 100\n\tCPU_Speed_Limit \t= 62", "throttled"),
        ("Thermal warning level set to 2", "throttled"),
        ("Note: No thermal warning level has been recorded", "nominal"),
        ("", "unknown"),
        ("pmset: command failed", "unknown"),
    ],
)
def test_heat_of_a_mac(therm: str, state: str) -> None:
    assert captured("mac-m1", **{"$ pmset -g therm": therm}).thermal.state == state


def test_a_mac_that_answers_nothing() -> None:
    device = probe(machine({}, os="darwin", machine="arm64"))
    assert device.kind == "mac"
    assert device.memory.available_bytes == 0


# -- Linux


def test_raspberry_pi_5() -> None:
    device = captured("raspberry-pi-5")
    assert (device.kind, device.name) == ("raspberry-pi", "Raspberry Pi 5 Model B Rev 1.0")
    assert (device.cpu.name, device.cpu.n_physical) == ("Cortex-A76", 4)
    assert device.gpus == ()
    assert (device.thermal.state, device.thermal.hottest_c) == ("nominal", 52.9)
    hot = captured("raspberry-pi-5", **{"$ vcgencmd get_throttled": "throttled=0x50005"})
    assert hot.thermal.state == "throttled"
    before = captured("raspberry-pi-5", **{"$ vcgencmd get_throttled": "throttled=0x50000"})  # it was, and is no longer
    assert before.thermal.state == "nominal"


def test_laptop_with_a_gpu() -> None:
    device = captured("laptop-rtx4060")
    (gpu,) = device.gpus
    assert (gpu.name, gpu.compute_capability, gpu.is_unified) == ("NVIDIA GeForce RTX 4060 Laptop GPU", "8.9", False)
    assert (gpu.total_bytes, gpu.free_bytes) == (8188 * 2**20, 7799 * 2**20)
    assert (device.cpu.n_performance, device.cpu.n_efficiency, device.cpu.n_logical) == (6, 4, 16)
    assert device.cpu.efficiency_speed == pytest.approx(3.6 / 4.9)
    # The wireless mouse's battery is not the laptop's.
    assert (device.power.source, device.power.battery_percent, device.power.is_saving) == ("battery", 63, True)
    assert device.thermal.state == "nominal"  # its passive trip point is switched off (-274 °C)


SMI = (
    "$ nvidia-smi --query-gpu=index,uuid,name,memory.total,memory.free,driver_version,compute_cap --format=csv,noheader,nounits"
)
OLD_SMI = SMI.replace(",compute_cap", "")
TWO = "0, GPU-aaaa, First, 8192, 8000, 550.1, 8.6\n1, GPU-bbbb, Second, 24576, 24000, 550.1, 8.9"


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["First", "Second"]),
        ("1", ["Second"]),
        ("1,0", ["Second", "First"]),
        ("GPU-bb", ["Second"]),
        ("", []),
        ("-1", []),
        ("0,7,1", ["First"]),
    ],
)
def test_cuda_visible_devices(visible: str | None, names: list[str]) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    system = machine({"/dev/nvidiactl": "", SMI: TWO}, environ=environ)
    assert [gpu.name for gpu in probe(system).gpus] == names


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({SMI: TWO}, 0),  # no driver is loaded, so nothing is asked
        ({"/dev/nvidiactl": ""}, 0),
        ({"/dev/nvidiactl": "", SMI: "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."}, 0),
        ({"/dev/nvidiactl": "", SMI: "No devices were found"}, 0),
        ({"/dev/dxg": "", OLD_SMI: "0, GPU-aaaa, Old one, 4096, 4000, 470.1"}, 1),
    ],
)
def test_nvidia_smi_in_all_its_moods(parts: dict[str, str], expected: int) -> None:
    gpus = probe(machine(parts)).gpus
    assert len(gpus) == expected
    assert all(gpu.compute_capability == "" for gpu in gpus)


def test_a_gpu_that_shares_main_memory() -> None:
    parts = {"/dev/nvidiactl": "", SMI: "0, GPU-a, NVIDIA GB10, [N/A], [N/A], 580.95, 12.1"}
    meminfo = "MemTotal: 1000 kB\nMemAvailable: 600 kB"
    (gpu,) = probe(machine({**parts, "/proc/meminfo": meminfo})).gpus
    assert (gpu.is_unified, gpu.total_bytes, gpu.free_bytes) == (True, 1000 * 1024, 600 * 1024)


def cpu_files(capacities: list[int]) -> dict[str, str]:
    files = {"/sys/devices/system/cpu/online": f"0-{len(capacities) - 1}"}
    for cpu, capacity in enumerate(capacities):
        files[f"/sys/devices/system/cpu/cpu{cpu}/cpu_capacity"] = str(capacity)
    return files


@pytest.mark.parametrize(
    ("capacities", "fast", "slow"),
    [
        ([446] * 4 + [1024] * 2, 2, 4),
        ([1024] * 8, 8, 0),
        ([1024, 1010, 998, 1000], 4, 0),  # favoured cores of one kind
        ([0, 0], 2, 0),  # nobody says
    ],
)
def test_fast_and_slow_cores(capacities: list[int], fast: int, slow: int) -> None:
    cpu = probe(machine(cpu_files(capacities))).cpu
    assert (cpu.n_performance, cpu.n_efficiency) == (fast, slow)


def test_a_process_that_is_held_to_the_slow_cores() -> None:
    cpu = probe(machine(cpu_files([446] * 4 + [1024] * 2), affinity=[0, 1, 2])).cpu
    assert (cpu.usable_performance, cpu.usable_efficiency, cpu.usable_logical) == (0, 3, 3)
    assert cpu.limits == ("its CPU affinity allows 3 of 6 CPUs",)


def test_hardware_threads_of_one_core_count_once() -> None:
    files = {"/sys/devices/system/cpu/online": "0-7"}
    for cpu in range(8):
        files[f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = f"{cpu % 4},{cpu % 4 + 4}"
    assert probe(machine(files)).cpu.n_physical == 4
    pinned = probe(machine(files, affinity=[1, 5])).cpu
    assert (pinned.usable_performance, pinned.usable_logical) == (1, 2)


@pytest.mark.parametrize(
    ("flags", "features"),
    [
        ("avx avx2 f16c fma avx512f avx512_vnni avx512_bf16 amx_tile amx_int8", {"avx512_vnni", "amx_int8", "avx512_bf16"}),
        ("sse sse2", set()),
    ],
)
def test_features_of_x86(flags: str, features: set[str]) -> None:
    cpu = probe(machine({"/proc/cpuinfo": f"processor : 0\nmodel name : Some CPU\nflags : {flags}"})).cpu
    assert features <= set(cpu.features) <= set(flags.split())
    assert cpu.name == "Some CPU"


def test_features_of_a_server_arm() -> None:
    info = "processor : 0\nFeatures : fp asimd asimdhp asimddp sve i8mm bf16 sve2\nCPU implementer : 0x41\nCPU part : 0xd4f"
    cpu = probe(machine({"/proc/cpuinfo": info}, machine="aarch64")).cpu
    assert cpu.name == "Neoverse-V2"
    assert set(cpu.features) == {"neon", "dotprod", "fp16", "i8mm", "bf16", "sve", "sve2"}


@pytest.mark.parametrize(
    ("parts", "facts", "container", "virtual"),
    [
        ({}, {"release": "5.15.167.4-microsoft-standard-WSL2"}, "", "WSL 2"),
        ({"/run/.containerenv": ""}, {}, "podman", ""),
        ({}, {"environ": {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}}, "kubernetes", ""),
        ({"/proc/self/cgroup": "0::/lxc/web"}, {}, "lxc", ""),
        ({"/proc/cpuinfo": "flags : fpu hypervisor", "/sys/class/dmi/id/sys_vendor": "QEMU"}, {}, "", "QEMU"),
        ({"/proc/cpuinfo": "flags : fpu hypervisor"}, {}, "", "yes"),
    ],
)
def test_containers_and_virtual_machines(parts: dict[str, str], facts: dict[str, object], container: str, virtual: str) -> None:
    host = probe(machine(parts, **facts)).host
    assert (host.container, host.virtual_machine) == (container, virtual)


def test_an_old_kernel_that_does_not_say_what_is_available() -> None:
    memory = probe(machine({"/proc/meminfo": "MemTotal: 100 kB\nMemFree: 20 kB\nBuffers: 5 kB\nCached: 30 kB"})).memory
    assert memory.available_bytes == 55 * 1024


def test_a_machine_that_answers_nothing() -> None:
    device = probe(machine({}))
    assert device.cpu.usable_performance == 1
    assert (device.power.source, device.thermal.state) == ("unknown", "unknown")
    assert device.engine("llamacpp").accelerators == ()  # type: ignore[union-attr]


PATHS = [
    "/proc/cpuinfo", "/proc/meminfo", "/proc/self/cgroup", "/proc/self/mountinfo", "/sys/devices/system/cpu/online",
    "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max", "/proc/device-tree/model", "/proc/device-tree/compatible",
    "/etc/nv_tegra_release", "/etc/nvpmodel.conf", "/sys/class/thermal/thermal_zone0/temp", "/dev/nvidiactl", SMI, SYSCTL,
    "/sys/class/power_supply/BAT0/type", "/sys/class/power_supply/BAT0/capacity", "$ vm_stat", "$ pmset -g batt",
]  # fmt: skip
WORDS = st.sampled_from([
    "0-3", "max", "-1", "9" * 40, "0", "N/A", ":", "=", "%", "kB", "\n", " ", ",", "0::/", "1:memory:/a/../b", "hw.ncpu: x",
    "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw", "MemTotal: ", "Raspberry Pi", "nvidia,tegra234", "Battery", "²",
])  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(PATHS), st.lists(WORDS, max_size=6).map("".join)), st.sampled_from(["linux", "darwin"]))
def test_garbage_is_never_an_error(parts: dict[str, str], os_name: str) -> None:
    clean = {path: body.replace("==>", "") for path, body in parts.items()}
    device = probe(machine(clean, os=os_name))
    assert device.cpu.usable_logical >= 1
    assert device.memory.available_bytes >= 0


@pytest.mark.parametrize(
    "text", ["", "==> /proc/cpuinfo <==\nx", "==> @system <==\nno json", "==> @system <==\n{}", "==> @system <==\n3"]
)
def test_what_is_no_capture(text: str) -> None:
    with pytest.raises(ValueError):  # json has an error of its own, which is one, too
        CapturedSystem(text)


# -- this machine


def test_this_machine_can_be_recorded_and_replayed() -> None:
    system = RecordingSystem()
    device = probe(system)
    assert probe(CapturedSystem(system.capture())) == device


def test_a_capture_has_no_environment_but_what_the_probe_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    system = RecordingSystem()
    probe(system)
    text = system.capture()
    assert "hf_secret" not in text
    assert CapturedSystem(text).environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_commands_that_are_missing_fail_or_hang() -> None:
    system = System()
    assert system.run("no-such-command-anywhere") == ""
    assert system.run(sys.executable, "-c", "raise SystemExit(3)") == ""
    started = time.monotonic()
    assert system.run(sys.executable, "-c", "import time; time.sleep(60)", timeout_s=0.2) == ""
    assert time.monotonic() - started < 30
    assert system.run_all([("no-such-command-anywhere",), (sys.executable, "-c", "print(5)")]) == ["", "5"]


def test_reading_what_cannot_be_read(tmp_path: Path) -> None:
    system = System()
    assert system.read(str(tmp_path)) == ""
    assert system.read(str(tmp_path / "missing")) == ""
    assert system.names(str(tmp_path / "missing")) == []
    assert not system.exists(str(tmp_path / "missing"))
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson\0")
    assert system.read(str(tmp_path / "model")) == "NVIDIA Jetson"


def test_packages_are_found_without_importing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loud").mkdir()
    (tmp_path / "loud" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "loud" / "lib").mkdir()
    for name in ("libggml-cuda.so", "libllama.dylib", "notes.txt"):
        (tmp_path / "loud" / "lib" / name).touch()
    (tmp_path / "loud_package-1.2.3.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    package = System().package("loud", "loud-package")
    assert package is not None
    assert (package.version, package.libraries) == ("1.2.3", ("libggml-cuda.so", "libllama.dylib"))
    assert System().package("no_such_module", "no-such-module") is None


def test_the_probe_imports_no_engine_and_is_quick() -> None:
    """In a process of its own: nothing heavy is imported, and a second probe (all imports done) takes well under 50 ms."""
    code = (
        "import sys, time; from edge.device import probe; probe(); times = []\n"
        "for _ in range(20): t = time.perf_counter(); probe(); times.append(time.perf_counter() - t)\n"
        "bad = {'llama_cpp', 'numpy', 'onnxruntime', 'coremltools', 'importlib.metadata'} & set(sys.modules)\n"
        "print(min(times), sorted(bad))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split(maxsplit=1)
    assert out[1].strip() == "[]"
    # No command is run on a Linux machine without a GPU; elsewhere the commands set the time.
    assert float(out[0]) < (0.05 if sys.platform == "linux" and not probe().gpus else 2.0)


INTEL = {
    "/proc/meminfo": "MemTotal: 16000000 kB\nMemAvailable: 12000000 kB",
    "/sys/class/drm/renderD128/device/vendor": "0x8086",
    "/sys/class/drm/renderD128/device/uevent": "DRIVER=xe\nPCI_ID=8086:7D55\nPCI_SLOT_NAME=0000:00:02.0",
    "/sys/class/accel/accel0/device/vendor": "0x8086",
    "/sys/class/accel/accel0/device/uevent": "DRIVER=intel_vpu\nPCI_ID=8086:7D1D\nPCI_SLOT_NAME=0000:00:0b.0",
    "@package openvino 2026.4.1": "libopenvino_intel_cpu_plugin.so\nlibopenvino_intel_gpu_plugin.so",
}
NODES = {"/dev/dri/renderD128": "", "/dev/accel/accel0": ""}


def test_intels_gpu_and_npu_are_seen_where_the_process_may_use_them() -> None:
    device = probe(machine({**INTEL, **NODES}))
    (gpu,) = device.gpus_of("intel-gpu")
    assert (gpu.name, gpu.driver, gpu.is_unified) == ("Intel integrated GPU (8086:7D55)", "xe", True)
    assert gpu.free_bytes == device.memory.available_bytes
    assert device.npu == "Intel NPU (8086:7D1D)"
    engine = device.engine("openvino")
    assert engine is not None and engine.accelerators == device.accelerators_of(engine) == ("intel-gpu", "cpu")
    hidden = probe(machine(INTEL))  # in a container without /dev/dri
    assert hidden.gpus == () and not hidden.npu
    assert hidden.accelerators_of(engine) == ("cpu",)
    card = {**INTEL, **NODES, "/sys/class/drm/renderD128/device/uevent": "DRIVER=xe\nPCI_SLOT_NAME=0000:03:00.0"}
    assert probe(machine(card)).gpus == ()  # a card, whose memory nobody says


def test_intels_gpu_is_used_only_if_required_and_the_npu_not_at_all() -> None:
    from edge.formats.artifact import Artifact
    from edge.plan import PlanRequest
    from edge.plan.placement import place

    device, model = probe(machine({**INTEL, **NODES})), Artifact(Path("m.gguf"), "gguf", "m", 1)
    chosen = place(device, model, PlanRequest(backend="openvino"))
    assert [target.accelerator for target in chosen.targets] == ["cpu"]
    required = place(device, model, PlanRequest(require="intel-gpu"))
    assert (required.row.name, required.targets[0].accelerator) == ("openvino", "intel-gpu")
    assert "8086:7D55" in required.targets[0].reason and "not been run" in required.targets[0].reason
    with pytest.raises(BackendUnavailableError, match="no integrated GPU of Intel's") as missing:
        place(probe(machine(INTEL)), model, PlanRequest(require="intel-gpu"))
    assert "edge devices" in missing.value.hint
    with pytest.raises(BackendUnavailableError, match="Intel NPU: OpenVINO's plug-in") as refused:
        place(device, model, PlanRequest(backend="openvino", require="intel-npu"))
    assert "intel-gpu" in refused.value.hint
