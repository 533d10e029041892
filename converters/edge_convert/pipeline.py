"""A conversion: a plan that can be shown before it runs, and its steps, run so that a second run resumes.

    OUT/.work-<digest>/          work in progress; the digest is over the source, the recipe and the tools
        gguf-base/               the result of a finished step
        gguf-base.done           written after it, so that a folder without one is not trusted; holds the memory it took
        gguf-Q4_K_M.tmp/         a step in progress; thrown away by the next run
        hidden.part/             the same, of a step that resumes; the next run hands it to the step again
    OUT/gguf-Q4_K_M/             an artifact: moved here by one rename when all steps are done

A run that fails or is killed leaves finished steps in .work-<digest> and nothing else. The same command resumes it. A refused
model leaves nothing: only another file or request can succeed, and that has another digest.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import msgspec

from edge.errors import EdgeError, ModelFileError, ModelTooLargeError, StorageError, UsageError
from edge.files import lock_file, sync_file, sync_folder
from edge.units import size_text
from edge_convert.full_disk import name_full_disk, storage_error
from edge_convert.peak import PeakMemory

__all__ = [
    "FolderOf",
    "OnProgress",
    "Plan",
    "Progress",
    "Step",
    "StepProgress",
    "Work",
    "check_resources",
    "digest_of",
    "is_done",
    "left_over",
    "run",
]

StepProgress = Callable[[str, float], None]
"""Called by a step with what it is doing, and the share of its work that is done."""

FolderOf = Callable[[str], Path]
"""Returns the folder of a finished step, by the step's name."""

Work = Callable[[Path, FolderOf, StepProgress], None]
"""Does a step: (folder to write into, folders of finished steps, progress)."""

