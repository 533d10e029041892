"""What was said, as WAV files of the user's own folder: only where that was asked for."""

from __future__ import annotations

import io
import time
import wave
from pathlib import Path
from typing import TYPE_CHECKING

from edge.files import make_private_dir, write_private
from edge_voice.stages import RATE

if TYPE_CHECKING:
    from edge_voice.stages import Samples

__all__ = ["Keeper", "wav_bytes"]


class Keeper:
    """Writes each utterance to a file that only its owner may read, named by the time.

    Args:
        folder: is made if it is missing.

    Raises:
        StorageError: it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        make_private_dir(folder)
        self._folder = folder
        self._n = 0

    def keep(self, sound: Samples) -> None:
        """Write an utterance, samples at RATE.

        Raises:
            StorageError: it cannot be written.
        """
        self._n += 1
        name = time.strftime(f"%Y-%m-%d-%H%M%S-{self._n:03}.wav")
        write_private(self._folder / name, wav_bytes(sound, RATE))


def wav_bytes(sound: Samples, rate: int) -> bytes:
    """Return sound as a WAV file of 16 bits, one channel."""
    import numpy as np

    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(sound, -1, 32767 / 32768) * 32768).astype("<i2").tobytes())
    return data.getvalue()
