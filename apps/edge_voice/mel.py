"""Log-mel spectrograms as Whisper defines them: what its models, and the endpoint model, see of sound."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from edge_voice.stages import RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_voice.stages import Samples

__all__ = ["HOP", "N_MELS", "log_mel"]

HOP = 160
"""Samples from one frame of a spectrogram to the next: 10 ms."""

N_MELS = 80

_WINDOW = 400
_FLOOR = 1e-10
_RANGE = 8.0  # what is quieter than the loudest by this many powers of ten counts as that


def log_mel(samples: Samples) -> NDArray[np.float32]:
    """Return the spectrogram of a sound.

    Args:
        samples: at RATE, shape (n,), with n at least 201.

    Returns:
        float32, shape (N_MELS, n // HOP), mostly within [-1, 1].

    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision"
    """
    padded = np.pad(samples.astype(np.float32), _WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::HOP][: len(samples) // HOP]
    power = np.abs(np.fft.rfft(frames * _hann())) ** 2
    logs = np.log10(np.maximum(power @ _filters(), _FLOOR))
    logs = (np.maximum(logs, logs.max() - _RANGE) + 4) / 4
    return np.ascontiguousarray(logs.T, dtype=np.float32)


@functools.cache
def _hann() -> NDArray[np.float32]:
    window: NDArray[np.float32] = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    return window


@functools.cache
def _filters() -> NDArray[np.float32]:
    """Return triangles of equal width in mels and of equal area, shape (bins, N_MELS): Slaney's, as in librosa."""
    edges = _to_hz(np.linspace(0, _to_mel(RATE / 2), N_MELS + 2))
    bins = np.linspace(0, RATE / 2, _WINDOW // 2 + 1)[:, None]
    widths = np.diff(edges)
    rising = (bins - edges[:-2]) / widths[:-1]
    falling = (edges[2:] - bins) / widths[1:]
    triangles = np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))
    filters: NDArray[np.float32] = triangles.astype(np.float32)
    return filters


# Slaney's scale: linear up to 1 kHz, 15 mels, then 27 mels for each factor of 6.4.
def _to_mel(hz: float) -> float:
    return 3 * hz / 200 if hz < 1000 else 15 + 27 * float(np.log(hz / 1000) / np.log(6.4))


def _to_hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mels < 15, 200 * mels / 3, 1000 * 6.4 ** ((mels - 15) / 27))
