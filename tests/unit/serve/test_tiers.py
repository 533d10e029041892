"""A server whose model has a next tier: who answers is said, and clients can forbid it or ask for it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest

from edge.assistant import Assistant
from edge.runtime import Runtime
from edge.testing import FakeModel
from edge.tiers import Escalation, LocalTier, Router
from tests.serving import Serving, serving, wait_until

HI = {"messages": [{"role": "user", "content": "prove it"}]}


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    with FakeModel(lambda text: f"LARGE says {text}").load() as larger:
        larger.model_name = "large"
        escalation = Escalation(LocalTier("large", lambda: contextlib.nullcontext(larger)), Router(patterns=("prove",)))
        make = Assistant.__init__

        def init(self: Assistant, *arguments: Any, **options: Any) -> None:
            make(self, *arguments, **options, escalation=escalation)

        with patch.object(Assistant, "__init__", init), serving() as server:
            wait_until(lambda: server.ask("GET", "/health")[0] == 200)
            yield server


def test_an_answer_says_who_gave_it(running: Serving) -> None:
    _, _, answer = running.post("/v1/chat/completions", HI)
    assert answer["choices"][0]["message"]["content"] == "LARGE says prove it"
    assert (answer["model"], answer["answered_by"]) == ("large", "large")
    assert answer["escalated"] == "the rule 'prove'"


def test_clients_forbid_it_or_ask_for_it(running: Serving) -> None:
    _, _, answer = running.post("/v1/chat/completions", {**HI, "escalate": False})
    assert answer["choices"][0]["message"]["content"].startswith("You said")
    assert (answer["model"], answer["escalated"]) == ("tiny", None)
    hello = {"messages": [{"role": "user", "content": "hello"}], "escalate": True}
    assert running.post("/v1/chat/completions", hello)[2]["answered_by"] == "large"
    status, _, error = running.post("/v1/chat/completions", {**hello, "logprobs": True})
    assert status == 400, error


def test_a_stream_says_it_at_its_end(running: Serving) -> None:
    _, _, body = running.post("/v1/chat/completions", {**HI, "stream": True})
    parts = [json.loads(line[6:]) for line in body.decode().splitlines() if line.startswith("data: {")]
    assert "".join(part["choices"][0]["delta"].get("content") or "" for part in parts) == "LARGE says prove it"
    assert parts[-1]["answered_by"] == "large"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {**HI, "max_tokens": 50}),
        ("/api/chat", {**HI, "stream": False}),
        ("/v1/responses", {"input": "prove it"}),
    ],
)
def test_other_protocols_say_it_in_the_field_of_the_model(running: Serving, path: str, body: Any) -> None:
    status, _, answer = running.post(path, body)
    assert status == 200, answer
    assert answer["model"] == "large"
    assert "LARGE says prove it" in json.dumps(answer)


def test_a_runtime_lends_its_own_models_as_tiers() -> None:
    from edge.config import Settings
    from edge.config.schema import EscalationSettings

    model, given = FakeModel(lambda text: f"<{text}>"), []

    def load(name: str, **options: Any) -> Assistant:
        given.append((name, options.pop("larger", None)))
        return model.load(name, **options)

    def plan(*_: Any, **__: Any) -> None:
        return None

    with Runtime(settings=Settings(escalation=EscalationSettings(to="large")), load=load, plan=plan) as runtime:
        with runtime.use("small"):
            pass
        assert given[0] == ("small", runtime.use)
    with Runtime(load=load, plan=plan) as runtime, runtime.use("small"):
        assert given[1] == ("small", None)
