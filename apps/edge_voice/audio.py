"""The microphone and the loudspeaker through PortAudio, at the device's own rate.

PortAudio calls back from a thread of its own that must not wait: the callbacks copy samples, and nothing else. Resampling
happens in the thread that reads or plays. A device that is unplugged stops calling, with or without a word: either counts as
gone.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_voice.device_stream import GONE_S, LATENCY_S, Clock, DeviceStream
from edge_voice.resample import StreamResampler, resample
from edge_voice.ring import Ring
from edge_voice.stages import BLOCK, RATE, Block

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.stages import Samples

__all__ = ["PortAudioMicrophone", "PortAudioSpeaker", "open_microphone", "open_speaker"]

_RING_S = 4.0  # what the reader may fall behind
_FADE_S = 0.008


def open_microphone(settings: Settings) -> PortAudioMicrophone:
    """Open the microphone that the settings name. Raises as `PortAudioMicrophone`."""
    return PortAudioMicrophone(settings.voice.input)


def open_speaker(settings: Settings) -> PortAudioSpeaker:
    """Open the loudspeaker that the settings name. Raises as `PortAudioSpeaker`."""
    return PortAudioSpeaker(settings.voice.output)


class PortAudioMicrophone:
    """Records from a device; `read` returns what it heard at `RATE`, as one channel. One thread reads.

    Args:
        wanted: number, name or part of the name of the device; None is the system's choice.

    Attributes:
        name: of the device.
        device_rate: samples a second of the device.
        channels: of the device, mixed into one.
        n_overflows: samples lost so far, since nobody read them in time; of those that the device lost, an estimate.

    Raises:
        BackendUnavailableError: sounddevice is not installed.
        SoundError: no PortAudio, no such device, or it is busy.
    """

    def __init__(self, wanted: str | None = None) -> None:
        self._stream = DeviceStream("input", wanted, self._prepare, self._ended)
        self.name = self._stream.device.name
        self.device_rate, self.channels = self._stream.rate, self._stream.channels
        self.n_overflows = 0
        self._resampler = StreamResampler(self.device_rate)
        self._pending = np.zeros(0, np.float32)
        self._n_out = 0
        self._n_lost_seen = 0

    def _prepare(self, stream: DeviceStream, channels: int, rate: int) -> Callable[..., None]:
        ring, clock = self._ring, self._clock = Ring(int(_RING_S * rate)), Clock(rate)
        mixed = np.zeros(rate, np.float32)
        share = np.full(channels, 1 / channels, np.float32)
        self._n_lost = 0

        def record(data: Samples, frames: int, _times: Any, status: Any) -> None:
            stream.called_at = time.monotonic()
            if status.input_overflow:
                self._n_lost += frames
            np.dot(data[: len(mixed)], share, out=mixed[: min(frames, len(mixed))])
            ring.write(mixed[:frames])
            clock.mark(ring.n_written + self._n_lost, stream.called_at)

        return record

    def _ended(self) -> None:
        self._ring.wake()

    def read(self, timeout_s: float) -> Block | None:
        """Return the next 20 ms, waiting for them; None if they do not come within timeout_s.

        Raises:
            SoundError: the device is gone; the microphone is closed.
        """
        until = time.monotonic() + timeout_s
        while len(self._pending) < BLOCK:
            arrived = self._resampler.add(self._ring.read())
            if len(arrived):
                self._pending = np.concatenate([self._pending, arrived])
                continue
            if self._stream.is_gone():
                raise self._stream.gone()
            left = until - time.monotonic()
            if left <= 0:
                return None
            self._ring.wait(min(left, GONE_S / 4))
        samples, self._pending = self._pending[:BLOCK], self._pending[BLOCK:]
        lost = self._n_lost + self._ring.n_dropped
        new, self._n_lost_seen = lost - self._n_lost_seen, lost
        self.n_overflows = lost * RATE // self.device_rate
        at_s = self._clock.at(self._n_out / RATE + lost / self.device_rate)
        self._n_out += BLOCK
        return Block(samples, at_s, -(-new * RATE // self.device_rate))

    def close(self) -> None:
        """Stop recording and free the device."""
        self._stream.close()
        self._ring.wake()
        self._resampler = StreamResampler(RATE)  # soxr complains of its objects that live until the process ends


class PortAudioSpeaker:
    """Plays what is queued, and silence otherwise. All methods may be called by any thread.

    Args:
        wanted: number, name or part of the name of the device; None is the system's choice.

    Attributes:
        name: of the device.
        latency_s: time from a sample leaving the queue to its being heard, as the device says.
        on_played: told of all that leaves the queue, at `RATE`, silence included, from a thread of the speaker's own.
        n_underflows: times that the device had to wait for this program.

    Raises:
        BackendUnavailableError: sounddevice is not installed.
        SoundError: no PortAudio, no such device, or it is busy.
    """

    def __init__(self, wanted: str | None = None) -> None:
        self.on_played: Callable[[Samples, float], None] | None = None
        self.n_underflows = 0
        self._queue: collections.deque[Samples] = collections.deque()
        self._n_taken = 0  # of the first sound in the queue
        self._queued = 0  # samples in the queue that were not taken yet
        self._lock = threading.Lock()  # of the queue; the callback holds it while it copies, others while they append
        self._fading = threading.Event()
        self._silent = threading.Event()
        self._dropped = 0
        self._heard_until_s = 0.0
        self._stream = DeviceStream("output", wanted, self._prepare, self._ended)
        self.name, self._rate = self._stream.device.name, self._stream.rate
        self.latency_s = float(self._stream.stream.latency)
        self._closing = False
        self._teller = threading.Thread(target=self._tell, name="edge-voice-played", daemon=True)
        self._teller.start()

    def _prepare(self, stream: DeviceStream, channels: int, rate: int) -> Callable[..., None]:
        ring, clock = self._played, self._clock = Ring(int(_RING_S * rate)), Clock(rate)
        line = np.zeros(rate, np.float32)
        fade = np.linspace(1, 0, int(_FADE_S * rate), dtype=np.float32)

        def play(out: Samples, frames: int, _times: Any, status: Any) -> None:
            stream.called_at = time.monotonic()
            self.n_underflows += bool(status.output_underflow)
            n = min(frames, len(line))
            with self._lock:
                filled = self._take(line[:n])
                if self._fading.is_set():
                    self._fade(line[:n], fade)
            out[n:] = 0
            out[:n] = line[:n, None]
            if filled:
                self._heard_until_s = stream.called_at + self.latency_s + filled / rate
            clock.mark(ring.n_written, stream.called_at, has_waited=bool(status.output_underflow))
            ring.write(line[:n])

        self.latency_s = LATENCY_S
        return play

    def _take(self, line: Samples) -> int:
        """Fill a line from the queue, with silence behind its end; return how many samples came from the queue."""
        filled = 0
        while filled < len(line) and self._queue:
            sound = self._queue[0]
            part = sound[self._n_taken : self._n_taken + len(line) - filled]
            line[filled : filled + len(part)] = part
            filled += len(part)
            self._n_taken += len(part)
            if self._n_taken >= len(sound):
                self._queue.popleft()
                self._n_taken = 0
        line[filled:] = 0
        self._queued -= filled
        return filled

    def _fade(self, line: Samples, fade: Samples) -> None:
        """Let a line fall silent, and drop the queue."""
        n = min(len(line), len(fade))
        line[:n] *= fade[:n]
        line[n:] = 0
        self._dropped = self._drop()
        self._fading.clear()
        self._silent.set()

    def _drop(self) -> int:
        """Empty the queue, and return how many samples it had."""
        left, self._queued, self._n_taken = self._queued, 0, 0
        self._queue.clear()
        return left

    def _ended(self) -> None:
        self._silent.set()
        self._played.wake()

    def play(self, samples: Samples, rate: int) -> None:
        """Queue sound behind what is queued, and return at once.

        Raises:
            SoundError: the device is gone; the speaker is closed.
        """
        if self._stream.is_gone():
            raise self._stream.gone()
        ready = np.clip(resample(np.asarray(samples, np.float32), rate, self._rate), -1, 1)
        with self._lock:
            if len(ready):
                self._queue.append(ready)
            self._queued += len(ready)

    @property
    def waiting_s(self) -> float:
        """Length of the queued sound that has not been heard yet, in seconds.

        Raises:
            SoundError: the device is gone; the speaker is closed.
        """
        if self._stream.is_gone():
            raise self._stream.gone()
        with self._lock:
            return self._queued / self._rate + max(0.0, self._heard_until_s - time.monotonic())

    def stop(self) -> float:
        """Fade out within 8 ms of the next callback, drop the queue, and return how much of it was not heard, in seconds.

        The device's own buffer is still heard, for `latency_s`.
        """
        with self._lock:
            if not self._queued or self._stream.is_gone():
                return self._drop() / self._rate
            self._silent.clear()
            self._fading.set()
        self._silent.wait(GONE_S)
        with self._lock:
            return self._dropped / self._rate

    def close(self) -> None:
        """Stop, and free the device."""
        self._closing = True
        self._stream.close()
        self._played.wake()
        if threading.current_thread() is not self._teller:
            self._teller.join()

    def _tell(self) -> None:
        """Tell `on_played` what was played; runs in a thread."""
        resampler, n_told = StreamResampler(self._rate), 0
        while not self._closing:
            self._played.wait(0.5)
            converted = resampler.add(self._played.read())
            listener = self.on_played
            if len(converted) and listener is not None:
                listener(converted, self._clock.at(n_told / RATE) + self.latency_s)
            n_told += len(converted)
