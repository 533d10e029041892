"""Tools that are run, and models that think, on the fake model with the chat template of Qwen 3."""

from __future__ import annotations

import asyncio
import enum
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

import edge
from edge import Message, Tool, ToolCall, events
from edge.arguments import check_tools
from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.constraint import Constraint
from edge.conversation import ConversationStore
from edge.errors import UnsupportedError, UsageError
from edge.request import Request
from edge.tool_runner import ToolLimits, ToolRunner

TEMPLATES = Path(__file__).parents[1] / "fixtures" / "templates"
QWEN = (TEMPLATES / "qwen3.jinja").read_text("utf-8")
QWEN_CODER = (TEMPLATES / "qwen3_coder.jinja").read_text("utf-8")
"""Its calls are not held to a grammar, so they may be wrong."""


@edge.tool
def weather(city: str, days: int = 1) -> str:
    """Tell the weather.

    It knows all cities.

    Args:
        city: name of the city,
            in English.
        days: how many days to look ahead.

    Returns:
        a sentence.
    """
    if city == "Atlantis":
        raise LookupError("no such city")
    return f"{days} day(s) of rain in {city}"


def calls(*rows):
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>" for name, arguments in rows
    )


def result(*texts):
    return "\n".join(f"<tool_response>\n{text}\n</tool_response>" for text in texts)


def load(script, *, template=QWEN, **options):
    return Assistant(FakeBackend(script=script, chat_template=template, n_ctx=16384), **options)


SCRIPT = {
    "Rain?": "Let me look.\n" + calls(("weather", {"city": "Paris", "days": 2})),
    result("2 day(s) of rain in Paris"): "It rains.",
    "Both?": calls(("weather", {"city": "Paris"}), ("weather", {"city": "Rome"})),
    result("1 day(s) of rain in Paris", "1 day(s) of rain in Rome"): "In both.",
}


# -- schemas


def test_a_schema_is_made_of_hints_and_docstring():
    assert weather.name == "weather"
    assert weather.description == "Tell the weather.\n\nIt knows all cities."
    assert weather.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "name of the city, in English."},
            "days": {"type": "integer", "description": "how many days to look ahead.", "default": 1},
        },
        "required": ["city"],
        "additionalProperties": False,
    }
    assert weather("Paris") == weather(city="Paris") == "1 day(s) of rain in Paris"


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


@dataclass
class Place:
    lat: float
    lon: float


def test_richer_types_are_described_and_converted():
    @edge.tool(name="far", description="Look", needs_approval=False)
    def look(
        place: Place,
        unit: Unit = Unit.C,
        kind: Literal["a", "b"] = "a",
        size: Annotated[int, msgspec.Meta(ge=1, le=3)] = 1,
        tags: list[str] | None = None,
    ) -> tuple[Place, Unit]:
        return place, unit

    assert (look.name, look.description, look.needs_approval) == ("far", "Look", False)
    assert look.parameters["properties"]["place"] == {"$ref": "#/$defs/Place"}
    assert look.parameters["$defs"]["Place"]["required"] == ["lat", "lon"]
    assert look.parameters["properties"]["kind"]["enum"] == ["a", "b"]
    assert look(place={"lat": 1, "lon": 2}, unit="fahrenheit") == (Place(1.0, 2.0), Unit.F)
    with pytest.raises(msgspec.ValidationError, match="Expected `int` <= 3"):
        look(place={"lat": 1, "lon": 2}, size=9)


