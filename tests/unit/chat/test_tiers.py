"""/escalate: another model answers, what would be sent is shown first, and nothing leaves without a yes."""

from __future__ import annotations

import contextlib

from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.testing import FakeModel
from edge.tiers import Escalation, LocalTier, Router
from edge_chat.screens.dialogs import ReadPage
from edge_chat.widgets.cards import ApprovalCard
from tests.chat_app import enter, eventually, fake_app, say, settle
from tests.servers.chat import chat_server


def complaint(app):
    return str(app.chat_screen.query_one("#complaint").render())


def last(app):
    return app.chat_screen.transcript.views[-1]


def shown(app):
    return "\n".join("".join(part.text for part in strip) for strip in app.screen._compositor.render_strips())


def status(app):
    return " ".join(text for _, text in app.chat_screen.status.values.parts())


async def test_a_larger_model_answers_by_hand_and_by_rule():
    with FakeModel(lambda text: f"LARGE says {text}").load() as larger:
        larger.model_name = "large"
        tier = LocalTier("large", lambda: contextlib.nullcontext(larger))

        def load(model, *, store, on_progress):
            return Assistant(FakeBackend(n_ctx=8192), store=store, escalation=Escalation(tier, Router(patterns=("prove",))))

        app = fake_app(loader=load)
        async with app.run_test(size=(100, 30)) as pilot:
            await settle(pilot)
            await say(pilot, "Hi")
            await settle(pilot)
            assert last(app).text.startswith("You said")
            assert "answered by" not in status(app)
            await enter(pilot, "/escalate now")
            await settle(pilot)
            assert last(app).text == "LARGE says Hi"
            assert "answered by large" in status(app)
            await say(pilot, "prove it")
            await settle(pilot)
            assert last(app).text == "LARGE says prove it"
            await enter(pilot, "/escalate off")
            await say(pilot, "prove it")
            await settle(pilot)
            assert last(app).text.startswith("You said")
            await enter(pilot, "/escalate preview")
            await eventually(pilot, lambda: any("Nothing would leave" in note.message for note in app._notifications))


async def test_nothing_is_sent_before_a_yes():
    with chat_server() as server:
        app = fake_app()
        async with app.run_test(size=(100, 40)) as pilot:
            await settle(pilot)
            await enter(pilot, f"/escalate to openai:{server.url}#m")
            await eventually(pilot, lambda: app.host.assistant.escalation is not None)
            app.host.assistant.escalation.router = Router(patterns=("",))
            await enter(pilot, "My secret")
            await eventually(pilot, lambda: bool(app.chat_screen.query(ApprovalCard)) and "My secret" in shown(app))
            assert server.paths == []
            await pilot.press("n")
            await settle(pilot)
            assert last(app).text.startswith("You said")
            assert server.paths == []
            await enter(pilot, "/escalate preview")
            await eventually(pilot, lambda: isinstance(app.screen, ReadPage))
            assert "Nothing was sent" in shown(app) and "My secret" in shown(app)
            await pilot.press("escape")
            assert server.paths == []
            await enter(pilot, "/escalate now")
            await eventually(pilot, lambda: bool(app.chat_screen.query(ApprovalCard)))
            await pilot.press("a")
            await settle(pilot)
            assert last(app).text == "Paris"
            assert f"answered by real-model at {server.url.removeprefix('http://')}" in status(app)
            await say(pilot, "And?")
            await settle(pilot)
            assert last(app).text == "Paris"
            assert not app.chat_screen.query(ApprovalCard), "always in this session"


async def test_without_a_tier_and_wrong_words():
    app = fake_app()
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "/escalate")
        await eventually(pilot, lambda: "no larger model to send questions on to" in complaint(app))
        await enter(pilot, "/escalate sideways")
        await eventually(pilot, lambda: "does not know 'sideways'" in complaint(app))
        await enter(pilot, "/escalate to openai:nowhere")
        await eventually(pilot, lambda: "is not the address of a server" in complaint(app))
        await enter(pilot, "/escalate to no-such-model")
        await eventually(pilot, lambda: "no model named 'no-such-model'" in complaint(app))


def test_the_first_screen_promises_what_is_true():
    from edge.config import load_settings
    from edge_chat.wording import promise

    assert "Nothing you type leaves it" in promise(load_settings({"escalation.to": "qwen3-1.7b"}))
    remote = {"escalation.to": "openai:https://gpu.example.org"}
    assert "asked before anything goes to https://gpu.example.org" in promise(load_settings(remote))
    allowed = promise(load_settings({**remote, "escalation.consent": "always"}))
    assert "https://gpu.example.org" in allowed and "Nothing" not in allowed
