"""tools/build_llama.py: what it chooses for which machine, what it keeps, and how it fails."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "tools" / "build_llama.py"

SAPPHIRE_RAPIDS = (
    "fpu sse4_1 sse4_2 avx f16c fma bmi1 bmi2 avx2 avx512f avx512dq avx512cd avx512bw avx512vl avx_vnni avx512_bf16 "
    "avx512vbmi avx512_vbmi2 avx512_vnni amx_bf16 amx_tile amx_int8"
)
ZEN_3 = "fpu sse4_1 sse4_2 avx f16c fma bmi1 bmi2 avx2"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_llama", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_llama"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def machine_at(tool: ModuleType, root: Path, *, flags: str = "", compatible: bytes = b"", smi: str = "", nvcc: str = ""):
    """A machine made of captured files and outputs."""
    (root / "proc/device-tree").mkdir(parents=True)
    (root / "proc/cpuinfo").write_text(
        f"processor\t: 0\nmodel name\t: A CPU\nflags\t\t: {flags}\ncpu MHz\t\t: 2400\n\nprocessor\t: 1\nflags\t\t: other\n"
    )
    if compatible:
        (root / "proc/device-tree/compatible").write_bytes(compatible)

    def run(command: list[str]) -> str:
        return smi if command[0] == "nvidia-smi" else ""

    return tool.look(root, run, lambda name: nvcc or None)


def test_a_cpu_with_amx_gets_its_features_one_by_one_and_no_amx(tool: ModuleType, tmp_path: Path) -> None:
    args = tool.choose(machine_at(tool, tmp_path, flags=SAPPHIRE_RAPIDS)).cmake_args
    assert "-DGGML_NATIVE=OFF" in args
    for name in ("AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AVX_VNNI", "AVX2", "FMA", "F16C", "BMI2"):
        assert f"-DGGML_{name}=ON" in args
    assert not any("AMX" in arg for arg in args)


def test_a_feature_that_is_missing_is_switched_off_by_name(tool: ModuleType, tmp_path: Path) -> None:
    without = SAPPHIRE_RAPIDS.replace("avx512_bf16", "").replace("avx512dq", "")
    args = tool.choose(machine_at(tool, tmp_path, flags=without)).cmake_args
    assert "-DGGML_AVX512_BF16=OFF" in args
    assert "-DGGML_AVX512=OFF" in args, "it needs all five of its parts"


@pytest.mark.parametrize("flags", [ZEN_3, ""])
def test_any_other_cpu_is_compiled_for_natively(tool: ModuleType, tmp_path: Path, flags: str) -> None:
    build = tool.choose(machine_at(tool, tmp_path, flags=flags))
    assert build.cmake_args == ("-DLLAVA_BUILD=OFF", "-DGGML_NATIVE=ON")
    assert len(build.reasons) == 2


@pytest.mark.parametrize(
    ("compatible", "arch"),
    [
        (b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0", "87"),
        (b"nvidia,p2972-0000\0nvidia,tegra194\0", "72"),
        (b"nvidia,p3834-0008\0nvidia,tegra264\0", "110"),
    ],
)
def test_a_jetson_gets_cuda_for_its_chip(tool: ModuleType, tmp_path: Path, compatible: bytes, arch: str) -> None:
    machine = machine_at(tool, tmp_path, compatible=compatible, nvcc="/usr/local/cuda/bin/nvcc")
    args = tool.choose(machine).cmake_args
    assert "-DGGML_CUDA=ON" in args
    assert f"-DCMAKE_CUDA_ARCHITECTURES={arch}" in args
    assert "-DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc" in args


def test_graphics_cards_get_cuda_for_all_that_are_there(tool: ModuleType, tmp_path: Path) -> None:
    smi = "NVIDIA GeForce RTX 4090, 8.9\nNVIDIA GeForce RTX 3060, 8.6\nNVIDIA B200, 10.0\n"
    args = tool.choose(machine_at(tool, tmp_path, smi=smi, nvcc="/usr/bin/nvcc")).cmake_args
    assert "-DCMAKE_CUDA_ARCHITECTURES=86;89;100" in args


@pytest.mark.parametrize(
    ("smi", "nvcc", "reason"),
    [
        ("", "/usr/bin/nvcc", "no NVIDIA device"),
        ("NVIDIA GeForce RTX 4090, 8.9", "", "no nvcc"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver", "/usr/bin/nvcc", "no NVIDIA"),
    ],
)
def test_half_of_cuda_is_no_cuda_and_the_reason_is_given(
    tool: ModuleType, tmp_path: Path, smi: str, nvcc: str, reason: str
) -> None:
    build = tool.choose(machine_at(tool, tmp_path, smi=smi, nvcc=nvcc))
    assert not any("CUDA" in arg for arg in build.cmake_args)
    assert any(reason in text for text in build.reasons)


def test_the_key_follows_what_goes_into_a_wheel_and_nothing_else(tool: ModuleType, tmp_path: Path) -> None:
    machine = machine_at(tool, tmp_path / "a", flags=ZEN_3)
    build = tool.choose(machine)
    key = tool.key_of(build, machine, "0.3.36")
    assert key == tool.key_of(build, machine_at(tool, tmp_path / "b", flags=ZEN_3), "0.3.36")
    others = {
        tool.key_of(build, machine, "0.3.37"),
        tool.key_of(tool.Build((*build.cmake_args, "-DGGML_LTO=ON")), machine, "0.3.36"),
        tool.key_of(build, machine_at(tool, tmp_path / "c", flags=f"{ZEN_3} avx512f"), "0.3.36"),
    }
    assert len(others | {key}) == 4


def test_the_version_comes_from_the_constraints(tool: ModuleType, tmp_path: Path) -> None:
    assert tool.read_version().count(".") == 2
    file = tmp_path / "constraints.txt"
    with pytest.raises(tool.BuildError, match="cannot be read"):
        tool.read_version(file)
    file.write_text("llama-cpp-python-server==9.9.9\nnumpy==2\n")
    with pytest.raises(tool.BuildError, match="pins no version"):
        tool.read_version(file)
    file.write_text("numpy==2\nllama-cpp-python==0.3.36 ; python_version < '4'\n")
    assert tool.read_version(file) == "0.3.36"


def test_the_cache_is_where_edge_caches(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.config import load_settings

    monkeypatch.delenv("EDGE_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tool.cache_folder(os.environ).parent == load_settings().paths.cache_dir
    assert tool.cache_folder({"EDGE_CACHE_DIR": "/x"}) == Path("/x/llama-wheels")


# -- building


def pretend_pip(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, body: str) -> list[dict[str, str]]:
    """Replace the compilation by a child that runs `body`, with the wheel folder in sys.argv[1]."""
    seen: list[dict[str, str]] = []
    real = tool.run_with_progress

    def run(command: list[str], environ: dict[str, str], log: Path) -> int:
        assert "--no-cache-dir" in command
        seen.append({"CMAKE_ARGS": environ["CMAKE_ARGS"], "jobs": environ["CMAKE_BUILD_PARALLEL_LEVEL"]})
        folder = command[command.index("--wheel-dir") + 1]
        return int(real([sys.executable, "-c", f"import sys, pathlib\n{body}", folder], environ, log))

    monkeypatch.setattr(tool, "run_with_progress", run)
    monkeypatch.setattr(tool, "check_tools", lambda machine, folder: None)
    return seen


MAKES_A_WHEEL = "pathlib.Path(sys.argv[1], 'llama_cpp_python-0.3.36-py3-none-any.whl').write_bytes(b'wheel')"


def test_a_wheel_is_built_once(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen = pretend_pip(tool, monkeypatch, MAKES_A_WHEEL)
    paths = []
    for _ in range(2):
        assert tool.main(["--wheel-only", "--jobs", "3"]) == 0
        paths.append(Path(capsys.readouterr().out.strip()))
    assert paths[0] == paths[1]
    assert paths[0].read_bytes() == b"wheel"
    assert len(seen) == 1
    assert seen[0]["jobs"] == "3"
    assert "-DLLAVA_BUILD=OFF" in seen[0]["CMAKE_ARGS"]
    tool.main(["--wheel-only", "--cmake-arg=-DGGML_OPENMP=OFF"])
    assert "-DGGML_OPENMP=OFF" in seen[1]["CMAKE_ARGS"]
    tool.main(["--wheel-only", "--force"])
    assert len(seen) == 3
    folder = paths[0].parents[1]
    assert not [path for path in folder.iterdir() if path.name.startswith(".building")]


def test_a_build_that_fails_shows_the_first_error_and_keeps_nothing(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_pip(
        tool,
        monkeypatch,
        "print('[1/9] Building'); print('a.cpp:3:1: error: no such thing'); print('more'); sys.exit(1)",
    )
    with pytest.raises(tool.BuildError, match=r"a\.cpp:3:1: error: no such thing\nmore") as caught:
        tool.main(["--wheel-only"])
    log = Path(str(caught.value).rsplit("log: ", 1)[1])
    assert "[1/9] Building" in log.read_text()
    assert not list(log.parent.rglob("*.whl"))


def test_a_compiler_that_was_killed_points_at_memory(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_pip(tool, monkeypatch, "print('g++: fatal error: Killed signal terminated program cc1plus'); sys.exit(1)")
    with pytest.raises(tool.BuildError, match="--jobs 1"):
        tool.main(["--wheel-only"])


def test_a_success_without_a_wheel_is_a_failure(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_pip(tool, monkeypatch, "pass")
    with pytest.raises(tool.BuildError, match="failed"):
        tool.main(["--wheel-only"])


def test_the_stage_is_read_from_the_log(tool: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Collecting llama-cpp-python\n")
    assert tool.stage(log) == "fetching and preparing"
    log.write_text("x" * 9000 + "\n[3/95] Building CXX\n[12/95] Building CXX object\n")
    assert tool.stage(log) == "compiling, 12 of 95"
    log.write_text("[12/95] Building CXX object\n[95/95] Linking\n[0/1] Install\n" + "-- Installing: a file\n" * 900)
    assert tool.stage(log) == "putting the wheel together"


def test_without_a_compiler_it_says_what_to_install(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool.shutil, "which", lambda name: None)
    with pytest.raises(tool.BuildError, match="apt install build-essential"):
        tool.check_tools(tool.Machine("Linux", "x86_64"), tmp_path)
    with pytest.raises(tool.BuildError, match="xcode-select"):
        tool.check_tools(tool.Machine("Darwin", "arm64"), tmp_path)


def test_a_full_disk_is_noticed_before_the_build(tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool.shutil, "which", lambda name: "/usr/bin/c++")
    monkeypatch.setattr(tool.shutil, "disk_usage", lambda path: _Usage())
    with pytest.raises(tool.BuildError, match=r"0\.1 GB free"):
        tool.check_tools(tool.Machine("Linux", "x86_64"), tmp_path)


class _Usage:
    free = 100_000_000


def test_printing_builds_nothing(tmp_path: Path) -> None:
    environ = {**os.environ, "EDGE_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), "--print"], env=environ, capture_output=True, text=True, check=True
    )
    assert "llama-cpp-python 0." in done.stdout
    assert "-DLLAVA_BUILD=OFF" in done.stdout
    assert not (tmp_path / "cache").exists()
