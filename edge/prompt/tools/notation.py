"""Values that are not written as JSON, as rules of a grammar: those of Python, and those of FunctionGemma and Gemma 4.

Of a schema, types, properties, required ones, enumerations, items and references are enforced; what else it says, such as
ranges and lengths, is left to the tool. Properties come in any order where there are few, and none comes twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge.messages import Tool
from edge.prompt.tools.grammar import Rules, one_of

__all__ = ["Keys", "Notation", "Values"]

_MOST_IN_ANY_ORDER, _WITH_MANY_TOOLS, _MANY_TOOLS = 7, 4, 8  # properties: each doubles the rules
_MOST_DEPTH = 20
_COMMA = "/, ?/"


@dataclass(frozen=True, slots=True)
class Keys:
    """How keys are written, with what follows them.

    Attributes:
        known: the expansion of a key.
        other: the expansion of any key but these.
    """

    known: Callable[[str], str]
    other: Callable[[Collection[str]], str]


@dataclass(frozen=True, slots=True)
class Notation:
    """How values are written.

    Attributes:
        string: the expansion of any text.
        literals: the expansions of a text as it may be written; none if it cannot be.
        true, false, null: their words.
        arguments: keys of a call.
        members: keys of an object.
        is_sorted: many properties come in the order of the alphabet, not in that of the schema.
    """

    string: str
    literals: Callable[[str], Sequence[str]]
    true: Sequence[str]
    false: Sequence[str]
    null: Sequence[str]
    arguments: Keys
    members: Keys
    is_sorted: bool = False


class Values:
    """Adds the rules of values.

    Args:
        rules: get them.
        notation: of the family.
        n_tools: whose arguments are written.
    """

    def __init__(self, rules: Rules, notation: Notation, n_tools: int) -> None:
        self._rules, self._notation = rules, notation
        self._most_in_any_order = _MOST_IN_ANY_ORDER if n_tools <= _MANY_TOOLS else _WITH_MANY_TOOLS
        self._root: Any = {}
        self._places: dict[str, str] = {}
        integer = rules.terminal(r"/-?(0|[1-9][0-9]{0,17})/")
        number = rules.terminal(r"/-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,17})?([eE][+-]?[0-9]{1,2})?/")
        words = [*notation.true, *notation.false]
        self._plain = {
            "string": notation.string, "integer": integer, "number": number,
            "boolean": one_of(map(json.dumps, words)), "null": one_of(map(json.dumps, notation.null)),
        }  # fmt: skip
        self._any = rules.reserve()
        pair = f"{notation.members.other(())} {self._any}"
        plain = [self._plain[name] for name in ("string", "number", "boolean", "null")]
        of_any = [f'"{{" ({pair} ({_COMMA} {pair})*)? "}}"', self._array(self._any)]
        rules.add(one_of([*plain, *of_any]), self._any)

    def arguments(self, tool: Tool) -> str:
        """Return the expansion of a tool's arguments, without what stands around them."""
        self._root, self._places = tool.parameters, {}
        return self._properties(tool.parameters, self._notation.arguments, 0)

    def _value(self, schema: Any, depth: int) -> str:
        """Return the expansion of a value; that of any one where the schema does not say, or says too much."""
        if not isinstance(schema, Mapping) or depth > _MOST_DEPTH:
            return self._any
        if isinstance(schema.get("$ref"), str):
            return self._referred(schema["$ref"], depth)
        if "const" in schema or isinstance(schema.get("enum"), list):
            return self._literals([schema["const"]] if "const" in schema else schema["enum"])
        for word in ("anyOf", "oneOf"):
            if isinstance(schema.get(word), list) and schema[word]:
                return self._rules.add(one_of(self._value(one, depth + 1) for one in schema[word]))
        types = schema.get("type", "object" if "properties" in schema else None)
        types = [types] if isinstance(types, str) else types
        if not isinstance(types, list) or not types:
            return self._any
        return self._rules.add(one_of(self._typed(one, schema, depth) for one in types))

    def _typed(self, type: Any, schema: Mapping[str, Any], depth: int) -> str:
        if type == "array":
            return self._array(self._value(schema.get("items"), depth + 1), may_be_empty=not schema.get("minItems"))
        if type == "object":
            return f'"{{" {self._properties(schema, self._notation.members, depth)} "}}"'
        return self._plain.get(type, self._any) if isinstance(type, str) else self._any

    def _array(self, item: str, *, may_be_empty: bool = True) -> str:
        return f'"[" ({item} ({_COMMA} {item})*){"?" if may_be_empty else ""} "]"'

    def _literals(self, values: Sequence[Any]) -> str:
        """Return the expansion of one of several values; that of any one if one is a list or an object."""
        ways: list[str] = []
        words = {True: self._notation.true, False: self._notation.false, None: self._notation.null}
        for value in values:
            if isinstance(value, str):
                ways += self._notation.literals(value)
            elif value is None or isinstance(value, bool):
                ways += map(json.dumps, words[value])
            elif isinstance(value, int | float):
                ways.append(json.dumps(json.dumps(value)))
            else:
                return self._any
        return self._rules.add(one_of(ways)) if ways else self._any

    def _referred(self, reference: str, depth: int) -> str:
        """Return the rule of the part of the tool's schema that a reference names."""
        known = self._places.get(reference)
        if known is not None:
            return known
        schema: Any = self._root if reference == "#" or reference.startswith("#/") else None
        for part in reference.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            schema = schema.get(part) if isinstance(schema, Mapping) else None
        name = self._places[reference] = self._rules.reserve()
        while isinstance(schema, Mapping) and schema.get("$ref") == reference:
            schema = None  # it names itself
        self._rules.add(self._value(schema, depth + 1), name)
        return name

    def _properties(self, schema: Mapping[str, Any], keys: Keys, depth: int) -> str:
        """Return the rule of properties with commas between them."""
        properties = schema.get("properties")
        properties = dict(properties) if isinstance(properties, Mapping) else {}
        required = {name for name in schema.get("required") or () if isinstance(name, str)}
        properties |= dict.fromkeys(sorted(required - properties.keys()))
        pairs = {name: f"{keys.known(name)} {self._value(below, depth + 1)}" for name, below in properties.items()}
        more = schema.get("additionalProperties", not properties)
        other = f"{keys.other(properties)} {self._value(more, depth + 1)}" if more is not False else ""
        if len(pairs) <= self._most_in_any_order:
            return self._in_any_order(pairs, required, other)
        names = sorted(pairs, key=str.lower) if self._notation.is_sorted else list(pairs)
        return self._in_order([(pairs[name], name in required) for name in names], other)

    def _in_any_order(self, pairs: Mapping[str, str], required: set[str], other: str) -> str:
        """Return the expansion of properties in any order, each once, with a rule for each set of those that came before."""
        names = list(pairs)
        behind = [self._rules.reserve() for _ in range(1 << len(names))]

        def go_on(there: int, comma: str) -> str:
            left = [number for number in range(len(names)) if not there >> number & 1]
            ways = [f"{comma}{pairs[names[number]]} {behind[there | 1 << number]}" for number in left]
            ways += [f"{comma}{other} {behind[there]}"] if other else []
            ways += [] if required & {names[number] for number in left} else ['""']
            return one_of(ways)

        for there, name in enumerate(behind):
            self._rules.add(go_on(there, f"{_COMMA} "), name)
        return go_on(0, "")

    def _in_order(self, pairs: Sequence[tuple[str, bool]], other: str) -> str:
        """Return the expansion of properties in this order, of which those may be left out that are not required."""
        behind = self._rules.add(f"({_COMMA} {other})*" if other else '""')
        first = self._rules.add(f"({other} ({_COMMA} {other})*)?" if other else '""')
        for pair, is_required in reversed(pairs):
            first = self._rules.add(one_of([f"{pair} {behind}", *([] if is_required else [first])]))
            behind = self._rules.add(one_of([f"{_COMMA} {pair} {behind}", *([] if is_required else [behind])]))
        return first
