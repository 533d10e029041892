"""What the text of a reply has to be: a JSON Schema, a regular expression, a grammar, or one of several texts.

    edge.Constraint.json_schema({"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]})
    edge.Constraint.choices(["yes", "no"])

The value only says so; `edge.structured` compiles it for a vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from edge.errors import ConstraintError, UsageError, kind_of

__all__ = ["Constraint", "ConstraintKind"]

ConstraintKind = Literal["json_schema", "regex", "lark", "gbnf", "choices"]

MAX_SOURCE_BYTES = 1 << 20
_MAX_DEPTH = 100  # of JSON; llguidance refuses more than 127


@dataclass(frozen=True, slots=True)
class Constraint:
    """A rule that every token of a reply keeps, so that a finished reply is always valid.

    Made by the class methods. Equal ones are compiled once.

    Attributes:
        kind: of the rule.
        source: the rule as text; JSON for a schema, and for the list of choices.
        is_strict: refuse a schema with keywords that cannot be enforced token by token. Otherwise those are left out, the reply
            says so (`Reply.notices`), and its text is checked against them at the end where jsonschema-rs is installed.
    """

    kind: ConstraintKind
    source: str
    is_strict: bool = True

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConstraintKind):
            raise UsageError(f"There is no kind of constraint {self.kind!r}.", f"Use {', '.join(get_args(ConstraintKind))}.")
        if not isinstance(self.source, str):
            raise UsageError(f"The source of a constraint is text, not {kind_of(self.source)}.", "Pass a str.")
        n_bytes = len(self.source.encode("utf-8", "replace"))
        if n_bytes > MAX_SOURCE_BYTES:
            raise ConstraintError(
                f"The {self.noun} has {n_bytes:,} bytes; {MAX_SOURCE_BYTES:,} are possible.", "Make it smaller."
            )
        if not self.source.strip():
            raise ConstraintError(f"The {self.noun} is empty.", "Leave it out for free text.")

    @classmethod
    def json_schema(cls, schema: Mapping[str, object] | bool | str, *, strict: bool = True) -> Constraint:
        """Return the constraint of a JSON Schema (draft 2020-12 and before).

        Args:
            schema: the schema, or its JSON text. Properties come in its order.
            strict: see `is_strict`.

        Raises:
            ConstraintError: it is no schema, or too large or deep.
        """
        value: object = schema
        if isinstance(schema, str):
            try:
                value = json.loads(schema)
            except ValueError as error:
                raise ConstraintError(f"The schema is not JSON: {error}.", "Give a JSON Schema.") from None
            except RecursionError:
                raise _too_deep() from None
        if not isinstance(value, Mapping | bool):
            raise ConstraintError(f"A schema is a JSON object, not {kind_of(value)}.", 'For example: {"type": "object"}')
        if _depth(value) > _MAX_DEPTH:
            raise _too_deep()
        try:
            text = json.dumps(value, ensure_ascii=False, default=_as_plain, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConstraintError(f"The schema cannot be written as JSON: {error}.", "Use plain values.") from None
        return cls("json_schema", text, strict)

    @classmethod
    def json_object(cls) -> Constraint:
        """Return the constraint of any JSON object."""
        return cls("json_schema", '{"type": "object"}')

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Return the constraint of a regular expression, which the whole text has to match.

        The syntax is that of Rust's crate `regex`: without lookaround and back-references; `.` excludes line breaks.
        """
        return cls("regex", pattern)

    @classmethod
    def lark(cls, grammar: str) -> Constraint:
        """Return the constraint of a grammar in llguidance's dialect of Lark; it begins with the rule `start`."""
        return cls("lark", grammar)

    @classmethod
    def gbnf(cls, grammar: str) -> Constraint:
        """Return the constraint of a grammar in llama.cpp's GBNF. It is translated to Lark, which is not exact in all cases."""
        return cls("gbnf", grammar)

    @classmethod
    def choices(cls, texts: Iterable[str]) -> Constraint:
        """Return the constraint of one of several texts, none of them empty."""
        listed = None if isinstance(texts, str | bytes) or not isinstance(texts, Iterable) else list(dict.fromkeys(texts))
        if listed is None or not all(isinstance(text, str) for text in listed):
            raise UsageError(f"choices takes texts, not {kind_of(texts)}.", 'For example: ["yes", "no"]')
        if not listed or not all(listed):
            raise ConstraintError("There is no choice, or an empty one.", "Give at least one text, none of them empty.")
        return cls("choices", json.dumps(listed, ensure_ascii=False))

    @property
    def noun(self) -> str:
        """The kind as a message calls it."""
        return _NOUNS.get(self.kind, "constraint")

    @property
    def is_json(self) -> bool:
        """True if the reply is JSON."""
        return self.kind == "json_schema"


_NOUNS = {
    "json_schema": "schema",
    "regex": "regular expression",
    "lark": "Lark grammar",
    "gbnf": "GBNF grammar",
    "choices": "list of choices",
}


def _as_plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{kind_of(value)} has no JSON form")


def _too_deep() -> ConstraintError:
    return ConstraintError(f"The schema is nested more than {_MAX_DEPTH} levels deep.", "Use $defs and $ref.")


def _depth(value: object) -> int:
    """Return how deep lists and mappings are nested, without recursion."""
    depth, level = 0, [value]
    while level and depth <= _MAX_DEPTH:
        depth += 1
        level = [
            one
            for each in level
            if isinstance(each, Mapping | list | tuple)
            for one in (each.values() if isinstance(each, Mapping) else each)
            if isinstance(one, Mapping | list | tuple)
        ]
    return depth
