"""--prefill-with and engine.prefill_with on the command line, and what edge tune says about two engines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edge.bench.tune_options import Report
from edge.bench.tuner import Outcome
from edge.config import load_settings
from edge.formats.artifact import open_artifact
from edge.plan.tuning import remember
from edge_cli.completers import complete_prefiller
from edge_cli.first_use import gain_text
from tests.unit.bench.fakes import setting, write_gguf
from tests.unit.plan.test_prefill import OPENVINO, here, measured

__all__ = ["here"]  # a captured machine with both engines, for every test


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(write_gguf(tmp_path / "tiny.gguf"))


def test_both_engines_are_in_the_estimate(call: Any, model: str) -> None:
    words = ("run", "--estimate-only", "-m", model, "--context", "512", "--backend", "llamacpp")
    alone, both = (json.loads(call(*words, "--json", *more).out) for more in ((), ("--prefill-with", "openvino")))
    assert alone["prefill"] is None
    assert both["prefill"]["plan"]["backend"] == "openvino"
    own = both["prefill"]["plan"]["memory"]["total_bytes"]
    assert both["memory"]["total_bytes"] == alone["memory"]["total_bytes"] + own
    shown = call(*words, "--prefill-with", "openvino", "--explain")
    assert "openvino, which prefills" in shown.out
    assert "asked for; from 32 tokens on" in shown.err + shown.out
    assert "prefills" not in call(*words, "--prefill-with", "off").out


def test_an_unknown_engine_is_refused(call: Any, model: str) -> None:
    refused = call("run", "--estimate-only", "-m", model, "--prefill-with", "opnvino")
    assert refused.code == 2
    assert "no backend 'opnvino' to prefill with" in refused.err
    refused = call("config", "set", "engine.prefill_with", "opnvino")
    assert refused.code != 0 and "Known here: llamacpp" in refused.err
    for name in ("openvino", "off", "auto"):
        assert call("config", "set", "engine.prefill_with", name).code == 0


def test_names_are_completed() -> None:
    names = [item.value for item in complete_prefiller(None, None, "")]  # type: ignore[arg-type]
    assert names[:2] == ["auto", "off"] and "openvino" in names and "fake" not in names


def test_what_was_measured_is_shown(call: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.device.probe", lambda: OPENVINO)
    artifact = open_artifact(model)
    remember(OPENVINO, artifact, measured(), cache_dir=load_settings().paths.cache_dir, engines=["llamacpp", "openvino"])
    shown = call("tune", model, "--show")
    assert "openvino prefills, llamacpp decodes: 1.74 s a turn" in shown.out
    assert "llamacpp on cpu, openvino prefills" in shown.out
    found = json.loads(call("tune", model, "--show", "--json").out)["tuning"]
    assert (found["pair"]["prefill_with"], found["pair"]["turn_s"]) == ("openvino", 1.7356)


def test_the_first_chat_says_that_two_engines_are_used(model: str) -> None:
    report = Report(measured(), Outcome(setting(), (), is_complete=True), is_better=True, seconds=20.0)
    said = gain_text(open_artifact(model), report)
    assert "openvino for long prompts and llamacpp for replies answer 1.3 times as fast as llamacpp here" in said
