"""A whole run of edge tune, on a machine whose speed is a formula: what is tried, what is kept, what it costs in time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.bench.knobs import thread_counts
from edge.bench.tune import Report, TuneOptions, tune
from edge.bench.values import Setting
from edge.device import Engine, Gpu
from edge.errors import BackendError, BackendUnavailableError, UsageError
from edge.formats.artifact import Artifact, open_artifact
from edge.plan import PlanRequest, make_plan
from edge.plan.choosing import choose_plan
from edge.plan.tuning import is_settled, look_up
from tests.tiny_onnx import write_onnx
from tests.unit.bench.fakes import FakeWorker, Machine, device, write_gguf

LAPTOP = replace(
    device(),
    gpus=(),
    engines=tuple(Engine(e.name, e.package, "1", ("cpu",)) if e.name in ("llamacpp", "onnx") else e for e in device().engines),
)


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.bench.format_tuner.safety_here", lambda *_: None)
    monkeypatch.setattr("edge.backends.llamacpp.canary.library_identity", lambda: "a build")


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return open_artifact(write_gguf(tmp_path / "tiny.gguf"))


class Workers:
    """Workers on a machine; how many are open at a time is counted. Without `exact`, no weights can be unpacked."""

    def __init__(
        self,
        machine: Machine,
        divergences: dict[str, float] | None = None,
        exact: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        self.machine, self.n_open, self.n_most, self.n_opened = machine, 0, 0, 0
        self.divergences, self.exact = divergences or {}, exact
        self.unpacked: list[Path] = []

    def __call__(self, plan: Any, *, with_energy: bool, deadline: float | None, unpacked: Path | None = None) -> Any:
        assert not with_energy
        if unpacked is not None:
            assert (plan.backend, plan.kv_type_k, plan.flash_attention) == ("llamacpp", "f32", False)
            assert deadline is not None, "it must not take the time of everything else"
            self.unpacked.append(unpacked)
            unpacked.write_bytes(b"weights")
            if self.exact is None:
                raise BackendError("The disk is full.")
        return _Worker(self, plan, is_exact=unpacked is not None)


class _Worker(FakeWorker):
    def __init__(self, workers: Workers, plan: Any, *, is_exact: bool = False) -> None:
        super().__init__(workers.machine, plan, workers.divergences, workers.exact, is_exact=is_exact)
        self.workers = workers
        workers.n_open += 1
        workers.n_opened += 1
        workers.n_most = max(workers.n_most, workers.n_open)

    def close(self) -> None:
        self.workers.n_open -= 1

    stop = close


def run(machine: Machine, model: Artifact, cache: Path, options: TuneOptions | None = None) -> tuple[Report, Workers]:
    workers = Workers(machine)
    [report] = tune(LAPTOP, [model], options or TuneOptions(600.0), cache_dir=cache, open_worker=workers, clock=machine.clock)
    assert workers.n_open == 0
    return report, workers


def best_at(**wanted: Any) -> Any:
    """Costs with 30 % more for each field that is not as wanted."""

    def cost(given: Setting) -> tuple[float, float]:
        wrong = sum(getattr(given, name) != value for name, value in wanted.items())
        return 0.2 * 1.3**wrong, 0.2 * 1.3**wrong

    return cost


def test_finds_keeps_and_is_used(model: Artifact, tmp_path: Path) -> None:
    usual = make_plan(LAPTOP, model, PlanRequest())
    n = thread_counts(LAPTOP.cpu)[0]
    machine = Machine(best_at(threads=n, threads_batch=n, n_ubatch=256, flash_attention=False), noise=0.02)
    report, workers = run(machine, model, tmp_path)
    kept = report.tuning
    assert (kept.threads, kept.threads_batch, kept.n_ubatch, kept.flash_attention) == (n, n, 256, False)
    assert report.is_better
    assert report.outcome.is_complete
    assert kept.decode_tokens_per_s / kept.default_decode_tokens_per_s == pytest.approx(1.3**4, rel=0.1)
    assert workers.n_most <= 3
    assert look_up(LAPTOP, model, cache_dir=tmp_path).tuning == kept
    plan = make_plan(LAPTOP, model, PlanRequest(), tuned=look_up(LAPTOP, model, cache_dir=tmp_path))
    assert (plan.n_threads, plan.n_ubatch, plan.flash_attention) == (n, 256, False)
    assert (usual.n_threads, usual.n_ubatch) != (n, 256)


def test_where_nothing_matters_the_usual_is_kept(model: Artifact, tmp_path: Path) -> None:
    usual = make_plan(LAPTOP, model, PlanRequest())
    report, _ = run(Machine(lambda s: (0.2, 0.2)), model, tmp_path)
    assert not report.is_better
    assert (report.tuning.threads, report.tuning.n_ubatch) == (usual.n_threads, usual.n_ubatch)
    assert report.tuning.decode_tokens_per_s == report.tuning.default_decode_tokens_per_s


def test_lossy_kv_types_only_when_asked_for(model: Artifact, tmp_path: Path) -> None:
    cost = best_at(kv_type_k="q8_0")
    machine = Machine(cost)
    report, _ = run(machine, model, tmp_path)
    assert {given.kv_type_k for given in machine.measured} == {"f16"}
    assert report.tuning.kv_type_k == "f16"
    report, _ = run(Machine(cost), model, tmp_path, TuneOptions(600.0, kv_types=("q8_0", "q4_0")))
    assert (report.tuning.kv_type_k, report.tuning.kv_type_v) == ("q8_0", "q8_0")


def test_a_kv_type_that_another_engine_has_is_measured_there_and_used(
    model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.backends.openvino.support.why_not", lambda artifact: "")
    engines = (*(one for one in LAPTOP.engines if one.name != "openvino"), Engine("openvino", "openvino", "1", ("cpu",)))
    xeon = replace(LAPTOP, engines=engines, cpu=replace(LAPTOP.cpu, features=(*LAPTOP.cpu.features, "amx_bf16")))
    machine = Machine(best_at(kv_type_k="bf16"))
    options = TuneOptions(600.0, kv_types=("bf16",))
    [report] = tune(xeon, [model], options, cache_dir=tmp_path, open_worker=Workers(machine), clock=machine.clock)
    assert {(given.backend, given.kv_type_k) for given in machine.measured} >= {("llamacpp", "f16"), ("openvino", "bf16")}
    assert (report.tuning.backend, report.tuning.kv_type_k) == ("openvino", "bf16")
    known = look_up(xeon, model, cache_dir=tmp_path)
    made = make_plan(xeon, model, PlanRequest(), tuned=known)
    assert (made.backend, made.kv_type_k, made.kv_type_v) == ("openvino", "bf16", "bf16")
    other = make_plan(xeon, model, PlanRequest(kv_type_k="u8", kv_type_v="u8"), tuned=known)
    assert (other.backend, other.kv_type_k) == ("openvino", "u8"), "what is asked for, on the engine that was faster"


def test_a_slow_device_reads_less(model: Artifact, tmp_path: Path) -> None:
    slow, _ = run(Machine(lambda s: (20.0, 10.0)), model, tmp_path)
    quick, _ = run(Machine(lambda s: (0.05, 0.05)), model, tmp_path)
    assert (slow.tuning.n_prompt, slow.tuning.n_decode) == (64, 8)
    assert (quick.tuning.n_prompt, quick.tuning.n_decode) == (1024, 64)


def test_formats_are_measured_in_turns_and_each_is_kept(model: Artifact, tmp_path: Path) -> None:
    """The second model is slower by a half, on a machine that gets slower all the time: only turns can tell."""
    other = open_artifact(write_gguf(tmp_path / "other.gguf", n_ctx=2048, seed=1))
    other = replace(other, header=replace(other.header, n_vocab=7))  # type: ignore[type-var]  # another shape
    machine = Machine(lambda given: (0.2, 0.2))
    age = 1.0

    class AgingWorker(_Worker):
        def __init__(self, workers: Workers, plan: Any) -> None:
            super().__init__(workers, plan)
            self.factor = 1.5 if plan.artifact is other else 1.0

        def run(self, n_prompt: int, n_decode: int) -> Any:
            nonlocal age
            age *= 1.01
            machine.cost = lambda given: (0.2 * self.factor * age, 0.2 * self.factor * age)
            return super().run(n_prompt, n_decode)

    workers = Workers(machine)
    first, second = tune(
        LAPTOP,
        [other, model],
        TuneOptions(600.0),
        cache_dir=tmp_path,
        open_worker=lambda plan, **_: AgingWorker(workers, plan),
        clock=machine.clock,
    )
    assert workers.n_open == 0
    ratio = second.tuning.decode_tokens_per_s / first.tuning.decode_tokens_per_s
    assert ratio == pytest.approx(1.5, rel=0.05)
    assert (first.tuning.n_prompt, first.tuning.n_decode) == (second.tuning.n_prompt, second.tuning.n_decode)
    assert look_up(LAPTOP, other, cache_dir=tmp_path).tuning == first.tuning
    assert look_up(LAPTOP, model, cache_dir=tmp_path).tuning == second.tuning


def test_an_engine_with_one_number_of_threads_gets_the_best_one(tmp_path: Path) -> None:
    model = open_artifact(write_onnx(tmp_path / "onnx", kind="int4"))
    n = thread_counts(LAPTOP.cpu)[0]
    machine = Machine(best_at(threads=n, n_ubatch=256))
    report, _ = run(machine, model, tmp_path)
    assert {given.threads for given in machine.measured} == set(thread_counts(LAPTOP.cpu))
    assert (report.tuning.threads, report.tuning.threads_batch, report.tuning.n_ubatch) == (n, n, 256)
    plan = make_plan(LAPTOP, model, PlanRequest(), tuned=look_up(LAPTOP, model, cache_dir=tmp_path))
    assert (plan.backend, plan.n_threads, plan.n_ubatch) == ("onnx", n, 256)


def test_each_format_is_tuned_on_those_named_engines_that_read_it(model: Artifact, tmp_path: Path) -> None:
    other = open_artifact(write_onnx(tmp_path / "onnx", kind="int4"))
    machine = Machine(lambda s: (0.2, 0.2))
    reports = tune(
        LAPTOP,
        [model, other],
        TuneOptions(600.0, backends=("llamacpp", "onnx")),
        cache_dir=tmp_path,
        open_worker=Workers(machine),
        clock=machine.clock,
    )
    assert [report.tuning.backend for report in reports] == ["llamacpp", "onnx"]
    with pytest.raises(BackendUnavailableError, match="cannot read gguf"):
        run(machine, model, tmp_path, TuneOptions(600.0, backends=("onnx",)))


def test_time_is_kept(model: Artifact, tmp_path: Path) -> None:
    report, _ = run(Machine(best_at(threads=1)), model, tmp_path, TuneOptions(8.0))
    assert not report.outcome.is_complete
    assert report.seconds < 12.0


def test_a_short_context_limits_the_prompt(tmp_path: Path) -> None:
    model = open_artifact(write_gguf(tmp_path / "short.gguf", n_ctx=512))
    report, _ = run(Machine(lambda s: (0.01, 0.01)), model, tmp_path)
    assert report.tuning.n_prompt == 256


def test_a_model_that_does_not_run(model: Artifact, tmp_path: Path) -> None:
    def broken(given: Setting) -> tuple[float, float]:
        raise BackendError("It died.")

    with pytest.raises(BackendError, match="It died"):
        run(Machine(broken), model, tmp_path)
    assert not (tmp_path / "tuning.json").exists()


def test_settings_that_do_not_run_are_passed_over(model: Artifact, tmp_path: Path) -> None:
    def picky(given: Setting) -> tuple[float, float]:
        if not given.flash_attention or given.n_ubatch > 512:
            raise BackendError("Not with these settings.")
        return 0.2, 0.2

    report, _ = run(Machine(picky), model, tmp_path)
    assert report.outcome.is_complete
    assert any(trial.why == "Not with these settings." for trial in report.outcome.trials)


def test_no_time_at_all(model: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run(Machine(lambda s: (1.0, 1.0)), model, tmp_path, TuneOptions(0.0))


def test_threads_worth_trying() -> None:
    cpu = replace(LAPTOP.cpu, usable_performance=6, usable_efficiency=4, usable_logical=16)
    assert thread_counts(cpu) == [3, 5, 6, 10, 16]
    assert thread_counts(replace(cpu, usable_performance=1, usable_efficiency=0, usable_logical=1)) == [1]
    assert thread_counts(replace(cpu, usable_logical=6)) == [3, 5, 6]


OPENVINO = replace(
    LAPTOP,
    engines=tuple(Engine(e.name, e.package, "1", ("cpu",)) if e.name == "openvino" else e for e in LAPTOP.engines),
)


def by_engine(**seconds: tuple[float, float]) -> Any:
    """Costs of prefill and decode that depend on the engine alone."""
    return lambda given: seconds[given.backend]


def run_quick(machine: Machine, models: list[Artifact], cache: Path, **divergences: float) -> list[Report]:
    workers = Workers(machine, {name.replace("_", " "): value for name, value in divergences.items()})
    found = tune(
        OPENVINO,
        models,
        TuneOptions(60.0, is_quick=True),
        cache_dir=cache,
        open_worker=workers,
        clock=machine.clock,
    )
    assert workers.n_open == 0
    return found


def test_a_quick_run_compares_the_engines_and_nothing_else(model: Artifact, tmp_path: Path) -> None:
    machine = Machine(by_engine(llamacpp=(0.2, 0.1), openvino=(0.05, 0.1)), noise=0.02)
    (report,) = run_quick(machine, [model], tmp_path)
    found = report.tuning
    assert report.is_better and report.seconds < 60
    assert (found.backend, found.reference, found.divergence, found.is_quick) == ("openvino", "llamacpp on cpu", 0.004, True)
    assert {trial.knob for trial in report.outcome.trials} == {"engine"}
    assert len({msgspec.structs.replace(given, backend="") for given in machine.measured}) == 1, "with its usual settings"
    ours, usual = found.engine("openvino", "cpu"), found.engine("llamacpp", "cpu")
    assert ours is not None and usual is not None
    assert usual.divergence == 0.0 and usual.turn_s > ours.turn_s == pytest.approx(found.turn_s, rel=0.05)
    assert ours.pass_costs[8] == 1.8
    assert is_settled(OPENVINO, model, ["llamacpp", "openvino"], cache_dir=tmp_path)
    plan = make_plan(OPENVINO, model, PlanRequest(), tuned=look_up(OPENVINO, model, cache_dir=tmp_path))
    assert (plan.backend, dict(plan.pass_costs)[16]) == ("openvino", 2.8)


@pytest.mark.parametrize(
    ("ours", "is_taken"),
    [((0.05, 0.1), True), ((0.2, 0.099), False), ((0.19, 0.097), False), ((0.05, 0.2), False)],
)
def test_another_engine_has_to_answer_faster_by_five_percent(
    model: Artifact, tmp_path: Path, ours: tuple[float, float], is_taken: bool
) -> None:
    """An average turn counts: prefill four times as fast does not make up for decode at half the speed."""
    (report,) = run_quick(Machine(by_engine(llamacpp=(0.2, 0.1), openvino=ours)), [model], tmp_path)
    assert (report.tuning.backend == "openvino") == is_taken


def test_what_loses_quality_is_shown_and_never_taken(model: Artifact, tmp_path: Path) -> None:
    machine = Machine(by_engine(llamacpp=(0.2, 0.1), openvino=(0.02, 0.01)))
    (report,) = run_quick(machine, [model], tmp_path, openvino_gguf=0.011)
    assert (report.tuning.backend, report.is_better) == ("llamacpp", False)
    (trial,) = report.outcome.trials
    assert trial.gain is not None and trial.gain > 5
    assert trial.why == "faster, and not taken unasked: it diverges by 0.011 nats, more than 0.01"
    lossy = report.tuning.engine("openvino", "cpu")
    assert lossy is not None and lossy.divergence == 0.011


@pytest.mark.parametrize(
    ("openvino", "llamacpp", "from_usual", "is_taken"),
    [
        ((0.0048, 0.0), (0.0197, 0.0), 0.0236, True),  # a K-quant: nearer to the weights than the usual engine
        ((0.0130, 0.0), (0.0300, 0.0), 0.0250, True),  # beyond 0.01, and nearer all the same
        ((0.0200, 0.0), (0.0120, 0.0), 0.0250, False),
        ((0.0200, 0.0), (0.0030, 0.0), 0.0090, False),  # near to the usual engine, and both cannot be rounding
        ((0.0210, 0.0198), (0.0200, 0.0), 0.0250, True),  # 128 tokens cannot tell these two apart: 0.0035 to either side
        ((0.0240, 0.0198), (0.0200, 0.0), 0.0250, False),
    ],
)
def test_the_weights_themselves_are_what_an_engine_is_measured_against(
    model: Artifact,
    tmp_path: Path,
    openvino: tuple[float, float],
    llamacpp: tuple[float, float],
    from_usual: float,
    is_taken: bool,
) -> None:
    machine = Machine(by_engine(llamacpp=(0.2, 0.1), openvino=(0.05, 0.1)))
    workers = Workers(machine, {"openvino gguf": from_usual}, {"openvino gguf": openvino, "llamacpp gguf": llamacpp})
    options = TuneOptions(60.0, is_quick=True)
    (report,) = tune(OPENVINO, [model], options, cache_dir=tmp_path, open_worker=workers, clock=machine.clock)
    assert (report.tuning.backend == "openvino") == is_taken
    assert report.tuning.is_lossless, "of the usual engine, too"
    ours, usual = report.tuning.engine("openvino", "cpu"), report.tuning.engine("llamacpp", "cpu")
    assert ours is not None and usual is not None
    assert (ours.divergence, ours.exact, usual.divergence, usual.exact) == (from_usual, openvino[0], 0.0, llamacpp[0])
    (trial,) = report.outcome.trials
    if not is_taken:
        assert f"it is {openvino[0]:.3f} nats from the file's own weights" in trial.why
        assert f"llamacpp on cpu ({llamacpp[0]:.3f})" in trial.why
    assert len(workers.unpacked) == 1 and not workers.unpacked[0].exists(), "gigabytes do not stay"
    assert workers.n_open == 0


def test_the_exact_weights_are_computed_only_for_an_engine_that_is_faster(model: Artifact, tmp_path: Path) -> None:
    machine = Machine(by_engine(llamacpp=(0.2, 0.1), openvino=(0.2, 0.1)))
    workers = Workers(machine)
    tune(OPENVINO, [model], TuneOptions(60.0, is_quick=True), cache_dir=tmp_path, open_worker=workers, clock=machine.clock)
    assert not workers.unpacked


def test_a_model_that_is_too_large_for_32_bits_is_compared_with_the_usual_engine(model: Artifact, tmp_path: Path) -> None:
    header = replace(model.header, n_params=2 << 30)  # type: ignore[type-var]
    machine = Machine(by_engine(llamacpp=(0.2, 0.1), openvino=(0.05, 0.1)))
    workers = Workers(machine, {}, {"openvino gguf": (0.9, 0.0), "llamacpp gguf": (0.0, 0.0)})
    large, options = replace(model, header=header), TuneOptions(60.0, is_quick=True)
    (report,) = tune(OPENVINO, [large], options, cache_dir=tmp_path, open_worker=workers, clock=machine.clock)
    assert (report.tuning.backend, workers.unpacked) == ("openvino", [])


def test_a_format_that_loses_quality_is_tuned_and_not_chosen(model: Artifact, tmp_path: Path) -> None:
    other = replace(open_artifact(write_onnx(tmp_path / "onnx", kind="int4")), made_from=("a hash",))
    machine = Machine(by_engine(llamacpp=(0.2, 0.1), openvino=(0.2, 0.1), onnx=(0.02, 0.01)))
    first, second = run_quick(machine, [other, model], tmp_path, onnx_onnx=0.05)
    assert (first.tuning.divergence, second.tuning.divergence) == (0.05, 0.0), "from the model that was published"
    candidates = [(artifact, look_up(OPENVINO, artifact, cache_dir=tmp_path)) for artifact in (other, model)]
    assert choose_plan(OPENVINO, candidates, PlanRequest()).artifact.format == "gguf"


INTEL = replace(
    OPENVINO,
    gpus=(Gpu("Intel integrated GPU", "intel-gpu", 32 << 30, 24 << 30, True, "", "xe"),),
    engines=tuple(replace(e, accelerators=("intel-gpu", "cpu")) if e.name == "openvino" else e for e in OPENVINO.engines),
)


@pytest.mark.parametrize(("seconds", "is_taken"), [(0.02, True), (0.3, False)])
def test_intels_gpu_is_tried_where_it_is_and_used_once_it_has_won(
    model: Artifact, tmp_path: Path, seconds: float, is_taken: bool
) -> None:
    machine = Machine(lambda given: (seconds, seconds) if given.accelerator == "intel-gpu" else (0.1, 0.1))
    options = TuneOptions(600.0)
    (report,) = tune(INTEL, [model], options, cache_dir=tmp_path, open_worker=Workers(machine), clock=machine.clock)
    assert "openvino on intel-gpu" in {trial.value for trial in report.outcome.trials}
    assert ((report.tuning.backend, report.tuning.accelerator) == ("openvino", "intel-gpu")) == is_taken
    tuned = look_up(INTEL, model, cache_dir=tmp_path)
    plan = make_plan(INTEL, model, PlanRequest(), tuned=tuned)
    assert (plan.accelerator == "intel-gpu") == is_taken
    assert make_plan(INTEL, model, PlanRequest(require="cpu"), tuned=tuned).accelerator == "cpu"
    assert make_plan(INTEL, model, PlanRequest()).accelerator == "cpu", "not unasked without a measurement"


def test_intels_gpu_is_not_tried_at_set_up_nor_where_there_is_none(model: Artifact, tmp_path: Path) -> None:
    for profile, options in ((INTEL, TuneOptions(60.0, is_quick=True)), (OPENVINO, TuneOptions(600.0))):
        machine = Machine(lambda given: (0.1, 0.1))
        tune(profile, [model], options, cache_dir=tmp_path, open_worker=Workers(machine), clock=machine.clock)
        assert {given.accelerator for given in machine.measured} == {"cpu"}


def test_a_quick_run_that_takes_too_long_is_not_tried_again(model: Artifact, tmp_path: Path) -> None:
    machine = Machine(by_engine(llamacpp=(40.0, 40.0), openvino=(1.0, 1.0)))
    with pytest.raises(BackendError, match="within 60 seconds") as caught:
        run_quick_until(machine, model, tmp_path)
    assert "--minutes" in caught.value.hint
    assert is_settled(OPENVINO, model, ["llamacpp", "openvino"], cache_dir=tmp_path)
    assert look_up(OPENVINO, model, cache_dir=tmp_path).tuning is None


def run_quick_until(machine: Machine, model: Artifact, cache: Path) -> list[Report]:
    """As run_quick, with processes that end when the minute is over."""

    class Ending(_Worker):
        def run(self, n_prompt: int, n_decode: int) -> Any:
            found = super().run(n_prompt, n_decode)
            if machine.clock() > 60:
                raise BackendError("killed")
            return found

    workers = Workers(machine)
    options = TuneOptions(60.0, is_quick=True)
    return tune(OPENVINO, [model], options, cache_dir=cache, open_worker=lambda plan, **_: Ending(workers, plan),
                clock=machine.clock)  # fmt: skip
