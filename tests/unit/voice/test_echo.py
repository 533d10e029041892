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


def run(far: Samples, near: Samples, jitter_s: float = 0.0) -> Samples:
    """Return the microphone without the loudspeaker, whose sound is announced 60 ms before it is heard."""
    canceller, rng = LivekitCanceller(patience_s=0.0), np.random.default_rng(5)
    cleaned, ahead = [], int(0.06 * RATE)
    canceller.played(far[:ahead], 10.0)
    for start in range(0, len(far) - BLOCK + 1, BLOCK):
        first, at_s = start + ahead, 10 + (start + ahead) / RATE
        canceller.played(far[first : first + 167], at_s + rng.uniform(-jitter_s, jitter_s))  # pieces of any length
        canceller.played(far[first + 167 : first + BLOCK], at_s + 167 / RATE)
        taken_s = 10 + start / RATE + rng.uniform(-jitter_s, jitter_s)
        cleaned.append(canceller.clean(Block(near[start : start + BLOCK], taken_s)))
    canceller.close()
    return np.concatenate(cleaned)


def level(sound: Samples) -> float:
    return float(20 * np.log10(np.sqrt((sound**2).mean()) + 1e-9))


@pytest.mark.parametrize("delay_ms", [0, 50, 150])
@pytest.mark.parametrize("jitter_s", [0.0, 0.004])
def test_the_echo_is_gone(delay_ms: int, jitter_s: float) -> None:
    far = noise_in_words(5, 1)
    echo = np.concatenate([np.zeros(delay_ms * RATE // 1000, np.float32), 0.5 * far])[: len(far)]
    cleaned = run(far, echo, jitter_s)
    assert level(echo[-2 * RATE :]) - level(cleaned[-2 * RATE :]) > 20


def test_a_loudspeaker_that_had_to_wait_is_not_heard() -> None:
    canceller, far, wait = LivekitCanceller(patience_s=0.0), noise_in_words(8, 1), 2 * BLOCK
    quiet = np.zeros(800, np.float32)
    near = np.concatenate([quiet, 0.5 * far[: 4 * RATE], np.zeros(wait, np.float32), 0.5 * far[4 * RATE :]])
    cleaned, ahead = [], 3 * BLOCK
    canceller.played(far[:ahead], 10.0)
    for start in range(0, len(far) - ahead, BLOCK):
        first = start + ahead
        canceller.played(far[first : first + BLOCK], 10 + (first + (wait if first >= 4 * RATE else 0)) / RATE)
        cleaned.append(canceller.clean(Block(near[start : start + BLOCK], 10 + start / RATE)))
    canceller.close()
    found = np.concatenate(cleaned)
    assert [level(found[second * RATE : (second + 1) * RATE]) < -60 for second in range(1, 7)] == [True] * 6


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


def test_nothing_is_heard_until_the_room_is_known() -> None:
    far = noise_in_words(3, 1)
    cleaned = run(far, 0.5 * far)
    loud = np.flatnonzero(np.abs(cleaned) > 0.05)
    assert not len(loud) or loud[0] > RATE // 2
    silent = run(np.zeros_like(far), far)  # nothing is played: the voice is heard at once
    assert level(silent[RATE // 4 :]) > level(far) - 12


def test_what_is_late_is_waited_for_and_no_longer_than_it_plays() -> None:
    import threading
    import time

    canceller = LivekitCanceller(patience_s=20.0)
    block = Block(noise_in_words(0.02, 1), 5.0)
    canceller.clean(block)  # nothing was ever played
    canceller.played(np.zeros(BLOCK, np.float32), 5.0)
    later = threading.Timer(0.05, lambda: canceller.played(np.zeros(2 * BLOCK, np.float32), 5.02))
    later.start()
    began = time.monotonic()
    canceller.clean(Block(block.samples, 5.02))
    assert time.monotonic() - began < 10
    later.join()
    canceller.close()
