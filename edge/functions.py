"""Python functions as tools: `edge.tool` makes the schema from the type hints and the docstring.

@edge.tool
def weather(city: str, days: int = 1) -> str:
    \"""Tell the weather.

    Args:
        city: name of the city, in English.
        days: how many days to look ahead.
    \"""
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, overload

import msgspec

from edge.errors import UsageError, kind_of
from edge.messages import Tool

__all__ = ["to_tool", "tool"]

_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns?|Raises|Yields?|Examples?|Notes?|Attributes):?\s*$")
_ARGUMENT = re.compile(r"^(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_SPHINX = re.compile(r"^\s*:param\s+(?:[\w\[\], ]+\s+)?(\w+):\s*(.*)$")


@overload
def tool(function: Callable[..., object], /) -> Tool: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None, needs_approval: bool = True
) -> Callable[[Callable[..., object]], Tool]: ...
def tool(
    function: Callable[..., object] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    needs_approval: bool = True,
) -> Tool | Callable[[Callable[..., object]], Tool]:
    """Make a tool of a function, as a decorator. It may be async, and still be called as a function.

    What a model passes is checked against the hints and converted to them before the function is called.

    Args:
        function: with type hints that JSON can hold: numbers, text, lists, dicts, enums, dataclasses, TypedDicts.
        name: for the model; None is the function's.
        description: for the model; None is the docstring up to its first section.
        needs_approval: somebody has to approve each call. Turn it off for what only reads, and nothing private.

    Raises:
        UsageError: it is no function, or has parameters that cannot be named or described.
    """
    if function is None:
        return functools.partial(_make, name=name, description=description, needs_approval=needs_approval)
    return _make(function, name, description, needs_approval)


def to_tool(value: object) -> Tool:
    """Return a tool: it, or one made of a function.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(value, Tool):
        return value
    if callable(value) and not isinstance(value, type):
        return tool(value)
    raise UsageError(f"A tool is an edge.Tool or a function, not {kind_of(value)}.", "Decorate a function with @edge.tool.")


def _make(function: object, name: str | None, description: str | None, needs_approval: bool) -> Tool:
    if not callable(function):
        raise UsageError(f"edge.tool makes a tool of a function, not of {kind_of(function)}.", "Put @edge.tool above one.")
    title = name or str(getattr(function, "__name__", type(function).__name__))
    text, about = _read_docstring(inspect.getdoc(function) or "")
    arguments = _arguments_of(function, title, about)
    (_,), parts = msgspec.json.schema_components([arguments], ref_template="#/$defs/{name}")
    schema = dict(parts.pop("Arguments"))
    schema.pop("title", None)
    if parts:
        schema["$defs"] = parts
    return Tool(title, text if description is None else description, schema, _Checked(function, arguments), needs_approval)


class _Checked:
    """A function whose arguments are checked and converted."""

    def __init__(self, function: Callable[..., object], arguments: type[msgspec.Struct]) -> None:
        self._function = function
        self._arguments = arguments
        self._signature = inspect.signature(function)
        functools.update_wrapper(self, function)

    def __call__(self, *values: object, **named: object) -> object:
        given = self._signature.bind_partial(*values).arguments | named
        found = msgspec.convert(given, self._arguments, strict=False)
        return self._function(**{name: getattr(found, name) for name in self._arguments.__struct_fields__})


def _arguments_of(function: Callable[..., object], name: str, about: Mapping[str, str]) -> type[msgspec.Struct]:
    """Return a type with a field for each parameter of a function."""
    hint = "Give each parameter a name and a type hint that JSON can hold."
    try:
        parameters = inspect.signature(function).parameters.values()
        owner: Any = function if inspect.isroutine(function) else type(function).__call__
        hints = typing.get_type_hints(owner, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise UsageError(f"The parameters of {name} cannot be read: {error}.", hint) from error
    fields: list[Any] = []
    for one in parameters:
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            raise UsageError(f"The parameter {one} of {name} has no name that a model could use.", hint)
        kind = hints.get(one.name, Any)
        if one.name in about:
            kind = typing.Annotated[kind, msgspec.Meta(description=about[one.name])]
        if one.default is one.empty:
            fields.append((one.name, kind))
        elif isinstance(one.default, (list, dict, set, bytearray)):
            fields.append((one.name, kind, msgspec.field(default_factory=functools.partial(type(one.default), one.default))))
        else:
            fields.append((one.name, kind, one.default))
    try:
        made = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
        msgspec.json.schema(made)
    except (TypeError, ValueError) as error:
        raise UsageError(f"A parameter of {name} has a type that JSON cannot hold: {error}.", hint) from error
    return made


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """Return a docstring up to its first section, and what it says about each parameter (Google's or Sphinx' way)."""
    front: list[str] = []
    about: dict[str, str] = {}
    section, name, indent = "", "", 0
    for line in text.splitlines():
        heading = _SECTION.match(line)
        sphinx = _SPHINX.match(line)
        if heading:
            section, name = heading[1], ""
        elif sphinx:
            section, name, about[sphinx[1]] = "Sphinx", "", sphinx[2]
        elif not section:
            front.append(line)
        elif section in ("Args", "Arguments", "Parameters") and line.strip():
            depth = len(line) - len(line.lstrip())
            argument = _ARGUMENT.match(line.strip())
            if argument and (not name or depth <= indent):
                name, indent = argument[1], depth
                about[name] = argument[2]
            elif name:
                about[name] = f"{about[name]} {line.strip()}".strip()
    return "\n".join(front).strip(), about
