"""Devices that are missing, busy or odd, with a sounddevice that says so: each is one clear line."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from edge.errors import BackendUnavailableError, SoundError
from edge_voice import device_stream
from edge_voice.audio import PortAudioMicrophone, PortAudioSpeaker
from edge_voice.devices import find_device, list_devices, load_portaudio


class PortAudioError(Exception):
    """As sounddevice's."""


class FakeStream:
    """A stream that a test drives: it is what was asked for, and calls back when told."""

    opened: list[FakeStream] = []  # noqa: RUF012

    def __init__(self, **asked: Any) -> None:
        number = FakePortAudio.refuses(asked)
        if number:
            raise PortAudioError("Error opening stream: Device unavailable", number)
        self.asked, self.active, self.latency = asked, False, 0.03
        FakeStream.opened.append(self)

    def start(self) -> None:
        self.active = True

    def abort(self, ignore_errors: bool = True) -> None:
        self.active = False

    def close(self, ignore_errors: bool = True) -> None:
        self.active = False

    def call(self, data: np.ndarray, *, overflow: bool = False, underflow: bool = False) -> None:
        status = types.SimpleNamespace(input_overflow=overflow, output_underflow=underflow)
        self.asked["callback"](data, len(data), None, status)


class FakePortAudio(types.ModuleType):
    """Stands in for sounddevice."""

    PortAudioError = PortAudioError
    InputStream = OutputStream = FakeStream
    devices: list[dict[str, Any]] = []  # noqa: RUF012
    n_scans = 0

    @staticmethod
    def refuses(asked: dict[str, Any]) -> int:
        return 0

    def query_devices(self) -> list[dict[str, Any]]:
        return self.devices

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": "Core Audio", "default_input_device": 1, "default_output_device": 0}]

    default = types.SimpleNamespace(device={"input": -1, "output": -1})

    def _terminate(self) -> None:
        FakePortAudio.n_scans += 1

    def _initialize(self) -> None:
        pass


def device(index: int, name: str, inputs: int, outputs: int, rate: float = 48_000.0) -> dict[str, Any]:
    return {
        "index": index,
        "name": name,
        "hostapi": 0,
        "max_input_channels": inputs,
        "max_output_channels": outputs,
        "default_samplerate": rate,
    }


@pytest.fixture
def portaudio(monkeypatch: pytest.MonkeyPatch) -> FakePortAudio:
    fake = FakePortAudio("sounddevice")
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    monkeypatch.setattr(FakePortAudio, "devices", [device(0, "Speakers", 0, 2), device(1, "Webcam\nMic", 1, 0, 44_100.0)])
    monkeypatch.setattr(FakePortAudio, "n_scans", 0)
    FakeStream.opened.clear()
    return fake


def test_devices_have_one_line_names_and_a_default(portaudio: FakePortAudio) -> None:
    (microphone,) = list_devices("input")
    assert (microphone.name, microphone.rate, microphone.channels) == ("Webcam Mic", 44_100, 1)
    assert microphone.is_default
    assert find_device("output").name == "Speakers"
    assert find_device("input", "webcam") == microphone


def test_no_device_is_one_line(portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakePortAudio, "devices", [device(0, "Speakers", 0, 2)])
    with pytest.raises(SoundError, match=r"^This machine has no microphone\. Connect one"):
        PortAudioMicrophone()
    assert FakePortAudio.n_scans == 1  # it looked again, since one may have been plugged in


def test_no_portaudio_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(SoundError, match="PortAudio") as caught:
        load_portaudio()
    assert "libportaudio2" in caught.value.hint


def test_no_sounddevice_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(BackendUnavailableError, match="sounddevice") as caught:
        load_portaudio()
    assert "edge-assistant[voice]" in caught.value.hint


@pytest.mark.parametrize(
    ("number", "about"), [(-9985, "in use by another program"), (-9996, "not there any more"), (-9999, "cannot be opened")]
)
def test_a_busy_device_is_one_line(portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch, number: int, about: str) -> None:
    monkeypatch.setattr(FakePortAudio, "refuses", staticmethod(lambda asked: number))
    with pytest.raises(SoundError, match=f"The microphone Webcam Mic .*{about}") as caught:
        PortAudioMicrophone()
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    with pytest.raises(SoundError, match=f"The loudspeaker Speakers .*{about}"):
        PortAudioSpeaker()


