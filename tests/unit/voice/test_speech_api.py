"""`edge_voice.speak` and `synthesise`: text as sound, piece by piece, with a voice that says words as tones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edge_voice
from edge.catalog import DownloadProgress
from edge.config import load_settings
from edge.errors import BackendUnavailableError, CancelledError, ModelNotFoundError, UsageError
from edge_voice import models
from edge_voice.models import models_for_talk
from edge_voice.speech import with_voice
from edge_voice.tts.choice import models_for_speech
from tests.standins.voice import SAID

VOICE = "tests.standins.voice:open_voice"


def test_a_text_is_said_in_pieces(own_home: Path) -> None:
    sound, rate = edge_voice.speak(
        "**Hello there**, you. It costs $5.\n\n```\nx\n```\n🙂", voice=VOICE, settings=load_settings()
    )
    assert SAID == ["Hello there, you.", "It costs five dollars.", "Code on the screen."]
    assert (sound.dtype, sound.ndim, rate) == (np.float32, 1, 24_000)
    assert len(sound) == rate * 0.25 * len(" ".join(SAID).split())


def test_nothing_to_say(own_home: Path) -> None:
    for text in ("", "🙂", "---"):
        sound, rate = edge_voice.speak(text, voice=VOICE, settings=load_settings())
        assert (len(sound), rate) == (0, 24_000)


def test_a_reply_is_said_while_it_arrives(own_home: Path) -> None:
    asked = list[str]()

    def parts() -> Iterator[str]:
        for part in ("The sky is blue, ", "and so is ", "the sea. ", "The end"):
            asked.append(part)
            yield part

    synthesis = edge_voice.synthesise(parts(), voice=VOICE, settings=load_settings())
    sounds = iter(synthesis)
    assert asked == [] and synthesis.rate == 24_000
    next(sounds)
    assert asked == ["The sky is blue, ", "and so is "] and SAID == ["The sky is blue,"]
    assert len(list(sounds)) == 3 + 5 + 2
    assert SAID == ["The sky is blue,", "and so is the sea.", "The end"]


def test_it_can_be_cancelled(own_home: Path) -> None:
    synthesis = edge_voice.synthesise(["One two three. Four five six."], voice=VOICE, settings=load_settings())
    sounds = iter(synthesis)
    next(sounds)
    synthesis.cancel()
    assert list(sounds) == []


def test_what_is_chosen(own_home: Path) -> None:
    settings = load_settings()
    chosen = with_voice(settings, "kokoro/am_puck", speed=1.5, language="en-GB").voice
    assert (chosen.voice, chosen.voice_name, chosen.speed, chosen.language) == ("kokoro", "am_puck", 1.5, "en-GB")
    assert with_voice(settings, "auto").voice.voice is None
    assert with_voice(settings, None) == settings
    for speed in (0.4, 2.1, float("nan")):
        with pytest.raises(UsageError, match="speed"):
            with_voice(settings, None, speed=speed)
    with pytest.raises(UsageError, match="nobody"):
        edge_voice.speak("hi", voice="nobody", settings=settings)
    with pytest.raises(ModelNotFoundError) as caught:
        edge_voice.speak("hi", voice="hibari", settings=settings)
    assert "edge models pull hibari" in caught.value.hint


def test_the_models_that_are_missing(own_home: Path) -> None:
    settings = load_settings()
    assert models_for_speech(settings) == ("kokoro-82m", "hibari")
    assert models_for_speech(with_voice(settings, "hibari")) == ("hibari",)
    assert models_for_speech(with_voice(settings, "flite")) == ()
    assert models_for_speech(with_voice(settings, None, language="de")) == ()


def test_what_a_talk_lacks_is_fetched_in_turn(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacks = ("silero-vad", "smart-turn-v3", "moonshine-tiny-en", "kokoro-82m", "hibari")
    settings = load_settings()
    assert models_for_talk(settings) == lacks
    with monkeypatch.context() as patch, pytest.raises(BackendUnavailableError, match="sounddevice"):
        patch.setattr(models, "find_spec", lambda name: None if name == "sounddevice" else name)
        models_for_talk(settings)  # no model would help
    seen = list[tuple[int, int, str]]()

    def stop(number: int, n_models: int, progress: DownloadProgress) -> None:
        seen.append((number, n_models, progress.name))
        raise CancelledError("Enough.")

    with pytest.raises(CancelledError):
        models.fetch_for_talk(settings, stop)
    assert seen == [(1, len(lacks), "silero-vad")]


def test_the_face_costs_nothing() -> None:
    code = "import sys, edge_voice; edge_voice.speak; print([name for name in ('numpy', 'onnxruntime') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
