"""Messages as the rows that chat templates loop over, and how a template takes tools and their calls."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from edge.errors import TemplateError
from edge.messages import Message, Tool, ToolCall, short_id

__all__ = ["PLAIN", "ToolStyle", "find_style", "to_rows"]

Place = Literal["variable", "system", ""]

_WORD = "qwibvex"
"""In no template, so that what is left out is noticed."""

_PROBE = Tool(f"{_WORD}_tool", f"{_WORD} does", {"type": "object", "properties": {f"{_WORD}_key": {"type": "string"}}})
_CALL = ToolCall(_PROBE.name, {f"{_WORD}_key": f"{_WORD} value"}, "abcdefgh1")
_OTHER = ToolCall(_PROBE.name, {f"{_WORD}_key": f"{_WORD} other"}, "abcdefgh2")
_QUESTION = Message("user", "Hello")
_RESULT = Message("tool", f"{_WORD} result", _PROBE.name, tool_call_id=_CALL.id)


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """How a template takes tools and their calls.

    Attributes:
        place: where it looks for the tools: a variable of its own, or the system message; "" if it shows none.
        arguments: what it takes arguments as; "" if it does not show calls.
        many: it shows several calls in one message.
    """

    place: Place = "variable"
    arguments: Literal["mapping", "text", ""] = "mapping"
    many: bool = True


PLAIN = ToolStyle()
"""For conversations without tools, where the style does not matter."""


def to_rows(
    messages: Sequence[Message], *, parts: Collection[str], style: ToolStyle, tools: Sequence[Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Return messages as a template takes them.

    Args:
        messages: to render.
        parts: roles whose content it takes in parts.
        style: how it takes calls and tools.
        tools: schemas, put into the system message where the style says so.
    """
    rows = []
    for message in messages:
        content: Any = message.content
        if message.role in parts:
            content = [{"type": "text", "text": content}] if content or not message.tool_calls else []
        row: dict[str, Any] = {"role": message.role, "content": content}
        if message.name is not None:
            row["name"] = message.name
        if message.tool_calls:
            row["tool_calls"] = [_to_row(call, style) for call in message.tool_calls]
        if message.tool_call_id is not None:
            row["tool_call_id"] = short_id(message.tool_call_id)
        if message.reasoning:
            row |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), message.reasoning)
        rows.append(row)
    if tools and style.place == "system":
        if not rows or rows[0]["role"] != "system":
            rows.insert(0, {"role": "system", "content": [] if "system" in parts else ""})
        rows[0]["tools"] = json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)
    return rows


def _to_row(call: ToolCall, style: ToolStyle) -> dict[str, Any]:
    arguments = call.json if style.arguments == "text" else call.arguments
    return {"type": "function", "id": short_id(call.id), "function": {"name": call.name, "arguments": arguments}}


def find_style(render: Callable[[Sequence[Message], ToolStyle, list[dict[str, Any]]], str]) -> ToolStyle:
    """Find out how a template takes tools and calls.

    Args:
        render: the template: (messages, style, tools) -> text. Raises TemplateError where it refuses.
    """

    def shows(words: Sequence[str], messages: Sequence[Message], style: ToolStyle) -> str:
        try:
            text = render(messages, style, [_PROBE.schema])
        except TemplateError:
            return ""
        return text if all(word in text for word in words) else ""

    asked = [_PROBE.name, _PROBE.description]
    styles = (ToolStyle("variable"), ToolStyle("system"))
    place: Place = next((style.place for style in styles if shows(asked, [_QUESTION], style)), "")
    called = [f"{_WORD}_key", f"{_WORD} value", _RESULT.content]
    for style in (ToolStyle(place, "mapping"), ToolStyle(place, "text")):
        text = shows(called, [_QUESTION, Message("assistant", "", tool_calls=(_CALL,)), _RESULT], style)
        if text and f"'{_WORD}_key'" not in text and f'\\"{_WORD}_key' not in text:  # Python's notation; JSON in JSON
            both = Message("assistant", "", tool_calls=(_CALL, _OTHER))
            other = Message("tool", f"{_WORD} more", _PROBE.name, tool_call_id=_OTHER.id)
            words = [*called, f"{_WORD} other", other.content]
            return replace(style, many=bool(shows(words, [_QUESTION, both, _RESULT, other], style)))
    return ToolStyle(place, "", many=True)
