from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge.assistant import Assistant
from edge.backends.base import Sampler
from edge.backends.fake import FakeBackend
from edge.backends.sampling import seed_of
from edge.conversation import ConversationStore
from edge.errors import BackendError, StorageError
from edge.types import Message, Sampling
from edge_chat.widgets.cards import ErrorCard, WaitingCard
from edge_chat.widgets.empty import EmptyState
from edge_chat.widgets.status import StatusValues
from tests.chat_app import enter, eventually, fake_app, say, settle, texts

ANSWERS = {"hi": "Hello.", "code": "Look:\n\n```python title=x\nprint(1)\n```\n\nDone.", "long": "word " * 60}


class GatedBackend(FakeBackend):
    """Stops after some tokens of every reply until the gate is opened."""

    def __init__(self, gate: threading.Event, n_free: int = 5) -> None:
        super().__init__(script=ANSWERS, n_ctx=8192)
        self.gate, self.n_free, self.n_steps = gate, n_free, 0

    def decode(self, steps: Sequence[tuple[int, int]]) -> None:
        self.n_steps += 1
        if self.n_steps > self.n_free:
            self.gate.wait(120)
        super().decode(steps)


class BrokenBackend(FakeBackend):
    """Fails in the middle of a reply as long as it is told to."""

    def __init__(self, n_good: int) -> None:
        super().__init__(script=ANSWERS, n_ctx=8192)
        self.n_good = n_good

    def decode(self, steps: Sequence[tuple[int, int]]) -> None:
        self.n_good -= 1
        if self.n_good < 0:
            raise BackendError("The engine ran out of luck.", "Try again later.")
        super().decode(steps)


def scripted() -> FakeBackend:
    return FakeBackend(script=ANSWERS, n_ctx=8192)


async def test_a_message_is_answered_and_saved() -> None:
    store = ConversationStore(None)
    app = fake_app(scripted, store=store)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        assert app.chat_screen.query(EmptyState)
        await say(pilot, "hi")
        assert texts(app) == ["You: hi", "Fake: Hello."]
        assert not app.chat_screen.query(EmptyState)
        assert app.chat_screen.composer.text == ""
        values = app.chat_screen.status.values
        assert values.used > 0 and values.total == 8192 and values.has_reply
    [info] = store.list()
    assert info.title == "hi" and info.draft == ""
    assert [node.content for node in store.path(info.id)] == ["hi", "Hello."]


async def test_code_blocks_have_a_language_and_can_be_copied() -> None:
    app = fake_app(scripted)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "code")
        await say(pilot, "/copy code")
        assert app.clipboard == "print(1)"
        await say(pilot, "/copy")
        assert app.clipboard == ANSWERS["code"]
        await say(pilot, "/copy all")
        assert "print(1)" in app.clipboard and "code" in app.clipboard


async def test_stopping_keeps_what_was_said() -> None:
    gate = threading.Event()
    store = ConversationStore(None)
    app = fake_app(lambda: GatedBackend(gate), store=store)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.composer.load("long")
        await pilot.press("enter")
        await eventually(pilot, lambda: any(text.startswith("Fake: word") for text in texts(app)))
        await pilot.press("escape")
        gate.set()
        await settle(pilot)
        view = app.chat_screen.transcript.views[-1]
        assert view.state == "stopped" and "word".startswith(view.text[:4])
    [info] = store.list()
    answer = store.path(info.id)[-1]
    assert answer.status == "stopped" and answer.content and len(answer.content) < len(ANSWERS["long"])


async def test_typing_goes_on_while_a_reply_is_written_and_the_next_message_waits() -> None:
    gate = threading.Event()
    app = fake_app(lambda: GatedBackend(gate))
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.composer.load("long")
        await pilot.press("enter")
        await eventually(pilot, lambda: app.chat_screen.controller.sending.run is not None)
        await pilot.press(*"hi")
        assert app.chat_screen.composer.text == "hi"
        await pilot.press("enter")
        await eventually(pilot, lambda: app.chat_screen.query(WaitingCard))
        gate.set()
        await settle(pilot)
        assert not app.chat_screen.query(WaitingCard)
        assert texts(app)[2:] == ["You: hi", "Fake: Hello."]


async def test_a_waiting_message_can_be_taken_back() -> None:
    gate = threading.Event()
    app = fake_app(lambda: GatedBackend(gate))
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.composer.load("long")
        await pilot.press("enter")
        await eventually(pilot, lambda: app.chat_screen.controller.sending.run is not None)
        await pilot.press(*"hi", "enter")
        await eventually(pilot, lambda: app.chat_screen.query(WaitingCard))
        await pilot.press("escape")
        await eventually(pilot, lambda: not app.chat_screen.query(WaitingCard))
        assert app.chat_screen.composer.text == "hi"
        assert app.chat_screen.controller.sending.run is not None, "the reply goes on"
        gate.set()
        await settle(pilot)
        assert len(texts(app)) == 2


