"""The call styles of the official clients that the other tests do not use, in their strict validation, sync and async."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import ollama
import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_async_tool, beta_tool
from openai import AsyncOpenAI, OpenAI, pydantic_function_tool
from pydantic import BaseModel, ConfigDict, Field

from edge.backends.fake import default_answer
from tests.serving import Serving, serving

HI: Any = [{"role": "user", "content": "hi"}]
SAID = default_answer("hi")
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


class Digit(BaseModel):
    """A digit."""

    model_config = ConfigDict(extra="forbid")
    n: int = Field(ge=0, le=9)


class Flag(BaseModel):
    """A flag: Anthropic's client leaves bounds of numbers out of a schema."""

    model_config = ConfigDict(extra="forbid")
    on: bool


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    with serving(script={"weather?": CALL}, n_ctx=8192) as server:
        yield server


@pytest.fixture
async def asked(running: Serving) -> AsyncIterator[AsyncOpenAI]:
    made = AsyncOpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0, _strict_response_validation=True)
    async with made:
        yield made


@pytest.fixture
def claude(running: Serving) -> Iterator[Anthropic]:
    with Anthropic(base_url=running.url, api_key="x", max_retries=0, _strict_response_validation=True) as made:
        yield made


@pytest.fixture
async def async_claude(running: Serving) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=running.url, api_key="x", max_retries=0, _strict_response_validation=True) as made:
        yield made


def test_openai_raw_and_streaming_responses(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=HI)
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.parse().choices[0].message.content == SAID
    with client.chat.completions.with_streaming_response.create(model="tiny", messages=HI) as response:
        assert json.loads("".join(response.iter_text()))["choices"][0]["message"]["content"] == SAID


def test_openai_streams_typed_answers_and_tools(client: OpenAI) -> None:
    ask: Any = {"model": "tiny", "messages": HI, "response_format": Digit, "max_tokens": 50}
    with client.chat.completions.stream(**ask) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0].message
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(final.parsed, Digit)
    weather: Any = [{"role": "user", "content": "weather?"}]
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tools: Any = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    with client.chat.completions.stream(model="tiny", messages=weather, tools=tools, max_tokens=200) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [(event.name, json.loads(event.arguments)) for event in done] == [("weather", {"city": "Paris"})]


def test_openai_makes_a_model_call_a_typed_tool(client: OpenAI) -> None:
    reply = client.chat.completions.parse(
        model="tiny", messages=HI, tools=[pydantic_function_tool(Digit)], tool_choice="required", max_tokens=200
    )
    (call,) = reply.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Digit)


def test_openai_counts_tokens(client: OpenAI, running: Serving) -> None:
    counted = client.responses.input_tokens.count(model="tiny", input="hi").input_tokens
    assert counted == client.chat.completions.create(model="tiny", messages=HI, max_tokens=1).usage.prompt_tokens  # type: ignore[union-attr]
    assert running.post("/v1/chat/completions/input_tokens", {"messages": HI})[2]["input_tokens"] == counted


async def test_openai_async(asked: AsyncOpenAI) -> None:
    assert [model.id async for model in asked.models.list()] == ["tiny"]
    assert (await asked.models.retrieve("tiny")).id == "tiny"
    assert (await asked.completions.create(model="tiny", prompt="Once", max_tokens=3)).choices[0].finish_reason == "length"
    async with asked.chat.completions.stream(model="tiny", messages=HI) as stream:
        assert (await stream.get_final_completion()).choices[0].message.content == SAID
    parsed = await asked.chat.completions.parse(model="tiny", messages=HI, response_format=Digit, max_tokens=50)
    assert isinstance(parsed.choices[0].message.parsed, Digit)
    raw = await asked.chat.completions.with_raw_response.create(model="tiny", messages=HI)
    assert raw.parse().choices[0].message.content == SAID
    assert (await asked.responses.create(model="tiny", input="hi")).output_text == SAID
    events = [event.type async for event in await asked.responses.create(model="tiny", input="hi", stream=True)]
    assert (events[0], events[-1]) == ("response.created", "response.completed")
    async with asked.responses.stream(model="tiny", input="hi") as responding:
        assert (await responding.get_final_response()).output_text == SAID
    typed = await asked.responses.parse(model="tiny", input="hi", text_format=Digit, max_output_tokens=50)
    assert isinstance(typed.output_parsed, Digit)
    assert (await asked.responses.input_tokens.count(model="tiny", input="hi")).input_tokens > 0


