"""A voice and a loudspeaker of the test's own, by "module:function" as settings name them: words are tones, time is quick."""

from __future__ import annotations

import numpy as np

from edge.config import Settings
from edge.errors import SoundError
from edge_voice.testing import FakeVoice, ToneLanguage

TONES = ToneLanguage()
SAID: list[str] = []
PLAYED: list[tuple[np.ndarray, int]] = []
"""What the last voice said, and what loudspeakers played."""


class QuickSpeaker:
    """Plays at once."""

    name, latency_s, on_played = "quick", 0.0, None
    waiting_s = 0.0
    is_closed = False

    def play(self, samples: np.ndarray, rate: int) -> None:
        PLAYED.append((samples, rate))

    def stop(self) -> float:
        return 0.0

    def close(self) -> None:
        self.is_closed = True


def open_voice(settings: Settings) -> FakeVoice:
    voice = FakeVoice(TONES)
    SAID.clear()
    voice.said = SAID
    return voice


def open_speaker(settings: Settings) -> QuickSpeaker:
    return QuickSpeaker()


def open_no_speaker(settings: Settings) -> QuickSpeaker:
    raise SoundError("This machine has no loudspeaker.", "Connect one.")
