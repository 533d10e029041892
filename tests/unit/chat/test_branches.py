from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from textual.widgets import Static

from edge.backends.fake import FakeBackend
from edge.conversation import ConversationStore
from edge_chat.app import ChatApp
from tests.chat_app import enter, eventually, fake_app, say, settle, texts


def echo() -> FakeBackend:
    return FakeBackend(script=lambda message: f"{message}!", n_ctx=8192)


class Waiting(FakeBackend):
    """Generates nothing before the gate is opened."""

    def __init__(self, gate: threading.Event) -> None:
        super().__init__(n_ctx=8192)
        self.gate = gate

    def decode(self, steps: Sequence[tuple[int, int]]) -> None:
        self.gate.wait(60)
        super().decode(steps)


def complaint(app: ChatApp) -> str:
    return str(app.chat_screen.query_one("#complaint", Static).render())


def ids(app: ChatApp) -> list[int | None]:
    return [view.node_id for view in app.chat_screen.transcript.views]


def branches(app: ChatApp) -> list[tuple[int, int] | None]:
    return [view.branch for view in app.chat_screen.transcript.views]


async def test_regenerating_makes_a_branch_and_arrows_go_between_them() -> None:
    app = fake_app(echo)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "a")
        first = ids(app)[1]
        await pilot.press("ctrl+r")
        await settle(pilot)
        second = ids(app)[1]
        assert first != second and branches(app) == [None, (2, 2)]
        await pilot.press("ctrl+up", "left")
        await settle(pilot)
        assert ids(app)[1] == first and branches(app) == [None, (1, 2)]
        assert app.chat_screen.chosen_view is app.chat_screen.transcript.views[1], "the message stays chosen"
        await pilot.press("left")
        await settle(pilot)
        assert ids(app)[1] == second
        await say(pilot, "/branch")
        assert ids(app)[1] == first


async def test_editing_an_earlier_message_replaces_what_follows_on_the_screen_only() -> None:
    store = ConversationStore(None)
    app = fake_app(echo, store=store)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "a")
        await say(pilot, "b")
        before = texts(app)
        await pilot.press("ctrl+up", "ctrl+up", "ctrl+up", "ctrl+up", "e")
        await settle(pilot)
        assert app.chat_screen.composer.text == "a"
        assert app.chat_screen.composer.input.has_focus
        await say(pilot, "c")
        assert [text[:7] for text in texts(app)] == ["You: c", "Fake: c"]
        assert branches(app) == [(2, 2), None]
        await pilot.press("ctrl+up", "ctrl+up", "right")
        await settle(pilot)
        assert texts(app) == before
    assert store.list()[0].n_messages == 6


async def test_editing_can_be_given_up() -> None:
    app = fake_app(echo)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "a")
        await say(pilot, "/edit")
        assert app.chat_screen.composer.text == "a" and app.chat_screen.controller.editing is not None
        assert app.chat_screen.query_one("#mode").display
        await pilot.press("escape")
        await settle(pilot)
        assert app.chat_screen.composer.text == "" and app.chat_screen.controller.editing is None
        assert not app.chat_screen.query_one("#mode").display
        await say(pilot, "b")
        assert branches(app) == [None] * 4


async def test_an_edit_outlives_quitting_and_plain_mode_and_another_conversation() -> None:
    store = ConversationStore(None)
    app = fake_app(echo, store=store)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "a")
        await say(pilot, "/edit")
        controller, composer = app.chat_screen.controller, app.chat_screen.composer
        edited, conversation_id = controller.editing, controller.active_id
        assert edited is not None and conversation_id is not None
        composer.load("aa")
        app.set_plain(True)
        await app.chat_screen.redraw()
        assert (composer.text, controller.editing) == ("aa", edited)
        composer.load("aaa")
        await controller.new()
        assert (composer.text, controller.editing) == ("", None)
        await controller.open(conversation_id)
        assert (composer.text, controller.editing) == ("aaa", edited)
        composer.load("b")
        await controller.close()
        await settle(pilot)
    app = fake_app(echo, store=store)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        controller, composer = app.chat_screen.controller, app.chat_screen.composer
        assert (composer.text, controller.editing) == ("b", edited)
        assert app.chat_screen.query_one("#mode").display
        await pilot.press("enter")
        await settle(pilot)
        assert branches(app)[0] == (2, 2) and texts(app)[0] == "You: b"
    assert store.list()[0].draft == ""


async def test_plain_mode_keeps_what_is_typed_in_a_new_conversation() -> None:
    app = fake_app(echo)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        app.chat_screen.composer.load("typed")
        await app.chat_screen.redraw()
        assert app.chat_screen.composer.text == "typed"


async def test_what_needs_a_saved_message_says_so_while_its_answer_is_generated() -> None:
    gate = threading.Event()
    app = fake_app(lambda: Waiting(gate))
    async with app.run_test(size=(100, 30)) as pilot:
        try:
            await settle(pilot)
            await enter(pilot, "hello")
            await eventually(pilot, lambda: app.chat_screen.controller.busy_ids)
            await enter(pilot, "/edit")
            await eventually(pilot, lambda: "A reply is being generated." in complaint(app))
            app.chat_screen.composer.load("")
            await pilot.press("ctrl+up", "ctrl+up", "f")
            await eventually(pilot, lambda: "not saved yet" in complaint(app))
            await pilot.press("escape")
            await enter(pilot, "/fork")
            await eventually(pilot, lambda: texts(app) == ["You: hello"])
            assert "No answer" in str(app.chat_screen.query_one(".note", Static).render())
        finally:
            gate.set()


async def test_forking_copies_up_to_the_chosen_message() -> None:
    store = ConversationStore(None)
    app = fake_app(echo, store=store)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "a")
        await say(pilot, "b")
        original, before = app.chat_screen.controller.active_id, texts(app)
        await pilot.press("ctrl+up", "ctrl+up", "ctrl+up", "f")
        await settle(pilot)
        assert app.chat_screen.controller.active_id != original
        assert texts(app) == before[:2]
        await say(pilot, "c")
        assert len(texts(app)) == 4
    assert original is not None
    assert [f"You: {n.content}" for n in store.path(original) if n.role == "user"] == ["You: a", "You: b"]


@pytest.mark.parametrize("command", ["/regenerate", "/edit", "/fork", "/branch", "/copy", "/copy code", "/title x", "/save"])
async def test_commands_on_an_empty_conversation_say_so_and_stay_in_the_composer(command: str) -> None:
    app = fake_app(echo)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, command)
        assert app.chat_screen.query_one("#complaint").display
        assert app.chat_screen.composer.text.strip() == command


async def test_choosing_messages_with_keys_ends_in_the_composer() -> None:
    app = fake_app(echo)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "a")
        await pilot.press("ctrl+up", "ctrl+up", "ctrl+up", "ctrl+up")
        assert app.chat_screen.chosen_view is app.chat_screen.transcript.views[0]
        await pilot.press("c")
        assert app.clipboard == "a"
        await pilot.press("ctrl+down", "ctrl+down")
        assert app.chat_screen.composer.input.has_focus
        await pilot.press("ctrl+up", "escape")
        await eventually(pilot, lambda: app.chat_screen.composer.input.has_focus)