def test_a_device_that_refuses_its_own_rate_gets_another(portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakePortAudio, "refuses", staticmethod(lambda asked: -9997 if asked["samplerate"] == 44_100 else 0))
    microphone = PortAudioMicrophone()
    assert microphone.device_rate == 48_000
    microphone.close()


def test_samples_that_nobody_reads_are_counted(portaudio: FakePortAudio) -> None:
    microphone = PortAudioMicrophone()
    (stream,) = FakeStream.opened
    for _ in range(50):  # 5 s; the ring holds 4
        stream.call(np.full((4410, 1), 0.25, np.float32))
    stream.call(np.zeros((4410, 1), np.float32), overflow=True)
    block = microphone.read(0)
    assert block is not None
    assert 1.0 < block.n_lost / 16_000 < 1.3
    assert 1.0 < microphone.n_overflows / 16_000 < 1.3
    later = microphone.read(0)
    assert later is not None
    assert later.n_lost == 0
    microphone.close()


def test_a_device_that_falls_silent_is_gone(portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    microphone, speaker = PortAudioMicrophone(), PortAudioSpeaker()
    recording, playing = FakeStream.opened
    recording.call(np.zeros((100, 1), np.float32))
    playing.call(np.zeros((100, 2), np.float32))
    assert microphone.read(0) is None
    assert speaker.waiting_s == 0
    monkeypatch.setattr(device_stream, "GONE_S", 0.0)
    with pytest.raises(SoundError, match="microphone Webcam Mic is gone"):
        microphone.read(0)
    for use in (lambda: speaker.play(np.zeros(10, np.float32), 48_000), lambda: speaker.waiting_s):
        with pytest.raises(SoundError, match="loudspeaker Speakers is gone"):
            use()
    assert speaker.stop() == 0
    microphone.close()
    speaker.close()


def test_opening_again_looks_for_devices_only_when_no_stream_is_open(
    portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaker = PortAudioSpeaker()
    monkeypatch.setattr(FakePortAudio, "devices", [device(0, "Speakers", 0, 2)])
    with pytest.raises(SoundError, match="no microphone"):
        PortAudioMicrophone()
    assert FakePortAudio.n_scans == 0  # it would have ended the loudspeaker
    speaker.close()
    with pytest.raises(SoundError, match="no microphone"):
        PortAudioMicrophone()
    assert FakePortAudio.n_scans == 1


def test_the_loudspeaker_plays_its_queue_in_order_and_fades_when_stopped(portaudio: FakePortAudio) -> None:
    speaker = PortAudioSpeaker()
    (stream,) = FakeStream.opened
    speaker.play(np.full(480, 0.25, np.float32), 48_000)
    speaker.play(np.full(48_000, 0.5, np.float32), 48_000)
    out = np.full((960, 2), 9.0, np.float32)
    stream.call(out)
    assert np.all(out[:480] == 0.25)
    assert np.all(out[480:] == 0.5)
    speaker._fading.set()
    stream.call(out)
    assert out[0, 0] == 0.5
    assert np.all(np.diff(out[:384, 0]) <= 0)
    assert np.all(out[400:] == 0)
    stream.call(out)
    assert np.all(out == 0)
    speaker.close()


def test_devices_and_languages_are_completed(portaudio: FakePortAudio, monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    from edge_cli.completers import complete_language, complete_microphone, complete_speaker

    context = click.Context(click.Command("x"))
    assert [item.value for item in complete_microphone(context, None, "Web")] == ["Webcam Mic"]
    assert [item.value for item in complete_speaker(context, None, "")] == ["Speakers"]
    assert [item.value for item in complete_language(context, None, "d")] == ["de"]
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    assert complete_microphone(context, None, "") == []


def test_the_clock_takes_late_callbacks_for_late_and_a_wait_for_a_wait() -> None:
    from edge_voice.device_stream import Clock

    clock = Clock(1000)
    for n in range(50):
        late_s = 0.03 if n % 3 else 0.0
        clock.mark(10 * n, 5.0 + n / 100 + late_s)
    assert clock.at(0.5) == pytest.approx(5.5)
    clock.mark(500, 5.5 + 0.08, has_waited=True)  # the device stood still for 80 ms
    assert clock.at(0.5) == pytest.approx(5.58)
    for n in range(51, 80):
        clock.mark(10 * n, 5.0 + n / 100 + 0.2)  # and later once more, without saying so
    assert clock.at(0.8) == pytest.approx(6.0)
