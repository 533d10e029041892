"""Tools, form and thinking of a chat completion, as the runtime takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_serve.asked import ToolSpec, constraint_of, tool_options
from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from edge_serve.openai.wire import ChatRequest, ResponseFormat

__all__ = ["chat_options"]

_GUIDES = {
    "grammar": "gbnf",
    "json_schema": "json_schema",
    "guided_json": "json_schema",
    "guided_regex": "regex",
    "guided_choice": "choices",
}
"""Fields of llama.cpp and vLLM -> kind of constraint."""


def chat_options(body: ChatRequest) -> dict[str, Any]:
    """Return the options of a reply.

    Raises:
        ApiError: one of them cannot be honoured.
    """
    options = {**_tools(body), **_form(body)}
    if body.chat_template_kwargs is not None and body.chat_template_kwargs.enable_thinking is not None:
        options["think"] = body.chat_template_kwargs.enable_thinking
    elif body.reasoning_effort is not None:
        options["think"] = body.reasoning_effort not in ("none", "minimal")
    return options


def _tools(body: ChatRequest) -> dict[str, Any]:
    choice = body.tool_choice
    if choice == "none":
        return {}
    specs = []
    for number, tool in enumerate(body.tools or ()):
        where = f"tools[{number}]"
        if tool.function is None or tool.type != "function":
            raise ApiError(400, f"{where}: only functions can be called here.", code="unsupported_value", param=where)
        function = tool.function
        specs.append(ToolSpec(where, function.name, function.description, function.parameters))
    return tool_options(specs, choice)


def _form(body: ChatRequest) -> dict[str, Any]:
    found = [(name, kind) for name, kind in _GUIDES.items() if getattr(body, name) is not None]
    form = body.response_format
    if form is not None and form.type != "text":
        found.append(("response_format", form.type))
    if len(found) > 1:
        raise ApiError(400, f"{found[0][0]} and {found[1][0]} exclude each other. Give one of them.", param=found[0][0])
    if not found:
        return {}
    name, kind = found[0]
    if form is None or name != "response_format":
        return constraint_of(kind, getattr(body, name), name)
    return _response_format(form)


def _response_format(form: ResponseFormat) -> dict[str, Any]:
    if form.type == "json_object" and form.schema is None:
        return constraint_of("json_object", None, "response_format")
    if form.type not in ("json_schema", "json_object"):
        message = f"response_format has the type {form.type[:40]!r}; use text, json_object or json_schema."
        raise ApiError(400, message, code="invalid_value", param="response_format.type")
    given = form.json_schema
    schema = given.schema if given is not None else form.schema
    if schema is None:
        raise ApiError(400, "response_format has no schema.", code="invalid_value", param="response_format.json_schema.schema")
    strict = given is None or bool(given.strict)
    return constraint_of("json_schema", schema, "response_format.json_schema.schema", strict=strict)
