"""Anthropic's protocol, asked by Anthropic's own client in its strict mode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic

from edge.backends.fake import default_answer
from tests.serving import Serving, serving

HI: Any = [{"role": "user", "content": "hi there"}]


@pytest.fixture
def client(running: Serving) -> Iterator[Anthropic]:
    with Anthropic(base_url=running.url, api_key="none", max_retries=0, _strict_response_validation=True) as made:
        yield made


def test_a_message_has_text_reason_and_usage(client: Anthropic) -> None:
    message = client.messages.create(model="tiny", max_tokens=500, messages=HI)
    (block,) = message.content
    assert (block.type, block.text) == ("text", default_answer("hi there"))
    assert (message.role, message.model, message.stop_reason, message.stop_sequence) == ("assistant", "tiny", "end_turn", None)
    assert message.usage.output_tokens == len(default_answer("hi there"))


def test_cached_tokens_are_no_input(client: Anthropic) -> None:
    ask: Any = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "what is cached"}]}
    first, again = client.messages.create(**ask).usage, client.messages.create(**ask).usage
    assert again.cache_read_input_tokens
    assert again.input_tokens == 1
    assert first.input_tokens + (first.cache_read_input_tokens or 0) == 1 + again.cache_read_input_tokens
    counted = client.messages.count_tokens(model="tiny", messages=ask["messages"])
    assert counted.input_tokens == 1 + again.cache_read_input_tokens


def test_a_stream_is_the_same_message(client: Anthropic) -> None:
    whole = client.messages.create(model="tiny", max_tokens=500, messages=HI)
    with client.messages.stream(model="tiny", max_tokens=500, messages=HI) as stream:
        events = list(stream)
        streamed = stream.get_final_message()
    assert streamed.content[0].text == whole.content[0].text  # type: ignore[union-attr]
    assert (streamed.stop_reason, streamed.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    kinds = [event.type for event in events if event.type not in ("text",)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    start: Any = events[0]
    assert start.message.usage.input_tokens + start.message.usage.cache_read_input_tokens == (
        streamed.usage.input_tokens + (streamed.usage.cache_read_input_tokens or 0)
    )


def test_the_input_tokens_are_known_at_the_start_and_do_not_change(running: Serving) -> None:
    for content in ("what has never been asked here", "what has never been asked here!"):
        body = {"model": "tiny", "max_tokens": 2, "stream": True, "messages": [{"role": "user", "content": content}]}
        _, _, answer = running.post("/v1/messages", body)
        data = [json.loads(line[6:]) for line in answer.decode().splitlines() if line.startswith("data: ")]
        start, end = data[0]["message"]["usage"], data[-2]["usage"]
        counts = ("input_tokens", "cache_read_input_tokens")
        assert [start[name] for name in counts] == [end[name] for name in counts]
        assert start["input_tokens"] > 0


async def test_the_async_client(running: Serving) -> None:
    async with AsyncAnthropic(base_url=running.url, api_key="x", _strict_response_validation=True) as client:
        async with client.messages.stream(model="tiny", max_tokens=500, messages=HI) as stream:
            text = "".join([piece async for piece in stream.text_stream])
        assert text == default_answer("hi there")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"max_tokens": 3}, "max_tokens"), ({"stop_sequences": ["- words"]}, "stop_sequence")],
)
def test_the_reason_of_the_end(client: Anthropic, fields: dict[str, Any], reason: str) -> None:
    ask: Any = {"max_tokens": 500, **fields}
    message = client.messages.create(model="tiny", messages=HI, **ask)
    assert message.stop_reason == reason
    assert message.stop_sequence == ("- words" if reason == "stop_sequence" else None)


def test_a_full_window_is_named() -> None:
    with serving(script=lambda _: " ".join(map(str, range(10_000)))) as server:
        message = Anthropic(base_url=server.url, api_key="x").messages.create(model="tiny", max_tokens=5000, messages=HI)
        assert message.stop_reason == "model_context_window_exceeded"


def test_blocks_tools_and_thinking_of_earlier_turns_are_read(client: Anthropic) -> None:
    messages: Any = [
        {"role": "user", "content": [{"type": "text", "text": "weather?", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "I look"},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "and now"},
            ],
        },
    ]
    message = client.messages.create(model="tiny", max_tokens=500, messages=messages, system="Be brief")
    assert "and now" in message.content[0].text  # type: ignore[union-attr]


def test_a_system_block_that_changes_with_every_request_is_left_out(client: Anthropic, running: Serving) -> None:
    before = running.service.counters.stripped

    def ask(number: int) -> Any:
        changing = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={number};"}
        system: Any = [changing, {"type": "text", "text": "You are a long and constant system prompt."}]
        return client.messages.create(model="tiny", max_tokens=1, messages=HI, system=system).usage

    ask(1)
    assert ask(2).input_tokens == 1
    assert running.service.counters.stripped == before + 2


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": ""}}]}]},
        {"messages": [*HI, {"role": "assistant", "content": "I"}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"system": [{"type": "image", "source": {"type": "base64", "data": ""}}]},
        {"system": [{"type": "text"}]},
        {"tool_choice": {"type": "any"}},
        {"max_tokens": 0},
        {"max_tokens": None},
        {"temperature": -1},
        {"stop_sequences": [""]},
        {"messages": [{"role": "user", "content": "x" * 5000}]},
    ],
)
def test_what_is_wrong_is_400_in_the_protocols_form(running: Serving, fields: dict[str, Any]) -> None:
    status, _, body = running.post("/v1/messages", {"max_tokens": 5, "messages": HI, **fields})
    assert status == 400
    assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    assert body["request_id"].startswith("req_")


@pytest.mark.parametrize("stops", [[""], ["x"] * 5, ["x" * 300]])
def test_an_error_names_the_field_as_the_protocol_does(running: Serving, stops: list[str]) -> None:
    _, _, body = running.post("/v1/messages", {"max_tokens": 5, "messages": HI, "stop_sequences": stops})
    assert "stop_sequences" in body["error"]["message"]


def test_errors_raise_the_clients_own(client: Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="tiny"):
        client.messages.create(model="claude", max_tokens=5, messages=HI)


def test_too_many_requests_are_529(monkeypatch: pytest.MonkeyPatch, running: Serving) -> None:
    from edge_serve import limits

    monkeypatch.setattr(limits, "REQUESTS", 0)
    status, headers, body = running.post("/v1/messages", {"max_tokens": 5, "messages": HI})
    assert (status, body["error"]["type"]) == (529, "overloaded_error")
    assert int(headers["retry-after"]) >= 1