def test_sphinx_docstrings_and_defaults_that_can_change():
    def note(text: str, tags: list[str] = ["x"]):  # noqa: B006
        """Note it.

        :param text: what to note
        """
        return tags

    tool = edge.tool(note)
    assert tool.parameters["properties"]["text"]["description"] == "what to note"
    tool("a").append("y")
    assert tool("a") == ["x"]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: edge.tool(5), "not of int"),
        (lambda: edge.tool(lambda *a: a), "no name that a model could use"),
        (lambda: edge.tool(lambda **k: k), "no name that a model could use"),
        (lambda: check_tools("weather"), "tools is a list"),
        (lambda: check_tools(weather), "tools is a list"),
        (lambda: check_tools([5]), "an edge.Tool or a function"),
        (lambda: check_tools([weather, weather]), "Two tools have the name"),
    ],
)
def test_what_cannot_be_a_tool_is_refused(make, words):
    with pytest.raises(UsageError, match=words) as caught:
        make()
    assert caught.value.hint


def test_a_hint_that_json_cannot_hold_is_refused():
    def bad(x: threading.Thread) -> None: ...

    with pytest.raises(UsageError, match="type that JSON cannot hold"):
        edge.tool(bad)


# -- the loop


def test_a_tool_is_run_and_the_model_goes_on():
    asked = []
    with load(SCRIPT) as ai:
        reply = ai.generate("Rain?", tools=[weather], approve=lambda call: asked.append(call) or True)
        seen = [event for event in reply.events() if event.kind not in ("progress", "notice")]
    (call,) = asked
    assert call == ToolCall("weather", {"city": "Paris", "days": 2}, call.id)
    assert reply.text == "Let me look.\n\nIt rains."
    assert reply.tool_calls == [call] and reply.finish_reason == "stop"
    kinds = [event.kind for event in seen if event.kind != "text"]
    assert kinds == ["tool_call", "tool_result"]
    assert events.ToolResult(call, "2 day(s) of rain in Paris") in seen


def test_calls_side_by_side_run_at_the_same_time():
    meeting = threading.Barrier(2, timeout=20)

    @edge.tool
    def weather(city: str) -> str:
        meeting.wait()  # passes only if the other call runs as well
        return f"1 day(s) of rain in {city}"

    with load(SCRIPT) as ai:
        assert ai.generate("Both?", tools=[weather], approve="always").wait() == "In both."


def test_it_is_all_in_the_conversation_and_the_next_turn_knows_it():
    store = ConversationStore(None)
    script = {**SCRIPT, "Thanks": "Welcome."}
    with load(script, store=store) as ai:
        talk = ai.conversation(tools=[weather], approve="always")
        reply = talk.send("Rain?")
        reply.wait()
        nodes = talk.messages
        assert [node.role for node in nodes] == ["user", "assistant", "tool", "assistant"]
        assert nodes[1].tool_calls == tuple(reply.tool_calls) and nodes[1].content == "Let me look."
        assert nodes[2].message() == Message(
            "tool", "2 day(s) of rain in Paris", "weather", tool_call_id=reply.tool_calls[0].id
        )
        assert nodes[3].content == "It rains." and reply.node == nodes[3]
        assert [node.status for node in nodes] == ["complete"] * 4
        assert talk.send("Thanks").wait() == "Welcome."
        assert talk.regenerate().wait() == "Welcome."


@pytest.mark.parametrize(
    ("approve", "words"),
    [
        (None, "nobody can be asked"),
        (lambda call: False, "did not allow"),
        (lambda call: None, "did not allow"),
        (lambda call: "Not on a Sunday.", "Not on a Sunday."),
        (lambda call: 1 / 0, "division by zero"),
    ],
)
def test_a_call_that_is_not_approved_is_not_run(approve, words):
    ran = []

    @edge.tool
    def weather(city: str, days: int = 1) -> str:
        ran.append(city)
        return "x"

    with load(lambda message: SCRIPT.get(message, "So be it.")) as ai:
        reply = ai.generate("Rain?", tools=[weather], approve=approve)
        assert reply.wait().endswith("So be it.")
        (found,) = [event for event in reply.events() if event.kind == "tool_result"]
    assert found.is_error and words in found.text and not ran


def test_a_tool_that_needs_no_approval_runs_unasked():
    free = edge.tool(needs_approval=False)(weather.function)
    with load(SCRIPT) as ai:
        assert ai.generate("Rain?", tools=[free]).wait().endswith("It rains.")


