"""Markdown in words: what is read aloud, what is left out, and that nothing unspeakable is left."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_voice import number_words as words
from edge_voice.sentences import split_sentences
from edge_voice.spoken import spoken


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("**Hello** *there*, ~~old~~ __new__ friend!", "Hello there, old new friend!"),
        ("Call `foo_bar()` or `readFile`.", "Call foo bar or read File."),
        ("# Title\nText", "Title. Text"),
        ("- one\n- [x] two\n* three", "one. two. three"),
        ("1. First\n2. Second", "one, First. two, Second"),
        ("> Quoted\n> twice", "Quoted. twice"),
        ("Before\n\n---\n\nafter", "Before. after"),
        ("```python\nx = 1\n```", "Code on the screen."),
        ("```python\nx = 1", "Code on the screen."),
        ("~~~\n**x**\n~~~\nThen.", "Code on the screen. Then."),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n", "A table on the screen."),
        ("$$\n\\frac{a}{b}\n$$", "A formula on the screen."),
        ("so $x = 2$, and \\(\\frac{a}{b}\\).", "so x equals two, and a formula on the screen."),
        ("See [the docs](https://a.b/c_(d)) and ![a cat](cat.png).", "See the docs and a cat."),
        ("Go to https://www.example.com/x?y=1. Now.", "Go to a link to example dot com. Now."),
        ("Mail <ann.lee@example.org>.", "Mail ann dot lee at example dot org."),
        ("Great! 🎉👍🏽 Done ✅ 👨‍👩‍👧", "Great! Done"),
        ("Tom &amp; <b>Jerry</b> &lt;3", "Tom and Jerry is less than three"),
        ("A claim.[^1]", "A claim."),
        ("snake_case and 2 * 3 = 6", "snake case and two times three equals six"),
        ("", ""),
        ("🙂", ""),
        ("***", ""),
        ("\n\n", ""),
    ],
)
def test_markup(text: str, said: str) -> None:
    assert spoken(text) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "3.14 and 1,234,567",
            "three point one four and one million two hundred thirty-four thousand five hundred sixty-seven",
        ),
        ("-5 to 10, 5-10 and 5–10", "minus five to ten, five to ten and five to ten"),
        ("in 1984, 2005, 2024 and 1900", "in nineteen eighty-four, two thousand five, twenty twenty-four and nineteen hundred"),
        ("the 1990s", "the nineteen nineties"),
        ("the 1st, 2nd, 3rd, 12th and 21st", "the first, second, third, twelfth and twenty-first"),
        ("1/2, 3/4 and 24/7", "one half, three quarters and twenty-four over seven"),
        ("9:30 AM, 14:05, 10:00 and 0:15", "nine thirty A M, fourteen oh five, ten o'clock and zero fifteen"),
        ("at 5 p.m. sharp, or 7pm.", "at five P M sharp, or seven P M"),
        ("2024-05-01", "May first, twenty twenty-four"),
        ("on March 3, 2021", "on March third, twenty twenty-one"),
        (
            "$5.20, $1, €1,299.99",
            "five dollars and twenty cents, one dollar, one thousand two hundred ninety-nine euros and ninety-nine cents",
        ),
        ("$3 million or 20 €, £0.01", "three million dollars or twenty euros, one penny"),
        ("20°C, 5 km at 60 km/h", "twenty degrees Celsius, five kilometres at sixty kilometres per hour"),
        ("16 GB, 100ms, 1 s, 2.4 GHz", "sixteen gigabytes, one hundred milliseconds, one second, two point four gigahertz"),
        ("50% of #7", "fifty percent of number seven"),
        (
            "v2.3.1 at 127.0.0.1",
            "version two point three point one at one hundred twenty-seven point zero point zero point one",
        ),
        ("Dr. Smith, e.g. at No. 5", "Doctor Smith, for example at Number five"),
        ("cats, dogs, etc. are here", "cats, dogs, et cetera are here"),
        ("007 and 555-123-4567", "zero zero seven and five five five one two three four five six seven"),
        ("x ≤ 5 → y", "x is at most five to y"),
        ("½ cup", "one half cup"),
        ("GPT4", "GPT four"),
    ],
)
def test_numbers_and_signs(text: str, said: str) -> None:
    assert spoken(text) == said


def test_other_languages_keep_their_numbers() -> None:
    assert spoken("Das kostet **5,20 €** 🎉.", "de") == "Das kostet 5,20 €."
    assert spoken("```\nx\n```", "de-AT") == "Code auf dem Bildschirm."
    assert spoken("https://www.exemple.fr/a", "fr") == "un lien vers exemple point fr"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "zero"), (7, "seven"), (13, "thirteen"), (20, "twenty"), (42, "forty-two"), (100, "one hundred"),
        (115, "one hundred fifteen"), (1000, "one thousand"), (1_000_001, "one million one"), (-3, "minus three"),
        (10**15 - 1, "nine hundred ninety-nine trillion nine hundred ninety-nine billion nine hundred ninety-nine million "
         "nine hundred ninety-nine thousand nine hundred ninety-nine"),
        (10**15, "one " + " ".join(["zero"] * 15)),
    ],
)  # fmt: skip
def test_cardinals(number: int, said: str) -> None:
    assert words.cardinal(number) == said


_ONES = {name: number for number, name in enumerate(words._SMALL)} | {name: 10 * n for n, name in enumerate(words._TENS, 2)}


def number_of(said: str) -> int:
    """Read a cardinal back: an obvious way, the other way round."""
    total = group = 0
    for word in said.replace("-", " ").split():
        if word == "hundred":
            group *= 100
        elif word in ("thousand", "million", "billion", "trillion"):
            total += group * 1000 ** (["thousand", "million", "billion", "trillion"].index(word) + 1)
            group = 0
        else:
            group += _ONES[word]
    return total + group


@given(st.integers(0, 10**15 - 1))
def test_a_cardinal_says_its_number(number: int) -> None:
    assert number_of(words.cardinal(number)) == number


@given(st.integers(1000, 9999))
def test_a_year_has_both_its_halves(number: int) -> None:
    said = words.year(number)
    if "thousand" in said or said.endswith("hundred"):
        assert number_of(said) == number
    else:
        first, second = number // 100, number % 100
        assert said == f"{words.cardinal(first)} {'oh ' if second < 10 else ''}{words.cardinal(second)}"


MARKUP = r"** * _ __ ` ``` ~~~ # - > | [ ]( ) ![ ]( $ $$ \( \) & < > </b> <b> &amp; \ / @ % ^ = + ~ { } \" ' “ ” 1. 1) . , ! ?"
NUMBERS = "3.14 1,000 10:30 9am $5.20 €7 -5 1/2 5-10 v1.2.3 2024-05-01 20°C 7km ½ ² ③ ٣ 007"
OTHERS = "Hello world https://a.b/c?d=1 me@x.org e.g. Dr. 🎉 👍🏽 é ß 中"
PIECES = st.sampled_from([*f"{MARKUP} {NUMBERS} {OTHERS}".split(), "\n", "\n\n"])
TEXTS = st.one_of(
    st.lists(PIECES, max_size=30).map(" ".join), st.lists(PIECES, max_size=30).map("".join), st.text(max_size=200)
)


@given(TEXTS)
def test_nothing_unspeakable_is_left(text: str) -> None:
    said = spoken(text)
    assert not re.search(r"[0-9*_`#|<>\[\]{}\\~$^@%&=+\n]|https?://", said), said
    assert not any(unicodedata.category(character) in ("So", "Cf", "Cc", "Cn") for character in said), said
    assert said == said.strip() and "  " not in said
    assert said == "" or any(character.isalnum() for character in said)


@given(TEXTS)
def test_every_piece_of_a_reply_can_be_said(text: str) -> None:
    for piece in split_sentences(text):
        assert not re.search(r"[0-9*`#|\n]", spoken(piece))


@given(st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran"]), min_size=1, max_size=12))
def test_plain_words_stay_as_they_are(text: list[str]) -> None:
    assert spoken(" ".join(text) + ".") == " ".join(text) + "."


@pytest.mark.parametrize(
    "unit", ["*", "`", "[", "](", "$", "_ ", "**a", "<", "1,", "| ", "&", "~", "\\", "- ", "1/", "9:", "a.b@", "> ", "\n"]
)
def test_hostile_text_takes_no_long_time(unit: str) -> None:
    spoken(unit * (8000 // len(unit)))  # a quadratic pattern would take minutes for the longest of these
