"""The grammar of a reply that has to call a tool, whose arguments keep the tool's schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edge.messages import Tool
from edge.prompt.tools.base import Format

__all__ = ["grammar_behind_opening", "grammar_of_call"]


_OPTIONS = {
    "item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False, "lenient": True, "coerce_one_of": True,
}  # fmt: skip
"""JSON as templates write it; without that a model could write white space for ever. What cannot be enforced of a tool's schema
is left to the tool, so that one keyword does not make all calls impossible."""


def grammar_of_call(format: Format, tools: Sequence[Tool], special_token: Callable[[str], int | None]) -> str | None:
    """Return a Lark grammar of one call of one of these tools; None if the format does not write calls as JSON.

    Args:
        format: of the model.
        tools: that may be called.
        special_token: returns the id of a word that is a special token.
    """
    if format.around is None:
        return None
    return _grammar(*format.around, format, tools, special_token)


def grammar_behind_opening(
    format: Format, tools: Sequence[Tool], special_token: Callable[[str], int | None]
) -> tuple[str, str] | None:
    """Return the word that opens a call, and a Lark grammar of the rest of it; None if models may write it in another way.

    Args:
        format, tools, special_token: as for `grammar_of_call`.
    """
    if not format.is_json or format.around is None:
        return None
    before, behind = format.around
    word = next(word for word in format.opens if before.startswith(word))
    return word, _grammar(before.removeprefix(word), behind, format, tools, special_token, is_free=True)


def _grammar(
    before: str,
    behind: str,
    format: Format,
    tools: Sequence[Tool],
    special_token: Callable[[str], int | None],
    *,
    is_free: bool = False,
) -> str:
    terms = [*_terms(before, format, special_token), "call", *_terms(behind, format, special_token)]
    schema = json.dumps(_schema(tools, format.key, is_free=is_free), ensure_ascii=False)
    return f"start: {' '.join(terms)}\ncall: %json {schema}\n"


def _terms(text: str, format: Format, special_token: Callable[[str], int | None]) -> list[str]:
    """Return a text as terms of a grammar: special tokens by their ids, the rest as it is."""
    terms = []
    for part in re.split(f"({'|'.join(map(re.escape, format.markers))})", text):
        token = special_token(part) if part in format.markers else None
        if part:
            terms.append(f"<[{token}]>" if token is not None else json.dumps(part))
    return terms


def _schema(tools: Sequence[Tool], key: str, *, is_free: bool) -> dict[str, Any]:
    """Return the schema of a call. If `is_free`, a tool that describes no arguments takes any."""
    places: dict[str, Any] = {}
    calls = []
    for number, tool in enumerate(tools):
        takes_any = is_free and not tool.parameters.get("properties")
        places[f"{number}"] = _moved({"additionalProperties": takes_any, **tool.parameters}, number)
        properties = {"name": {"const": tool.name}, key: {"$ref": f"#/$defs/{number}"}}
        calls.append({"type": "object", "properties": properties, "required": ["name", key], "additionalProperties": False})
    return {"x-guidance": _OPTIONS, "anyOf": calls, "$defs": places}


def _moved(value: Any, number: int) -> Any:
    """Return a schema whose references lead to where the schema of its tool is now, as a whole."""
    if isinstance(value, Mapping):
        reference = value.get("$ref")
        moved = {name: _moved(below, number) for name, below in value.items()}
        if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
            moved["$ref"] = f"#/$defs/{number}{reference[1:]}"
        return moved
    return [_moved(one, number) for one in value] if isinstance(value, list) else value
