"""What a microphone gives, and what of the loudspeaker comes back to it: measured, and judged in words.

The loop sends three sweeps through the loudspeaker and looks for them in what the microphone hears. Their places say how long
the way takes, their strength how much is lost on it, and their distances whether both devices keep the rates that they claim.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edge_voice.levels import to_db
from edge_voice.resample import resample
from edge_voice.stages import BLOCK, RATE

if TYPE_CHECKING:
    from edge_voice.stages import Microphone, Samples, Speaker

__all__ = ["LoopReport", "SoundReport", "measure_loop", "measure_sound", "read_loop", "read_sound", "sweeps"]

_FULL = 0.999
_SWEEP_S, _EVERY_S, _N_SWEEPS = 0.35, 0.6, 3
_FROM_HZ, _TO_HZ, _AMPLITUDE = 400.0, 3500.0, 0.25
_LATEST_S = 1.0  # that the way may take
_FOUND = 8.0  # times the typical correlation, from which on a peak is a sweep


@dataclass(frozen=True, slots=True)
class SoundReport:
    """What a microphone gave.

    Attributes:
        rms_db: loudness, in dB below full scale: -90 to 0.
        peak_db: of the loudest sample, likewise.
        floor_db: of the quietest tenth of it: the noise of the room and the device.
        clipped: share of samples at full scale, 0 to 1.
        offset: mean of the samples, 0 for a device without fault.
        is_dead: all samples are the same.
        n_lost: samples that were dropped.
        first_s: time from opening to the first sound, in seconds.
    """

    rms_db: float
    peak_db: float
    floor_db: float
    clipped: float
    offset: float
    is_dead: bool
    n_lost: int = 0
    first_s: float = 0.0


@dataclass(frozen=True, slots=True)
class LoopReport:
    """What of the loudspeaker the microphone heard.

    Attributes:
        n_heard: of the three sweeps.
        delay_s: from playing to hearing, in seconds, buffers included; None if fewer than two were heard.
        loss_db: how much quieter they came back; None likewise.
        drift: how much longer the distances between them became, as a share; None likewise.
        sound: of all that was heard meanwhile.
    """

    n_heard: int
    delay_s: float | None
    loss_db: float | None
    drift: float | None
    sound: SoundReport


def measure_sound(microphone: Microphone, seconds: float) -> SoundReport:
    """Return what an open microphone gives.

    Raises:
        SoundError: it is gone.
    """
    began_s = time.monotonic()
    blocks, n_lost, first_s = list["Samples"](), 0, 0.0
    while sum(map(len, blocks)) < seconds * RATE and time.monotonic() - began_s < seconds + 5:
        block = microphone.read(0.5)
        if block is not None:
            first_s = first_s or time.monotonic() - began_s
            blocks.append(block.samples)
            n_lost += block.n_lost
    sound = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    return read_sound(sound, n_lost=n_lost, first_s=first_s)


def read_sound(sound: Samples, *, n_lost: int = 0, first_s: float = 0.0) -> SoundReport:
    """Return the levels of a sound at `RATE`; one without samples counts as dead."""
    if not len(sound):
        return SoundReport(to_db(0), to_db(0), to_db(0), 0.0, 0.0, is_dead=True, n_lost=n_lost, first_s=first_s)
    blocks = sound[: len(sound) // BLOCK * BLOCK].reshape(-1, BLOCK) if len(sound) >= BLOCK else sound[None]
    offset = float(sound.mean())
    rms = np.sqrt(((blocks - offset) ** 2).mean(axis=1))
    return SoundReport(
        rms_db=to_db(float(np.sqrt(np.mean((sound - offset) ** 2)))),
        peak_db=to_db(float(np.abs(sound).max())),
        floor_db=to_db(float(np.quantile(rms, 0.1))),
        clipped=float(np.mean(np.abs(sound) >= _FULL)),
        offset=offset,
        is_dead=bool(sound.max() == sound.min()),
        n_lost=n_lost,
        first_s=first_s,
    )


def sweeps(rate: int) -> Samples:
    """Return what the loop plays: rising tones with silence between them."""
    sound = np.zeros(int(_N_SWEEPS * _EVERY_S * rate), np.float32)
    for number in range(_N_SWEEPS):
        start = int(number * _EVERY_S * rate)
        one = _sweep(rate)
        sound[start : start + len(one)] = _AMPLITUDE * one
    return sound


def _sweep(rate: int) -> Samples:
    t = np.arange(int(_SWEEP_S * rate)) / rate
    phase = 2 * np.pi * (_FROM_HZ * t + (_TO_HZ - _FROM_HZ) * t**2 / (2 * _SWEEP_S))
    sound: Samples = (np.sin(phase) * np.sin(np.pi * t / _SWEEP_S) ** 0.5).astype(np.float32)
    return sound


def measure_loop(microphone: Microphone, speaker: Speaker) -> LoopReport:
    """Play the sweeps, and return what an open microphone hears of them.

    Raises:
        SoundError: a device is gone.
    """
    rate = 48_000
    while (stale := microphone.read(0.0)) is not None and time.monotonic() - stale.at_s > 2 * BLOCK / RATE:
        pass  # from before
    played = sweeps(rate)
    speaker.play(played, rate)
    began_s = time.monotonic()
    blocks, heard_from_s = list["Samples"](), began_s
    while time.monotonic() - began_s < len(played) / rate + _LATEST_S:
        block = microphone.read(0.2)
        if block is not None:
            heard_from_s = heard_from_s if blocks else block.at_s
            blocks.append(block.samples)
    heard = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    return read_loop(heard, heard_from_s - began_s)


def read_loop(heard: Samples, from_s: float = 0.0) -> LoopReport:
    """Find the sweeps in a sound at `RATE`.

    Args:
        heard: what the microphone gave.
        from_s: when its first sample was taken, in seconds after the sweeps were handed to the loudspeaker.
    """
    sound, sweep = read_sound(heard), resample(_sweep(48_000), 48_000)
    if len(heard) < len(sweep) * 2 or sound.is_dead:
        return LoopReport(0, None, None, None, sound)
    n = 1 << (len(heard) + len(sweep)).bit_length()
    spectrum = np.fft.rfft(heard - heard.mean(), n) * np.conj(np.fft.rfft(sweep, n))
    found = np.abs(np.fft.irfft(spectrum, n)[: len(heard)])
    threshold = _FOUND * float(np.median(found)) + 1e-6
    peaks: list[tuple[int, float]] = []
    for _ in range(_N_SWEEPS):
        place = int(found.argmax())
        if found[place] < threshold or (peaks and found[place] < 0.2 * peaks[0][1]):
            break
        peaks.append((place, float(found[place])))
        near = int(_EVERY_S / 2 * RATE)
        found[max(0, place - near) : place + near] = 0
    if len(peaks) < 2:
        return LoopReport(len(peaks), None, None, None, sound)
    places = sorted(place / RATE for place, _ in peaks)
    steps = np.diff(places)
    n_steps = np.maximum(1, np.round(steps / _EVERY_S))
    drift = float(np.sum(steps) / (_EVERY_S * np.sum(n_steps)) - 1)
    strength = float(np.mean([height for _, height in peaks])) / float(np.sum(sweep**2)) / _AMPLITUDE
    return LoopReport(len(peaks), max(0.0, places[0] + from_s), -to_db(min(1.0, strength)), drift, sound)
