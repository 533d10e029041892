"""Finds out, without risking the user's process, whether llama.cpp's fastest kernels survive on this CPU.

llama.cpp picks layouts and kernels for the CPU it finds ("extra buffer types": repacked weights, AMX). Some builds die in
them: on CPUs that report AMX, a build made with -march=native ended in a general protection fault at the first batch of a
quantised model. So a child process runs a tiny model first, once per build of the library and CPU, and the answer is kept.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from edge.device.identity import cpu_identity
from edge.errors import BUILD_HINT, BackendUnavailableError
from edge.plan.receipt import Safety

__all__ = ["library_identity", "load_safety"]

_FORMAT = 1  # raise it when the child tries more, so that old answers are not trusted
_TIMEOUT_S = 60.0
_NOT_ITS_FAULT = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGKILL", "SIGHUP")]
_REBUILD = BUILD_HINT
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edge.backends.llamacpp.canary_child import main; main(sys.argv[2], sys.argv[3] == 'True')"
)

Command = Callable[[Path, bool], list[str]]
"""(the tiny model, use_extra_buffers) -> the command line of the child."""


def load_safety(
    cache_dir: Path,
    *,
    library: str | None = None,
    cpu: str | None = None,
    command: Command | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> Safety:
    """The safe settings for the installed llama.cpp: remembered, or found out now (well under a second).

    Args:
        cache_dir: where the answer is kept, a file for every build and CPU.
        library, cpu: identities; None takes those of this machine.
        command: the child's command line; None is the real one.
        timeout_s: a child that takes longer counts as hanging.

    Raises:
        BackendUnavailableError: llama.cpp is not installed, or dies here whatever the settings.
    """
    try:
        library = library_identity() if library is None else library
    except OSError as error:
        return _untried(error)
    cpu = cpu_identity() if cpu is None else cpu
    key = hashlib.sha256(json.dumps([_FORMAT, library, cpu]).encode()).hexdigest()
    path = cache_dir / f"canary-{key[:16]}.json"
    remembered = _read(path, key)
    if remembered is not None:
        return remembered
    try:
        safety = _measure(command or _command, timeout_s, has_amx="amx_tile" in cpu)
    except OSError as error:
        return _untried(error)
    _write(path, key, safety, library)
    return safety


def library_identity() -> str:
    """The installed llama.cpp, told by its files and not by loading it: path, size and time of each library, version.

    Raises:
        BackendUnavailableError: llama-cpp-python is not installed.
        OSError: its files cannot be read.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise BackendUnavailableError("llama.cpp is not installed.", f"Install it with: {_REBUILD}")
    package = Path(spec.origin)
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or package.parent / "lib")
    version = re.search(r'__version__ = "([^"]*)"', package.read_text("utf-8"))
    lines = [version.group(1) if version else "?", str(folder)]
    if not folder.is_dir():
        raise BackendUnavailableError(f"llama.cpp's library is missing from {folder}.", f"Install it with: {_REBUILD}")
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        status = entry.stat()
        lines.append(f"{entry.name} {status.st_size} {status.st_mtime_ns}")
    return "\n".join(lines)


def _untried(error: OSError) -> Safety:
    """The careful answer. Not remembered: the next start may be able to try it."""
    note = f"Repacked and AMX weights are off: whether they work could not be tried ({error}). Prefill may be slower."
    return Safety(use_extra_buffers=False, note=note)


def _measure(command: Command, timeout_s: float, has_amx: bool) -> Safety:
    from edge.backends.llamacpp.canary_child import write_model

    with tempfile.TemporaryDirectory(prefix="edge-canary-") as folder:
        model = Path(folder) / "canary.gguf"
        write_model(model)
        failure = _run(command(model, True), timeout_s)
        if failure is None:
            return Safety(use_extra_buffers=True, note="")
        plain_failure = _run(command(model, False), timeout_s)
    if plain_failure is not None:
        raise BackendUnavailableError(
            f"llama.cpp does not work on this device: a tiny model {plain_failure}.",
            f"Build it for this CPU with: {_REBUILD}",
        )
    cure = "a build without AMX would be faster" if has_amx else "a build for this CPU may be faster"
    return Safety(
        use_extra_buffers=False,
        note=f"Repacked and AMX weights are off: with them a tiny model {failure}. Prefill may take up to twice as long; "
        f"{cure}: {_REBUILD}",
    )


def _command(model: Path, use_extra_buffers: bool) -> list[str]:
    if not sys.executable or getattr(sys, "frozen", False):
        raise OSError("there is no Python interpreter to start")
    # -I keeps the environment and the current folder out; the child then finds packages exactly where this process does.
    return [sys.executable, "-I", "-c", _CHILD, json.dumps(sys.path), str(model), str(use_extra_buffers)]


def _run(arguments: list[str], timeout_s: float) -> str | None:
    """Run a child to its end; None when it went well, otherwise what became of it.

    Raises:
        OSError: that says nothing about llama.cpp: a machine too busy to answer in time, or out of memory.
    """
    try:
        done = subprocess.run(arguments, capture_output=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"no answer within {timeout_s:g} s") from None
    if done.returncode == 0:
        return None
    if -done.returncode in _NOT_ITS_FAULT:
        raise InterruptedError(f"somebody stopped it with {signal.Signals(-done.returncode).name}")
    if done.returncode < 0:
        try:
            return f"died of {signal.Signals(-done.returncode).name}"
        except ValueError:
            return f"died of signal {-done.returncode}"
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    told = f" ({lines[-1]})" if lines else ""
    return f"ended with code {done.returncode}{told}"


def _read(path: Path, key: str) -> Safety | None:
    """The remembered answer. A file that is missing, damaged or of something else is as good as none: measured again."""
    try:
        found = json.loads(path.read_bytes())
        if found["key"] == key and isinstance(found["use_extra_buffers"], bool) and isinstance(found["note"], str):
            return Safety(found["use_extra_buffers"], found["note"])
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None


def _write(path: Path, key: str, safety: Safety, library: str) -> None:
    """Remember the answer, whole or not at all. Where nothing can be written it is simply found out again next time."""
    content = {
        "key": key,
        "use_extra_buffers": safety.use_extra_buffers,
        "note": safety.note,
        "library": library.splitlines()[:2],
    }
    temporary = ""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".canary-", dir=path.parent)  # made with mode 0600
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        Path(temporary).replace(path)
    except OSError:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
