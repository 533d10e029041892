"""Checks that code can decide: whether a reply keeps to what its prompt says about length, format, language, words and case.

Each check is a value that a line of instructions.jsonl holds, with its kind as "check". A reply is judged strictly, as it is:
"Here is the list:" before a list that is all that was asked for breaks the rule.

Source: IFEval's verifiable instructions (Zhou et al., 2023).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable

import msgspec

from edge_convert.evaluate.tasks.languages import language_of

__all__ = ["Check", "Code", "Count", "Ends", "Equals", "Holds", "Json", "Lacks", "Language", "Letters", "Lines", "Starts"]

_SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)[.!?…]+[\"'”’»)*_]*(?=\s+[^a-z\s]|\s*$)")
_ITEM = re.compile(r"^\s*(?:[-*+•]|(\d+)[.)])\s+\S")
_FENCE = re.compile(r"```[\w+-]*\n(.*?)```", re.DOTALL)
_JSON_KINDS: dict[str, type | tuple[type, ...]] = {
    "text": str,
    "number": (int, float),
    "list": list,
    "object": dict,
    "boolean": bool,
}


class _Check(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="check", tag=str.lower):
    def is_met(self, reply: str) -> bool:
        """Return whether a reply keeps to it."""
        raise NotImplementedError


class Count(_Check, frozen=True, tag="count"):
    """So many parts: `least` to `most` (both included) of "words", "sentences", "paragraphs" or "items" (of a list)."""

    of: str
    least: int = 0
    most: int = 1_000_000

    def is_met(self, reply: str) -> bool:
        return self.least <= len(_PARTS[self.of](reply)) <= self.most


class Lines(_Check, frozen=True, tag="lines"):
    """Every line that is not empty matches a pattern as a whole; `n` of them, if given."""

    pattern: str
    n: int = 0

    def is_met(self, reply: str) -> bool:
        lines = [line.strip() for line in reply.splitlines() if line.strip()]
        return bool(lines) and (not self.n or len(lines) == self.n) and all(re.fullmatch(self.pattern, line) for line in lines)


class Holds(_Check, frozen=True, tag="holds"):
    """Has each of these words or phrases, whatever their case, at least `times` times."""

    words: tuple[str, ...]
    times: int = 1

    def is_met(self, reply: str) -> bool:
        return all(_occurrences(word, reply) >= self.times for word in self.words)


class Lacks(_Check, frozen=True, tag="lacks"):
    """Has something to say, and none of these words or characters in it."""

    words: tuple[str, ...] = ()
    characters: str = ""

    def is_met(self, reply: str) -> bool:
        is_free = not any(_occurrences(word, reply) for word in self.words)
        return bool(_words(reply)) and is_free and not any(character in reply for character in self.characters)


class Starts(_Check, frozen=True, tag="starts"):
    """Begins with this text."""

    text: str

    def is_met(self, reply: str) -> bool:
        return reply.strip().startswith(self.text)


class Ends(_Check, frozen=True, tag="ends"):
    """Ends with this text."""

    text: str

    def is_met(self, reply: str) -> bool:
        return reply.strip().endswith(self.text)


class Equals(_Check, frozen=True, tag="equals"):
    """Is one of these texts and nothing else; a full stop behind it and case do not count."""

    texts: tuple[str, ...]

    def is_met(self, reply: str) -> bool:
        return reply.strip().rstrip(".").casefold() in {text.casefold() for text in self.texts}


class Letters(_Check, frozen=True, tag="letters"):
    """Has letters, all of them in this case: "upper" or "lower"."""

    case: str

    def is_met(self, reply: str) -> bool:
        return reply.isupper() if self.case == "upper" else reply.islower()


class Language(_Check, frozen=True, tag="language"):
    """Is written in this language, one of those of languages.py."""

    code: str

    def is_met(self, reply: str) -> bool:
        return language_of(reply) == self.code


class Json(_Check, frozen=True, tag="json"):
    """Is JSON and nothing else, in a code block or not: an object with just these keys, or a list of `n` items.

    Attributes:
        keys: name -> "text", "number", "list", "object" or "boolean".
        items: kind of each item of the list.
        n: of items.
    """

    keys: dict[str, str] = {}
    items: str = ""
    n: int = 0

    def is_met(self, reply: str) -> bool:
        text = reply.strip()
        fenced = _FENCE.fullmatch(text)
        try:
            value = json.loads(fenced[1] if fenced else text)
        except (ValueError, RecursionError):
            return False
        if self.items:
            return isinstance(value, list) and len(value) == self.n and all(_is_kind(item, self.items) for item in value)
        return (
            isinstance(value, dict)
            and value.keys() == self.keys.keys()
            and all(_is_kind(value[key], kind) for key, kind in self.keys.items())
        )


class Code(_Check, frozen=True, tag="code"):
    """Has a code block of valid Python that defines this function. It is parsed, never run."""

    function: str

    def is_met(self, reply: str) -> bool:
        for block in _FENCE.findall(reply):
            try:
                tree = ast.parse(block)
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                continue
            if any(isinstance(node, ast.FunctionDef) and node.name == self.function for node in ast.walk(tree)):
                return True
        return False


Check = Count | Lines | Holds | Lacks | Starts | Ends | Equals | Letters | Language | Json | Code


def _is_kind(value: object, kind: str) -> bool:
    return isinstance(value, _JSON_KINDS[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’-]\w+)*", text)


def _sentences(text: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(text) if _words(part)]


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]


def _items(text: str) -> list[str]:
    return [line for line in text.splitlines() if _ITEM.match(line)]


_PARTS: dict[str, Callable[[str], list[str]]] = {
    "words": _words,
    "sentences": _sentences,
    "paragraphs": _paragraphs,
    "items": _items,
}


def _occurrences(word: str, text: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE))
