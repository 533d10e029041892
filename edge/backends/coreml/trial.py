"""Tests, without risking the user's process, if a Core ML package computes the right numbers on this device.

A compute unit may refuse a program, take the process down with it, or silently compute something else; the Neural Engine has
been reported to do each of these. So a child process runs a package first, on the chosen units, and compares with logits that
the exporter stored in it: once for each package, units, system and chip. The answer is stored.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.backends.coreml.engine import UNIT_NAMES, UNITS, Share, load_coremltools, open_functions, os_identity, read_placement
from edge.backends.coreml.sequence import CoreMLSequence
from edge.child import Ended, python_command, run_child
from edge.errors import BackendError, BackendUnavailableError, CancelledError, StorageError
from edge.files import read_record, write_private
from edge.formats.coreml import CoreMLPackage, read_package
from edge.units import reason

if TYPE_CHECKING:
    from edge.backends.base import LoadProgress
    from edge.formats.artifact import Artifact
    from edge.names import Accelerator
    from edge.plan.receipt import Plan

__all__ = [
    "Verdict",
    "find_accelerator",
    "load_verdict",
    "main",
    "remembered_verdict",
    "trial_command",
    "verdict_path",
    "why_failed",
]

SAME_NATS = 0.02
"""Divergence up to which two units of a device may differ by rounding; wrong weights or a lost cache give far more."""
N_ENDURANCE = 256
"""Steps of decode after the comparison: packages with a state have been reported to crash after 100 to 200 of them."""
_FORMAT = 1  # raise it when the child tries more, so that old answers are not trusted
_TIMEOUT_S = 1800.0  # compiling a large model for the Neural Engine takes minutes
_OTHERWISE = (
    "Use another accelerator (--require metal, --require cpu), another variant (edge convert --variants), "
    "or a package without a state (edge convert --explicit-kv)."
)

Command = Callable[[Path, str, Path], list[str]]
"""(package, compute units, cache directory) -> the command line of the child."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a trial.

    Attributes:
        is_good: the package computes the right numbers.
        note: the problem, for people; "" if there is none.
        divergence: mean KL in nats from the logits in the package to the computed ones; None if there are none.
        placement: where Core ML plans to run `decode`.
    """

    is_good: bool
    note: str = ""
    divergence: float | None = None
    placement: tuple[Share, ...] = ()


def load_verdict(
    package: CoreMLPackage,
    digest: str,
    units: str,
    cache_dir: Path,
    *,
    command: Command | None = None,
    timeout_s: float = _TIMEOUT_S,
    on_wait: Callable[[], None] | None = None,
) -> Verdict:
    """Return the stored answer, or try the package: seconds, or minutes where Core ML compiles for the Neural Engine.

    Args:
        package: what to try.
        digest: of its content.
        units: name of a coremltools.ComputeUnit.
        cache_dir: answers and compiled models are stored in `coreml` below it.
        command: the child's command line; None is `trial_command`.
        timeout_s: a child that takes longer counts as hanging.
        on_wait: called while the trial runs; whatever it raises ends the trial and goes through.

    Raises:
        BackendError: no child can be started, or it was stopped from outside, so there is no answer.
    """
    known = remembered_verdict(digest, units, cache_dir)
    if known is not None:
        return known
    if on_wait is not None:
        on_wait()
    try:
        ended = run_child((command or trial_command)(package.path, units, cache_dir), timeout_s=timeout_s, on_wait=on_wait)
    except OSError as error:
        raise BackendError(f"The process that tries a Core ML package cannot be started: {reason(error)}.") from error
    verdict = _judge(package.path.name, ended, timeout_s)
    with suppress(StorageError):  # then it is tried again next time
        write_private(verdict_path(digest, units, cache_dir), msgspec.json.encode(verdict))
    return verdict


def find_accelerator(
    plan: Plan,
    package: CoreMLPackage,
    digest: str,
    cache_dir: Path,
    on_progress: LoadProgress | None = None,
    verdict: Verdict | None = None,
) -> tuple[Accelerator, Verdict, str]:
    """Return the first accelerator of a plan on which a package computes the right numbers.

    Args:
        plan: names the accelerators to try.
        package, digest, cache_dir: as for `load_verdict`.
        on_progress: called while a unit is tried, with its name; False stops.
        verdict: taken instead of trying.

    Returns:
        The accelerator, its verdict, and in words which ones were tried before it.

    Raises:
        BackendUnavailableError: there is none.
        BackendError, CancelledError: as `load_verdict`.
    """
    tried: list[str] = []
    for accelerator in (plan.accelerator, *plan.fallbacks):
        units, began = UNITS[accelerator], time.monotonic()

        def report(name: str = UNIT_NAMES[units], began: float = began) -> None:
            stage = f"trying {name}, once per model ({time.monotonic() - began:.0f} s):"
            if on_progress is not None and not on_progress(0.0, stage):
                raise CancelledError("Loading was stopped.")

        found = verdict or load_verdict(package, digest, units, cache_dir, on_wait=report)
        if found.is_good:
            return accelerator, found, "; ".join(tried)
        tried.append(f"{UNIT_NAMES[units]} is not used: {found.note}")
    told = "; ".join(tried)
    raise BackendUnavailableError(f"{told[0].upper()}{told[1:]}.", _OTHERWISE)


def remembered_verdict(digest: str, units: str, cache_dir: Path) -> Verdict | None:
    """Return the stored answer of a trial; None if there is none that can be read."""
    return read_record(verdict_path(digest, units, cache_dir), Verdict)


def why_failed(artifact: Artifact, accelerator: Accelerator, cache_dir: Path) -> str:
    """Return the problem that a trial found on an accelerator; "" if there was none, or no trial."""
    package = artifact.coreml
    if package is None or accelerator not in UNITS:
        return ""
    verdict = remembered_verdict(package.sha256(cache_dir=cache_dir), UNITS[accelerator], cache_dir)
    return "" if verdict is None or verdict.is_good else verdict.note


def verdict_path(digest: str, units: str, cache_dir: Path) -> Path:
    """Return the file of an answer."""
    try:
        version = importlib.metadata.version("coremltools")
    except importlib.metadata.PackageNotFoundError:
        version = ""
    key = hashlib.sha256(json.dumps([_FORMAT, digest, units, os_identity(), version]).encode()).hexdigest()
    return cache_dir / "coreml" / f"trial-{key[:32]}.json"


def trial_command(package: Path, units: str, cache_dir: Path) -> list[str]:
    """Return the command line of a trial, with the arguments of `main`."""
    return python_command("edge.backends.coreml.trial:main", str(package), units, str(cache_dir))


def _judge(name: str, ended: Ended, timeout_s: float) -> Verdict:
    if ended.was_stopped and ended.code != -signal.SIGKILL:
        raise BackendError("The trial of a Core ML package was stopped from outside.", "Load the model again.")
    if ended.code is None:
        return Verdict(is_good=False, note=f"A trial of {name} did not end within {timeout_s:g} s")
    if ended.code:
        return Verdict(is_good=False, note=f"A trial of {name} {ended.reason}")
    try:
        outcome = msgspec.json.decode(ended.stdout.strip().splitlines()[-1], type=Verdict)
    except (IndexError, msgspec.DecodeError) as error:
        raise BackendError(
            "The trial of a Core ML package gave no answer that can be read.", "Load the model again."
        ) from error
    if outcome.divergence is None or outcome.divergence <= SAME_NATS:
        return outcome
    note = (
        f"A trial of {name} computed wrong numbers: its predictions are {outcome.divergence:.3f} nats away from those stored "
        f"in the package, and rounding explains {SAME_NATS}"
    )
    return msgspec.structs.replace(outcome, is_good=False, note=note)


# -- in the child


def main(path: str, units: str, cache_dir: str, *, coremltools: Any = None) -> None:
    """Run a package's golden prompt, compare, decode for a while, and write the verdict as the last line of the output.

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
    for start in range(0, len(golden.prompt), info.chunk):
        sequence.prefill(golden.prompt[start : start + info.chunk])
    found = [sequence.newest_logits(), *map(sequence.decode, golden.continuation[:-1])]
    for _ in range(N_ENDURANCE if info.stateful else 0):
        if len(sequence.tokens) == info.context:
            sequence.truncate(len(golden.prompt))
        sequence.decode(golden.prompt[-1])
    compared = [top.divergence(logits) for top, logits in zip(golden.package, found, strict=False)]
    verdict = Verdict(
        is_good=True,
        divergence=sum(compared) / len(compared) if compared else None,
        placement=read_placement(coremltools, functions, units),
    )
    sys.stdout.write("\n" + msgspec.json.encode(verdict).decode() + "\n")
