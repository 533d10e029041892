"""`edge chat` compares the engines before the first chat: once, only where there is a choice, and never in the way."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edge_chat
from edge.bench.tune import Report
from edge.bench.tuner import Outcome
from edge.errors import BackendError, StorageError
from edge.plan.tuning import remember
from tests.unit.bench.fakes import setting, write_gguf
from tests.unit.plan.test_tuning import make

Chat = Callable[..., Any]


@pytest.fixture
def chat(call: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch) -> Chat:
    """Run `edge chat` with a terminal; the chat itself ends at once, with the code 7."""
    monkeypatch.setattr(edge_chat, "run", lambda settings, **_: 7)
    monkeypatch.setattr("edge_cli.first_use.load_of_others", lambda: 0.0)

    def run(*arguments: str) -> Any:
        monkeypatch.setattr(sys, "stdout", terminal())
        return call("chat", *arguments)

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of tune, whose result is stored as it does."""
    calls: list[Any] = []

    def tune(device: Any, artifacts: Any, options: Any, *, cache_dir: Path, on_progress: Any) -> list[Report]:
        calls.append(options)
        found = make(backend="openvino", prefill_tokens_per_s=970.0, reference="llamacpp on cpu", divergence=0.004)
        remember(device, artifacts[0], found, cache_dir=cache_dir, engines=["llamacpp", "openvino"])
        return [Report(found, Outcome(setting(), (), is_complete=True), is_better=True, seconds=20.0)]

    monkeypatch.setattr("edge.bench.tune.tune", tune)
    return calls


def test_it_is_done_once_and_said(chat: Chat, model: Path, tuned: list[Any]) -> None:
    first, second = chat("-m", str(model)), chat("-m", str(model))
    assert (first.code, second.code) == (7, 7)
    assert "Once, for at most a minute: which of llamacpp and openvino answers faster here?" in first.err
    assert "openvino answers 1.4 times as fast as llamacpp here (5.0 times as fast prefill)" in first.err
    assert (second.err, len(tuned)) == ("", 1)
    assert (tuned[0].budget_s, tuned[0].is_quick) == (60.0, True)


def test_ctrl_c_skips_it_for_good(chat: Chat, model: Path, tuned: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def tune(*_: object, **__: object) -> Any:
        tuned.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.bench.tune.tune", tune)
    done = chat("-m", str(model))
    assert (done.code, "Skipped. To do it later: edge tune" in done.err) == (7, True)
    assert chat("-m", str(model)).err == ""
    assert len(tuned) == 1


def test_a_failure_does_not_keep_the_chat_from_opening(
    chat: Chat, model: Path, tuned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tune(*_: object, **__: object) -> Any:
        tuned.append(1)
        raise BackendError("The engine died.")

    monkeypatch.setattr("edge.bench.tune.tune", tune)
    done = chat("-m", str(model))
    assert (done.code, "The engine died." in done.err) == (7, True)
    assert chat("-m", str(model)).err == "", "nor does it take the minute again"
    assert len(tuned) == 1


def test_not_where_it_would_be_done_at_every_start(
    chat: Chat, model: Path, tuned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StorageError("The cache cannot be written.")

    monkeypatch.setattr("edge.plan.tuning._write", fail)
    done = chat("-m", str(model))
    assert (done.code, "The cache cannot be written." in done.err, tuned) == (7, True, [])


def test_a_busy_machine_waits_for_another_start(
    chat: Chat, model: Path, tuned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_cli.first_use.load_of_others", lambda: 1000.0)
    assert (chat("-m", str(model)).code, tuned) == (7, [])
    monkeypatch.setattr("edge_cli.first_use.load_of_others", lambda: 0.1)
    assert (chat("-m", str(model)).code, len(tuned)) == (7, 1)


def test_a_conversation_that_is_not_there_is_said_at_once(chat: Chat, model: Path, tuned: list[Any]) -> None:
    assert chat("-m", str(model), "--conversation", "nothing").code not in (0, 7)
    assert tuned == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("--lora", "pirate.gguf"),
        ("--backend", "llamacpp"),
        ("--threads", "1"),
        ("--require", "cpu"),
        ("-s", "engine.measure=false"),
    ],
)
def test_not_where_the_choice_is_made(chat: Chat, model: Path, tuned: list[Any], arguments: tuple[str, ...]) -> None:
    assert chat("-m", str(model), *arguments).code == 7
    assert tuned == []


def test_not_for_a_model_that_is_not_here_and_not_for_a_large_one(
    chat: Chat, model: Path, tuned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chat("-m", "smollm2-1.7b").code == 7
    monkeypatch.setattr("edge_cli.first_use._MOST_BYTES", 1)
    assert chat("-m", str(model)).code == 7
    assert tuned == []


def test_not_where_one_engine_alone_can_run_it(
    chat: Chat, model: Path, tuned: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.backends.openvino.support.why_not", lambda artifact: "it has experts")
    assert chat("-m", str(model)).err == ""
    assert tuned == []
