"""From the bytes of tokens to text that can be shown: whole characters, and no part of a stop text.

Tokens split text anywhere, in the middle of a character and of a stop text. Both classes withhold as little as possible and
give the same result however the input was split. Neither is thread-safe; one reply owns one of each.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from edge.errors import UsageError

__all__ = ["StopMatcher", "TextStream"]


class TextStream:
    """Decodes a stream of UTF-8 bytes, never half a character.

    Bytes that cannot be UTF-8 become U+FFFD as soon as that is certain, so a broken byte never delays what follows.
    The unit is the code point: an emoji of several code points may arrive in several pieces.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """Take more bytes, and return the text that is complete now (often "")."""
        return self._decoder.decode(data)

    def final(self) -> str:
        """End the stream, and return U+FFFD for an incomplete character. A new stream may start afterwards."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class StopMatcher:
    """Ends a text before the first stop text in it.

    The match that is complete first wins; of several that end at the same character, the one that starts first. So the
    result is the same however the text was split, and generation stops as soon as it can.

    Args:
        stops: texts that end the reply, none of them empty. Without any, everything passes at once.

    Attributes:
        matched: the stop text that was found, or None.

    Raises:
        UsageError: a stop text is empty.
    """

    def __init__(self, stops: Iterable[str] = ()) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        if "" in self._stops:
            raise UsageError("A stop text is empty, so every reply would end at once.", "Leave it out.")
        self._longest = max(map(len, self._stops), default=0)
        self._first_chars = frozenset(stop[0] for stop in self._stops)
        self._held = ""
        self.matched: str | None = None

    def feed(self, text: str) -> tuple[str, bool]:
        """Take more text.

        Args:
            text: the next piece of the reply.

        Returns:
            (text that can be shown now, whether a stop text was found). After a stop nothing more is shown.
        """
        if self.matched is not None:
            return "", True
        text = self._held + text
        found = min(((start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0), default=None)
        if found is not None:
            _, start, self.matched = found
            self._held = ""
            return text[:start], True
        cut = self._first_possible_start(text)
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """End the text, and return what was withheld in case a stop text followed."""
        text, self._held = self._held, ""
        return text

    def _first_possible_start(self, text: str) -> int:
        """Return where the longest suffix of `text` begins that is a prefix of a stop text; its length if there is none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_chars:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return start
        return len(text)
