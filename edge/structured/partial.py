"""The value of JSON that is still being written: what is certain of it so far."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge.reply import Reply

__all__ = ["PartialJSON", "Partials"]

_SPACE = " \t\r\n"
_CLOSING = {"{": "}", "[": "]"}


class PartialJSON:
    """Takes JSON in pieces.

    A text grows as its letters come; a number, true, false and null are there once they are complete, a property with the
    beginning of its value, and lists and objects as soon as they open. Text that is not JSON has no value.
    """

    def __init__(self) -> None:
        self._text = ""
        self._n_read = 0
        self._stack: list[str] = []  # open brackets
        self._is_key = False  # the next or open string is a key
        self._opened = -1  # where the open string begins; -1 outside of one
        self._escape = 0  # letters of an escape that are still to come; the letter after "\" counts as one
        self._half = -1  # where the first escape of a pair begins, whose second one is still to come; -1 outside of one
        self._end = 0  # the text up to here, with the brackets of _closing, is JSON
        self._closing = ""

    def feed(self, text: str) -> None:
        """Take the next piece."""
        self._text += text
        while self._n_read < len(self._text):
            self._take(self._text[self._n_read])
            self._n_read += 1

    def value(self) -> Any:
        """Return what is certain so far; None before anything is.

        The end of the text ends a number, too, for who knows that it is the end: `json.loads`.
        """
        end, closing = self._end, self._closing
        if self._opened >= 0 and not self._is_key:
            end, closing = len(self._text), '"' + self._brackets()
            if self._escape:
                end = self._text.rindex("\\")
            if self._half >= 0:
                end = self._half
        if not end:
            return None
        try:
            return json.loads(self._text[:end] + closing)
        except ValueError:
            return None

    def _take(self, letter: str) -> None:
        if self._opened >= 0:
            self._take_in_string(letter)
        elif letter == '"':
            self._opened = self._n_read
        elif letter in "{[":
            self._stack.append(letter)
            self._is_key = letter == "{"
            self._mark(self._n_read + 1)
        elif letter in "}]":
            self._mark_word()
            if self._stack:
                self._stack.pop()
            self._mark(self._n_read + 1)
        elif letter == ",":
            self._mark_word()
            self._is_key = bool(self._stack) and self._stack[-1] == "{"
        elif letter == ":":
            self._is_key = False
        elif letter in _SPACE:
            self._mark_word()

    def _take_in_string(self, letter: str) -> None:
        if self._escape:
            # "\u" is followed by four more; the letter after "\" is the first of one.
            is_short = self._escape == 5 and letter != "u"
            self._escape = 0 if is_short else self._escape - 1
            if not self._escape:
                code = "" if is_short else self._text[self._n_read - 3 : self._n_read + 1].lower()
                self._half = self._n_read - 5 if "d800" <= code < "dc00" else -1
        elif letter == "\\":
            self._escape = 5
        else:
            self._half = -1
            if letter == '"':
                self._opened = -1
                if not self._is_key:
                    self._mark(self._n_read + 1)

    def _mark_word(self) -> None:
        """Note that a number or word ends here, if one does."""
        last = self._text[self._n_read - 1 : self._n_read]
        if last.isalnum() or last == ".":
            self._mark(self._n_read)

    def _mark(self, end: int) -> None:
        self._end, self._closing = end, self._brackets()

    def _brackets(self) -> str:
        return "".join(_CLOSING[bracket] for bracket in reversed(self._stack))


class Partials:
    """The values of a reply while it is generated, for `for` and `async for`; see `Reply.partials`."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def __iter__(self) -> Iterator[Any]:
        changes = _Changes()
        for text in self._reply:
            if changes.feed(text):
                yield changes.value

    def __aiter__(self) -> AsyncIterator[Any]:
        return _AsyncPartials(self._reply.__aiter__())


class _AsyncPartials:
    """No generator: the event loop would keep that one alive for a while after `break`."""

    def __init__(self, texts: AsyncIterator[str]) -> None:
        self._texts, self._changes = texts, _Changes()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while not self._changes.feed(await self._texts.__anext__()):
            pass
        return self._changes.value


class _Changes:
    """The value so far, and whether a text changes it."""

    def __init__(self) -> None:
        self._parser = PartialJSON()
        self.value: Any = None

    def feed(self, text: str) -> bool:
        self._parser.feed(text)
        before, self.value = self.value, self._parser.value()
        return bool(self.value != before)
