"""Keywords that llguidance does not know, in terms of those that it does.

A rewritten schema allows nothing that the original one does not, except that a format which JSON Schema does not define is left
out: the standard calls it an annotation. What has no such form stays, and is refused by name.

    dependentRequired, dependentSchemas, dependencies   the property is absent, or the rest holds
    not: {required: [...]}, {type: ...}, {}             one of the properties is absent; the other types; nothing
    propertyNames                                       the properties of these names or this pattern, and no others
    minProperties: 1                                    one of the properties, where there are no others
    oneOf                                               anyOf, where the cases can be told apart; see one_of.py
    uniqueItems                                         where there is nothing to differ
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edge.structured.one_of import absent, separate
from edge.structured.walk import map_schemas, subschemas

__all__ = ["rewrite"]

_FORMATS = frozenset((
    "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6", "uri",
    "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex",
))  # fmt: skip
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_TYPES = ("object", "array", "string", "number", "boolean", "null")
_ANNOTATIONS = frozenset(("title", "description", "$comment", "examples", "default"))
_MOST_CASES = 40  # of an anyOf that is made here
_MOVED = ("dependentSchemas", "dependencies", "not", "oneOf")


def rewrite(source: str) -> str:
    """Return a schema as JSON text that allows the same; see the module.

    Args:
        source: a schema as JSON text.
    """
    schema = json.loads(source)
    refs = " ".join(str(each["$ref"]) for _, each in subschemas(schema) if "$ref" in each)
    fixed = frozenset(keyword for keyword in _MOVED if f"/{keyword}/" in refs)  # a $ref names a place inside

    has_unevaluated = any("unevaluated" in keyword for _, each in subschemas(schema) for keyword in each)

    def change(each: dict[str, Any]) -> dict[str, Any]:
        # What a keyword has evaluated would change, and older drafts ignore what stands beside a $ref.
        return _simplify(each) if has_unevaluated or "$ref" in each else _express(_simplify(each), fixed, schema)

    return json.dumps(map_schemas(schema, change), ensure_ascii=False)


def _simplify(schema: dict[str, Any]) -> dict[str, Any]:
    """Drop what says nothing."""
    if schema.get("not") in ({}, True) and "$defs" not in schema and "definitions" not in schema:
        return {"enum": []}
    if isinstance(schema.get("format"), str) and schema["format"] not in _FORMATS:
        del schema["format"]
    for keyword in _COUNTS:
        if isinstance(schema.get(keyword), float) and schema[keyword].is_integer():
            schema[keyword] = int(schema[keyword])
    is_short = isinstance(schema.get("maxItems"), int) and schema["maxItems"] <= 1
    if schema.get("uniqueItems") is False or (schema.get("uniqueItems") is True and is_short):
        del schema["uniqueItems"]
    return schema


def _express(schema: dict[str, Any], fixed: frozenset[str], root: Any) -> dict[str, Any]:
    """Express keywords by others that hold as well (allOf)."""
    also: list[Any] = []
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        rules = schema.get(keyword)
        if keyword not in fixed and isinstance(rules, Mapping) and all(map(_is_rule, rules.values())):
            del schema[keyword]
            also += [
                {"anyOf": [absent(name), {"required": rule} if isinstance(rule, list) else rule]}
                for name, rule in rules.items()
            ]
    also += _names_of_properties(schema)
    kinds = _type_alone(schema.get("not"))
    if kinds and "type" not in schema and "not" not in fixed:
        del schema["not"]
        schema["type"] = [kind for kind in _TYPES if kind not in kinds]
    names = _required_alone(schema.get("not"))
    if names and "not" not in fixed:
        del schema["not"]
        also.append({"type": "object", "anyOf": [absent(name) for name in names]})
    cases = schema.get("oneOf")
    if "oneOf" not in fixed and isinstance(cases, list) and len(cases) > 1:
        separated = separate(cases, root)
        if separated is not None:
            del schema["oneOf"]
            also.append({"anyOf": separated} if separated else False)
    if also:
        schema["allOf"] = [*schema.get("allOf", []), *also]
    return schema


def _names_of_properties(schema: dict[str, Any]) -> list[Any]:
    """Express propertyNames and minProperties of an object; return what has to hold as well."""
    names = schema.get("propertyNames")
    is_open = not any(keyword in schema for keyword in ("properties", "patternProperties"))
    if is_open and isinstance(names, Mapping) and len(said := set(names) - _ANNOTATIONS - {"type"}) == 1:
        rest, pattern, listed = schema.get("additionalProperties", True), names.get("pattern"), names.get("enum")
        if names.get("type", "string") == "string" and (said == {"pattern"} or said == {"enum"}):
            del schema["propertyNames"]
            schema["additionalProperties"] = False
            if pattern is not None:
                schema["patternProperties"] = {pattern: rest}
            else:
                schema["properties"] = {name: rest for name in listed or () if isinstance(name, str)}
    known = schema.get("properties")
    is_closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    if schema.get("minProperties") != 1 or not is_closed or not isinstance(known, Mapping) or not 0 < len(known) <= _MOST_CASES:
        return []
    del schema["minProperties"]
    return [] if schema.get("required") else [{"anyOf": [{"required": [name]} for name in known]}]


def _type_alone(schema: object) -> list[str]:
    """Return the types of a schema that only names types other than integer; [] if it says anything else."""
    if not isinstance(schema, Mapping) or set(schema) - _ANNOTATIONS != {"type"}:
        return []
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return kinds if all(kind in _TYPES for kind in kinds) else []


def _required_alone(schema: object) -> list[str]:
    """Return the names of a schema that only requires properties; [] if it says anything else."""
    if not isinstance(schema, Mapping) or set(schema) - _ANNOTATIONS != {"required"}:
        return []
    names = schema["required"]
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []


def _is_rule(rule: object) -> bool:
    return isinstance(rule, Mapping | bool) or (isinstance(rule, list) and all(isinstance(name, str) for name in rule))
