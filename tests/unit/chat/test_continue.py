"""`/continue` and loops: the rest of an answer goes into the same message."""

from __future__ import annotations

import pytest

from edge.backends.fake import FakeBackend
from edge.conversation import ConversationStore
from edge.errors import BackendError, ModelNotFoundError
from edge_chat.app import ChatApp
from tests.chat_app import enter, eventually, fake_app, say, settle, texts

LONG = "One two three four five.\n\n- six\n- seven\n\nThe end."


def complaint(app: ChatApp) -> str:
    line = app.chat_screen.query_one("#complaint")
    return str(line.render()) if line.display else ""


def heads(app: ChatApp) -> list[str]:
    return [str(head.render()) for head in app.chat_screen.transcript.query(".head")]


def footer(app: ChatApp) -> str:
    return str(app.chat_screen.query_one("#hints").render())


async def test_a_cut_answer_is_continued_with_a_command_and_with_a_key() -> None:
    store = ConversationStore(None)
    app = fake_app(lambda: FakeBackend(n_ctx=8192, script=lambda _: LONG), store=store)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "/set max_tokens 10")
        await say(pilot, "go")
        assert texts(app)[1] == f"Fake: {LONG[:10]}"
        assert heads(app)[1] == "Fake  cut off · /continue goes on"
        await say(pilot, "/continue")
        assert texts(app)[1] == f"Fake: {LONG[:20]}"
        await say(pilot, "/set max_tokens none")
        await pilot.press("ctrl+up")
        assert footer(app).startswith("g continue")
        await pilot.press("g")
        await settle(pilot)
        assert texts(app) == ["You: go", f"Fake: {LONG}"]
        assert heads(app)[1] == "Fake" and app.chat_screen.composer.input.has_focus
        assert not app.chat_screen.transcript.views[1].notices, "it is not cut off any more"
        assert app.chat_screen.transcript.views[1].markdown.source.strip() == LONG
        await say(pilot, "/continue")
        assert app.chat_screen.transcript.views[1].notices == ("The model has nothing to add.",)
    nodes = store.path(store.list()[0].id)
    assert [(node.role, node.content, node.status) for node in nodes] == [
        ("user", "go", "complete"),
        ("assistant", LONG, "complete"),
    ]


async def test_a_stopped_answer_is_continued_and_stopped_again() -> None:
    app = fake_app(lambda: FakeBackend(n_ctx=8192, script=lambda _: "abcdefgh" * 100, delay_s=0.02))
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        lengths = []
        for command in ("go", "/continue", "/continue"):
            await enter(pilot, command)
            before = lengths[-1] if lengths else 0
            await eventually(pilot, lambda before=before: len("".join(texts(app)[1:])) > before + 12)  # type: ignore[misc]
            await pilot.press("escape")
            await settle(pilot)
            lengths.append(len(texts(app)[1]) - len("Fake: "))
            assert len(texts(app)) == 2 and heads(app)[1] == "Fake  stopped · /continue goes on"
        assert lengths == sorted(set(lengths)) and ("abcdefgh" * 100).startswith(texts(app)[1][6:])


async def test_what_cannot_be_continued_says_why() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "/continue")
        assert "This conversation is empty" in complaint(app)
        await say(pilot, "one")
        await say(pilot, "two")
        await pilot.press("ctrl+up", "ctrl+up", "ctrl+up", "g")
        await settle(pilot)
        assert "Other messages follow this one" in complaint(app)


async def test_continuing_that_fails_keeps_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    app = fake_app(lambda: FakeBackend(n_ctx=8192, script=lambda _: LONG))
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "/set max_tokens 10")
        await say(pilot, "go")

        def fail(*arguments: object, **options: object) -> None:
            raise BackendError("The engine is busy.", "Wait.")

        monkeypatch.setattr("edge.assistant.Conversation.resume", fail)
        await say(pilot, "/continue")
        assert texts(app) == ["You: go", f"Fake: {LONG[:10]}"]
        card = app.chat_screen.query(".error-card").first()
        monkeypatch.undo()
        card.focus()
        await pilot.press("r")
        await settle(pilot)
        assert texts(app)[1] == f"Fake: {LONG[:20]}"


