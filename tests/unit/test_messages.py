"""Messages, tools and calls: what cannot be one is refused where it is made."""

from __future__ import annotations

import copy
import pickle

import pytest

import edge
from edge import Message, Tool, ToolCall
from edge.errors import UsageError
from edge.messages import read_message, short_id

WEATHER = Tool("weather", "Tell the weather", {"type": "object", "properties": {"city": {"type": "string"}}})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ToolCall(5), "name of a tool call is text, not int"),
        (lambda: ToolCall(" "), "no name"),
        (lambda: ToolCall("f", [1]), "map names to values, not list"),
        (lambda: ToolCall("f", "[1]"), "map names to values, not list"),
        (lambda: ToolCall("f", "{"), "not JSON"),
        (lambda: ToolCall("f", {"x": object()}), "cannot be written as JSON"),
        (lambda: ToolCall("f", {"x": float("nan")}), "cannot be written as JSON"),
        (lambda: ToolCall("f", "{}", 7), "id of a tool call is text"),
        (lambda: Tool("no spaces"), "cannot have the name"),
        (lambda: Tool(None), "cannot have the name"),
        (lambda: Tool("f", None), "description of f is text"),
        (lambda: Tool("f", "", {"type": "string"}), "JSON Schema of an object"),
        (lambda: Tool("f", "", {"properties": []}), "properties of f"),
        (lambda: Tool("f", "", {"properties": {"x": {1, 2}}}), "cannot be written as JSON"),
        (lambda: Tool("f", function="g"), "cannot be called"),
        (lambda: Message("assistant", "", tool_calls=[{"name": "f"}]), "list of edge.ToolCall"),
        (lambda: Message("assistant", "", tool_calls=ToolCall("f")), "list of edge.ToolCall"),
        (lambda: Message("user", "", tool_calls=[ToolCall("f")]), "role user calls no tools"),
        (lambda: Message("user", "", reasoning="hm"), "has no reasoning"),
        (lambda: Message("assistant", "", reasoning=None), "reasoning of a message is text"),
        (lambda: Message("assistant", "", tool_call_id="a"), "no result of a call"),
        (lambda: Message("tool", "", tool_call_id=5), "tool_call_id of a message is text"),
        (lambda: Message("assistant", None), "content of a message is text"),
    ],
)
def test_what_cannot_be_one_is_refused(make, words):
    with pytest.raises(UsageError, match=words) as caught:
        make()
    assert caught.value.hint


def test_arguments_are_json_values_of_their_own():
    given = {"city": "Paris", "days": (1, 2)}
    call = ToolCall("weather", given)
    given["city"] = "Rome"
    assert call.arguments == {"city": "Paris", "days": [1, 2]}
    assert ToolCall("weather", call.json) == call
    assert ToolCall("weather", "").arguments == {}


def test_they_are_values():
    call = ToolCall("weather", {"city": "Paris"}, "1")
    message = Message("assistant", "", tool_calls=[call], reasoning="hm")
    for value in (call, WEATHER, message):
        assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == value
        assert hash(value) == hash(copy.deepcopy(value))
    assert ToolCall("weather", {"city": "Rome"}, "1") != call
    assert edge.Tool is Tool


def test_a_developer_speaks_as_the_system():
    assert Message("developer", "Be brief.") == Message("system", "Be brief.")


def test_ids_are_short_for_templates_that_want_them_so():
    assert short_id("a1B2c3D4e") == "a1B2c3D4e"
    for id in ("call_123", "", "\ud800", "ÄÖÜabcdef"):
        assert len(short_id(id)) == 9 and short_id(id).isalnum() and short_id(id).isascii()
        assert short_id(id) == short_id(id)
    assert short_id("call_1") != short_id("call_2")


def test_a_dict_is_read_as_the_message_that_it_stands_for() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    expected = Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Bonn"}, "c1"),))
    assert read_message({"role": "assistant", "content": None, "tool_calls": [call]}) == expected
    plain = {"name": "weather", "arguments": {"city": "Bonn"}, "id": "c1"}
    assert read_message({"role": "assistant", "tool_calls": [plain], "name": None}) == expected
    assert read_message({"role": "tool", "content": "rain", "tool_call_id": "c1"}) == Message("tool", "rain", tool_call_id="c1")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_message({"role": "developer", "content": parts}) == Message("system", "ab")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"content": "hi"}, "no role"),
        ({"role": "user", "text": "hi"}, "no key 'text'"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "is no text"),
        ({"role": "user", "content": ["hi"]}, "is no text"),
        ({"role": "user", "content": 5}, "content of a message is text"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, "is no tool call"),
        ({"role": "assistant", "tool_calls": "x"}, "tool_calls is a list"),
        ({"role": "assistant", "tool_calls": [5]}, "tool_calls is a list"),
    ],
)
def test_a_dict_that_is_no_message_says_why(value: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        read_message(value)
    assert caught.value.hint
