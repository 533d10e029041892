"""Says a piece of Markdown in words: no markup, code, addresses or emoji; in English also numbers and signs written out."""

from __future__ import annotations

import html
import re
import unicodedata
from urllib.parse import urlsplit

from edge_voice.plain_words import write_out

__all__ = ["spoken"]

_PHRASES = {
    "en": ("Code on the screen.", "A table on the screen.", "A formula on the screen.", "a link to", "a link", "dot", "at"),
    "de": (
        "Code auf dem Bildschirm.", "Eine Tabelle auf dem Bildschirm.", "Eine Formel auf dem Bildschirm.", "ein Link zu",
        "ein Link", "Punkt", "at",
    ),
    "fr": (
        "Du code à l'écran.", "Un tableau à l'écran.", "Une formule à l'écran.", "un lien vers", "un lien", "point", "arobase",
    ),
    "es": (
        "Código en la pantalla.", "Una tabla en la pantalla.", "Una fórmula en la pantalla.", "un enlace a", "un enlace",
        "punto", "arroba",
    ),
    "it": (
        "Codice sullo schermo.", "Una tabella sullo schermo.", "Una formula sullo schermo.", "un link a", "un link", "punto",
        "chiocciola",
    ),
}  # fmt: skip
"""Language -> words for code, a table, a formula, an address with and without its host, and "." and "@" in addresses."""

_CODE = re.compile(r"^[ \t]*(`{3,}|~{3,})[^\n]*(?:\n.*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)|\Z)", re.DOTALL | re.MULTILINE)
_TABLE = re.compile(r"(?:^[ \t]*\|[^\n]*(?:\n|\Z)){1,}", re.MULTILINE)
_FORMULA = re.compile(r"\$\$.*?(?:\$\$|\Z)|\\\[.*?(?:\\\]|\Z)", re.DOTALL)
_INLINE_FORMULA = re.compile(r"\\\((.*?)\\\)|\$(?!\d)([^\s$](?:[^$\n]*[^\s$])?)\$(?!\d)")
_INLINE_CODE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_IMAGE_OR_LINK = re.compile(r"!?\[([^\[\]]*)\](?:\([^()\s]*(?:\([^()]*\)[^()\s]*)*(?:\s+\"[^\"]*\")?\)|\[[^\[\]]*\])")
_NOTE = re.compile(r"\[\^[^\]\n]*\]:?")
_ADDRESS = re.compile(r"<?\b(?:https?://|ftp://|www\.)[^\s<>\"`]+>?", re.IGNORECASE)
_MAIL = re.compile(r"<?\b([\w.+-]+)@([\w-]+(?:\.[\w-]+)+)>?")
_TAG = re.compile(r"</?[A-Za-z][^<>\n]{0,200}>|<!--.*?(?:-->|\Z)", re.DOTALL)
_LINE_MARKS = re.compile(
    r"^[ \t]*(?:(?:[-*_][ \t]*){3,}$|#{1,6}[ \t]+|(?:>[ \t]?)+|[-*+•][ \t]+(?:\[[ xX]\][ \t]+)?|={2,}[ \t]*$)", re.MULTILINE
)
_STRONG = re.compile(r"(\*{1,3}|~~|_{1,3})(?=\S)(.+?)(?<=\S)\1(?!\w)", re.DOTALL)
_STRAY = re.compile(r"(?<!\w)[*_~]+(?=\S)|(?<=\S)[*_~]+(?!\w)|\*{2,}|~{2,}|_{2,}")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_HIDDEN = frozenset({"Cf", "Cc", "Co", "Cs", "Cn"})