async def test_a_loop_is_stopped_and_says_how_it_goes_on() -> None:
    app = fake_app(lambda: FakeBackend(n_ctx=16384, script=lambda _: "And then I went home again. " * 100))
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "go")
        assert len(texts(app)[1]) < 2000
        assert heads(app)[1] == "Fake  stopped · /continue goes on"
        assert "only repeats itself" in " ".join(app.chat_screen.transcript.views[1].notices)
        await say(pilot, "/set max_repeats 0")
        await say(pilot, "/continue")
        assert texts(app)[1] == "Fake: " + "And then I went home again. " * 100


async def test_a_setting_allows_loops() -> None:
    assert fake_app().chat_screen.controller.sampling.max_repeats == 5
    app = fake_app(settings={"sampling.max_repeats": "0"})
    assert app.chat_screen.controller.sampling.max_repeats == 0


async def test_a_reply_that_begins_to_repeat_itself_says_so() -> None:
    app = fake_app(lambda: FakeBackend(n_ctx=16384, script=lambda _: "And then I went home again. " * 100, delay_s=0.005))
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await enter(pilot, "go")
        await eventually(pilot, lambda: len(heads(app)) > 1 and heads(app)[1] == "Fake  repeats itself · Esc stops")
        await pilot.press("escape")
        await settle(pilot)
        assert heads(app)[1] == "Fake  stopped · /continue goes on"


async def test_a_model_that_cannot_be_loaded_can_be_dismissed() -> None:
    def load(model: str, **options: object) -> object:
        from edge.assistant import Assistant

        if model == "nosuch":
            raise ModelNotFoundError("There is no model named 'nosuch'.", "See names: edge models ls.")
        return Assistant(FakeBackend(), store=options["store"])  # type: ignore[arg-type]

    app = fake_app(loader=load)
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "hello")
        await say(pilot, "/model nosuch")
        card = app.chat_screen.query(".error-card").first()
        shown = " ".join(str(part.render()) for part in card.query("Static"))
        assert "nosuch could not be loaded; Fake is still in use" in shown and "See names: /model." in shown
        await pilot.press("ctrl+up", "x")
        await settle(pilot)
        assert not app.chat_screen.query(".error-card")
        assert app.chat_screen.composer.input.has_focus
        await say(pilot, "/new")
        assert not app.chat_screen.query(".error-card"), "it stays away"
        await say(pilot, "/model nosuch")
        assert app.chat_screen.query(".error-card"), "and comes again when it happens again"


async def test_the_message_being_edited_is_marked() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "one")
        await pilot.press(*"half")
        await pilot.press("ctrl+up", "ctrl+up", "e")
        await settle(pilot)
        assert heads(app)[0] == "You  being edited below"
        assert app.chat_screen.composer.text == "one"
        await pilot.press("escape")
        await settle(pilot)
        assert heads(app)[0] == "You"
        assert app.chat_screen.composer.text == "half", "what was being written comes back"
        await pilot.press("ctrl+up", "ctrl+up", "e", *" more", "enter")
        await settle(pilot)
        assert texts(app)[0] == "You: one more"
        assert app.chat_screen.composer.text == "half", "also after the edit was sent"


async def test_the_hint_for_branches_is_shown_where_there_are_some() -> None:
    app = fake_app()
    async with app.run_test(size=(100, 40)) as pilot:
        await settle(pilot)
        await say(pilot, "one")
        await pilot.press("ctrl+r")
        await settle(pilot)
        await pilot.press("ctrl+up")
        await settle(pilot)
        assert footer(app).startswith("Left/Right branch")
