"""Another process writes into the conversation that is on the screen; answers that are missing are noticed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.conversation import ConversationStore
from edge.types import Message
from edge_chat.app import ChatApp
from edge_chat.widgets.cards import ErrorCard
from tests.chat_app import enter, eventually, fake_app, say, settle, texts


def note(app: ChatApp) -> str:
    return "\n".join(str(line.render()) for line in app.chat_screen.transcript.query(".note"))


async def test_a_turn_of_another_process_is_shown_and_the_draft_stays(tmp_path: Path) -> None:
    here, there = ConversationStore(tmp_path / "c.db"), ConversationStore(tmp_path / "c.db")
    app = fake_app(store=here)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        before = texts(app)
        app.chat_screen.composer.load("half a thought")
        conversation_id = app.chat_screen.controller.active_id
        assert conversation_id is not None
        question = there.append(conversation_id, Message("user", "from elsewhere"), parent=there.path(conversation_id)[-1].id)
        await eventually(pilot, lambda: texts(app) == [*before, "You: from elsewhere"])
        await eventually(pilot, lambda: "may be generating" in note(app))
        answer = there.append(conversation_id, Message("assistant", "Word"), parent=question.id, status="partial", model="Fake")
        await eventually(pilot, lambda: texts(app)[-1] == "Fake: Word")
        await eventually(pilot, lambda: note(app) == "")
        there.update(answer.id, content="Word by word")
        await eventually(pilot, lambda: texts(app)[-1] == "Fake: Word by word")
        there.update(answer.id, content="Word by word.", status="complete")
        await eventually(pilot, lambda: texts(app)[-1] == "Fake: Word by word.")
        assert app.chat_screen.composer.text == "half a thought"
        await settle(pilot)
        shown = app.chat_screen.transcript.views[-1].markdown.lines_at(60)
        assert [line.text for line in shown] == ["Word by word."]


async def test_a_real_turn_of_another_assistant_is_shown(tmp_path: Path) -> None:
    here, there = ConversationStore(tmp_path / "c.db"), ConversationStore(tmp_path / "c.db")
    app = fake_app(store=here)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        conversation_id = app.chat_screen.controller.active_id
        with Assistant(FakeBackend(script=lambda message: "From over there."), store=there) as other:
            other.conversation(conversation_id).send("and now?").wait()
        await eventually(pilot, lambda: texts(app)[2:] == ["You: and now?", "Fake: From over there."])
        await say(pilot, "go on")
        assert len(texts(app)) == 6


async def test_a_conversation_deleted_elsewhere_is_told_once(tmp_path: Path) -> None:
    here, there = ConversationStore(tmp_path / "c.db"), ConversationStore(tmp_path / "c.db")
    app = fake_app(store=here)
    told: list[str] = []
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        app.chat_screen.complain = lambda error: told.append(str(error))  # type: ignore[method-assign]
        there.delete(there.list()[0].id)
        await eventually(pilot, lambda: told)
        app.chat_screen._poll()
        await settle(pilot)
        assert len(told) == 1 and "no conversation" in told[0]


async def test_a_question_that_was_left_without_an_answer_says_how_to_get_one() -> None:
    store = ConversationStore(None)
    info = store.create(title="t")
    store.append(info.id, Message("user", "hi"), parent=None)
    app = fake_app(store=store, conversation=info.id, settings={"chat.keys.regenerate": "ctrl+y"})
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        assert note(app) == "No answer (the app may have been stopped). Ctrl+Y asks again."
        await pilot.press("ctrl+y")
        await settle(pilot)
        assert note(app) == "" and len(texts(app)) == 2


async def test_a_reply_stopped_before_its_first_word_says_so() -> None:
    gate = threading.Event()

    class Gated(FakeBackend):
        def decode(self, steps: Sequence[tuple[int, int]]) -> None:
            gate.wait(120)
            super().decode(steps)

        def prefill(self, seq_id: int, tokens: Sequence[int], **options: object) -> int:
            gate.wait(120)
            return super().prefill(seq_id, tokens, **options)  # type: ignore[arg-type]

    app = fake_app(lambda: Gated(n_ctx=8192))
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await enter(pilot, "hi")
        await eventually(
            pilot, lambda: app.chat_screen.controller.sending.run and app.chat_screen.controller.sending.run.was_accepted
        )
        await pilot.press("escape")
        gate.set()
        await settle(pilot)
        assert texts(app) == ["You: hi"]
        assert "stopped before its first word" in note(app)
        await say(pilot, "once more")
        assert note(app) == ""


async def test_two_windows_that_send_at_once_make_no_branches(tmp_path: Path) -> None:
    here, there = ConversationStore(tmp_path / "c.db"), ConversationStore(tmp_path / "c.db")
    app = fake_app(store=here)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        conversation_id = app.chat_screen.controller.active_id
        with Assistant(FakeBackend(script=lambda message: "From over there.", delay_s=0.2), store=there) as other:
            reply = other.conversation(conversation_id).send("and now?")
            await say(pilot, "me too")
            assert app.chat_screen.composer.text == "me too", "it comes back"
            card = app.chat_screen.query_one(ErrorCard)
            assert "being answered in another window" in card.error.message
            reply.cancel()
            reply.wait()
            await eventually(pilot, lambda: texts(app)[2:3] == ["You: and now?"])
            await pilot.press("enter")
            await settle(pilot)
        nodes = here.path(conversation_id or "")
        assert [node.content for node in nodes if node.role == "user"] == ["hi", "and now?", "me too"]
        assert here.branches(conversation_id or "") == {}


async def test_the_list_shows_what_another_window_adds(tmp_path: Path) -> None:
    here, there = ConversationStore(tmp_path / "c.db"), ConversationStore(tmp_path / "c.db")
    app = fake_app(store=here)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        there.append(there.create().id, Message("user", "Whales"), parent=None)
        listing = app.chat_screen.sidebar.listing
        await eventually(pilot, lambda: any("Whales" in str(option.prompt) for option in listing.options))
        there.rename(there.list()[0].id, "Dolphins")
        await eventually(pilot, lambda: any("Dolphins" in str(option.prompt) for option in listing.options))
