"""What a reply is asked for besides its messages: tools, a form, thinking; the protocols have the same in other words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge.constraint import Constraint
from edge.errors import UsageError
from edge.types import Tool
from edge_serve import limits
from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from edge_serve.call import Call

__all__ = ["ToolSpec", "constraint_of", "options_of", "tool_options"]


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as a request describes it.

    Attributes:
        where: its place in the request, for errors.
        name, description, parameters: as of `edge.Tool`.
    """

    where: str
    name: object
    description: object = ""
    parameters: object = None


def options_of(call: Call) -> dict[str, Any]:
    """Return what every reply is asked for with: whose KV cache it uses, and how long it may take."""
    return {"cache_namespace": call.caller.namespace or None, "timeout_s": call.service.settings.server.timeout_s}


def tool_options(specs: Iterable[ToolSpec], choice: Any = None) -> dict[str, Any]:
    """Return the options by which a model is told of tools, which the client runs. A model without a place for them in its chat
    template is told in its system prompt.

    Args:
        specs: the tools.
        choice: in any protocol's form: None or "auto" leaves it to the model, "required" or the type "any" makes it call one of
            them, an object with a name that one.

    Raises:
        ApiError: one of them is no tool, there are too many, or the choice is none.
    """
    tools = [_tool(spec) for spec in specs]
    if len(tools) > limits.TOOLS:
        raise ApiError(400, f"A request has {limits.TOOLS} tools at most, not {len(tools):,}.", param="tools")
    chosen = _choice(choice, tools)
    if not tools and chosen != "auto":
        raise ApiError(400, "tool_choice asks for a call, and there are no tools.", param="tool_choice")
    return {"tools": tools, "tool_format": "prompt", "tool_choice": chosen} if tools else {}


def _choice(choice: Any, tools: Sequence[Tool]) -> str:
    """Return which tool has to be called."""
    if isinstance(choice, Mapping):
        kind = choice.get("type")
        named = choice.get("function", choice)
        name = named.get("name") if isinstance(named, Mapping) else None
        choice = {"auto": "auto", "any": "required"}.get(str(kind), name)
        if choice == name and name not in {tool.name for tool in tools}:
            raise ApiError(400, "tool_choice names none of the tools.", param="tool_choice")
        return str(choice)
    if choice in (None, "auto", "required"):
        return choice or "auto"
    raise ApiError(400, "tool_choice is none, auto, required, or names a tool.", param="tool_choice")


def constraint_of(kind: str, source: Any, where: str, *, strict: bool = True) -> dict[str, Any]:
    """Return the options for a reply of a form.

    Args:
        kind: "json_schema", "json_object", "regex", "choices", "gbnf" or "lark".
        source: of the rule.
        where: its place in the request, for errors.
        strict: refuse a schema that cannot be enforced as a whole.

    Raises:
        ApiError: the rule cannot be honoured.
    """
    try:
        if kind == "json_schema":
            return {"constraint": Constraint.json_schema(source, strict=strict)}
        if kind == "json_object":
            return {"constraint": Constraint.json_object(), "show_schema": False}
        return {"constraint": getattr(Constraint, kind)(source)}
    except UsageError as error:
        raise ApiError(400, f"{where}: {error}", code="invalid_value", param=where) from None


def _tool(spec: ToolSpec) -> Tool:
    parameters = spec.parameters if isinstance(spec.parameters, Mapping) else {}
    try:
        return Tool(spec.name, spec.description or "", parameters)  # type: ignore[arg-type]
    except UsageError as error:
        raise ApiError(400, f"{spec.where}: {error}", code="invalid_value", param=spec.where) from None
