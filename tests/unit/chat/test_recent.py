"""Going on with an earlier conversation: from the first screen, and from the shell."""

from __future__ import annotations

import pytest

from edge.conversation import ConversationStore
from edge.types import Message
from edge_chat import wording
from edge_chat.app import ChatApp
from edge_chat.widgets.empty import EmptyState
from tests.chat_app import enter, eventually, fake_app, say, settle, texts


def three() -> ConversationStore:
    store = ConversationStore(None)
    for title in ("Old one", "Whales", "Rye", "Paris"):
        store.append(store.create().id, Message("user", title), parent=None)
    return store


def recent_titles(app: ChatApp) -> list[str]:
    return [info.title for empty in app.chat_screen.query(EmptyState) for info in empty.recent]


@pytest.mark.parametrize(("typed", "opened"), [("", "Paris"), ("1", "Paris"), ("2", "Rye"), ("3", "Whales")])
async def test_enter_or_a_number_goes_on(typed: str, opened: str) -> None:
    store = three()
    app = fake_app(store=store)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        assert recent_titles(app) == ["Paris", "Rye", "Whales"]
        await pilot.press(*typed)
        shown = str(app.chat_screen.query_one("#empty-recent").render())
        assert f"▸ {typed or 1} {opened}" in shown
        await enter(pilot, typed)
        await settle(pilot)
        assert texts(app) == [f"You: {opened}"]
        assert app.chat_screen.composer.text == ""
        assert len(store.list()) == 4, "the number was no message, and left no conversation behind"


@pytest.mark.parametrize("typed", ["4", "0", "22", "2.", "two"])
async def test_other_texts_are_messages(typed: str) -> None:
    app = fake_app(store=three())
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await say(pilot, typed)
        assert texts(app)[0] == f"You: {typed}"


async def test_numbers_are_messages_where_nothing_is_offered() -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await enter(pilot, "")
        await say(pilot, "1")
        assert texts(app)[0] == "You: 1"
        await enter(pilot, "")
        await say(pilot, "2")
        assert texts(app)[2] == "You: 2"


async def test_a_new_conversation_offers_the_last_one_and_a_click_opens_it() -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await say(pilot, "hello")
        await say(pilot, "/new")
        assert recent_titles(app) == ["hello"]
        app.chat_screen.query_one(EmptyState).action_go_on(0)
        await eventually(pilot, lambda: texts(app))
        await settle(pilot)
        assert texts(app)[0] == "You: hello"


async def test_leaving_says_how_to_come_back() -> None:
    store = ConversationStore(None)
    app = fake_app(store=store)
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await say(pilot, "What is the capital of France, and of \x1b[31mSpain?")
        await enter(pilot, "/quit")
        await eventually(pilot, lambda: app.return_code is not None)
    name, number, command = app.farewell[0].split(" · ")
    assert name.startswith("What is the capital of France") and name.endswith("…") and "\x1b" not in name
    assert number == "2 messages"
    assert store.get(command.removeprefix("edge chat --conversation ")).id == store.list()[0].id


async def test_leaving_an_empty_conversation_says_nothing() -> None:
    app = fake_app()
    async with app.run_test(size=(80, 24)) as pilot:
        await settle(pilot)
        await enter(pilot, "/quit")
        await eventually(pilot, lambda: app.return_code is not None)
    assert app.farewell == []


def test_the_line_for_the_shell() -> None:
    assert wording.farewell("Hi", 1, "1m8k", is_plain=False) == "Hi · 1 message · edge chat --conversation 1m8k"
    assert wording.farewell("", 2, "1m8k", is_plain=True) == "Untitled, 2 messages, edge chat --conversation 1m8k"
