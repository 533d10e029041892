"""Spectrograms against the feature extractor of transformers, Whisper's own."""

from __future__ import annotations

import numpy as np
import pytest

from edge_voice.mel import HOP, N_MELS, log_mel
from edge_voice.stages import RATE


@pytest.mark.parametrize("seconds", [1, 8])
@pytest.mark.parametrize("amplitude", [1e-4, 0.1, 1.0])
def test_spectrograms_are_those_of_transformers(seconds: int, amplitude: float) -> None:
    from transformers import WhisperFeatureExtractor

    rng = np.random.default_rng(seconds)
    t = np.arange(seconds * RATE) / RATE
    sound = (amplitude * (0.5 * np.sin(2 * np.pi * 300 * t * (1 + t)) + 0.1 * rng.normal(size=len(t)))).astype(np.float32)
    oracle = WhisperFeatureExtractor(chunk_length=seconds)(sound, sampling_rate=RATE, return_tensors="np").input_features[0]
    ours = log_mel(sound)
    assert ours.dtype == np.float32
    assert ours.shape == oracle.shape == (N_MELS, seconds * RATE // HOP)
    assert np.abs(ours - oracle).max() < 2e-4


def test_silence_has_a_spectrogram() -> None:
    assert np.allclose(log_mel(np.zeros(RATE, np.float32)), -1.5)
