"""The ear on sound of the tone language: utterances, endpoints, partial transcripts, and what it leaves out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge.config.schema import VoiceSettings
from edge_voice.ear import Ear, common_words
from edge_voice.events import Endpoint, Final, Notice, Partial, SpeechStarted, VoiceEvent
from edge_voice.segments import Segmenter
from edge_voice.stages import Samples
from edge_voice.testing import FakeEndpoint, FakeMicrophone, FakeRecogniser, FakeVad, ToneLanguage, VirtualClock


class Heard:
    """An ear with fake stages, and what it says."""

    def __init__(self, *, endpoint: float = 1.0, max_s: float = 60.0, **settings: Any) -> None:
        self.clock, self.language = VirtualClock(), ToneLanguage()
        self.microphone = FakeMicrophone(self.clock)
        self.endpoint = FakeEndpoint(endpoint)
        self.recogniser = FakeRecogniser(self.language, max_s)
        self.events: list[VoiceEvent] = []
        self.sounds: list[Samples] = []
        self.ear = Ear(
            FakeVad(),
            self.endpoint,
            self.recogniser,
            VoiceSettings(**settings),
            self.events.append,
            self.clock,
            on_utterance=self.sounds.append,
            is_threaded=False,
        )

    def hear(self, text: str, pause_s: float = 1.0) -> None:
        self.hear_sound(self.language.sound(text), pause_s)

    def hear_sound(self, sound: Samples, pause_s: float = 1.0) -> None:
        self.microphone.hear(sound, pause_s)
        while not self.microphone.is_done:
            block = self.microphone.read(0)
            self.ear.feed(block.samples, block.at_s)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def test_an_utterance_becomes_a_message_soon_after_its_end() -> None:
    heard = Heard()
    heard.hear_sound(np.zeros(1600, np.float32), 0.5)
    began_s = heard.clock()
    heard.hear("turn on the light please")
    assert [event.text for event in heard.of(Final)] == ["turn on the light please"]
    start, end = heard.of(SpeechStarted)[0], heard.of(Endpoint)[0]
    assert abs(start.at_s - began_s) < 0.05
    assert abs(end.speech_end_s - (began_s + 5 * 0.25)) < 0.05
    assert end.reason == "model" and 0.19 < end.delay_s < 0.3
    assert heard.of(Final)[0].audio_s > 1.25
    assert heard.language.text(heard.sounds[0]) == "turn on the light please"


def test_partial_transcripts_grow_and_say_what_is_stable() -> None:
    heard = Heard()
    heard.hear("one two three four five six seven eight")
    partials = heard.of(Partial)
    assert len(partials) >= 4
    assert all("one two three four five six seven eight".startswith(p.text.rpartition(" ")[0]) for p in partials)
    assert partials[-1].stable.startswith("one two three")
    assert all(p.text.startswith(p.stable) for p in partials)


def test_the_transcript_of_the_pause_is_the_message() -> None:
    """It is made before the endpoint is known, so that nothing is transcribed after it."""
    heard = Heard()
    heard.hear("what time is it")
    place = heard.events.index(heard.of(Endpoint)[0])
    assert isinstance(heard.events[place + 1], Final)
    assert heard.recogniser.heard.count("what time is it") == 1


def test_a_pause_that_is_no_end_is_waited_for() -> None:
    heard = Heard(endpoint=0.0)
    heard.hear("I would like", 0.6)
    assert heard.endpoint.n_asked >= 2 and not heard.of(Endpoint)
    heard.endpoint.answer = 1.0
    heard.hear("some tea")
    assert len(heard.of(SpeechStarted)) == 1
    words = heard.of(Final)[0].text.split()
    assert words[:3] == ["I", "would", "like"] and words[-2:] == ["some", "tea"]


def test_the_endpoint_model_is_asked_before_the_pause_is_over() -> None:
    heard = Heard(pause_ms=200)
    heard.hear("turn on the light", 0.16)
    assert heard.endpoint.n_asked == 1 and not heard.of(Endpoint)
    heard.hear_sound(np.zeros(3200, np.float32), 0.0)
    assert heard.endpoint.n_asked == 1
    assert 0.15 <= heard.of(Endpoint)[0].delay_s <= 0.25


def test_an_answer_about_an_earlier_pause_does_not_count() -> None:
    heard = Heard(pause_ms=200)
    heard.hear("turn on", 0.16)
    heard.endpoint.answer = 0.0
    heard.hear("the light", 0.5)
    assert heard.endpoint.n_asked >= 2 and not heard.of(Endpoint)


def test_a_model_that_said_no_is_asked_again_before_another_whole_pause() -> None:
    heard = Heard(pause_ms=600, endpoint=0.0)
    heard.hear("I would like some tea", 0.65)
    assert heard.endpoint.n_asked >= 1 and not heard.of(Endpoint)
    heard.endpoint.answer = 1.0
    heard.hear_sound(np.zeros(16_000, np.float32), 0.0)
    assert 0.6 < heard.of(Endpoint)[0].delay_s < 0.9


def test_a_slow_endpoint_model_is_asked_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    n_asked = []
    for takes_s in (0.0, 0.2):
        heard, now = Heard(endpoint=0.0, longest_pause_ms=5000), [0.0]

        def judge(speech: Samples, takes_s: float = takes_s, heard: Heard = heard, now: list[float] = now) -> float:
            now[0] += takes_s
            heard.endpoint.n_asked += 1
            return 0.0

        monkeypatch.setattr("edge_voice.ear.time.perf_counter", lambda now=now: now[0])
        monkeypatch.setattr(heard.endpoint, "probability", judge)
        heard.hear("I would like", 2.2)
        n_asked.append(heard.endpoint.n_asked)
    assert n_asked == [17, 6], "after 0.2 s, every 0.128 s and every 0.4 s"


def test_silence_ends_an_utterance_whatever_the_model_says() -> None:
    heard = Heard(endpoint=0.0, longest_pause_ms=800)
    heard.hear("hello there", 2.0)
    assert heard.of(Endpoint)[0].reason == "silence"
    assert 0.8 <= heard.of(Endpoint)[0].delay_s < 0.9


def test_the_key_ends_an_utterance_in_the_middle() -> None:
    heard = Heard()
    heard.hear("stop right there", 0.0)
    heard.ear.release()
    assert heard.of(Endpoint)[0].reason == "released"
    assert heard.of(Final)[0].text.startswith("stop right")


def test_a_short_noise_is_no_message() -> None:
    heard = Heard()
    heard.hear_sound(np.full(1700, 0.2, np.float32))
    assert heard.of(SpeechStarted) and not heard.of(Final) and not heard.of(Endpoint)
    heard.hear("real words")
    assert [event.text for event in heard.of(Final)] == ["real words"]


def test_longer_than_the_recogniser_takes_is_split_at_a_pause() -> None:
    heard = Heard(endpoint=0.0, max_s=8.0, longest_pause_ms=1000)
    first, second = " ".join(f"a{n}" for n in range(16)), " ".join(f"b{n}" for n in range(16))
    heard.hear(first, 0.4)
    heard.hear(second, 1.5)
    (final,) = heard.of(Final)
    assert final.text == f"{first} {second}"
    assert len(heard.sounds[0]) > 8 * 16_000


@pytest.mark.parametrize("n_words", [40, 41, 47])
def test_without_any_pause_it_is_split_where_it_is_full(n_words: int) -> None:
    heard = Heard(max_s=4.0)
    heard.hear(" ".join(f"w{n}" for n in range(n_words)))
    (final,) = heard.of(Final)
    words = [word for word in final.text.split() if word != "?"]
    assert words[0] == "w0" and words[-1] == f"w{n_words - 1}"
    assert len(set(words)) >= n_words - n_words // 16 - 1  # a word that is cut in two may be lost


def test_a_failing_recogniser_is_a_notice_and_hearing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()

    def fail(*_: object, **__: object) -> str:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(heard.recogniser, "transcribe", fail)
        heard.hear("lost words")
    assert "no memory" in heard.of(Notice)[0].text and not heard.of(Final)
    heard.hear("these are heard")
    assert heard.of(Final)[0].text == "these are heard"


def test_what_is_forgotten_gives_nothing() -> None:
    heard = Heard()
    heard.hear("never mind", 0.0)
    assert heard.ear.is_hearing
    heard.ear.forget()
    heard.hear_sound(np.zeros(1600, np.float32))
    assert not heard.ear.is_hearing and not heard.of(Final)


def test_an_utterance_begins_with_several_frames_of_speech_only() -> None:
    segments = Segmenter(3)
    assert [segments.add(p) for p in (0.9, 0.1, 0.1, 0.9, 0.1, 0.9)] == ["silence"] * 6
    assert segments.add(0.9) == "started"
    assert [segments.add(p) for p in (0.4, 0.2, 0.4)] == ["speech", "pause", "speech"]


def test_common_words_leave_out_the_last_word() -> None:
    assert common_words("turn on the", "turn on the light") == "turn on"
    assert common_words("turn", "turn on") == "" and common_words("", "a b") == ""
