"""FunctionGemma: `<start_function_call>call:f{k:<escape>text<escape>,n:3}<end_function_call>`; Gemma 4 the same with
`<|tool_call>`, `<|"|>` and `<tool_call|>`. Keys have no quotes, texts have those words as quotes, braces nest."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from edge.errors import UsageError
from edge.messages import Tool, ToolCall
from edge.prompt.tools.base import Format, Known, Part
from edge.prompt.tools.grammar import Held, Rules, one_of, word
from edge.prompt.tools.notation import Keys, Notation, Values

__all__ = ["FUNCTION_GEMMA", "GEMMA4"]

_HEAD = re.compile(r"\s*call:\s*([A-Za-z0-9_.:-]+?)\s*(?=\{)")
_PLAIN = re.compile(r"[^,{}\[\]:]*")
_JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SPACE = re.compile(r"\s*")
_MAX_DEPTH = 50


class _Reader:
    """Reads one value of the notation after another.

    Args:
        text: the arguments, from their brace on.
        quote: the word around texts.
    """

    def __init__(self, text: str, quote: str) -> None:
        self.text, self.quote, self.position = text, quote, 0

    def value(self, depth: int = 0) -> Any:
        """Read a value.

        Raises:
            IndexError: the text ends within it.
            ValueError: it is wrong.
        """
        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        if self.text.startswith(self.quote, self.position):
            return self._quoted()
        letter = self.text[self.position]
        if letter == "{":
            return self._object(depth)
        if letter == "[":
            return self._array(depth)
        return self._bare()

    def _quoted(self) -> str:
        start = self.position + len(self.quote)
        end = self.text.find(self.quote, start)
        if end < 0:
            raise IndexError
        self.position = end + len(self.quote)
        return self.text[start:end]

    def _bare(self) -> Any:
        if self.text[self.position] == '"':  # a model that has seen much JSON
            quoted = _JSON_TEXT.match(self.text, self.position)
            if quoted is None:
                raise IndexError
            self.position = quoted.end()
            return json.loads(quoted.group(), strict=False)
        match = _PLAIN.match(self.text, self.position)
        word = match.group() if match else ""
        if self.position + len(word) >= len(self.text):
            raise IndexError
        self.position += len(word)
        try:
            return json.loads(word)
        except ValueError:
            return word.strip()

    def _object(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        self.position += 1
        while self._next() != "}":
            key = self._quoted() if self.text.startswith(self.quote, self.position) else self._key()
            if self._next() != ":":
                raise ValueError(f"a colon is missing after {key[:40]!r}")
            self.position += 1
            self._next()
            values[key] = self.value(depth + 1)
            if self._next() == ",":
                self.position += 1
            elif self._next() != "}":
                raise ValueError(f"a comma is missing after {key[:40]!r}")
        self.position += 1
        return values

    def _array(self, depth: int) -> list[Any]:
        values: list[Any] = []
        self.position += 1
        while self._next() != "]":
            values.append(self.value(depth + 1))
            if self._next() == ",":
                self.position += 1
            elif self._next() != "]":
                raise ValueError("a comma is missing in a list")
        self.position += 1
        return values

    def _key(self) -> str:
        match = _PLAIN.match(self.text, self.position)
        key = match.group() if match else ""
        if self.position + len(key) >= len(self.text):
            raise IndexError
        if not key.strip():
            raise ValueError("a name is missing")
        self.position += len(key)
        return key.strip().strip('"')

    def _next(self) -> str:
        """Skip white space, and return the next letter."""
        match = _SPACE.match(self.text, self.position)
        self.position = match.end() if match else self.position
        return self.text[self.position]


def _make(name: str, opening: str, quote: str, closing: str) -> Format:
    def read(text: str, known: Known, is_over: bool) -> tuple[int, Sequence[Part]] | None:
        head = _HEAD.match(text)
        if head is None:
            if is_over or closing in text:
                raise ValueError("it does not name a function")
            return None
        reader = _Reader(text[head.end() :], quote)
        try:
            arguments = reader.value()
        except IndexError:
            return None
        end = head.end() + reader.position
        rest = text[end:].lstrip()
        if not rest.startswith(closing):
            if not is_over and closing.startswith(rest):
                return None
        else:
            end = len(text) - len(rest) + len(closing)
        try:
            return end, [ToolCall(head[1], arguments)]
        except UsageError as error:
            raise ValueError(error.message) from None

    def put(value: Any) -> str:
        if isinstance(value, str):
            return f"{quote}{value}{quote}"
        if isinstance(value, dict):
            return "{" + ",".join(f"{key}:{put(below)}" for key, below in value.items()) + "}"
        return "[" + ",".join(map(put, value)) + "]" if isinstance(value, list) else json.dumps(value)

    def write(calls: Sequence[ToolCall]) -> str:
        return "".join(f"{opening}call:{call.name}{put(call.arguments)}{closing}" for call in calls)

    def hold(rules: Rules, tools: Sequence[Tool]) -> Held:
        values = Values(rules, _notation(rules, quote), len(tools))
        call = one_of(f'"call:{tool.name}{{" {values.arguments(tool)} "}}"' for tool in tools)
        return Held(*word(opening), rules.source(f"{call} {rules.text(closing)}"))

    return Format(name, (opening,), read, ">}", write, closes=(closing, quote), hold=hold)


def _notation(rules: Rules, quote: str) -> Notation:
    """Return how values are written. Braces and commas in a text mean nothing: only its quote ends it."""
    mark = rules.text(quote)
    if rules.is_special(quote):
        string = f"{mark} /(?s:.*)/ {mark}"
    else:
        within = rules.terminal(f"/(?s:.*)/ & ~/(?s:.*{re.escape(quote)}.*)/")
        string = f"{mark} {rules.terminal(f'{within} {mark}')}"

    def literals(text: str) -> Sequence[str]:
        return [] if quote in text else [f"{mark} {json.dumps(text, ensure_ascii=False)} {mark}"]

    def other(known: Collection[str]) -> str:
        but = f" & ~{one_of(map(json.dumps, known))}" if known else ""
        return f'{rules.terminal(f"/[A-Za-z_][A-Za-z0-9_.-]*/{but}")} ":"'

    keys = Keys(lambda name: json.dumps(f"{name}:", ensure_ascii=False), other)
    return Notation(string, literals, ("true",), ("false",), ("null",), keys, keys, is_sorted=True)


FUNCTION_GEMMA = _make("functiongemma", "<start_function_call>", "<escape>", "<end_function_call>")
GEMMA4 = _make("gemma4", "<|tool_call>", '<|"|>', "<tool_call|>")
