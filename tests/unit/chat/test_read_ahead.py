"""Read-ahead: what is written is prefilled before it is sent, and never gets in the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.backends.fake import FakeBackend
from edge.conversation import Attachment
from edge.dialogue import Conversation
from edge.reply import Reply
from edge.types import Usage
from edge_chat.app import ChatApp
from tests.chat_app import eventually, fake_app, settle

LONG = "a word and another one " * 20
ON = {"chat.read_ahead": True}


class Held(FakeBackend):
    """Stops in the middle of a prompt, and before each token of a reply, until the test lets it go on."""

    def __init__(self, hold_from: int = 128, **options: Any) -> None:
        super().__init__(n_ctx=8192, **options)
        self.hold_from, self.go = hold_from, threading.Event()

    def _compute(self, seq_id: int, start: int, ids: Any, should_stop: Any) -> Any:
        while start >= self.hold_from and not self.go.wait(0.005):
            if should_stop is not None and should_stop():
                return None
        return super()._compute(seq_id, start, ids, should_stop)

    def _roll_back(self, seq_id: int, n_keep: int) -> int:
        return n_keep

    def decode(self, *arguments: Any) -> None:
        self.go.wait(60)
        super().decode(*arguments)


class Prefills:
    """The prefills that were begun: text and attachments of each, and its reply."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.replies: list[Reply] = []


@pytest.fixture(autouse=True)
def prefills(monkeypatch: pytest.MonkeyPatch) -> Iterator[Prefills]:
    found, prewarm = Prefills(), Conversation.prewarm

    def prewarm_and_remember(self: Conversation, text: str = "", **options: Any) -> Reply:
        assert options["cache"] == "memory", "nothing goes to the disk before it is sent"
        reply = prewarm(self, text, **options)
        found.asked.append((text, tuple(one.text for one in options["attachments"])))
        found.replies.append(reply)
        return reply

    monkeypatch.setattr(Conversation, "prewarm", prewarm_and_remember)
    monkeypatch.setattr("edge_chat.read_ahead._is_powered", lambda: True)
    yield found
    for reply in found.replies:
        reply.cancel()


def usage(app: ChatApp) -> Usage:
    """Return the figures of the last answer."""
    page = app.chat_screen.controller.page
    assert page is not None
    answer = page.nodes[-1]
    assert answer.role == "assistant"
    return Usage(**answer.record["usage"])


async def send(pilot: Any) -> None:
    await pilot.press("enter")
    await settle(pilot)


async def test_what_is_typed_is_prefilled_and_reused(prefills: Prefills) -> None:
    app = fake_app(settings=ON)
    async with app.run_test() as pilot:
        await settle(pilot)
        app.chat_screen.composer.load(LONG)
        await settle(pilot)
        assert prefills.asked == [(LONG.strip(), ())]
        app.chat_screen.composer.load(LONG + "and the end.")
        await settle(pilot)
        assert prefills.replies[1].usage.n_reused >= len(LONG), "what was there already"
        await send(pilot)
        assert usage(app).n_computed < 40
        assert usage(app).n_prompt > len(LONG)


