"""A whole talk with real models and real sound: human speech in, a spoken reply out, and an interruption of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

import edge
from edge.assistant import Assistant
from edge.config import Settings
from edge.testing import FakeModel
from edge_voice import events, transcribe
from edge_voice.stages import RATE, Samples
from edge_voice.talk import Talk
from tests.human_speech import human_set, why_no_speech, word_errors
from tests.virtual_sound import VirtualSound

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LONG = "The river runs through the old town. There are three bridges. People walk along the water in the evening. " * 3


def with_voice(settings: Settings, voice: str) -> Settings:
    return msgspec.structs.replace(settings, voice=msgspec.structs.replace(settings.voice, voice=voice, hands_free=True))


def speech(words: str) -> Samples:
    if reason := why_no_speech():
        pytest.skip(reason)
    return next(recording.samples for recording in human_set() if recording.words == words)


def wait_for(talk: Talk, kind: type, seen: list[events.VoiceEvent], timeout_s: float = 120) -> events.VoiceEvent:
    """Return the next event of a kind; all events up to it are added to `seen`."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        event = talk.get(1.0)
        if event is not None:
            seen.append(event)
            if isinstance(event, kind):
                return event
    raise AssertionError(f"no {kind.__name__} came; there were {[event.kind for event in seen if event.kind != 'level']}")


@pytest.fixture
def story() -> Iterator[Assistant]:
    """A model that tells a long story, whatever it hears."""
    with FakeModel(lambda text: LONG).load() as assistant:
        yield assistant


@pytest.mark.model
def test_what_is_said_is_answered_aloud_by_the_real_model(
    virtual_sound: VirtualSound, voice_settings: Settings, model_path: Path
) -> None:
    said, seen = speech("go forward ten meters"), list[events.VoiceEvent]()
    with edge.load(str(model_path), context=2048) as assistant:
        conversation = assistant.conversation(sampling=edge.Sampling(max_tokens=24, temperature=0))
        with conversation.talk(settings=with_voice(voice_settings, "hibari")) as talk, virtual_sound.recording() as heard:
            wait_for(talk, events.Listening, seen)
            virtual_sound.play(np.pad(said, (RATE // 2, RATE)), RATE).join()
            done = wait_for(talk, events.ReplyDone, seen)
            time.sleep(0.3)
        question, answer = conversation.messages
    assert word_errors([("go forward ten meters", question.content)])[0] <= 1
    assert isinstance(done, events.ReplyDone)
    assert answer.content == done.text == "".join(event.text for event in seen if isinstance(event, events.ReplyText))
    spoken = transcribe(heard[0], RATE, settings=voice_settings).text
    n_wrong, n_words = word_errors([(answer.content, spoken)])
    assert n_words >= 3
    assert n_wrong <= n_words / 3, (answer.content, spoken)
    assert any(isinstance(event, events.Partial) for event in seen)


def test_a_voice_interrupts_the_reply_and_only_what_was_heard_stays(
    virtual_sound: VirtualSound, voice_settings: Settings, story: Assistant
) -> None:
    said, seen = speech("go forward ten meters"), list[events.VoiceEvent]()
    conversation = story.conversation()
    with conversation.talk(settings=with_voice(voice_settings, "hibari")) as talk:
        wait_for(talk, events.Listening, seen)
        virtual_sound.play(np.pad(said, (RATE // 2, RATE)), RATE).join()
        wait_for(talk, events.Speaking, seen)
        time.sleep(3)
        playing = virtual_sound.play(said, RATE)
        interrupted = wait_for(talk, events.Interrupted, seen)
        wait_for(talk, events.ReplyDone, seen)
        playing.join()
        assert isinstance(interrupted, events.Interrupted)
        answer = conversation.messages[1]
        assert answer.content == interrupted.heard and 0 < len(answer.content) < len(LONG)
        assert LONG.startswith(answer.content) and answer.status == "stopped"
        assert answer.record["interrupted"]["unheard"] == LONG[len(answer.content) :]


def test_a_loudspeaker_that_is_unplugged_leaves_the_text(
    virtual_sound: VirtualSound, voice_settings: Settings, story: Assistant
) -> None:
    said, seen = speech("go forward ten meters"), list[events.VoiceEvent]()
    conversation = story.conversation()
    with conversation.talk(settings=with_voice(voice_settings, "hibari")) as talk:
        wait_for(talk, events.Listening, seen)
        virtual_sound.play(np.pad(said, (RATE // 2, RATE)), RATE).join()
        wait_for(talk, events.Speaking, seen)
        virtual_sound.unplug("speaker")
        lost = wait_for(talk, events.DeviceLost, seen)
        wait_for(talk, events.ReplyDone, seen)
        assert isinstance(lost, events.DeviceLost)
        assert lost.device == "speaker" and "goes on in text" in lost.message
        assert conversation.messages[1].content == LONG
