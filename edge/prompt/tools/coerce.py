"""Gives untyped values the type that their schema wants."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edge.prompt.tools.base import Known

__all__ = ["coerce"]


def coerce(text: str, tool: str, argument: str, known: Known) -> Any:
    """Return the value of an argument that a model wrote without quotes.

    Text stays text where the schema says so; otherwise it is JSON where it can be, such as numbers, lists and null.
    """
    schema: Any = {}
    if tool in known:
        schema = known[tool].parameters["properties"].get(argument, {})
    types = _types(schema)
    if types == {"string"}:
        return text
    for word, value in (("True", True), ("False", False), ("None", None)):
        if text.strip() == word and types & {"boolean", "null"}:
            return value
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if types and not types & _types_of(value):
        return text
    return value


def _types(schema: Any) -> set[str]:
    """Return the types that a schema allows, as far as it says; an empty set if it does not."""
    if not isinstance(schema, Mapping):
        return set()
    given = schema.get("type")
    if isinstance(given, str):
        return {given}
    if isinstance(given, list):
        return {one for one in given if isinstance(one, str)}
    if isinstance(schema.get("enum"), list):
        return set().union(*(_types_of(value) for value in schema["enum"]))
    below = [one for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list) for one in schema[key]]
    return set().union(*(_types(one) for one in below))


def _types_of(value: Any) -> set[str]:
    if value is None:
        return {"null"}
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    if isinstance(value, float):
        return {"number", "integer"} if value.is_integer() else {"number"}
    return {"string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"}
