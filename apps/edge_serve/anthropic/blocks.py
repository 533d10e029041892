"""Messages in blocks as the runtime takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import UsageError
from edge.types import Message, ToolCall
from edge_serve import limits
from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from edge_serve.anthropic.wire import Block, CountRequest, InputMessage

__all__ = ["messages_of"]

_CHANGING = "x-anthropic-billing-header:"
"""Claude Code begins its system prompt with a block that changes with every request, so that no KV cache would ever match."""


def messages_of(body: CountRequest) -> tuple[list[Message], int]:
    """Return the messages, the system prompt first, and how many blocks were left out since they change with every request.

    Raises:
        ApiError: there is none, or one of them cannot be given to the model.
    """
    if not body.messages:
        raise ApiError(400, "There is no message to answer. Send at least one.", param="messages")
    if len(body.messages) > limits.MESSAGES:
        raise ApiError(400, f"A request has {limits.MESSAGES:,} messages at most.", param="messages")
    if body.messages[-1].role == "assistant":
        raise ApiError(400, "The last message is the assistant's; this server does not continue it. End with one of the user.")
    messages, n_stripped = _system(body)
    for number, message in enumerate(body.messages):
        messages.extend(_messages(message, f"messages.{number}"))
    return messages, n_stripped


def _system(body: CountRequest) -> tuple[list[Message], int]:
    if isinstance(body.system, str):
        blocks = [body.system]
    else:
        blocks = [_text(block, f"system.{number}") for number, block in enumerate(body.system or ())]
    kept = [text for text in blocks if not text.startswith(_CHANGING)]
    text = "\n".join(text for text in kept if text)
    return [Message("system", text)] if text else [], len(blocks) - len(kept)


def _messages(message: InputMessage, where: str) -> list[Message]:
    """Return a message; the results of tools in it are messages of their own, before its text."""
    role, content = message.role, message.content
    if role not in ("user", "assistant", "system"):
        raise ApiError(400, f"{where}: there is no role {role[:40]!r}. Use user or assistant.", param=f"{where}.role")
    if isinstance(content, str):
        return [Message(role, content)]  # type: ignore[arg-type]
    try:
        return _from_blocks(role, content, where)
    except UsageError as error:
        raise ApiError(400, f"{where}: {error}", param=where) from None


def _from_blocks(role: str, blocks: Sequence[Block], where: str) -> list[Message]:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    results: list[Message] = []
    for number, block in enumerate(blocks):
        place = f"{where}.content.{number}"
        if block.type == "text":
            texts.append(_text(block, place))
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type == "redacted_thinking":
            continue
        elif block.type == "tool_use":
            calls.append(ToolCall(block.name or "", block.input or {}, block.id or ""))
        elif block.type == "tool_result":
            results.append(Message("tool", _result(block, place), tool_call_id=block.tool_use_id or ""))
        elif block.type == "document" and block.source is not None and block.source.type == "text":
            title = f"{block.title}:\n" if block.title else ""
            texts.append(title + (block.source.data or ""))
        else:
            raise _refusal(block.type, place)
    text = "\n".join(text for text in texts if text)
    if role == "assistant":
        return [Message("assistant", text, None, tuple(calls), None, "\n".join(thoughts))]
    if calls or thoughts:
        raise ApiError(400, f"{where}: only the assistant calls tools and thinks.", param=where)
    return [*results, *([Message(role, text)] if text or not results else [])]  # type: ignore[arg-type]


def _text(block: Block, where: str) -> str:
    if block.type != "text":
        raise _refusal(block.type, where)
    if block.text is None:
        raise ApiError(400, f"{where} has no text.", param=f"{where}.text")
    return block.text


def _result(block: Block, where: str) -> str:
    content: Any = block.content
    if content is None or isinstance(content, str):
        text = content or ""
    elif isinstance(content, list):
        texts = []
        for part in content:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise _refusal(str(part.get("type")) if isinstance(part, dict) else "?", where)
            texts.append(part["text"])
        text = "\n".join(texts)
    else:
        text = msgspec.json.encode(content).decode()
    return f"Error: {text}" if block.is_error else text


def _refusal(kind: str, where: str) -> ApiError:
    what = {"image": "pictures", "document": "documents but text"}.get(kind, f"blocks of type {kind[:40]!r}")
    return ApiError(400, f"{where}: this model reads text only, no {what}. Send the text of it.", param=where)
