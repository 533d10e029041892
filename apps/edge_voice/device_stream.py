"""A stream of PortAudio on a device: opened at the device's own rate, closed once, and noticed when the device is gone."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from edge.errors import SoundError
from edge_voice.devices import Device, Direction, find_device, load_portaudio, quiet, rescan, sound_error

__all__ = ["GONE_S", "INPUT_LATENCY_S", "LATENCY_S", "Clock", "DeviceStream"]

_COMMON_RATES = (48_000, 44_100, 32_000, 16_000)
LATENCY_S = 0.04  # of the loudspeaker's buffers in PortAudio: less crackles where the processor is busy
INPUT_LATENCY_S = 0.025  # of the microphone's, behind which a ring of seconds waits; PulseAudio delivers nothing at 9 ms
_FIRST_S = 5.0  # a device that does not call back for so long at first does not work; Bluetooth needs a second or two
GONE_S = 1.0  # likewise, later
_CLOCK_CALLS = 20  # of which the clock that gives samples their time takes the earliest


class Clock:
    """When the samples of a stream were taken or are played, from the times of its callbacks.

    A late callback says too late a time, so the earliest of the newest ones counts. Where the device had to wait, all that
    follows is later for good.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._starts: deque[float] = deque(maxlen=_CLOCK_CALLS)

    def mark(self, n_samples: int, now_s: float, *, has_waited: bool = False) -> None:
        """Note that so many samples had passed at this time, and whether the device had to wait for these."""
        if has_waited:
            self._starts.clear()
        self._starts.append(now_s - n_samples / self._rate)

    def at(self, sample_s: float) -> float:
        """Return the time of the sample that is so many seconds from the first one."""
        return min(tuple(self._starts), default=0.0) + sample_s


_open_streams = 0
_open_lock = threading.Lock()


class DeviceStream:
    """A started stream of PortAudio, and whether its device is still there.

    Args:
        direction: "input" or "output".
        wanted: device, as `find_device` takes it.
        prepare: called with this stream, the channels and the rate before it starts; returns its callback.
        on_end: called when the stream ends by itself.

    Raises:
        BackendUnavailableError, SoundError: the device cannot be found or opened.
    """

    def __init__(
        self,
        direction: Direction,
        wanted: str | None,
        prepare: Callable[[DeviceStream, int, int], Callable[..., None]],
        on_end: Callable[[], None],
    ) -> None:
        global _open_streams
        self._direction: Direction = direction
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self.called_at = 0.0
        self._closed = False
        sounddevice = load_portaudio()
        self._stack.enter_context(quiet())
        with _open_lock:
            try:
                try:
                    self._open(sounddevice, wanted, prepare, on_end)
                except SoundError:
                    if _open_streams:
                        raise
                    rescan()  # it may have been plugged in since PortAudio looked
                    self._open(sounddevice, wanted, prepare, on_end)
            except BaseException:
                self._stack.close()
                raise
            _open_streams += 1

    def _open(
        self,
        sounddevice: Any,
        wanted: str | None,
        prepare: Callable[[DeviceStream, int, int], Callable[..., None]],
        on_end: Callable[[], None],
    ) -> None:
        device = find_device(self._direction, wanted)
        kind = sounddevice.InputStream if self._direction == "input" else sounddevice.OutputStream
        failure: Exception | None = None
        for rate, channels in _formats(device):
            try:
                stream = kind(
                    samplerate=rate,
                    channels=channels,
                    device=device.index,
                    dtype="float32",
                    latency=INPUT_LATENCY_S if self._direction == "input" else LATENCY_S,
                    callback=prepare(self, channels, rate),
                    finished_callback=on_end,
                )
                self.called_at = time.monotonic() + _FIRST_S - GONE_S
                stream.start()
            except sounddevice.PortAudioError as error:
                failure = failure or error
                continue
            self.stream, self.device, self.rate, self.channels = stream, device, rate, channels
            return
        assert failure is not None
        raise sound_error(failure, self._direction, device.name) from failure

    def is_gone(self) -> bool:
        """Return whether the device has ended the stream, or has been silent for too long."""
        return self._closed or not self.stream.active or time.monotonic() - self.called_at > GONE_S

    def gone(self) -> SoundError:
        """Close the stream, and return the error to raise."""
        self.close()
        word = "microphone" if self._direction == "input" else "loudspeaker"
        return SoundError(f"The {word} {self.device.name} is gone.", "Connect it again, or choose another: edge voice doctor")

    def close(self) -> None:
        """Stop and free the device. May be called twice."""
        global _open_streams
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with _open_lock:
            _open_streams -= 1
            try:
                self.stream.abort(ignore_errors=True)
                self.stream.close(ignore_errors=True)
            finally:
                self._stack.close()


def _formats(device: Device) -> list[tuple[int, int]]:
    """Return rates and channels to try: as the device prefers them first; few devices take any others."""
    rates = dict.fromkeys([device.rate, *_COMMON_RATES])
    channels = dict.fromkeys([min(device.channels, 2), 1, device.channels])
    return [(rate, n) for rate in rates for n in channels]
