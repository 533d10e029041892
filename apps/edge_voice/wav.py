"""WAV files in: PCM of 8 to 32 bits and floats, any rate and number of channels. What is no sound in them is skipped."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from edge.errors import UsageError
from edge_voice.resample import MAX_RATE, MIN_RATE, StreamResampler

if TYPE_CHECKING:
    from edge_voice.stages import Samples

__all__ = ["read_wav"]

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_MAX_CHANNELS = 64
_BLOCK = 1 << 18  # samples of all channels that are read at once
_MAX_S = 24 * 3600
_HINT = "Convert it: ffmpeg -i FILE -ac 1 -ar 16000 -c:a pcm_s16le sound.wav"


@dataclass(frozen=True, slots=True)
class _Format:
    kind: int
    n_channels: int
    rate: int
    n_bits: int

    @property
    def n_bytes(self) -> int:
        """Bytes of one sample of one channel."""
        return self.n_bits // 8


def read_wav(file: BinaryIO, name: str) -> Samples:
    """Return the sound of a WAV file as one channel at `RATE`.

    Args:
        file: at its beginning; read to the end of its sound. It may be a pipe.
        name: for messages.

    Raises:
        UsageError: it is no WAV file, or of a kind that is not read here.
        OSError: it cannot be read.
    """
    form, n_bytes = _find_sound(file, name)
    resampler, pieces, n_read = StreamResampler(form.rate, quality="HQ"), list["Samples"](), 0
    for block in _blocks(file, form, n_bytes):
        n_read += len(block)
        if n_read > _MAX_S * form.rate:
            raise UsageError(f"{name} is longer than a day.", "Split it first.")
        pieces.append(resampler.add(block))
    pieces.append(resampler.end())
    return np.concatenate(pieces)


def _find_sound(file: BinaryIO, name: str) -> tuple[_Format, int]:
    """Return the format, and how many bytes of sound follow at most; the file stands at the first one."""
    head = file.read(12)
    if len(head) < 12 or head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        raise UsageError(f"{name} is not a WAV file.", _HINT)
    form: _Format | None = None
    while len(chunk := file.read(8)) == 8:
        kind, size = chunk[:4], int.from_bytes(chunk[4:], "little")
        if kind == b"data":
            if form is None:
                break
            return form, size
        if kind == b"fmt ":
            form = _read_format(file.read(min(size, 64)), name)
            size -= min(size, 64)
        _skip(file, size + size % 2)
    raise UsageError(f"{name} is damaged: it has no sound.", "Record or convert it again.")


def _read_format(data: bytes, name: str) -> _Format:
    if len(data) < 16:
        raise UsageError(f"{name} is damaged: its format is cut off.", "Record or convert it again.")
    kind, n_channels, rate, _, _, n_bits = struct.unpack("<HHIIHH", data[:16])
    if kind == _EXTENSIBLE and len(data) >= 26:
        kind = int.from_bytes(data[24:26], "little")
    known = {_PCM: (8, 16, 24, 32), _FLOAT: (32, 64)}.get(kind, ())
    if n_bits not in known or not 1 <= n_channels <= _MAX_CHANNELS or not MIN_RATE <= rate <= MAX_RATE:
        about = f"kind {kind}, {n_bits} bits, {n_channels} channels, {rate} Hz"
        raise UsageError(f"{name} holds sound of a kind that is not read here ({about}).", _HINT)
    return _Format(kind, n_channels, rate, n_bits)


def _skip(file: BinaryIO, n_bytes: int) -> None:
    while n_bytes > 0 and (skipped := len(file.read(min(n_bytes, 1 << 16)))):
        n_bytes -= skipped


def _blocks(file: BinaryIO, form: _Format, n_bytes: int) -> Iterator[Samples]:
    """Yield the sound, mixed down. A program that writes into a pipe does not know its length: then the file ends it."""
    frame = form.n_bytes * form.n_channels
    rest = b""
    while n_bytes > 0:
        data = file.read(min(n_bytes, _BLOCK // form.n_channels * frame))
        if not data:
            return
        n_bytes -= len(data)
        data = rest + data
        whole = len(data) // frame * frame
        rest = data[whole:]
        samples = _to_floats(data[:whole], form).reshape(-1, form.n_channels)
        yield np.nan_to_num(samples.mean(axis=1, dtype=np.float32), posinf=0, neginf=0)


def _to_floats(data: bytes, form: _Format) -> Samples:
    if form.kind == _FLOAT:
        return np.frombuffer(data, f"<f{form.n_bytes}").astype(np.float32)
    if form.n_bits == 8:
        whole, full_scale = np.frombuffer(data, np.uint8).astype(np.float32) - np.float32(128), 128
    elif form.n_bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        whole, full_scale = wide.view("<i4").ravel().astype(np.float32), 1 << 31
    else:
        whole, full_scale = np.frombuffer(data, f"<i{form.n_bytes}").astype(np.float32), 1 << (form.n_bits - 1)
    samples: Samples = whole / np.float32(full_scale)
    return samples
