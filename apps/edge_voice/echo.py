"""Echo: takes what the loudspeaker plays out of what the microphone hears, or stays deaf meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edge_voice.stages import BLOCK, RATE

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.stages import Block, Samples

__all__ = ["HalfDuplex", "Headphones", "LivekitCanceller", "open_half_duplex", "open_headphones", "open_livekit"]

_FRAME = RATE // 100  # WebRTC's audio processing takes 10 ms at a time


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


class LivekitCanceller:
    """WebRTC's echo canceller (AEC3) with its noise suppression, from the package livekit.

    Args:
        clock: seconds, as in `Block.at_s`.

    Raises:
        ImportError: livekit is not installed.

    Source: https://github.com/livekit/python-sdks (Apache-2.0), around https://webrtc.googlesource.com/src/ (BSD-3-Clause).
    """

    is_full_duplex = True

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        import numpy as np
        from livekit.rtc import AudioFrame
        from livekit.rtc.apm import AudioProcessingModule

        self._frame_type: Any = AudioFrame
        self._module: Any = AudioProcessingModule(echo_cancellation=True, noise_suppression=True, high_pass_filter=True)
        self._clock = clock
        self._render_s = 0.0
        self._rest = np.zeros(0, np.float32)
        self._playing = threading.Lock()  # two loudspeakers follow each other when a device changes

    def played(self, samples: Samples, at_s: float) -> None:
        """See `EchoCanceller.played`."""
        import numpy as np

        with self._playing:
            self._render_s = max(0.0, at_s - self._clock())
            sound = np.concatenate([self._rest, samples])
            n_whole = len(sound) // _FRAME * _FRAME
            for start in range(0, n_whole, _FRAME):
                self._module.process_reverse_stream(self._frame_of(sound[start : start + _FRAME]))
            self._rest = sound[n_whole:]

    def clean(self, block: Block) -> Samples:
        """See `EchoCanceller.clean`."""
        import numpy as np

        cleaned = np.empty(BLOCK, np.float32)
        delay_s = self._render_s + max(0.0, self._clock() - block.at_s)
        self._module.set_stream_delay_ms(min(500, round(delay_s * 1000)))
        for start in range(0, BLOCK, _FRAME):
            frame = self._frame_of(block.samples[start : start + _FRAME])
            self._module.process_stream(frame)
            cleaned[start : start + _FRAME] = np.frombuffer(frame.data, np.int16).astype(np.float32) / 32768
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