async def test_a_reply_goes_on_in_the_background() -> None:
    gate = threading.Event()
    app = fake_app(lambda: GatedBackend(gate))
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.composer.load("long")
        await pilot.press("enter")
        await eventually(pilot, lambda: any(text.startswith("Fake: w") for text in texts(app)))
        busy = app.chat_screen.controller.active_id
        assert busy is not None
        await pilot.press("ctrl+n")
        await eventually(pilot, lambda: app.chat_screen.controller.active_id is None and texts(app) == [])
        await app.chat_screen.controller.open(busy)
        await eventually(pilot, lambda: any(text.startswith("Fake: w") for text in texts(app)))
        assert len(texts(app)) == 2
        gate.set()
        await settle(pilot)
        assert texts(app) == ["You: long", f"Fake: {ANSWERS['long'].strip()} "]


async def test_leaving_right_after_enter_sends_the_message_where_it_was_written() -> None:
    store = ConversationStore(None)
    other = store.create(title="other")
    store.append(other.id, Message("user", "before"), parent=None)
    app = fake_app(scripted, store=store)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        controller, composer = app.chat_screen.controller, app.chat_screen.composer
        # A conversation of which only the draft is saved, and one of which nothing is.
        for message, is_saved, leave in (
            ("hi", True, controller.new),
            ("code", False, lambda: controller.open(other.id)),
        ):
            composer.load(message)
            if is_saved:
                await controller.ensure_saved()
            composer.send()
            await leave()
            await settle(pilot)
        assert controller.active_id == other.id
    said = sorted(store.path(info.id)[0].content for info in store.list())
    assert said == ["before", "code", "hi"]
    assert all(info.draft == "" for info in store.list())
    assert len(store.path(other.id)) == 1


async def test_a_refused_message_comes_back_where_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\0\0")
    store = ConversationStore(None)
    app = fake_app(scripted, store=store, cwd=tmp_path)
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        controller, composer = app.chat_screen.controller, app.chat_screen.composer
        composer.load("see @image.png")
        await controller.ensure_saved()
        composer.send()
        await controller.new()
        await settle(pilot)
        assert composer.text == ""
        [info] = store.list()
        assert info.draft == "see @image.png"


async def test_a_reply_that_ends_elsewhere_is_there_later() -> None:
    gate = threading.Event()
    app = fake_app(lambda: GatedBackend(gate))
    async with app.run_test(size=(120, 30)) as pilot:
        await settle(pilot)
        app.chat_screen.composer.load("long")
        await pilot.press("enter")
        await eventually(pilot, lambda: any(text.startswith("Fake: w") for text in texts(app)))
        busy = app.chat_screen.controller.active_id
        assert busy is not None
        await pilot.press("ctrl+n")
        gate.set()
        await settle(pilot)
        assert texts(app) == []
        await app.chat_screen.controller.open(busy)
        await settle(pilot)
        assert texts(app)[1] == f"Fake: {ANSWERS['long']}"


async def test_an_error_in_the_middle_is_shown_in_place_and_can_be_tried_again() -> None:
    backend = BrokenBackend(3)
    app = fake_app(lambda: backend)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        card = app.chat_screen.query_one(ErrorCard)
        assert card.error.message == "The engine ran out of luck." and card.error.hint == "Try again later."
        assert texts(app) == ["You: hi", "Fake: Hell"]
        assert app.chat_screen.transcript.views[-1].state == "failed"
        backend.n_good = 1000
        await pilot.press("ctrl+up")
        assert card.has_focus
        await pilot.press("r")
        await settle(pilot)
        assert not app.chat_screen.query(ErrorCard)
        assert texts(app) == ["You: hi", "Fake: Hello."]


async def test_an_error_before_the_first_token_leaves_the_question() -> None:
    backend = BrokenBackend(1000)
    app = fake_app(lambda: backend)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "x" * 20_000)
        card = app.chat_screen.query_one(ErrorCard)
        assert card.title_text == "There is no reply"
        assert texts(app) == []
        assert app.chat_screen.composer.text == "x" * 20_000, "too long: it comes back, to be shortened"


async def test_a_message_that_cannot_be_saved_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ConversationStore(None)
    app = fake_app(scripted, store=store)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")

        def refuse(*args: object, **options: object) -> None:
            raise StorageError("The disk is full.", "Free some space.")

        append = store.append
        monkeypatch.setattr(store, "append", refuse)
        await say(pilot, "hi\nagain")
        assert app.chat_screen.composer.text == "hi\nagain"
        assert app.chat_screen.query_one(ErrorCard).error.message == "The disk is full."
        assert texts(app) == ["You: hi", "Fake: Hello."]
        monkeypatch.setattr(store, "append", append)
        await pilot.press("enter")
        await settle(pilot)
        assert not app.chat_screen.query(ErrorCard)
        assert texts(app)[2] == "You: hi\nagain"


async def test_two_slashes_send_one() -> None:
    app = fake_app(scripted)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "//new")
        assert texts(app)[0] == "You: /new"


async def test_blank_messages_are_not_sent() -> None:
    app = fake_app(scripted)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "  \n ")
        assert texts(app) == [] and app.chat_screen.controller.active_id is None


