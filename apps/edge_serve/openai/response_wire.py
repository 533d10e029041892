"""Fields of POST /v1/responses, and its input as messages."""

from __future__ import annotations

from typing import Any

import msgspec

from edge.errors import UsageError
from edge.types import Message, ToolCall
from edge_serve import limits
from edge_serve.errors import ApiError
from edge_serve.lora import AdapterScale
from edge_serve.openai.messages import ROLES, arguments_of, text_of_part
from edge_serve.openai.wire import Part

__all__ = ["ResponsesRequest", "messages_of_input"]


class Item(msgspec.Struct):
    """An item of the input: a message, a call, its result, or thoughts."""

    type: str = "message"
    role: str | None = None
    content: str | list[Part] | None = None
    name: str | None = None
    arguments: str | None = None
    call_id: str | None = None
    output: str | list[Part] | None = None


class Format(msgspec.Struct):
    """The form of the text."""

    type: str = "text"
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class Text(msgspec.Struct):
    """How the text is written."""

    format: Format | None = None
    verbosity: str | None = None


class ResponseTool(msgspec.Struct):
    """A tool; functions are the only type that is known here."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Reasoning(msgspec.Struct):
    """Whether the model thinks."""

    effort: str | None = None
    summary: str | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """Of POST /v1/responses."""

    input: str | list[Item]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    text: Text | None = None
    tools: list[ResponseTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    lora: list[AdapterScale] | None = None
    docs: str | list[str] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    truncation: str | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    service_tier: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


def messages_of_input(body: ResponsesRequest) -> list[Message]:
    """Return the messages of an input, the instructions first.

    Raises:
        ApiError: there is none, or an item cannot be given to the model.
    """
    messages = [Message("system", body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        if not body.input:
            raise ApiError(400, "input is empty. Give a text or items.", code="invalid_value", param="input")
        return [*messages, Message("user", body.input)]
    if not body.input or len(body.input) > limits.MESSAGES:
        raise ApiError(400, f"input has 1 to {limits.MESSAGES:,} items.", code="invalid_value", param="input")
    for number, item in enumerate(body.input):
        where = f"input[{number}]"
        try:
            message = _message(item, where)
        except UsageError as error:
            raise ApiError(400, f"{where}: {error}", code="invalid_value", param=where) from None
        before = messages[-1] if messages else None
        if message is None:
            continue
        if before is not None and before.role == message.role == "assistant" and message.tool_calls:  # one turn, in items
            calls = (*before.tool_calls, *message.tool_calls)
            messages[-1] = Message("assistant", before.content, None, calls, None, before.reasoning)
        else:
            messages.append(message)
    return messages


def _message(item: Item, where: str) -> Message | None:
    if item.type == "function_call":
        return Message(
            "assistant", "", tool_calls=(ToolCall(item.name or "", arguments_of(item.arguments or ""), item.call_id or ""),)
        )
    if item.type == "function_call_output":
        return Message("tool", _text(item.output, f"{where}.output"), tool_call_id=item.call_id or "")
    if item.type == "reasoning":
        return None  # most models do not read earlier thoughts again
    role = ROLES.get(item.role or "")
    if item.type != "message" or role is None:
        raise ApiError(
            400, f"{where}: there is no item {item.type[:40]!r} of the role {str(item.role)[:40]!r} here.", param=where
        )
    return Message(role, _text(item.content, f"{where}.content"))


def _text(content: str | list[Part] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(text_of_part(part, f"{where}[{number}]") for number, part in enumerate(content))
