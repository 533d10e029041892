"""Where a text that is being written may be complete."""

from __future__ import annotations

__all__ = ["ends_sentence"]

_ENDS = (".", "?", "!", "\u2026", "\u3002", "\uff1f", "\uff01", "\u061f", "\u0964")  # also of Chinese, Arabic and Hindi


def ends_sentence(text: str) -> bool:
    """Return whether a text ends with a sentence, so that a message may be sent as it is."""
    return text.endswith(_ENDS)
