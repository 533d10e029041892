"""Finds out, without risking the user's process, whether a Core ML package computes what was meant on this device.

A compute unit may refuse a program, take the process down with it, or compute something else without a word; the Neural Engine
has been reported to do each of these with some programs. So a child process runs a package first, on the units that were
chosen, and compares with logits that the exporter stored in it. Once for each package, units, system and chip: the answer is
kept.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.backends.coreml.engine import UNIT_NAMES, UNITS, Share, load_coremltools, open_functions, os_identity, read_placement
from edge.backends.coreml.sequence import CoreMLSequence
from edge.errors import BackendError, BackendUnavailableError, CancelledError, StorageError
from edge.files import write_private
from edge.formats.coreml import CoreMLPackage, read_package

if TYPE_CHECKING:
    from edge.backends.base import LoadProgress
    from edge.formats.artifact import Artifact
    from edge.names import Accelerator
    from edge.plan.receipt import Plan

__all__ = ["Verdict", "find_accelerator", "load_verdict", "main", "remembered_verdict", "why_failed"]

SAME_NATS = 0.02
"""Divergence up to which two units of a device may differ by rounding; wrong weights or a lost cache give far more."""
N_ENDURANCE = 256
"""Steps of decode after the comparison: packages with a state have been reported to crash after 100 to 200 of them."""
_FORMAT = 1  # raise it when the child tries more, so that old answers are not trusted
_TIMEOUT_S = 1800.0  # compiling a large model for the Neural Engine takes minutes
_POLL_S = 0.1
_NOT_ITS_FAULT = {getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")}
_OTHERWISE = (
    "Use another accelerator (--require metal, --require cpu), another variant (edge convert --variants), "
    "or a package without a state (edge convert --explicit-kv)."
)
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from edge.backends.coreml.trial import main; main(*sys.argv[2:])"
)

Command = Callable[[Path, str, Path], list[str]]
"""(package, compute units, cache directory) -> the command line of the child."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial found.

    Attributes:
        is_good: the package computes what was meant.
        note: what went wrong, for people; "" where nothing did.
        divergence: mean KL in nats from the logits in the package to what came out; None where nothing did.
        ms_per_token: mean time of a step of decode, in milliseconds.
        placement: where Core ML plans to run `decode`.
    """

    is_good: bool
    note: str = ""
    divergence: float | None = None
    ms_per_token: float | None = None
    placement: tuple[Share, ...] = ()


def load_verdict(
    package: CoreMLPackage,
    digest: str,
    units: str,
    cache_dir: Path,
    *,
    command: Command | None = None,
    timeout_s: float = _TIMEOUT_S,
    is_stopped: Callable[[], bool] | None = None,
) -> Verdict:
    """The remembered answer, or one found out now: seconds, or minutes where Core ML compiles for the Neural Engine.

    Args:
        package: what to try.
        digest: of its content.
        units: name of a coremltools.ComputeUnit.
        cache_dir: answers and compiled models are kept in `coreml` below it.
        command: the child's command line; None is the real one.
        timeout_s: a child that takes longer counts as hanging.
        is_stopped: asked now and then; True ends the trial.

    Raises:
        BackendError: no child can be started, or somebody else ended it, so nothing was found out.
        CancelledError: is_stopped said True.
    """
    known = remembered_verdict(digest, units, cache_dir)
    if known is not None:
        return known
    arguments = (command or _command)(package.path, units, cache_dir)
    verdict = _judge(package, *_run(arguments, timeout_s, is_stopped))
    with suppress(StorageError):  # where nothing can be written it is simply found out again next time
        write_private(_file(digest, units, cache_dir), msgspec.json.encode(verdict))
    return verdict


def find_accelerator(
    plan: Plan,
    package: CoreMLPackage,
    digest: str,
    cache_dir: Path,
    on_progress: LoadProgress | None = None,
    verdict: Verdict | None = None,
) -> tuple[Accelerator, Verdict, str]:
    """The first accelerator of a plan on which a package computes what was meant.

    Args:
        plan: names the accelerators to try.
        package, digest, cache_dir: as for `load_verdict`.
        on_progress: told which unit is tried, while it is; False stops.
        verdict: instead of trying.

    Returns:
        The accelerator, what was found there, and in words what was tried before it.

    Raises:
        BackendUnavailableError: there is none.
        BackendError, CancelledError: as `load_verdict`.
    """
    tried: list[str] = []
    for accelerator in (plan.accelerator, *plan.fallbacks):
        units, began = UNITS[accelerator], time.monotonic()

        def is_stopped(name: str = UNIT_NAMES[units], began: float = began) -> bool:
            stage = f"trying {name}, once per model ({time.monotonic() - began:.0f} s):"
            return on_progress is not None and not on_progress(0.0, stage)

        found = verdict or load_verdict(package, digest, units, cache_dir, is_stopped=is_stopped)
        if found.is_good:
            return accelerator, found, "; ".join(tried)
        tried.append(f"{UNIT_NAMES[units]} is not used: {found.note}")
    told = "; ".join(tried)
    raise BackendUnavailableError(f"{told[0].upper()}{told[1:]}.", _OTHERWISE)


def remembered_verdict(digest: str, units: str, cache_dir: Path) -> Verdict | None:
    """What an earlier trial found; None where there was none, or its answer cannot be read."""
    try:
        return msgspec.json.decode(_file(digest, units, cache_dir).read_bytes(), type=Verdict)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def why_failed(artifact: Artifact, accelerator: Accelerator, cache_dir: Path) -> str:
    """Return what was wrong when a package was tried on an accelerator; "" if nothing was, or it never has been tried."""
    package = artifact.coreml
    if package is None or accelerator not in UNITS:
        return ""
    verdict = remembered_verdict(package.sha256(cache_dir=cache_dir), UNITS[accelerator], cache_dir)
    return "" if verdict is None or verdict.is_good else verdict.note


def _file(digest: str, units: str, cache_dir: Path) -> Path:
    try:
        version = importlib.metadata.version("coremltools")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    key = hashlib.sha256(json.dumps([_FORMAT, digest, units, os_identity(), version]).encode()).hexdigest()
    return cache_dir / "coreml" / f"trial-{key[:32]}.json"


def _judge(package: CoreMLPackage, outcome: Verdict | None, failure: str) -> Verdict:
    name = package.path.name
    if outcome is None:
        return Verdict(is_good=False, note=f"A trial of {name} {failure}")
    if outcome.divergence is not None and not outcome.divergence <= SAME_NATS:
        note = (
            f"A trial of {name} computed something else than was meant: its predictions are {outcome.divergence:.3f} nats away "
            f"from those that the package names, and rounding explains {SAME_NATS}"
        )
        return msgspec.structs.replace(outcome, is_good=False, note=note)
    return outcome


def _command(package: Path, units: str, cache_dir: Path) -> list[str]:
    if not sys.executable or getattr(sys, "frozen", False):
        raise BackendError("A Core ML package is tried in a process of its own, and there is no Python interpreter to start.")
    # -I keeps the environment and the current folder out; the child then finds packages exactly where this process does.
    return [sys.executable, "-I", "-c", _CHILD, json.dumps(sys.path), str(package), units, str(cache_dir)]


def _run(arguments: list[str], timeout_s: float, is_stopped: Callable[[], bool] | None) -> tuple[Verdict | None, str]:
    """Run a child to its end: what it found, or None and what became of it."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        except OSError as error:
            raise BackendError(
                f"A Core ML package is tried in a process of its own, which cannot be started: {error}."
            ) from error
        try:
            deadline = time.monotonic() + timeout_s
            while child.poll() is None:
                if is_stopped is not None and is_stopped():
                    raise CancelledError("Loading was stopped.")
                if time.monotonic() > deadline:
                    return None, f"did not end within {timeout_s:g} s"
                time.sleep(_POLL_S)
        finally:
            child.kill()
            child.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace").strip().splitlines())
    said, complained = texts
    if -child.returncode in _NOT_ITS_FAULT:
        raise BackendError("The trial of a Core ML package was ended by somebody else.", "Load the model again.")
    if child.returncode < 0:
        return None, f"died of signal {-child.returncode}"
    if child.returncode:
        return None, f"failed: {complained[-1]}" if complained else f"ended with code {child.returncode}"
    try:
        return msgspec.json.decode(said[-1], type=Verdict), ""
    except (IndexError, msgspec.DecodeError) as error:
        raise BackendError(
            "The trial of a Core ML package gave no answer that can be read.", "Load the model again."
        ) from error


