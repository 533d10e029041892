"""Loading a model with a second one that drafts: both are planned, fit, are named in the receipt, and are closed together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.backends.fake import FakeBackend, FakeTokenizer
from edge.config import load_settings
from edge.device import DeviceProfile
from edge.errors import BackendError, ModelNotFoundError, ModelTooLargeError, UnsupportedError, UsageError
from edge.plan import Plan
from edge.plan.draft import plan_with_draft
from edge.plan.receipt import MemoryEstimate
from tests.unit.bench.fakes import device, write_gguf


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[FakeBackend]]:
    """The models that are opened, all of them fakes that take drafts."""
    found: list[FakeBackend] = []

    def open_backend(plan: Plan, *, on_progress: Any) -> FakeBackend:
        on_progress(1.0)
        found.append(FakeBackend(plan, drafts=True))
        return found[-1]

    monkeypatch.setattr("edge.backends.open_backend", open_backend)
    monkeypatch.setattr("edge.backends.llamacpp.trial.try_file", lambda *_: None)
    yield found
    for backend in found:
        backend.close()


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    return {name: str(write_gguf(tmp_path / f"{name}.gguf")) for name in ("large", "small")}


def load(models: dict[str, str], settings: dict[str, Any] | None = None, **options: Any) -> edge.Assistant:
    base = {"governor.enabled": False, "kv.enabled": False, "context": 1024}
    return edge.load(models["large"], settings=load_settings({**base, **(settings or {})}), **options)


def test_both_models_are_in_the_plan_and_its_memory(opened: list[FakeBackend], models: dict[str, str]) -> None:
    with load(models, draft=models["small"], parallel=3) as assistant:
        plan = assistant.plan
        assert plan is not None
        assert plan.draft is not None
        assert plan.draft.artifact.path == Path(models["small"])
        assert (plan.draft.n_ctx, plan.draft.n_seq) == (plan.n_ctx, plan.n_seq) == (1024, 3)
        assert plan.memory.draft_bytes == plan.draft.memory.total_bytes > 0
        parts = plan.memory.weights_bytes + plan.memory.kv_bytes + plan.memory.compute_bytes
        assert plan.memory.total_bytes == parts + plan.memory.draft_bytes
        line = next(choice for choice in plan.choices if choice.what == "draft model")
        assert line.value.endswith("on cpu")
        assert "verifies" in line.reason
        assert plan.to_dict()["draft"]["artifact"]["path"] == models["small"]
        assert assistant.generate("hello", max_tokens=5).wait()
    assert len(opened) == 2
    for backend in opened:
        with pytest.raises(BackendError):
            backend.length(0)


def test_without_one_nothing_changes(opened: list[FakeBackend], models: dict[str, str]) -> None:
    with load(models) as assistant:
        assert assistant.plan is not None
        assert assistant.plan.draft is None
        assert assistant.plan.to_dict()["draft"] is None
        assert assistant.plan.memory.draft_bytes == 0
        assert not any(choice.what == "draft model" for choice in assistant.plan.choices)
    assert len(opened) == 1


@pytest.mark.parametrize(("setting", "why"), [("engine.speculate", "engine.speculate is off"), ("kv.exact", "kv.exact")])
def test_where_guesses_are_off_it_is_not_loaded(
    setting: str, why: str, opened: list[FakeBackend], models: dict[str, str]
) -> None:
    with load(models, {setting: setting == "kv.exact", "engine.draft": models["small"]}) as assistant:
        assert assistant.plan is not None
        (line,) = [choice for choice in assistant.plan.choices if choice.what == "draft model"]
        assert (line.value, why in line.reason) == ("none", True)
    assert len(opened) == 1


def test_one_that_is_missing_is_told(opened: list[FakeBackend], models: dict[str, str]) -> None:
    with pytest.raises(ModelNotFoundError, match=r"gone\.gguf"):
        load(models, draft=models["small"].replace("small", "gone"))
    assert opened == []


def test_where_the_engine_verifies_no_drafts_that_is_told_and_all_is_closed(
    models: dict[str, str], opened: list[FakeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edge.backends.open_backend", lambda plan, *, on_progress: opened.append(FakeBackend(plan)) or opened[-1]
    )
    with pytest.raises(UnsupportedError, match=r"No model can draft for .*engine\.draft"):
        load(models, draft=models["small"])
    with pytest.raises(BackendError):
        opened[0].length(0)


class Other(FakeTokenizer):
    """Another vocabulary."""

    def _look_up(self, token: int) -> Any:
        return super()._look_up(token)._replace(special=b"!")


def test_one_of_the_settings_that_does_not_suit_is_left_out_and_one_that_was_asked_for_refused(
    opened: list[FakeBackend], models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.backends.fake.FakeTokenizer", lambda: FakeTokenizer() if len(opened) % 2 == 0 else Other())
    with pytest.raises(UsageError, match="cannot draft for"):
        load(models, draft=models["small"])
    assert len(opened) == 2
    for backend in opened:
        with pytest.raises(BackendError):
            backend.length(0)
    monkeypatch.setenv("EDGE_ENGINE_DRAFT", models["small"])
    with load(models) as assistant:
        plan = assistant.plan
        assert plan is not None
        assert (plan.draft, plan.memory.draft_bytes) == (None, 0)
        assert plan.memory.total_bytes == plan.memory.weights_bytes + plan.memory.kv_bytes + plan.memory.compute_bytes
        (line,) = [choice for choice in plan.choices if choice.what == "draft model"]
        assert line.value == "none"
        assert "cannot draft for" in line.reason
        assert assistant.generate("hello", max_tokens=3).wait()
    with pytest.raises(BackendError):
        opened[3].length(0)


def test_one_of_the_command_line_is_for_the_model_of_the_command_line(
    opened: list[FakeBackend], models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.backends.fake.FakeTokenizer", lambda: FakeTokenizer() if len(opened) % 2 == 0 else Other())
    flags = {"model": models["large"], "engine.draft": models["small"], "kv.enabled": False, "governor.enabled": False}
    settings = load_settings(flags)
    with pytest.raises(UsageError, match="cannot draft for"):
        edge.load(settings=settings)
    with edge.load(models["small"], settings=settings) as assistant:  # the chat goes on with another model
        assert assistant.plan is not None
        assert assistant.plan.draft is None


def plans(large_bytes: int, small_bytes: int, least_bytes: int) -> tuple[Any, Any]:
    """Return what plans a model that takes what it can get, `least_bytes` at least, and one that takes `small_bytes`."""

    def fill(left: DeviceProfile, wanted: int, least: int) -> Plan:
        available = left.memory.available_bytes
        if available < least:
            raise ModelTooLargeError("It does not fit.", "Close other programs.")
        taken = min(wanted, available)
        return replace(_plan(), memory=MemoryEstimate(taken, 0, 0, taken, available), n_ctx=taken)

    return (
        lambda left: fill(left, large_bytes, least_bytes),
        lambda left, plan: fill(left, small_bytes * plan.n_ctx // large_bytes, small_bytes * plan.n_ctx // large_bytes),
    )


def _plan() -> Plan:
    from types import SimpleNamespace

    artifact: Any = SimpleNamespace(name="m")
    return Plan(
        "fake", "cpu", artifact, 0, 1, 1, 1, 1, 0, "f16", "f16", False, False, False, MemoryEstimate(0, 0, 0, 0, 0), ()
    )  # fmt: skip


def laptop(available: int) -> DeviceProfile:
    found = device()
    return replace(found, memory=replace(found.memory, available_bytes=available))


def test_a_model_that_took_all_memory_makes_room_for_its_draft() -> None:
    plan = plan_with_draft(laptop(1000), *plans(1000, 200, least_bytes=500))
    assert plan.draft is not None
    assert (plan.memory.weights_bytes, plan.memory.draft_bytes) == (800, 160)
    assert plan.memory.total_bytes == 960


def test_what_fits_as_it_is_stays_so() -> None:
    plan = plan_with_draft(laptop(1500), *plans(1000, 200, least_bytes=500))
    assert (plan.memory.weights_bytes, plan.memory.draft_bytes) == (1000, 200)


def test_two_models_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ModelTooLargeError):
        plan_with_draft(laptop(1000), *plans(1000, 600, least_bytes=500))
