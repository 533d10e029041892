"""`edge tune` for a model in several formats: tune each, then measure all in turns, so that the plan can choose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge.bench.process import Worker
from edge.bench.run import MEMORY_SHARE
from edge.bench.tune import Report, TuneOptions, Tuner, measure_in_turns
from edge.plan.tuning import remember

if TYPE_CHECKING:
    from edge.bench.run import Measuring
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact

__all__ = ["tune_formats"]

_TURNS_SHARE = 0.3  # of the time


def tune_formats(
    device: DeviceProfile,
    artifacts: Sequence[Artifact],
    options: TuneOptions,
    *,
    cache_dir: Path,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
    open_worker: Callable[..., Measuring] = Worker,
    clock: Callable[[], float] = time.monotonic,
) -> list[Report]:
    """Tune each format, then measure the usual and the best setting of all formats in turns.

    Args:
        device: from `edge.device.probe`.
        artifacts: one model in several formats.
        options: limits of the search; the time is for all formats together.
        cache_dir: where the results are stored.
        on_progress: called with (current trial, share of the time that has passed).
        open_worker: starts the process of a plan.
        clock: in seconds.

    Returns:
        A report for each format, in order.

    Raises:
        EdgeError: one does not run here, or the result cannot be stored.
    """
    started = clock()
    each = replace(options, budget_s=options.budget_s * (1 - _TURNS_SHARE) / len(artifacts))

    def report(artifact: Artifact, text: str, _: float = 0.0) -> None:
        on_progress(f"{artifact.format}: {text}", min(1.0, (clock() - started) / options.budget_s))

    with ExitStack() as stack:
        tuners = []
        found = []
        for artifact in artifacts:
            of_this = partial(report, artifact)
            tuner = stack.enter_context(Tuner(device, artifact, each, cache_dir, of_this, open_worker, clock))
            found.append(tuner.search())
            tuner.close()
            tuners.append(tuner)
        lengths = min(tuner.lengths for tuner in tuners)
        for tuner in tuners:
            tuner.lengths = lengths
        settings = [(tuner, setting) for tuner, (start, outcome) in zip(tuners, found, strict=True)
                    for setting in dict.fromkeys((start, outcome.best))]  # fmt: skip
        needed = sum(tuner.memory_bytes(setting) for tuner, setting in settings)
        for tuner in tuners:
            tuner.reuses_workers = needed <= device.memory.available_bytes * MEMORY_SHARE
        samples = measure_in_turns(
            settings, lambda: clock() - started > options.budget_s, lambda: report(artifacts[-1], "all formats in turns")
        )
        reports = [
            tuner.report(start, outcome, samples[tuner, start], samples[tuner, outcome.best])
            for tuner, (start, outcome) in zip(tuners, found, strict=True)
        ]
    for artifact, each_report in zip(artifacts, reports, strict=True):
        remember(device, artifact, each_report.tuning, cache_dir=cache_dir)
    return reports
