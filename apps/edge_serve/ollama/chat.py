"""POST /api/chat."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edge.errors import UsageError
from edge.types import Message
from edge.types import ToolCall as Made
from edge_serve import limits
from edge_serve.answers import Answer, answer
from edge_serve.asked import ToolSpec, options_of, tool_options
from edge_serve.call import Call
from edge_serve.errors import ApiError
from edge_serve.lora import lora_options
from edge_serve.ollama.models import load_or_unload
from edge_serve.ollama.wire import ChatRequest, InputMessage, end_of, form_options, head_of, logprobs_of, options_of_body

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.reply import Reply

__all__ = ["NDJSON", "chat"]

NDJSON = b"application/x-ndjson"
_encode = msgspec.json.encode


async def chat(call: Call) -> None:
    """Answer a conversation."""
    body = await call.body(ChatRequest)
    (sampling, lora, documents), form = options_of_body(call, body), form_options(body)
    if not body.messages:
        await load_or_unload(call, body, {"message": {"role": "assistant", "content": ""}})
        return
    messages = _messages(body.messages)
    specs = [
        ToolSpec(f"tools[{number}]", tool.function.name, tool.function.description, tool.function.parameters)
        for number, tool in enumerate(body.tools or ())
    ]
    options = {**options_of(call), **form, **tool_options(specs), **documents}

    def start(assistant: Assistant) -> Reply:
        return assistant.generate(messages, sampling, **options, **lora_options(lora, assistant))

    is_streamed = body.stream is not False
    async with answer(call, body.model, start, is_streamed=is_streamed) as found:
        if is_streamed:
            await call.stream(_chunks(call, found), NDJSON)
        else:
            await found.wait(call)
            reply = found.reply
            message: dict[str, Any] = {"role": "assistant", "content": reply.text}
            if reply.reasoning:
                message["thinking"] = reply.reasoning
            if reply.tool_calls:
                message["tool_calls"] = [_call(made) for made in reply.tool_calls]
            await call.json({**head_of(found.model), "message": message, **logprobs_of(reply.logprobs), **end_of(call, found)})


async def _chunks(call: Call, found: Answer) -> AsyncIterator[bytes]:
    def chunk(message: dict[str, Any], **more: Any) -> bytes:
        whole = {**head_of(found.model), "message": {"role": "assistant", "content": "", **message}, "done": False, **more}
        return _encode(whole) + b"\n"

    async for _, event in found.events(call):
        if event is None:
            continue
        if event.kind == "text" and (event.text or event.logprobs):
            yield chunk({"content": event.text}, **logprobs_of(event.logprobs))
        elif event.kind == "reasoning":
            yield chunk({"thinking": event.text}, **logprobs_of(event.logprobs))
        elif event.kind == "tool_call":
            yield chunk({"tool_calls": [_call(event.call)]})
    yield chunk({}, **end_of(call, found))


def _call(made: Made) -> dict[str, Any]:
    return {"id": made.id, "function": {"name": made.name, "arguments": dict(made.arguments)}}


def _messages(messages: Sequence[InputMessage]) -> list[Message]:
    if len(messages) > limits.MESSAGES:
        raise ApiError(400, f"A request has {limits.MESSAGES:,} messages at most.")
    return [_message(message, f"messages[{number}]") for number, message in enumerate(messages)]


def _message(message: InputMessage, where: str) -> Message:
    if message.images:
        raise ApiError(400, f"{where}: this model reads text only, no pictures. Send the text of them.")
    calls = tuple(Made(one.function.name, one.function.arguments, one.id) for one in message.tool_calls or ())
    role: Any = message.role
    try:
        return Message(role, message.content or "", message.tool_name, calls, message.tool_call_id, message.thinking or "")
    except UsageError as error:
        raise ApiError(400, f"{where}: {error}") from None