def spoken(text: str, language: str = "en") -> str:
    """Return the words to speak, "" for nothing.

    Args:
        text: Markdown: a piece of `edge_voice.sentences`, or all of a reply.
        language: code of the language that it is in. In others than English, numbers stay as they are: the voice reads them.

    Returns:
        Plain text on one line.
    """
    code, table, formula, link_to, link, dot, at = _PHRASES.get(language.partition("-")[0].lower(), _PHRASES["en"])
    text = text.replace("\r\n", "\n")
    text = _CODE.sub(f"\n{code}\n", text)
    text = _TABLE.sub(f"\n{table}\n", text)
    text = _FORMULA.sub(f"\n{formula}\n", text)
    text = _IMAGE_OR_LINK.sub(lambda found: found[1], _NOTE.sub("", text))
    text = _ADDRESS.sub(lambda found: _say_address(found[0], link_to, link, dot), text)
    text = _MAIL.sub(lambda found: f"{found[1]}@{found[2]}".replace(".", f" {dot} ").replace("@", f" {at} "), text)
    text = _INLINE_CODE.sub(lambda found: _say_code(found[2]), text)
    text = _INLINE_FORMULA.sub(lambda found: _say_formula(found[1] or found[2] or "", formula), text)
    text = html.unescape(_TAG.sub(" ", text))
    text = _LINE_MARKS.sub("", text)
    text = re.sub(r"^([ \t]*\d{1,3})[.)][ \t]+", r"\1, ", text, flags=re.MULTILINE)
    for _ in range(3):  # one inside another
        text = _STRONG.sub(lambda found: found[2], text)
    text = re.sub(r"\\([\\`*_{}\[\]()#+.!~|<>$-])", r"\1", _STRAY.sub("", text))
    text = "".join(_say_character(character) for character in unicodedata.normalize("NFC", text))
    if language.partition("-")[0].lower() == "en":
        text = write_out(text)
    return _tidy(text)


def _say_address(address: str, link_to: str, link: str, dot: str) -> str:
    address = address.strip("<>")
    tail = address[len(address.rstrip(".,;:!?)'\"*_")) :]
    bare = address[: len(address) - len(tail)]
    try:
        host = urlsplit(bare if "://" in bare else f"https://{bare}").hostname or ""
    except ValueError:
        host = ""
    host = host.removeprefix("www.")
    said = f"{link_to} {host.replace('.', f' {dot} ')}" if re.search("[a-z]", host) else link
    return f"{said}{tail}"


def _say_code(code: str) -> str:
    """Return a short piece of code in words: names are split into their words, brackets at the end are left out."""
    said = re.sub(r"\(\)|[{}\[\]();\"'`]", " ", code)
    return re.sub(r"\s+", " ", _CAMEL.sub(" ", said.replace("_", " ")).replace(".", " dot ")).strip()


def _say_formula(formula: str, phrase: str) -> str:
    bare = formula.strip().replace("\\cdot", "×").replace("\\times", "×").replace("\\approx", "≈").replace("\\pi", "π")
    return bare if re.fullmatch(r"[\w\s+=<>×≈π.,/^-]{1,40}", bare) else phrase.rstrip(".").lower()


def _say_character(character: str) -> str:
    """Return a character, a plain one in its place, or "" for emoji, boxes and what cannot be seen."""
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    if character.isalnum() and unicodedata.category(character) != "No":
        return unicodedata.normalize("NFKC", character)
    if character in "\n\t ":
        return character
    category = unicodedata.category(character)
    if character in "‘’‚‛′":
        return "'"
    if category in _HIDDEN or (category == "So" and character not in "°©®™") or "\ufe00" <= character <= "\ufe0f":
        return ""
    if category == "Sk" and ord(character) > 0x1F000:
        return ""  # the colour of a hand
    if category == "Zs":
        return " "
    if category == "No" and character not in "½¼¾²³":
        return unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    return character


def _tidy(text: str) -> str:
    """Return text on one line, with marks where lines ended without one, and no mark twice."""
    lines = [line.strip() for line in text.split("\n")]
    ended = [line if line[-1] in ".!?:;,…—" or place == last else f"{line}." for place, last, line in _numbered(lines)]
    text = " ".join(ended)
    text = re.sub(r"\(\s*\)|\"\s*\"", " ", text)
    text = re.sub(r"\s+([.,;:!?…)])", r"\1", re.sub(r"\s+", " ", text))
    text = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", text)
    text = re.sub(r"[,;:]\s*([.!?…])", r"\1", re.sub(r"([.!?…])[.,;:]+", r"\1", text))
    text = text.lstrip(" .,;:!?…)").strip()
    return text if any(character.isalnum() for character in text) else ""


def _numbered(lines: list[str]) -> list[tuple[int, int, str]]:
    kept = [line for line in lines if line]
    return [(place, len(kept) - 1, line) for place, line in enumerate(kept)]