def test_errors_are_fed_back():
    script = {
        "Go": calls(
            ("wether", {}), ("weather", {}), ("weather", {"city": "Atlantis"}), ("weather", {"city": "A", "days": "x"})
        ),
    }
    with load(lambda message: script.get(message, "I see."), template=QWEN_CODER) as ai:
        reply = ai.generate("Go", tools=[weather], approve="always")
        assert reply.wait() == "I see."
        found = {
            event.call.arguments.get("city", event.call.name): event for event in reply.events() if event.kind == "tool_result"
        }
    assert all(event.is_error for event in found.values())
    assert "no tool 'wether'" in found["wether"].text and "There are: weather" in found["wether"].text
    assert "missing required field `city`" in found["weather"].text
    assert found["Atlantis"].text == "Error: LookupError: no such city"
    assert "Expected `int`" in found["A"].text


def test_rounds_are_bounded():
    with load(lambda message: calls(("weather", {"city": "Paris"}))) as ai:
        reply = ai.generate("Go", tools=[weather], approve="always")
        reply.wait()
    assert len(reply.tool_calls) == ToolLimits().max_rounds + 1
    assert any("in a row" in notice for notice in reply.notices)


def test_calls_of_tools_without_a_function_are_the_callers():
    with load(SCRIPT) as ai:
        reply = ai.generate("Rain?", tools=[Tool("weather")])
        assert reply.wait() == "Let me look."
        (call,) = reply.tool_calls
        said = Message("assistant", reply.text, tool_calls=[call])
        answer = Message("tool", "2 day(s) of rain in Paris", tool_call_id=call.id)
        assert ai.generate([Message("user", "Rain?"), said, answer], tools=[Tool("weather")]).wait() == "It rains."


def test_an_async_tool_and_an_async_hook():
    async def main():
        @edge.tool
        async def weather(city: str, days: int) -> str:
            await asyncio.sleep(0)
            return f"{days} day(s) of rain in {city}"

        async def approve(call):
            await asyncio.sleep(0)
            return True

        with load(SCRIPT) as ai:
            return await ai.generate("Rain?", tools=[weather], approve=approve)

    assert asyncio.run(main()).endswith("It rains.")


def test_stopping_a_reply_does_not_wait_for_its_tool():
    entered, leave = threading.Event(), threading.Event()

    @edge.tool
    def weather(city: str, days: int) -> str:
        entered.set()
        leave.wait(60)
        return "late"

    store = ConversationStore(None)
    with load(SCRIPT, store=store) as ai:
        talk = ai.conversation(tools=[weather], approve="always")
        reply = talk.send("Rain?")
        assert entered.wait(20)
        reply.cancel()
        reply.wait()
        assert reply.finish_reason == "cancelled"
        assert [node.role for node in talk.messages] == ["user", "assistant", "tool"]
        assert "stopped" in talk.messages[-1].content
    leave.set()


def test_the_time_of_a_reply_counts_its_tools_too():
    leave = threading.Event()
    slow = Tool("weather", function=lambda **_: leave.wait(600), needs_approval=False)
    with load(SCRIPT) as ai:
        reply = ai.generate("Rain?", tools=[slow], timeout_s=1)
        reply.wait()
        (result,) = [event for event in reply.events() if event.kind == "tool_result"]
    leave.set()
    assert result.text == "Error: It was stopped." and reply.finish_reason == "cancelled"
    assert any("longer than 1 seconds" in notice for notice in reply.notices)


def test_time_and_size_of_a_result_are_bounded():
    leave = threading.Event()
    slow = Tool("slow", function=lambda: leave.wait(60), needs_approval=False)
    large = Tool("large", function=lambda: "x" * 5000, needs_approval=False)
    runner = ToolRunner([slow, large], None, limits=ToolLimits(timeout_s=0.2, max_chars=1000))
    told = []
    messages = runner.run([ToolCall("slow", {}, "1"), ToolCall("large", {}, "2")], told.append)
    leave.set()
    assert messages[0].content == "Error: It took longer than 0.2 seconds." and told[-1].is_error
    assert messages[1].content == "x" * 1000 + "\n[4,000 characters were left out]"


