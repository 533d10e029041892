"""`edge tune`: the search of tuner.py over what this device and its engines let one choose, and what is kept of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.bench.candidates import engines_for, safety_here
from edge.bench.process import Worker, setting_of
from edge.bench.run import Measuring
from edge.bench.tuner import Knob, Outcome, Search, Trial, turn_seconds, wins
from edge.bench.values import Sample, Setting, stat
from edge.errors import BackendUnavailableError, EdgeError, UsageError
from edge.plan.make import make_plan
from edge.plan.placement import ENGINES, find_targets
from edge.plan.receipt import Plan, PlanRequest
from edge.plan.tuning import Tuning, remember

if TYPE_CHECKING:
    from edge.device.profile import Cpu, DeviceProfile
    from edge.formats.artifact import Artifact

__all__ = ["Report", "TuneOptions", "Tuner", "thread_counts", "trial_rows", "tune"]

_BATCHES = (128, 256, 512, 1024, 2048)
_LENGTHS = ((1024, 64), (512, 64), (256, 32), (128, 16), (64, 8))  # prompt and reply, from the surest to the quickest
_SAMPLES_IN_BUDGET = 60
_FINAL_SHARE = 0.2
_FINAL_ROUNDS = 7
_MIN_FINAL_ROUNDS = 3
_MAX_WORKERS = 3
_MEMORY_SHARE = 0.8


@dataclass(frozen=True)
class TuneOptions:
    """What may be tried.

    Attributes:
        budget_s: how long it may take, about.
        backends: engines; empty is every one that is installed and reads the model.
        kv_types: for keys and values, besides f16. They save memory and cost quality, so nothing is tried unasked.
    """

    budget_s: float = 180.0
    backends: tuple[str, ...] = ()
    kv_types: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What came of it.

    Attributes:
        tuning: what is kept.
        outcome: the search.
        is_better: the setting that was found beat the usual one; otherwise the usual one is what is kept.
        seconds: how long it took.
    """

    tuning: Tuning
    outcome: Outcome
    is_better: bool
    seconds: float


