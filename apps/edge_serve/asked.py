"""What a reply is asked for besides its messages: tools, a form, thinking; the protocols have the same in other words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def tool_options(specs: Iterable[ToolSpec]) -> dict[str, Any]:
    """Return the options by which a model is told of tools, which the client runs. A model without a place for them in its chat
    template is told in its system prompt.

    Raises:
        ApiError: one of them is no tool, or there are too many.
    """
    tools = [_tool(spec) for spec in specs]
    if len(tools) > limits.TOOLS:
        raise ApiError(400, f"A request has {limits.TOOLS} tools at most, not {len(tools):,}.", param="tools")
    return {"tools": tools, "tool_format": "prompt"} if tools else {}


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
