"""Tests, without risking the user's process, if llama.cpp survives a model file.

llama.cpp asserts much about a file, and throws C++ exceptions that nobody catches: a vocabulary with the same token twice ends
the process that loads it, published models among them. So a child process loads an unknown file first, tokenises and computes
a few tokens: once for each content, build of the library and CPU. The answer is stored.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge.backends.base import is_out_of_memory
from edge.backends.llamacpp.canary import library_identity
from edge.child import Ended, python_command, run_child
from edge.device.identity import cpu_identity
from edge.errors import (
    BUILD_HINT,
    BackendError,
    BackendUnavailableError,
    CancelledError,
    ModelFileError,
    ModelTooLargeError,
    StorageError,
)
from edge.files import read_record, write_private
from edge.hashes import file_sha256, files_sha256

if TYPE_CHECKING:
    from edge.adapters import Adapter
    from edge.backends.base import LoadProgress
    from edge.plan.receipt import Plan

__all__ = ["KNOWN_GOOD", "NOT_NUMBERS", "REFUSED", "try_file"]

KNOWN_GOOD = frozenset(("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",))
"""SHA-256 of files that are not tried: the embedded default, which every release is tested with."""

REFUSED = 10
"""Exit code of a child that got an error of edge: loading gives the same one, so there is nothing to fear."""

NOT_NUMBERS = 11
"""Exit code of a child that computed values which are not numbers."""

_FORMAT = 1  # raise it when the child tries more, so that old answers are not trusted
_TIMEOUT_S = 120.0
_CPU_S = 30  # that the child may compute, however busy the device is
_BYTES_PER_S = 10 << 20  # that the slowest storage gives; both times are that much longer
_SMALL_BYTES = 1 << 30  # below it one thread is quick enough, and waits for no other program
_AMPLE_BYTES = 3 << 30
_STAGE = "checking"
_PYTHON_ERROR, _PYTHON_USAGE = 1, 2
_BUILD_FOLDER = re.compile(r"\S*[/\\](?=[\w.-]+:\d+: )")  # before the name of a source file
_MEANINGS = {
    "id_to_token.size() == token_to_id.size()": "its vocabulary has the same token twice",
    "unsupported types": "it stores a weight, such as that of a norm, in a type that llama.cpp cannot compute with",
    "map::at": "its vocabulary lacks a token that texts need, such as that of a byte",
}
"""Last words of llama.cpp before it dies -> their meaning."""

Command = Callable[[str], list[str]]
"""(what to load, as JSON) -> the command line of the child."""


class _Verdict(msgspec.Struct):
    problem: str


def try_file(
    plan: Plan,
    cache_dir: Path,
    on_progress: LoadProgress | None = None,
    *,
    command: Command | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> None:
    """Refuse a model file, and adapters, on which llama.cpp would end this process. What was tried before costs nothing.

    Args:
        plan: what will be loaded, and how.
        cache_dir: answers are stored in `llamacpp` below it.
        on_progress: called while the file is hashed and tried; False stops.
        command: the child's command line; None is the real one.
        timeout_s: a child that takes longer, and longer than its file takes to read, counts as hanging.

    Raises:
        ModelFileError: llama.cpp dies of it, or does not come to an end.
        ModelTooLargeError: memory ran out.
        BackendUnavailableError: llama.cpp has code for another CPU than this one.
        BackendError: the child was stopped from outside.
        CancelledError: on_progress said False.
    """
    began, artifact = time.monotonic(), plan.artifact

    def report(share: float = 0.0, stage: str = "") -> None:
        if on_progress is not None and not on_progress(share, stage or f"{_STAGE} ({time.monotonic() - began:.0f} s):"):
            raise CancelledError("Loading was stopped.")

    def find_problem(adapter: Adapter | None = None) -> str:
        path = _answer_path(cache_dir, f"{digest}{adapter.sha256 if adapter is not None else ''}", _settings_of(plan))
        verdict = read_record(path, _Verdict)
        if verdict is not None:
            return verdict.problem
        report(0.0, _STAGE)
        limit_s = timeout_s + artifact.size_bytes // _BYTES_PER_S
        arguments = (command or _command)(_request(plan, adapter))
        ended = run_child(arguments, timeout_s=limit_s, on_wait=report, env={**os.environ, "GGML_NO_BACKTRACE": "1"})
        problem = _judge(plan, adapter, ended, limit_s)
        if problem is not None:
            with suppress(StorageError):  # then it is tried again next time
                write_private(path, json.dumps({"problem": problem}).encode())
        return problem or ""

    def on_bytes(done: int) -> None:
        report(done / max(artifact.size_bytes, done), _STAGE)

    first, *others = artifact.weight_files
    digest = artifact.sha256 or file_sha256(first, cache_dir=cache_dir, on_bytes=on_bytes)
    if others:
        digest = files_sha256(artifact.weight_files, cache_dir=cache_dir)
    wanted: list[Adapter | None] = [None] if digest not in KNOWN_GOOD else []
    for adapter in (*wanted, *plan.adapters):
        try:
            problem = find_problem(adapter)
        except OSError:
            return  # no child can be started here, so the file is loaded untried
        if problem:
            path, other = (artifact.path, "model") if adapter is None else (adapter.path, "adapter")
            raise ModelFileError(
                f"llama.cpp cannot use {path}: {problem}. The file is damaged, or a converter made it wrong.",
                f"Download or convert it again, or choose another {other}.",
            )


def _settings_of(plan: Plan) -> dict[str, str | bool]:
    """Return the settings that decide what llama.cpp makes of a file."""
    return {
        # Another engine that reads the same file has types of its own.
        "kv_type_k": plan.kv_type_k if plan.backend == "llamacpp" else "f16",
        "kv_type_v": plan.kv_type_v if plan.backend == "llamacpp" else "f16",
        "flash_attention": plan.flash_attention,
        "accelerator": plan.accelerator,
    }


def _request(plan: Plan, adapter: Adapter | None) -> str:
    """Return what the child is to load, and within which limits, as JSON."""
    artifact = plan.artifact
    also = {"adapter": str(adapter.path)} if adapter is not None else {}
    n_threads = plan.n_threads if artifact.size_bytes > _SMALL_BYTES else 1
    amounts = {"n_threads": n_threads, "gpu_layers": plan.gpu_layers, "use_mmap": plan.use_mmap}
    # An address space for CUDA has no useful limit.
    most_bytes = artifact.size_bytes + plan.memory.total_bytes if plan.accelerator == "cpu" else None
    limits = {"cpu_s": (_CPU_S + artifact.size_bytes // _BYTES_PER_S) * n_threads, "memory_bytes": most_bytes}
    return json.dumps({"path": str(artifact.path), **limits, **amounts, **also, **_settings_of(plan)})


def _answer_path(cache_dir: Path, digest: str, settings: dict[str, str | bool]) -> Path:
    identity = json.dumps([_FORMAT, digest, library_identity(), cpu_identity(), settings], sort_keys=True)
    return cache_dir / "llamacpp" / f"trial-{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"


def _command(request: str) -> list[str]:
    return python_command("edge.backends.llamacpp.trial_child:main", request)


def _judge(plan: Plan, adapter: Adapter | None, ended: Ended, limit_s: float) -> str | None:
    """Return the problem that a child found, "" if there is none; None if its end says nothing about the file.

    Raises:
        As `try_file`.
    """
    path = plan.artifact.path if adapter is None else adapter.path
    if ended.code == 0:
        return ""
    if ended.code == NOT_NUMBERS:
        return "what the model computes with it is not a number"
    if ended.code is None:
        raise ModelFileError(
            f"llama.cpp did not come to an end with {path} within {limit_s:.0f} s, in a process that tried it first.",
            "The file may be damaged. Download or convert it again, or load it while the device is idle.",
        )
    # sys.executable may be another program that Python is a part of, which ends as it likes; on Windows no code is negative.
    if ended.code in (REFUSED, _PYTHON_ERROR, _PYTHON_USAGE) or (ended.code > 0 and sys.platform != "win32"):
        return None
    stages = ended.stdout.decode("utf-8", "replace").split("\n")
    doing = stages[-2] if len(stages) > 1 else "loads it"
    if ended.code == -signal.SIGXCPU:
        return f"it does not come to an end when it {doing}"
    if ended.code == -signal.SIGABRT and is_out_of_memory(ended.last_line) and _has_room(plan):
        return f"it fills the memory when it {doing}"
    if ended.code == -signal.SIGKILL or is_out_of_memory(ended.stderr):
        raise ModelTooLargeError(
            f"There is not enough memory to load {path}: a process that tried it first {ended.reason}.",
            "Close other programs, or choose a smaller model.",
        )
    if ended.was_stopped:
        raise BackendError(f"The process that tries {path} was stopped from outside.", "Load the model again.")
    if ended.code == -signal.SIGILL:
        raise BackendUnavailableError(
            f"llama.cpp was built for another CPU: loading {path} took an instruction that this one does not have.",
            f"Build it for this CPU: {BUILD_HINT}",
        )
    meaning = next((f"{words}, and " for sign, words in _MEANINGS.items() if sign in ended.last_line), "")
    said = re.sub(_BUILD_FOLDER, "", ended.last_line.removeprefix("what():").strip()) or ended.reason
    return f"{meaning}it crashes when it {doing} ({said})"


def _has_room(plan: Plan) -> bool:
    """Tell if memory cannot have been short, so that the file made the child use it up to its limit (see trial_child.py)."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    is_limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
    return not is_limited and plan.memory.available_bytes > plan.memory.total_bytes + _AMPLE_BYTES
