"""Tests, without risking the user's process, if llama.cpp's fastest kernels survive on this CPU.

llama.cpp picks layouts and kernels for the CPU ("extra buffer types": repacked weights, AMX), and some builds die in them: on
CPUs that report AMX, a build made with -march=native ended in a general protection fault at the first batch of a quantised
model. So a child process runs a tiny model first, once per build of the library and CPU, and the answer is stored.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from edge.child import python_command, run_child
from edge.device.identity import cpu_identity
from edge.errors import BUILD_HINT, BackendUnavailableError, StorageError
from edge.files import read_record, write_private
from edge.hashes import file_stamp
from edge.plan.receipt import Safety

__all__ = ["library_identity", "load_safety"]

_FORMAT = 1  # raise it when the child tries more, so that old answers are not trusted
_TIMEOUT_S = 60.0

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
    """Return the safe settings for the installed llama.cpp: stored ones, or measured now (well under a second).

    Args:
        cache_dir: where the answer is stored, a file for every build and CPU.
        library, cpu: identities; None takes those of this machine.
        command: the child's command line; None is the real one.
        timeout_s: a child that takes longer counts as hanging.

    Raises:
        BackendUnavailableError: llama.cpp is not installed, or dies here whatever the settings.
    """
    try:
        library = library_identity() if library is None else library
        cpu = cpu_identity() if cpu is None else cpu
        key = hashlib.sha256(json.dumps([_FORMAT, library, cpu]).encode()).hexdigest()
        path = cache_dir / f"canary-{key[:16]}.json"
        safety = _read(path, key)
        if safety is None:
            safety = _measure(command or _command, timeout_s, has_amx="amx_tile" in cpu)
            content = {"key": key, "use_extra_buffers": safety.use_extra_buffers, "note": safety.note}
            with suppress(StorageError):  # then it is measured again next time
                write_private(path, json.dumps({**content, "library": library.splitlines()[:2]}, indent=1).encode())
        return safety
    except OSError as error:  # the careful answer, not stored: it may be possible next time
        note = f"Repacked and AMX weights are off: they could not be tried ({error}). Prefill may be slower."
        return Safety(use_extra_buffers=False, note=note)


def library_identity() -> str:
    """Return what identifies the installed llama.cpp without loading it: version, and path, size and times of its libraries.

    Raises:
        BackendUnavailableError: llama-cpp-python is not installed.
        OSError: its files cannot be read.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise BackendUnavailableError("llama.cpp is not installed.", f"Install it with: {BUILD_HINT}")
    package = Path(spec.origin)
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or package.parent / "lib")
    version = re.search(r'__version__ = "([^"]*)"', package.read_text("utf-8"))
    lines = [version.group(1) if version else "?", str(folder)]
    if not folder.is_dir():
        raise BackendUnavailableError(f"llama.cpp's library is missing from {folder}.", f"Install it with: {BUILD_HINT}")
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    lines.extend(f"{entry.name} {file_stamp(entry.stat())}" for entry in entries)
    return "\n".join(lines)


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
            f"Build it for this CPU with: {BUILD_HINT}",
        )
    cure = "a build without AMX would be faster" if has_amx else "a build for this CPU may be faster"
    return Safety(
        use_extra_buffers=False,
        note=f"Repacked and AMX weights are off: with them a tiny model {failure}. Prefill may take up to twice as long; "
        f"{cure}: {BUILD_HINT}",
    )


def _command(model: Path, use_extra_buffers: bool) -> list[str]:
    return python_command("edge.backends.llamacpp.canary_child:main", str(model), str(use_extra_buffers))


def _run(command: list[str], timeout_s: float) -> str | None:
    """Run a child. Returns None when it went well, otherwise how it ended.

    Raises:
        OSError: the end says nothing about llama.cpp: the machine is too busy to answer in time, or out of memory.
    """
    ended = run_child(command, timeout_s=timeout_s)
    if ended.code is None:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    if ended.was_stopped:
        raise InterruptedError(f"the trial was stopped: it {ended.reason}")
    return ended.reason if ended.code else None


class _Verdict(msgspec.Struct):
    key: str
    use_extra_buffers: bool
    note: str


def _read(path: Path, key: str) -> Safety | None:
    """Return the stored answer, None if it is missing, damaged or of another build."""
    found = read_record(path, _Verdict)
    return Safety(found.use_extra_buffers, found.note) if found and found.key == key else None
