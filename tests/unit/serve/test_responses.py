"""OpenAI's responses, asked by its own client in its strict mode."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, Field

from edge.backends.fake import default_answer
from tests.serving import Serving, serving
from tests.unit.serve.test_tools import ANSWERS, PARAMETERS, SCHEMA, THINKER

TOOL: Any = {"type": "function", "name": "weather", "description": "of a city", "parameters": PARAMETERS, "strict": False}


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    with serving(script=ANSWERS, n_ctx=8192) as server:
        yield server


def test_a_response_has_text_and_usage(client: OpenAI) -> None:
    response = client.responses.create(
        model="tiny", input="hi there", instructions="Be brief", temperature=0, metadata={"a": "b"}
    )
    assert response.output_text == default_answer("hi there")
    assert (response.status, response.model, response.metadata, response.instructions) == (
        "completed",
        "tiny",
        {"a": "b"},
        "Be brief",
    )
    assert response.usage is not None
    assert response.usage.output_tokens == len(default_answer("hi there"))
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens
    again = client.responses.create(model="tiny", input="hi there", instructions="Be brief", max_output_tokens=1)
    assert again.usage is not None
    assert again.usage.input_tokens_details.cached_tokens == again.usage.input_tokens - 1


def test_a_stream_is_the_same_response(client: OpenAI) -> None:
    whole = client.responses.create(model="tiny", input="hi there", temperature=0)
    with client.responses.stream(model="tiny", input="hi there", temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


async def test_the_async_client(running: Serving) -> None:
    async with AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", _strict_response_validation=True) as client:
        stream = await client.responses.create(model="tiny", input="hi there", stream=True)
        text = "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        assert text == default_answer("hi there")


def test_a_limit_makes_it_incomplete(client: OpenAI) -> None:
    response = client.responses.create(model="tiny", input="hi", max_output_tokens=2)
    assert response.status == "incomplete"
    assert response.incomplete_details is not None and response.incomplete_details.reason == "max_output_tokens"
    with client.responses.stream(model="tiny", input="hi", max_output_tokens=2) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


def test_calls_go_out_and_results_come_in(client: OpenAI) -> None:
    first = client.responses.create(model="tiny", input="only", tools=[TOOL])
    calls = [item for item in first.output if item.type == "function_call"]
    assert [json.loads(call.arguments)["city"] for call in calls] == ["Paris", "Paris"]
    with client.responses.stream(model="tiny", input="weather?", tools=[TOOL]) as stream:
        streamed = stream.get_final_response()
    assert [item.type for item in streamed.output] == ["message", "function_call"]
    results: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
    items: Any = [{"role": "user", "content": "only"}, *first.output, *results, {"role": "user", "content": "none"}]
    assert client.responses.create(model="tiny", input=items, tools=[TOOL]).output_text == "No tool"


class Number(BaseModel):
    n: int = Field(ge=0, le=9)


def test_a_schema_is_kept(client: OpenAI) -> None:
    parsed = client.responses.parse(model="tiny", input="a number", text_format=Number, max_output_tokens=60).output_parsed
    assert isinstance(parsed, Number)
    form: Any = {"format": {"type": "json_schema", "name": "number", "schema": SCHEMA, "strict": True}}
    text = client.responses.create(model="tiny", input="a number", text=form, max_output_tokens=60).output_text
    assert isinstance(json.loads(text)["n"], int)


def test_thoughts_are_items_of_their_own() -> None:
    with (
        serving(script=lambda _: "<think>\nhm\n</think>\n\nPlainly", n_ctx=4096, chat_template=THINKER) as server,
        OpenAI(base_url=f"{server.url}/v1", api_key="x", _strict_response_validation=True) as client,
    ):
        response = client.responses.create(model="tiny", input="x")
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output_text == "Plainly"
        assert response.usage is not None and response.usage.output_tokens_details.reasoning_tokens == 2
        with client.responses.stream(model="tiny", input="x") as stream:
            assert [item.type for item in stream.get_final_response().output] == ["reasoning", "message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"input": ""},
        {"input": []},
        {"previous_response_id": "resp_1"},
        {"background": True},
        {"tools": [{"type": "web_search"}]},
        {"tool_choice": "sometimes", "tools": [TOOL]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": [{"type": "nonsense"}]},
        {"text": {"format": {"type": "json_schema"}}},
        {"max_output_tokens": 0},
        {"input": "x" * 40_000},
    ],
)
def test_what_cannot_be_done_is_400(running: Serving, fields: dict[str, Any]) -> None:
    status, _, body = running.post("/v1/responses", {"input": "x", **fields})
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")


def test_nothing_is_stored(client: OpenAI) -> None:
    assert client.responses.create(model="tiny", input="x", max_output_tokens=1).model_dump()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


def test_logprobs_of_a_response_streamed_or_not(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "input": "Hi", "max_output_tokens": 6, "temperature": 0}
    include: Any = ["message.output_text.logprobs"]
    made = client.responses.create(**options, include=include, top_logprobs=2)
    (item,) = made.output
    (part,) = item.content  # type: ignore[union-attr]
    assert "".join(one.token for one in part.logprobs) == made.output_text  # type: ignore[union-attr]
    assert all(len(one.top_logprobs) == 2 and one.logprob <= 0 for one in part.logprobs)  # type: ignore[union-attr]
    with client.responses.stream(**options, include=include) as stream:
        events = list(stream)
    told = [one.token for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    assert "".join(told) == made.output_text
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert [one.token for one in done.logprobs] == told
    plain = client.responses.create(**options)
    assert plain.output[0].content[0].logprobs == []  # type: ignore[union-attr]
