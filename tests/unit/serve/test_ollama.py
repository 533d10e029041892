"""Ollama's protocol, asked by Ollama's own client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from edge.backends.fake import default_answer
from tests.serving import Serving, serving

HI: Any = [{"role": "user", "content": "hi there"}]
CALL = '{"name": "weather", "arguments": {"city": "Paris"}}'


@pytest.fixture
def client(running: Serving) -> Iterator[ollama.Client]:
    with ollama.Client(host=running.url) as made:
        yield made


def test_a_chat_streamed_or_not(client: ollama.Client) -> None:
    whole = client.chat(model="tiny", messages=HI, options={"temperature": 0})
    assert whole.message.content == default_answer("hi there")
    assert (whole.model, whole.done, whole.done_reason) == ("tiny", True, "stop")
    assert whole.eval_count == len(default_answer("hi there"))
    assert whole.total_duration and whole.eval_duration and whole.prompt_eval_count
    *chunks, last = client.chat(model="tiny:latest", messages=HI, options={"temperature": 0}, stream=True)
    assert "".join(chunk.message.content or "" for chunk in chunks) == whole.message.content
    assert (last.done, last.message.content, last.eval_count) == (True, "", whole.eval_count)


def test_a_prompt_streamed_or_not(client: ollama.Client) -> None:
    whole = client.generate(model="tiny", prompt="hi there", system="Be brief")
    assert whole.response == default_answer("hi there")
    streamed = client.generate(model="tiny", prompt="hi there", system="Be brief", stream=True)
    assert "".join(chunk.response for chunk in streamed) == whole.response


def test_a_raw_prompt_has_no_template(client: ollama.Client) -> None:
    raw = client.generate(model="tiny", prompt="hi", raw=True, options={"num_predict": 3})
    assert (raw.prompt_eval_count, raw.eval_count, raw.done_reason) == (2, 3, "length")


async def test_the_async_client(running: Serving) -> None:
    async with ollama.AsyncClient(host=running.url) as client:
        assert (await client.chat(model="tiny", messages=HI)).message.content == default_answer("hi there")
        stream = await client.generate(model="tiny", prompt="hi there", stream=True)
        assert "".join([chunk.response async for chunk in stream]) == default_answer("hi there")


def test_models_are_listed_and_described(client: ollama.Client) -> None:
    assert [model.model for model in client.list().models] == ["tiny", "other"]
    shown = client.show("tiny")
    assert "completion" in (shown.capabilities or []) and "<|im_start|>" in (shown.template or "")
    assert "tiny" in [model.model for model in client.ps().models]
    with pytest.raises(ollama.ResponseError, match="tiny, other") as caught:
        client.show("llama9")
    assert caught.value.status_code == 404


def test_a_request_without_a_prompt_loads_and_unloads(client: ollama.Client, running: Serving) -> None:
    assert client.generate(model="other", prompt="").done_reason == "load"
    assert "other" in [model.name for model in running.service.runtime.loaded]
    assert client.generate(model="other", prompt="", keep_alive=0).done_reason == "unload"
    assert "other" not in [model.name for model in running.service.runtime.loaded]
    assert client.chat(model="other", messages=[]).done_reason == "load"


def test_unloading_does_not_keep_others_waiting(running: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    monkeypatch.setattr(running.service.runtime, "unload", lambda *_, **__: threads.append(threading.current_thread().name))
    assert running.post("/api/generate", {"model": "tiny", "keep_alive": 0})[0] == 200
    assert threads and threads != ["server"]


def test_tools_forms_and_options() -> None:
    answers = {"weather?": f"I look.\n<tool_call>\n{CALL}\n</tool_call>"}
    tool: Any = {
        "type": "function",
        "function": {"name": "weather", "description": "of a city", "parameters": {"type": "object"}},
    }
    with serving(script=answers, n_ctx=8192) as server, ollama.Client(host=server.url) as client:
        message = client.chat(model="tiny", messages=[{"role": "user", "content": "weather?"}], tools=[tool]).message
        assert [(call.function.name, call.function.arguments) for call in message.tool_calls or []] == [
            ("weather", {"city": "Paris"})
        ]
        stream = client.chat(model="tiny", messages=[{"role": "user", "content": "weather?"}], tools=[tool], stream=True)
        assert [call.function.name for chunk in stream for call in chunk.message.tool_calls or []] == ["weather"]
        schema: Any = {
            "type": "object",
            "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
            "required": ["n"],
        }
        reply = client.chat(model="tiny", messages=HI, format=schema, options={"num_predict": 100, "seed": 1})
        assert isinstance(json.loads(reply.message.content or "")["n"], int)
        history: Any = [*HI, message, {"role": "tool", "content": "sunny", "tool_name": "weather"}, *HI]
        assert client.chat(model="tiny", messages=history).message.content == default_answer("hi there")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["AA"]}]}, 400),
        ("/api/chat", {"messages": [{"role": "robot", "content": "x"}]}, 400),
        ("/api/chat", {"messages": [{"role": "user", "content": "x" * 5000}]}, 400),
        ("/api/generate", {"prompt": "x", "suffix": "y"}, 400),
        ("/api/generate", {"prompt": "x", "options": {"top_p": 2}}, 400),
        ("/api/generate", {"prompt": "x", "options": {"stop": [None]}}, 400),
        ("/api/generate", {"prompt": "x", "options": {"num_predict": "many"}}, 400),
        ("/api/generate", {"top_logprobs": 21}, 400),  # also where no prompt asks for a model to be loaded
        ("/api/chat", {"top_logprobs": 21}, 400),
        ("/api/chat", {"options": {"top_p": 2}}, 400),
        ("/api/generate", {"prompt": "x", "model": "llama9"}, 404),
        ("/api/embed", {"input": "x", "model": "llama9"}, 404),
        ("/api/pull", {"model": "x"}, 501),
    ],
)
def test_what_is_wrong_is_said_in_the_protocols_form(running: Serving, path: str, body: dict[str, Any], status: int) -> None:
    found, _, answer = running.post(path, body)
    assert (found, list(answer)) == (status, ["error"])


def test_a_body_needs_no_type_but_an_origin_is_refused(running: Serving) -> None:
    body = {"prompt": "hi", "stream": False, "options": {"num_predict": 1, "num_ctx": 99}}
    status, headers, _ = running.post("/api/generate", body, {"Content-Type": "application/x-www-form-urlencoded"})
    assert (status, headers["x-edge-ignored"]) == (200, "options.num_ctx")
    assert running.post("/api/generate", body, {"Content-Type": "text/plain", "Origin": "http://evil.example"})[0] == 403


def test_logprobs_of_a_chat_and_a_prompt_streamed_or_not(client: ollama.Client) -> None:
    options = {"num_predict": 5, "temperature": 0}
    chat = client.chat("tiny", messages=[{"role": "user", "content": "Hi"}], logprobs=True, top_logprobs=2, options=options)
    found = chat.logprobs
    assert found is not None and "".join(one.token for one in found) == chat.message.content
    assert all(one.logprob <= 0 and one.top_logprobs is not None and len(one.top_logprobs) == 2 for one in found)
    assert found[0].top_logprobs[0].token == found[0].token, "greedy"
    streamed = list(
        client.chat("tiny", messages=[{"role": "user", "content": "Hi"}], logprobs=True, stream=True, options=options)
    )
    assert [one.token for part in streamed for one in part.logprobs or ()] == [one.token for one in found]
    made = client.generate("tiny", "Hi", logprobs=True, options=options)
    assert [one.token for one in made.logprobs or ()] == [one.token for one in found]
    assert client.chat("tiny", messages=[{"role": "user", "content": "Hi"}], options=options).logprobs is None
    with pytest.raises(ollama.ResponseError, match="top_logprobs"):
        client.generate("tiny", "Hi", top_logprobs=3, options=options)
