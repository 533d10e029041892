"""The real voices: what they say is understood, is loud enough and never clips, is the same every time, and stops when told."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from edge.config import Settings
from edge.errors import CancelledError, UsageError
from edge_voice import transcripts
from edge_voice.registry import open_stage
from edge_voice.stages import Voice
from edge_voice.tts.choice import find_voices
from edge_voice.tts.kokoro import Kokoro, open_kokoro
from tests.virtual_sound import VirtualSound

TEXT = "It was a bright cold day in April, and the clocks were striking."
WORDS = TEXT.lower().replace(",", "").replace(".", "").split()


def sound_of(voice: Voice, text: str = TEXT) -> np.ndarray:
    return np.concatenate([*voice.speak(text), np.zeros(0, np.float32)])


@pytest.fixture(params=["kokoro", "hibari", "flite"])
def voice(request: pytest.FixtureRequest, voice_settings: Settings) -> Iterator[Voice]:
    if request.param == "flite" and shutil.which("flite") is None:
        pytest.skip("flite is not installed; .ci/run installs it")
    yield open_stage("voice", request.param, voice_settings)


def test_it_is_understood(voice: Voice, voice_settings: Settings) -> None:
    sound = sound_of(voice)
    assert sound.dtype == np.float32 and sound.ndim == 1
    assert 2.5 < len(sound) / voice.rate < 7.0
    peak, rms = np.abs(sound).max(), np.sqrt((sound**2).mean())
    assert peak <= 1.0
    assert (np.abs(sound) > 0.999).sum() < 3, "it does not clip"
    assert -35 < 20 * np.log10(rms) < -10, "it is loud enough"
    assert np.array_equal(sound, sound_of(voice)), "the same words sound the same"
    heard = transcripts.transcribe(sound, voice.rate, "en", settings=voice_settings).text
    words = heard.lower().replace(",", "").replace(".", "").split()
    missed = len(set(WORDS) - set(words))
    assert missed <= (0 if voice.name != "flite, slt" else 3), heard


def test_nothing_to_say(voice: Voice) -> None:
    for text in ("", "  ", "\n"):
        assert len(sound_of(voice, text)) == 0


def test_pace_and_speakers(voice_settings: Settings) -> None:
    from edge.catalog import voice_folder

    folder = voice_folder("kokoro-82m", settings=voice_settings)
    usual = sound_of(Kokoro(folder))
    fast = sound_of(Kokoro(folder, speed=1.5))
    assert 0.5 < len(fast) / len(usual) < 0.85
    other = sound_of(Kokoro(folder, speaker="am_puck"))
    assert len(other) != len(usual)
    with pytest.raises(UsageError, match="nobody") as caught:
        Kokoro(folder, speaker="nobody")
    assert "af_heart" in caught.value.hint and "am_puck" in caught.value.hint
    with pytest.raises(UsageError):
        Kokoro(folder, speaker="../voices/af_heart")


def test_it_stops_within_a_sentence(voice_settings: Settings) -> None:
    voice = open_kokoro(voice_settings)
    running, errors = threading.Event(), list[BaseException]()
    run = voice._model._session.run

    def noted(*arguments: object) -> object:
        running.set()
        return run(*arguments)

    def speak() -> None:
        try:
            sound_of(voice, TEXT[:-1] + ", " + TEXT[:-1] + ", " + TEXT)
        except CancelledError as error:
            errors.append(error)

    class Session:
        run = staticmethod(noted)

    voice._model._session = Session()
    thread = threading.Thread(target=speak)
    thread.start()
    running.wait()
    voice.cancel()
    thread.join()
    assert len(errors) == 1, "the run of the model was ended, not waited for"
    assert len(sound_of(voice)) > 0, "and it speaks again"


def test_a_reply_in_markdown_through_the_loudspeaker(voice_settings: Settings, virtual_sound: VirtualSound) -> None:
    from edge_cli.main import run

    text = "**The clocks** were striking thirteen.\n\n```\nx = 1\n```\n\nIt costs $20 🎉."
    with virtual_sound.recording() as recorded:
        assert run(["say", "--voice", "hibari", text]) == 0
    heard = transcripts.transcribe(recorded[0], 16_000, "en", settings=voice_settings).text.lower()
    for words in ("clocks were striking", "on the screen", "it costs"):
        assert words in heard, heard
    assert "20" in heard or "twenty" in heard


def test_what_is_here_is_found(voice_settings: Settings) -> None:
    assert {"kokoro", "hibari"} <= set(find_voices(voice_settings))
