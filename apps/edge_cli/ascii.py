"""ASCII for what a stream cannot encode: lines and frames stay lines and frames, and columns stay where they are."""

from __future__ import annotations

import codecs

__all__ = ["ERRORS", "to_ascii"]

ERRORS = "edge.ascii"
"""Name of the error handler for `encode` and `TextIOWrapper.reconfigure`."""

_SIMILAR = {
    "–—‒―−▔▀⎯": "-",
    "▁▂▃▄⎽": "_",
    "▌▐▎▍▏▕▊▉▋▖▗▘▝": "|",
    "█▆▇▅■▪▙▛▜▟░▒▓▚▞": "#",
    "•◦●○·∙◆◇◉∗×✕✗✘☒": "*",
    "…‥": ".",
    "‘’‚′": "'",
    "“”„″": '"',
    "→▶▸►‣❯›⟩»": ">",
    "←◀◂◄❮‹⟨«": "<",
    "↑▲▴": "^",
    "↓▼▾": "v",
    "↳↪⏎╰└": "+",
    "✓✔☑": "v",
    "╱⁄∕": "/",
    "╲∖": "\\",
    "╳": "x",
}
_TABLE = {character: like for characters, like in _SIMILAR.items() for character in characters}
_ACROSS = "─━┄┅┈┉╌╍═╴╶╸╺╼╾"
_DOWN = "│┃┆┇┊┋╎╏║╵╷╹╻╽╿"


def to_ascii(character: str) -> str:
    """Return ASCII for one character, as wide on a terminal as that: a similar character, else "?"."""
    import unicodedata

    if character in _TABLE:
        return _TABLE[character]
    if "\u2500" <= character <= "\u257f":
        return "-" if character in _ACROSS else "|" if character in _DOWN else "+"
    if "\u2800" <= character <= "\u28ff":  # braille, of which spinners are made
        return "."
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return ""
    letters = [part for part in unicodedata.normalize("NFKD", character) if unicodedata.category(part) != "Mn"]
    is_wide = unicodedata.east_asian_width(character) in "WF"
    if not is_wide and len(letters) == 1 and letters[0].isascii():
        return letters[0]
    return "??" if is_wide else "?"


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(to_ascii, error.object[error.start : error.end])), error.end


codecs.register_error(ERRORS, _replace)
