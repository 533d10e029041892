"""The process that measures: real children, with a fake backend in them."""

from __future__ import annotations

import io
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from edge.backends.base import Sampler
from edge.backends.fake import FakeBackend
from edge.bench.bandwidth import measure_bandwidth, sweep_bytes
from edge.bench.child import Answer, Open, serve
from edge.bench.divergence import compare_logits, text_logits
from edge.bench.measure import measure, prompt_tokens, warm_up
from edge.bench.process import Worker, bandwidth_here, setting_of
from edge.device.cost import peak_bytes
from edge.errors import BackendError, ContextFullError, ModelFileError
from edge.formats.artifact import open_artifact
from edge.plan import Plan, PlanRequest, make_plan
from tests.unit.bench.fakes import Clock, device, write_gguf


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    artifact = open_artifact(write_gguf(tmp_path / "tiny.gguf"))
    return make_plan(device(), artifact, PlanRequest(backend="fake", context=1024, n_seq=1))


def newest_child() -> psutil.Process:
    return max(psutil.Process().children(), key=lambda child: child.create_time())


def test_a_child_measures(plan: Plan) -> None:
    with Worker(plan, with_energy=True) as worker:
        assert worker.load_s > 0
        assert worker.energy
        samples = [worker.run(50, 7), worker.run(50, 7)]
    for sample in samples:
        assert (sample.n_prompt, sample.n_decode) == (50, 7)
        assert 0 < sample.prefill_s <= sample.first_token_s
        assert sample.decode_s > 0
        assert sample.peak_bytes > 1 << 20
    worker.close()  # twice is fine


def test_a_child_compares_itself_and_times_its_passes(plan: Plan, tmp_path: Path) -> None:
    logits = tmp_path / "logits.npz"
    with Worker(plan) as worker:
        worker.write_logits(logits)
        found = worker.compare_logits(logits)
        assert (found.mean, found.agreement) == (pytest.approx(0.0, abs=1e-9), 1.0)
        times = worker.pass_ms()
        assert 1 in times and all(ms > 0 for ms in times.values())
        assert worker.run(50, 7).n_prompt == 50, "and it goes on"
        with pytest.raises(BackendError, match="exists"):
            worker.write_logits(logits)
        logits.write_bytes(b"no logits")
        with pytest.raises(BackendError):
            worker.compare_logits(logits)


def test_a_deadline_ends_a_child(plan: Plan) -> None:
    with pytest.raises(BackendError, match="process that measured"):
        Worker(plan, deadline=time.monotonic())
    with Worker(plan, deadline=time.monotonic() + 3600) as worker:
        assert worker.run(5, 1).n_prompt == 5


def test_a_divergence_is_that_of_the_distributions(tmp_path: Path, plan: Plan) -> None:
    """Against the definition, written out."""
    tokens = [3, 4, 5]

    class Drawn(FakeBackend):
        rows = np.random.default_rng(1).standard_normal((len(tokens), 9)).astype(np.float32)

        def logits(self, seq_id: int, n_back: int = 0) -> Any:
            return self.rows[self.length(seq_id) - 1 - n_back]

    with Drawn(plan) as backend:
        backend.info = replace(backend.info, n_vocab=9)
        theirs = text_logits(backend, tokens)
        np.testing.assert_array_equal(theirs, Drawn.rows)
        with (tmp_path / "theirs.npz").open("wb") as file:
            np.savez(file, tokens=tokens, logits=theirs)
        Drawn.rows = 2 * theirs[:, ::-1]
        found = compare_logits(backend, tmp_path / "theirs.npz")
        Drawn.rows = np.full_like(theirs, np.nan)
        with pytest.raises(BackendError, match="not finite"):  # and not 0, as if it computed the same
            compare_logits(backend, tmp_path / "theirs.npz")
    Drawn.rows = 2 * theirs[:, ::-1]
    p, q = (np.exp(rows) / np.exp(rows).sum(1, keepdims=True) for rows in (theirs, Drawn.rows))
    assert found.mean == pytest.approx(float((p * np.log(p / q)).sum(1).mean()), rel=1e-5)
    assert found.each == pytest.approx((p * np.log(p / q)).sum(1), rel=1e-5)
    assert found.agreement == np.mean(p.argmax(1) == q.argmax(1))


def test_errors_come_back_as_what_they_are(plan: Plan) -> None:
    with Worker(plan) as worker:
        with pytest.raises(ContextFullError, match="do not fit"):
            worker.run(5000, 1)
        assert worker.run(5, 1).n_prompt == 5  # and it goes on


def test_a_path_that_is_not_unicode(tmp_path: Path) -> None:
    artifact = open_artifact(write_gguf(tmp_path / os.fsdecode(b"caf\xe9.gguf")))
    with Worker(make_plan(device(), artifact, PlanRequest(backend="fake", context=1024, n_seq=1))) as worker:
        assert worker.run(5, 1).n_prompt == 5


def test_a_model_that_is_gone(plan: Plan) -> None:
    plan.artifact.path.write_bytes(b"GGUF, but no longer")
    with pytest.raises(ModelFileError):
        Worker(plan)


