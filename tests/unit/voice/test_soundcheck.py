"""Levels and the loop on sound that is made: rooms that are silent, loud or far away, and devices with faults."""

from __future__ import annotations

import numpy as np
import pytest

from edge_cli.voice_checks import check_level, check_loop
from edge_voice.resample import resample
from edge_voice.soundcheck import read_loop, read_sound, sweeps
from edge_voice.stages import RATE, Samples


def noise(amplitude: float, seconds: float = 2.0) -> Samples:
    return (amplitude * np.random.default_rng(7).normal(size=int(seconds * RATE))).astype(np.float32)


def states(found: object) -> list[tuple[str, str]]:
    return [(check.state, check.text) for check in found]  # type: ignore[attr-defined]


def test_a_usual_microphone_is_in_order() -> None:
    sound = noise(0.001)
    sound[RATE // 2 : RATE] += 0.2 * np.sin(np.arange(RATE // 2) * 0.3).astype(np.float32)
    report = read_sound(sound)
    assert abs(report.peak_db - -14) < 1
    assert abs(report.floor_db - -60) < 2
    assert [state for state, _ in states(check_level("Mic", report))] == ["ok"]


@pytest.mark.parametrize(
    ("sound", "state", "about"),
    [
        (np.zeros(2 * RATE, np.float32), "broken", "muted"),
        (np.zeros(0, np.float32), "broken", "muted"),
        (np.full(2 * RATE, 0.3, np.float32), "broken", "muted"),
        (np.clip(noise(1.0), -1, 1), "broken", "clipped"),
        (noise(1e-5), "note", "very quiet"),
        (noise(0.1), "note", "background is loud"),
        (noise(0.001) + np.float32(0.2), "note", "+0.20"),
    ],
    ids=["zeros", "nothing", "a constant", "clipping", "quiet", "a loud room", "an offset"],
)
def test_what_is_wrong_with_a_microphone_is_said(sound: Samples, state: str, about: str) -> None:
    found = states(check_level("Mic", read_sound(sound)))
    assert any(one == state and about in text for one, text in found), found


def room(delay_s: float, share: float, background: float, *, stretch: float = 1.0) -> Samples:
    """Return what a microphone hears of the sweeps."""
    came = resample(sweeps(48_000), 48_000, round(RATE * stretch))
    sound = noise(background, 3.0)
    start = int(delay_s * RATE)
    sound[start : start + len(came)] += share * came
    return sound


def test_the_way_through_a_room_is_measured() -> None:
    report = read_loop(room(0.08, 0.1, 0.001), from_s=-0.02)
    assert report.n_heard == 3
    assert report.delay_s is not None and abs(report.delay_s - 0.06) < 0.002
    assert report.loss_db is not None and abs(report.loss_db - 20) < 1
    assert report.drift is not None and abs(report.drift) < 0.001
    assert states(check_loop(report))[0][0] == "ok"


def test_sweeps_are_found_in_noise_that_is_louder() -> None:
    report = read_loop(room(0.3, 0.05, 0.01))
    assert report.n_heard == 3
    assert report.delay_s is not None and abs(report.delay_s - 0.3) < 0.005


@pytest.mark.parametrize(
    ("sound", "state", "about"),
    [
        (noise(0.01, 3.0), "note", "none of 3"),
        (np.zeros(3 * RATE, np.float32), "broken", "gave nothing"),
        (room(0.6, 0.2, 0.001), "note", "Bluetooth"),
        (np.clip(room(0.1, 20.0, 0.001), -1, 1), "broken", "clipped"),
        (room(0.1, 0.2, 0.001, stretch=48_000 / 44_100), "broken", "another rate"),
    ],
    ids=["headphones", "muted", "slow", "overdriven", "a wrong rate"],
)
def test_what_is_wrong_with_the_way_is_said(sound: Samples, state: str, about: str) -> None:
    ((found, text),) = states(check_loop(read_loop(sound)))
    assert found == state
    assert about in text
