"""`edge_voice.speak` and `synthesise`: text as sound, piece by piece, with a voice that says words as tones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import edge_voice
from edge.catalog import DownloadProgress
from edge.config import Settings, load_settings
from edge.errors import BackendUnavailableError, CancelledError, ModelNotFoundError, UsageError
from edge_voice import models
from edge_voice.models import models_for_talk
from edge_voice.speech import with_voice
from edge_voice.tts import choice
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


def test_the_models_that_are_missing(own_home: Path) -> None:
    settings = load_settings()
    assert models_for_speech(settings) == ("kokoro-82m", "hibari")
    assert models_for_speech(with_voice(settings, "hibari")) == ("hibari",)
    assert models_for_speech(with_voice(settings, "flite")) == ()
    assert models_for_speech(with_voice(settings, None, language="de")) == ()


def test_the_light_voice_is_fetched_beside_the_good_one_but_not_the_other_way(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, here = load_settings(), set[str]()
    monkeypatch.setattr(choice, "find_voice", lambda name, settings: object() if name in here else None)
    here.add("kokoro-82m")
    assert models_for_speech(settings) == ("hibari",), "Kokoro may be too slow here"
    here.add("hibari")
    assert models_for_speech(settings) == ()
    here.remove("kokoro-82m")
    assert models_for_speech(settings) == (), "it may have been removed"


def test_missing_models_are_fetched_and_offline_the_error_says_how(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def pull(name: str, *, settings: Settings, on_progress: Callable[[DownloadProgress], None]) -> None:
        asked.append(name)
        on_progress(DownloadProgress(name, 1, 2, "download"))
        raise CancelledError("Enough.")

    steps = list[tuple[int, int, str]]()

    def told(number: int, n_models: int, progress: DownloadProgress) -> None:
        steps.append((number, n_models, progress.name))

    offline = load_settings({"hub.offline": True})
    silence = np.zeros(1600, np.float32)
    for call in (
        lambda settings: edge_voice.speak("hi", voice="hibari", settings=settings, on_fetch=told),
        lambda settings: edge_voice.synthesise(["hi"], voice="kokoro", settings=settings, on_fetch=told),
        lambda settings: edge_voice.transcribe(silence, 16_000, settings=settings, on_fetch=told),
        lambda settings: edge_voice.hear(settings, on_fetch=told),
    ):
        with pytest.raises(ModelNotFoundError, match="not to use the network"):
            call(offline)
        with monkeypatch.context() as patch, pytest.raises(CancelledError):
            patch.setattr("edge.catalog.pull_voice", pull)
            call(load_settings())
    assert asked == ["hibari", "kokoro-82m", "silero-vad", "silero-vad"]
    assert steps == [(1, 1, "hibari"), (1, 1, "kokoro-82m"), (1, 2, "silero-vad"), (1, 3, "silero-vad")]


def test_a_voice_that_cannot_be_fetched_is_stood_in_for(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, here = load_settings({"hub.offline": True}), set[str]()
    monkeypatch.setattr(choice, "find_voice", lambda name, settings: object() if name in here else None)
    monkeypatch.setattr(choice, "has_flite", lambda: False)
    with pytest.raises(ModelNotFoundError):
        models.fetch_models(["hibari"], settings)
    here.add("kokoro-82m")
    [line] = models.fetch_models(["hibari"], settings)
    assert "hibari could not be fetched, so another one speaks" in line
    for names, wanted in ((["silero-vad"], None), (["hibari"], "hibari")):
        with pytest.raises(ModelNotFoundError):
            models.fetch_models(names, with_voice(settings, wanted))


def test_a_package_that_a_stage_lacks_is_named(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for lacking, settings in (
        ("ctranslate2", load_settings({"voice.language": "de"})),
        ("tokenizers", load_settings({"voice.recogniser": "whisper"})),
        ("sanotts", load_settings({"voice.voice": "hibari"})),
        ("soxr", load_settings()),
        ("livekit", load_settings({"voice.echo": "livekit"})),
    ):
        with monkeypatch.context() as patch, pytest.raises(BackendUnavailableError, match=f"not installed: {lacking}"):
            patch.setattr(models, "find_spec", lambda name, lacking=lacking: None if name == lacking else name)
            models_for_talk(settings)


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