async def test_typing_without_a_pause_does_not_put_it_off(prefills: Prefills, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_chat.read_ahead._PAUSE_S", 60.0)
    monkeypatch.setattr("edge_chat.read_ahead._LONGEST_S", 0.3)
    app = fake_app(settings=ON)
    async with app.run_test() as pilot:
        await settle(pilot)
        composer = app.chat_screen.composer
        composer.attach(Attachment("notes.txt", LONG))
        for _ in range(400):  # keys come faster than any pause
            composer.input.insert("key ")
            await pilot.pause(0.01)
            if len(prefills.asked) > 1:
                break
        assert len(prefills.asked) > 1, "and again for what was typed since"
        assert all(texts == (LONG,) for _, texts in prefills.asked)
        composer.load("")


async def test_it_can_be_turned_off(prefills: Prefills) -> None:
    app = fake_app(settings={"chat.read_ahead": False})
    async with app.run_test() as pilot:
        await settle(pilot)
        app.chat_screen.composer.load(LONG)
        await settle(pilot)
        await send(pilot)
        assert prefills.asked == []
        assert usage(app).n_computed > len(LONG)


async def test_attachments_and_mentioned_files_are_prefilled(prefills: Prefills, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("of the notes " * 40)
    app = fake_app(settings=ON, cwd=tmp_path)
    async with app.run_test() as pilot:
        await settle(pilot)
        app.chat_screen.composer.load("", [Attachment("a.txt", "of the attachment " * 40)])
        await settle(pilot)
        assert prefills.asked == [("", ("of the attachment " * 40,))]
        app.chat_screen.composer.load("see @notes.md", app.chat_screen.composer.attachments)
        await settle(pilot)
        assert prefills.asked[1:] == [("see @notes.md", ("of the attachment " * 40, "of the notes " * 40))]
        await send(pilot)
        assert usage(app).n_computed < 40
        assert usage(app).n_prompt > 1000


async def test_what_is_edited_is_dropped_and_the_rest_reused(prefills: Prefills) -> None:
    app = fake_app(settings=ON)
    async with app.run_test() as pilot:
        await settle(pilot)
        app.chat_screen.composer.load(LONG + "one thing that was typed in error")
        await settle(pilot)
        app.chat_screen.composer.load(LONG + "another")
        await settle(pilot)
        await send(pilot)
        assert usage(app).n_computed < 40
        page = app.chat_screen.controller.page
        assert page is not None
        assert page.nodes[0].content == LONG + "another"
        assert len(page.nodes) == 2


async def test_on_battery_or_throttled_nothing_is_prefilled(prefills: Prefills, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, value in (
        ("edge_chat.read_ahead._is_powered", lambda: False),
        ("edge.assistant.Assistant.held_back", property(lambda self: "hot: 1 of 2 threads")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(target, value)
            app = fake_app(settings=ON)
            async with app.run_test() as pilot:
                await settle(pilot)
                app.chat_screen.composer.load(LONG)
                await settle(pilot)
        assert prefills.asked == []


async def test_commands_edits_and_empty_messages_are_not_prefilled(prefills: Prefills) -> None:
    app = fake_app(settings=ON)
    async with app.run_test() as pilot:
        await settle(pilot)
        for text in ("/set temperature 0.5", "   ", ""):
            app.chat_screen.composer.load(text)
            await settle(pilot)
        assert prefills.asked == []
        app.chat_screen.composer.load("//not a command")
        await settle(pilot)
        assert prefills.asked == [("/not a command", ())]
        await send(pilot)
        controller = app.chat_screen.controller
        assert controller.page is not None
        controller.editing = controller.page.nodes[0].id
        app.chat_screen.composer.load("instead of that")
        await settle(pilot)
        assert len(prefills.asked) == 1


async def test_nothing_is_prefilled_beside_a_reply(prefills: Prefills) -> None:
    backend = Held(100_000)
    app = fake_app(lambda: backend, settings=ON)
    async with app.run_test() as pilot:
        await settle(pilot)
        app.chat_screen.composer.load("hello")
        await settle(pilot)
        await pilot.press("enter")
        await eventually(pilot, lambda: app.chat_screen.controller.busy_ids)
        app.chat_screen.composer.load("and then")
        await eventually(pilot, lambda: not app.chat_screen.read_ahead.is_waiting)
        assert app.chat_screen.controller.busy_ids
        assert [text for text, _ in prefills.asked] == ["hello"]
        backend.go.set()
        await settle(pilot)
        assert [text for text, _ in prefills.asked] == ["hello", "and then"], "once the reply has ended"


async def test_a_prefill_goes_on_while_its_text_grows_and_stops_when_it_changes(prefills: Prefills) -> None:
    backend = Held()
    app = fake_app(lambda: backend, settings=ON)
    async with app.run_test() as pilot:
        await settle(pilot)
        composer = app.chat_screen.composer
        composer.load(LONG * 3)
        await eventually(pilot, lambda: prefills.replies and prefills.replies[0].progress[0])
        composer.load(LONG * 3 + "more")
        await pilot.pause()
        assert not prefills.replies[0].is_cancelled
        composer.load("something else")
        await pilot.pause()
        assert prefills.replies[0].is_cancelled
        backend.go.set()
        await settle(pilot)
        assert [text for text, _ in prefills.asked] == [(LONG * 3).strip(), "something else"]


async def test_a_draft_that_comes_back_is_prefilled_again(prefills: Prefills) -> None:
    backend = Held()
    app = fake_app(lambda: backend, settings=ON)
    async with app.run_test() as pilot:
        await settle(pilot)
        composer = app.chat_screen.composer
        composer.load(LONG)
        await eventually(pilot, lambda: prefills.replies and prefills.replies[0].progress[0])
        composer.load("")
        await eventually(pilot, lambda: not app.chat_screen.read_ahead.is_waiting)
        assert prefills.replies[0].finish_reason == "cancelled"
        backend.go.set()
        composer.load(LONG)
        await settle(pilot)
        assert [text for text, _ in prefills.asked] == [LONG.strip(), LONG.strip()]
        assert prefills.replies[1].finish_reason == "stop"


async def test_sending_ends_it_and_the_reply_reuses_it(prefills: Prefills) -> None:
    backend = Held(384)
    app = fake_app(lambda: backend, settings=ON)
    async with app.run_test() as pilot:
        await settle(pilot)
        app.chat_screen.composer.load(LONG * 10)
        await eventually(pilot, lambda: prefills.replies and prefills.replies[0].progress[0] > 256)
        await pilot.press("enter")
        await eventually(pilot, lambda: prefills.replies[0].is_done)
        backend.go.set()
        await settle(pilot)
        assert prefills.replies[0].finish_reason == "cancelled"
        assert 256 < usage(app).n_reused < len(LONG) * 10
        assert len(prefills.asked) == 1
