"""Predicted speeds: a roofline, corrected by what other models showed, and which model is recommended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edge.bench.recommend import Measured, Recommendation, Roof, best_of, candidates, measure_roof, predict, recommend
from edge.catalog import load_catalog
from edge.config import load_settings
from edge_chat.offers import suggest_models
from tests.unit.bench.fakes import device

ROOF = Roof(bytes_per_s=40e9, flops_per_s=400e9, n_threads=4)
PI = device("raspberry-pi-5")


def with_memory(n_bytes: int) -> Any:
    return replace(PI, memory=replace(PI.memory, available_bytes=n_bytes))


def test_more_weights_are_slower_and_better_hardware_faster() -> None:
    small, large = predict(ROOF, 100_000_000, 135_000_000), predict(ROOF, 1_100_000_000, 1_700_000_000)
    assert small.decode_tokens_per_s > large.decode_tokens_per_s
    assert small.first_token_s < large.first_token_s
    memory, compute = replace(ROOF, bytes_per_s=80e9), replace(ROOF, flops_per_s=800e9)
    assert predict(memory, 1_100_000_000, 1_700_000_000).decode_tokens_per_s > large.decode_tokens_per_s
    assert predict(compute, 1_100_000_000, 1_700_000_000).prefill_tokens_per_s > 1.9 * large.prefill_tokens_per_s
    assert large.decode_tokens_per_s < ROOF.bytes_per_s / 1_100_000_000, "never above the roof"


def test_candidates_chat_and_the_largest_that_fits_is_first() -> None:
    found = candidates(load_settings(), with_memory(2_500_000_000))
    catalog = load_catalog()
    assert {one.name for one in found} == {
        name
        for name, entry in catalog.items()
        if not (entry.base or entry.embeddings or entry.voice) and any(one.form == "gguf" for one in entry.artifacts)
    }
    fitting = [one.entry.parameters or 0 for one in found if one.verdict == "fits"]
    assert fitting == sorted(fitting, reverse=True)
    assert fitting
    assert found[-1].verdict == "too large"


def test_measured_models_correct_the_predictions_of_others_and_not_their_own() -> None:
    settings, free = load_settings(), with_memory(8_000_000_000)
    plain = {one.name: one for one in recommend(settings, free, ROOF)}
    base = plain["smollm2-135m"].predicted
    assert base is not None
    halves = {"smollm2-135m": Measured(base.prefill_tokens_per_s / 2, base.decode_tokens_per_s / 4)}
    found = {one.name: one for one in recommend(settings, free, ROOF, halves)}
    assert found["smollm2-135m"].predicted == base
    assert found["smollm2-135m"].errors == pytest.approx((1.0, 3.0))
    before, after = plain["qwen3-0.6b"].predicted, found["qwen3-0.6b"].predicted
    assert before is not None
    assert after is not None
    assert after.prefill_tokens_per_s == pytest.approx(before.prefill_tokens_per_s / 2)
    assert after.decode_tokens_per_s == pytest.approx(before.decode_tokens_per_s / 4)
    assert found["qwen3-0.6b"].errors is None


def test_the_best_is_the_largest_that_fits_and_is_fast_enough() -> None:
    entry = load_catalog()["qwen3-0.6b"]

    def one(name: str, verdict: Any, decode: float, prefill: float = 500.0, measured: Measured | None = None) -> Recommendation:
        return Recommendation(name, entry, 1, True, None, verdict, Measured(prefill, decode), measured)

    models = [
        one("slow", "fits", 2.0),
        one("late", "fits", 50.0, prefill=10.0),
        one("good", "fits", 9.0),
        one("tiny", "fits", 99.0),
    ]
    assert best_of(models) == models[2]
    assert best_of([one("tight", "tight", 50.0)]) is None
    assert best_of([one("measured", "fits", 50.0, measured=Measured(500.0, 2.0))]) is None, "what was measured counts"


def test_the_roof_is_measured_here() -> None:
    roof = measure_roof(1, 300_000_000)
    assert roof.bytes_per_s > 1e7
    assert roof.flops_per_s > 1e7


def test_the_chat_suggests_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    assert suggest_models(settings) == "", "the embedded model is not here"
    here = [
        type("Model", (), {"name": name, "format": "gguf", "size_bytes": 1}) for name in ("smollm2-135m", "all-minilm-l6-v2")
    ]
    monkeypatch.setattr("edge.catalog.list_models", lambda settings: here)
    hint = suggest_models(settings)
    assert "edge models recommend" in hint
    assert suggest_models(settings) == "", "once"
    (settings.paths.data_dir / "models-suggested").unlink()
    monkeypatch.setattr("edge.catalog.list_models", lambda settings: [*here, type("M", (), {"name": "mine", "format": "gguf"})])
    assert suggest_models(settings) == "", "there is another one"
