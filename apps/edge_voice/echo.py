"""Echo: takes what the loudspeaker plays out of what the microphone hears, or stays deaf meanwhile."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from edge_voice.stages import BLOCK, RATE

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.stages import Block, Samples

__all__ = ["HalfDuplex", "Headphones", "LivekitCanceller", "open_half_duplex", "open_headphones", "open_livekit"]

_FRAME = RATE // 100  # WebRTC's audio processing takes 10 ms at a time
_JITTER = RATE // 100  # by which the time of a piece may differ from the end of the one before it
_LEAD = RATE // 50  # by which the loudspeaker is taken to be earlier than its device says
_LEARNING = RATE // 2  # of sound that is played, before what is left of it counts as heard
_AUDIBLE = 0.003
_PLAYING = RATE // 4  # since the newest sound of a loudspeaker that still plays


class Headphones:
    """Nothing to cancel: the microphone does not hear the loudspeaker."""

    is_full_duplex = True

    def played(self, samples: Samples, at_s: float) -> None:
        """Do nothing."""

    def clean(self, block: Block) -> Samples:
        """Return the block as it is."""
        return block.samples

    def close(self) -> None:
        """Do nothing."""


class HalfDuplex(Headphones):
    """No canceller: what is said while the model speaks is not heard, and only the key interrupts it."""

    is_full_duplex = False


class _Timeline:
    """What is heard when: sound by the clock, for a second. Clocks of devices jitter, so that pieces follow each other."""

    def __init__(self) -> None:
        import numpy as np

        self._sound = np.zeros(RATE, np.float32)
        self.end = 0
        """Sample after the newest one, counted from the clock's zero."""

    def write(self, samples: Samples, at_s: float) -> bool:
        """Add a piece, and return whether it follows the one before."""
        start = round(at_s * RATE)
        follows = abs(start - self.end) <= _JITTER
        if not follows:
            gap = min(max(start - self.end, 0), RATE)
            self._put(start - gap, self._sound[:0], gap)
            self.end = start
        self._put(self.end, samples[-RATE:], 0)
        self.end += len(samples)
        return follows

    def _put(self, start: int, samples: Samples, n_zeros: int) -> None:
        import numpy as np

        places = (start + np.arange(len(samples) + n_zeros)) % RATE
        self._sound[places[: len(samples)]] = samples
        self._sound[places[len(samples) :]] = 0

    def read(self, start: int, n: int) -> Samples:
        """Return samples; silence where nothing is known."""
        import numpy as np

        places = start + np.arange(n)
        is_known = (places < self.end) & (places >= self.end - RATE)
        found: Samples = np.where(is_known, self._sound[places % RATE], 0).astype(np.float32)
        return found


class LivekitCanceller:
    """WebRTC's echo canceller (AEC3) with its noise suppression, from the package livekit.

    It pairs the microphone with what the loudspeaker plays at that time by the clock, not by the order of calls: threads that
    get no processor for a while would move the echo otherwise, which the canceller takes seconds to learn. The room it learns
    from the first half second that is played, in which the microphone counts as silent; and once more where the loudspeaker
    had to wait for its sound.

    Args:
        patience_s: longest wait for what the loudspeaker plays, while it plays, in seconds.

    Raises:
        ImportError: livekit is not installed.

    Source: https://github.com/livekit/python-sdks (Apache-2.0), around https://webrtc.googlesource.com/src/ (BSD-3-Clause).
    """

    is_full_duplex = True

    def __init__(self, patience_s: float = 0.06) -> None:
        from livekit.rtc import AudioFrame
        from livekit.rtc.apm import AudioProcessingModule

        self._frame_type: Any = AudioFrame
        self._module: Any = AudioProcessingModule(echo_cancellation=True, noise_suppression=True, high_pass_filter=True)
        self._module.set_stream_delay_ms(round(_LEAD / RATE * 1000))
        self._patience_s = patience_s
        self._far = _Timeline()
        self._near_end = 0
        self._n_unlearned = _LEARNING
        self._changed = threading.Condition()

    def played(self, samples: Samples, at_s: float) -> None:
        """See `EchoCanceller.played`."""
        with self._changed:
            if not self._far.write(samples, at_s):
                self._n_unlearned = _LEARNING  # the device had to wait for it, so the echo comes later from now on
            self._changed.notify_all()

    def clean(self, block: Block) -> Samples:
        """See `EchoCanceller.clean`."""
        import numpy as np

        start = round(block.at_s * RATE)
        if abs(start - self._near_end) <= _JITTER:
            start = self._near_end
        self._near_end = start + BLOCK
        # An echo can only be taken out if what made it is known: a little earlier than the device says that it is heard.
        with self._changed:
            end = start + _LEAD + BLOCK
            if self._far.end > start - _PLAYING:
                self._changed.wait_for(lambda: self._far.end >= end, self._patience_s)
            far = self._far.read(start + _LEAD, BLOCK)
        cleaned = np.empty(BLOCK, np.float32)
        for first in range(0, BLOCK, _FRAME):
            self._module.process_reverse_stream(self._frame_of(far[first : first + _FRAME]))
            frame = self._frame_of(block.samples[first : first + _FRAME])
            self._module.process_stream(frame)
            cleaned[first : first + _FRAME] = np.frombuffer(frame.data, np.int16).astype(np.float32) / 32768
        if self._n_unlearned > 0 and np.abs(far).max() > _AUDIBLE:
            self._n_unlearned -= BLOCK
            cleaned[:] = 0
        return cleaned

    def close(self) -> None:
        """Free the module."""
        self._module = None

    def _frame_of(self, samples: Samples) -> Any:
        import numpy as np

        pcm = (np.clip(samples, -1, 32767 / 32768) * 32768).astype(np.int16)
        return self._frame_type(bytearray(pcm.tobytes()), RATE, 1, _FRAME)


def open_livekit(settings: Settings) -> LivekitCanceller:
    """Open the stage "livekit"."""
    return LivekitCanceller()


def open_half_duplex(settings: Settings) -> HalfDuplex:
    """Open the stage "half-duplex"."""
    return HalfDuplex()


def open_headphones(settings: Settings) -> Headphones:
    """Open the stage "headphones"."""
    return Headphones()
