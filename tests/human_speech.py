"""Human speech with its words: the recordings of Debian's pocketsphinx-testdata, 16 kHz, and how words are compared."""

from __future__ import annotations

import re
import wave
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Recording", "human_set", "read_wav", "why_no_speech", "word_errors", "words_of"]

_FOLDER = Path("/usr/share/pocketsphinx/test/data")

# The transcript of the package writes "a more a amiable woman"; the reader, and the book, say it once.
_MISPRINTS = {"a more a amiable": "a more amiable"}
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Attributes: name; samples, float32 at 16 kHz, shape (n,); words that are said."""

    name: str
    samples: NDArray[np.float32]
    words: str


def why_no_speech() -> str:
    """Return why there are no recordings here, "" if there are."""
    return "" if (_FOLDER / "cards").is_dir() else "recordings of human speech are in Debian's pocketsphinx-testdata"


def human_set() -> list[Recording]:
    """Return 12 recordings from four sources, 100 words: playing cards, a novel, a command, digits."""
    recordings = []
    for folder, listed in (("cards", "cards.transcription"), ("librivox", "transcription")):
        for line in (_FOLDER / folder / listed).read_text().splitlines():
            found = re.fullmatch(r"<s>\s*(.*?)\s*</s>\s*\((.*)\)", line.strip())
            assert found is not None, line
            words = found[1]
            for wrong, right in _MISPRINTS.items():
                words = words.replace(wrong, right)
            recordings.append(Recording(found[2], read_wav(_FOLDER / folder / f"{found[2]}.wav"), words))
    recordings.append(Recording("goforward", _read_raw(_FOLDER / "goforward.raw"), "go forward ten meters"))
    recordings.append(Recording("2934z", _read_raw(_FOLDER / "tidigits/dhd.2934z.raw"), "two nine three four zero"))
    return recordings


def read_wav(path: Path) -> NDArray[np.float32]:
    """Return a WAV file of 16 bits and one channel."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def _read_raw(path: Path) -> NDArray[np.float32]:
    return np.fromfile(path, "<i2").astype(np.float32) / 32768


def words_of(text: str) -> list[str]:
    """Return the words of a text as they sound: no case, no punctuation, small numbers and "Mr." spelled out."""
    text = text.lower().replace("mr.", "mister").replace("-", " ")
    text = re.sub(r"\d", lambda digit: f" {_NUMBERS[int(digit[0])]} ", text.replace("10", "ten"))
    return re.sub(r"[^a-z' ]", " ", text).split()


def word_errors(pairs: Iterable[tuple[str, str]]) -> tuple[int, int]:
    """Return words that are wrong, missing or too many (the fewest edits), and words in all, over (said, understood)."""
    n_wrong = n_words = 0
    for said, understood in pairs:
        one, other = words_of(said), words_of(understood)
        row = list(range(len(other) + 1))
        for i, word in enumerate(one, start=1):
            previous, row[0] = row[0], i
            for j, heard in enumerate(other, start=1):
                previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (word != heard))
        n_wrong, n_words = n_wrong + row[-1], n_words + len(one)
    return n_wrong, n_words
