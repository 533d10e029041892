"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

from edge_serve.answers import Answer, answer, hold_model, notices_field
from edge_serve.asked import options_of
from edge_serve.call import Call
from edge_serve.documents import citations_field, citations_of, docs_options
from edge_serve.errors import ApiError
from edge_serve.lora import lora_options
from edge_serve.openai.messages import messages_of
from edge_serve.openai.options import chat_options
from edge_serve.openai.probabilities import chat_form
from edge_serve.openai.wire import ChatRequest, check_choices, sampling_of, timings, usage
from edge_serve.probabilities import logprob_options
from edge_serve.sampling import check_biases

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.reply import Reply
    from edge.types import Sampling, ToolCall

__all__ = ["count", "create"]

_REFUSED = ("audio", "functions", "function_call", "web_search_options", "moderation", "continue_final_message")
_encode = msgspec.json.encode


async def count(call: Call) -> None:
    """Count the tokens of a conversation as the model would read it."""
    body = await call.body(ChatRequest, _REFUSED)
    messages, options = messages_of(body.messages), chat_options(body)
    _check(body)
    _sampling(body)
    async with hold_model(call, body.model) as (assistant, _):
        size = await assistant.acount(messages, **options)
        await call.json({"object": "response.input_tokens", "input_tokens": size.n_tokens})


async def create(call: Call) -> None:
    """Answer a conversation."""
    body = await call.body(ChatRequest, _REFUSED)
    messages = messages_of(body.messages)
    _check(body)
    sampling = _sampling(body)
    documents = docs_options(body.docs, call.service.settings.server.docs)
    options = {**options_of(call), **chat_options(body), **documents}
    n = body.n or 1
    options |= logprob_options(bool(body.logprobs), body.top_logprobs)
    if body.escalate is not None:
        options["escalate"] = body.escalate

    def start(assistant: Assistant) -> list[Reply]:
        check_biases(sampling, assistant)
        chosen = {**options, **lora_options(body.lora, assistant)}
        if n == 1:
            return [assistant.generate(messages, sampling, **chosen)]
        return assistant.generate_choices(messages, n, sampling, **chosen)

    async with answer(call, body.model, start, is_streamed=bool(body.stream)) as found:
        if body.stream:
            with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            await call.stream(_chunks(call, found, with_usage), ping=b": ping\n\n")
        else:
            await found.wait(call)
            choices = [_choice(found, index, bool(body.logprobs)) for index in range(n)]
            head = _head("chat.completion", found)
            await call.json({**head, "choices": choices, "usage": usage(*found.replies), **_extras(found)})


def _choice(found: Answer, index: int, with_logprobs: bool) -> dict[str, Any]:
    reply = found.replies[index]
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = [_tool_call(call) for call in reply.tool_calls]
        message["content"] = reply.text or None
    message |= citations_field(reply.citations)
    logprobs = chat_form(reply.logprobs) if with_logprobs else None
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": found.finish_reason(index)}


async def _chunks(call: Call, found: Answer, with_usage: bool) -> AsyncIterator[bytes]:
    head = _head("chat.completion.chunk", found)

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        nothing_yet = {"usage": None} if with_usage else {}
        return b"data: " + _encode({**head, "choices": [choice], **nothing_yet, **more}) + b"\n\n"

    for index in range(len(found.replies)):
        yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
    n_calls = [0] * len(found.replies)
    async for index, event in found.events(call):
        if event is None:
            extras = _extras(found) if len(found.replies) == 1 else {}
            yield chunk(index, {}, found.finish_reason(index), **extras)
        elif event.kind in ("text", "reasoning"):
            name = "content" if event.kind == "text" else "reasoning_content"
            yield chunk(index, {name: event.text}, logprobs=chat_form(event.logprobs) if event.logprobs else None)
        elif event.kind == "passages" and event.citations:
            yield chunk(index, {"citations": citations_of(event.citations)})
        elif event.kind == "tool_call":
            yield chunk(index, {"tool_calls": [{"index": n_calls[index], **_tool_call(event.call)}]})
            n_calls[index] += 1
    if with_usage:
        about = {"usage": usage(*found.replies), "timings": timings(found.reply)}
        yield b"data: " + _encode({**head, "choices": [], **about}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _tool_call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.json}}


def _head(kind: str, found: Answer) -> dict[str, Any]:
    id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
    return {"id": id, "object": kind, "created": created, "model": found.model, "system_fingerprint": found.fingerprint}


def _extras(found: Answer) -> dict[str, Any]:
    """Return what OpenAI does not have: times, who answered, and what the user should know about the reply."""
    reply = found.reply
    extras: dict[str, Any] = {"timings": timings(reply)}
    if found.assistant.escalation is not None:
        extras |= {"answered_by": reply.answered_by, "escalated": reply.escalated or None}
    return {**extras, **notices_field(reply)}


def _sampling(body: ChatRequest) -> Sampling:
    newer = body.max_completion_tokens
    name = "max_tokens" if newer is None else "max_completion_tokens"
    return sampling_of(body, newer if newer is not None else body.max_tokens, name)


def _check(body: ChatRequest) -> None:
    """Refuse what would be another answer if it were ignored."""
    check_choices(body.n)
    logprob_options(bool(body.logprobs), body.top_logprobs)
    if body.modalities and body.modalities != ["text"]:
        message = "This server answers in text only. Leave modalities out."
        raise ApiError(400, message, code="unsupported_parameter", param="modalities")
