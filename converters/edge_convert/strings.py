"""Varied test strings, reproducible by seed, that two tokenizers must agree on."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Sequence

__all__ = ["varied_strings"]

_TEXT = """
the of and a to in is you that it he was for on are as with his they I at be this have from or one had by word but not what all
were we when your can said there use an each which she do how their if will up other about out many then them these so some
Paris London isn't we're I'll they've don't HTTPServer snake_case camelCase naïve façade Zürich İstanbul größer Straße
"""
_WORDS = tuple(_TEXT.split())
_PIECES = (
    "def f(x):\n    return x**2\n", "{'a': [1, 2.5e-3], \"b\": null}", '<p class="x">&nbsp;</p>', "https://example.org/?q=1&r=%20",
    "\\frac{1}{2}", "x != y && z <= 3;", "### Title\n\n- item\n- item\n", "2026-11-23T18:27:25Z", "+41 44 123", "C:\\temp",
    "日本語のテキスト", "中文字符,標點。", "русский текст", "العربية نص", "한국어 텍스트", "हिन्दी पाठ", "ไทย",
    "Ελληνικά", "עברית", "🚀🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "e\u0301", "ﬁ", "½", "Ⅷ", "x²", "\u200b",
    "\u00a0", "…", "—", "„“", "´`'’",
)  # fmt: skip
_SPACES = (" ", " ", " ", " ", "", "  ", "   ", "\n", "\n\n", "\t", " \n", "\r\n", "        ", "\n\n\n", " \t ")
_RANGES = ((0x20, 0x7F), (0x20, 0x7F), (0xA0, 0x250), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE80), (0x1E00, 0x2100))
_FAR_RANGES = ((0x2190, 0x2C00), (0x3040, 0x3400), (0x4E00, 0x9FFF), (0xAC00, 0xD7A0), (0x1F300, 0x1FA00))


def varied_strings(
    count: int,
    seed: int,
    *,
    specials: Sequence[str] = (),
    is_normalised: bool = False,
    has_ascii_spaces: bool = False,
    has_marks: bool = True,
) -> list[str]:
    """Make strings of words, code, numbers, spaces, many scripts and special tokens.

    Args:
        count: how many.
        seed: the same seed gives the same strings.
        specials: texts of special tokens, put in now and then.
        is_normalised: give them in Unicode's composed form (NFC), for tokenizers that normalise what llama.cpp does not.
        has_ascii_spaces: leave out other spaces, for tokenizers whose special tokens swallow what llama.cpp does not.
        has_marks: put in combining marks too; without, for tokenizers that count them as letters where llama.cpp does not.

    Returns:
        `count` strings of 1 to about 200 characters.
    """
    draw = random.Random(seed)  # noqa: S311 (repeatable on purpose; nothing secret)
    made: list[str] = []
    while len(made) < count:
        text = "".join(_part(draw, specials) for _ in range(draw.randint(1, 12)))
        if is_normalised:
            text = unicodedata.normalize("NFC", text)
        if has_ascii_spaces:
            text = "".join(char for char in text if char.isascii() or not char.isspace())
        if not has_marks:
            text = "".join(char for char in text if not unicodedata.category(char).startswith("M"))
        if text:
            made.append(text)
    return made


def _part(draw: random.Random, specials: Sequence[str]) -> str:
    kind = draw.random()
    if kind < 0.45:
        text = draw.choice(_WORDS)
        text = draw.choice((text, text, text.capitalize(), text.upper()))
    elif kind < 0.62:
        text = draw.choice(_PIECES)
    elif kind < 0.74:
        text = str(draw.randint(0, 10 ** draw.randint(1, 12)))
    elif kind < 0.86:
        text = _letters(draw)
    elif kind < 0.94:
        text = draw.choice("!?.,;:-_#*/=+<>()[]{}'\"~|@$%^&\\") * draw.randint(1, 5)
    else:
        text = draw.choice(specials) if specials else ""
    return text + draw.choice(_SPACES)


def _letters(draw: random.Random) -> str:
    """Return a few assigned characters of one Unicode block."""
    first, last = draw.choice(_RANGES + _FAR_RANGES)
    drawn = (chr(draw.randrange(first, last)) for _ in range(draw.randint(1, 6)))
    return "".join(char for char in drawn if unicodedata.category(char) not in ("Cn", "Co", "Cs", "Cc"))
