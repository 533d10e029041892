"""Rates and channels: tones keep their pitch and loudness, what 16 kHz cannot hold is taken out, nonsense is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edge.errors import UsageError
from edge_voice.resample import StreamResampler, mono, resample
from edge_voice.stages import RATE, Samples


def tone(hz: float, rate: int, seconds: float = 1.0) -> Samples:
    sound: Samples = (0.5 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)
    return sound


def loudest(sound: Samples, rate: int = RATE) -> tuple[float, float]:
    """Return pitch in Hz and amplitude of the loudest tone, away from the ends."""
    middle = sound[len(sound) // 4 : -len(sound) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 19))
    return float(spectrum.argmax() * rate / (1 << 19)), float(spectrum.max() * 4 / len(middle))


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_a_tone_keeps_its_pitch_and_loudness(rate: int) -> None:
    pitch, amplitude = loudest(resample(tone(1000, rate), rate))
    assert abs(pitch - 1000) < 1
    assert abs(amplitude - 0.5) < 0.005


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_a_stream_in_pieces_is_the_tone_too_and_lags_by_at_most_25_ms(rate: int) -> None:
    stream, sound, made, lags = StreamResampler(rate), tone(3000, rate, 2), list[Samples](), list[float]()
    for start in range(0, len(sound), 441):
        made.append(stream.add(sound[start : start + 441]))
        lags.append(min(start + 441, len(sound)) / rate - sum(map(len, made)) / RATE)
    pitch, amplitude = loudest(np.concatenate(made))
    assert abs(pitch - 3000) < 1
    assert abs(amplitude - 0.5) < 0.01
    assert max(lags) <= 0.025
    # In step with the original: sample k of the output is the sound at k / RATE.
    k = np.arange(4000, 8000)
    assert np.allclose(np.concatenate(made)[k], 0.5 * np.sin(2 * np.pi * 3000 * k / RATE), atol=0.01)


@pytest.mark.parametrize("hz", [9_000, 12_000, 15_000])
def test_what_16_khz_cannot_hold_is_taken_out_and_not_folded_back(hz: int) -> None:
    stream = StreamResampler(48_000)
    assert loudest(stream.add(tone(hz, 48_000)))[1] < 0.005
    assert loudest(resample(tone(hz, 48_000), 48_000))[1] < 0.001


def test_stereo_of_integers_becomes_the_mean_of_its_channels() -> None:
    left, right = tone(500, 48_000), tone(2000, 48_000)
    both = (np.stack([left, right], axis=1) * 32767).astype(np.int16)
    sound = mono(both, 48_000)
    assert sound.dtype == np.float32
    assert len(sound) == RATE
    for hz in (500, 2000):
        k = np.arange(2000, 14_000)
        part = 2 * np.mean(sound[k] * np.sin(2 * np.pi * hz * k / RATE))
        assert abs(part - 0.25) < 0.01


def test_sound_at_the_right_rate_is_not_changed() -> None:
    sound = tone(440, RATE)
    assert np.array_equal(mono(sound, RATE), sound)
    assert np.array_equal(StreamResampler(RATE).add(sound), sound)
    assert len(mono(np.zeros(0, np.float32), 44_100)) == 0


@pytest.mark.parametrize(
    ("array", "rate", "about"),
    [
        (np.zeros(10, np.float32), 0, "sample rate"),
        (np.zeros(10, np.float32), 10_000_000, "sample rate"),
        (np.zeros((2, 2, 2), np.float32), RATE, "shape"),
        (np.zeros((2, 16_000), np.float32), RATE, "shape"),  # channels first
        (np.zeros(10, np.uint8), RATE, "type"),
        (np.array(["a"]), RATE, "type"),
        (np.array([0.0, np.nan], np.float32), RATE, "not numbers"),
    ],
)
def test_what_is_no_sound_is_refused(array: np.ndarray, rate: int, about: str) -> None:
    with pytest.raises(UsageError, match=about):
        mono(array, rate)
