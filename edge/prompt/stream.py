"""From the bytes of tokens to text that can be shown: whole characters, and nothing of a stop text.

Tokens cut text anywhere: in the middle of a character and in the middle of a stop text. Both classes here hold back the
least that is needed and give the same result however the input was cut. Neither is thread-safe; one reply owns one of each.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from edge.errors import UsageError

__all__ = ["StopMatcher", "TextStream"]


class TextStream:
    """Turns a stream of UTF-8 bytes into text without ever giving half a character.

    Bytes that cannot be UTF-8 become U+FFFD as soon as that is certain, so a broken byte never holds up what follows.
    The unit is the code point: an emoji of several code points may arrive in several pieces.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        """Take more bytes; returns the text that is complete now (often "")."""
        return self._decoder.decode(data)

    def final(self) -> str:
        """End the stream: the bytes still held back are broken and come as U+FFFD. A new stream may start afterwards."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class StopMatcher:
    """Ends a text at the first stop text in it, and keeps that stop text from being shown.

    The match that is complete first wins; of several that end at the same character, the one that starts first. So the
    result is the same however the text was cut into pieces, and generation stops as soon as it can.

    Args:
        stops: texts that end the reply; none of them empty. No stops at all is fine: everything passes at once.

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
        """End the text: what was held back became no stop text after all and is given out."""
        text, self._held = self._held, ""
        return text

    def _first_possible_start(self, text: str) -> int:
        """Where the longest tail of `text` begins that a stop text begins with; the end of `text` if there is none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._first_chars:
                tail = text[start:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return start
        return len(text)
