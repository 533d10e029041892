"""`edge tune`: the search of tuner.py over the settings that this device and its engines offer, for each format of a model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.bench.candidates import engines_for
from edge.bench.process import Worker, setting_of
from edge.bench.run import MEMORY_SHARE, Measuring
from edge.bench.tuner import Knob, Outcome, Search, turn_seconds, wins
from edge.bench.values import Sample, Setting, stat
from edge.errors import BackendUnavailableError, EdgeError, UsageError
from edge.plan.make import make_plan
from edge.plan.placement import find_targets, safety_here
from edge.plan.receipt import Plan, PlanRequest
from edge.plan.tuning import Tuning, remember
from edge.registry import ENGINES, Option

if TYPE_CHECKING:
    from edge.device.profile import Cpu, DeviceProfile
    from edge.formats.artifact import Artifact

__all__ = ["Report", "TuneOptions", "thread_counts", "tune"]

_BATCHES = (128, 256, 512, 1024, 2048)
_LENGTHS = ((1024, 64), (512, 64), (256, 32), (128, 16), (64, 8))  # prompt and reply, from the most exact to the fastest
_SAMPLES_IN_BUDGET = 60
_FINAL_SHARE = 0.2  # of the time of one format
_TURNS_SHARE = 0.3  # of the time of all formats, if there are several
_FINAL_ROUNDS, _MIN_FINAL_ROUNDS = 7, 3
_MAX_WORKERS = 3


@dataclass(frozen=True)
class TuneOptions:
    """The limits of a search.

    Attributes:
        budget_s: its approximate duration.
        backends: engines; empty is every installed one that reads the model.
        kv_types: for keys and values, besides f16. They save memory and cost quality, so none is tried by default.
    """

    budget_s: float = 180.0
    backends: tuple[str, ...] = ()
    kv_types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """The result of tuning.

    Attributes:
        tuning: for the plan.
        outcome: of the search.
        is_better: the found setting beat the usual one; otherwise `tuning` is the usual one.
        seconds: duration.
    """

    tuning: Tuning
    outcome: Outcome
    is_better: bool
    seconds: float


def tune(
    device: DeviceProfile,
    artifacts: Sequence[Artifact],
    options: TuneOptions,
    *,
    cache_dir: Path,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
    open_worker: Callable[..., Measuring] = Worker,
    clock: Callable[[], float] = time.monotonic,
) -> list[Report]:
    """Find the fastest settings for a model on this device, and store them for the plan.

    Of a model in several formats each is tuned, then the usual and the best settings of all are measured in turns, so that the
    plan can choose among them.

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
        EdgeError: a format does not run here, or the result cannot be stored.
    """
    started = clock()
    is_one = len(artifacts) == 1
    each = options if is_one else replace(options, budget_s=options.budget_s * (1 - _TURNS_SHARE) / len(artifacts))

    def report(form: str, text: str) -> None:
        on_progress(text if is_one else f"{form}: {text}", min(1.0, (clock() - started) / options.budget_s))

    with ExitStack() as stack:
        tuners, found = [], []
        for artifact in artifacts:
            tuner = Tuner(device, artifact, each, cache_dir, partial(report, artifact.format), open_worker, clock)
            tuners.append(stack.enter_context(tuner))
            found.append(tuner.search())
            if not is_one:
                tuner.close()
        settings = [(tuner, setting) for tuner, (start, outcome) in zip(tuners, found, strict=True)
                    for setting in dict.fromkeys((start, outcome.best))]  # fmt: skip
        samples = _compare(
            settings,
            device.memory.available_bytes,
            is_late=lambda: clock() - started > options.budget_s,
            on_measure=lambda: report("all formats", "the best against the usual settings"),
        )
        reports = [
            tuner.report(start, outcome, samples[tuner, start], samples[tuner, outcome.best])
            for tuner, (start, outcome) in zip(tuners, found, strict=True)
        ]
    for artifact, result in zip(artifacts, reports, strict=True):
        remember(device, artifact, result.tuning, cache_dir=cache_dir)
    return reports


def _compare(
    settings: Sequence[tuple[Tuner, Setting]],
    available_bytes: int,
    *,
    is_late: Callable[[], bool],
    on_measure: Callable[[], None],
) -> dict[tuple[Tuner, Setting], list[Sample]]:
    """Measure the usual and the best settings of all formats in turns, in fewer rounds when it is late."""
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
            samples[tuner, setting].append(tuner.measure(setting))
    return samples


class Tuner:
    """The search of one format. Use it in a `with` block: it holds the processes that measure.

    Attributes:
        lengths: tokens prefilled and decoded in each measurement.
        reuses_workers: processes are kept for the next measurement as long as there is room.
    """

    def __init__(
        self,
        device: DeviceProfile,
        artifact: Artifact,
        options: TuneOptions,
        cache_dir: Path,
        on_progress: Callable[[str], None],
        open_worker: Callable[..., Measuring],
        clock: Callable[[], float],
    ) -> None:
        if options.budget_s <= 0:
            raise UsageError("No time to tune in.", "Give --minutes 1 or more.")
        self._device, self._artifact, self._options = device, artifact, options
        named = [row for row in ENGINES.values() if row.name in options.backends and artifact.format in row.formats]
        self._rows = named if options.backends else engines_for(device, artifact)
        self._safety = safety_here(device, self._rows, cache_dir)
        self._on_progress, self._open_worker, self._clock = on_progress, open_worker, clock
        self._workers: dict[Setting, Measuring] = {}  # the one used last is at the end
        self._plans: dict[Setting, Plan] = {}
        self.lengths = _LENGTHS[-1]
        self.reuses_workers = True
        self._started = clock()

    def search(self) -> tuple[Setting, Outcome]:
        """Look for better settings than the usual ones.

        Returns:
            The usual setting, and the outcome.

        Raises:
            EdgeError: the model does not run here with the usual setting.
        """
        start = self._setting(PlanRequest(backend=self._first_backend()))
        self._choose_lengths(start)
        limit = self._options.budget_s * (1 - _FINAL_SHARE)
        search = Search(self.measure, lambda: self._passed() < limit, self._on_progress)
        return start, search.run(start, self._knobs())

    def report(self, start: Setting, outcome: Outcome, usual: list[Sample], best: list[Sample]) -> Report:
        """Report the best setting if it beats the usual one, otherwise the usual one.

        Args:
            start: the usual setting.
            outcome: of the search.
            usual, best: samples of both, taken in turns.
        """
        ratios = stat([theirs / ours for theirs, ours in zip(_turns(usual), _turns(best), strict=True)])
        is_better = outcome.best != start and wins(ratios)
        chosen, samples = (outcome.best, best) if is_better else (start, usual)
        tuning = Tuning(
            backend=chosen.backend,
            accelerator=self._plans[chosen].accelerator,
            threads=chosen.threads,
            threads_batch=chosen.threads_batch,
            n_ubatch=chosen.n_ubatch,
            flash_attention=chosen.flash_attention,
            kv_type_k=chosen.kv_type_k,  # type: ignore[arg-type]
            kv_type_v=chosen.kv_type_v,  # type: ignore[arg-type]
            decode_tokens_per_s=_median(samples, "decode_tokens_per_s"),
            prefill_tokens_per_s=_median(samples, "prefill_tokens_per_s"),
            default_decode_tokens_per_s=_median(usual, "decode_tokens_per_s"),
            default_prefill_tokens_per_s=_median(usual, "prefill_tokens_per_s"),
            n_prompt=self.lengths[0],
            n_decode=self.lengths[1],
            measured_on=date.today().isoformat(),
        )
        return Report(tuning, outcome, is_better, self._passed())

    def measure(self, setting: Setting) -> Sample:
        """Measure a setting once.

        Raises:
            EdgeError: it does not run.
        """
        worker = self._workers.pop(setting, None)
        if worker is None:
            self._make_room(self._plans[setting])
            worker = self._open_worker(self._plans[setting], with_energy=False)
        self._workers[setting] = worker
        try:
            sample = worker.run(*self.lengths)
        except EdgeError:
            self._workers.pop(setting).close()
            raise
        if not self.reuses_workers:
            self.close()
        return sample

    def memory_bytes(self, setting: Setting) -> int:
        """Return the memory of a setting's process, by its plan."""
        return self._plans[setting].memory.total_bytes

    def close(self) -> None:
        """End the processes."""
        while self._workers:
            self._workers.popitem()[1].stop()

    def __enter__(self) -> Tuner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _first_backend(self) -> str | None:
        """Return the first requested engine that reads this model; if none does, the plan says so."""
        named, able = self._options.backends, [row.name for row in self._rows]
        return next((name for name in named if name in able), named[0] if named else None)

    def _choose_lengths(self, start: Setting) -> None:
        """Choose prompt and reply as long as the time allows: a slow device gets short ones."""
        self._on_progress("the approximate speed")
        sample = self.measure(start)
        allowed_s = self._options.budget_s / _SAMPLES_IN_BUDGET
        possible = [(prompt, reply) for prompt, reply in _LENGTHS if prompt + reply < start.n_ctx]
        for n_prompt, n_decode in possible:
            self.lengths = n_prompt, n_decode
            if n_prompt / sample.prefill_tokens_per_s + n_decode / sample.decode_tokens_per_s <= allowed_s:
                break

    def _knobs(self) -> list[Knob]:
        counts = thread_counts(self._device.cpu)
        batches = [size for size in _BATCHES if size <= self.lengths[0]]
        engine = Knob("engine", "turn", self._engines, lambda s: f"{s.backend} on {s.accelerator}")
        knobs: dict[Option, Knob] = {
            "threads": Knob("threads", "decode", self._each(counts, "threads"), _threads_text),
            "threads_batch": Knob(
                "threads, prefill", "prefill", self._each(counts, "threads_batch"), lambda s: str(s.threads_batch)
            ),
            "n_ubatch": Knob("batch", "prefill", self._each(batches, "n_ubatch"), lambda s: f"{s.n_ubatch} tokens"),
            "flash_attention": Knob("flash attention", "turn", self._each((True, False), "flash_attention"), _flash_text),
            "kv_type": Knob(
                "KV cache", "turn", self._each(self._options.kv_types, "kv_type_k", "kv_type_v"), lambda s: s.kv_type_k
            ),
        }
        options = {option for row in self._rows for option in row.options}
        if "threads_batch" not in options:  # one number of threads for prefill and decode
            knobs["threads"] = Knob("threads", "turn", self._each(counts, "threads", "threads_batch"), _threads_text)
        return [engine, *(knob for option, knob in knobs.items() if option in options)]

    def _engines(self, incumbent: Setting) -> list[Setting]:
        found = []
        for row in self._rows:
            try:
                targets, _ = find_targets(self._device, row, PlanRequest(backend=row.name))
            except BackendUnavailableError:
                continue
            found += [PlanRequest(backend=row.name, require=target.accelerator) for target in targets]
        return self._possible(found)

    def _each(self, values: Sequence[Any], *fields: str) -> Callable[[Setting], list[Setting]]:
        """Return the challengers that differ from the incumbent in these fields, which all get one value."""

        def challengers(incumbent: Setting) -> list[Setting]:
            changes = [dict.fromkeys(fields, value) for value in values]
            return self._possible([self._request(msgspec.structs.replace(incumbent, **change)) for change in changes])

        return challengers

    def _request(self, setting: Setting) -> PlanRequest:
        is_quantised = setting.kv_type_k not in ("f32", "f16", "bf16")
        return PlanRequest(
            backend=setting.backend,
            require=setting.accelerator,  # type: ignore[arg-type]
            threads=setting.threads,
            threads_batch=setting.threads_batch,
            n_ubatch=setting.n_ubatch,
            kv_type_k=setting.kv_type_k if is_quantised else None,
            kv_type_v=setting.kv_type_v if is_quantised else None,
            flash_attention=setting.flash_attention,
        )

    def _possible(self, requests: Sequence[PlanRequest]) -> list[Setting]:
        """Return the settings that the plan allows: it knows the limits of engines and memory."""
        found = []
        for request in requests:
            try:
                found.append(self._setting(request))
            except EdgeError:
                continue  # not possible here
        return found

    def _setting(self, request: PlanRequest) -> Setting:
        needed = max(n_prompt + n_decode + 1 for n_prompt, n_decode in _LENGTHS)
        facts = self._artifact.facts
        limits = [limit for limit in (facts.n_ctx_train, facts.n_ctx_max) if limit]
        request = replace(request, context=min([needed, *limits]), n_seq=1)
        plan = make_plan(self._device, self._artifact, request, safety=self._safety)
        setting = setting_of(plan)
        self._plans[setting] = plan
        return setting

    def _make_room(self, plan: Plan) -> None:
        """End the least recently used processes until one more fits."""
        free = self._device.memory.available_bytes * MEMORY_SHARE
        n_fit = max(1, min(_MAX_WORKERS, int(free // max(1, plan.memory.total_bytes))))
        while len(self._workers) >= n_fit:
            oldest = next(iter(self._workers))
            self._workers.pop(oldest).close()

    def _passed(self) -> float:
        return self._clock() - self._started


def thread_counts(cpu: Cpu) -> list[int]:
    """Return numbers of threads worth trying: half the fast cores, one less, all, with slow ones, all hardware threads."""
    fast, slow = cpu.usable_performance, cpu.usable_efficiency
    counts = {max(1, fast // 2), max(1, fast - 1), fast, fast + slow, cpu.usable_logical}
    return sorted(count for count in counts if 1 <= count <= cpu.usable_logical)


def _threads_text(setting: Setting) -> str:
    return str(setting.threads)


def _flash_text(setting: Setting) -> str:
    return "on" if setting.flash_attention else "off"


def _turns(samples: Sequence[Sample]) -> list[float]:
    return [turn_seconds(sample) for sample in samples]


def _median(samples: Sequence[Sample], name: str) -> float:
    return round(float(statistics.median(getattr(sample, name) for sample in samples)), 2)
