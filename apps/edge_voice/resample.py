"""Sample rates and channels: sound from anywhere, as the stages want it (soxr, band-limited)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edge.errors import UsageError
from edge_voice.stages import RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_voice.stages import Samples

__all__ = ["MAX_RATE", "MIN_RATE", "StreamResampler", "mono", "resample"]

MIN_RATE, MAX_RATE = 4_000, 384_000
_FULL_SCALE = {"int16": 1 << 15, "int32": 1 << 31}


class StreamResampler:
    """Converts a stream to `RATE` piece by piece. Output lags behind input by at most 25 ms.

    Args:
        rate: samples a second of the input.
        quality: soxr's name of it.
    """

    def __init__(self, rate: int, *, quality: str = "LQ") -> None:
        import soxr

        # "LQ" has 16-bit precision and a soft edge; it lags by 20 ms, better ones by 40. Recognisers do as well with it.
        self._stream = None if rate == RATE else soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality=quality)

    def add(self, samples: Samples) -> Samples:
        """Return the output that became complete with these samples; it may be empty."""
        if self._stream is None:
            return samples
        converted: Samples = self._stream.resample_chunk(samples)
        return converted

    def end(self) -> Samples:
        """Return the rest of the output, when no more comes."""
        rest: Samples = np.zeros(0, np.float32)
        if self._stream is not None:
            rest = self._stream.resample_chunk(rest, last=True)
        return rest


def resample(samples: Samples, rate: int, to: int = RATE) -> Samples:
    """Return a whole sound at another rate.

    Args:
        samples: float32, shape (n,).
        rate: samples a second of it.
        to: samples a second of the result, of round(n * to / rate) samples.
    """
    import soxr

    if rate == to or not len(samples):
        return samples
    converted: Samples = soxr.resample(samples, rate, to, quality="HQ")
    return converted


def mono(array: NDArray[Any], rate: int) -> Samples:
    """Return sound of any kind as the stages take it: float32, one channel, at `RATE`.

    Args:
        array: shape (n,), or (n, channels), of which the mean is taken; int16 and int32 at full scale, or floats
            within [-1, 1].
        rate: samples a second.

    Raises:
        UsageError: the array has another shape or type, values that are no numbers, or a rate from another world.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise UsageError(f"A sample rate of {rate} Hz is out of range.", f"Give one from {MIN_RATE} to {MAX_RATE}.")
    if array.ndim not in (1, 2) or (array.ndim == 2 and array.shape[1] > 64):
        raise UsageError(f"Sound of shape {array.shape} is not understood.", "Give (samples,) or (samples, channels).")
    scale = _FULL_SCALE.get(array.dtype.name)
    if scale is None and array.dtype.kind != "f":
        raise UsageError(f"Sound of type {array.dtype} is not understood.", "Give int16, int32 or floats within [-1, 1].")
    sound = array.astype(np.float32) / np.float32(scale) if scale else array.astype(np.float32)
    if sound.ndim == 2:
        sound = sound.mean(axis=1, dtype=np.float32)
    if not np.isfinite(sound).all():
        raise UsageError("The sound has values that are not numbers (NaN or infinite).", "Check where it comes from.")
    return resample(np.ascontiguousarray(sound), rate)
