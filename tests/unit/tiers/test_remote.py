"""The remote tier against a server that behaves, and against one that does not."""

from __future__ import annotations

import logging
import queue
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from edge.errors import EdgeError, RemoteError
from edge.events import Text
from edge.messages import Message, Tool, ToolCall
from edge.prompt.options import PromptOptions
from edge.request import Request
from edge.tiers.address import read_address, read_key
from edge.tiers.base import Broke, Ended, TierEvent
from edge.tiers.remote import FIRST_MODEL, RemoteTier
from edge.types import Sampling
from tests.servers.chat import WAIT_S, ChatServer, Says, chat_server

SECRET = "sk-0123456789abcdef"
QUESTION = Request(prompt=[Message("system", "Be brief."), Message("user", "Capital of France?")])


def tier_of(server: ChatServer, *, key: str = "", **options: float) -> RemoteTier:
    address = read_address(f"openai:{server.url}#m")
    return RemoteTier(address, read_key(address, None, {"EDGE_REMOTE_KEY": key}), pause_s=0.01, **options)  # type: ignore[arg-type]


def ask(tier: RemoteTier, request: Request = QUESTION) -> tuple[str, Ended | EdgeError]:
    """Return the text that came, and how it ended."""
    events: queue.SimpleQueue[TierEvent] = queue.SimpleQueue()
    tier.start(request, events.put)
    text = ""
    while True:
        event = events.get(timeout=WAIT_S)
        if isinstance(event, Text):
            text += event.text
        elif isinstance(event, Ended):
            return text, event
        elif isinstance(event, Broke):
            return text, event.error


def test_an_answer_is_streamed_and_says_who_gave_it() -> None:
    with chat_server() as server:
        text, ended = ask(tier_of(server))
    assert text == "Paris"
    assert isinstance(ended, Ended)
    assert ended.reason == "stop"
    assert ended.answered_by == f"real-model at {server.url.removeprefix('http://')}"
    assert (ended.usage.n_prompt, ended.usage.n_generated) == (12, 3)
    assert 0 < ended.timing.first_token_ms <= ended.timing.total_ms


def test_what_is_sent_is_what_was_shown() -> None:
    history = [
        Message("user", "hi"),
        Message("assistant", "", tool_calls=(ToolCall("w", {"c": "P"}, "1"),), reasoning="a secret thought"),
        Message("tool", "rain", tool_call_id="1"),
        Message("user", "and?"),
    ]
    request = Request(prompt=history, sampling=Sampling(temperature=0, max_tokens=9, stop=("X",), top_k=3, logit_bias={1: 2}))
    with chat_server() as server:
        tier = tier_of(server)
        shown = tier.outgoing(request)
        ask(tier, request)
    assert shown is not None
    assert server.asked == [shown.body]
    assert "a secret thought" not in shown.text()
    assert shown.body["max_tokens"] == 9
    assert not {"top_k", "logit_bias", "min_p"} & set(shown.body), "OpenAI's own server refuses what it does not know"
    assert shown.body["messages"][1]["tool_calls"][0]["function"] == {"name": "w", "arguments": '{"c": "P"}'}
    assert shown.n_messages == 4
    assert shown.n_chars == len("hi") + len("rain") + len("and?")


def test_without_a_model_the_first_that_is_listed_is_asked_for() -> None:
    with chat_server() as server:
        tier = RemoteTier(read_address(f"openai:{server.url}"))
        shown = tier.outgoing(QUESTION)
        assert server.paths == [], "looking uses no network"
        ask(tier)
    assert shown is not None
    assert shown.body["model"] == FIRST_MODEL
    assert server.paths == ["/v1/models", "/v1/chat/completions"]
    assert server.asked[0]["model"] == "listed-model"


def test_the_key_is_sent_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with chat_server(Says(status=401, body=b'{"error": {"message": "no"}}')) as server:
        tier = tier_of(server, key=SECRET)
        shown = tier.outgoing(QUESTION)
        _, error = ask(tier)
    assert server.headers[0]["authorization"] == f"Bearer {SECRET}"
    assert shown is not None
    assert shown.has_key
    assert isinstance(error, RemoteError)
    for text in (caplog.text, shown.text(), repr(shown), repr(vars(tier)), str(error), error.hint):
        assert SECRET not in text


@pytest.mark.parametrize(
    ("first", "n_asked"),
    [
        (Says(status=429, headers={"Retry-After": "0"}), 2),
        (Says(status=500), 2),
        (Says(status=503, headers={"Retry-After": "Mon, 01 Jan 2024 00:00:00 GMT"}), 2),
        (Says(is_dropped=True), 2),
    ],
)
def test_what_passes_is_tried_again(first: Says, n_asked: int) -> None:
    with chat_server(first) as server:
        text, ended = ask(tier_of(server))
    assert text == "Paris"
    assert isinstance(ended, Ended)
    assert len(server.asked) == n_asked


