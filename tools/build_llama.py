#!/usr/bin/env python3
"""Builds llama-cpp-python for this machine and installs it into the environment of the Python that runs this.

    python tools/build_llama.py             build (once), install, check
    python tools/build_llama.py --print     only say what would be built, and why

The wheel is kept in the user's cache under a key of everything that went into it, so a second clone installs in seconds.
Needs Python 3.10 and a C++ compiler; nothing else has to be installed before.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = "llama-cpp-python"
CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
NEEDED_BYTES = 1_500_000_000
BYTES_PER_JOB = 1_500_000_000

# CMake's name -> what /proc/cpuinfo must list. AMX is left out on purpose: see docs/builds.md.
X86_FLAGS = {
    "GGML_SSE42": ("sse4_2",),
    "GGML_AVX": ("avx",),
    "GGML_F16C": ("f16c",),
    "GGML_FMA": ("fma",),
    "GGML_BMI2": ("bmi2",),
    "GGML_AVX2": ("avx2",),
    "GGML_AVX_VNNI": ("avx_vnni",),
    "GGML_AVX512": ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
    "GGML_AVX512_VBMI": ("avx512vbmi",),
    "GGML_AVX512_VNNI": ("avx512_vnni",),
    "GGML_AVX512_BF16": ("avx512_bf16",),
}
# Name of a Tegra chip in the device tree -> CUDA architecture.
TEGRA = {"tegra264": "110", "tegra234": "87", "tegra194": "72", "tegra186": "62", "tegra210": "53"}


class BuildError(Exception):
    """A build that failed, with what to do about it, for the person who ran this."""


@dataclass(frozen=True)
class Machine:
    """The facts that decide how to build.

    Attributes:
        system: "Linux", "Darwin", "Windows".
        arch: "x86_64", "aarch64", "arm64", ...
        cpu: the CPU's name and features, as far as the system tells; part of the key, since -march=native follows them.
        flags: x86 features by /proc/cpuinfo's names.
        nvcc: the CUDA compiler, or None.
        cuda_device: an NVIDIA device that is really there, or None.
        cuda_arch: its architecture as CMake wants it, or None.
    """

    system: str
    arch: str
    cpu: str = ""
    flags: frozenset[str] = frozenset()
    nvcc: str | None = None
    cuda_device: str | None = None
    cuda_arch: str | None = None


@dataclass(frozen=True)
class Build:
    """A build: CMake's arguments, and a reason for each choice."""

    cmake_args: tuple[str, ...]
    reasons: tuple[str, ...] = field(default=(), compare=False)


Run = Callable[[list[str]], str]