_MARGIN_BYTES = 64 << 20


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a conversion.

    Attributes:
        name: of its folder; unique in a plan.
        title: for people.
        work: does it.
        artifact: its folder is a result and moves to OUT under its name.
        is_heavy: it loads large libraries or much data, so it is worth a process of its own (edge_convert.step_process).
        resumes: it continues in its own half-written folder.
        is_extra: its failure does not hold the results of the others back.
        seconds: estimate.
        disk_bytes: estimate of what it writes.
        memory_bytes: estimate of its peak memory; mapped files do not count, see edge_convert.peak.
    """

    name: str
    title: str
    work: Work
    artifact: bool = False
    is_heavy: bool = False
    resumes: bool = False
    is_extra: bool = False
    seconds: float = 1.0
    disk_bytes: int = 0
    memory_bytes: int = 0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The steps of a conversion.

    Attributes:
        title: model and source, for people.
        out: folder for the artifacts.
        digest: over everything that decides the result.
        steps: in order.
        notes: what the user should know before it starts.
        f16_bytes: size of the source's weights in 16 bits; 0 where it is not known.
        force: replace existing artifacts.
    """

    title: str
    out: Path
    digest: str
    steps: tuple[Step, ...]
    notes: tuple[str, ...] = ()
    f16_bytes: int = 0
    force: bool = False

    @property
    def work(self) -> Path:
        """Folder of the steps in progress."""
        return self.out / f".work-{self.digest[:16]}"

    @property
    def artifacts(self) -> tuple[Path, ...]:
        """Folders of the results."""
        return tuple(self.out / step.name for step in self.steps if step.artifact)

    @property
    def steps_left(self) -> list[Step]:
        """Steps that no earlier run finished."""
        return [step for step in self.steps if not is_done(self, step)]

    @property
    def disk_bytes(self) -> int:
        """Bytes that the remaining steps write."""
        return sum(step.disk_bytes for step in self.steps_left)

    @property
    def memory_bytes(self) -> int:
        """Highest peak memory of the remaining steps."""
        return max((step.memory_bytes for step in self.steps_left), default=0)

    @property
    def seconds(self) -> float:
        """Rough duration of the remaining steps."""
        return sum(step.seconds for step in self.steps_left)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of a conversion.

    Attributes:
        step: number of the step, from 1.
        n_steps: of the plan.
        title: of the step.
        detail: what the step is doing.
        share: of the step's work that is done, 0 to 1.
        total_share: of the whole.
        seconds_left: of the whole; None while it is not known.
        is_resumed: an earlier run finished the step.
        peak_bytes: peak memory of the step, its child processes included; 0 before it is done.
        resident_bytes: the same with the resident parts of mapped files.
    """

    step: int
    n_steps: int
    title: str
    detail: str
    share: float
    total_share: float
    seconds_left: float | None
    is_resumed: bool = False
    peak_bytes: int = 0
    resident_bytes: int = 0


OnProgress = Callable[[Progress], None]


def is_done(plan: Plan, step: Step) -> bool:
    """Return whether an earlier run of this plan finished a step."""
    return (plan.work / f"{step.name}.done").is_file()


def left_over(plan: Plan) -> list[Path]:
    """Return the work folders in `plan.out` of other plans that were stopped."""
    return sorted(path for path in plan.out.glob(".work-*") if path != plan.work and path.is_dir() and not _is_running(path))


def check_resources(plan: Plan, *, free_memory_bytes: int | None = None) -> None:
    """Refuse a plan that cannot succeed, before anything is written.

    Args:
        plan: to be run.
        free_memory_bytes: of the machine or the container; None asks the system.

    Raises:
        UsageError: an artifact exists already and may not be replaced.
        StorageError: there is not enough disk space, or the folder cannot be written.
        ModelTooLargeError: there is not enough memory.
    """
    import psutil

    taken = [path.name for path in plan.artifacts if path.exists() and not _is_published(plan, path.name)]
    if taken and not plan.force:
        raise UsageError(
            f"{plan.out} holds {', '.join(taken)} already.", "Choose another folder, or replace the results: --force"
        )
    existing = next(folder for folder in (plan.out, *plan.out.absolute().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise StorageError(f"{existing} cannot be written.", "Choose another folder: --out DIR")
    free = shutil.disk_usage(existing).free
    if plan.disk_bytes + _MARGIN_BYTES > free:
        raise StorageError(
            f"The conversion writes about {size_text(plan.disk_bytes)}, and the disk of {existing} has {size_text(free)} free.",
            "Free some space, or choose another disk: --out DIR",
        )
    memory = psutil.virtual_memory().available if free_memory_bytes is None else free_memory_bytes
    if plan.memory_bytes > memory:
        raise ModelTooLargeError(
            f"The conversion needs about {size_text(plan.memory_bytes)} of memory, and {size_text(memory)} are free.",
            "Close other programs, or convert on a larger machine.",
        )


def run(
    plan: Plan,
    on_progress: OnProgress | None = None,
    *,
    choose: Callable[[], Collection[str]] | None = None,
    on_failure: Callable[[Step, EdgeError], None] | None = None,
) -> list[Path]:
    """Run a plan. Steps that an earlier run of the same plan finished are not repeated.

    Args:
        plan: from `edge_convert.plan.make_plan`.
        on_progress: what it raises (KeyboardInterrupt) stops the run, and a second run resumes.
        choose: called when all steps are done, returns the names of the artifacts to keep; None keeps all. What it raises keeps
            the artifacts out of `plan.out`, and the finished steps for another run.
        on_failure: called with the error of an extra step (the card), whose results are then missing; None raises it.

    Returns:
        The folders of the artifacts that are kept.

    Raises:
        UsageError: another process runs the same conversion, or an artifact appeared meanwhile.
        StorageError: the disk is full or cannot be written.
        EdgeError: a step failed.
    """
    is_new = not plan.out.exists()
    try:
        plan.work.mkdir(parents=True, exist_ok=True)
        with _lock(plan.work):
            try:
                _run_steps(plan, on_progress, on_failure)
                kept = set(choose()) if choose else {path.name for path in plan.artifacts}
                kept &= {step.name for step in plan.steps if is_done(plan, step)}
                _publish(plan, kept)
            except BaseException as error:
                _tidy(plan, is_new, keeps_done=not isinstance(error, ModelFileError) or _is_worth_keeping(plan))
                raise
            shutil.rmtree(plan.work)
    except OSError as error:
        raise storage_error(error, plan.out) from error
    return [path for path in plan.artifacts if path.name in kept]


def digest_of(*parts: object) -> str:
    """Return the SHA-256 over values as text, for `Plan.digest`."""
    return hashlib.sha256(msgspec.json.encode([str(part) for part in parts])).hexdigest()


def _run_steps(plan: Plan, on_progress: OnProgress | None, on_failure: Callable[[Step, EdgeError], None] | None = None) -> None:
    clock = _Clock(plan, on_progress)
    for number, step in enumerate(plan.steps, 1):
        note = plan.work / f"{step.name}.done"
        if is_done(plan, step):
            clock.report(number, step, "", 1.0, is_resumed=True, peak=_read_peak(note))
            continue
        folder, temporary = plan.work / step.name, plan.work / f"{step.name}.{'part' if step.resumes else 'tmp'}"
        for leftover in (folder,) if step.resumes else (folder, temporary):
            if leftover.exists():
                shutil.rmtree(leftover)
        temporary.mkdir(exist_ok=step.resumes)
        clock.report(number, step, "", 0.0)
        with PeakMemory() as peak:
            try:
                with name_full_disk(plan.work):
                    step.work(
                        temporary,
                        lambda name: plan.work / name,
                        lambda detail, share, number=number, step=step: clock.report(number, step, detail, share),  # type: ignore[misc]
                    )
            except (EdgeError, OSError) as error:
                if not step.is_extra or on_failure is None:
                    raise
                on_failure(step, storage_error(error, plan.out) if isinstance(error, OSError) else error)
                shutil.rmtree(temporary, ignore_errors=True)
                continue
        for path in temporary.rglob("*"):
            if path.is_file():
                sync_file(path)
        temporary.rename(folder)
        note.write_text(f"{peak.n_bytes} {peak.resident_bytes}", encoding="ascii")
        sync_folder(plan.work)
        clock.report(number, step, "", 1.0, peak=(peak.n_bytes, peak.resident_bytes))


def _read_peak(path: Path) -> tuple[int, int]:
    """Read the two numbers in a step's note; zeros where a power cut emptied it."""
    numbers = path.read_text(encoding="ascii", errors="replace").split()
    return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 and all(map(str.isdecimal, numbers)) else (0, 0)


