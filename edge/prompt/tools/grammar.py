"""The grammar of a call behind the word that opens it, in llguidance's dialect of Lark.

A family's file says how its models write calls; here are the parts that several of them need.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from edge.messages import Tool

__all__ = ["Held", "Hold", "Rules", "json_arguments", "json_call", "json_calls", "json_schema", "one_of", "word"]

_LENIENT = {"whitespace_flexible": False, "lenient": True, "coerce_one_of": True}
_SPACED = {"item_separator": ", ", "key_separator": ": ", **_LENIENT}
_TIGHT = {"item_separator": ", ?", "key_separator": ": ?", **_LENIENT}
"""JSON as templates write it, or with or without blanks; any white space could go on for ever. What cannot be enforced of a
tool's schema is left to the tool, so that one keyword does not make all calls impossible."""


@dataclass(frozen=True, slots=True)
class Held:
    """What a call is held to from where it begins.

    Attributes:
        opening: regular expression of the text that opens a call; the grammar has what follows its match.
        longest: bytes that the match and what it looks ahead at may have.
        grammar: of what follows, in Lark.
        is_first: a call opens only where nothing but white space stands before it.
    """

    opening: str
    longest: int
    grammar: str
    is_first: bool = False


Hold: TypeAlias = "Callable[[Rules, Sequence[Tool]], Held]"
"""Says what calls of these tools are held to, in the format of a family."""


class Rules:
    """A grammar that grows rule by rule.

    Args:
        markers: words that may be special tokens.
        special_token: returns the id of a word that is one.
        is_single: it has one call; otherwise as many as the format takes at once.
    """

    def __init__(self, markers: Sequence[str], special_token: Callable[[str], int | None], *, is_single: bool = False) -> None:
        self._markers = re.compile(f"({'|'.join(map(re.escape, markers))})")
        self._special_token = special_token
        self.is_single = is_single
        self._rows: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def text(self, text: str) -> str:
        """Return a text as terms: special tokens by their ids, the rest as it is."""
        terms = []
        for part in self._markers.split(text):
            token = self._special_token(part) if self._markers.fullmatch(part) else None
            if part:
                terms.append(f"<[{token}]>" if token is not None else json.dumps(part, ensure_ascii=False))
        return " ".join(terms) or '""'

    def is_special(self, text: str) -> bool:
        """Tell if a word is a special token, which no text can hold."""
        return self._special_token(text) is not None

    def add(self, body: str, name: str = "") -> str:
        """Add a rule, and return its name. A rule without a name is there once."""
        if not name:
            known = self._names.get(body)
            if known is not None:
                return known
            name = self._names[body] = f"r{len(self._rows)}"
        self._rows[name] = body
        return name

    def terminal(self, body: str) -> str:
        """Add a terminal, once, and return its name. Only of terminals there are intersections and complements."""
        known = self._names.get(f"T {body}")
        if known is None:
            known = self._names[f"T {body}"] = f"T{len(self._rows)}"
            self._rows[known] = body
        return known

    def reserve(self) -> str:
        """Return the name of a rule that is added later, so that it can hold itself."""
        name = f"r{len(self._rows)}"
        self._rows[name] = '""'
        return name

    def several(self, one: str, separator: str) -> str:
        """Return the expansion of one or more of something, or of one alone where the grammar has one call."""
        return one if self.is_single else f"{one} ({separator} {one})*"

    def source(self, start: str) -> str:
        """Return the grammar that begins with this expansion."""
        return "\n".join([f"start: {start}", *(f"{name}: {body}" for name, body in self._rows.items()), ""])


def one_of(ways: Iterable[str]) -> str:
    """Return the expansion of one of several."""
    listed = list(dict.fromkeys(ways))
    return listed[0] if len(listed) == 1 else f"({' | '.join(listed)})"


def word(text: str) -> tuple[str, int]:
    """Return a word as the expression of an opening, and its length in bytes."""
    return re.escape(text), len(text.encode())


def json_calls(rules: Rules, tools: Sequence[Tool], **options: Any) -> str:
    """Return the expansion of an array of calls as JSON objects; the options are those of `json_call`."""
    one = json_call(rules, tools, **options)
    return f'"[" {rules.several(one, "/, ?/")} "]"'


def json_call(
    rules: Rules,
    tools: Sequence[Tool],
    *,
    key: str = "arguments",
    before: Mapping[str, Any] | None = None,
    behind: Mapping[str, Any] | None = None,
    is_either_first: bool = False,
    is_tight: bool = False,
) -> str:
    """Add the rule of a call as a JSON object, as models write it by themselves, and return its name.

    Args:
        rules: get it.
        tools: that may be called. One that describes no arguments takes any.
        key: of the arguments.
        before, behind: further properties that may stand before the name and behind the arguments, with their schemas.
        is_either_first: the arguments may stand before the name.
        is_tight: blanks may be left out.
    """
    properties = [{**(before or {}), "name": None, key: None, **(behind or {})}]
    if is_either_first:
        properties.append({key: None, "name": None})
    schema = json_schema(tools, key, orders=properties, is_free=True, is_tight=is_tight)
    return rules.add(f"%json {json.dumps(schema, ensure_ascii=False)}")


def json_arguments(rules: Rules, tool: Tool) -> str:
    """Add the rule of the arguments of a tool as a JSON object, with or without blanks, and return its name."""
    schema = {"x-guidance": _TIGHT, "additionalProperties": not tool.parameters.get("properties"), **tool.parameters}
    return rules.add(f"%json {json.dumps(schema, ensure_ascii=False)}")


def json_schema(
    tools: Sequence[Tool],
    key: str,
    *,
    orders: Sequence[Mapping[str, Any]] = (),
    is_free: bool = False,
    is_tight: bool = False,
) -> dict[str, Any]:
    """Return the schema of a call.

    Args:
        tools: that may be called.
        key: of the arguments.
        orders: properties of a call in the orders that they may have, with the schemas of those beside name and arguments.
        is_free: as models write by themselves: a tool that describes no arguments takes any, and where none are needed they may
            be left out.
        is_tight: blanks may be left out.
    """
    places: dict[str, Any] = {}
    calls = []
    for number, tool in enumerate(tools):
        takes_any = is_free and not tool.parameters.get("properties")
        places[f"{number}"] = _moved({"additionalProperties": takes_any, **tool.parameters}, number)
        known = {"name": {"const": tool.name}, key: {"$ref": f"#/$defs/{number}"}}
        needed = ["name"] if is_free and not tool.parameters.get("required") else ["name", key]
        for order in orders or [known]:
            properties = {name: known.get(name, schema) for name, schema in order.items()}
            calls.append({"type": "object", "properties": properties, "required": needed, "additionalProperties": False})
    return {"x-guidance": _TIGHT if is_tight else _SPACED, "anyOf": calls, "$defs": places}


def _moved(value: Any, number: int) -> Any:
    """Return a schema whose references lead to where the schema of its tool is now, as a whole."""
    if isinstance(value, Mapping):
        reference = value.get("$ref")
        moved = {name: _moved(below, number) for name, below in value.items()}
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            moved["$ref"] = f"#/$defs/{number}{reference[1:]}"
        return moved
    return [_moved(one, number) for one in value] if isinstance(value, list) else value