def run_quietly(command: list[str]) -> str:
    """Return the standard output of a command; "" when it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def look(root: Path = Path("/"), run: Run = run_quietly, which: Callable[[str], str | None] = shutil.which) -> Machine:
    """Look at this machine. `root`, `run` and `which` are for tests."""
    system, arch = platform.system(), platform.machine()
    cpu, flags = read_cpuinfo(root / "proc/cpuinfo")
    if system == "Darwin":
        cpu = run(["sysctl", "-n", "machdep.cpu.brand_string"]).strip()
    nvcc = which("nvcc") or next((str(p) for p in [root / "usr/local/cuda/bin/nvcc"] if p.exists()), None)
    device, cuda_arch = find_cuda_device(root, run)
    return Machine(system, arch, cpu, flags, nvcc, device, cuda_arch)


def read_cpuinfo(path: Path) -> tuple[str, frozenset[str]]:
    """Return the first processor of /proc/cpuinfo: its identity and its flags."""
    try:
        text = path.read_text("utf-8", "replace").split("\n\n", 1)[0]
    except OSError:
        return platform.processor(), frozenset()
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}
    flags = frozenset((fields.get("flags") or fields.get("features") or "").split())
    wanted = ("model name", "cpu family", "model", "cpu implementer", "cpu part")
    names = [fields[name] for name in wanted if name in fields]
    return " / ".join([*names, " ".join(sorted(flags))]), flags


def find_cuda_device(root: Path, run: Run) -> tuple[str | None, str | None]:
    """Return (name, CUDA architecture) of an NVIDIA device; (None, None) without one."""
    try:
        compatible = (root / "proc/device-tree/compatible").read_bytes().decode("ascii", "replace")
    except OSError:
        compatible = ""
    for chip, arch in TEGRA.items():
        if chip in compatible:
            return f"NVIDIA {chip}", arch
    lines = run(["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]).strip().splitlines()
    devices = [line.rsplit(",", 1) for line in lines if re.search(r",\s*\d+\.\d+$", line)]
    if not devices:
        return None, None
    archs = sorted({capability.strip().replace(".", "") for _, capability in devices}, key=int)
    return devices[0][0].strip(), ";".join(archs)


def choose(machine: Machine) -> Build:
    """Decide how to build for a machine."""
    args = ["-DLLAVA_BUILD=OFF"]
    reasons = ["LLAVA_BUILD=OFF: reading pictures is not used, and takes a good part of the build."]
    if machine.system == "Linux" and "amx_tile" in machine.flags:
        args.append("-DGGML_NATIVE=OFF")
        for name, needed in X86_FLAGS.items():
            args.append(f"-D{name}={'ON' if machine.flags.issuperset(needed) else 'OFF'}")
        reasons.append(
            "GGML_NATIVE=OFF and the CPU's features one by one, without AMX: -march=native on this kind of CPU makes a "
            "library that dies in its AMX code at the first long prompt."
        )
    else:
        args.append("-DGGML_NATIVE=ON")
        reasons.append("GGML_NATIVE=ON: compiled for exactly this CPU.")
    if machine.cuda_device and machine.nvcc:
        args += ["-DGGML_CUDA=ON", f"-DCMAKE_CUDA_ARCHITECTURES={machine.cuda_arch}", f"-DCMAKE_CUDA_COMPILER={machine.nvcc}"]
        reasons.append(f"GGML_CUDA=ON: {machine.cuda_device} is here, and so is its compiler.")
    elif machine.cuda_device:
        reasons.append(f"No CUDA: {machine.cuda_device} is here, but no nvcc. Install the CUDA toolkit to use it.")
    elif machine.nvcc:
        reasons.append("No CUDA: its compiler is here, but no NVIDIA device.")
    if machine.system == "Darwin" and machine.arch == "arm64":
        reasons.append("Metal is on by default.")
    return Build(tuple(args), tuple(reasons))


def read_version(constraints: Path = CONSTRAINTS) -> str:
    """Return the version of llama-cpp-python that constraints.txt pins.

    Raises:
        BuildError: the file is missing or does not name it.
    """
    try:
        match = re.search(rf"^{PACKAGE}==([^\s;]+)", constraints.read_text("utf-8"), re.MULTILINE)
    except OSError as error:
        raise BuildError(f"{constraints} cannot be read ({error}). Run this from a checkout.") from error
    if match is None:
        raise BuildError(f"{constraints} pins no version of {PACKAGE}.")
    return match.group(1)


def key_of(build: Build, machine: Machine, version: str) -> str:
    """Name a wheel by everything that went into it. The wheel itself is for any Python 3 of the platform."""
    parts = [version, *sorted(build.cmake_args), machine.cpu, sysconfig.get_platform()]
    return f"{version}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of the wheels: the one that `edge` caches in."""
    if environ.get("EDGE_CACHE_DIR"):
        base = Path(environ["EDGE_CACHE_DIR"])
    elif platform.system() == "Darwin":
        base = Path.home() / "Library/Caches/edge-assistant"
    elif platform.system() == "Windows":
        base = Path(environ.get("LOCALAPPDATA", str(Path.home()))) / "edge-assistant/edge-assistant/Cache"
    else:
        base = Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-assistant"
    return base / "llama-wheels"


# -- building


