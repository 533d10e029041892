"""WAV files: every kind that is read, written by other programs or by hand, and what is refused."""

from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UsageError
from edge_voice.stages import RATE
from edge_voice.wav import read_wav

TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def wav(data: bytes, *, kind: int = 1, channels: int = 1, rate: int = RATE, bits: int = 16, extra: bytes = b"") -> bytes:
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits) + extra
    chunks = b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def integers(bits: int) -> bytes:
    if bits == 8:
        return np.round(TONE * 127 + 128).astype(np.uint8).tobytes()
    whole = np.round(TONE.astype(np.float64) * ((1 << (bits - 1)) - 1)).astype("<i4")
    return b"".join(int(value).to_bytes(bits // 8, "little", signed=True) for value in whole)


@pytest.mark.parametrize(
    ("data", "tolerance"),
    [
        (wav(integers(8), bits=8), 0.01),
        (wav(integers(16)), 1e-4),
        (wav(integers(24), bits=24), 1e-6),
        (wav(integers(32), bits=32), 1e-6),
        (wav(TONE.tobytes(), kind=3, bits=32), 0),
        (wav(TONE.astype("<f8").tobytes(), kind=3, bits=64), 0),
        (wav(integers(24), kind=0xFFFE, bits=24, extra=struct.pack("<HHI", 22, 24, 4) + b"\1\0" + bytes(14)), 1e-6),
    ],
    ids=["8 bits", "16", "24", "32", "float32", "float64", "extensible"],
)
def test_every_kind_of_sample(data: bytes, tolerance: float) -> None:
    sound = read_wav(io.BytesIO(data), "a.wav")
    assert sound.dtype == np.float32
    assert np.abs(sound - TONE).max() <= tolerance


def test_stereo_at_another_rate_and_as_python_writes_it() -> None:
    t = np.arange(2 * 44_100) / 44_100
    both = np.stack([np.sin(2 * np.pi * 440 * t), np.zeros(len(t))], axis=1)
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(2)
        writer.setsampwidth(2)
        writer.setframerate(44_100)
        writer.writeframes((both * 32767).astype("<i2").tobytes())
    file.seek(0)
    sound = read_wav(file, "a.wav")
    assert len(sound) == 2 * RATE
    k = np.arange(1000, 30_000)
    assert np.allclose(sound[k], 0.5 * np.sin(2 * np.pi * 440 * k / RATE), atol=2e-3)


def test_a_pipe_whose_length_nobody_knew_is_read_to_its_end() -> None:
    data = bytearray(wav(integers(16)))
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff\xff\xff\xff"
    assert len(read_wav(io.BytesIO(bytes(data)), "stdin")) == RATE


@pytest.mark.parametrize(
    ("data", "about"),
    [
        (b"", "not a WAV file"),
        (b"ID3" + bytes(100), "not a WAV file"),
        (wav(b"", kind=2, bits=4), "kind 2, 4 bits"),
        (wav(b"", channels=0), "0 channels"),
        (wav(b"", rate=1), "1 Hz"),
        (wav(integers(16))[:30], "damaged"),
        (b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", "damaged"),
    ],
)
def test_what_is_not_read_is_said(data: bytes, about: str) -> None:
    with pytest.raises(UsageError, match=about):
        read_wav(io.BytesIO(data), "a.wav")


@given(st.data())
def test_damaged_files_are_errors_or_sound_and_never_anything_else(data: st.DataObject) -> None:
    whole = bytearray(wav(integers(16)[:400], channels=2))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, 90))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    try:
        sound = read_wav(io.BytesIO(bytes(whole[:cut])), "a.wav")
    except UsageError:
        return
    assert np.isfinite(sound).all()
