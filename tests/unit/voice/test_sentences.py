"""Pieces of a reply: complete sentences, whole blocks, and the same however the reply arrives."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_voice.sentences import LONGEST, Sentences, split_sentences


def rest(text: str) -> list[str]:
    """The pieces behind a first one."""
    return split_sentences("Well. " + text)[1:]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ("Pi is 3.14159, or 22/7. It costs $1,299.99. Yes.", ["Pi is 3.14159, or 22/7. ", "It costs $1,299.99. ", "Yes."]),
        (
            "Dr. Smith met J. K. Rowling, e.g. at No. 5. Then she left.",
            ["Dr. Smith met J. K. Rowling, e.g. at No. 5. ", "Then she left."],
        ),
        (
            "We met at 5 p.m. on Friday. It was 6 p.m. Then we left.",
            ["We met at 5 p.m. on Friday. ", "It was 6 p.m. ", "Then we left."],
        ),
        ("See https://example.com/a.b?c=d. It is good.", ["See https://example.com/a.b?c=d. ", "It is good."]),
        ('"Really?" she asked. "Yes." He left.', ['"Really?" she asked. ', '"Yes." ', "He left."]),
        ("Well... maybe. Or not… Perhaps.", ["Well... maybe. ", "Or not… ", "Perhaps."]),
        ("**Bold.** Then *more.* End.", ["**Bold.** ", "Then *more.* ", "End."]),
        ("Call `a. B` now. Then go.", ["Call `a. B` now. ", "Then go."]),
        ("Version 2.0.1 is out! v3 too.", ["Version 2.0.1 is out! ", "v3 too."]),
        ("今日は。元気ですか？はい。", ["今日は。", "元気ですか？", "はい。"]),
        ("A line\nthat goes on. Next.", ["A line\nthat goes on. ", "Next."]),
        ("A paragraph\n\nAnother", ["A paragraph\n\n", "Another"]),
        ("# Title\nText", ["# Title\n", "Text"]),
        ("Things:\n- one. Two\n- three\n", ["Things:\n", "- one. ", "Two\n", "- three\n"]),
        ("Steps:\n1. First.\n2. Second.", ["Steps:\n", "1. First.\n", "2. Second."]),
        ("> Quote. More.\n\nText", ["> Quote. ", "More.\n\n", "Text"]),
    ],
)
def test_sentences(text: str, pieces: list[str]) -> None:
    assert rest(text) == pieces


@pytest.mark.parametrize(
    "block",
    [
        "```python\nx = 1. # Two. Three\n\nprint(x)\n```\n",
        "~~~\na. B\n```\nC. D\n~~~\n\n",
        "````\n```\nA. B\n```\n````\n",
        "| A. B | C |\n|---|---|\n| 1. 2 | 3 |\n\n",
        "$$\na. B\n$$\n",
        "\\[ x. Y \\]\n",
    ],
)
def test_blocks_are_whole(block: str) -> None:
    assert split_sentences(f"Look here:\n{block}And so on. End.") == ["Look here:\n", block, "And so on. ", "End."]
    unfinished = block.rstrip()[:-1]
    assert split_sentences(f"Look here:\n{unfinished}") == ["Look here:\n", unfinished]


def test_the_first_piece_is_a_clause() -> None:
    text = "When you open the door, look to the left. Then, if you can, go on."
    assert split_sentences(text) == ["When you open the door, ", "look to the left. ", "Then, if you can, go on."]
    assert split_sentences("Yes, of course. Good.") == ["Yes, of course. ", "Good."], "one word is no clause"
    assert split_sentences("It was on May 5, 2024, in Rome.")[0] == "It was on May 5, 2024, "


@pytest.mark.parametrize(
    ("text", "first"),
    [
        (
            "The sky looks blue because sunlight scatters off the many small molecules of the air.",
            "The sky looks blue because sunlight scatters ",
        ),
        (
            "The largest planet of our solar system is by far the one called Jupiter.",
            "The largest planet of our solar system is ",
        ),
        ("The largest planet we know about is certainly the one called Jupiter.", None),
        ("Nobody who has seen the film by the young director has forgotten it since.", "Nobody who has seen the film "),
        ("You can call `the function` with a few words or with many other words too.", None),
        ("Read [the docs of the project](https://a.b) for all that you may want to know.", None),
        ("There are about 3 or 4 or 5 or 6 or 7 or 8 of them here.", None),
    ],
)
def test_a_first_sentence_without_a_clause_is_split_between_words(text: str, first: str | None) -> None:
    assert split_sentences(text)[0] == (first or text)
    assert split_sentences("Well. " + text)[1] == text, "only the first piece"
    splitter = Sentences()
    early = [piece for letter in " ".join(text.split()[:13]) for piece in splitter.add(letter)]
    assert early == ([first] if first else []), "it does not wait for the end of the sentence"


def test_it_comes_as_soon_as_it_is_certain() -> None:
    splitter = Sentences()
    assert splitter.add("The sky is blue, ") == []
    assert splitter.add("a") == ["The sky is blue, "]
    assert splitter.add("nd the sea.") == [], "a number could go on, or an address"
    assert splitter.add(" ") == [], "a small letter could follow"
    assert splitter.add("W") == ["and the sea. "]
    assert splitter.end() == ["W"]
    assert splitter.add("A second reply, ") == [] and splitter.add("x") == ["A second reply, "]


WORDS = """Hello . ! … 3.14 1,000 10:30 e.g. Dr. A. ` $$ $5 https://a.b/c?d=e.f * ** _ " ” ) x 。 \\[ \\] é 🙂 ~~~"""
SPACED = [
    " ",
    "\n",
    "\n\n",
    ". ",
    "? ",
    ", ",
    "; ",
    ": ",
    "`a. B`",
    "```\n",
    "| a | b |\n",
    "|---|---|\n",
    "# ",
    "- ",
    "1. ",
    "> ",
    "\t",
]
PARTS = st.sampled_from([*WORDS.split(), "the end of the line ", "so we go on and on, ", *SPACED, " ", " ", "word " * 30])
TEXTS = st.lists(PARTS, max_size=40).map("".join)


@given(TEXTS, st.data())
@example("a`b. C`d. E", None)
def test_the_pieces_are_the_reply_however_it_arrives(text: str, data: st.DataObject | None) -> None:
    whole = split_sentences(text)
    assert "".join(whole) == text
    splitter, pieces, place = Sentences(), list[str](), 0
    while place < len(text):
        step = data.draw(st.integers(1, 7)) if data else 1
        pieces += splitter.add(text[place : place + step])
        place += step
    pieces += splitter.end()
    assert pieces == whole


@given(TEXTS)
def test_no_piece_ends_inside_a_number_an_abbreviation_or_an_address(text: str) -> None:
    before = ""
    for piece in split_sentences(text)[:-1]:
        before += piece
        after = text[len(before) :]
        is_between = piece[-1].isspace() or re.search(r"(?:[。！？]\W*|\$\$|\\\])$", piece) or after[0].isspace()
        assert is_between, (piece, after)
        assert not re.search(r"(?:\be\.g\.|\bDr\.) +$", piece) or len(piece) >= LONGEST - 10 or "\n" in piece, piece


def test_long_sentences_are_split_between_words() -> None:
    pieces = split_sentences("word " * 500)
    assert all(len(piece) <= LONGEST for piece in pieces) and all(piece.endswith("word ") for piece in pieces)
    address = "https://example.com/" + "a" * 1000
    assert split_sentences(f"See {address} now. Yes.") == ["See ", f"{address} ", "now. ", "Yes."]
