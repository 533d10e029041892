"""Parts of a reply that may hold tool calls, and the parser that all families share.

A family is data: the words that open a call, and a function that reads what stands behind one. The function is pure and sees
all of it that has arrived, so that a reply gives the same parts however it was split.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from edge.errors import UsageError
from edge.messages import Tool, ToolCall
from edge.prompt.tools.grammar import Hold

__all__ = ["Broken", "CallParser", "Format", "Known", "Part", "Read", "calls_of", "new_call_id", "read_json"]

_ALWAYS_READ, _GROWTH = 2_000, 16  # characters, and a share
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Broken:
    """What looked like a call and cannot be read.

    Attributes:
        text: as the model wrote it.
        why: for the model and the user.
    """

    text: str
    why: str


Part: TypeAlias = str | ToolCall | Broken
"""A piece of text, a call, or what cannot be read as one."""

Known: TypeAlias = Mapping[str, Tool]
"""The tools that the model was told of, by name."""

Read: TypeAlias = Callable[[str, Known, bool], "tuple[int, Sequence[Part]] | None"]
"""Reads a call at the start of a text, behind the word that opened it: (text, tools, whether the reply is over) -> (characters
read, what they are); None where more of the text is needed. A ValueError says why it is no call."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a family of models writes tool calls.

    Attributes:
        name: of the family.
        opens: words that open a call.
        read: reads what follows one of them.
        ends: last letters of a complete call; `read` is asked when one arrives.
        write: calls as the model would write them, for templates that do not.
        only_first: a call is one only where nothing stands before it.
        closes: further words of the format that may be control tokens.
        around: what stands before and behind one call that is written as JSON, which `read` takes too; None where it does not.
        key: of the arguments in that JSON.
        keeps_open: `read` gets the opening word too, since that is part of the call.
        hold: says what a call is held to once its models have begun one; None where that is left to them.
    """

    name: str
    opens: tuple[str, ...]
    read: Read
    ends: str
    write: Callable[[Sequence[ToolCall]], str]
    only_first: bool = False
    closes: tuple[str, ...] = ()
    keeps_open: bool = False
    around: tuple[str, str] | None = None
    key: str = "arguments"
    hold: Hold | None = None

    @property
    def markers(self) -> tuple[str, ...]:
        """Words that may be control tokens, whose text a parser has to see."""
        return (*self.opens, *self.closes)


class CallParser:
    """Takes the text of a reply in pieces and gives its parts: `feed` each piece, then `end`.

    White space around calls belongs to the format, not to the text. Behind a call that cannot be read nothing is looked for. A
    long call is read again only when it has grown by a sixteenth, so that its whole takes linear time.

    Args:
        format: of the model.
        tools: that the model was told of.
    """

    def __init__(self, format: Format, tools: Sequence[Tool]) -> None:
        self._format = format
        self._known = {tool.name: tool for tool in tools}
        self._held = ""  # not yet given: it may be, or is, part of a call
        self._opened = -1  # where what follows the opening word starts in it; -1 outside of a call
        self._has_begun = False  # something was given before
        self._has_called = False
        self._is_due = False  # a call may be complete since it was last read
        self._next = 0  # length at which what is open is read again: reading begins at its start each time
        self._why = ""  # what is open cannot be read: the rest of the reply is given as it is

    def feed(self, text: str) -> list[Part]:
        """Take more text, and return the parts that are complete now."""
        self._held += text
        self._is_due = self._is_due or self._opened < 0 or any(letter in self._format.ends for letter in text)
        return self._read(is_over=False) if self._is_due and not self._why else []

    def end(self) -> list[Part]:
        """End the text, and return what was held."""
        parts = self._read(is_over=True)
        rest, self._held = self._held, ""
        if rest and not (self._has_called and rest.isspace()):
            parts.append(rest)
        return parts

    def _read(self, *, is_over: bool) -> list[Part]:
        parts: list[Part] = []
        while True:
            if self._opened < 0:
                self._pass_text(parts)
                if self._opened < 0:
                    return parts
            if not self._pass_call(parts, is_over=is_over):
                return parts

    def _pass_text(self, parts: list[Part]) -> None:
        """Give the text up to the next opening word, or up to where one may begin."""
        held, opens = self._held, self._format.opens
        found = [(place, -len(word)) for word in opens if (place := held.find(word)) >= 0 and self._may_open(held[:place])]
        place, length = min(found, default=(-1, 0))
        if place >= 0:
            before = held[:place].rstrip()
            self._held = held[place:]
            self._opened = 0 if self._format.keeps_open else -length
            self._give(parts, before)
            return
        cut = len(held)
        for word in opens:
            for size in range(min(len(word) - 1, len(held)), 0, -1):
                if held.endswith(word[:size]) and self._may_open(held[:-size]):
                    cut = min(cut, len(held) - size)
                    break
        cut = len(held[:cut].rstrip())
        self._give(parts, held[:cut])
        self._held = held[cut:]

    def _may_open(self, before: str) -> bool:
        return not self._format.only_first or not (before.strip() or self._has_begun)

    def _give(self, parts: list[Part], text: str) -> None:
        if text:
            parts.append(text)
            self._has_begun = True

    def _pass_call(self, parts: list[Part], *, is_over: bool) -> bool:
        """Give the call that is open; False while it is not complete."""
        found = None
        if not is_over and len(self._held) < self._next:
            return False
        self._is_due = False
        try:
            found = self._format.read(self._held[self._opened :], self._known, is_over) if not self._why else None
        except (ValueError, RecursionError) as error:
            self._why = str(error)
        if found is None:
            n = len(self._held)
            self._next = 0 if n < _ALWAYS_READ else n + n // _GROWTH
            if is_over:
                parts.append(Broken(self._held, self._why or "it is not complete"))
                self._held, self._opened = "", -1
            return False
        n_read, new = found
        self._next = 0
        self._held = self._held[self._opened + n_read :]
        self._opened = -1
        self._has_begun = True
        for part in new:
            if isinstance(part, ToolCall):
                self._has_called = True
                part = part if part.id else replace(part, id=new_call_id())
            parts.append(part)
        return True


def new_call_id() -> str:
    """Return an id for a call: nine letters and digits, as Mistral's templates want them."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(9))


def read_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is none; the message is for the model.
    """
    try:
        return json.loads(text, strict=False)
    except ValueError as error:
        raise ValueError(f"its JSON is wrong: {error}") from None


def calls_of(value: Any) -> list[ToolCall]:
    """Return the calls in a JSON value: an object with a name and arguments, or a list of them.

    Raises:
        ValueError: it is something else.
    """
    calls = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, dict) and isinstance(one.get("function"), dict):
            one = {"id": one.get("id"), **one["function"]}
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise ValueError("it does not name a tool")
        arguments: Any = next((one[key] for key in ("arguments", "parameters") if one.get(key) is not None), {})
        id = one.get("id")
        try:
            calls.append(ToolCall(one["name"], arguments, id if isinstance(id, str) else ""))
        except UsageError as error:
            raise ValueError(error.message) from None
    return calls
