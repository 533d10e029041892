"""Several candidates, measured in turns.

Every second round runs through the candidates backwards, so that other load on the machine affects all alike. Besides the
medians, results have the ratio to the first candidate within a round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Protocol

import msgspec

import edge
from edge.bench.bandwidth import decode_bytes, sweep_bytes
from edge.bench.process import Worker, bandwidth_here, setting_of
from edge.bench.values import FORMAT, Result, Row, Sample, Stat, ratio_stat, stat
from edge.errors import EdgeError, UsageError

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.plan.receipt import Plan

__all__ = ["MEMORY_SHARE", "Candidate", "Measuring", "Options", "Progress", "run_bench"]

MEMORY_SHARE = 0.8
"""Share of free memory for the processes that measure; beyond that, models take turns in memory too."""

Progress = Callable[[str, float], None]
"""Called with (current step, share done from 0 to 1)."""


@dataclass(frozen=True)
class Candidate:
    """A model and its settings.

    Attributes:
        name: for tables.
        plan: with a context that holds the prompt and the reply.
    """

    name: str
    plan: Plan


@dataclass(frozen=True)
class Options:
    """The extent of a measurement.

    Attributes:
        n_prompt: tokens to prefill.
        n_decode: tokens to decode.
        n_rounds: rounds over all candidates.
        with_energy: look for a meter.
        with_bandwidth: measure the memory bandwidth.
    """

    n_prompt: int = 512
    n_decode: int = 128
    n_rounds: int = 5
    with_energy: bool = True
    with_bandwidth: bool = True


class Measuring(Protocol):
    """The used part of a `Worker`; tests replace it."""

    load_s: float
    energy: str

    def run(self, n_prompt: int, n_decode: int) -> Sample: ...
    def close(self) -> None: ...
    def stop(self) -> None: ...


@dataclass
class _Entry:
    """A candidate and its measurements so far."""

    candidate: Candidate
    worker: Measuring | None = None
    loads_s: list[float] = field(default_factory=list)
    samples: dict[int, Sample] = field(default_factory=dict)
    energy: str = ""
    error: str = ""


def run_bench(
    candidates: Sequence[Candidate],
    options: Options,
    device: DeviceProfile,
    *,
    on_progress: Progress = lambda text, share: None,
    open_worker: Callable[..., Measuring] = Worker,
    measure_bandwidth: Callable[[int, int], float] = bandwidth_here,
) -> Result:
    """Measure candidates side by side.

    A candidate that fails is reported and left out of the following rounds. After Ctrl-C, the result has the measurements so
    far and is marked as incomplete.

    Args:
        candidates: at least one.
        options: extent of the measurement.
        device: from `edge.device.probe`.
        on_progress: see Progress.
        open_worker: starts the process of a plan.
        measure_bandwidth: takes threads and bytes to read, returns bytes per second.

    Raises:
        UsageError: there is no candidate, or a number is below 1.
    """
    _check(candidates, options)
    entries = [_Entry(candidate) for candidate in candidates]
    needed = sum(candidate.plan.memory.total_bytes for candidate in candidates)
    keeps_all = needed <= device.memory.available_bytes * MEMORY_SHARE
    bandwidths: list[float] = []
    is_complete = True

    def sweep() -> None:
        if options.with_bandwidth:
            n_threads = max(candidate.plan.n_threads for candidate in candidates)
            bandwidths.append(measure_bandwidth(n_threads, sweep_bytes(device.memory.available_bytes)))

    try:
        on_progress("memory bandwidth", 0.0)
        sweep()
        for n in range(options.n_rounds):
            for k, entry in enumerate(entries if n % 2 == 0 else reversed(entries)):
                done = (n * len(entries) + k) / (options.n_rounds * len(entries))
                on_progress(f"round {n + 1} of {options.n_rounds}: {entry.candidate.name}", done)
                _take_turn(entry, n, options, open_worker, keeps_open=keeps_all)
        on_progress("memory bandwidth", 1.0)
        sweep()  # again: a busy machine can be too slow at one time
    except KeyboardInterrupt:
        is_complete = False
        for entry in entries:
            if entry.worker is not None:
                entry.worker.stop()
    finally:
        for entry in entries:
            if entry.worker is not None:
                entry.worker.close()
    return _result(entries, options, device, max(bandwidths, default=None), is_complete=is_complete)


def _result(
    entries: Sequence[_Entry], options: Options, device: DeviceProfile, bandwidth: float | None, *, is_complete: bool
) -> Result:
    rows = [_row(entry, entries[0], options, bandwidth) for entry in entries]
    return Result(
        format=FORMAT,
        edge=edge.__version__,
        device=device.name,
        processor=f"{device.cpu.name}, {device.cpu.n_physical} cores",
        measured_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        n_prompt=options.n_prompt,
        n_decode=options.n_decode,
        n_rounds=options.n_rounds,
        bandwidth_bytes_per_s=bandwidth,
        energy=next((entry.energy for entry in entries if entry.energy), "not measured"),
        is_complete=is_complete and not any(row.error for row in rows),
        rows=tuple(rows),
    )


def _check(candidates: Sequence[Candidate], options: Options) -> None:
    if not candidates:
        raise UsageError("There is nothing to measure.", "Name a model.")
    for name, value in (("prompt", options.n_prompt), ("reply", options.n_decode), ("number of rounds", options.n_rounds)):
        if value < 1:
            raise UsageError(f"A {name} of {value} cannot be measured.", "Use 1 or more.")
    for candidate in candidates:
        needed = options.n_prompt + options.n_decode + 1
        if candidate.plan.n_ctx < needed:
            raise UsageError(
                f"{candidate.name} has a context of {candidate.plan.n_ctx:,} tokens, less than the {needed:,} to be measured.",
                "Measure a shorter prompt or reply.",
            )


def _take_turn(entry: _Entry, n: int, options: Options, open_worker: Callable[..., Measuring], *, keeps_open: bool) -> None:
    """Run one round of one candidate. Its errors become part of the result; the others continue."""
    if entry.error:
        return
    try:
        if entry.worker is None:
            entry.worker = open_worker(entry.candidate.plan, with_energy=options.with_energy)
            entry.loads_s.append(entry.worker.load_s)
            entry.energy = entry.worker.energy
        entry.samples[n] = entry.worker.run(options.n_prompt, options.n_decode)
    except EdgeError as error:
        entry.error = str(error)
    finally:
        if entry.worker is not None and (entry.error or not keeps_open):
            entry.worker.close()
            entry.worker = None


def _row(entry: _Entry, first: _Entry, options: Options, bandwidth: float | None) -> Row:
    plan, samples = entry.candidate.plan, list(entry.samples.values())
    setting = setting_of(plan)
    row = Row(
        name=entry.candidate.name,
        model=plan.artifact.name,
        path=str(plan.artifact.path),
        format=plan.artifact.format,
        size_bytes=plan.artifact.size_bytes,
        setting=setting,
        load_s=statistics.median(entry.loads_s) if entry.loads_s else None,
        decode_bytes=decode_bytes(plan.artifact, setting, options.n_prompt + options.n_decode / 2),
        samples=tuple(samples),
        error=entry.error,
    )
    if not samples:
        return row
    decode = stat([sample.decode_tokens_per_s for sample in samples])
    share = None
    if bandwidth and row.decode_bytes and plan.accelerator == "cpu":  # the bandwidth is that of main memory
        share = decode.median * row.decode_bytes / bandwidth
    return msgspec.structs.replace(
        row,
        first_token_s=stat([sample.first_token_s for sample in samples]),
        prefill_tokens_per_s=stat([sample.prefill_tokens_per_s for sample in samples]),
        decode_tokens_per_s=decode,
        prefill_ratio=_ratio(entry, first, lambda sample: sample.prefill_tokens_per_s),
        decode_ratio=_ratio(entry, first, lambda sample: sample.decode_tokens_per_s),
        peak_bytes=max(sample.peak_bytes for sample in samples),
        prefill_joules=_median([s.prefill_joules / s.n_prompt for s in samples if s.prefill_joules is not None]),
        decode_joules=_median([s.decode_joules / s.n_decode for s in samples if s.decode_joules is not None]),
        bandwidth_share=share,
    )


def _ratio(entry: _Entry, first: _Entry, value: Callable[[Sample], float]) -> Stat | None:
    shared = [n for n in entry.samples if n in first.samples]
    if entry is first or not shared:
        return None
    return ratio_stat([value(entry.samples[n]) for n in shared], [value(first.samples[n]) for n in shared])


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
