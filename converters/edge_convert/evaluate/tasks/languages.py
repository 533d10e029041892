"""Which language a short text is in: by its commonest words, of languages that share few of those."""

from __future__ import annotations

import re

__all__ = ["COMMON", "language_of"]

COMMON = {
    "de": "der die das und ist nicht ein eine ich es den zu mit auf für im dem sie wir sind von auch wie wenn oder als",
    "en": "the and is not a an i it of to with on for in they we are from also how when or as that this you my",
    "es": "el la los las y es no un una yo de con en para por que se del al como pero su más está son muy mi",
    "fr": "le la les et est pas un une je de avec dans pour que se du au comme mais son plus des il elle nous vous sur ce",
    "it": "il lo la gli e è non un una io di con in per che si del al come ma suo più della sono nel mi anche",
    "nl": "de het en is niet een ik van met op voor dat zijn we zij ook als of maar bij uit naar te er je",
    "pt": "o a os as e é não um uma eu de com em para por que se do da no na como mas seu mais são muito",
}
"""Language -> its commonest words."""

_FEWEST = 0.15
"""Share of a text's words that are common ones in its language: in running text about 0.4."""


def language_of(text: str) -> str:
    """Return the code of the language of a text, one of COMMON; "" if it is too short to tell, or none of them."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    if not words:
        return ""
    shares = {code: sum(word in known for word in words) / len(words) for code, known in _SETS.items()}
    best, second, *_ = sorted(shares, key=lambda code: -shares[code])
    return best if shares[best] >= _FEWEST and shares[best] > shares[second] else ""


_SETS = {code: frozenset(words.split()) for code, words in COMMON.items()}