def check_tools(machine: Machine, folder: Path) -> None:
    """Refuse early what would fail late.

    Raises:
        BuildError: pip or a C++ compiler is missing, or the disk is nearly full.
    """
    if not run_quietly([sys.executable, "-m", "pip", "--version"]):
        raise BuildError(f"{sys.executable} has no pip. Make the environment with: python3 -m venv .venv")
    compilers = [os.environ.get("CXX", ""), "c++", "g++", "clang++", "cl"]
    if not any(name and shutil.which(name.split()[0]) for name in compilers):
        how = {
            "Darwin": "xcode-select --install",
            "Windows": "winget install Microsoft.VisualStudio.2022.BuildTools",
        }.get(machine.system, "sudo apt install build-essential (Debian, Ubuntu, JetPack) or sudo dnf install gcc-c++")
        raise BuildError(f"There is no C++ compiler, and {PACKAGE} is compiled here. Install one: {how}")
    for place in {folder, Path(tempfile.gettempdir())}:
        free = shutil.disk_usage(place).free
        if free < NEEDED_BYTES:
            raise BuildError(f"{place} has {free / 1e9:.1f} GB free; the build needs {NEEDED_BYTES / 1e9:.1f} GB.")


def n_jobs() -> int:
    """Return the number of compilers to run at once: one a CPU that we may use, as far as memory goes."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        memory = 8_000_000_000
    return max(1, min(usable, memory // BYTES_PER_JOB))


def build_wheel(build: Build, version: str, target: Path, jobs: int) -> Path:
    """Compile, and move the wheel to `target` once it is whole.

    Raises:
        BuildError: the build failed; the end of its log is in the message.
    """
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = target.parent / f"{target.name}.log"
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as folder:
        # pip remembers wheels by name and version only, so its cache could hand back one that was built otherwise.
        command = [sys.executable, "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-cache-dir", "--no-input"]
        command += ["--disable-pip-version-check", "--no-binary", PACKAGE, "--wheel-dir", folder, f"{PACKAGE}=={version}"]
        environ = {
            **os.environ,
            "CMAKE_ARGS": " ".join(build.cmake_args),
            "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
            "PYTHONUNBUFFERED": "1",
        }
        code = run_with_progress(command, environ, log)
        wheels = list(Path(folder).glob("*.whl"))
        if code != 0 or not wheels:
            told = tail(log)
            cure = (
                "A compiler was killed, most likely because memory ran out. Try again with: --jobs 1\n"
                if "Killed" in told
                else ""
            )
            raise BuildError(f"Building {PACKAGE} failed:\n\n{told}\n\n{cure}The whole log: {log}")
        target.mkdir(exist_ok=True)
        return wheels[0].replace(target / wheels[0].name)


def run_with_progress(command: list[str], environ: Mapping[str, str], log: Path) -> int:
    """Run a command into a log file, and say how far it is and for how long it has been at it."""
    is_terminal = sys.stderr.isatty()
    started = time.monotonic()
    said = -30.0
    with log.open("wb") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environ, start_new_session=True
        )
        try:
            while True:
                try:
                    code = child.wait(1.0 if is_terminal else 5.0)
                    break
                except subprocess.TimeoutExpired:
                    elapsed = time.monotonic() - started
                if is_terminal or elapsed - said >= 30:
                    said = elapsed
                    line = f"  {stage(log)}, {int(elapsed) // 60}:{int(elapsed) % 60:02d}"
                    sys.stderr.write(f"\r{line:<60}" if is_terminal else f"{line}\n")
                    sys.stderr.flush()
        except BaseException:
            stop(child)
            raise
        finally:
            if is_terminal:
                sys.stderr.write(f"\r{'':<60}\r")
    return code


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a build with all the compilers it started."""
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGTERM)
        else:
            child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def stage(log: Path) -> str:
    """Return the stage of the build, from its log."""
    text = log.read_text("utf-8", "replace")
    steps = [(int(done), int(total)) for done, total in re.findall(r"\[(\d+)/(\d+)\]", text)]
    if not steps:
        return "fetching and preparing"
    done, total = max(steps, key=lambda step: (step[1], step[0]))  # installing counts its own few steps
    # Behind the last step: what was compiled is copied and packed into the wheel.
    return "putting the wheel together" if done == total else f"compiling, {done} of {total}"


