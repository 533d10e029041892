"""Messages of a request as the runtime takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import UsageError
from edge.types import Message, Role, ToolCall
from edge_serve import limits
from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from edge_serve.openai.wire import ChatMessage, Part

__all__ = ["ROLES", "arguments_of", "messages_of", "text_of_part"]

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


def messages_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the messages.

    Raises:
        ApiError: there is none, or one of them cannot be given to the model.
    """
    if not messages:
        raise ApiError(400, "There is no message to answer. Send at least one.", code="empty_array", param="messages")
    if len(messages) > limits.MESSAGES:
        message = f"{len(messages):,} messages are more than the {limits.MESSAGES:,} that this server reads."
        raise ApiError(400, message, code="array_above_max_length", param="messages")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _message(message: ChatMessage, where: str) -> Message:
    role = ROLES.get(message.role)
    if role is None:
        known = ", ".join(name for name in ROLES if name != "function")
        raise ApiError(400, f"{where}: there is no role {message.role[:40]!r}. Use one of {known}.", param=f"{where}.role")
    thought = message.reasoning_content or message.reasoning or ""
    try:
        calls = tuple(
            ToolCall(call.function.name, arguments_of(call.function.arguments), call.id) for call in message.tool_calls or ()
        )
        return Message(role, _text(message, where), message.name, calls, message.tool_call_id, thought)
    except UsageError as error:
        raise ApiError(400, f"{where}: {error}", code="invalid_value", param=where) from None


def arguments_of(text: str) -> dict[str, Any]:
    """Return the arguments of a call, which come as the text of a JSON object.

    Raises:
        UsageError: they are no such text.
    """
    try:
        return msgspec.json.decode(text or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise UsageError(
            f"The arguments of a call are not a JSON object ({error}).", 'For example: {"city": "Paris"}'
        ) from None


def _text(message: ChatMessage, where: str) -> str:
    content = message.content
    if content is None:
        if message.role in ("user", "system", "developer", "tool"):
            raise ApiError(400, f"{where} has no content. Give a text.", param=f"{where}.content")
        return message.refusal or ""
    if isinstance(content, str):
        return content
    return "\n".join(text_of_part(part, f"{where}.content[{number}]") for number, part in enumerate(content))


def text_of_part(part: Part, where: str) -> str:
    """Return the text of a part of a content.

    Raises:
        ApiError: it is no text.
    """
    if part.type in ("text", "input_text", "output_text"):
        if part.text is None:
            raise ApiError(400, f"{where} has no text.", param=f"{where}.text")
        return part.text
    if part.type == "refusal":
        return part.refusal or ""
    kinds = {"image_url": "pictures", "input_image": "pictures", "image": "pictures", "input_audio": "audio", "file": "files"}
    what = kinds.get(part.type, f"parts of type {part.type[:40]!r}")
    raise ApiError(
        400, f"{where}: this model reads text only, no {what}. Send the text of it.", code="unsupported_content", param=where
    )
