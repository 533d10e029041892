"""Tools, forms and thinking over both protocols, with a model that writes by script."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from anthropic import Anthropic
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, Field

from tests.serving import Serving, serving

CALL = '{"name": "weather", "arguments": {"city": "Paris", "text": "a } b"}}'
ANSWERS = {
    "weather?": f"I look.\n<tool_call>\n{CALL}\n</tool_call>",
    "only": f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>",
    "none": "No tool",
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}, "text": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": PARAMETERS}}
CLAUDE_TOOL: Any = {"name": "weather", "description": "of a city", "input_schema": PARAMETERS}
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


def user(text: str) -> Any:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def running() -> Iterator[Serving]:
    with serving(script=ANSWERS, n_ctx=8192) as server:
        yield server


@pytest.fixture
def claude(running: Serving) -> Iterator[Anthropic]:
    with Anthropic(base_url=running.url, api_key="x", max_retries=0, _strict_response_validation=True) as made:
        yield made


@pytest.mark.parametrize(("asked", "text", "n"), [("weather?", "I look.", 1), ("only", None, 2), ("none", "No tool", 0)])
def test_calls_are_the_same_streamed_or_not(client: OpenAI, asked: str, text: str | None, n: int) -> None:
    ask: Any = {"model": "tiny", "messages": user(asked), "tools": [TOOL], "max_tokens": 500}
    choice = client.chat.completions.create(**ask).choices[0]
    calls = choice.message.tool_calls or []
    assert (choice.message.content or "").strip() == (text or "")
    assert choice.message.content is not None or n
    assert [call.function.name for call in calls if call.type == "function"] == ["weather"] * n
    assert all(json.loads(call.function.arguments)["text"] == "a } b" for call in calls if call.type == "function")
    assert len({call.id for call in calls}) == n
    assert choice.finish_reason == ("tool_calls" if n else "stop")
    with client.chat.completions.stream(**ask) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert [call.function.arguments for call in streamed.message.tool_calls or []] == [
        call.function.arguments for call in calls if call.type == "function"
    ]
    assert streamed.finish_reason == choice.finish_reason


def test_a_cut_off_call_is_length(client: OpenAI) -> None:
    ask: Any = {"model": "tiny", "messages": user("weather?"), "tools": [TOOL], "max_tokens": 30}
    assert client.chat.completions.create(**ask).choices[0].finish_reason == "length"


def test_a_result_goes_back_to_the_model(client: OpenAI) -> None:
    first = client.chat.completions.create(model="tiny", messages=user("only"), tools=[TOOL], max_tokens=500)
    message = first.choices[0].message
    results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls or []]
    messages: Any = [*user("only"), message.model_dump(exclude_none=True), *results, *user("none")]
    again = client.chat.completions.create(model="tiny", messages=messages, tools=[TOOL], max_tokens=500)
    assert again.choices[0].message.content == "No tool"


FLAG = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "light"}}])
def test_a_model_is_made_to_call_a_tool(client: OpenAI, choice: Any) -> None:
    tools: Any = [{"type": "function", "function": {"name": "light", "parameters": FLAG}}]
    reply = client.chat.completions.create(
        model="tiny", messages=user("none"), tools=tools, tool_choice=choice, temperature=0, max_tokens=200
    )
    (call,) = reply.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "light"
    assert isinstance(json.loads(call.function.arguments)["on"], bool)


def test_a_tool_whose_call_cannot_be_enforced_is_named(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"x": {"$ref": "#/$defs/none"}}}
    bad: Any = {"type": "function", "function": {"name": "bad", "parameters": schema}}
    with pytest.raises(BadRequestError, match="the tool bad can be enforced"):
        client.chat.completions.create(model="tiny", messages=user("weather?"), tools=[TOOL, bad], tool_choice="required")


def test_claude_is_made_to_call_a_tool(claude: Any) -> None:
    tools: Any = [{"name": "light", "input_schema": FLAG}]
    for choice in ({"type": "any"}, {"type": "tool", "name": "light"}):
        message = claude.messages.create(
            model="tiny", messages=user("none"), tools=tools, tool_choice=choice, max_tokens=200, extra_body={"temperature": 0}
        )
        assert [block.name for block in message.content if block.type == "tool_use"] == ["light"]


def test_tools_that_must_not_be_called_are_not_shown(client: OpenAI) -> None:
    ask: Any = {"model": "tiny", "messages": user("none"), "max_tokens": 5}
    shown = client.chat.completions.create(**ask, tools=[TOOL]).usage
    hidden = client.chat.completions.create(**ask, tools=[TOOL], tool_choice="none").usage
    bare = client.chat.completions.create(**ask).usage
    assert shown and hidden and bare
    assert hidden.prompt_tokens == bare.prompt_tokens < shown.prompt_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "sometimes", "tools": [TOOL]}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "rain"}}, "tools": [TOOL]}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "not a name"}}]}, "tools[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [TOOL, TOOL]}, None),
        ({"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(129)]}, "tools"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "nonsense"}}, "response_format.type"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_regex"),
        ({"grammar": "root ::= ("}, None),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, *user("x")]},
            None,
        ),
    ],
)
def test_what_cannot_be_done_is_400(running: Serving, fields: dict[str, Any], param: str | None) -> None:
    status, _, body = running.post("/v1/chat/completions", {"messages": user("none"), **fields})
    assert status == 400, body
    if param is not None:
        assert body["error"]["param"] == param


class Number(BaseModel):
    n: int = Field(ge=0, le=9)


def test_a_schema_is_kept_in_every_style(client: OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "number", "schema": SCHEMA, "strict": True}}
    ask: Any = {"model": "tiny", "messages": user("a number"), "max_tokens": 40, "seed": 1}
    text = client.chat.completions.create(**ask, response_format=form).choices[0].message.content
    assert isinstance(json.loads(text or "")["n"], int)
    parsed = client.chat.completions.parse(**ask, response_format=Number).choices[0].message.parsed
    assert isinstance(parsed, Number)
    streamed = client.chat.completions.create(**ask, response_format=form, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"guided_regex": "[0-9]{3}"}, r"\d{3}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"grammar": 'root ::= "a" "b"'}, "ab"),
        ({"guided_json": {"type": "integer"}}, r"-?\d+"),
        ({"response_format": {"type": "json_object"}}, r"\{.*"),
    ],
)
def test_other_forms(client: OpenAI, fields: dict[str, Any], pattern: str) -> None:
    import re

    reply = client.chat.completions.create(model="tiny", messages=user("x"), max_tokens=20, seed=1, extra_body=fields)
    assert re.fullmatch(pattern, reply.choices[0].message.content or "", re.DOTALL)


def test_a_schema_that_cannot_be_kept_is_named(client: OpenAI) -> None:
    schema = {**SCHEMA, "unevaluatedProperties": False}
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    with pytest.raises(BadRequestError, match=r"unevaluatedProperties.*set strict to false"):
        client.chat.completions.create(model="tiny", messages=user("x"), response_format=form)


def test_claude_calls_tools(claude: Anthropic) -> None:
    ask: Any = {"model": "tiny", "messages": user("weather?"), "tools": [CLAUDE_TOOL], "max_tokens": 500}
    message = claude.messages.create(**ask)
    text, call = message.content
    assert (text.type, message.stop_reason) == ("text", "tool_use")
    assert call.type == "tool_use" and call.input == {"city": "Paris", "text": "a } b"}
    with claude.messages.stream(**ask) as stream:
        streamed = stream.get_final_message()
    assert [block.type for block in streamed.content] == ["text", "tool_use"]
    assert streamed.content[1].input == call.input  # type: ignore[union-attr]
    assert streamed.stop_reason == "tool_use"
    with_tools = claude.messages.count_tokens(model="tiny", messages=ask["messages"], tools=[CLAUDE_TOOL]).input_tokens
    assert with_tools == message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0)


def test_claude_refuses_tools_of_its_makers(running: Serving) -> None:
    for fields in (
        {"tools": [{"type": "bash_20250124", "name": "bash"}]},
        {"tools": [CLAUDE_TOOL], "tool_choice": {"type": "tool", "name": "rain"}},
    ):
        assert running.post("/v1/messages", {"messages": user("x"), "max_tokens": 5, **fields})[0] == 400


THINKER = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def test_thinking_is_apart_from_the_text() -> None:
    with serving(script=lambda _: "<think>\nhm\n</think>\n\nPlainly", n_ctx=4096, chat_template=THINKER) as server:
        openai = OpenAI(base_url=f"{server.url}/v1", api_key="x", _strict_response_validation=True)
        ask: Any = {"model": "tiny", "messages": user("x"), "max_tokens": 500}
        message: Any = openai.chat.completions.create(**ask).choices[0].message
        assert (message.content.strip(), message.reasoning_content.strip()) == ("Plainly", "hm")
        deltas: list[Any] = [chunk.choices[0].delta for chunk in openai.chat.completions.create(**ask, stream=True)]
        assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas).strip() == "hm"
        assert "".join(delta.content or "" for delta in deltas).strip() == "Plainly"
        claude = Anthropic(base_url=server.url, api_key="x", _strict_response_validation=True)
        thinking: Any = {"type": "enabled", "budget_tokens": 1024}
        blocks = claude.messages.create(**ask, thinking=thinking).content
        assert [block.type for block in blocks] == ["thinking", "text"]
        with claude.messages.stream(**ask, thinking=thinking) as stream:
            assert [block.type for block in stream.get_final_message().content] == ["thinking", "text"]
        assert [block.type for block in claude.messages.create(**ask).content] == ["text"]