def tail(log: Path, n_lines: int = 25) -> str:
    """Return the end of the log, from the compiler's first error where there is one."""
    lines = log.read_text("utf-8", "replace").splitlines()
    first = next((n for n, line in enumerate(lines) if re.search(r"\berror\b[: ]|CMake Error|FAILED:", line)), None)
    return "\n".join(lines[first : first + n_lines] if first is not None else lines[-n_lines:])


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Let one build at a time work in the cache; the others wait and then find its wheel."""
    try:
        import fcntl
    except ImportError:  # Windows: two builds at once cost time, nothing else
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.stderr.write("Waiting for another build to finish.\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# -- installing


def installed_state() -> str:
    """Identify the installed library by its files; "" when there is none."""
    folder = Path(sysconfig.get_path("platlib")) / "llama_cpp"
    files = [folder / "__init__.py", *sorted((folder / "lib").glob("*"))]
    found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return json.dumps(found) if len(found) > 1 else ""


def note_path(folder: Path) -> Path:
    """Return the file that names the wheel of this environment."""
    return folder / f"installed-{hashlib.sha256(sys.prefix.encode()).hexdigest()[:16]}.json"


def is_installed(folder: Path, key: str) -> bool:
    """Return whether this environment has exactly the wheel of this key, untouched since."""
    try:
        note = json.loads(note_path(folder).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return note == {"prefix": sys.prefix, "key": key, "state": installed_state()} and bool(note["state"])


def install(wheel: Path, folder: Path, key: str) -> None:
    """Install a wheel, check that it loads, and write down which one it is.

    Raises:
        BuildError: pip failed, or the library does not load.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    # Its dependencies come with edge itself, at the versions of constraints.txt.
    command += ["--no-deps", "--force-reinstall", str(wheel)]
    done = subprocess.run(command, check=False)
    if done.returncode != 0:
        raise BuildError(f"pip could not install {wheel} into {sys.prefix}; its message is above.")
    state = installed_state()
    library = Path(sysconfig.get_path("platlib")) / "llama_cpp/lib"
    code = "import ctypes, glob, sys; [ctypes.CDLL(p) for p in glob.glob(sys.argv[1]) if p.endswith(('.so', '.dylib'))]"
    check = subprocess.run([sys.executable, "-c", code, f"{library}/*"], capture_output=True, text=True, check=False)
    if not state or check.returncode != 0:
        raise BuildError(f"The new library does not load:\n{check.stderr.strip() or 'it is not in ' + str(library)}")
    note_path(folder).write_text(json.dumps({"prefix": sys.prefix, "key": key, "state": state}), "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--print", action="store_true", help="say what would be built, and build nothing")
    parser.add_argument("--force", action="store_true", help="build again even if the wheel is in the cache")
    parser.add_argument("--wheel-only", action="store_true", help="build, but install nothing; print the wheel's path")
    parser.add_argument("--jobs", type=int, default=n_jobs(), help="compilers at once (default: %(default)s)")
    parser.add_argument(
        "--cmake-arg", action="append", default=[], metavar="-DNAME=VALUE", help="one more argument for CMake; wins over ours"
    )
    given = parser.parse_args(arguments)
    machine, version = look(), read_version()
    chosen = choose(machine)
    build = Build((*chosen.cmake_args, *given.cmake_arg), chosen.reasons)
    key, folder = key_of(build, machine, version), cache_folder()
    if given.print:
        sys.stdout.write(f"{PACKAGE} {version}\n" + "".join(f"  {arg}\n" for arg in build.cmake_args))
        sys.stdout.write("".join(f"  {reason}\n" for reason in build.reasons) + f"  wheel: {folder / key}\n")
        return 0
    if not given.force and not given.wheel_only and is_installed(folder, key):
        return 0
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with only_one(folder):
        wheel = next(iter((folder / key).glob("*.whl")), None)
        if wheel is None or given.force:
            check_tools(machine, folder)
            sys.stderr.write(f"Building {PACKAGE} {version} for this machine, once. This takes minutes.\n")
            sys.stderr.write("".join(f"  {reason}\n" for reason in build.reasons))
            wheel = build_wheel(build, version, folder / key, max(1, given.jobs))
    if given.wheel_only:
        sys.stdout.write(f"{wheel}\n")
        return 0
    install(wheel, folder, key)
    return 0


def _on_terminate(_signal: int, _frame: object) -> None:
    """End like Ctrl-C, so that the compilers end too."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _on_terminate)
    try:
        sys.exit(main())
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped. Nothing was installed; run it again to go on.\n")
        sys.exit(130)
