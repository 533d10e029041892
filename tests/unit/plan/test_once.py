"""Each fact is found once on the way from a path to a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edge.device.detection
import edge.formats.artifact
import edge.plan.choosing
import edge.plan.placement
from edge.config import load_settings
from edge.formats.artifact import open_artifact
from edge.loading import plan_model
from edge.plan import PlanRequest
from edge.plan.choosing import choose_plan
from tests.unit.bench.fakes import device, write_gguf


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Number of calls of each function."""
    counts: Counter[str] = Counter()

    def count(place: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(place, name)

        def counted(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return real(*arguments, **options)

        monkeypatch.setattr(place, name, counted)

    count(edge.formats.artifact, "read_header")
    count(edge.formats.artifact, "facts_of_gguf")
    count(edge.plan.placement, "_choose_engine")
    count(edge.plan.placement, "find_targets")
    count(edge.plan.choosing, "find_targets")
    monkeypatch.setattr(edge.device.detection, "probe", lambda: device("raspberry-pi-5"))
    monkeypatch.setattr("edge.backends.llamacpp.canary.load_safety", lambda cache_dir: None)
    return counts


def test_a_model_is_looked_at_once_for_a_plan(tmp_path: Path, calls: Counter[str]) -> None:
    plan = plan_model(str(write_gguf(tmp_path / "tiny.gguf")), settings=load_settings())
    assert plan.backend == "llamacpp"
    n_automatic = 4  # their accelerators decide which format to download
    assert calls == {"read_header": 1, "facts_of_gguf": 1, "_choose_engine": 1, "find_targets": n_automatic + 1}


def test_each_candidate_is_looked_at_once(tmp_path: Path, calls: Counter[str]) -> None:
    artifacts = [open_artifact(write_gguf(tmp_path / f"{seed}.gguf", seed=seed)) for seed in range(3)]
    choose_plan(edge.device.detection.probe(), [(artifact, None) for artifact in artifacts], PlanRequest())
    assert calls == {"read_header": 3, "facts_of_gguf": 3, "_choose_engine": 3, "find_targets": 3}
