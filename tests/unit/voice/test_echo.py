"""The echo canceller against a room that is computed: the loudspeaker, delayed and quieter, beside a voice of its own."""

from __future__ import annotations

import numpy as np
import pytest

from edge_voice.echo import Headphones, LivekitCanceller
from edge_voice.stages import BLOCK, RATE, Block, Samples

pytest.importorskip("livekit")


def noise_in_words(seconds: float, seed: int) -> Samples:
    """Return noise that comes and goes three times a second, as speech does."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)
    is_on = np.sin(np.arange(n) / RATE * 2 * np.pi * 3) > 0
    return (rng.standard_normal(n) * 0.1 * is_on).astype(np.float32)


def run(far: Samples, near: Samples) -> Samples:
    """Return the microphone without the loudspeaker."""
    now = [0.0]
    canceller = LivekitCanceller(clock=lambda: now[0])
    cleaned = []
    for start in range(0, len(far) - BLOCK + 1, BLOCK):
        now[0] = start / RATE
        canceller.played(far[start : start + BLOCK // 2 + 7], now[0])  # pieces of any length
        canceller.played(far[start + BLOCK // 2 + 7 : start + BLOCK], now[0])
        cleaned.append(canceller.clean(Block(near[start : start + BLOCK], now[0])))
    canceller.close()
    return np.concatenate(cleaned)


def level(sound: Samples) -> float:
    return float(20 * np.log10(np.sqrt((sound**2).mean()) + 1e-9))


def test_the_echo_is_gone() -> None:
    far = noise_in_words(5, 1)
    echo = np.concatenate([np.zeros(800, np.float32), 0.5 * far])[: len(far)]
    cleaned = run(far, echo)
    assert level(echo[-2 * RATE :]) - level(cleaned[-2 * RATE :]) > 20


def test_a_voice_beside_the_echo_stays() -> None:
    far, voice = noise_in_words(6, 1), noise_in_words(6, 2)
    voice[: 4 * RATE] = 0
    far[4 * RATE :] = 0
    echo = np.concatenate([np.zeros(800, np.float32), 0.5 * far])[: len(far)]
    cleaned = run(far, echo + voice)
    assert level(voice[5 * RATE :]) - level(cleaned[5 * RATE :]) < 12


def test_with_headphones_nothing_is_changed() -> None:
    block = Block(noise_in_words(0.02, 1), 0.0)
    assert Headphones().clean(block) is block.samples
