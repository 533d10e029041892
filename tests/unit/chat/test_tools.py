"""Thoughts and tool calls in the chat: folded, asked about in place, turned on and off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edge
from edge.backends.fake import FakeBackend
from edge_chat.widgets.cards import ApprovalCard
from edge_chat.widgets.fold import Fold
from tests.chat_app import enter, eventually, fake_app, say, settle

QWEN = (Path(__file__).parents[2] / "fixtures" / "templates" / "qwen3.jinja").read_text("utf-8")
CALL = f"<tool_call>\n{json.dumps({'name': 'weather', 'arguments': {'city': 'Paris'}})}\n</tool_call>"
SCRIPT = {
    "Hi": "<think>\nThey greet.\nSo do I.\n</think>\n\nHello!",
    "Rain?": f"Let me look.\n{CALL}",
    "<tool_response>\nrain in Paris\n</tool_response>": "It rains.",
    "<tool_response>\nThe user did not allow this call.\n</tool_response>": "Then I do not know.",
}


@edge.tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"rain in {city}"


def make(tools=(weather,)):
    app = fake_app(lambda: FakeBackend(n_ctx=16384, script=SCRIPT, chat_template=QWEN))
    app.toolbox = lambda: (list(tools), [])
    return app


def folds(app):
    return [fold for view in app.chat_screen.transcript.views for fold in view.query(Fold) if fold.title_text]


def is_asked(app):
    return any(len(card.children) > 2 and card.has_focus for card in app.chat_screen.query(ApprovalCard))


async def test_thoughts_are_folded_and_opened():
    app = make()
    async with app.run_test(size=(80, 30)) as pilot:
        await say(pilot, "Hi")
        await settle(pilot)
        (fold,) = folds(app)
        assert fold.title_text == "Thoughts, 5 words" and not fold.is_open
        assert app.chat_screen.transcript.views[-1].text == "Hello!"
        await enter(pilot, "/details")
        assert fold.is_open and "They greet." in fold.content.plain
        await enter(pilot, "/details")
        assert not fold.is_open


@pytest.mark.parametrize(("key", "answer"), [("y", "It rains."), ("escape", "Then I do not know.")])
async def test_a_call_is_asked_about_in_place(key, answer):
    app = make()
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "Rain?")
        await eventually(pilot, lambda: is_asked(app))
        (card,) = app.chat_screen.query(ApprovalCard)
        assert '"city": "Paris"' in str(card.children[1].content)
        await pilot.press(key)
        await settle(pilot)
        views = app.chat_screen.transcript.views
        assert [view.role for view in views] == ["user", "assistant", "tool", "assistant"]
        assert views[-1].text == answer
        assert [fold.title_text for fold in folds(app)] == ["Called weather", "Result"]
        assert not app.chat_screen.query(ApprovalCard)


async def test_a_tool_that_is_always_allowed_is_not_asked_about_again():
    app = make()
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "Rain?")
        await eventually(pilot, lambda: is_asked(app))
        await pilot.press("a")
        await settle(pilot)
        await say(pilot, "Rain?")
        await settle(pilot)
        assert app.chat_screen.transcript.views[-1].text == "It rains."


async def test_answering_again_takes_the_calls_away_too():
    app = make()
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.controller.sending.approvals._allowed.add("weather")
        await say(pilot, "Rain?")
        app.chat_screen.controller.sending.approvals._allowed.clear()
        await enter(pilot, "/regenerate")
        await eventually(pilot, lambda: is_asked(app))
        assert [view.role for view in app.chat_screen.transcript.views] == ["user", "assistant"]
        await pilot.press("y")
        await settle(pilot)
        assert [view.role for view in app.chat_screen.transcript.views] == ["user", "assistant", "tool", "assistant"]


async def test_stopping_answers_the_question():
    app = make()
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "Rain?")
        await eventually(pilot, lambda: is_asked(app))
        app.chat_screen.composer.input.focus()
        await pilot.press("escape")
        await settle(pilot)
        assert not app.chat_screen.query(ApprovalCard)
        assert not app.chat_screen.controller.busy_ids


async def test_tools_are_turned_off_and_on():
    app = make()
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "/tools off")
        await say(pilot, "Rain?")
        await settle(pilot)
        assert CALL in app.chat_screen.transcript.views[-1].text
        await enter(pilot, "/tools on weather")
        assert not app.chat_screen.controller.tools_off


async def test_what_servers_of_tools_say_is_shown():
    app = make()
    app.toolbox = lambda: ([], ["The server files is not allowed yet."])
    async with app.run_test(size=(80, 30), notifications=True) as pilot:
        await settle(pilot)
        assert any("not allowed yet" in note.message for note in app._notifications)


async def test_thinking_is_turned_off():
    app = make()
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "/think off")
        assert app.chat_screen.controller.think is False
        await enter(pilot, "/think auto")
        assert app.chat_screen.controller.think is None
