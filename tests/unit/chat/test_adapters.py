"""Adapters in the chat: shown, and changed in one conversation."""

from __future__ import annotations

from edge.backends.fake import FakeBackend
from edge_chat.screens.dialogs import ReadPage
from tests.adapters import fake_adapters
from tests.chat_app import enter, eventually, fake_app, say, settle


def complaint(app):
    return str(app.chat_screen.query_one("#complaint").render())


def last(app):
    return app.chat_screen.transcript.views[-1].text


async def test_adapters_are_switched_in_one_conversation():
    app = fake_app(lambda: FakeBackend(n_ctx=8192, adapters=fake_adapters("pirate", "formal")))
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "/lora pirate:0.5")
        await say(pilot, "Hi")
        await settle(pilot)
        assert last(app).startswith("[pirate at 0.5] ")
        await enter(pilot, "/lora none")
        await say(pilot, "Hi")
        await settle(pilot)
        assert last(app).startswith("You said")
        await enter(pilot, "/new")
        await say(pilot, "Hi")
        await settle(pilot)
        assert last(app).startswith("[pirate, formal] "), "the other conversation goes on as the model was loaded"
        await enter(pilot, "/lora formal, pirate:2")
        await say(pilot, "Hi")
        await settle(pilot)
        assert last(app).startswith("[pirate at 2, formal] ")
        await enter(pilot, "/lora default")
        await say(pilot, "Hi")
        await settle(pilot)
        assert last(app).startswith("[pirate, formal] ")


async def test_what_cannot_be_is_said_and_nothing_changes():
    app = fake_app(lambda: FakeBackend(n_ctx=8192, adapters=fake_adapters("pirate")))
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "/lora late")
        await eventually(pilot, lambda: "no adapter 'late'. It has: pirate." in complaint(app))
        assert not app.chat_screen.controller.lora
        assert app.chat_screen.composer.text == "/lora late", "to be corrected"


async def test_without_adapters_the_chat_says_how_to_get_some():
    app = fake_app()
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        for typed in ("/lora", "/lora pirate"):
            await enter(pilot, typed)
            await eventually(
                pilot, lambda: "has no adapters. Start the chat with some: edge chat --lora FILE" in complaint(app)
            )
            assert app.chat_screen.composer.text == ""


async def test_they_are_shown_with_their_scales():
    app = fake_app(lambda: FakeBackend(n_ctx=8192, adapters=fake_adapters("pirate", "formal")))
    async with app.run_test(size=(80, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "/lora pirate:0.5")
        await enter(pilot, "/lora")
        await eventually(pilot, lambda: isinstance(app.screen, ReadPage))
        shown = "\n".join("".join(part.text for part in strip) for strip in app.screen._compositor.render_strips())
        assert "pirate: 0.5" in shown and "formal: not applied" in shown
        await pilot.press("escape")
