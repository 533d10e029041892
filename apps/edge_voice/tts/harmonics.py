"""Sound from the spectra that Hibari's network predicts: a train of pulses and noise, each shaped, and one inverse transform.

Per frame of 12.5 ms and frequency: S = e^lh e^{i pi tanh(theta)} STFT(pulses(f0)) + e^ln noise + e^lr e^{i phi}.

Source: hibari-tts (Maureese Williams, Apache-2.0), README, "ONNX interface"; written again after it.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edge_voice.stages import Samples

__all__ = ["RATE", "render"]

RATE = 24_000
_HOP = 300  # samples of a frame
_WINDOW = 1200
_OVERLAP = _WINDOW // _HOP
_MOST_EXPONENT = 7.0
_LOWEST_HZ, _HIGHEST_HZ = 40.0, 11_000.0

_Array: TypeAlias = NDArray[np.float32]
_Complex: TypeAlias = NDArray[np.complex64]


def render(lh: _Array, theta: _Array, ln: _Array, lr: _Array, phi: _Array, f0: _Array, *, seed: int) -> Samples:
    """Return the sound of a sequence of frames.

    Args:
        lh, theta: log magnitude and phase of what is voiced, shape (601, n_frames).
        ln: log magnitude of noise, likewise.
        lr, phi: log magnitude and phase of what is neither, likewise.
        f0: pitch in Hz, 0 where unvoiced, shape (n_frames,).
        seed: of the noise, so that the same words sound the same.

    Returns:
        float32, shape (n_frames * 300,), at RATE.
    """
    spectrum = _transform(_pulses(f0), len(f0)) * (_exp(lh) * _turn(np.float32(np.pi) * np.tanh(theta)))
    noise = np.random.default_rng(seed).standard_normal((2, *ln.shape), dtype=np.float32)
    spectrum += _exp(ln) * (noise[0] + 1j * noise[1])
    spectrum += _exp(lr) * _turn(phi)
    return _inverse(spectrum)


def _exp(log_magnitude: _Array) -> _Array:
    magnitude: _Array = np.exp(np.minimum(log_magnitude, _MOST_EXPONENT), dtype=np.float32)
    return magnitude


def _turn(phase: _Array) -> _Complex:
    turned = np.empty(phase.shape, np.complex64)
    turned.real, turned.imag = np.cos(phase), np.sin(phase)
    return turned


@cache
def _hann() -> _Array:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)).astype(np.float32)


def _pulses(f0: _Array) -> _Array:
    """Return a train of pulses with every harmonic up to 11 kHz at amplitude 1, and silence where unvoiced."""
    n = len(f0) * _HOP
    at = (np.arange(n) + 0.5) / _HOP - 0.5  # in frames: the pitch of a frame is that of its middle
    hz = np.interp(at, np.arange(len(f0)), f0)
    is_voiced = hz > _LOWEST_HZ
    hz = np.maximum(hz, _LOWEST_HZ)
    phase = 2 * np.pi * np.modf(np.cumsum(hz) / RATE)[0]
    # sum over h <= H of cos(h t) = sin((H + 1/2) t) / (2 sin(t / 2)) - 1/2
    upper = np.floor(_HIGHEST_HZ / hz) + 0.5
    divisor = 2 * np.sin(phase / 2)
    is_peak = np.abs(divisor) <= 2e-3
    train = np.where(is_peak, upper, np.sin(upper * phase) / np.where(is_peak, 1.0, divisor)) - 0.5
    return np.where(is_voiced, train, 0.0).astype(np.float32)


def _transform(sound: _Array, n_frames: int) -> _Complex:
    """Return the short-time Fourier transform, shape (601, n_frames); a harmonic of amplitude 1 has magnitude 1."""
    padded = np.pad(sound, _WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP][:n_frames]
    spectrum: Any = np.fft.rfft(frames * (_hann() * 4 / _WINDOW), axis=1)
    return np.ascontiguousarray(spectrum.T, dtype=np.complex64)


def _inverse(spectrum: _Complex) -> Samples:
    """Return the sound of a short-time Fourier transform: windowed frames, added where they overlap."""
    n_frames, window = spectrum.shape[1], _hann()
    frames: Any = np.fft.irfft(spectrum.T, _WINDOW, axis=1).astype(np.float32) * window
    total = np.zeros((n_frames + _OVERLAP - 1, _HOP), np.float32)
    weight = np.zeros_like(total)
    for k in range(_OVERLAP):
        piece = slice(k * _HOP, (k + 1) * _HOP)
        total[k : k + n_frames] += frames[:, piece]
        weight[k : k + n_frames] += window[piece] ** 2
    sound: Samples = (total / np.maximum(weight, 1e-11)).reshape(-1)[_WINDOW // 2 :][: n_frames * _HOP]
    return sound