def test_values_become_text():
    def run(value):
        tool = Tool("t", function=lambda: value, needs_approval=False)
        return ToolRunner([tool], None).run([ToolCall("t")], lambda event: None)[0].content

    assert run(None) == "Done."
    assert run({"a": [1, True]}) == '{"a":[1,true]}'
    assert run(Place(1, 2)) == '{"lat":1,"lon":2}'
    assert run(object()).startswith("<object object")


def test_a_call_that_cannot_be_read_is_text_with_a_notice():
    with load({"Go": "<tool_call>\nweather(Paris)\n</tool_call>"}, template=QWEN_CODER) as ai:
        reply = ai.generate("Go", tools=[weather], approve="always")
        assert reply.wait() == "<tool_call>\nweather(Paris)\n</tool_call>"
    assert any("cannot be read" in notice for notice in reply.notices)


def test_without_tools_nothing_is_read_as_a_call():
    with load(SCRIPT) as ai:
        reply = ai.generate("Both?")
        assert reply.wait() == SCRIPT["Both?"] and not reply.tool_calls


def test_a_model_without_tools_says_so_or_is_told_of_them_in_its_prompt():
    with load(SCRIPT, template=edge.backends.fake.CHATML) as ai:
        with pytest.raises(UnsupportedError, match="no place for tools"):
            ai.generate("Rain?", tools=[weather]).wait()
        reply = ai.generate("Rain?", tools=[weather], approve="always", tool_format="prompt")
        assert reply.wait().endswith("It rains.")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"approve": "sometimes"}, 'approve is a function or "always"'),
        ({"tool_format": "xml"}, "tool_format cannot be"),
        ({"think": "yes"}, "think cannot be"),
        ({"max_thinking": -1}, "max_thinking is a whole number"),
    ],
)
def test_wrong_options_are_refused(options, words):
    with load(SCRIPT) as ai, pytest.raises(UsageError, match=words):
        ai.generate("Rain?", tools=[weather], **options)


# -- calls that have to be made


