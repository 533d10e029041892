"""oneOf as anyOf, where the cases can be told apart.

Two cases exclude each other if they have no type or no value in common, or differ in a property that both require. Otherwise an
object of the one may lack a property that the other requires, which is then made a condition. So exactly one case holds for
whatever the result allows; an object with the properties of several cases is not written, even if its values decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["absent", "separate"]

_JSON_TYPES = {
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}


def separate(cases: Sequence[Any], root: Any) -> list[Any] | None:
    """Return the cases of an anyOf that allows what exactly one of these cases allows; None if they cannot be told apart.

    Args:
        cases: of a oneOf.
        root: the whole schema, which a $ref names a part of.
    """
    meant = [_resolve(case, root) for case in cases]
    if not all(isinstance(case, Mapping) for case in meant):
        return None
    separated = []
    for number, (case, one) in enumerate(zip(cases, meant, strict=True)):
        conditions = []
        for at, other in enumerate(meant):
            if at == number or _exclude(one, other):
                continue
            missing = [name for name in _required(other) if name not in _required(one)]
            if not missing:
                if set(other) - {"required", "title", "description", "$comment"}:
                    return None
                break  # the other one holds wherever this one does
            conditions.append({"anyOf": [absent(name) for name in missing]})
        else:
            separated.append({"type": "object", "allOf": [case, *conditions]} if conditions else case)
    return separated


def absent(name: str) -> dict[str, Any]:
    """Return the schema of an object without a property, and of whatever is no object."""
    return {"properties": {name: False}}


def _exclude(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Tell if nothing is valid under both."""
    types, other_types = _types(one), _types(other)
    if types is not None and other_types is not None and not types & other_types:
        return True
    values, other_values = _values(one), _values(other)
    if values is not None and other_values is not None:
        return not any(value in other_values for value in values)
    if types != {"object"} or other_types != {"object"}:
        return False
    both = set(_required(one)) & set(_required(other))
    return any(_differ(one, other, name) for name in both)


def _differ(one: Mapping[str, Any], other: Mapping[str, Any], name: str) -> bool:
    values, other_values = (_values(each.get("properties", {}).get(name, {})) for each in (one, other))
    return values is not None and other_values is not None and not any(value in other_values for value in values)


def _types(schema: Mapping[str, Any]) -> set[str] | None:
    """Return the types that a schema allows; None for any. Integers are numbers."""
    given = schema.get("type")
    if given is not None:
        listed = given if isinstance(given, list) else [given]
        return {"number" if name == "integer" else str(name) for name in listed}
    values = _values(schema)
    return None if values is None else {_JSON_TYPES[type(value)] for value in values}


def _values(schema: object) -> list[Any] | None:
    if not isinstance(schema, Mapping):
        return None
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _required(schema: Mapping[str, Any]) -> list[str]:
    names = schema.get("required")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _resolve(case: Any, root: Any) -> Any:
    """Return what a case means: itself, or the place in this document that its $ref names."""
    if not isinstance(case, Mapping) or not isinstance(case.get("$ref"), str) or not case["$ref"].startswith("#/"):
        return case
    value = root
    for part in case["$ref"][2:].split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
