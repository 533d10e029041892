"""A constraint as a grammar of llguidance, and what llguidance refuses in plain words."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.errors import ConstraintError
from edge.structured.rewrite import rewrite
from edge.structured.walk import subschemas

if TYPE_CHECKING:
    from edge.constraint import Constraint

__all__ = ["explain", "ignored_keywords", "to_grammar"]

# White space is unbounded in llguidance's default, and small models write it without end. These separators are what models
# write anyway, and with fixed ones twice as many tokens are forced.
_LAYOUT = {"whitespace_flexible": False, "whitespace_pattern": None, "item_separator": ", ", "key_separator": ": "}
_DECODER = json.JSONDecoder()
_LENIENT_HINT = "Leave it out, or set strict to false: it is then checked when the reply is done, not enforced."


def to_grammar(constraint: Constraint) -> str:
    """Return the grammar of a constraint in llguidance's own form.

    Raises:
        ConstraintError: llguidance cannot read it at all. Other errors show only with a vocabulary.
    """
    from llguidance import LLMatcher

    source = constraint.source
    if constraint.kind == "json_schema":
        is_lenient = not constraint.is_strict
        # An option inside the schema ("x-guidance") must not change what holds for all.
        options = {**_LAYOUT, "lenient": is_lenient, "coerce_one_of": is_lenient}
        text = {"true": "{}", "false": '{"enum": []}'}.get(source, source)
        try:
            return str(LLMatcher.grammar_from_json_schema(rewrite(text), overrides=options))  # type: ignore[arg-type]
        except ValueError as error:
            raise explain(constraint, str(error)) from None
    if constraint.kind == "regex":
        return str(LLMatcher.grammar_from_regex(source))
    if constraint.kind == "choices":
        return str(LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, json.loads(source)))))
    if constraint.kind == "gbnf":
        return str(LLMatcher.grammar_from_lark(_gbnf_to_lark(source)))
    return str(LLMatcher.grammar_from_lark(_rewrite_inside(source)))


def explain(constraint: Constraint, message: str) -> ConstraintError:
    """Return what llguidance says about a constraint as an error that names the keyword and its place."""
    if constraint.kind != "json_schema":
        return ConstraintError(f"The {constraint.noun} cannot be used: {_tidy(message)}.", "Correct or simplify it.")
    schema = json.loads(constraint.source)
    keywords = ignored_keywords([message])
    if keywords:
        named = ", ".join(_with_place(schema, keyword) for keyword in keywords)
        return ConstraintError(f"The schema cannot be enforced while a reply is generated: it uses {named}.", _LENIENT_HINT)
    if message.startswith("oneOf constraints are not supported"):
        where = _with_place(schema, "oneOf")
        return ConstraintError(
            f"The schema has {where}, and it cannot be told token by token that only one of its cases holds.",
            "Use anyOf if it may be several, or set strict to false: it is then checked when the reply is done.",
        )
    if message.startswith("regex parse error"):
        pattern = message.split("\n")[1].strip() if "\n" in message else ""
        where = _with_place(schema, "pattern", pattern)
        return ConstraintError(f"The schema has {where} that cannot be used: {_tidy(message)}.", "Simplify the pattern.")
    if resource := re.match(r"Resource '([^']*)'", message):
        where = _with_place(schema, "$ref", resource[1])
        return ConstraintError(
            f"The schema has {where}, which names another document, {resource[1]!r}. edge does not fetch it.",
            "Copy what it names into $defs.",
        )
    if message.startswith("Unsatisfiable schema"):
        return ConstraintError(f"No JSON is valid under the schema: {_tidy(message.partition(': ')[2])}.", "Correct it.")
    return ConstraintError(f"The schema cannot be used: {_tidy(message)}.", "Correct or simplify it.")


def ignored_keywords(messages: Sequence[str]) -> list[str]:
    """Return the keywords that llguidance does not implement, of its errors or warnings."""
    keywords: list[str] = []
    for message in messages:
        if found := re.search(r"Unimplemented keys: (\[.*\])", message):
            keywords += json.loads(found[1])
        if found := re.search(r"Unknown format: (.*)", message):
            keywords.append(f"format: {found[1]}")
    return list(dict.fromkeys(keywords))


def _with_place(schema: object, keyword: str, value: str = "") -> str:
    """Return a keyword with the place of its first use, such as `"not" at #/properties/a`."""
    name, _, wanted = keyword.partition(": ")
    wanted = wanted or value
    for path, each in subschemas(schema):
        if name in each and (not wanted or str(each[name]).endswith(wanted)):
            return f'"{keyword}" at {path}'
    return f'"{keyword}"'


def _tidy(message: str) -> str:
    """Return the gist of a message of llguidance: on one line, without the drawing of the place, and not too long."""
    lines = [line.strip() for line in message.split("\n")]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    text = errors[0] if errors else " ".join(line for line in lines if line and not re.fullmatch(r"[\^ ]+|\d+ \|.*", line))
    place = re.match(r"(?:at )?(\d+)\((\d+)\): ", text)
    if place is not None:
        text = f"{text[place.end() :]} (line {place[1]}, column {place[2]})"
    return text.rstrip(". ")[:300]


def _rewrite_inside(source: str) -> str:
    """Return a Lark grammar with the schemas inside it (%json) rewritten as a schema alone is."""
    parts, position = [], 0
    for match in re.finditer(r"%json\s+(?=\{)", source):
        try:
            schema, end = _DECODER.raw_decode(source, match.end())
        except (ValueError, RecursionError):
            continue  # llguidance says what is wrong with it
        if match.start() >= position:
            parts += [source[position : match.end()], rewrite(json.dumps(schema, ensure_ascii=False))]
            position = end
    return "".join([*parts, source[position:]])


def _gbnf_to_lark(source: str) -> str:
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(source))
    except Exception as error:  # noqa: BLE001 (the converter raises whatever its parser meets)
        raise ConstraintError(f"The GBNF grammar cannot be used: {_tidy(str(error))}.", "Correct it.") from None
