"""The fake model that programs test themselves with."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import edge
from edge.errors import BackendError, CancelledError, ContextFullError, UsageError
from edge.testing import FakeModel


def test_it_says_what_it_is_told_and_notes_what_it_was_asked() -> None:
    model = FakeModel({"hi": "Hello!", "again?": "Yes, Grüße"})
    with model.load() as ai:
        conversation = ai.conversation(system="Be brief")
        assert [conversation.send(text).wait() for text in ("hi", "again?", "hi")] == ["Hello!", "Yes, Grüße", "Hello!"]
        assert ai.generate("hi", temperature=1.5).wait() == "Hello!"
    start = [("system", "Be brief"), ("user", "hi")]
    assert model.prompts[0] == start
    assert model.prompts[1] == [*start, ("assistant", "Hello!"), ("user", "again?")]
    assert [prompt[-1] for prompt in model.prompts] == [("user", "hi"), ("user", "again?"), ("user", "hi"), ("user", "hi")]


def test_a_function_gives_the_answers() -> None:
    with FakeModel(str.upper).load() as ai:
        assert ai.generate("hi").wait() == "HI"
    with FakeModel().load() as ai:
        assert "**hi**" in ai.generate("hi").wait()


def test_a_message_that_it_does_not_know_is_an_error() -> None:
    with FakeModel({"hi": "Hello!"}).load() as ai:
        with pytest.raises(UsageError, match="no answer to 'bye'"):
            ai.generate("bye").wait()
        assert ai.generate("hi").wait() == "Hello!", "others go on"


def test_an_error_ends_the_reply() -> None:
    with FakeModel({"boom": BackendError("The device is on fire."), "bug": ValueError("x")}).load() as ai:
        with pytest.raises(BackendError, match="on fire"):
            ai.generate("boom").wait()
        with pytest.raises(BackendError, match="unexpected error"):
            ai.generate("bug").wait()


def test_it_calls_tools_and_thinks() -> None:
    called: list[str] = []

    def weather(city: str) -> str:
        """Tell the weather of a city."""
        called.append(city)
        return "rain"

    calls = (edge.ToolCall("weather", {"city": "Bonn"}), edge.ToolCall("weather", {"city": "Köln"}))
    model = FakeModel(
        {
            "Weather?": edge.Message("assistant", "", tool_calls=calls, reasoning="I had better look."),
            "rain": "It rains.",
        }
    )
    with model.load() as ai:
        conversation = ai.conversation()
        reply = conversation.send("Weather?", tools=[edge.tool(weather, needs_approval=False)])
        assert (reply.wait(), reply.reasoning, called) == ("It rains.", "I had better look.", ["Bonn", "Köln"])
        assert [message.role for message in conversation.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    system, *_ = model.prompts[0]
    assert system[0] == "system" and '"weather"' in system[1]
    with model.load() as ai:
        alone = ai.generate("Weather?", tools=[edge.Tool("weather")])
        alone.wait()
        assert [call.arguments for call in alone.tool_calls] == [{"city": "Bonn"}, {"city": "Köln"}]


def test_it_takes_the_place_of_load(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = FakeModel({"hi": "Hello!"}), list[tuple[str, float]]()
    monkeypatch.setattr(edge, "load", model.load)
    settings = edge.Settings(system="Be brief")
    with (
        edge.ConversationStore(None) as store,
        edge.load(
            "smollm2-135m",
            settings=settings,
            store=store,
            context=600,
            parallel=2,
            threads=1,
            cache="memory",
            on_progress=lambda stage, share: seen.append((stage, share)),
        ) as ai,
    ):
        assert (ai.n_ctx, ai._turns.n_seq, ai.store) == (600, 2, store)
        assert seen[-1] == ("loading", 1.0)
        assert ai.conversation().send("hi").wait() == "Hello!"
        assert len(store.list()) == 1
        with pytest.raises(ContextFullError):
            ai.generate("x" * 1000).wait()
    assert model.prompts[0][0] == ("system", "Be brief")
    with pytest.raises(CancelledError):
        edge.load("smollm2-135m", on_progress=lambda stage, share: False)
    with pytest.raises(UsageError, match="no option 'contxt'"):
        edge.load("smollm2-135m", contxt=5)  # type: ignore[call-arg]
    with pytest.raises(UsageError):
        FakeModel("hi")  # type: ignore[arg-type]


async def test_it_can_be_slow_and_is_stopped_in_time() -> None:
    async with await FakeModel(lambda _: "z" * 1000, token_s=0.01).aload() as ai:
        reply = ai.generate("hi")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reply, 0.05)
        assert reply.is_cancelled
        assert len(ai.generate("hi", max_tokens=3).wait()) == 3


def test_several_choices_and_a_schema() -> None:
    with FakeModel({"n?": "7", "which?": "no"}).load() as ai:
        assert ai.respond("n?", int) == 7
        assert [reply.wait() for reply in ai.generate_choices("n?", 3)] == ["7"] * 3
        chosen: Any = ai.choose("which?", ["yes", "no"])
        assert chosen.text == "no"
        assert {number: reply.text for number, reply in ai.batch(["n?", "which?"])} == {0: "7", 1: "no"}


def test_the_size_of_a_prompt_has_tools_and_schema() -> None:
    def weather(city: str) -> str:
        """Tell the weather of a city."""
        return "rain"

    with FakeModel({"hi": "{}"}).load() as ai:
        plain = ai.count("hi").n_tokens
        conversation = ai.conversation(tools=[weather])
        for options in (
            {"tools": [weather]},
            {"schema": {"type": "object"}},
            {"tools": [weather], "schema": {"type": "object"}},
        ):
            size = ai.count("hi", **options)  # type: ignore[arg-type]
            reply = ai.generate("hi", **options)  # type: ignore[arg-type]
            reply.wait()
            assert size.n_tokens == reply.usage.n_prompt > plain
        size = conversation.count("hi")
        reply = conversation.send("hi")
        reply.wait()
        assert size.n_tokens == reply.usage.n_prompt == ai.count("hi", tools=[weather]).n_tokens
