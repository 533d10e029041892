"""POST /api/generate: one prompt, with the chat template, or raw."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

from edge.types import Message
from edge_serve.answers import Answer, answer
from edge_serve.asked import options_of
from edge_serve.call import Call
from edge_serve.errors import ApiError
from edge_serve.lora import lora_options
from edge_serve.ollama.chat import NDJSON
from edge_serve.ollama.models import load_or_unload
from edge_serve.ollama.wire import GenerateRequest, end_of, form_options, head_of, logprobs_of, options_of_body

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.reply import Reply

__all__ = ["generate"]

_REFUSED = ("suffix", "template", "context")
_encode = msgspec.json.encode


async def generate(call: Call) -> None:
    """Answer a prompt."""
    body = await call.body(GenerateRequest, _REFUSED)
    if body.images:
        raise ApiError(400, "images: this model reads text only. Send the text of them.")
    (sampling, lora, documents), form = options_of_body(call, body), form_options(body)
    if not body.prompt:
        await load_or_unload(call, body, {"response": ""})
        return
    if body.raw and documents:
        raise ApiError(400, "docs: a raw prompt has no question to search for. Leave raw or docs out.", param="docs")
    prompt, options = body.prompt, {**options_of(call), **form, **documents}
    messages = [*([Message("system", body.system)] if body.system else []), Message("user", prompt)]

    def start(assistant: Assistant) -> Reply:
        chosen = {**options, **lora_options(lora, assistant)}
        return assistant.complete(prompt, sampling, **chosen) if body.raw else assistant.generate(messages, sampling, **chosen)

    is_streamed = body.stream is not False
    async with answer(call, body.model, start, is_streamed=is_streamed) as found:
        if is_streamed:
            await call.stream(_chunks(call, found), NDJSON)
        else:
            await found.wait(call)
            thoughts = {"thinking": found.reply.reasoning} if found.reply.reasoning else {}
            more = {**thoughts, **logprobs_of(found.reply.logprobs), **end_of(call, found)}
            await call.json({**head_of(found.model), "response": found.reply.text, **more})


async def _chunks(call: Call, found: Answer) -> AsyncIterator[bytes]:
    def chunk(text: str, **more: Any) -> bytes:
        return _encode({**head_of(found.model), "response": text, "done": False, **more}) + b"\n"

    async for _, event in found.events(call):
        if event is None:
            continue
        if event.kind == "text" and (event.text or event.logprobs):
            yield chunk(event.text, **logprobs_of(event.logprobs))
        elif event.kind == "reasoning":
            yield chunk("", thinking=event.text, **logprobs_of(event.logprobs))
    yield chunk("", **end_of(call, found))