# -- in the child -----------------------------------------------------------------------------------------------


def main(path: str, units: str, cache_dir: str, *, coremltools: Any = None) -> None:
    """Run a package's golden prompt, compare, go on for a while, and write the verdict as the last line of the output.

    Args:
        path: of the package.
        units: name of a coremltools.ComputeUnit.
        cache_dir: see `load_verdict`.
        coremltools: instead of the installed package.
    """
    coremltools = load_coremltools() if coremltools is None else coremltools
    package = read_package(Path(path))
    digest = package.sha256(cache_dir=Path(cache_dir))
    functions = open_functions(coremltools, package, units, Path(cache_dir), digest)
    golden, info = package.info.golden, package.info
    sequence = CoreMLSequence(functions, info)
    found = []
    for start in range(0, len(golden.prompt), info.chunk):
        sequence.read_chunk(golden.prompt[start : start + info.chunk])
    found.append(sequence.newest_logits())
    started, n_steps = time.perf_counter(), 0
    for token in golden.continuation[:-1]:
        found.append(sequence.step(token))
        n_steps += 1
    for _ in range(N_ENDURANCE if info.stateful else 0):
        if len(sequence.tokens) == info.context:
            sequence.cut(len(golden.prompt))
        sequence.step(golden.prompt[-1])
        n_steps += 1
    seconds = time.perf_counter() - started
    compared = [top.divergence(logits) for top, logits in zip(golden.package, found, strict=False)]
    verdict = Verdict(
        is_good=True,
        divergence=sum(compared) / len(compared) if compared else None,
        ms_per_token=1000 * seconds / n_steps if n_steps else None,
        placement=read_placement(coremltools, functions, units),
    )
    sys.stdout.write("\n" + msgspec.json.encode(verdict).decode() + "\n")
