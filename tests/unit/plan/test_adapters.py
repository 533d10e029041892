"""Loading a model with adapters: they are found, fit, are part of the plan and its memory, and other engines refuse them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.backends.fake import FakeBackend
from edge.config import load_settings
from edge.errors import ModelFileError, ModelNotFoundError, ModelTooLargeError, UnsupportedError, UsageError
from edge.plan import Plan
from edge.plan.adapters import plan_with_adapters
from tests.adapters import fake_adapters, write_adapter
from tests.unit.bench.fakes import write_gguf


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeBackend]]:
    """The models that are opened, all of them fakes."""
    found: list[FakeBackend] = []

    def open_backend(plan: Plan, *, on_progress: Any) -> FakeBackend:
        on_progress(1.0)
        found.append(FakeBackend(plan))
        return found[-1]

    monkeypatch.setattr("edge.backends.open_backend", open_backend)
    monkeypatch.setattr("edge.backends.llamacpp.trial.try_file", lambda *_: None)
    yield found
    for backend in found:
        backend.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def pirate(tmp_path: Path, model: Path) -> Path:
    return write_adapter(tmp_path / "pirate.gguf", model, seed=1)


def settings(**values: Any) -> edge.Settings:
    return load_settings({"governor.enabled": False, "kv.enabled": False, "context": 1024, **values})


def load(model: Path, *lora: str, **options: Any) -> edge.Assistant:
    return edge.load(str(model), settings=settings(), lora=lora or None, **options)


def test_adapters_are_in_the_plan_and_its_memory(opened: list[FakeBackend], model: Path, pirate: Path, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "sub-pirate.gguf", model, seed=2, rank=8)
    with load(model) as plain:
        before = plain.plan
    with load(model, f"{pirate}:0.5", f"{other}:0") as ai:
        plan = ai.plan
        assert plan is not None and before is not None
        assert [adapter.name for adapter in ai.adapters] == ["pirate", "sub-pirate"]
        assert ai.lora == {"pirate": 0.5}
        assert plan.memory.adapter_bytes == sum(adapter.size_bytes for adapter in plan.adapters) > 0
        assert plan.memory.total_bytes == before.memory.total_bytes + plan.memory.adapter_bytes
        lines = [choice for choice in plan.choices if choice.what == "adapter"]
        assert [line.value for line in lines] == ["pirate at 0.5", "sub-pirate, not applied"]
        assert "rank 4" in lines[0].reason and "of memory" in lines[0].reason
        assert next(choice.reason for choice in plan.choices if choice.what == "backend") == "the engine that applies adapters"
        assert [one["path"] for one in plan.to_dict()["adapters"]] == [str(pirate), str(other)]
        assert ai.generate("hi", max_tokens=20).wait().startswith("[pirate at 0.5] ")
    assert before.to_dict()["adapters"] == []


def test_names_are_told_apart(opened: list[FakeBackend], model: Path, pirate: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write_adapter(tmp_path / "b" / "pirate.gguf", model, seed=9)
    with load(model, str(pirate), str(tmp_path / "b" / "pirate.gguf")) as ai:
        assert [adapter.name for adapter in ai.adapters] == ["pirate", "pirate-2"]
    with load(model, str(pirate), str(tmp_path / "b")) as ai:
        assert [adapter.name for adapter in ai.adapters] == ["pirate", "b"], "a folder with one file"
    with pytest.raises(UsageError, match=r"given twice \(as pirate before\)"):
        load(model, str(pirate), f"{pirate}:0.5")


def test_what_cannot_be_applied_is_refused_before_anything_is_loaded(
    opened: list[FakeBackend], model: Path, pirate: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFoundError, match="no adapter"):
        load(model, str(tmp_path / "none.gguf"))
    with pytest.raises(ModelFileError, match="is not an adapter"):
        load(model, str(model))
    with pytest.raises(UnsupportedError, match=r"ONNX Runtime cannot apply adapters; llama\.cpp can"):
        load(model, str(pirate), backend="onnx")
    with pytest.raises(UnsupportedError, match="OpenVINO cannot apply adapters"):
        load(model, str(pirate), backend="openvino")
    assert not opened


def test_a_model_in_another_format_is_refused(opened: list[FakeBackend], pirate: Path, tmp_path: Path) -> None:
    from tests.tiny_onnx import write_onnx

    with pytest.raises(UnsupportedError, match="to which no adapter can be applied") as error:
        edge.load(str(write_onnx(tmp_path / "onnx")), settings=settings(), lora=[str(pirate)])
    assert "Get the model as GGUF" in error.value.hint


def test_adapters_of_the_settings_are_for_their_model(opened: list[FakeBackend], model: Path, pirate: Path) -> None:
    chosen = settings(model=str(model), **{"engine.lora": [str(pirate)]})
    with edge.load(settings=chosen) as ai:
        assert ai.lora == {"pirate": 1.0}
    other = write_gguf(model.with_name("other.gguf"))
    with edge.load(str(other), settings=chosen) as ai:
        assert ai.adapters == ()
    assert edge.plan_model(str(other), settings=chosen).adapters == ()
    assert len(edge.plan_model(settings=chosen).adapters) == 1
    with edge.load(settings=chosen, lora=[]) as ai:
        assert ai.adapters == ()


def test_a_model_makes_room_for_its_adapters(opened: list[FakeBackend], model: Path) -> None:
    with load(model) as ai:
        plan = ai.plan
    assert plan is not None
    from edge.device import probe

    machine = replace(probe(), gpus=())
    big = replace(fake_adapters("big")[0], size_bytes=1 << 30)
    free = machine.memory.available_bytes

    def choose(device: Any) -> Plan:
        if device.memory.available_bytes < 1 << 20:
            raise ModelTooLargeError("It does not fit.")
        memory = replace(plan.memory, available_bytes=device.memory.available_bytes)
        return replace(plan, memory=memory)

    found = plan_with_adapters(machine, choose, lambda _: (big,), is_engine_asked=True)
    assert (found.memory.adapter_bytes, found.memory.available_bytes) == (1 << 30, free)
    with pytest.raises(ModelTooLargeError):
        plan_with_adapters(machine, choose, lambda _: (replace(big, size_bytes=free),), is_engine_asked=True)
