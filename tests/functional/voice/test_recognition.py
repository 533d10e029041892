"""The real models on human speech: words, languages, endpoints, and what is no speech."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest

from edge.config import Settings
from edge.errors import CancelledError, ModelFileError, ModelNotFoundError, UsageError
from edge_voice.asr.moonshine import Moonshine, open_moonshine
from edge_voice.asr.whisper import Whisper, open_whisper
from edge_voice.endpoint import open_smart_turn
from edge_voice.stages import RATE, Recogniser, Samples
from edge_voice.transcripts import find_speech, transcribe, transcribe_segments
from edge_voice.vad import open_silero
from tests.human_speech import Recording, human_set, why_no_speech, word_errors

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def recordings() -> list[Recording]:
    if reason := why_no_speech():
        pytest.skip(reason)
    return human_set()


def noises() -> dict[str, Samples]:
    """Return ten seconds each of what is no speech."""
    rng, n = np.random.default_rng(3), 10 * RATE
    t = np.arange(n) / RATE
    spectrum = np.fft.rfft(rng.normal(size=n))
    pink = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), n)
    clicks = np.zeros(n)
    for start in rng.integers(0, n - 200, 60):
        clicks[start : start + 200] += rng.normal(size=200) * np.exp(-np.arange(200) / 30)
    sounds = {
        "silence": np.zeros(n),
        "faint noise": rng.normal(size=n) * 0.001,
        "loud noise": rng.normal(size=n) * 0.2,
        "rain": pink / np.abs(pink).max() * 0.8,
        "keys": clicks * 0.5,
        "mains hum": 0.3 * np.sin(2 * np.pi * 50 * t) + 0.1 * np.sin(2 * np.pi * 150 * t),
        "chords": sum(0.15 * np.sin(2 * np.pi * hz * t) for hz in (262, 330, 392)) * (np.sin(np.pi * t) > 0),
        "a constant": np.full(n, 0.5),
    }
    return {name: np.asarray(sound, np.float32) for name, sound in sounds.items()}


def errors(recogniser: Recogniser, settings: Settings, recordings: list[Recording], language: str) -> tuple[int, int]:
    vad, pairs = open_silero(settings), []
    for recording in recordings:
        around = np.pad(recording.samples, RATE // 2)
        found = transcribe_segments(around, vad, recogniser, language)
        pairs.append((recording.words, " ".join(segment.text for segment in found)))
    return word_errors(pairs)


def test_the_default_recogniser_gets_at_most_6_percent_of_human_words_wrong(
    voice_settings: Settings, recordings: list[Recording]
) -> None:
    """1 of 100 words where this was written; on the bare recordings, without the silence that a microphone gives, 3."""
    moonshine = open_moonshine(voice_settings)
    n_wrong, n_words = errors(moonshine, voice_settings, recordings, "en")
    assert n_words == 100
    assert n_wrong <= 6
    bare = word_errors((one.words, moonshine.transcribe(one.samples)) for one in recordings)
    assert bare[0] <= 6


def test_whisper_understands_them_too_and_knows_that_it_is_english(
    voice_settings: Settings, recordings: list[Recording]
) -> None:
    """5 of 100 words where this was written, and 0 of 70 of the novel."""
    whisper = open_whisper(voice_settings)
    n_wrong, _ = errors(whisper, voice_settings, recordings, "en")
    assert n_wrong <= 10
    novel = [one for one in recordings if one.name.startswith("sense")]
    assert word_errors((one.words, whisper.transcribe(one.samples)) for one in novel)[0] <= 3
    assert whisper.language == "en"
    assert len(whisper.languages) == 99
    with pytest.raises(UsageError, match="'tlh'"):
        whisper.transcribe(novel[0].samples, language="tlh")


def test_speech_longer_than_the_recogniser_takes_is_split(voice_settings: Settings, recordings: list[Recording]) -> None:
    novel = [one for one in recordings if one.name.startswith("sense")] * 3
    sound = np.concatenate([one.samples for one in novel])
    moonshine = open_moonshine(voice_settings)
    assert len(sound) / RATE > 3 * moonshine.max_s
    segments = list(transcribe_segments(sound, open_silero(voice_settings), moonshine, "en"))
    assert all(segment.end_s - segment.start_s <= moonshine.max_s for segment in segments)
    assert all(one.end_s <= other.start_s for one, other in itertools.pairwise(segments))
    said = " ".join(one.words for one in novel)
    n_wrong, n_words = word_errors([(said, " ".join(segment.text for segment in segments))])
    assert n_words == 210
    assert n_wrong <= 12


@pytest.mark.parametrize("name", sorted(noises()))
def test_what_is_no_speech_gives_no_words(voice_settings: Settings, name: str) -> None:
    sound = noises()[name]
    assert find_speech(sound, open_silero(voice_settings), 24 * RATE) == []
    result = transcribe(sound, RATE, settings=voice_settings)
    assert (result.text, result.segments, result.language) == ("", (), "")
    assert result.audio_s == 10


def test_words_between_noises_are_found_where_they_are(voice_settings: Settings, recordings: list[Recording]) -> None:
    noise = noises()["faint noise"]
    one, other = recordings[4], recordings[5]
    sound = np.concatenate([noise[: 2 * RATE], one.samples, noise[: 3 * RATE], other.samples, noise[:RATE]])
    stereo = np.stack([sound, sound], axis=1)
    result = transcribe((stereo * 32767).astype(np.int16), RATE, "en", settings=voice_settings)
    first, second = result.segments
    assert abs(first.start_s - 2) < 0.7
    assert abs(second.start_s - (5 + len(one.samples) / RATE)) < 0.7
    assert word_errors([(f"{one.words} {other.words}", result.text)])[0] <= 3
    assert result.language == "en"


def test_the_language_can_be_found_out(voice_settings: Settings, recordings: list[Recording]) -> None:
    result = transcribe(recordings[5].samples, RATE, "auto", settings=voice_settings)
    assert result.language == "en"
    assert "dashwood" in result.text.lower()
    with pytest.raises(UsageError, match="'xx'"):
        transcribe(recordings[5].samples, RATE, "xx", settings=voice_settings)


@pytest.mark.prove(one_of=2)
@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_sound_at_other_rates_is_understood_as_well(voice_settings: Settings, recordings: list[Recording], rate: int) -> None:
    from edge_voice.resample import resample

    pairs = []
    for one in recordings:
        there = resample(np.pad(one.samples, RATE // 2), RATE, rate)
        pairs.append((one.words, transcribe(np.stack([there, there], axis=1), rate, settings=voice_settings).text))
    assert word_errors(pairs)[0] <= 6


@pytest.mark.parametrize("which", ["moonshine", "whisper"])
def test_a_transcription_can_be_stopped(voice_settings: Settings, recordings: list[Recording], which: str) -> None:
    recogniser = open_moonshine(voice_settings) if which == "moonshine" else open_whisper(voice_settings)
    recogniser.cancel()  # of nothing
    sound = np.concatenate([one.samples for one in recordings])[: int(recogniser.max_s * RATE)]
    ended = list[BaseException]()

    def run() -> None:
        try:
            while True:
                recogniser.transcribe(sound)
        except CancelledError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.3)
    while thread.is_alive():
        recogniser.cancel()
        thread.join(0.05)
    assert len(ended) == 1
    assert recogniser.transcribe(recordings[0].samples).lower().startswith(("ten", "10"))


def test_the_end_of_a_sentence_is_told_from_its_middle(voice_settings: Settings, recordings: list[Recording]) -> None:
    turn, pause = open_smart_turn(voice_settings), np.zeros(int(0.2 * RATE), np.float32)
    novel = [one.samples for one in recordings if one.name.startswith("sense")]
    cuts = [one[: int(len(one) * part)] for one in novel for part in (0.3, 0.4, 0.5)]
    middles = [turn.probability(np.concatenate([one, pause])) for one in cuts]
    ends = [turn.probability(np.concatenate([one, pause])) for one in novel]
    assert np.mean(ends) > np.mean(middles) + 0.15
    assert turn.probability(np.zeros(10, np.float32)) >= 0  # shorter than its 8 seconds, and silent


def test_speech_is_told_from_silence_frame_by_frame(voice_settings: Settings, recordings: list[Recording]) -> None:
    vad = open_silero(voice_settings)
    sound = np.concatenate([np.zeros(RATE, np.float32), recordings[5].samples, np.zeros(RATE, np.float32)])
    frames = sound[: len(sound) // vad.frame * vad.frame].reshape(-1, vad.frame)
    first = [vad.probability(frame) for frame in frames]
    n = RATE // vad.frame
    assert max(first[: n - 2]) < 0.3
    assert max(first[-n + 8 :]) < 0.3
    assert np.mean(np.array(first[n + 4 : -n - 4]) > 0.5) > 0.85
    vad.reset()
    assert [vad.probability(frame) for frame in frames] == first


def test_short_sound_is_no_error(voice_settings: Settings) -> None:
    for recogniser in (open_moonshine(voice_settings), open_whisper(voice_settings)):
        assert recogniser.transcribe(np.zeros(100, np.float32)) == ""
    assert transcribe(np.zeros(0, np.float32), RATE, settings=voice_settings).text == ""


def test_models_that_are_missing_or_damaged_are_said_to_be(
    voice_settings: Settings, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathlib import Path

    from edge.catalog import voice_folder
    from edge.config import load_settings

    folder = Path(str(tmp_path))
    for name in ("moonshine-tiny-en", "whisper-base"):
        for file in voice_folder(name, settings=voice_settings).iterdir():
            data = file.read_bytes()
            (folder / file.name).write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError):
        Moonshine(folder)
    with pytest.raises(ModelFileError):
        Whisper(folder)
    with pytest.raises(ModelFileError):
        Moonshine(folder / "nothing")
    monkeypatch.setenv("EDGE_MODELS_DIR", str(folder / "none"))
    with pytest.raises(ModelNotFoundError, match="moonshine-tiny-en") as caught:
        open_moonshine(load_settings())
    assert "edge models pull moonshine-tiny-en" in caught.value.hint
