"""Voice activity: Silero VAD, 0.1 ms of computing for 32 ms of sound."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_voice.sessions import OnnxModel
from edge_voice.stages import RATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge.config import Settings
    from edge_voice.stages import Samples

__all__ = ["SileroVad", "open_silero"]

_FRAME, _CONTEXT = 512, 64


def open_silero(settings: Settings) -> SileroVad:
    """Open the model of the catalogue. Raises as `edge.catalog.voice_folder` and `SileroVad`."""
    from edge.catalog import voice_folder

    return SileroVad(voice_folder("silero-vad", settings=settings) / "silero_vad_16k.onnx")


class SileroVad:
    """Tells speech from noise, music and silence.

    Args:
        file: the ONNX graph for 16 kHz.

    Attributes:
        frame: samples that `probability` takes: 32 ms.

    Raises:
        ModelFileError: it cannot be opened.

    Source: github.com/snakers4/silero-vad
    """

    frame = _FRAME

    def __init__(self, file: Path) -> None:
        self._model = OnnxModel(file)
        self._rate = np.array(RATE, np.int64)
        self._input = np.zeros((1, _CONTEXT + _FRAME), np.float32)
        self._state: NDArray[np.float32] = np.zeros((2, 1, 128), np.float32)

    def probability(self, samples: Samples) -> float:
        """Return how likely a frame is speech, 0 to 1, given the frames since `reset`.

        Args:
            samples: at RATE, shape (frame,).
        """
        self._input[0, :_CONTEXT] = self._input[0, -_CONTEXT:]
        self._input[0, _CONTEXT:] = samples
        output, self._state = self._model.run({"input": self._input, "state": self._state, "sr": self._rate})
        return float(output[0, 0])

    def reset(self) -> None:
        """Forget the frames so far."""
        self._state = np.zeros_like(self._state)
        self._input[:] = 0