def test_openai_finds_the_server_without_v1(running: Serving) -> None:
    with OpenAI(base_url=running.url, api_key="x", max_retries=0, _strict_response_validation=True) as made:
        assert made.chat.completions.create(model="tiny", messages=HI).choices[0].message.content == SAID
        assert made.responses.create(model="tiny", input="hi").output_text == SAID
        assert [model.id for model in made.models.list()] == ["tiny"]


def test_anthropic_typed_answers_models_and_raw_responses(claude: Anthropic) -> None:
    ask: Any = {"model": "tiny", "messages": HI, "max_tokens": 50}
    assert isinstance(claude.messages.parse(**ask, output_format=Flag).parsed_output, Flag)
    with claude.messages.stream(**ask, output_format=Flag) as stream:
        assert isinstance(stream.get_final_message().parsed_output, Flag)
    assert [model.id for model in claude.models.list()] == ["tiny"]
    assert claude.models.retrieve("tiny").display_name == "tiny"
    raw = claude.messages.with_raw_response.create(**ask)
    assert raw.headers["x-request-id"].startswith("req_")
    text = "".join(event.delta.text for event in claude.messages.create(**ask, stream=True) if is_text(event))
    assert text == raw.parse().content[0].text  # type: ignore[union-attr]


def is_text(event: Any) -> bool:
    return event.type == "content_block_delta" and event.delta.type == "text_delta"


def test_anthropic_runs_tools(claude: Anthropic) -> None:
    told: list[str] = []

    @beta_tool
    def weather(city: str) -> str:
        """Give the weather of a city."""
        told.append(city)
        return "sunny"

    ask: Any = {"model": "tiny", "messages": [{"role": "user", "content": "weather?"}], "max_tokens": 200}
    runner = claude.beta.messages.tool_runner(**ask, tools=[weather], max_iterations=2)
    assert [message.stop_reason for message in runner] == ["tool_use", "end_turn"]
    assert told[0] == "Paris"


async def test_anthropic_async(async_claude: AsyncAnthropic) -> None:
    ask: Any = {"model": "tiny", "messages": HI, "max_tokens": 500}
    async with async_claude.messages.stream(**ask) as stream:
        assert "".join([text async for text in stream.text_stream]) == SAID
    events = [event async for event in await async_claude.messages.create(**ask, stream=True)]
    assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
    assert (await async_claude.messages.count_tokens(model="tiny", messages=HI)).input_tokens > 0
    assert isinstance((await async_claude.messages.parse(**ask, output_format=Flag)).parsed_output, Flag)
    assert [model.id async for model in async_claude.models.list()] == ["tiny"]

    @beta_async_tool
    async def weather(city: str) -> str:
        """Give the weather of a city."""
        return f"sunny in {city}"

    runner = async_claude.beta.messages.tool_runner(
        model="tiny", messages=[{"role": "user", "content": "weather?"}], max_tokens=200, tools=[weather], max_iterations=1
    )
    assert [message.stop_reason async for message in runner] == ["tool_use"]


async def test_ollama_async(running: Serving) -> None:
    def weather(city: str) -> str:
        """Give the weather of a city."""
        return city

    async with ollama.AsyncClient(host=running.url) as client:
        await check_ollama(client, weather)


async def check_ollama(client: ollama.AsyncClient, weather: Callable[[str], str]) -> None:
    assert (await client.chat("tiny", HI)).message.content == SAID
    assert "".join([part.message.content or "" async for part in await client.chat("tiny", HI, stream=True)]) == SAID
    assert (await client.generate("tiny", "hi")).response == SAID
    assert "".join([part.response async for part in await client.generate("tiny", "hi", stream=True)]) == SAID
    called = await client.chat("tiny", [{"role": "user", "content": "weather?"}], tools=[weather])
    assert [call.function.arguments for call in called.message.tool_calls or []] == [{"city": "Paris"}]
    typed = await client.chat("tiny", HI, format=Digit.model_json_schema(), options={"num_predict": 50})
    assert isinstance(Digit.model_validate_json(typed.message.content or ""), Digit)
    assert [model.model for model in (await client.list()).models] == ["tiny"]
    assert [model.model for model in (await client.ps()).models] == ["tiny"]
    assert (await client.show("tiny")).capabilities
    assert [len(vector) for vector in (await client.embed("tiny", ["hi", "you"])).embeddings] == [8, 8]
