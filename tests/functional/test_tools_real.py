"""Tools with the real model: control tokens as markers, and a call that it is made to write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import edge
from edge import Message, Settings, Tool
from edge.assistant import Assistant
from edge.prompt.options import PromptOptions
from edge.prompt.reasoning import Thinking

pytestmark = pytest.mark.model

WEATHER = Tool(
    "weather",
    "Tell the weather of a city.",
    {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"]},
    function=lambda city, days: f"Rain in {city} for {days} days",
    needs_approval=False,
)


@pytest.fixture(scope="module")
def ai(model_path: Path) -> Iterator[Assistant]:
    with edge.load(str(model_path), settings=Settings(), cache="memory", context=2048) as assistant:
        yield assistant


def test_a_special_token_that_marks_a_thought_is_seen_and_no_other(ai: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    """This model does not think; two of its special tokens stand for the words of one that does."""
    prompting = ai._prompting
    (opening,) = prompting.tokenize("<repo_name>", parse_special=True)
    assert ai.generate("Hi", logit_bias={opening: 1000.0}, max_tokens=2).wait() == "", "a special token has no text"
    monkeypatch.setitem(vars(prompting.template), "thinking", Thinking("<repo_name>", "<file_sep>"))
    assert opening in prompting.markers(PromptOptions())
    reply = ai.generate("Hi", logit_bias={opening: 1000.0}, max_tokens=2)
    assert reply.wait() == "" and reply.reasoning == "<repo_name>", "the second one is part of the thought"


def test_it_is_made_to_call_a_tool_and_goes_on_with_the_result(ai: Assistant) -> None:
    reply = ai.generate(
        "Will it rain in Paris in the next 3 days?", tools=[WEATHER], tool_format="prompt", tool_choice="weather",
        temperature=0, max_tokens=60,
    )  # fmt: skip
    text = reply.wait()
    (result,) = [event for event in reply.events() if event.kind == "tool_result"]
    assert result.call.name == "weather" and isinstance(result.call.arguments["days"], int)
    assert result.text.startswith("Rain in ") and not result.is_error
    assert text and reply.finish_reason in ("stop", "length")


def test_a_call_that_it_makes_by_itself_keeps_the_schema(ai: Assistant) -> None:
    """At a temperature at which it would write anything, in a reply that goes on where a call was opened."""
    tool = Tool("weather", "Tell the weather.", {"properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]})
    history = [Message("user", "Will it rain in Rome?"), Message("assistant", "<tool_call>")]
    opened = ai.conversation(tools=[tool], tool_format="prompt", history=history)
    text = opened.resume(temperature=5.0, seed=1, max_tokens=40, top_k=0, top_p=1.0, min_p=0.0).wait()
    call = json.loads(text.partition("</tool_call>")[0])
    assert call["name"] == "weather" and call["arguments"]["city"] in ("Paris", "Rome")