class _Clock:
    """Estimates the time left from the estimates of the steps and the time that this run took so far."""

    def __init__(self, plan: Plan, on_progress: OnProgress | None) -> None:
        self._plan, self._on_progress = plan, on_progress
        self._total_s = sum(step.seconds for step in plan.steps) or 1.0
        self._resumed_s = sum(step.seconds for step in plan.steps if is_done(plan, step))
        self._start = time.monotonic()

    def report(
        self, number: int, step: Step, detail: str, share: float, *, is_resumed: bool = False, peak: tuple[int, int] = (0, 0)
    ) -> None:
        if self._on_progress is None:
            return
        behind_s = sum(other.seconds for other in self._plan.steps[: number - 1]) + share * step.seconds
        done_s, elapsed_s = behind_s - self._resumed_s, time.monotonic() - self._start
        self._on_progress(
            Progress(
                step=number,
                n_steps=len(self._plan.steps),
                title=step.title,
                detail=detail,
                share=share,
                total_share=min(1.0, behind_s / self._total_s),
                seconds_left=None if done_s <= 0 else elapsed_s / done_s * (self._total_s - behind_s),
                is_resumed=is_resumed,
                peak_bytes=peak[0],
                resident_bytes=peak[1],
            )
        )


def _publish(plan: Plan, kept: Collection[str]) -> None:
    """Give the artifacts their final names. A run that is killed in between continues here."""
    for step in plan.steps:
        if not step.artifact or step.name not in kept or _is_published(plan, step.name):
            continue
        target = plan.out / step.name
        if target.exists():
            if not plan.force:
                raise UsageError(f"{target} appeared while the conversion ran.", "Move it away, and run the command again.")
            target.rename(plan.work / f"{step.name}.old")
        (plan.work / step.name).rename(target)
    sync_folder(plan.out)


def _is_published(plan: Plan, name: str) -> bool:
    """Return whether an earlier run of this plan, killed since, moved an artifact to its place."""
    return (plan.work / f"{name}.done").is_file() and not (plan.work / name).exists()


def _is_worth_keeping(plan: Plan) -> bool:
    """Return whether hours of training were begun, or only the card is left, although the model was refused."""
    begun = [step for step in plan.steps if is_done(plan, step) or (plan.work / f"{step.name}.part").exists()]
    return any(step.resumes for step in begun) or all(step.is_extra for step in plan.steps_left)


def _tidy(plan: Plan, is_new: bool, *, keeps_done: bool = True) -> None:
    """Clean up after a failure: finished steps stay if they are of use, half-written ones go unless they resume."""
    for leftover in plan.work.glob("*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    if not keeps_done or (not any(plan.work.glob("*.done")) and not any(plan.work.glob("*.part"))):
        shutil.rmtree(plan.work, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # somebody else has put something there
                plan.out.rmdir()


def _lock(work: Path) -> AbstractContextManager[None]:
    """Hold the lock of a work folder: one process at a time."""

    def refuse() -> None:
        raise UsageError(f"Another process runs this conversion into {work.parent}.", "Wait for it, or choose another folder.")

    return lock_file(work / "lock", on_wait=refuse)


def _is_running(work: Path) -> bool:
    """Return whether a process holds the lock of a work folder."""
    if not (work / "lock").is_file():
        return False
    try:
        with _lock(work):
            return False
    except UsageError:
        return True
    except OSError:
        return False  # another user's