async def test_mentioned_files_go_along(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes")
    store = ConversationStore(None)
    app = fake_app(scripted, store=store, cwd=tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "what is in @notes.md?")
    node = store.path(store.list()[0].id)[0]
    assert node.content == "what is in @notes.md?"
    assert [(a.name, a.text) for a in node.attachments] == [("notes.md", "# Notes")]


async def test_a_mentioned_file_that_cannot_go_along_stops_the_message(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\0\0")
    app = fake_app(scripted, cwd=tmp_path)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "see @image.png")
        assert app.chat_screen.composer.text == "see @image.png"
        assert "binary" in str(app.chat_screen.query_one("#complaint").render())
        assert texts(app) == []


async def test_a_long_conversation_opens_at_its_end_and_shows_more_on_demand() -> None:
    store = ConversationStore(None)
    info = store.create(title="long")
    parent = None
    for number in range(100):
        role = "user" if number % 2 == 0 else "assistant"
        parent = store.append(info.id, Message(role, f"message {number}"), parent=parent).id  # type: ignore[arg-type]
    app = fake_app(scripted, store=store, conversation=info.id)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        shown = app.chat_screen.transcript.views
        assert shown[-1].text == "message 99" and len(shown) == 30
        await app.chat_screen.transcript.show_earlier()
        assert [view.text for view in app.chat_screen.transcript.views] == [f"message {i}" for i in range(40, 100)]
        await say(pilot, "hi")
        assert texts(app)[-1] == "Fake: Hello."
        await app.chat_screen.transcript.show_earlier()
        await app.chat_screen.transcript.show_earlier()
        assert [view.text for view in app.chat_screen.transcript.views][:100] == [f"message {i}" for i in range(100)]


async def test_an_answer_that_ends_at_the_limit_of_the_user_says_so() -> None:
    app = fake_app(scripted)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "/set max_tokens 3")
        await say(pilot, "hi")
        view = app.chat_screen.transcript.views[-1]
        assert view.text == "Hel" and "the limit you set, 3 tokens" in view.notices[0]
        assert "the limit you set" in str(view.query_one(".notice").render())


async def test_an_answer_that_fills_the_window_says_so() -> None:
    app = fake_app(lambda: FakeBackend(script=lambda message: "word " * 200, n_ctx=128))
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        notices = app.chat_screen.transcript.views[-1].notices
        assert "context window is full" in notices[0] and "you set" not in notices[0]


@pytest.mark.parametrize(
    ("sampling", "why"),
    [
        (Sampling(temperature=0), "temperature 0 always takes the likeliest"),
        (Sampling(seed=7), "the seed is fixed at 7"),
        (Sampling(temperature=0.1), "temperature 0.1 leaves little to chance"),
    ],
)
async def test_the_same_answer_again_says_why(sampling: Sampling, why: str) -> None:
    def load(model: str, *, store: ConversationStore, on_progress: object) -> Assistant:
        return Assistant(scripted(), store=store, sampling=sampling)

    app = fake_app(loader=load)
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        assert app.chat_screen.transcript.views[-1].notices == ()
        await pilot.press("ctrl+r")
        await settle(pilot)
        assert why in app.chat_screen.transcript.views[-1].notices[0]


async def test_regenerating_draws_with_another_seed_each_time() -> None:
    """The engine takes a fresh seed where none is set, so the app must not set one."""
    seeds: list[int] = []

    class Drawn(FakeBackend):
        def open_sampler(self, sampling: Sampling, history: Sequence[int] = ()) -> Sampler:
            seeds.append(seed_of(sampling.seed))
            return super().open_sampler(sampling, history)

    app = fake_app(lambda: Drawn(script=ANSWERS, n_ctx=8192))
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        for _ in range(3):
            await pilot.press("ctrl+r")
            await settle(pilot)
    assert len(set(seeds)) == len(seeds) == 4


async def test_the_status_line_keeps_up_with_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_chat.widgets.status._MEASURED_S", 1e-9)  # the free tokens take less on a quick machine
    gate = threading.Event()
    app = fake_app(lambda: GatedBackend(gate, n_free=40))

    def status() -> StatusValues:
        return app.chat_screen.status.values

    async with app.run_test(size=(140, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        before = status()
        await enter(pilot, "long")
        await eventually(pilot, lambda: status().used > before.used + 10 and status().tokens_per_s > 0)
        values = status()
        line = str(app.chat_screen.status.render())
        assert values.has_reply and "tok/s" in line
        assert "reused" not in line, "that is known when the reply is there"
        gate.set()
        await settle(pilot)
        assert status().used > values.used
        assert "reused" in str(app.chat_screen.status.render())


async def test_what_is_to_be_known_of_a_model_is_told_once() -> None:
    class Untemplated(FakeBackend):
        def __init__(self) -> None:
            super().__init__(script=ANSWERS, n_ctx=8192)
            self.info = dataclasses.replace(self.info, chat_template=None)

    app = fake_app(Untemplated)
    told: list[str] = []
    app.chat_screen.tell = told.append  # type: ignore[method-assign]
    async with app.run_test(size=(100, 30)) as pilot:
        await settle(pilot)
        await say(pilot, "hi")
        assert len(told) == 1 and "template" in told[0]