def test_a_child_that_dies_says_how(plan: Plan) -> None:
    worker = Worker(plan)
    newest_child().kill()
    with pytest.raises(BackendError, match="died of SIGKILL"):
        worker.run(5, 1)
    worker.close()


def test_stopping_does_not_wait(plan: Plan) -> None:
    worker = Worker(plan)
    process = newest_child()
    process.suspend()  # as deaf as in the middle of a long pass
    worker.stop()
    assert not process.is_running()


def test_requests_one_after_the_other(plan: Plan) -> None:
    answers = io.BytesIO()
    bad = Open(path=os.fsencode(plan.artifact.path), plan={"backend": "fake"})
    serve(io.BytesIO(msgspec.json.encode(bad) + b"\nnonsense\n"), answers)
    found = [msgspec.json.decode(line, type=Answer) for line in answers.getvalue().splitlines()]
    assert [answer.problem is not None and answer.problem.kind for answer in found] == ["BackendError", "BackendError"]


def test_the_setting_of_a_plan(plan: Plan) -> None:
    setting = setting_of(plan)
    assert (setting.backend, setting.accelerator, setting.threads, setting.n_ctx) == ("fake", "cpu", plan.n_threads, 1024)


def test_what_is_timed() -> None:
    """Each thing that a backend does moves the clock by an amount of its own, so the sums say what was in which time."""
    clock = Clock()

    class Slow(FakeBackend):
        def prefill(self, *args: object, **options: object) -> int:
            clock.now += 1.0
            return super().prefill(*args, **options)  # type: ignore[arg-type]

        def logits(self, seq_id: int) -> object:  # type: ignore[override]
            clock.now += 0.01  # to wait for the prompt
            return super().logits(seq_id)

        def open_sampler(self, *args: object) -> Sampler:
            sampler = super().open_sampler(*args)  # type: ignore[arg-type]
            sample = sampler.sample

            def slow(seq_id: int) -> int:
                clock.now += 0.01
                return sample(seq_id)

            sampler.sample = slow  # type: ignore[method-assign]
            return sampler

        def decode(self, *args: object) -> None:
            clock.now += 0.1
            super().decode(*args)  # type: ignore[arg-type]

    with Slow(n_ctx=256) as backend:
        sample = measure(backend, 100, 20, clock=clock, cpu_clock=clock)
        assert sample.prefill_s == pytest.approx(1.01)
        assert sample.first_token_s == pytest.approx(1.02)
        assert sample.decode_s == pytest.approx(20 * 0.11)
        assert sample.decode_tokens_per_s == pytest.approx(20 / 2.2)
        assert sample.prefill_tokens_per_s == pytest.approx(100 / 1.01)
        assert backend.length(0) == 120
        warm_up(backend)
        assert measure(backend, 100, 20, clock=clock, cpu_clock=clock).prefill_s == pytest.approx(1.01)


def test_energy_is_split() -> None:
    class Meter:
        name, total = "test", 0.0

        def joules(self) -> float:
            self.total += 1.5
            return self.total

    with FakeBackend() as backend:
        sample = measure(backend, 10, 5, meter=Meter())  # type: ignore[arg-type]
    assert (sample.prefill_joules, sample.decode_joules) == (1.5, 1.5)


@pytest.mark.parametrize("n_vocab", [1, 2, 4, 259, 49152])
def test_prompts_stay_within_the_vocabulary(n_vocab: int) -> None:
    tokens = prompt_tokens(n_vocab, 600)
    assert len(tokens) == 600
    assert all(0 <= token < n_vocab for token in tokens)


def test_peak_memory(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("VmPeak:\t  99 kB\nVmHWM:\t  1234 kB\n")
    assert peak_bytes(status) == 1234 * 1024
    assert peak_bytes(tmp_path / "nothing") > 1 << 20


def test_peak_memory_is_that_of_the_child(plan: Plan) -> None:
    """Memory of the parent does not count, though Linux starts a child's own record from it."""
    ballast = bytearray(250 << 20)
    ballast[::4096] = b"x" * len(ballast[::4096])
    with Worker(plan) as worker:
        assert worker.run(5, 1).peak_bytes < 200 << 20
    assert len(ballast) == 250 << 20


def test_bandwidth() -> None:
    ticks = iter(range(100))
    # Each sweep takes one tick of 1 s.
    assert measure_bandwidth(2, 1 << 20, 3, clock=lambda: float(next(ticks))) == 1 << 20
    started = time.perf_counter()
    measured = bandwidth_here(1, 32 << 20)
    assert measured > (32 << 20) / (time.perf_counter() - started)  # a sweep is a part of that time


def test_how_much_is_read(tmp_path: Path) -> None:
    for name, size in (("index0", "48K"), ("index3", "64M")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(size + "\n")
    assert sweep_bytes(64 << 30, tmp_path) == 512 << 20
    assert sweep_bytes(2 << 30, tmp_path) == 256 << 20  # an eighth of what is free
    assert sweep_bytes(64 << 30, tmp_path / "none") == 256 << 20
    (tmp_path / "index3" / "size").write_text("odd\n")
    assert sweep_bytes(64 << 30, tmp_path) == 256 << 20
