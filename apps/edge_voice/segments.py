"""Utterances in a row of probabilities: where speech begins, pauses and goes on. No sound, no clock, no threads."""

from __future__ import annotations

from collections import deque
from typing import Literal, TypeAlias

__all__ = ["Segmenter", "Step"]

Step: TypeAlias = Literal["silence", "started", "speech", "pause"]
"""What a frame is: outside of an utterance; the one with which it is certain that one began; speech or silence in one."""

_BEGINS = 0.5  # probability of speech from which on a frame can begin an utterance
_GOES_ON = 0.35  # and can go on with one


class Segmenter:
    """Finds utterances. After `end`, the next one can begin.

    Args:
        n_start: frames of speech that begin an utterance, among the last n_start + 1.

    Attributes:
        is_open: an utterance has begun and was not ended.
        n_silent: frames since the last one with speech.
        n_voiced: frames with speech in this utterance.
    """

    def __init__(self, n_start: int = 3) -> None:
        self.n_start = n_start
        self.is_open = False
        self.n_silent = self.n_voiced = 0
        self._latest: deque[bool] = deque(maxlen=n_start + 1)

    def add(self, probability: float) -> Step:
        """Take the next frame and return what it is."""
        if not self.is_open:
            self._latest.append(probability >= _BEGINS)
            if sum(self._latest) < self.n_start:
                return "silence"
            self.is_open, self.n_voiced, self.n_silent = True, sum(self._latest), 0
            return "started"
        if probability >= _GOES_ON:
            self.n_voiced += 1
            self.n_silent = 0
            return "speech"
        self.n_silent += 1
        return "pause"

    def end(self) -> None:
        """End the utterance."""
        self.is_open = False
        self.n_silent = self.n_voiced = 0
        self._latest.clear()
