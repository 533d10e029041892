"""Words that nobody said: recognisers were trained on speech, and find some in everything."""

from __future__ import annotations

import zlib

__all__ = ["is_invented"]

_LOOP = 2.4  # a text that zlib makes smaller by more than this repeats itself
_LEAST_BYTES = 20


def is_invented(text: str, *, is_cut: bool = False) -> bool:
    """Return whether a transcript cannot be what somebody said.

    Args:
        text: of the recogniser.
        is_cut: it went on to the most tokens that are allowed, which speech does not do.
    """
    if not any(character.isalnum() for character in text):
        return True  # notes, dots
    data = text.encode()
    return len(data) >= _LEAST_BYTES and (is_cut or len(data) / len(zlib.compress(data)) > _LOOP)
