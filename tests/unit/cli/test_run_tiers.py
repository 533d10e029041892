"""`edge run` with a next tier: asks before text leaves, shows it, and says who answered."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.tiers import Escalation, LocalTier, RemoteTier
from edge.tiers.address import read_address
from edge_cli.app import App
from tests.servers.chat import ChatServer, Says, chat_server


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with chat_server() as running:
        yield running


def app_of(escalation: Escalation | None) -> App:
    def load(**options: Any) -> Assistant:
        assert options["settings"].escalation.to is None or escalation is not None
        return Assistant(FakeBackend(script=lambda text: f"<{text}>"), store=options["store"], escalation=escalation)

    return App(load=load)


@pytest.fixture
def remote_app(server: ChatServer) -> App:
    return app_of(Escalation(RemoteTier(read_address(f"openai:{server.url}#m"), pause_s=0.01)))


def test_show_prints_what_would_be_sent_and_sends_nothing(call: Any, remote_app: App, server: ChatServer) -> None:
    result = call("run", "--show", "my", "secret", app=remote_app)
    assert result.code == 0
    first, _, body = result.out.partition("\n")
    assert first == f"POST {server.url}/v1/chat/completions"
    assert json.loads(body)["messages"][-1] == {"role": "user", "content": "my secret"}
    assert "Nothing was sent" in result.err
    as_json = json.loads(call("run", "--show", "--json", "my secret", app=remote_app).out)
    assert as_json["body"]["messages"][-1]["content"] == "my secret"
    assert as_json["n_messages"] >= 1
    assert server.paths == []


def test_without_a_terminal_nothing_is_sent(call: Any, remote_app: App, server: ChatServer) -> None:
    result = call("run", "--escalate", "hi", stdin=b"", app=remote_app)
    assert (result.code, result.out) == (0, "<hi>\n")
    assert "nobody agreed" in result.err
    assert server.paths == []


@pytest.mark.parametrize(
    ("typed", "answer", "n_asked"), [("y\n", "Paris\n", 1), ("n\n", "<hi>\n", 0), ("s\ny\n", "Paris\n", 1)]
)
def test_a_person_is_asked(
    call: Any, remote_app: App, server: ChatServer, monkeypatch: pytest.MonkeyPatch,
    typed: str, answer: str, n_asked: int,
) -> None:  # fmt: skip
    monkeypatch.setattr("edge_cli.escalation._has_terminal", lambda: True)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda prompt: answers.pop(0))
    answers = typed.split()
    result = call("run", "--escalate", "hi", app=remote_app)
    assert (result.code, result.out) == (0, answer)
    assert "This would be sent to 127.0.0.1" in result.err
    assert ("POST http" in result.err) == ("s" in typed)
    assert len(server.asked) == n_asked
    assert ("Answered by real-model at" in result.err) == bool(n_asked)


def test_json_says_who_answered(call: Any, server: ChatServer) -> None:
    tier = RemoteTier(read_address(f"openai:{server.url}#m"), pause_s=0.01)
    app = app_of(Escalation(tier, consent="always"))
    found = json.loads(call("run", "--escalate", "--json", "hi", app=app).out)
    assert (found["text"], found["escalated"]) == ("Paris", "by hand")
    assert found["answered_by"].startswith("real-model at 127.0.0.1")
    here = json.loads(call("run", "--json", "hi", app=app).out)
    assert (here["text"], here["escalated"]) == ("<hi>", "")
    assert here["answered_by"]
    server.script.extend([Says(status=500)] * 3)
    fallen = json.loads(call("run", "--escalate", "--json", "hi", app=app).out)
    assert fallen["text"] == "<hi>"
    assert "No answer from" in fallen["notices"][0]


def test_show_with_a_model_here(call: Any) -> None:
    app = app_of(Escalation(LocalTier("large", lambda: contextlib.nullcontext())))  # type: ignore[arg-type,return-value]
    result = call("run", "--show", "hi", app=app)
    assert (result.code, result.out) == (0, "")
    assert "Nothing would leave this device" in result.err


@pytest.mark.parametrize("option", ["--show", "--escalate"])
def test_without_a_tier_there_is_an_error(call: Any, option: str) -> None:
    result = call("run", option, "hi", app=app_of(None))
    assert result.code == 2
    assert "There is no larger model" in result.err
    assert "--escalate-to" in result.err