@pytest.mark.parametrize(
    ("script", "n_asked", "words"),
    [
        ([Says(status=500)] * 5, 3, "status 500"),
        ([Says(status=429, headers={"Retry-After": "3600"})], 1, "status 429"),
        ([Says(status=404, body=b'{"error": {"message": "no \\u001b[31mmodel"}}')], 1, "no  [31mmodel"),
        ([Says(status=307, headers={"Location": "http://example.org/"})], 1, "status 307"),
        ([Says(kind="text/html", raw=b"<html>")], 1, "text/html"),
        ([Says(raw=b"data: {nonsense\n\n")], 1, "no part of an answer"),
        ([Says(raw=b"data: [1, 2]\n\n")], 1, "no part of an answer"),
        ([Says(raw=b"\xff\xfe\x00" * 100)], 1, "broke off"),
        ([Says(raw=b"data: " + b"x" * (2 << 20))], 1, "longer than 1 MiB"),
        ([Says(raw=b'data: {"error": {"message": "out of memory"}}\n\n')], 1, "out of memory"),
        ([Says(raw=b"")], 1, "broke off"),
        ([Says(reason=None, pieces=())], 1, "broke off"),
    ],
)
def test_what_goes_wrong_is_said(script: list[Says], n_asked: int, words: str) -> None:
    with chat_server(*script) as server:
        text, error = ask(tier_of(server))
    assert text == ""
    assert isinstance(error, RemoteError)
    assert words in error.message
    assert error.message.isprintable()
    assert error.hint
    assert len(server.asked) == n_asked


def test_an_answer_that_is_cut_off_is_not_asked_for_again() -> None:
    with chat_server(Says(cut_after=2)) as server:
        text, error = ask(tier_of(server))
    assert text == "Pari"
    assert isinstance(error, RemoteError)
    assert "broke off" in error.message
    assert len(server.asked) == 1


@pytest.mark.parametrize("slow", [Says(stall_after=1), Says(comments_after=1)], ids=["stalls", "drips comments"])
def test_silence_ends_an_answer(slow: Says) -> None:
    with chat_server(slow) as server:
        text, error = ask(tier_of(server, silence_s=1.0, attempts=1))
    assert text == "Pa"
    assert isinstance(error, RemoteError)


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listened on
        tier = RemoteTier(read_address(f"openai:http://127.0.0.1:{taken.getsockname()[1]}#m"), pause_s=0.01)
        text, error = ask(tier)
    assert text == ""
    assert isinstance(error, RemoteError)
    assert "cannot be reached" in error.message


@pytest.mark.parametrize("says", [Says(stall_after=1), Says(comments_after=1)], ids=["stalled", "dripping"])
def test_cancelling_ends_at_once_and_closes_the_connection(says: Says) -> None:
    with chat_server(says) as server:
        events: queue.SimpleQueue[TierEvent] = queue.SimpleQueue()
        cancel = tier_of(server).start(QUESTION, events.put)
        assert events.get(timeout=WAIT_S) == Text("Pa")
        cancel()
        ended = events.get(timeout=WAIT_S)
        assert isinstance(ended, Ended)
        assert ended.reason == "cancelled"
        assert server.gone.wait(WAIT_S), "the server stops, too"
    assert events.empty(), "nothing follows the end"


def test_cancelling_a_pause_asks_no_more() -> None:
    with chat_server(Says(status=500), Says(status=500)) as server:
        address = read_address(f"openai:{server.url}#m")
        events: queue.SimpleQueue[TierEvent] = queue.SimpleQueue()
        cancel = RemoteTier(address, pause_s=15).start(QUESTION, events.put)
        while not server.asked:
            pass
        cancel()
        ended = events.get(timeout=WAIT_S)
        assert isinstance(ended, Ended)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("request_of", "words"),
    [
        (lambda: Request(prompt=QUESTION.prompt, options=PromptOptions((Tool("w"),))), "tools"),
        (lambda: Request(prompt=QUESTION.prompt, lora=["a"]), "adapters"),
        (lambda: QUESTION, ""),
    ],
)
def test_what_it_cannot_take(request_of: Callable[[], Request], words: str) -> None:
    why = RemoteTier(read_address("openai:http://127.0.0.1:1")).why_not(request_of())
    assert words in why
    assert bool(why) == bool(words)


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-the-file\n")
    file.chmod(0o600)
    address = read_address("openai:https://gpu.example.org")
    for environ, value in (({}, "from-the-file"), ({"EDGE_REMOTE_KEY": "from-a-variable"}, "from-a-variable")):
        key = read_key(address, file, environ)
        assert key is not None
        assert key.value == value
        assert value not in repr(key)
