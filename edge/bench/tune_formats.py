"""`edge tune` for a model in several formats: each is tuned, then all are measured in turns, so that the plan can choose."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from edge.bench.process import Worker
from edge.bench.tune import Report, TuneOptions, Tuner
from edge.plan.tuning import remember

if TYPE_CHECKING:
    from edge.bench.run import Measuring
    from edge.bench.values import Sample, Setting
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact

__all__ = ["tune_formats"]

_TURNS_SHARE = 0.3  # of the time
_MOST_ROUNDS, _FEWEST_ROUNDS = 7, 3
_MEMORY_SHARE = 0.8


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
    """Tune each, then measure the usual and the best setting of all in turns: what a busy minute does to one it does to all.

    Args:
        device: from `edge.device.probe`.
        artifacts: one model in several formats.
        options: what may be tried; the time is for all of them together.
        cache_dir: where it is kept.
        on_progress: called with (what is tried, share of the time that has passed).
        open_worker: makes the process of a plan.
        clock: seconds.

    Returns:
        A report for each, in their order.

    Raises:
        EdgeError: one does not run here, or the result cannot be kept.
    """
    started = clock()
    each = replace(options, budget_s=options.budget_s * (1 - _TURNS_SHARE) / len(artifacts))

    def tell(artifact: Artifact, text: str, _: float) -> None:
        on_progress(f"{artifact.format}: {text}", min(1.0, (clock() - started) / options.budget_s))

    with ExitStack() as stack:
        tuners = []
        found = []
        for artifact in artifacts:
            told = partial(tell, artifact)
            tuner = stack.enter_context(Tuner(device, artifact, each, cache_dir, told, open_worker, clock))
            found.append(tuner.search())
            tuner.close()
            tuners.append(tuner)
        lengths = min(tuner.lengths for tuner in tuners)
        for tuner in tuners:
            tuner.lengths = lengths
        settings = [(tuner, setting) for tuner, (start, outcome) in zip(tuners, found, strict=True)
                    for setting in dict.fromkeys((start, outcome.best))]  # fmt: skip
        is_over = partial(_is_over, clock, started + options.budget_s)
        samples = _measure_in_turns(device, settings, is_over, lambda: tell(artifacts[-1], "all formats in turns", 0.0))
        reports = [
            tuner.report(start, outcome, samples[tuner, start], samples[tuner, outcome.best])
            for tuner, (start, outcome) in zip(tuners, found, strict=True)
        ]
    for artifact, report in zip(artifacts, reports, strict=True):
        remember(device, artifact, report.tuning, cache_dir=cache_dir)
    return reports


def _is_over(clock: Callable[[], float], end: float) -> bool:
    return clock() > end


def _measure_in_turns(
    device: DeviceProfile,
    settings: Sequence[tuple[Tuner, Setting]],
    is_over: Callable[[], bool],
    say: Callable[[], None],
) -> dict[tuple[Tuner, Setting], list[Sample]]:
    """Samples of every setting, one a round, in changing order."""
    samples: dict[tuple[Tuner, Setting], list[Sample]] = {pair: [] for pair in settings}
    needed = sum(tuner.memory_bytes(setting) for tuner, setting in settings)
    fit_together = needed <= device.memory.available_bytes * _MEMORY_SHARE
    for n in range(_MOST_ROUNDS):
        if n >= _FEWEST_ROUNDS and is_over():
            break
        for tuner, setting in settings if n % 2 == 0 else reversed(settings):
            say()
            samples[tuner, setting].append(tuner.measure(setting))
            if not fit_together:
                tuner.close()
    return samples
