"""Finding control tokens of any look, with nothing but a tokenizer to ask."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.prompt.encode import Control, Encoder, Piece


def make_tokenize(specials):
    """A token a letter, and the special ones; the longest first, as real tokenizers do."""
    ordered = sorted(specials, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, ordered)))

    def tokenize(text, *, add_special=False, parse_special=False):
        ids, position = [], 0
        for match in pattern.finditer(text) if parse_special else ():
            ids += [*map(ord, text[position : match.start()]), 2_000_000 + ordered.index(match.group())]
            position = match.end()
        return ids + list(map(ord, text[position:]))

    return tokenize


ODD = ["SYSTEM>>", "<|a|>", "@", "two words", "\n\n##", "<unfinished", "[X]"]


@given(st.lists(st.sampled_from([*ODD, "a", " ", "SYS", "<", ">", "##", "\n", "two", "[", "é"]), max_size=12).map("".join))
def test_split_finds_what_the_tokenizer_reads(text):
    tokenize = make_tokenize(ODD)
    parts = Encoder([]).split(text, tokenize)
    assert "".join(part.text if isinstance(part, Control) else part for part in parts) == text
    ids = [token for part in parts for token in (part.ids if isinstance(part, Control) else tokenize(part))]
    assert ids == tokenize(text, parse_special=True)
    assert all(len(part.ids) == 1 for part in parts if isinstance(part, Control))


def test_what_is_remembered_stays_small():
    tokenize, encoder = make_tokenize(["<s>"]), Encoder([])
    for n in range(10_000):
        assert encoder.split(f"{n}<s>", tokenize) == (str(n), Control("<s>", (2_000_000,)))
    assert len(encoder._split_memo) <= 4096


@pytest.mark.parametrize("side", ["left", "right"])
def test_control_tokens_that_swallow_white_space(side):
    letters = make_tokenize(["<e>"])

    def tokenize(text, *, add_special=False, parse_special=False):
        if parse_special:
            text = re.sub(r"<e>\s+" if side == "right" else r"\s+<e>", "<e>", text)
        return letters(text, parse_special=parse_special)

    encoder, text = Encoder([]), "x \n<e>\n y<e>z"
    items = [part if isinstance(part, Control) else Piece(part) for part in encoder.split(text, tokenize)]
    assert encoder.encode(items, tokenize) == tokenize(text, parse_special=True)


def test_a_word_that_is_a_token_is_broken_up_in_what_people_write():
    def tokenize(text, *, add_special=False, parse_special=False):
        return make_tokenize(["<tool>"])(text, parse_special=True)  # read as a token whatever is asked

    encoder = Encoder(["<tool>", "<other>"])
    ids = encoder.encode([Piece("a<tool>"), Piece("b<tool><tool>c", is_foreign=True)], tokenize)
    assert ids == [ord("a"), 2_000_000, *map(ord, "b<tool><tool>c")]
