"""The plan of two engines: when it is made, what it says and costs, and when one engine does everything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.backends.llamacpp import canary
from edge.config import load_settings
from edge.device import DeviceProfile
from edge.errors import BackendUnavailableError, ModelTooLargeError, UsageError
from edge.formats.artifact import Artifact, open_artifact
from edge.plan import Plan
from edge.plan.prefill import handover
from edge.plan.speed import EngineSpeed
from edge.plan.tuning import Tuning, remember
from edge.planning import make_planner
from tests.unit.bench.fakes import write_gguf
from tests.unit.bench.test_tune import OPENVINO
from tests.unit.plan.test_tuning import make


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.device.detection.probe", lambda: OPENVINO)
    monkeypatch.setattr(canary, "library_identity", lambda: "a build")
    monkeypatch.setattr(canary, "load_safety", lambda cache_dir: None)


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return open_artifact(write_gguf(tmp_path / "tiny.gguf"))


def speed(backend: str, prefill: float, decode: float, **changes: Any) -> EngineSpeed:
    values = {"accelerator": "cpu", "load_s": 0.6, "divergence": 0.002, "agreement": 0.97, **changes}
    return EngineSpeed(backend=backend, prefill_tokens_per_s=prefill, decode_tokens_per_s=decode, **values)


ENGINES = (speed("llamacpp", 300.0, 90.0, divergence=0.0), speed("openvino", 1200.0, 60.0))
PAIR = speed("llamacpp", 1200.0, 90.0, load_s=1.2, prefill_with="openvino")


def measured(**changes: Any) -> Tuning:
    usual = {"default_decode_tokens_per_s": 90.0, "default_prefill_tokens_per_s": 300.0, "reference": "llamacpp on cpu"}
    best = {"backend": "openvino", "decode_tokens_per_s": 60.0, "prefill_tokens_per_s": 1200.0, "divergence": 0.002}
    rest = {"engines": ENGINES, "pair": PAIR, "is_quick": True, "load_s": 0.6, "default_load_s": 0.6}
    return make(**{**usual, **best, **rest, **changes})


def plan_of(model: Artifact, tuning: Tuning | None = None, **settings: Any) -> Plan:
    chosen = load_settings({"model": str(model.path), **{key.replace("__", "."): value for key, value in settings.items()}})
    if tuning is not None:
        remember(OPENVINO, model, tuning, cache_dir=chosen.paths.cache_dir, engines=["llamacpp", "openvino"])
    return make_planner(chosen)()


def line(plan: Plan) -> tuple[str, str]:
    (found,) = [(choice.value, choice.reason) for choice in plan.choices if choice.what == "prefill"]
    return found


def test_it_is_made_where_tune_measured_that_turns_take_less_time(model: Artifact, own_home: Path) -> None:
    plan = plan_of(model, measured())
    assert plan.prefill is not None
    assert (plan.backend, plan.prefill.plan.backend) == ("llamacpp", "openvino")
    assert (plan.prefill.plan.n_ctx, plan.prefill.plan.n_seq, plan.n_seq) == (plan.n_ctx, 1, 4)
    value, reason = line(plan)
    assert value == "openvino, llamacpp decodes"
    assert "a turn takes 1.74 s, with openvino alone 2.40 s" in reason
    assert "0.0020 nats apart" in reason and "handed over in memory" in reason
    assert plan.memory.prefill_bytes == plan.prefill.plan.memory.total_bytes > 0
    parts = plan.memory.weights_bytes + plan.memory.kv_bytes + plan.memory.compute_bytes
    assert plan.memory.total_bytes == parts + plan.memory.prefill_bytes
    assert plan.to_dict()["prefill"]["plan"]["backend"] == "openvino"


@pytest.mark.parametrize(
    "settings",
    [
        {"engine__prefill_with": "off"},
        {"kv__exact": True},
        {"kv__across_engines": False},
        {"kv_type_k": "q8_0", "kv_type_v": "q8_0", "backend": "llamacpp"},
        {"backend": "openvino"},
    ],
)
def test_one_engine_does_everything_where_two_are_not_wanted(model: Artifact, own_home: Path, settings: Any) -> None:
    plan = plan_of(model, measured(), **settings)
    assert plan.prefill is None and plan.memory.prefill_bytes == 0
    assert not [choice for choice in plan.choices if choice.what == "prefill"]


def test_without_a_measurement_nothing_changes(model: Artifact, own_home: Path) -> None:
    assert plan_of(model).prefill is None
    assert plan_of(model, measured(pair=None)).prefill is None


def test_it_is_asked_for_without_a_measurement(model: Artifact, own_home: Path) -> None:
    plan = plan_of(model, engine__prefill_with="openvino")
    assert plan.prefill is not None and plan.backend == "llamacpp"
    assert line(plan)[1].startswith("asked for; from 32 tokens on")
    reverse = plan_of(model, engine__prefill_with="llamacpp", backend="openvino")
    assert reverse.prefill is not None
    assert (reverse.backend, reverse.prefill.plan.backend) == ("openvino", "llamacpp")


def test_an_engine_cannot_be_its_own_helper(model: Artifact, own_home: Path) -> None:
    plan = plan_of(model, engine__prefill_with="openvino", backend="openvino")
    assert plan.prefill is None
    assert line(plan) == ("openvino", "asked for; it decodes, too")


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("opnvino", UsageError, "no backend 'opnvino' to prefill with"),
        ("onnx", BackendUnavailableError, "cannot read gguf models"),
    ],
)
def test_what_is_asked_for_and_cannot_be_is_refused(
    model: Artifact, own_home: Path, name: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        plan_of(model, engine__prefill_with=name)


def test_where_two_engines_are_asked_for_and_cannot_be_used_the_receipt_says_so(model: Artifact, own_home: Path) -> None:
    plan = plan_of(model, engine__prefill_with="openvino", kv__exact=True)
    assert plan.prefill is None
    assert line(plan) == ("llamacpp", "openvino was asked for; kv.exact allows no numbers of another one")


def small(free_bytes: int) -> DeviceProfile:
    return replace(OPENVINO, memory=replace(OPENVINO.memory, available_bytes=free_bytes))


def test_memory_decides(model: Artifact, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plan_of(model, measured())
    assert whole.prefill is not None
    margin = 256 << 20
    monkeypatch.setattr("edge.device.detection.probe", lambda: small(whole.memory.total_bytes + margin - (400 << 10)))
    alone = plan_of(model)
    assert alone.prefill is None and alone.n_ctx == whole.n_ctx
    assert "openvino would prefill faster, but" in line(alone)[1]
    asked = plan_of(model, engine__prefill_with="openvino", backend="llamacpp")
    assert asked.prefill is not None, "the context is smaller, so that both fit"
    assert asked.n_ctx == asked.prefill.plan.n_ctx < whole.n_ctx
    one = whole.memory.total_bytes - whole.memory.prefill_bytes
    monkeypatch.setattr("edge.device.detection.probe", lambda: small(one + margin))
    with pytest.raises(ModelTooLargeError):
        plan_of(model, engine__prefill_with="openvino", backend="llamacpp")


def test_a_chunk_is_handed_over_where_that_gains_twice_what_it_takes() -> None:
    decoder, prefiller = ENGINES
    assert handover(decoder, prefiller, 23_040, 512) == (32, 0.0184)  # 1 / 90 s for 2.5 ms a token
    slow = speed("llamacpp", 1000.0, 20.0)
    assert handover(slow, prefiller, 23_040, 512)[0] == 512, "no less than a whole chunk"
    assert handover(speed("llamacpp", 1000.0, 90.0), prefiller, 0, 512) == (134, 0.0)
    assert handover(prefiller, decoder, 23_040, 512) == handover(None, prefiller, 23_040, 512) == (32, 0.0)
