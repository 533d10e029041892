"""The same questions to `edge serve` and to llama.cpp's own server: a peer by other authors, with the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
EDGE = Path(sys.executable).with_name("edge")
N_CTX = 1024
CHAT = "/v1/chat/completions"


@dataclass
class Pair:
    """Addresses of both servers."""

    ours: str
    theirs: str

    def ask(self, path: str, body: object) -> tuple[tuple[int, Any], tuple[int, Any]]:
        """Return (status, answer) of both; of a stream, its lines."""
        return post(self.ours + path, body), post(self.theirs + path, body)


def post(url: str, body: object) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            text, status, kind = answer.read().decode(), answer.status, answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")
    if kind.startswith("text/event-stream"):
        return status, [line.removeprefix("data: ") for line in text.split("\n") if line.startswith("data: ")]
    return status, json.loads(text)


@pytest.fixture(scope="module")
def pair(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    home = str(tmp_path_factory.mktemp("home"))
    env = {**os.environ, "HOME": home, "EDGE_CACHE_DIR": home, "EDGE_THREADS": "1"}
    ours = [EDGE, "serve", "-m", model_path, "--context", str(N_CTX), "--port", "0", "--json", "--log", "off"]
    theirs = [sys.executable, "-m", "tests.standins.llama_server", model_path, str(2 * N_CTX)]
    quiet = subprocess.DEVNULL
    with (
        subprocess.Popen(ours, stdout=subprocess.PIPE, text=True, env=env) as mine,
        subprocess.Popen(theirs, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True) as other,
    ):
        assert mine.stdout is not None and other.stdout is not None and other.stdin is not None
        yield Pair(json.loads(mine.stdout.readline())["url"], other.stdout.readline().strip())
        other.stdin.close()
        mine.terminate()


QUESTIONS: list[Any] = [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of France?"}],
    [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Which colour has the sky?"}],
    [
        {"role": "system", "content": "You are kind."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "And what"}, {"type": "text", "text": "is that of Italy?"}],
        },
    ],
]


@pytest.mark.parametrize("messages", QUESTIONS)
def test_prompt_text_and_reason_are_the_same(pair: Pair, messages: Any) -> None:
    body = {"messages": messages, "temperature": 0, "max_tokens": 12}
    (status, ours), (their_status, theirs) = pair.ask(CHAT, body)
    assert status == their_status == 200
    assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]
    mine, other = ours["choices"][0], theirs["choices"][0]
    assert mine["message"]["content"] == other["message"]["content"]
    assert mine["finish_reason"] == other["finish_reason"]
    assert set(ours["timings"]) >= {"cache_n", "prompt_n", "prompt_ms", "predicted_n", "predicted_ms"}
    assert set(theirs["timings"]) >= {"cache_n", "prompt_n", "prompt_ms", "predicted_n", "predicted_ms"}


def test_a_stream_has_the_same_parts_in_the_same_order(pair: Pair) -> None:
    body = {
        "messages": QUESTIONS[0],
        "temperature": 0,
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }

    def shape(lines: list[str]) -> list[str]:
        parts = []
        for line in lines:
            if line == "[DONE]":
                parts.append("done")
                continue
            chunk = json.loads(line)
            if not chunk["choices"]:
                parts.append("usage")
                continue
            choice = chunk["choices"][0]
            delta = choice["delta"]
            parts.append("role" if "role" in delta else "text" if delta.get("content") else f"end {choice['finish_reason']}")
        return list(dict.fromkeys(parts))

    (_, ours), (_, theirs) = pair.ask(CHAT, body)
    assert shape(ours) == shape(theirs) == ["role", "text", "end length", "usage", "done"]


def test_likelihoods_of_tokens_are_close(pair: Pair) -> None:
    body = {"messages": QUESTIONS[0], "temperature": 0, "max_tokens": 4, "logprobs": True, "top_logprobs": 3}
    (_, ours), (_, theirs) = pair.ask(CHAT, body)
    mine = ours["choices"][0]["logprobs"]["content"]
    other = theirs["choices"][0]["logprobs"]["content"]
    assert [token["token"] for token in mine] == [token["token"] for token in other]
    for one, two in zip(mine, other, strict=True):
        assert one["bytes"] == two["bytes"]
        assert one["logprob"] == pytest.approx(two["logprob"], abs=0.2)  # other kernels, other bits
        assert set(one["top_logprobs"][0]) <= {*two["top_logprobs"][0], "id"}


def test_a_completion_is_the_same(pair: Pair) -> None:
    (_, ours), (_, theirs) = pair.ask(
        "/v1/completions", {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 5}
    )
    assert ours["choices"][0]["text"] == theirs["choices"][0]["text"]
    assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]


def test_tokens_are_the_same(pair: Pair) -> None:
    text = "Grüße, 世界! <|im_end|> x = {1: 'a'}\n\n\tend"
    for special in (True, False):
        (_, ours), (_, theirs) = pair.ask("/tokenize", {"content": text, "parse_special": special})
        assert ours["tokens"] == theirs["tokens"]
    (_, back), (_, their_back) = pair.ask("/detokenize", {"tokens": ours["tokens"]})
    assert back["content"] == their_back["content"] == text


def test_a_prompt_that_is_too_long_is_refused_with_the_same_numbers(pair: Pair) -> None:
    system = {"role": "system", "content": "Be brief."}  # edge and the template differ where there is none
    body = {"messages": [system, {"role": "user", "content": "word " * (N_CTX + 100)}], "max_tokens": 1}
    (status, ours), (their_status, theirs) = pair.ask(CHAT, body)
    assert status == their_status == 400
    assert ours["error"]["n_prompt_tokens"] == theirs["error"]["n_prompt_tokens"]


def test_anthropics_messages_and_counts_are_the_same(pair: Pair) -> None:
    system, *messages = QUESTIONS[0]
    body = {"model": "", "system": system["content"], "messages": messages, "max_tokens": 12, "temperature": 0}
    (_, ours), (_, theirs) = pair.ask("/v1/messages", body)
    assert ours["content"][0]["text"] == theirs["content"][0]["text"]
    assert ours["stop_reason"] == theirs["stop_reason"]
    (_, ours), (_, theirs) = pair.ask("/v1/messages/count_tokens", body)
    assert ours["input_tokens"] == theirs["input_tokens"]


@pytest.mark.parametrize("body", [b"{", b"[]", {"messages": "hi"}, {}])
def test_both_refuse_what_is_no_request(pair: Pair, body: object) -> None:
    (status, ours), (their_status, theirs) = pair.ask(CHAT, body)
    assert status == 400
    assert their_status >= 400
    assert ours["error"]["message"] and theirs["error"]["message"]


def shape(value: Any) -> Any:
    """Return the fields of a value and their types; a number is a number, whether whole or not."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def missing(theirs: Any, ours: Any, where: str = "") -> list[str]:
    """Return what theirs has and ours has not, or has of another type."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        lacks = [f"{where}.{name}" for name in theirs if name not in ours]
        return lacks + [one for name in theirs if name in ours for one in missing(theirs[name], ours[name], f"{where}.{name}")]
    if isinstance(theirs, list) and isinstance(ours, list) and theirs and ours:
        return missing(theirs[0], ours[0], f"{where}[]")
    return [] if type(theirs) is type(ours) and (isinstance(theirs, list) or theirs == ours) else [f"{where}: {theirs}, {ours}"]


CHAT_BODY: Any = {"messages": QUESTIONS[0], "temperature": 0, "max_tokens": 5}
CLAUDE_BODY: Any = {"model": "", "messages": QUESTIONS[0][1:], "max_tokens": 5, "temperature": 0}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, CHAT_BODY),
        (CHAT, {**CHAT_BODY, "logprobs": True, "top_logprobs": 2}),
        ("/v1/completions", {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 5}),
        ("/v1/messages", CLAUDE_BODY),
        ("/v1/messages/count_tokens", CLAUDE_BODY),
        ("/v1/responses", {"input": QUESTIONS[0], "max_output_tokens": 5}),
        ("/v1/chat/completions/input_tokens", CHAT_BODY),
        ("/tokenize", {"content": "one two", "with_pieces": True}),
    ],
)
def test_answers_have_the_fields_that_llama_cpps_have(pair: Pair, path: str, body: Any) -> None:
    (status, ours), (their_status, theirs) = pair.ask(path, body)
    assert status == their_status == 200
    lacking = missing(shape(theirs), shape(ours))
    lacking = [one for one in lacking if not one.endswith(("[].id", ".completed_at: number, NoneType"))]
    assert lacking == []  # but ids of tokens, and the time of completion of a reply that was cut off


def test_as_many_tokens_are_cached(pair: Pair) -> None:
    for text in ("1 2 3 4 5 6", "1 2 3 4 5 6", "1 2 3 4 5 9", "1 2 3 9 9 9"):
        messages = [{"role": "system", "content": "Count"}, {"role": "user", "content": text}]
        (_, ours), (_, theirs) = pair.ask(CHAT, {"messages": messages, "max_tokens": 2})
        assert ours["usage"]["prompt_tokens"] == theirs["usage"]["prompt_tokens"]
    assert ours["usage"]["prompt_tokens_details"] == theirs["usage"]["prompt_tokens_details"]


@pytest.mark.parametrize("field", ["json_schema", "grammar"])
def test_a_form_gives_the_same_answer(pair: Pair, field: str) -> None:
    rule = {"json_schema": {"enum": ["Paris", "Rome"]}, "grammar": 'root ::= "Paris" | "Rome"'}[field]
    (status, ours), (their_status, theirs) = pair.ask(CHAT, {**CHAT_BODY, "max_tokens": 20, field: rule})
    assert status == their_status == 200
    assert ours["choices"][0]["message"]["content"].strip('"') in ("Paris", "Rome")
    assert theirs["choices"][0]["message"]["content"].strip('"') in ("Paris", "Rome")
