"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from edge_serve.answers import Answer, answer
from edge_serve.call import Call
from edge_serve.errors import ApiError
from edge_serve.openai.messages import messages_of
from edge_serve.openai.wire import ChatRequest, sampling_of, timings, usage
from edge_serve.sampling import check_biases

__all__ = ["create"]

_REFUSED = ("audio", "functions", "function_call", "web_search_options", "moderation")
_encode = msgspec.json.encode


async def create(call: Call) -> None:
    """Answer a conversation."""
    body = await call.body(ChatRequest, _REFUSED)
    messages = messages_of(body.messages)
    _check(body)
    newer = body.max_completion_tokens
    name = "max_tokens" if newer is None else "max_completion_tokens"
    sampling = sampling_of(body, newer if newer is not None else body.max_tokens, name)

    def start(assistant: Any) -> Any:
        check_biases(sampling, assistant)
        space, timeout_s = call.caller.namespace or None, call.service.settings.server.timeout_s
        return assistant.generate(messages, sampling, cache_namespace=space, timeout_s=timeout_s)

    async with answer(call, body.model, start, is_streamed=bool(body.stream)) as found:
        if body.stream:
            with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            await call.stream(_chunks(call, found, with_usage), ping=b": ping\n\n")
        else:
            text = await found.text(call)
            message = {"role": "assistant", "content": text, "refusal": None}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": found.finish_reason}
            head = _head("chat.completion", found)
            await call.json({**head, "choices": [choice], "usage": usage(found.reply), **_extras(found)})


async def _chunks(call: Call, found: Answer, with_usage: bool) -> AsyncIterator[bytes]:
    head = _head("chat.completion.chunk", found)

    def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        nothing_yet = {"usage": None} if with_usage else {}
        return b"data: " + _encode({**head, "choices": [choice], **nothing_yet, **more}) + b"\n\n"

    yield chunk({"role": "assistant", "content": "", "refusal": None})
    async for event in found.events(call):
        if event.kind == "text" and event.text:
            yield chunk({"content": event.text})
        elif event.kind == "reasoning":
            yield chunk({"reasoning_content": event.text})
    yield chunk({}, found.finish_reason, **_extras(found))
    if with_usage:
        yield b"data: " + _encode({**head, "choices": [], "usage": usage(found.reply)}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _head(kind: str, found: Answer) -> dict[str, Any]:
    id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    return {"id": id, "object": kind, "created": created, "model": found.model, "system_fingerprint": found.fingerprint}


def _extras(found: Answer) -> dict[str, Any]:
    """Return what OpenAI does not have: times, and what the user should know about the reply."""
    extras: dict[str, Any] = {"timings": timings(found.reply)}
    return {**extras, "notices": list(found.reply.notices)} if found.reply.notices else extras


def _check(body: ChatRequest) -> None:
    """Refuse what would be another answer if it were ignored."""

    def refuse(param: str, what: str) -> None:
        raise ApiError(
            400, f"{what} is not supported by this server yet. Leave {param} out.", code="unsupported_parameter", param=param
        )

    if body.tools and body.tool_choice != "none":
        refuse("tools", "Calling tools")
    if body.n is not None and body.n != 1:
        refuse("n", "More than one choice")
    if body.logprobs:
        refuse("logprobs", "Reporting probabilities")
    if body.response_format is not None and body.response_format.type != "text":
        refuse("response_format", f"The form {body.response_format.type[:40]!r}")
    if body.modalities and body.modalities != ["text"]:
        refuse("modalities", "Anything but text")
