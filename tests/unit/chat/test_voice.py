"""Voice in the chat, on fake stages: what is said is a message, replies are spoken, and whatever fails leaves the text."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from edge.catalog import DownloadProgress
from edge.config import Settings
from edge.errors import CancelledError, ModelNotFoundError
from edge_chat.app import ChatApp
from edge_chat.voice_opening import VoiceOpening
from edge_chat.widgets.voice_bar import VoiceBar, VoiceState, level_bar
from edge_voice.events import VoiceEvent
from edge_voice.line import Line
from edge_voice.testing import FakeStages
from tests.chat_app import enter, eventually, fake_app, settle, texts


def voiced(fake: FakeStages, **settings: Any) -> ChatApp:
    """Return a chat whose line is on fake stages; a test moves its microphone."""
    app = fake_app(settings={f"voice.{name}": value for name, value in settings.items()})

    def open_line(
        settings: Settings, take: Callable[[VoiceEvent], None], on_spoken: Callable[[str], None], opening: VoiceOpening
    ) -> Line:
        return Line(fake.opened, settings.voice, take, on_spoken=on_spoken, clock=fake.clock, is_threaded=False)

    app.chat_screen.voice.open_line = open_line
    return app


def bar(app: ChatApp) -> str:
    shown = app.chat_screen.query_one(VoiceBar)
    return str(shown.render()) if shown.display else ""


async def hear(pilot: Pilot[Any], fake: FakeStages, text: str, pause_s: float = 0.8) -> None:
    """Let the user speak."""
    app = pilot.app
    assert isinstance(app, ChatApp)
    line = app.chat_screen.voice._line
    assert line is not None
    fake.microphone.hear(fake.language.sound(text), pause_s)
    while not fake.microphone.is_done and line._wants:
        await asyncio.to_thread(line.step)
    await asyncio.to_thread(line.step)
    # Not pilot.pause(): it waits for widgets that an interruption is just removing.


async def test_the_key_listens_and_what_is_said_is_sent_and_answered_aloud() -> None:
    fake = FakeStages()
    app = voiced(fake)
    async with app.run_test() as pilot:
        await settle(pilot)
        assert bar(app) == ""
        await pilot.press("f5")
        await eventually(pilot, lambda: app.chat_screen.voice.is_on)
        await eventually(pilot, lambda: app.chat_screen.voice._line._wants)  # type: ignore[union-attr]
        await asyncio.to_thread(app.chat_screen.voice._line.step)  # type: ignore[union-attr]
        await eventually(pilot, lambda: "● listening" in bar(app))
        await hear(pilot, fake, "good morning")
        await eventually(pilot, lambda: len(texts(app)) == 2)
        await settle(pilot)
        assert texts(app)[0] == "You: good morning" and "good morning" in texts(app)[1]
        assert "listening" not in bar(app)
        await eventually(pilot, lambda: "good morning" in " ".join(fake.voice.said))
        fake.clock.advance(0.3)
        await eventually(pilot, lambda: "♪" in bar(app))
        fake.clock.advance(100.0)
        await eventually(pilot, lambda: "F5 to speak" in bar(app))


async def test_the_partial_transcript_is_in_the_message_box_behind_what_was_typed() -> None:
    fake = FakeStages()
    app = voiced(fake, hands_free=True, pause_ms=2000)
    async with app.run_test() as pilot:
        await settle(pilot)
        await enter(pilot, "/voice")
        await eventually(pilot, lambda: app.chat_screen.voice.is_on)
        app.chat_screen.composer.load("By the way,")
        await hear(pilot, fake, "one two three four five six", 0.2)
        await eventually(pilot, lambda: "three" in app.chat_screen.composer.text)
        assert app.chat_screen.composer.text.startswith("By the way, one two")
        assert "hearing you" in bar(app)
        await hear(pilot, fake, "", 3.0)
        await eventually(pilot, lambda: texts(app))
        assert texts(app)[0] == "You: By the way, one two three four five six"


async def test_an_interruption_cuts_the_reply_on_the_screen_to_what_was_heard() -> None:
    fake = FakeStages()
    app = voiced(fake, hands_free=True)
    async with app.run_test() as pilot:
        await settle(pilot)
        await enter(pilot, "/voice")
        await eventually(pilot, lambda: app.chat_screen.voice.is_on)
        await hear(pilot, fake, "a b c d e f g h")
        await eventually(pilot, lambda: len(texts(app)) == 2)
        await settle(pilot)
        whole = texts(app)[1].removeprefix("Fake: ")
        await eventually(pilot, lambda: "print" in " ".join(fake.voice.said))
        fake.clock.advance(0.25 * len(" ".join(fake.voice.said).split()) / 2)
        await hear(pilot, fake, "wait a moment", 0.0)
        voice = app.chat_screen.voice
        await eventually(pilot, lambda: voice._cutting is not None and voice._cutting.done())
        cut = texts(app)[1].removeprefix("Fake: ")
        assert whole.startswith(cut) and 0 < len(cut) < len(whole)
        await hear(pilot, fake, "", 1.0)
        await eventually(pilot, lambda: len(texts(app)) == 4)
        await settle(pilot)
        assert [text.partition(":")[0] for text in texts(app)] == ["You", "Fake", "You", "Fake"]
        assert texts(app)[2] == "You: wait a moment"


async def test_speaking_on_before_anything_was_heard_edits_the_message() -> None:
    fake = FakeStages()
    app = voiced(fake, hands_free=True)
    async with app.run_test() as pilot:
        await settle(pilot)
        await enter(pilot, "/voice")
        await eventually(pilot, lambda: app.chat_screen.voice.is_on)
        await hear(pilot, fake, "what is", 0.3)
        await eventually(pilot, lambda: app.chat_screen.voice._run is not None)
        await hear(pilot, fake, "the time")
        await settle(pilot)
        await eventually(pilot, lambda: texts(app) and texts(app)[0] == "You: what is the time")
        await settle(pilot)
        assert len(texts(app)) == 2


async def test_escape_is_silence_and_keeps_the_text() -> None:
    fake = FakeStages()
    app = voiced(fake)
    async with app.run_test() as pilot:
        await settle(pilot)
        await enter(pilot, "/voice on")
        await eventually(pilot, lambda: app.chat_screen.voice.is_on)
        await enter(pilot, "hello over there")
        await settle(pilot)
        await eventually(pilot, lambda: fake.voice.said)
        whole = texts(app)
        await pilot.press("escape")
        line = app.chat_screen.voice._line
        assert line is not None and not line.mouth.is_speaking and texts(app) == whole
        await enter(pilot, "/voice off")
        await settle(pilot)
        assert bar(app) == "" and not app.chat_screen.voice.is_on


async def test_without_a_microphone_there_is_one_line_and_the_text_is_kept() -> None:
    fake = FakeStages()
    fake.has_microphone = False
    app = voiced(fake)
    async with app.run_test() as pilot:
        await settle(pilot)
        app.chat_screen.composer.load("half a message")
        await pilot.press("f5")
        await eventually(pilot, lambda: app.chat_screen.voice.is_on)
        await eventually(pilot, lambda: app.chat_screen.voice._line._wants)  # type: ignore[union-attr]
        await asyncio.to_thread(app.chat_screen.voice._line.step)  # type: ignore[union-attr]
        await eventually(pilot, lambda: app._notifications)
        (notice,) = app._notifications
        assert "There is no microphone" in notice.message
        assert app.chat_screen.composer.text == "half a message" and "listening" not in bar(app)
        await pilot.press("enter")
        await settle(pilot)
        assert texts(app)[0] == "You: half a message"


async def test_a_missing_model_is_said_and_the_chat_goes_on() -> None:
    app = voiced(FakeStages())

    def fail(*_: object) -> Line:
        raise ModelNotFoundError("silero-vad is not on this device.", "Fetch it with: edge models pull voice")

    app.chat_screen.voice.open_line = fail
    app.wants_voice = True
    async with app.run_test() as pilot:
        await settle(pilot)
        complaint = app.chat_screen.composer.query_one("#complaint")
        assert "edge models pull voice" in str(complaint.render()) and bar(app) == ""
        await enter(pilot, "hello")
        await settle(pilot)
        assert len(texts(app)) == 2


async def test_what_opening_does_is_shown_and_escape_ends_it() -> None:
    fake = FakeStages()
    app = voiced(fake)
    reached, attempts, made = threading.Event(), list[VoiceOpening](), list[Line]()
    whole = app.chat_screen.voice.open_line

    def slow(
        settings: Settings, take: Callable[[VoiceEvent], None], on_spoken: Callable[[str], None], opening: VoiceOpening
    ) -> Line:
        attempts.append(opening)
        if len(attempts) == 1:
            opening.fetched(2, 5, DownloadProgress("kokoro-82m", 34 * 10**6, 92 * 10**6, "download"))
            reached.wait(10)
            opening.measured(1, 3)  # raises: it was cancelled
        made.append(whole(settings, take, on_spoken, opening))
        return made[-1]

    app.chat_screen.voice.open_line = slow
    app.wants_voice = True
    async with app.run_test() as pilot:
        await eventually(pilot, lambda: "kokoro-82m (2 of 5 for voice): 34" in bar(app))
        assert "Esc cancels" in bar(app)
        # Not pilot.press: it waits until the worker of the opening has ended.
        assert await app.chat_screen.stop()
        assert bar(app) == "" and attempts[0].is_cancelled
        app.chat_screen.run_guarded(app.chat_screen.voice.switch, True)  # waits for the end of the first attempt
        await pilot.pause(0.05)
        assert len(attempts) == 1
        reached.set()
        await eventually(pilot, lambda: app.chat_screen.voice.is_on)
        assert (len(attempts), len(made)) == (2, 1) and "F5 to speak" in bar(app)
        assert str(app.chat_screen.composer.query_one("#complaint").render()) == ""


def test_a_measurement_waits_until_the_model_is_loaded() -> None:
    said, loading = list[str](), [True, True, False]
    opening = VoiceOpening(said.append, lambda: loading.pop(0))
    opening.measured(0, 3)
    opening.measured(1, 3)
    assert [text.partition(":")[0] for text in said] == [
        "Waiting for the model, then choosing a voice",
        *["Measuring once how fast the voice Kokoro is here"] * 2,
    ]
    assert said[1].endswith("1 of 3") and said[2].endswith("2 of 3")
    opening.cancel()
    with pytest.raises(CancelledError):
        opening.measured(2, 3)


async def test_an_unknown_way_is_refused() -> None:
    app = voiced(FakeStages())
    async with app.run_test() as pilot:
        await settle(pilot)
        await enter(pilot, "/voice loud")
        await settle(pilot)
        assert "hands-free" in str(app.chat_screen.composer.query_one("#complaint").render())


@pytest.mark.parametrize(("level_db", "shown"), [(-90, "········"), (-33, "▁▂▃▄····"), (0, "▁▂▃▄▅▆▇█")])
def test_the_level_as_a_bar(level_db: float, shown: str) -> None:
    assert level_bar(level_db) == shown


def test_plain_mode_has_words_only() -> None:
    state = VoiceState("ready", is_listening=True, is_hearing=True, level_db=-20, sentence="All is well.")
    text = ". ".join(part for part, _ in state.parts(lambda name: "F5", is_plain=True))
    assert text == "Microphone on: hearing you. Speaking: All is well. F5 interrupts" and text.isascii()


@pytest.mark.parametrize(
    ("state", "keys"),
    [
        (VoiceState("ready"), "Voice is on. talk to speak"),
        (VoiceState("ready", is_listening=True), "talk sends, stop cancels"),
        (VoiceState("ready", is_listening=True, is_hands_free=True), "/voice off ends it"),
        (VoiceState("ready", sentence="Yes."), "talk interrupts"),
        (VoiceState("opening"), "stop cancels"),
    ],
)
def test_the_keys_that_work_now(state: VoiceState, keys: str) -> None:
    assert state.parts(lambda name: name, is_plain=False)[-1][0] == keys