PLACE = Tool(
    "place",
    "A place",
    {
        "properties": {"kind": {"enum": ["sea", "hill"]}, "at": {"$ref": "#/$defs/Point"}},
        "required": ["kind", "at"],
        "$defs": {
            "Point": {
                "type": "object",
                "properties": {"x": {"type": "boolean"}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
)


@pytest.mark.parametrize("choice", ["required", "place"])
def test_a_model_is_made_to_call_a_tool_with_arguments_that_keep_its_schema(choice):
    with load(lambda message: "I would rather not.") as ai:
        tools = [PLACE] if choice == "required" else [Tool("other"), PLACE]
        reply = ai.generate("Where?", tools=tools, tool_choice=choice, temperature=0, max_tokens=400)
        reply.wait()
        (call,) = reply.tool_calls
    assert call.name == "place" and call.arguments["kind"] in ("sea", "hill")
    assert isinstance(call.arguments["at"]["x"], bool) and reply.text == ""


def test_only_the_first_round_has_to_call():
    seen = Tool("now", function=lambda: "noon", needs_approval=False)
    with load(lambda message: "It is noon.") as ai:
        reply = ai.generate("When?", tools=[seen], tool_choice="now", temperature=0, max_tokens=200)
        assert reply.wait() == "It is noon." and len(reply.tool_calls) == 1


def test_a_choice_that_cannot_be_made_is_refused():
    with load(SCRIPT) as ai:
        with pytest.raises(UsageError, match="no tool 'rain' to call"):
            ai.generate("Rain?", tools=[weather], tool_choice="rain").wait()
        with pytest.raises(UsageError, match="tool_choice is"):
            ai.generate("Rain?", tools=[weather], tool_choice={"name": "weather"})


def test_a_model_with_a_notation_of_its_own_is_made_to_call_in_it():
    gemma = (Path(__file__).parents[1] / "fixtures" / "templates" / "gemma4.jinja").read_text("utf-8")
    with load(lambda message: "I would rather not.", template=gemma) as ai:
        reply = ai.generate("Where?", tools=[PLACE], tool_choice="required", temperature=0, max_tokens=400)
        reply.wait()
        (call,) = reply.tool_calls
    assert call.arguments["kind"] in ("sea", "hill") and isinstance(call.arguments["at"]["x"], bool)


# -- thinking

THOUGHT = "<think>\nThey greet.\n</think>\n\nHello!"


def test_thoughts_are_told_apart_saved_and_left_out_of_later_turns():
    store = ConversationStore(None)
    with load({"Hi": THOUGHT, "Bye": "<think>\nHm\n</think>\n\nBye!"}, store=store) as ai:
        talk = ai.conversation()
        reply = talk.send("Hi")
        kinds = [event.kind for event in reply.events() if event.kind in ("reasoning", "text")]
        assert (reply.text, reply.reasoning) == ("Hello!", "They greet.")
        assert kinds == sorted(kinds)  # "reasoning" first
        assert (talk.messages[1].content, talk.messages[1].reasoning) == ("Hello!", "They greet.")
        prompts = []
        encode = ai._prompting.template.render
        ai._prompting.template.render = lambda *a, **k: prompts.append(encode(*a, **k)) or prompts[-1]
        assert talk.send("Bye").wait() == "Bye!"
    asked = [prompt.text for prompt in prompts if prompt.messages[-1].content == "Bye" and len(prompt.messages) == 3]
    assert asked and all("They greet." not in text for text in asked)


def test_thinking_can_be_turned_off():
    with load({"Hi": "<think>\n\n</think>\n\nHello!"}) as ai:
        reply = ai.generate("Hi", think=False)
        assert (reply.wait(), reply.reasoning) == ("Hello!", "")


def test_a_thought_has_a_longest_length():
    text = "<think>\n" + "x" * 40 + "</think>\n\nHello!"
    with load({"Hi": text}) as ai:
        # The fake goes on where its script is: it "wrote" what closed the thought, too.
        reply = ai.generate("Hi", max_thinking=20)
        assert reply.wait().endswith("Hello!")
        assert reply.reasoning == "x" * 12
        whole = ai.generate("Hi", max_thinking=200)
        assert (whole.wait(), whole.reasoning) == ("Hello!", "x" * 40)
        short = ai.generate("Hi", max_thinking=200, max_tokens=10)
        assert (short.wait(), short.reasoning, short.finish_reason) == ("", "xx", "length")


def test_a_constraint_begins_behind_a_thought_that_the_prompt_opens():
    template = QWEN.replace("<|im_start|>assistant\\n' }}", "<|im_start|>assistant\\n<think>\\n' }}")
    assert template != QWEN
    script = {"Count": '<think>\nOne {"a"} two\n</think>\n\n{"n": 12}'}
    with load(script, template=template) as ai:
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        reply = ai._answer([Message("user", "Count")], Request(constraint=Constraint.json_schema(schema)), None)
        assert json.loads(reply.wait()).keys() == {"n"}
        assert reply.reasoning == 'One {"a"} two'
        assert reply.usage.n_forced == len('"n": ')  # behind the bracket, which the model chose


def test_think_false_closes_a_thought_that_the_prompt_opens():
    template = QWEN.replace("<|im_start|>assistant\\n' }}", "<|im_start|>assistant\\n<think>\\n' }}")
    template = template.replace("enable_thinking is defined", "false")
    with load({"Hi": "<think>\n\n</think>\n\nHello!"}, template=template) as ai:
        reply = ai.generate("Hi", think=False)
        assert (reply.wait(), reply.reasoning) == ("Hello!", "")
