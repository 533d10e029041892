"""Microphone and loudspeaker through PortAudio and a private PulseAudio: sound arrives as it was, and devices go and come."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from edge.errors import SoundError
from edge_voice.audio import PortAudioMicrophone, PortAudioSpeaker
from edge_voice.devices import find_device, list_devices
from edge_voice.stages import BLOCK, RATE, Samples
from tests.virtual_sound import VirtualSound

pytestmark = pytest.mark.timeout(120)


def tone(hz: float, rate: int, seconds: float) -> Samples:
    sound: Samples = (0.4 * np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate)).astype(np.float32)
    return sound


def pitch(sound: Samples) -> float:
    """Return the pitch of the loudest tone of a sound at RATE, in Hz."""
    return float(np.abs(np.fft.rfft(sound, 1 << 18)).argmax() * RATE / (1 << 18))


def hear(microphone: PortAudioMicrophone, seconds: float) -> Samples:
    blocks = []
    for _ in range(int(seconds * RATE / BLOCK)):
        block = microphone.read(20)
        assert block is not None
        blocks.append(block.samples)
    return np.concatenate(blocks)


def hear_tone(microphone: PortAudioMicrophone, seconds: float) -> Samples:
    """Return so much of a tone, whenever it begins: the program that plays it may take a while to start."""
    blocks: list[Samples] = []
    while len(blocks) < int(seconds * RATE / BLOCK):
        block = microphone.read(20)
        assert block is not None
        if np.abs(block.samples).max() > 0.05:
            blocks.append(block.samples)
    return np.concatenate(blocks)


def test_devices_are_listed_and_found_by_name_and_number(virtual_sound: VirtualSound) -> None:
    names = {device.name: device for device in list_devices("input")}
    assert {"microphone", "default"} <= set(names)
    assert find_device("input").name == "default"
    assert find_device("input", "Microph") == names["microphone"]
    assert find_device("input", str(names["microphone"].index)) == names["microphone"]
    with pytest.raises(SoundError, match="no microphone named 'trumpet'") as caught:
        find_device("input", "trumpet")
    assert "microphone" in caught.value.hint
    with pytest.raises(SoundError, match="fits 2 devices"):
        find_device("output", "o")


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_stereo_at_another_rate_arrives_as_one_channel_at_16_khz(virtual_sound: VirtualSound, rate: int) -> None:
    microphone = PortAudioMicrophone("microphone")
    try:
        assert microphone.device_rate != RATE
        assert microphone.channels == 2
        player = virtual_sound.play(np.stack([tone(600, rate, 1.5), tone(600, rate, 1.5)], axis=1), rate)
        heard = hear_tone(microphone, 1.2)
        player.join()
    finally:
        microphone.close()
    assert abs(pitch(heard) - 600) < 2
    assert abs(np.sqrt((heard[RATE // 5 :] ** 2).mean()) - 0.4 / np.sqrt(2)) < 0.01


def test_blocks_are_20_ms_each_in_step_with_the_clock(virtual_sound: VirtualSound) -> None:
    microphone = PortAudioMicrophone()
    try:
        began = time.monotonic()
        blocks = [block for _ in range(60) if (block := microphone.read(20)) is not None]
        now = time.monotonic()
    finally:
        microphone.close()
    steps = np.diff([block.at_s for block in blocks])
    assert len(blocks) == 60
    assert all(block.samples.shape == (BLOCK,) for block in blocks)
    assert abs(np.median(steps) - BLOCK / RATE) < 0.002
    assert began - 0.5 < blocks[0].at_s < blocks[-1].at_s < now


def test_what_is_played_is_heard_and_told_to_the_echo_canceller(virtual_sound: VirtualSound) -> None:
    told: list[tuple[Samples, float]] = []
    speaker = PortAudioSpeaker("loudspeaker")
    try:
        speaker.on_played = lambda samples, at_s: told.append((samples, at_s))
        with virtual_sound.recording() as recorded:
            speaker.play(tone(700, 24_000, 0.5), 24_000)
            speaker.play(tone(700, 22_050, 0.5), 22_050)
            assert 0.8 < speaker.waiting_s <= 1.2
            while speaker.waiting_s:
                time.sleep(0.05)
    finally:
        speaker.close()
    (sound,) = recorded
    assert 0.85 * RATE < np.count_nonzero(np.abs(sound) > 0.01) < 1.1 * RATE
    assert abs(pitch(sound) - 700) < 3
    reference = np.concatenate([samples for samples, _ in told])
    assert abs(pitch(reference) - 700) < 3
    assert 0.85 * RATE < np.count_nonzero(np.abs(reference) > 0.01) < 1.1 * RATE
    assert all(first <= second for (_, first), (_, second) in itertools.pairwise(told))


def test_stopping_silences_the_loudspeaker_and_says_how_much_was_not_heard(virtual_sound: VirtualSound) -> None:
    speaker = PortAudioSpeaker("loudspeaker")
    try:
        assert speaker.stop() == 0
        with virtual_sound.recording() as recorded:
            speaker.play(tone(500, 48_000, 5), 48_000)
            while speaker.waiting_s > 4:
                time.sleep(0.01)
            left = speaker.stop()
            assert 3 < left < 4
            assert speaker.waiting_s < 0.5
            time.sleep(0.5)
            assert speaker.waiting_s == 0
            speaker.play(tone(500, 48_000, 0.2), 48_000)
            time.sleep(0.5)
    finally:
        speaker.close()
    heard_s = np.count_nonzero(np.abs(recorded[0]) > 0.02) / RATE
    assert abs(heard_s - (5 - left + 0.2)) < 0.4


def test_a_microphone_that_is_unplugged_is_an_error_and_opens_again_when_it_is_back(virtual_sound: VirtualSound) -> None:
    microphone = PortAudioMicrophone("microphone")
    hear(microphone, 0.3)
    virtual_sound.unplug("mic")
    with pytest.raises(SoundError, match="microphone is gone"):
        while True:  # the limit of the test ends it
            microphone.read(0.1)
    with pytest.raises(SoundError, match="The microphone microphone"):
        PortAudioMicrophone("microphone")
    virtual_sound.plug_in("mic")
    again = PortAudioMicrophone("microphone")
    try:
        player = virtual_sound.play(tone(600, RATE, 1.5), RATE)
        assert abs(pitch(hear_tone(again, 1.0)) - 600) < 3
        player.join()
    finally:
        again.close()


def test_a_loudspeaker_that_is_unplugged_is_an_error_and_the_microphone_goes_on(virtual_sound: VirtualSound) -> None:
    microphone, speaker = PortAudioMicrophone("microphone"), PortAudioSpeaker("loudspeaker")
    try:
        speaker.play(tone(500, 48_000, 60), 48_000)
        hear(microphone, 0.3)
        virtual_sound.unplug("speaker")
        with pytest.raises(SoundError, match="loudspeaker is gone"):
            while speaker.waiting_s >= 0:  # the limit of the test ends it
                time.sleep(0.01)
        hear(microphone, 0.3)
        virtual_sound.plug_in("speaker")
        speaker = PortAudioSpeaker("loudspeaker")
        speaker.play(tone(500, 48_000, 0.1), 48_000)
    finally:
        microphone.close()
        speaker.close()
        speaker.close()
