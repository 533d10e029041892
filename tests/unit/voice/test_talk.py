"""A talk on fake stages and a virtual clock: messages, prefill, interruptions, devices that come and go."""

from __future__ import annotations

import asyncio
import threading
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge
from edge.config import load_settings
from edge.testing import FakeModel
from edge_voice import events
from edge_voice.echo import HalfDuplex
from edge_voice.talk import Talk
from edge_voice.testing import FakeStages

STORY = "Once upon a time, there was a small fox. It lived in the wood. It was happy."


def eventually(is_true: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < until, "the condition did not become true"
        time.sleep(0.002)


class Held:
    """A talk with a fake model, and what happens in it."""

    def __init__(
        self,
        answers: dict[str, Any] | None = None,
        *,
        fake: FakeStages | None = None,
        model: FakeModel | None = None,
        **settings: Any,
    ) -> None:
        self.fake = fake or FakeStages()
        self.model = model or FakeModel(answers)
        self.assistant = self.model.load()
        self.conversation = self.assistant.conversation()
        self.settings = load_settings({"voice.hands_free": True, **{f"voice.{key}": value for key, value in settings.items()}})
        self.talk: Talk = self.conversation.talk(
            settings=self.settings, stages=self.fake.opened, clock=self.fake.clock, is_threaded=False
        )
        self.events: list[events.VoiceEvent] = []
        self._reader = threading.Thread(target=lambda: self.events.extend(self.talk), daemon=True)
        self._reader.start()

    def close(self) -> None:
        self.talk.close()
        self._reader.join(60)
        self.assistant.close()

    def hear(self, text: str, pause_s: float = 0.6) -> None:
        """Let the user speak."""
        self.hear_sound(self.fake.language.sound(text), pause_s)

    def hear_sound(self, sound: Any, pause_s: float = 0.0) -> None:
        self.fake.microphone.hear(sound, pause_s)
        while not self.fake.microphone.is_done and self.talk.line._wants:
            self.talk.line.step()

    def until_spoken(self, words: str) -> None:
        """Wait until the voice has made some words."""
        eventually(lambda: any(words in said for said in self.fake.voice.said))

    def until_done(self) -> None:
        """Let time pass until nobody speaks any more."""

        def is_over() -> bool:
            self.fake.clock.advance(0.05)
            return self.talk.is_idle

        eventually(is_over)
        time.sleep(0.01)  # events are read by another thread

    def wait_for(self, kind: type, number: int = 1) -> Any:
        eventually(lambda: len(self.of(kind)) >= number)
        return self.of(kind)[number - 1]

    def of(self, kind: type) -> list[Any]:
        # The reader extends the list as it goes.
        return [event for event in list(self.events) if isinstance(event, kind)]

    @property
    def messages(self) -> list[tuple[str, str]]:
        return [(node.role, node.content) for node in self.conversation.messages]


@pytest.fixture
def hold() -> Iterator[Callable[..., Held]]:
    held: list[Held] = []

    def make(*arguments: Any, **options: Any) -> Held:
        held.append(Held(*arguments, **options))
        return held[-1]

    yield make
    for one in held:
        one.close()


def test_what_is_said_is_answered_aloud_and_saved_as_an_ordinary_conversation(hold: Callable[..., Held]) -> None:
    held = hold({"tell me a story": STORY})
    held.hear("tell me a story")
    held.until_spoken("It was happy")
    held.until_done()
    assert held.messages == [("user", "tell me a story"), ("assistant", STORY)]
    assert "".join(event.text for event in held.of(events.ReplyText)) == STORY
    done = held.of(events.ReplyDone)[0]
    assert done.text == STORY and done.timings.endpoint_s > 0.19
    assert done.timings.first_sound_s is not None
    assert held.fake.voice.said == [
        "Once upon a time",
        "there was a small fox",
        "It lived in the wood",
        "It was happy",
    ]
    spoken = [event.sentence for event in held.of(events.Speaking)]
    assert spoken[0] == "Once upon a time," and spoken[-1] == "It was happy."
    heard = [event.heard for event in held.of(events.Speaking)]
    assert heard == sorted(heard)


def test_the_spoken_reply_can_be_understood(hold: Callable[..., Held]) -> None:
    held = hold({"tell me a story": STORY})
    held.hear("tell me a story")
    held.until_spoken("It was happy")
    held.until_done()
    words = [
        held.fake.language.text(sound[::3] if rate == 48_000 else resample(sound, rate))
        for sound, rate in held.fake.speaker.played
    ]
    assert " ".join(words) == STORY.replace(",", "").replace(".", "")


def resample(sound: Any, rate: int) -> Any:
    n = round(len(sound) * 16_000 / rate)
    return np.interp(np.arange(n) * rate / 16_000, np.arange(len(sound)), sound).astype(np.float32)


def test_an_interruption_is_silent_at_once_and_cuts_the_reply_to_what_was_heard(hold: Callable[..., Held]) -> None:
    held = hold({"tell me a story": STORY, "thank you very much": "You are welcome."})
    held.hear("tell me a story")
    held.until_spoken("It was happy")
    eventually(lambda: held.talk._turn is not None and held.talk._turn.reply is not None and held.talk._turn.reply.is_done)
    held.fake.clock.advance(4 * 0.25 + 3 * 0.25 + 0.1)  # "Once upon a time, there was a" and the beginning of "small"
    before_s = held.fake.clock()
    held.hear("thank you very much", 0.0)
    interrupted = held.wait_for(events.Interrupted)
    assert interrupted.heard.startswith("Once upon a time, there was a") and "It lived" not in interrupted.heard
    assert abs(interrupted.at_s - before_s) < 0.1 and interrupted.silent_after_s < 0.25
    assert held.fake.speaker.n_stops >= 1 and not held.talk.line.mouth.is_sounding
    held.wait_for(events.ReplyDone)
    (node,) = [node for node in held.conversation.messages if node.role == "assistant"]
    assert node.content == interrupted.heard and node.status == "stopped"
    assert node.content + node.record["interrupted"]["unheard"] == STORY
    held.hear("", 0.6)
    held.until_spoken("You are welcome")
    held.until_done()
    assert held.messages[-2:] == [("user", "thank you very much"), ("assistant", "You are welcome.")]
    assert held.model.prompts[-1][-2] == ("assistant", interrupted.heard)  # the model knows no more than what was heard


def test_an_interruption_cancels_what_is_still_generated(hold: Callable[..., Held]) -> None:
    held = hold(model=FakeModel(lambda text: "One. " + "two " * 3000, token_s=0.002))
    held.talk.say("count")
    eventually(lambda: held.talk._turn is not None and held.talk._turn.first_token_s is not None)
    reply = held.talk._turn.reply  # type: ignore[union-attr]
    assert reply is not None
    assert held.talk.interrupt()
    eventually(lambda: reply.is_done)
    assert reply.is_cancelled and len(reply.text) < 4 * 3000


def test_speaking_on_before_the_answer_is_heard_replaces_the_message(hold: Callable[..., Held]) -> None:
    # A long word: however soon its sound is there, the user speaks on before it is over, so that none was heard.
    held = hold({"what is": "Immeasurably.", "what is the time": "Noon."})
    held.hear("what is", 0.4)
    held.wait_for(events.Final)
    eventually(lambda: held.fake.speaker.played)
    held.hear("the time", 0.6)
    held.until_spoken("Noon")
    held.until_done()
    assert held.messages == [("user", "what is the time"), ("assistant", "Noon.")]
    assert len(held.conversation.branches(held.conversation.messages[0].id)) == 2  # nothing is lost


def test_a_noise_before_the_answer_is_heard_answers_again(hold: Callable[..., Held]) -> None:
    held = hold({"hello": "Immeasurably good."})
    held.hear("hello")
    eventually(lambda: held.fake.speaker.played)
    held.hear_sound(np.full(1700, 0.2, np.float32), 1.0)  # a knock
    held.wait_for(events.Unclear)
    held.until_done()
    assert held.messages == [("user", "hello"), ("assistant", "Immeasurably good.")]


def test_what_is_said_is_prefilled_while_the_user_speaks(hold: Callable[..., Held], monkeypatch: pytest.MonkeyPatch) -> None:
    held = hold(None, pause_ms=500)
    asked: list[str] = []
    prewarm = held.conversation.prewarm
    monkeypatch.setattr(held.conversation, "prewarm", lambda text, **options: asked.append(text) or prewarm(text, **options))
    words = " ".join(f"word{n}" for n in range(12))
    held.hear(words, 0.3)
    eventually(lambda: words in asked and held.talk._prefill is not None and held.talk._prefill.is_done)
    assert len(asked) >= 4 and all(words.startswith(text.rpartition(" ")[0]) for text in asked)
    held.hear("", 0.6)
    held.wait_for(events.ReplyText)
    held.until_done()
    timings = held.of(events.ReplyDone)[0].timings
    assert timings.prefilled > 0.7 * timings.prompt


def test_without_read_ahead_nothing_is_prefilled(hold: Callable[..., Held], monkeypatch: pytest.MonkeyPatch) -> None:
    held = hold({"some words here": "Yes."}, read_ahead=False)
    monkeypatch.setattr(held.conversation, "prewarm", lambda text, **options: pytest.fail("prefilled"))
    held.hear("some words here")
    held.wait_for(events.ReplyText)


def test_half_duplex_is_deaf_while_the_model_speaks(hold: Callable[..., Held]) -> None:
    held = hold({"hello": STORY}, fake=FakeStages(echo=HalfDuplex()))
    held.hear("hello")
    held.until_spoken("It was happy")
    eventually(lambda: held.talk.line.mouth.is_sounding)
    held.hear("be quiet", 0.5)
    assert not held.of(events.Interrupted) and len(held.of(events.SpeechStarted)) == 1
    assert held.talk.interrupt()  # the key
    assert held.wait_for(events.Interrupted).heard.startswith("Once upon")


def test_with_a_key_one_utterance_is_heard_and_the_microphone_closed(hold: Callable[..., Held]) -> None:
    held = hold({"hello": "Yes."}, hands_free=False)
    held.talk.line.step()
    assert held.fake.microphone.n_open == 0 and not held.talk.line.is_listening
    held.talk.listen()
    held.hear("hello")
    held.wait_for(events.Final)
    held.talk.line.step()
    assert held.fake.microphone.n_open == 0
    held.until_done()
    assert [event.is_on for event in held.of(events.Listening)] == [True, False]
    assert held.messages[0] == ("user", "hello")


def test_the_key_again_ends_the_utterance(hold: Callable[..., Held]) -> None:
    held = hold({"one two": "Three."}, hands_free=False)
    held.talk.listen()
    held.hear("one two", 0.0)
    held.talk.release()
    assert held.wait_for(events.Endpoint).reason == "released"
    held.wait_for(events.ReplyText)
    held.talk.listen()
    held.talk.line.step()
    held.talk.release()  # nothing was said
    held.talk.line.step()
    assert not held.talk.line.is_listening


def test_nothing_said_after_the_key_is_a_notice(hold: Callable[..., Held]) -> None:
    held = hold(hands_free=False)
    held.talk.listen()
    held.hear_sound(np.full(11 * 16_000, 0.001, np.float32))
    assert held.wait_for(events.Notice).text == "Nothing was heard."
    held.talk.line.step()
    assert not held.talk.line.is_listening


def test_a_lost_microphone_is_one_line_and_comes_back(hold: Callable[..., Held]) -> None:
    held = hold({"hello": "Yes."})
    held.hear("", 0.1)
    held.fake.microphone.is_lost, held.fake.has_microphone = True, False
    assert not held.talk.line.step() and not held.talk.line.step()
    lost = held.wait_for(events.DeviceLost)
    assert lost.device == "microphone" and "gone" in lost.message and len(held.of(events.DeviceLost)) == 1
    assert [event.is_on for event in held.of(events.Listening)] == [True, False]
    held.fake.has_microphone = True
    held.hear("hello")
    held.wait_for(events.Final)
    assert held.of(events.DeviceBack)[0].name == "fake microphone"


def test_a_loudspeaker_lost_in_the_middle_of_a_sentence_loses_no_text(hold: Callable[..., Held]) -> None:
    held = hold({"hello": STORY, "again": "Yes."})
    held.hear("hello")
    held.until_spoken("It was happy")
    held.fake.clock.advance(0.3)
    held.fake.has_speaker, held.fake.speaker.is_lost = False, True
    lost = held.wait_for(events.DeviceLost)
    assert lost.device == "speaker" and "goes on in text" in lost.message
    held.until_done()
    assert held.messages == [("user", "hello"), ("assistant", STORY)]
    held.fake.has_speaker = True
    held.hear("again")
    held.until_spoken("Yes")
    held.until_done()
    assert held.of(events.DeviceBack)[0].device == "speaker" and len(held.of(events.DeviceLost)) == 1


def test_without_a_loudspeaker_an_interruption_cuts_nothing(hold: Callable[..., Held]) -> None:
    """The reply was there to be read."""
    held = hold({"hello": STORY})
    held.fake.has_speaker = False
    held.hear("hello")
    held.wait_for(events.ReplyDone)
    assert held.messages[-1] == ("assistant", STORY)


def test_where_no_voice_speaks_the_language_the_reply_is_read(hold: Callable[..., Held]) -> None:
    from dataclasses import replace

    from edge_voice.opening import _open_voice

    voice, [notice] = _open_voice(load_settings({"voice.language": "eu"}), None)
    assert voice is None and "speaks the language 'eu'" in notice
    fake = FakeStages()
    fake.opened = replace(fake.opened, voice=None)
    held = hold({"kaixo": STORY}, fake=fake)
    held.hear("kaixo")
    held.wait_for(events.ReplyDone)
    held.until_done()
    assert held.messages == [("user", "kaixo"), ("assistant", STORY)] and not fake.speaker.played


def test_a_failing_voice_is_a_notice_and_the_text_goes_on(hold: Callable[..., Held], monkeypatch: pytest.MonkeyPatch) -> None:
    held = hold({"hello": STORY})

    def fail(text: str) -> Iterator[Any]:
        raise RuntimeError("bad weights")

    monkeypatch.setattr(held.fake.voice, "speak", fail)
    held.hear("hello")
    assert "bad weights" in held.wait_for(events.Notice).text
    held.until_done()
    assert held.messages[-1] == ("assistant", STORY) and len(held.of(events.Notice)) == 1


def test_a_failing_reply_is_a_notice_and_the_talk_goes_on(hold: Callable[..., Held]) -> None:
    held = hold({"bad": edge.errors.BackendError("The engine failed.", "Try again."), "good": "Yes."})
    held.hear("bad")
    assert "The engine failed" in held.wait_for(events.Notice).text
    held.until_done()
    held.hear("good")
    held.wait_for(events.ReplyText)
    held.until_done()
    assert held.messages[-1] == ("assistant", "Yes.")


def test_sound_is_kept_only_where_that_is_asked_for(hold: Callable[..., Held], tmp_path: Path) -> None:
    held = hold({"hello there": "Yes."}, keep_audio=tmp_path / "kept")
    held.hear("hello there")
    held.wait_for(events.ReplyText)
    eventually(lambda: list((tmp_path / "kept").glob("*.wav")))
    (file,) = (tmp_path / "kept").glob("*.wav")
    assert file.stat().st_mode & 0o777 == 0o600
    with wave.open(str(file)) as sound:
        assert sound.getframerate() == 16_000 and sound.getnframes() > 8000


def test_lost_samples_are_counted_and_said_once(hold: Callable[..., Held], monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    held = hold()
    read = held.fake.microphone.read
    monkeypatch.setattr(held.fake.microphone, "read", lambda timeout_s: replace(read(timeout_s), n_lost=160))
    held.talk.line.step()
    held.talk.line.step()
    assert held.talk.line.n_lost == 320 and len([1 for _ in held.of(events.Notice)]) <= 1
    assert "too busy" in held.wait_for(events.Notice).text


def test_a_wake_word_of_ones_own(hold: Callable[..., Held]) -> None:
    from dataclasses import replace

    class Wake:
        is_said = False

        def heard(self, samples: Any) -> bool:
            return self.is_said

    fake, wake = FakeStages(), Wake()
    fake.opened = replace(fake.opened, wake=wake)
    held = hold({"hello": "Yes."}, fake=fake)
    held.hear("nobody asked")
    assert not held.of(events.SpeechStarted)
    wake.is_said = True
    held.hear("", 0.1)
    wake.is_said = False
    held.hear("hello")
    assert held.wait_for(events.Final).text == "hello"


async def test_events_for_async_readers() -> None:
    fake = FakeStages()
    with FakeModel({"hello": "Yes."}).load() as assistant:
        talk = await assistant.conversation().atalk(
            stages=fake.opened, clock=fake.clock, is_threaded=False, settings=load_settings()
        )
        async with talk:
            talk.say("hello")
            text = ""
            async for event in talk:
                match event:
                    case events.ReplyText(text=piece):
                        text += piece
                    case events.ReplyDone():
                        break
                    case events.Speaking():
                        fake.clock.advance(1.0)
        assert text == "Yes."
        await asyncio.sleep(0)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_voice.registry import open_stage

    with pytest.raises(edge.errors.BackendUnavailableError, match="not installed"):
        open_stage("vad", "no_such_package.vad:open_it", load_settings())
    with pytest.raises(edge.errors.UsageError, match="no vad named"):
        open_stage("vad", "silerro", load_settings())
