"""Whether somebody has finished, or only pauses: Smart Turn, or nothing but the length of the pause."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_voice.mel import log_mel
from edge_voice.sessions import OnnxModel
from edge_voice.stages import RATE

if TYPE_CHECKING:
    from edge.config import Settings
    from edge_voice.stages import Samples

__all__ = ["Silence", "SmartTurn", "open_silence", "open_smart_turn"]

_HEARD = 8 * RATE


def open_smart_turn(settings: Settings) -> SmartTurn:
    """Open the model of the catalogue. Raises as `edge.catalog.voice_folder` and `SmartTurn`."""
    from edge.catalog import voice_folder

    return SmartTurn(voice_folder("smart-turn-v3", settings=settings) / "smart-turn.onnx")


def open_silence(settings: Settings) -> Silence:
    """Return the endpoint without a model."""
    return Silence()


class SmartTurn:
    """Judges by melody, pace and words, in any of 23 languages, within about 45 ms.

    Args:
        file: the ONNX graph.

    Raises:
        ModelFileError: it cannot be opened.

    Source: github.com/pipecat-ai/smart-turn, version 3.2
    """

    def __init__(self, file: Path) -> None:
        self._model = OnnxModel(file, releases=True)  # 17 MB otherwise

    def probability(self, speech: Samples) -> float:
        """Return how likely the speaker has finished, 0 to 1.

        Args:
            speech: the utterance so far with the pause at its end, at RATE; its last 8 seconds count.
        """
        heard = np.zeros(_HEARD, np.float32)
        n = min(len(speech), _HEARD)
        heard[_HEARD - n :] = speech[len(speech) - n :]
        heard = (heard - heard.mean()) / np.sqrt(heard.var() + 1e-7)
        return float(self._model.run({"input_features": log_mel(heard)[None]})[0][0, 0])


class Silence:
    """Takes every pause for the end: what is said ends with the pause that `voice.pause_ms` states."""

    def probability(self, speech: Samples) -> float:
        """Return 1."""
        return 1.0
