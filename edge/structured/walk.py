"""Every schema inside a schema: to look at, and to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["map_schemas", "subschemas"]

_NAMES = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"))
"""Keywords whose values map names to schemas."""
_VALUES = frozenset(("const", "enum", "default", "examples", "required", "dependentRequired"))
"""Keywords whose values are not schemas."""


def subschemas(schema: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every object of a schema that may be one itself, with its place as a JSON pointer, the outer ones first."""
    waiting: list[tuple[str, object, bool]] = [("#", schema, False)]
    while waiting:
        path, value, has_names = waiting.pop(0)
        if isinstance(value, Mapping):
            if not has_names:
                yield path, value
            for key, one in value.items():
                if has_names or key not in _VALUES:
                    pointer = str(key).replace("~", "~0").replace("/", "~1")
                    waiting.append((f"{path}/{pointer}", one, key in _NAMES and not has_names))
        elif isinstance(value, list):
            waiting += [(f"{path}/{number}", one, False) for number, one in enumerate(value)]


def map_schemas(schema: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Return a schema with every schema in it changed, the inner ones first.

    Args:
        schema: not nested too deeply for recursion, as `edge.constraint` makes sure.
        change: gets a copy, which it may keep and change, and returns what takes its place.
    """
    if isinstance(schema, list):
        return [map_schemas(one, change) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    changed = {}
    for key, value in schema.items():
        if key in _NAMES and isinstance(value, Mapping):
            changed[key] = {name: map_schemas(one, change) for name, one in value.items()}
        else:
            changed[key] = value if key in _VALUES else map_schemas(value, change)
    return change(changed)