def tune(
    device: DeviceProfile,
    artifact: Artifact,
    options: TuneOptions,
    *,
    cache_dir: Path,
    on_progress: Callable[[str, float], None] = lambda text, share: None,
    open_worker: Callable[..., Measuring] = Worker,
    clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Find the fastest settings for a model on this device, and keep them for the plan.

    Args:
        device: from `edge.device.probe`.
        artifact: the model.
        options: what may be tried.
        cache_dir: where it is kept.
        on_progress: called with (what is tried, share of the time that has passed).
        open_worker: makes the process of a plan.
        clock: seconds.

    Raises:
        EdgeError: the model does not run here, or the result cannot be kept.
    """
    with Tuner(device, artifact, options, cache_dir, on_progress, open_worker, clock) as tuner:
        report = tuner.run()
    remember(device, artifact, report.tuning, cache_dir=cache_dir)
    return report


class Tuner:
    """One run of `tune`. Use it in a `with` block: it holds the processes that measure.

    Attributes:
        lengths: tokens read and written in each measurement.
    """

    def __init__(
        self,
        device: DeviceProfile,
        artifact: Artifact,
        options: TuneOptions,
        cache_dir: Path,
        on_progress: Callable[[str, float], None],
        open_worker: Callable[..., Measuring],
        clock: Callable[[], float],
    ) -> None:
        if options.budget_s <= 0:
            raise UsageError("No time to tune in.", "Give --minutes 1 or more.")
        self._device, self._artifact, self._options = device, artifact, options
        self._safety = safety_here(device, cache_dir)
        self._on_progress, self._open_worker, self._clock = on_progress, open_worker, clock
        self._workers: dict[Setting, Measuring] = {}  # the one used last is at the end
        self._plans: dict[Setting, Plan] = {}
        self.lengths = _LENGTHS[-1]
        self._started = clock()

    def run(self) -> Report:
        """Search, and hold what was found against the usual choice.

        Raises:
            EdgeError: the model does not run here with the usual choice.
        """
        start, outcome = self.search()
        return self.report(start, outcome, *self._final(start, outcome.best))

    def search(self) -> tuple[Setting, Outcome]:
        """Look for better settings than the usual ones.

        Returns:
            The usual setting, and what was found.

        Raises:
            EdgeError: the model does not run here with the usual choice.
        """
        start = self._setting(PlanRequest(backend=self._first_backend()))
        self._choose_lengths(start)
        limit = self._options.budget_s * (1 - _FINAL_SHARE)
        search = Search(self.measure, lambda: self._passed() < limit, self._say)
        return start, search.run(start, self._knobs())

    def report(self, start: Setting, outcome: Outcome, usual: list[Sample], best: list[Sample]) -> Report:
        """What is kept: the best setting, if it beats the usual one.

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
        """Measure a setting once, in a process that is kept for the next time as long as there is room.

        Raises:
            EdgeError: it does not run.
        """
        worker = self._workers.pop(setting, None)
        if worker is None:
            self._make_room(self._plans[setting])
            worker = self._open_worker(self._plans[setting], with_energy=False)
        self._workers[setting] = worker
        try:
            return worker.run(*self.lengths)
        except EdgeError:
            self._workers.pop(setting).close()
            raise

    def memory_bytes(self, setting: Setting) -> int:
        """What the process of a setting takes, by its plan."""
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
        """Of the engines that were asked for the first that reads this model; where none does, the plan says so."""
        named = self._options.backends
        able = [row.name for row in ENGINES if self._artifact.format in row.formats]
        return next((name for name in named if name in able), named[0] if named else None)

    def _final(self, start: Setting, best: Setting) -> tuple[list[Sample], list[Sample]]:
        """The usual setting and the best one side by side, in turns."""
        samples: dict[Setting, list[Sample]] = {start: [], best: []}
        for n in range(_FINAL_ROUNDS):
            if n >= _MIN_FINAL_ROUNDS and self._passed() > self._options.budget_s:
                break
            for setting in list(samples) if n % 2 == 0 else reversed(list(samples)):
                self._say("the best against the usual settings" if len(samples) > 1 else "the usual settings once more")
                samples[setting].append(self.measure(setting))
        return samples[start], samples[best]

    def _choose_lengths(self, start: Setting) -> None:
        """A prompt and reply as long as the time allows: a slow device gets short ones."""
        self._say("how fast it is about")
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
        batch = Knob("batch", "prefill", self._each(batches, "n_ubatch"), lambda s: f"{s.n_ubatch} tokens")
        if self._artifact.format == "coreml":
            return [engine]  # threads are Core ML's own affair, and the batch is part of the package
        if self._artifact.format == "onnx":  # one number of threads for both
            return [engine, Knob("threads", "turn", self._each(counts, "threads", "threads_batch"), _threads_text), batch]
        knobs = [
            engine,
            Knob("threads", "decode", self._each(counts, "threads"), _threads_text),
            Knob("threads, prefill", "prefill", self._each(counts, "threads_batch"), lambda s: str(s.threads_batch)),
            batch,
            Knob("flash attention", "turn", self._each((True, False), "flash_attention"), _flash_text),
        ]
        if self._options.kv_types:
            knobs.append(Knob("KV cache", "turn", self._kv_types, lambda s: s.kv_type_k))
        return knobs

    def _engines(self, stands: Setting) -> list[Setting]:
        found = []
        for backend in self._options.backends or engines_for(self._device, self._artifact):
            row = next((row for row in ENGINES if row.name == backend), None)
            if row is None:
                continue
            try:
                targets, _ = find_targets(self._device, row, PlanRequest(backend=backend))
            except BackendUnavailableError:
                continue
            found += [PlanRequest(backend=backend, require=target.accelerator) for target in targets]
        return self._possible(found)

    def _each(self, values: Sequence[Any], *fields: str) -> Callable[[Setting], list[Setting]]:
        """Settings that differ in these fields, which have the same value."""

        def others(stands: Setting) -> list[Setting]:
            changes = [dict.fromkeys(fields, value) for value in values]
            return self._possible([self._request(msgspec.structs.replace(stands, **change)) for change in changes])

        return others

    def _kv_types(self, stands: Setting) -> list[Setting]:
        kinds = self._options.kv_types
        return self._possible([self._request(msgspec.structs.replace(stands, kv_type_k=k, kv_type_v=k)) for k in kinds])

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
        """Those that the plan allows: it knows what an engine or this memory rules out."""
        found = []
        for request in requests:
            try:
                found.append(self._setting(request))
            except EdgeError:
                continue  # not a choice here
        return found

    def _setting(self, request: PlanRequest) -> Setting:
        needed = max(n_prompt + n_decode + 1 for n_prompt, n_decode in _LENGTHS)
        facts = self._artifact.facts
        limits = [limit for limit in (facts.n_ctx_train, facts.n_ctx_max) if limit] if facts is not None else []
        request = replace(request, context=min([needed, *limits]), n_seq=1)
        plan = make_plan(self._device, self._artifact, request, safety=self._safety)
        setting = setting_of(plan)
        self._plans[setting] = plan
        return setting

    def _make_room(self, plan: Plan) -> None:
        """End the processes that were used longest ago, until one more fits."""
        free = self._device.memory.available_bytes * _MEMORY_SHARE
        n_fit = max(1, min(_MAX_WORKERS, int(free // max(1, plan.memory.total_bytes))))
        while len(self._workers) >= n_fit:
            oldest = next(iter(self._workers))
            self._workers.pop(oldest).close()

    def _passed(self) -> float:
        return self._clock() - self._started

    def _say(self, text: str) -> None:
        self._on_progress(text, min(1.0, self._passed() / self._options.budget_s))


def thread_counts(cpu: Cpu) -> list[int]:
    """Numbers of threads worth trying: half the fast cores, one less, all, with the slow ones, every hardware thread."""
    fast, slow = cpu.usable_performance, cpu.usable_efficiency
    counts = {max(1, fast // 2), max(1, fast - 1), fast, fast + slow, cpu.usable_logical}
    return sorted(count for count in counts if 1 <= count <= cpu.usable_logical)


def trial_rows(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """Trials as values that JSON knows."""
    return [asdict(trial) for trial in trials]


def _threads_text(setting: Setting) -> str:
    return str(setting.threads)


def _flash_text(setting: Setting) -> str:
    return "on" if setting.flash_attention else "off"


def _turns(samples: Sequence[Sample]) -> list[float]:
    return [turn_seconds(sample) for sample in samples]


def _median(samples: Sequence[Sample], name: str) -> float:
    return round(float(statistics.median(getattr(sample, name) for sample in samples)), 2)
