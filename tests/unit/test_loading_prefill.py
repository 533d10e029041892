"""Loading a second engine that prefills: what becomes of one that is of no use. Fakes have no layout that engines share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import edge
import edge.backends
from edge.backends.fake import FakeBackend
from edge.backends.llamacpp import canary
from edge.config import load_settings
from edge.errors import BackendError, CancelledError, UnsupportedError
from edge.formats.artifact import open_artifact
from edge.plan import Plan
from edge.plan.tuning import remember
from tests.unit.bench.fakes import write_gguf
from tests.unit.bench.test_tune import OPENVINO
from tests.unit.plan.test_prefill import measured


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> Iterator[list[FakeBackend]]:
    """The engines that are opened, all of them fakes."""
    found: list[FakeBackend] = []

    def open_backend(plan: Plan, *, on_progress: Any) -> FakeBackend:
        on_progress(1.0)
        found.append(FakeBackend(plan, drafts=True))
        return found[-1]

    monkeypatch.setattr("edge.backends.open_backend", open_backend)
    monkeypatch.setattr("edge.backends.llamacpp.trial.try_file", lambda *_: None)
    monkeypatch.setattr("edge.device.detection.probe", lambda: OPENVINO)
    monkeypatch.setattr(canary, "library_identity", lambda: "a build")
    monkeypatch.setattr(canary, "load_safety", lambda cache_dir: None)
    yield found
    for backend in found:
        backend.close()


def load(path: Path, **options: Any) -> edge.Assistant:
    settings = load_settings({"governor.enabled": False, "kv.enabled": False, "context": 1024})
    return edge.load(str(path), settings=settings, **options)


def test_one_that_was_asked_for_and_is_of_no_use_is_refused(opened: list[FakeBackend], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    with pytest.raises(UnsupportedError, match="no common layout"):
        load(path, prefill_with="openvino")
    assert len(opened) == 2
    for backend in opened:
        with pytest.raises(BackendError):
            backend.length(0)


def test_one_that_was_measured_and_is_of_no_use_is_left_out(
    opened: list[FakeBackend], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    cache_dir = load_settings().paths.cache_dir
    remember(OPENVINO, open_artifact(path), measured(), cache_dir=cache_dir, engines=["llamacpp", "openvino"])
    with caplog.at_level(logging.WARNING, "edge.loading"), load(path) as assistant:
        plan = assistant.plan
        assert plan is not None
        assert (plan.prefill, plan.memory.prefill_bytes) == (None, 0)
        (line,) = [choice for choice in plan.choices if choice.what == "prefill"]
        assert line.value == "llamacpp" and "no common layout" in line.reason
        assert assistant.generate("hello", max_tokens=3).wait()
    assert "llamacpp prefills as well: " in caplog.text
    with pytest.raises(BackendError):
        opened[1].length(0)


def test_loading_can_be_stopped_while_the_second_one_loads(
    opened: list[FakeBackend], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = edge.backends.open_backend

    def open_backend(plan: Plan, *, on_progress: Any) -> Any:
        if opened:
            raise CancelledError("Loading was stopped.")
        return usual(plan, on_progress=on_progress)

    monkeypatch.setattr("edge.backends.open_backend", open_backend)
    with pytest.raises(CancelledError):
        load(write_gguf(tmp_path / "tiny.gguf"), prefill_with="openvino")
    with pytest.raises(BackendError):
        opened[0].length(0)
