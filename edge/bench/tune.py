"""`edge tune`: the search for settings, for each format of a model that is here, and the choice among the formats."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge.bench.format_tuner import Tuner
from edge.bench.losses import Tuned
from edge.bench.process import Worker
from edge.bench.run import MEMORY_SHARE
from edge.bench.tune_options import QUICK_S, Report, TuneOptions
from edge.bench.values import Sample, Setting
from edge.errors import BackendError, EdgeError
from edge.plan.tuning import remember
from edge.units import quoted

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact

__all__ = ["QUICK_S", "Report", "TuneOptions", "tune"]

_TURNS_SHARE = 0.3  # of the time of all formats, if there are several
_FINAL_ROUNDS, _MIN_FINAL_ROUNDS = 7, 3


def tune(
    device: DeviceProfile,
    artifacts: Sequence[Artifact],
    options: TuneOptions,
    *,
    cache_dir: Path,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
    open_worker: Callable[..., Tuned] = Worker,
    clock: Callable[[], float] = time.monotonic,
) -> list[Report]:
    """Find the fastest settings for a model on this device, and store them for the plan.

    Of a model in several formats each is tuned, then the usual and the best settings of all are measured in turns, so that the
    plan can choose among them. Losses are measured from the format that was published, with its usual engine.

    Args:
        device: from `edge.device.probe`.
        artifacts: the model, in one or more formats.
        options: limits of the search; the time is for all formats together.
        cache_dir: where the results are stored.
        on_progress: called with (current trial, share of the time that has passed).
        open_worker: starts the process of a plan.
        clock: in seconds.

    Returns:
        A report for each format, in order.

    Raises:
        EdgeError: a format does not run here, or the result cannot be stored; a quick comparison did not end in time, which is
            stored, too.
    """
    deadline = time.monotonic() + options.budget_s if options.is_quick else None
    started = clock()
    is_one = len(artifacts) == 1
    each = options if is_one else replace(options, budget_s=options.budget_s * (1 - _TURNS_SHARE) / len(artifacts))
    published = next((artifact for artifact in artifacts if not artifact.made_from), artifacts[0])

    def report(form: str, text: str) -> None:
        on_progress(text if is_one else f"{form}: {text}", min(1.0, (clock() - started) / options.budget_s))

    def is_late() -> bool:
        return clock() - started > options.budget_s

    with ExitStack() as stack:
        reference = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-tune-"))) / "logits.npz"
        tuners = [
            stack.enter_context(
                Tuner(
                    device,
                    artifact,
                    each,
                    cache_dir=cache_dir,
                    reference=reference,
                    on_progress=partial(report, artifact.format),
                    open_worker=open_worker,
                    clock=clock,
                    deadline=deadline,
                )
            )
            for artifact in artifacts
        ]
        try:
            found = {}
            for tuner in sorted(tuners, key=lambda tuner: tuner.artifact is not published):
                found[tuner] = tuner.search()
                if not is_one:
                    tuner.loss(found[tuner][0])
                    tuner.close()
            settings = [
                (tuner, setting) for tuner in tuners for setting in dict.fromkeys((found[tuner][0], found[tuner][1].best))
            ]
            samples = _compare(
                settings,
                device.memory.available_bytes,
                is_late=is_late,
                on_measure=lambda: report("all formats", "the best against the usual settings"),
            )
            reports = [
                tuner.report(start, outcome, samples[tuner, start], samples[tuner, outcome.best])
                for tuner, (start, outcome) in ((tuner, found[tuner]) for tuner in tuners)
            ]
        except EdgeError as error:
            if not (options.is_quick and is_late()):
                raise
            for artifact, tuner in zip(artifacts, tuners, strict=True):
                remember(device, artifact, None, cache_dir=cache_dir, engines=tuner.readers)
            raise BackendError(
                f"The engines could not be compared within {options.budget_s:.0f} seconds, so the usual one is used.",
                f"Give it more time: edge tune {quoted(artifacts[0].name)} --minutes 10",
            ) from error
    for artifact, tuner, result in zip(artifacts, tuners, reports, strict=True):
        remember(device, artifact, result.tuning, cache_dir=cache_dir, engines=tuner.readers)
    return reports


def _compare(
    settings: Sequence[tuple[Tuner, Setting]],
    available_bytes: int,
    *,
    is_late: Callable[[], bool],
    on_measure: Callable[[], None],
) -> dict[tuple[Tuner, Setting], list[Sample]]:
    """Measure the usual and the best settings of all formats in turns, in fewer rounds when it is late.

    Raises:
        EdgeError: one does not run, or it is late before the first round is over.
    """
    needed = sum(tuner.memory_bytes(setting) for tuner, setting in settings)
    lengths = min(tuner.lengths for tuner, _ in settings)
    for tuner, _ in settings:
        tuner.lengths, tuner.reuses_workers = lengths, needed <= available_bytes * MEMORY_SHARE
    samples: dict[tuple[Tuner, Setting], list[Sample]] = {pair: [] for pair in settings}
    for n in range(_FINAL_ROUNDS):
        if n >= _MIN_FINAL_ROUNDS and is_late():
            break
        # Every second round backwards, so that a busy moment of the machine affects all.
        for tuner, setting in settings if n % 2 == 0 else reversed(settings):
            on_measure()
            try:
                samples[tuner, setting].append(tuner.measure(setting))
            except EdgeError:
                n_whole = min(map(len, samples.values()))
                if not (n_whole and is_late()):
                    raise
                return {pair: taken[:n_whole] for pair, taken in samples.items()}
    return samples
