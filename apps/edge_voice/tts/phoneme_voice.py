"""What the neural voices share: phonemes in, sound out, chunk by chunk, and stopped within one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edge.errors import CancelledError
from edge_voice.tts.phonemes import MOST_PHONEMES, Phonemiser

if TYPE_CHECKING:
    import numpy as np

    from edge_voice.sessions import OnnxModel
    from edge_voice.stages import Samples

__all__ = ["PhonemeVoice", "tidy", "with_pause"]

_QUIET = 0.003  # about -50 dB below full scale: the breath before and after words
_MARGIN_S = 0.03
_FADE_S = 0.005
_SENTENCE_PAUSE_S, _CLAUSE_PAUSE_S = 0.25, 0.12


class PhonemeVoice(ABC):
    """A voice of edge_voice.stages.Voice whose model reads phonemes, `most_phonemes` at once.

    Args:
        model: reads ids of phonemes.
        name: for people.
    """

    most_phonemes = MOST_PHONEMES
    rate = 24_000
    languages = ("en",)

    def __init__(self, model: OnnxModel, name: str) -> None:
        self.name = name
        self._model = model
        self._phonemiser = Phonemiser()
        self._is_cancelled = False

    @abstractmethod
    def say(self, phonemes: str) -> Samples:
        """Return the sound of a chunk of phonemes, float32, shape (n_samples,).

        Raises:
            CancelledError: `cancel` was called meanwhile.
        """

    def speak(self, text: str) -> Iterator[Samples]:
        """See `edge_voice.stages.Voice.speak`."""
        self._is_cancelled = False
        for phonemes in self._phonemiser.chunks(text, self.most_phonemes):
            if self._is_cancelled:
                raise CancelledError("The voice was stopped.")
            yield with_pause(tidy(self.say(phonemes), self.rate), phonemes, self.rate)

    def cancel(self) -> None:
        """See `edge_voice.stages.Voice.cancel`."""
        self._is_cancelled = True
        self._model.cancel()


def tidy(sound: Samples, rate: int) -> Samples:
    """Return sound without the silence around it, faded in and out over 5 ms, within [-1, 1].

    Args:
        sound: float32, shape (n_samples,).
        rate: samples a second.
    """
    import numpy as np

    loud = np.flatnonzero(np.abs(sound) > _QUIET)
    if not len(loud):
        return np.zeros(0, np.float32)
    margin, fade = int(_MARGIN_S * rate), int(_FADE_S * rate)
    cut: Samples = np.array(sound[max(0, loud[0] - margin) : loud[-1] + margin], np.float32)
    peak = float(np.abs(cut).max())
    if peak > 1.0:
        cut /= peak
    slope: np.ndarray = np.linspace(0.0, 1.0, min(fade, len(cut) // 2), dtype=np.float32)
    if len(slope):
        cut[: len(slope)] *= slope
        cut[-len(slope) :] *= slope[::-1]
    return cut


def with_pause(sound: Samples, phonemes: str, rate: int) -> Samples:
    """Return a sound with the pause behind it that its last mark asks for, since pieces follow each other without one.

    Args:
        sound: float32, shape (n_samples,).
        phonemes: of the sound.
        rate: samples a second.
    """
    import numpy as np

    last = phonemes.rstrip(' "“”)')[-1:]
    pause_s = _SENTENCE_PAUSE_S if last in ".!?…" else _CLAUSE_PAUSE_S if last in ",;:—" else 0.0
    return np.concatenate([sound, np.zeros(int(pause_s * rate), np.float32)])
