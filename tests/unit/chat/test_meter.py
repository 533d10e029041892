"""Tokens of what is being written, before it is sent."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from textual import events
from textual.widgets import Static

from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.conversation import ConversationStore
from edge.types import Message
from edge_chat.app import ChatApp
from edge_chat.widgets.markdown import ReplyMarkdown
from tests.chat_app import enter, eventually, fake_app, say, settle, texts


def status(app: ChatApp) -> str:
    return str(app.chat_screen.status.render())


def size(app: ChatApp) -> str:
    line = app.chat_screen.query_one("#size")
    return str(line.render()) if line.display else ""


def chips(app: ChatApp) -> list[str]:
    return [str(chip.render()) for chip in app.chat_screen.query(".chip")]


async def test_what_is_typed_and_mentioned_is_counted_before_enter(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x" * 100)  # a letter is a token of the fake
    app = fake_app(cwd=tmp_path)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        assert "context 0/8,192 (0 %)" in status(app)
        await pilot.press(*"hello")
        await settle(pilot)
        assert "context 0 + 13/8,192" in status(app)
        app.chat_screen.composer.load("see @notes.md")
        await eventually(pilot, lambda: "context 0 + 129/8,192 (2 %)" in status(app))
        await pilot.press("enter")
        await settle(pilot)
        assert " + " not in status(app)
        used = app.chat_screen.status.values.used
        await pilot.press("a")
        await settle(pilot)
        assert f"context {used:,} + 9/8,192" in status(app)
        await pilot.press("backspace")
        await settle(pilot)
        assert f"context {used:,}/8,192" in status(app)
        app.chat_screen.composer.load("/set temperature 0.5")
        await settle(pilot)
        assert " + " not in status(app), "a command takes no room"


async def test_a_message_that_is_too_long_says_so_before_enter() -> None:
    app = fake_app(settings={"chat.paste_chars": "50"})
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.composer.paste("line\n" * 2000)
        await settle(pilot)
        assert chips(app) == ["pasted text 1 2,000 lines, ~10,008 tokens ×"]
        assert "this message: ~10,016 tokens, too long" in status(app)
        assert "about 10,016 tokens, and there is room for 6,144" in size(app)
        await pilot.press("backspace")
        await settle(pilot)
        assert (chips(app), size(app)) == ([], "") and "too long" not in status(app)
        app.chat_screen.composer.paste("y" * 6100)
        await settle(pilot)
        assert size(app) == ""
        await say(pilot, "/set max_tokens 10")
        app.chat_screen.composer.paste("y" * 1000)
        await settle(pilot)
        assert size(app) == "", "a short reply leaves more room"


async def test_a_chip_shows_its_text() -> None:
    app = fake_app(settings={"chat.paste_chars": "5"})
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.composer.paste("first line\n```\nlast line")
        await eventually(pilot, lambda: app.chat_screen.query(".chip"))
        app.chat_screen.query(".chip").first().focus()
        await pilot.press("enter")
        await eventually(pilot, lambda: app.screen is not app.chat_screen)
        page = app.screen.query_one(ReplyMarkdown)
        assert page.codes == ["first line\n```\nlast line"]
        assert str(app.screen.query(".dialog-title").first(Static).render()) == "pasted text 1"
        await pilot.press("escape")
        await settle(pilot)
        assert len(app.chat_screen.composer.attachments) == 1


async def test_counting_never_delays_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Assistant.count_tokens

    def slowly(self: Assistant, text: str) -> int:
        time.sleep(0.4)
        return count(self, text)

    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        monkeypatch.setattr(Assistant, "count_tokens", slowly)
        monkeypatch.setattr("edge_chat.meter._PAUSE_S", 0.001)  # as if each key came after a pause
        began = time.perf_counter()
        for letter in "abcdefghij":
            app.post_message(events.Key(letter, letter))
            await asyncio.sleep(0.01)
        await eventually(pilot, lambda: app.chat_screen.composer.text == "abcdefghij")
        assert time.perf_counter() - began < 10 * 0.4
        await eventually(pilot, lambda: app.chat_screen.status.values.draft == 18)


async def test_after_a_crash_the_context_is_counted() -> None:
    store = ConversationStore(None)
    info = store.create()
    question = store.append(info.id, Message("user", "x" * 100), parent=None)
    store.append(info.id, Message("assistant", "y" * 50), parent=question.id, status="stopped")
    app = fake_app(store=store, conversation=info.id)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await eventually(pilot, lambda: "context 166/8,192" in status(app))


async def test_a_very_long_text_is_estimated() -> None:
    from edge_chat.meter import measure

    with Assistant(FakeBackend(n_ctx=1024)) as assistant:
        began = time.perf_counter()
        found = measure(assistant, "z" * 5_000_000, (), cwd=Path("/"), max_bytes=10, max_tokens=None)
        assert found.n_tokens == 5_000_008 and found.is_too_long
        assert time.perf_counter() - began < 10


async def test_a_message_that_is_sent_all_the_same_comes_back() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "x" * 9000)
        await settle(pilot)
        assert texts(app) == [] and len(app.chat_screen.composer.text) == 9000
