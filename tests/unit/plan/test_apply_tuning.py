"""The plan uses what was measured, unless something else was asked for or it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.errors import UsageError
from edge.formats.artifact import Artifact, open_artifact
from edge.plan import Plan, PlanRequest, make_plan
from edge.plan.tuning import Lookup
from tests.unit.bench.fakes import device, write_gguf
from tests.unit.plan.test_choosing import gguf
from tests.unit.plan.test_tuning import make

LAPTOP = device("laptop-rtx4060")
CPU = PlanRequest(require="cpu")


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return open_artifact(write_gguf(tmp_path / "tiny.gguf"))


def plan(model: Artifact, request: PlanRequest = CPU, **changes: Any) -> Plan:
    return make_plan(LAPTOP, model, request, tuned=Lookup(make(**changes)))


def choice(made: Plan, what: str) -> tuple[str, str]:
    return next((c.value, c.reason) for c in made.choices if c.what == what)


def test_measured_settings_are_used_and_said(model: Artifact) -> None:
    made = plan(model)
    assert (made.n_threads, made.n_threads_batch, made.n_ubatch, made.flash_attention) == (3, 4, 256, False)
    assert choice(made, "threads") == (
        "3",
        "measured by edge tune on 2026-11-26: decode 33.1 tokens/s, with the usual settings 28.9",
    )
    assert choice(made, "threads, prefill")[1].endswith("prefill 210.5 tokens/s, with the usual settings 194.0")
    assert choice(made, "batch")[0] == "256 tokens"
    assert choice(made, "flash attention")[0] == "off"
    assert (made.kv_type_k, made.kv_type_v) == ("f16", "f16")


def test_the_accelerator_that_was_measured_to_be_fastest_is_used_and_said(model: Artifact) -> None:
    engines = tuple(
        replace(e, version="1", accelerators=("cuda", "cpu")) if e.name == "llamacpp" else e for e in LAPTOP.engines
    )
    card = replace(LAPTOP, engines=engines)
    tuned = Lookup(make())  # on the CPU
    assert make_plan(card, model).accelerator == "cuda"
    made = make_plan(card, model, tuned=tuned)
    assert (made.accelerator, made.gpu_layers, made.n_threads) == ("cpu", 0, 3)
    said = choice(made, "accelerator")[1]
    assert said.endswith("measured by edge tune on 2026-11-26: decode 33.1 tokens/s, with the usual settings 28.9")
    assert "no CUDA" not in said
    for asked in (PlanRequest(require="cuda"), PlanRequest(gpu_layers=-1)):
        assert make_plan(card, model, asked, tuned=tuned).accelerator == "cuda"
    short = replace(card, memory=replace(card.memory, available_bytes=450 << 20))
    assert make_plan(short, gguf(), CPU).n_ctx < make_plan(short, gguf()).n_ctx
    assert make_plan(short, gguf(), tuned=tuned).accelerator == "cuda", "never at the price of context"


def test_what_was_asked_for_wins(model: Artifact) -> None:
    made = plan(model, replace(CPU, threads=2))
    assert (made.n_threads, made.n_threads_batch) == (2, 2)
    assert choice(made, "threads")[1].startswith("asked for")
    assert made.n_ubatch == 256  # nothing was said about that
    assert plan(model, replace(CPU, n_ubatch=64)).n_ubatch == 64
    assert plan(model, replace(CPU, flash_attention=True)).flash_attention


def test_quantised_values_keep_the_fused_attention(model: Artifact) -> None:
    made = plan(model, replace(CPU, kv_type_k="q8_0", kv_type_v="q8_0"))
    assert made.flash_attention
    assert made.kv_type_v == "q8_0"


def test_a_kv_type_that_the_user_let_it_try(model: Artifact) -> None:
    made = plan(model, kv_type_k="q8_0", kv_type_v="q8_0", flash_attention=True)
    assert made.kv_type_k == "q8_0"
    assert "measured by edge tune" in choice(made, "KV cache")[1]
    asked = plan(model, replace(CPU, kv_type_k="f16", kv_type_v="f16"), kv_type_k="q8_0", kv_type_v="q8_0")
    assert asked.kv_type_k == "f16"


@pytest.mark.parametrize("changes", [{"backend": "onnx"}, {"accelerator": "cuda"}, {"threads": 4000}])
def test_what_was_measured_elsewhere_is_left(model: Artifact, changes: dict[str, Any]) -> None:
    assert plan(model, **changes) == make_plan(LAPTOP, model, CPU)


def test_the_usual_settings_confirmed(model: Artifact) -> None:
    usual = make_plan(LAPTOP, model, CPU)
    made = plan(model, threads=usual.n_threads, threads_batch=usual.n_threads_batch, n_ubatch=512, flash_attention=True)
    assert choice(made, "threads")[1] == "edge tune on 2026-11-26 found nothing faster"
    assert replace(made, choices=()) == replace(usual, choices=())


def test_never_at_the_price_of_context(model: Artifact) -> None:
    """A larger batch that leaves no room for the context stays out."""
    for mib in range(300, 700, 10):
        short = replace(LAPTOP, memory=replace(LAPTOP.memory, available_bytes=mib << 20))
        usual = make_plan(short, model, CPU)
        made = make_plan(short, model, CPU, tuned=Lookup(make(n_ubatch=16384, flash_attention=True)))
        assert made.n_ctx >= usual.n_ctx
        assert made.memory.total_bytes <= made.memory.available_bytes


def test_why_it_is_not_used(model: Artifact) -> None:
    made = make_plan(LAPTOP, model, CPU, tuned=Lookup(None, "the engine was installed again"))
    assert choice(made, "tuning") == ("not used", "the engine was installed again")
    assert all(c.what != "tuning" for c in make_plan(LAPTOP, model, CPU, tuned=Lookup()).choices)


def test_requests_that_cannot_be(model: Artifact) -> None:
    with pytest.raises(UsageError, match="batch"):
        make_plan(LAPTOP, model, replace(CPU, n_ubatch=0))
    with pytest.raises(UsageError, match="flash attention"):
        make_plan(LAPTOP, model, replace(CPU, flash_attention=False, kv_type_v="q8_0"))
    with pytest.raises(UsageError, match="threads"):
        make_plan(LAPTOP, model, replace(CPU, threads_batch=4000))


def test_threads_for_prefill_alone(model: Artifact) -> None:
    made = make_plan(LAPTOP, model, replace(CPU, threads_batch=2))
    assert made.n_threads_batch == 2
    assert made.n_threads == make_plan(LAPTOP, model, CPU).n_threads
