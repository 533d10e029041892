"""Phonemes: the alphabet of the voices, chunks that fit their models, and words that are read right."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_voice.tts.phonemes import MOST_PHONEMES, Phonemiser, phoneme_ids, split_phonemes


@pytest.fixture(scope="module")
def phonemiser() -> Phonemiser:
    return Phonemiser()


def test_the_ids_are_those_of_kokoro() -> None:
    # From the config.json of Kokoro-82M.
    known = {
        ";": 1,
        "?": 6,
        "—": 9,
        " ": 16,
        "A": 24,
        "Y": 41,
        "ᵊ": 42,
        "h": 50,
        "ð": 81,
        "ɡ": 92,
        "ɹ": 123,
        "ʧ": 133,
        "ˈ": 156,
        "ᵻ": 177,
    }
    assert phoneme_ids("".join(known)) == [0, *known.values(), 0]
    assert phoneme_ids("h\N{SNOWMAN}i") == [0, 50, 51, 0]


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [("Hello there.", "həlˈO ðˈɛɹ."), ("the end", "ði ˈɛnd")],
)
def test_words(phonemiser: Phonemiser, text: str, phonemes: str) -> None:
    assert phonemiser.chunks(text) == [phonemes]


def test_what_the_voices_cannot_say_is_left_out(phonemiser: Phonemiser) -> None:
    for text in ("", "  ", "...", "—", "!?"):
        assert phonemiser.chunks(text) == []


@given(st.text(alphabet="aɹˈ .,;!?—", max_size=2000), st.integers(5, 50))
def test_no_chunk_is_too_long_and_nothing_is_lost(phonemes: str, most: int) -> None:
    chunks = split_phonemes(phonemes, most)
    assert all(len(chunk) <= most for chunk in chunks)
    assert re.sub(r"\s", "", "".join(chunks)) == re.sub(r"\s", "", phonemes)


def test_long_texts_are_split_at_sentences_first(phonemiser: Phonemiser) -> None:
    text = "A sentence that is said again and again, with a clause. " * 20
    chunks = phonemiser.chunks(text)
    assert len(chunks) > 2
    assert all(chunk.endswith(".") for chunk in chunks)
    assert all(len(chunk) <= MOST_PHONEMES for chunk in chunks)
