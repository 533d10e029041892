"""edge tune on two engines at once: which pairs are measured, when one is taken, and what the plan makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.backends.llamacpp import canary
from edge.bench.tune import Report, TuneOptions, tune
from edge.bench.values import Setting
from edge.device import DeviceProfile
from edge.formats.artifact import Artifact, open_artifact
from edge.plan.tuning import look_up
from tests.unit.bench.fakes import Machine, write_gguf
from tests.unit.bench.test_tune import OPENVINO, Workers

QUICK = TuneOptions(60.0, is_quick=True)
PAIR = {"llamacpp": (0.2, 0.1), "openvino": (0.05, 0.2), "llamacpp+openvino": (0.05, 0.1)}
"""Seconds of prefill and decode: one engine prefills four times as fast and decodes half as fast."""


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.bench.format_tuner.safety_here", lambda *_: None)
    monkeypatch.setattr(canary, "library_identity", lambda: "a build")


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return open_artifact(write_gguf(tmp_path / "tiny.gguf"))


def run(
    model: Artifact,
    cache: Path,
    seconds: dict[str, tuple[float, float]],
    *,
    device: DeviceProfile = OPENVINO,
    options: TuneOptions = QUICK,
    noise: float = 0.0,
    **divergences: float,
) -> tuple[Report, list[str]]:
    """Tune, and return also the engines that were measured, in the order of their first time."""

    def name(given: Setting) -> str:
        return given.backend + (f"+{given.prefill_with}" if given.prefill_with else "")

    machine = Machine(lambda given: seconds[name(given)], noise=noise)
    workers = Workers(machine, {key.replace("_and_", "+") + " gguf": value for key, value in divergences.items()})
    (report,) = tune(device, [model], options, cache_dir=cache, open_worker=workers, clock=machine.clock)
    assert workers.n_open == 0
    return report, list(dict.fromkeys(map(name, machine.measured)))


@pytest.mark.parametrize("options", [QUICK, TuneOptions(600.0)])
def test_two_engines_are_taken_where_a_turn_takes_less_time(model: Artifact, tmp_path: Path, options: TuneOptions) -> None:
    report, measured = run(model, tmp_path, PAIR, options=options, noise=0.01)
    pair = report.tuning.pair
    assert pair is not None
    assert (pair.backend, pair.prefill_with, pair.divergence) == ("llamacpp", "openvino", 0.004)
    assert pair.turn_s < report.tuning.turn_s
    assert measured == ["llamacpp", "openvino", "llamacpp+openvino"], "the other way round cannot be faster"
    trial = report.outcome.trials[-1]
    assert (trial.knob, trial.value, trial.is_taken) == ("prefill", "llamacpp on cpu, openvino prefills", True)
    assert look_up(OPENVINO, model, cache_dir=tmp_path).tuning == report.tuning
    assert not any(speed.prefill_with for speed in report.tuning.engines), "those are single engines"
    assert report.tuning.backend in ("llamacpp", "openvino")


@pytest.mark.parametrize(
    "seconds",
    [
        {"llamacpp": (0.2, 0.1), "openvino": (0.05, 0.09)},  # one of them is faster in both
        {"llamacpp": (0.2, 0.1), "openvino": (0.199, 0.2)},  # it would not gain five percent
    ],
)
def test_what_cannot_be_faster_is_not_measured(model: Artifact, tmp_path: Path, seconds: Any) -> None:
    report, measured = run(model, tmp_path, seconds)
    assert measured == ["llamacpp", "openvino"]
    assert report.tuning.pair is None


def test_what_is_measured_decides_and_not_what_was_expected(model: Artifact, tmp_path: Path) -> None:
    report, measured = run(model, tmp_path, {**PAIR, "llamacpp+openvino": (0.2, 0.1)})
    assert measured[-1] == "llamacpp+openvino"
    assert report.tuning.pair is None
    assert report.outcome.trials[-1].why == "not faster by 5% and more than the spread"


def test_what_loses_quality_is_not_taken(model: Artifact, tmp_path: Path) -> None:
    report, _ = run(model, tmp_path, PAIR, llamacpp_and_openvino=0.011)
    assert report.tuning.pair is None
    assert "it diverges by 0.011 nats, more than 0.01" in report.outcome.trials[-1].why


def test_both_have_to_fit_into_memory(model: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = run(model, tmp_path / "one", PAIR)
    assert report.tuning.pair is not None
    monkeypatch.setattr("edge.bench.format_tuner.paired_plan", _too_large)
    report, measured = run(model, tmp_path / "other", PAIR)
    assert (report.tuning.pair, measured) == (None, ["llamacpp", "openvino"])


def _too_large(decoder: Any, prefiller: Any, least: int) -> Any:
    return replace(decoder, memory=replace(decoder.memory, total_bytes=OPENVINO.memory.available_bytes))
