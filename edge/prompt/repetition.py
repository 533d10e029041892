"""Finds replies that repeat themselves, as small models do until the context window is full.

A text is read in units: words, numbers, signs, line ends. A *loop* is a passage that its end repeats many times in a row. Two
kinds are told apart:

- the same passage, word for word. Short ones have to come more often, until they make up many units: "ha ha ha", a table's rule
  and a matrix of zeros are no loops;
- a passage in which only the numbers differ ("if n == 9: ...", "if n == 10: ..."). Numbered lists and tables are like that too,
  so it has to have several words and come far more often.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["USUAL_MAX_REPEATS", "RepetitionDetector"]

USUAL_MAX_REPEATS = 5
"""`Sampling.max_repeats` of the chat and `edge run` unless a setting says otherwise. Programs choose for themselves."""

_UNIT = re.compile(
    r"[\u0e00-\u0eff\u2e80-\u9fff\uac00-\ud7ff\U00020000-\U0003ffff]|\d{1,16}|[^\W\d]{1,16}|\n|[ \t]{2,}|[^\w\s]"
)
"""Scripts without blanks count letter by letter. A single blank counts nothing."""

_LONGEST_UNIT = 16
_CHECK_EVERY = 64  # units
_WINDOW = 4096  # units that are looked at
_NUMBER = "0"

# Units that a passage has to fill in all its repeats, for each repeat that is allowed:
_OF_SENTENCES, _SENTENCE_WORDS = 30, 4  # with several different words
_OF_WORDS = 60
_OF_SIGNS, _SIGN_FACTOR = 100, 8  # and how many times more often signs and numbers alone have to come
_NUMBERED_WORDS, _NUMBERED_FACTOR = 3, 20  # different words, and how many times more often, where the numbers differ


class RepetitionDetector:
    """Reads a text as it is written, and tells when it only repeats itself. The result does not depend on how it is split.

    Args:
        max_repeats: how often a long passage may come in a row (at least 2); 0 allows everything.

    Attributes:
        is_suspect: the text ends with at least half of the repeats of a loop.
    """

    def __init__(self, max_repeats: int) -> None:
        self._most = max(2, max_repeats) if max_repeats else 0
        self.is_suspect = False
        self._rest = ""  # the last unit, which may go on
        self._units: list[str] = []
        self._n_unchecked = 0

    def feed(self, text: str) -> bool:
        """Take more text. Return whether the text ends with a loop."""
        if not self._most:
            return False
        self._rest += text
        matches = list(_UNIT.finditer(self._rest))
        if len(self._rest) > (start := matches[-1].start() if matches else 0) + _LONGEST_UNIT:
            start = len(self._rest)
        whole = [match.group() for match in matches if match.end() <= start]
        self._rest = self._rest[start:]
        is_loop = False
        for unit in whole:
            self._units.append(unit)
            self._n_unchecked += 1
            if self._n_unchecked == _CHECK_EVERY:
                self._n_unchecked = 0
                del self._units[:-_WINDOW]
                self.is_suspect = _ends_in_loop(self._units, max(2, self._most // 2))
                is_loop = is_loop or (self.is_suspect and _ends_in_loop(self._units, self._most))
        return is_loop


def _ends_in_loop(units: Sequence[str], most: int) -> bool:
    """Tell if units end with a passage that comes `most` times in a row, or as often as its kind has to."""
    backwards = units[::-1]
    lengths = _common_lengths(backwards)
    for size in range(1, len(units) // most + 1):
        n_units = size + lengths[size]
        if n_units // size >= most and _is_loop(backwards[:size], n_units, most):
            return True
    masked = [_NUMBER if unit.isdecimal() else unit for unit in backwards]
    if masked == backwards:
        return False
    lengths, fewest = _common_lengths(masked), _NUMBERED_FACTOR * most
    return any(
        (size + lengths[size]) // size >= fewest and _n_words(masked[:size]) >= _NUMBERED_WORDS
        for size in range(1, len(units) // fewest + 1)
    )


def _is_loop(passage: Sequence[str], n_units: int, most: int) -> bool:
    """Tell if a passage that fills so many units is a loop."""
    n_words = _n_words(passage)
    if n_words:
        return n_units >= most * (_OF_SENTENCES if n_words >= _SENTENCE_WORDS else _OF_WORDS)
    return n_units >= most * max(_OF_SIGNS, _SIGN_FACTOR * len(passage))


def _n_words(passage: Sequence[str]) -> int:
    """Count the different words of a passage; letters alone are names of variables, except in scripts without blanks."""
    return len({unit for unit in passage if unit[0].isalpha() and (len(unit) > 1 or unit > "\u0e00")})


def _common_lengths(units: Sequence[str]) -> list[int]:
    """Return for each position how many units from there on equal those from the start (the Z function)."""
    lengths = [0] * len(units)
    left = right = 0
    for n in range(1, len(units)):
        length = min(right - n, lengths[n - left]) if n < right else 0
        while n + length < len(units) and units[length] == units[n + length]:
            length += 1
        lengths[n] = length
        if n + length > right:
            left, right = n, n + length
    return lengths
