"""Loudness of the microphone: ten values a second, and a word where it hears nothing or too much."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from edge_voice.events import Level, Notice
from edge_voice.stages import RATE

if TYPE_CHECKING:
    from edge_voice.stages import Samples

__all__ = ["FLOOR_DB", "LevelMeter", "to_db"]

FLOOR_DB = -90.0
_EVERY = RATE // 10
_DEAD_S = 3.0  # of exact zeros: no real microphone is that quiet
_CLIPPED_BLOCKS = 10  # tenths of a second with samples at full scale


def to_db(amplitude: float) -> float:
    """Return an amplitude, 0 to 1, in dB below full scale: `FLOOR_DB` to 0."""
    return max(FLOOR_DB, 20 * math.log10(amplitude)) if amplitude > 0 else FLOOR_DB


class LevelMeter:
    """Measures what it is given; each warning comes once."""

    def __init__(self) -> None:
        self._sum = self._peak = 0.0
        self._n = 0
        self._dead_s, self._n_clipped = 0.0, 0
        self._said: set[str] = set()

    def add(self, samples: Samples, is_speech: bool) -> list[Level | Notice]:
        """Take samples at RATE, and return the level and warnings that are due."""
        self._sum += float((samples * samples).sum())
        self._peak = max(self._peak, float(abs(samples).max(initial=0.0)))
        self._n += len(samples)
        if self._n < _EVERY:
            return []
        found: list[Level | Notice] = [Level(to_db(math.sqrt(self._sum / self._n)), to_db(self._peak), is_speech)]
        self._dead_s = self._dead_s + self._n / RATE if self._peak == 0 else 0.0
        self._n_clipped += self._peak >= 0.999
        if self._dead_s >= _DEAD_S:
            found += self._once("The microphone gives nothing but silence: it may be muted. See: edge voice doctor")
        if self._n_clipped >= _CLIPPED_BLOCKS:
            found += self._once("The microphone is too loud, and its sound is clipped: lower its level. See: edge voice doctor")
        self._sum = self._peak = 0.0
        self._n = 0
        return found

    def _once(self, text: str) -> list[Notice]:
        if text in self._said:
            return []
        self._said.add(text)
        return [Notice(text)]
