"""The search of `edge tune` for one format of a model: `Tuner` makes plans of settings and measures them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge.bench.candidates import engines_for
from edge.bench.knobs import setting_knobs
from edge.bench.losses import Loss, Losses, Tuned, exact_plan
from edge.bench.pairs import LEAST, paired_plan, promising_pairs
from edge.bench.process import Worker, setting_of
from edge.bench.run import MEMORY_SHARE
from edge.bench.tune_options import Report, TuneOptions
from edge.bench.tuner import MIN_GAIN, Knob, Outcome, Search, goal_seconds, wins
from edge.bench.values import Sample, Setting, stat
from edge.bench.workers import Workers
from edge.errors import EdgeError, UsageError
from edge.plan.make import make_plan
from edge.plan.placement import readers, safety_here, tried_accelerators
from edge.plan.receipt import Plan, PlanRequest
from edge.plan.speed import EngineSpeed
from edge.plan.tuning import Tuning
from edge.registry import ENGINES

if TYPE_CHECKING:
    from edge.device.profile import DeviceProfile
    from edge.formats.artifact import Artifact

__all__ = ["Tuner"]

_LENGTHS = ((1024, 64), (512, 64), (256, 32), (128, 16), (64, 8))  # prompt and reply, from the most exact to the fastest
_SAMPLES_IN_BUDGET = 60
_FINAL_SHARE = 0.2  # of the time of one format
_EXACT_SHARE = 1 / 3  # of the time that is left, for computing with the exact weights
# Another engine takes other memory, and does not find what this one stored in the KV cache on disk.
_ENGINE_GAIN = 0.05


class Tuner:
    """The search of one format. Use it in a `with` block: it holds the processes that measure.

    Args:
        device, artifact, options: as for `tune`.
        cache_dir: has the canary's verdict.
        reference: as for `Losses`.
        on_progress, open_worker, clock: as for `tune`.
        deadline: end of a quick search, as of `time.monotonic()`; None lets a measurement take as long as it does.

    Attributes:
        artifact: the model.
        lengths: tokens prefilled and decoded in each measurement.
        reuses_workers: processes are kept for the next measurement as long as there is room.
        readers: names of all engines here that read the format.
    """

    def __init__(
        self,
        device: DeviceProfile,
        artifact: Artifact,
        options: TuneOptions,
        *,
        cache_dir: Path,
        reference: Path,
        on_progress: Callable[[str], None],
        open_worker: Callable[..., Tuned] = Worker,
        clock: Callable[[], float],
        deadline: float | None = None,
    ) -> None:
        if options.budget_s <= 0:
            raise UsageError("No time to tune in.", "Give --minutes 1 or more.")
        self._device, self.artifact, self._options = device, artifact, options
        named = [row for row in ENGINES.values() if row.name in options.backends and artifact.format in row.formats]
        self._rows = named if options.backends else engines_for(device, artifact)
        self.readers = tuple(row.name for row in readers(device, artifact))
        self._safety = safety_here(device, self._rows, cache_dir)
        self._deadline = deadline
        self._on_progress, self._clock = on_progress, clock
        self._workers = Workers(open_worker, device.memory.available_bytes, deadline)
        self._plans: dict[Setting, Plan] = {}
        self._samples: dict[Setting, list[Sample]] = {}
        self._refused: list[Setting] = []
        self._pair: Setting | None = None
        self._losses = Losses(reference, ask=self._ask_quality, write_exact=self._write_exact)
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
        search = Search(self.measure, lambda: self.passed() < limit, self._on_progress)
        self._losses.usual = start
        outcome = search.run(start, self._knobs())
        paired = search.run(outcome.best, [self._pair_knob()])
        self._pair = paired.best if paired.best != outcome.best else None
        return start, replace(paired, best=outcome.best, is_complete=outcome.is_complete and paired.is_complete)

    def report(self, start: Setting, outcome: Outcome, usual: list[Sample], best: list[Sample]) -> Report:
        """Report the best setting if it beats the usual one, otherwise the usual one.

        Args:
            start: the usual setting.
            outcome: of the search.
            usual, best: samples of both, taken in turns.
        """
        ratios = stat([theirs / ours for theirs, ours in zip(_turns(usual), _turns(best), strict=True)])
        least = _ENGINE_GAIN if _engine(outcome.best) != _engine(start) else MIN_GAIN
        is_better = outcome.best != start and wins(ratios, least)
        chosen, samples = (outcome.best, best) if is_better else (start, usual)
        speeds = {chosen: self._speed(chosen, samples)}
        if _engine(start) != _engine(chosen):
            speeds = {start: self._speed(start, usual), **speeds}
        known = {_engine(setting) for setting in speeds}
        speeds |= {
            setting: self._speed(setting, taken)
            for setting, taken in self._by_engine().items()
            if _engine(setting) not in known
        }
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
            is_quick=self._options.is_quick,
            load_s=_median(samples, "load_s"),
            default_load_s=_median(usual, "load_s"),
            reference=_engine_text(start) if self._losses.is_reference else "",
            divergence=self._losses.known(chosen).divergence,
            engines=tuple(speeds.values()),
        )
        tuning = self._with_pair(tuning)
        return Report(tuning, outcome, is_better, self.passed())

    def measure(self, setting: Setting) -> Sample:
        """Measure a setting once.

        Raises:
            EdgeError: it does not run.
        """
        worker = self._worker(setting)
        try:
            sample = msgspec.structs.replace(worker.run(*self.lengths), load_s=worker.load_s)
        except EdgeError:
            self._workers.drop(setting)
            raise
        self._samples.setdefault(setting, []).append(sample)
        if not self.reuses_workers:
            self.close()
        return sample

    def loss(self, setting: Setting) -> Loss:
        """Return what a setting costs in quality, as far as that can be said."""
        return self._losses.measure(setting)

    def memory_bytes(self, setting: Setting) -> int:
        """Return the memory of a setting's process, by its plan."""
        return self._plans[setting].memory.total_bytes

    def passed(self) -> float:
        """Return the time since the search began, in seconds."""
        return self._clock() - self._started

    def close(self) -> None:
        """End the processes."""
        self._workers.close()

    def __enter__(self) -> Tuner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _worker(self, setting: Setting) -> Tuned:
        return self._workers.get(setting, self._plans[setting])

    def _ask_quality(self, setting: Setting, question: Callable[[Tuned], Any]) -> Any:
        """Return a process's answer; None if it failed."""
        self._on_progress(f"the quality of {_engine_text(setting)}")
        try:
            return question(self._worker(setting))
        except EdgeError:
            self._workers.drop(setting)
            return None

    def _write_exact(self, path: Path) -> None:
        """Write the logits of the file's own weights, computed exactly.

        Raises:
            EdgeError: that cannot be done here, or not in a share of the time that is left.
        """
        left_s = max(0.0, self._options.budget_s - self.passed())
        unpacked = path.with_suffix(".gguf")
        assert self._losses.usual is not None
        plan = exact_plan(self._device, self.artifact, self._losses.usual.n_ctx, self._safety, path.parent)
        self._on_progress("the exact weights")
        deadline = time.monotonic() + left_s * _EXACT_SHARE
        try:
            worker = self._workers.open(plan, deadline=deadline, unpacked=unpacked)
            try:
                worker.write_logits(path)
            finally:
                worker.stop()
        finally:
            unpacked.unlink(missing_ok=True)

    def _by_engine(self, *kv_types: str) -> dict[Setting, list[Sample]]:
        """Return the fastest measured setting of each engine, with its samples; of those with one of these KV types, if any."""
        best: dict[tuple[str, str], Setting] = {}
        for setting, samples in self._samples.items():
            if setting.prefill_with or (kv_types and setting.kv_type_k not in kv_types):
                continue
            other = best.get(_engine(setting))
            if other is None or statistics.median(_turns(samples)) < statistics.median(_turns(self._samples[other])):
                best[_engine(setting)] = setting
        return {setting: self._samples[setting] for setting in best.values()}

    def _speed(self, setting: Setting, samples: Sequence[Sample]) -> EngineSpeed:
        loss = self.loss(setting) if self._has_time() else self._losses.known(setting)
        return EngineSpeed(
            backend=setting.backend,
            accelerator=self._plans[setting].accelerator,
            prefill_tokens_per_s=_median(samples, "prefill_tokens_per_s"),
            decode_tokens_per_s=_median(samples, "decode_tokens_per_s"),
            load_s=_median(samples, "load_s"),
            peak_bytes=max(sample.peak_bytes for sample in samples),
            divergence=loss.divergence,
            agreement=loss.agreement,
            exact=loss.exact,
            exact_limit=loss.exact_limit,
            pass_ms=self._passes(setting) if not setting.prefill_with else (),
            prefill_with=setting.prefill_with,
        )

    def _with_pair(self, tuning: Tuning) -> Tuning:
        """Return the results with those of the two engines that won against the best one."""
        if self._pair is None:
            return tuning
        pair = self._speed(self._pair, self._samples[self._pair])
        return msgspec.structs.replace(tuning, pair=pair) if pair.turn_s < tuning.turn_s else tuning

    def _has_time(self) -> bool:
        return self._deadline is None or self.passed() < self._options.budget_s

    def _passes(self, setting: Setting) -> tuple[tuple[int, float], ...]:
        """Measure passes over several tokens, if there is time."""
        if not self._has_time():
            return ()
        self._on_progress(f"passes of several tokens: {_engine_text(setting)}")
        try:
            found = self._worker(setting).pass_ms()
        except EdgeError:
            self._workers.drop(setting)
            return ()
        return tuple((size, round(ms, 3)) for size, ms in sorted(found.items()))

    def _first_backend(self) -> str | None:
        """Return the first requested engine that reads this model; if none does, the plan says so."""
        named, able = self._options.backends, [row.name for row in self._rows]
        return next((name for name in named if name in able), named[0] if named else None)

    def _choose_lengths(self, start: Setting) -> None:
        """Choose prompt and reply as long as the time allows: a slow device gets short ones."""
        self._on_progress("the approximate speed")
        sample = self.measure(start)
        self._samples.clear()  # of other lengths
        allowed_s = self._options.budget_s / _SAMPLES_IN_BUDGET
        possible = [(prompt, reply) for prompt, reply in _LENGTHS if prompt + reply < start.n_ctx]
        for n_prompt, n_decode in possible:
            self.lengths = n_prompt, n_decode
            if n_prompt / sample.prefill_tokens_per_s + n_decode / sample.decode_tokens_per_s <= allowed_s:
                break

    def _knobs(self) -> list[Knob]:
        engines = [
            Knob("engine", "chat", self._engines, _engine_text, _ENGINE_GAIN, self._refuse),
            Knob("engine", "chat", self._other_engines, _engine_text, _ENGINE_GAIN, self._refuse),
        ]
        if self._options.is_quick:
            return engines
        return [*engines, *setting_knobs(self._rows, self._device.cpu, self.lengths[0], self._each, self._other_kv_types)]

    def _pair_knob(self) -> Knob:
        return Knob("prefill", "chat", self._pairs, _engine_text, _ENGINE_GAIN, self._refuse)

    def _pairs(self, incumbent: Setting) -> list[Setting]:
        """Return the pairs of engines that would be faster by their speeds, lose nothing alone, and fit into memory."""
        if incumbent not in self._samples:  # there was nothing to compare it with
            return []
        limit_s = statistics.median(_turns(self._samples[incumbent])) / (1 + _ENGINE_GAIN)
        found, least = [], min(LEAST, self.lengths[0])
        able = {setting: taken for setting, taken in self._by_engine("f16").items() if setting not in self._refused}
        for decoder, prefiller in promising_pairs(able, limit_s):
            plan = paired_plan(self._plans[decoder], self._plans[prefiller], least)
            if plan.memory.total_bytes <= self._device.memory.available_bytes * MEMORY_SHARE:
                setting = setting_of(plan)
                self._plans[setting] = plan
                found.append(setting)
        return found

    def _refuse(self, setting: Setting) -> str:
        """Say why an engine that is faster is not taken; "" if it loses nothing."""
        assert self._losses.usual is not None
        why = self._losses.refusal(setting, _engine_text(self._losses.usual))
        if why:
            self._refused.append(setting)
        return why

    def _other_engines(self, incumbent: Setting) -> list[Setting]:
        """Return the engines that may have lost only against one that was refused."""
        return [setting for setting in self._engines(incumbent) if setting not in self._refused] if self._refused else []

    def _engines(self, incumbent: Setting) -> list[Setting]:
        found = [
            PlanRequest(backend=row.name, require=name)
            for row in self._rows
            for name in tried_accelerators(self._device, row, on_trial=not self._options.is_quick)
        ]
        return self._possible(found)

    def _each(self, values: Sequence[Any], *fields: str) -> Callable[[Setting], list[Setting]]:
        """Return the challengers that differ from the incumbent in these fields, which all get one value."""

        def challengers(incumbent: Setting) -> list[Setting]:
            changes = [dict.fromkeys(fields, value) for value in values]
            return self._possible([self._request(msgspec.structs.replace(incumbent, **change)) for change in changes])

        return challengers

    def _other_kv_types(self, incumbent: Setting) -> list[Setting]:
        """Return the challengers with the other types of KV cache, on engines that have them if the incumbent's has not."""
        requests = []
        for kind in self._options.kv_types:
            able = [row.name for row in self._rows if kind in row.kv_types]
            if incumbent.backend in able:
                requests.append(self._request(msgspec.structs.replace(incumbent, kv_type_k=kind, kv_type_v=kind)))
            else:
                require: Any = incumbent.accelerator
                requests += [PlanRequest(backend=name, require=require, kv_type_k=kind, kv_type_v=kind) for name in able]
        return self._possible(requests)

    def _request(self, setting: Setting) -> PlanRequest:
        is_usual = setting.kv_type_k in ("f16", self.artifact.facts.kv_type)  # the plan may save memory then
        return PlanRequest(
            backend=setting.backend,
            require=setting.accelerator,  # type: ignore[arg-type]
            threads=setting.threads,
            threads_batch=setting.threads_batch,
            n_ubatch=setting.n_ubatch,
            kv_type_k=None if is_usual else setting.kv_type_k,
            kv_type_v=None if is_usual else setting.kv_type_v,
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
        facts = self.artifact.facts
        limits = [limit for limit in (facts.n_ctx_train, facts.n_ctx_max) if limit]
        request = replace(request, context=min([needed, *limits]), n_seq=1)
        plan = make_plan(self._device, self.artifact, request, safety=self._safety)
        setting = setting_of(plan)
        self._plans[setting] = plan
        return setting


def _engine(setting: Setting) -> tuple[str, str]:
    return setting.backend, setting.accelerator


def _engine_text(setting: Setting) -> str:
    other = f", {setting.prefill_with} prefills" if setting.prefill_with else ""
    return f"{setting.backend} on {setting.accelerator}{other}"


def _turns(samples: Sequence[Sample]) -> list[float]:
    return [goal_seconds(sample, "chat") for sample in samples]


def _median(samples: Sequence[Sample], name: str) -> float:
    return round(float(statistics.median(getattr(sample, name) for sample in samples)), 2)
