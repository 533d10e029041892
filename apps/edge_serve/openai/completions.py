"""POST /v1/completions: a text is continued, without the chat template."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec

from edge_serve.answers import Answer, answer
from edge_serve.asked import options_of
from edge_serve.call import Call
from edge_serve.errors import ApiError
from edge_serve.lora import lora_options
from edge_serve.openai.probabilities import completion_form
from edge_serve.openai.wire import CompletionRequest, sampling_of, timings, usage
from edge_serve.probabilities import check_number
from edge_serve.sampling import check_biases

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.reply import Reply

__all__ = ["create"]

_REFUSED = ("suffix",)
_encode = msgspec.json.encode


async def create(call: Call) -> None:
    """Continue a text."""
    body = await call.body(CompletionRequest, _REFUSED)
    _check(body)
    sampling = sampling_of(body, body.max_tokens)
    prompt, options = _prompt(body), options_of(call)
    if body.logprobs is not None:
        options["logprobs"] = check_number("logprobs", body.logprobs)

    def start(assistant: Assistant) -> Reply:
        check_biases(sampling, assistant)
        return assistant.complete(prompt, sampling, **options, **lora_options(body.lora, assistant))

    async with answer(call, body.model, start, is_streamed=bool(body.stream)) as found:
        shown = prompt if body.echo else ""
        if body.stream:
            with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
            await call.stream(_chunks(call, found, shown, with_usage), ping=b": ping\n\n")
        else:
            await found.wait(call)
            logprobs = completion_form(found.reply.logprobs, len(shown)) if body.logprobs is not None else None
            choices = [_choice(shown + found.reply.text, found.finish_reason(), logprobs)]
            await call.json({**_head(found), "choices": choices, "usage": usage(found.reply), "timings": timings(found.reply)})


async def _chunks(call: Call, found: Answer, shown: str, with_usage: bool) -> AsyncIterator[bytes]:
    head = _head(found)

    def chunk(text: str, reason: str | None = None, logprobs: Any = None, **more: Any) -> bytes:
        nothing_yet = {"usage": None} if with_usage else {}
        return b"data: " + _encode({**head, "choices": [_choice(text, reason, logprobs)], **nothing_yet, **more}) + b"\n\n"

    if shown:
        yield chunk(shown)
    n_chars = len(shown)
    async for _, event in found.events(call):
        if event is not None and event.kind == "text":
            yield chunk(event.text, logprobs=completion_form(event.logprobs, n_chars) if event.logprobs else None)
            n_chars += len(event.text)
    yield chunk("", found.finish_reason(), timings=timings(found.reply))
    if with_usage:
        yield b"data: " + _encode({**head, "choices": [], "usage": usage(found.reply)}) + b"\n\n"
    yield b"data: [DONE]\n\n"


def _choice(text: str, reason: str | None, logprobs: Any) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _head(found: Answer) -> dict[str, Any]:
    id, created = f"cmpl-{uuid.uuid4().hex}", int(time.time())
    head = {"id": id, "object": "text_completion", "created": created, "model": found.model}
    return {**head, "system_fingerprint": found.fingerprint}


def _prompt(body: CompletionRequest) -> str:
    prompt = body.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    if not isinstance(prompt, str):
        what = "token ids" if prompt and not isinstance(prompt[0], str) else "a list of prompts"
        raise ApiError(
            400, f"prompt is {what}; this server continues one text a request.", code="unsupported_value", param="prompt"
        )
    if not prompt:
        raise ApiError(400, "prompt is empty. Give at least one character.", code="invalid_value", param="prompt")
    return prompt


def _check(body: CompletionRequest) -> None:
    """Refuse what would be another answer if it were ignored."""
    refused = {
        "n": body.n is not None and body.n != 1,
        "best_of": body.best_of is not None and body.best_of > 1,
    }
    for param, is_refused in refused.items():
        if is_refused:
            raise ApiError(
                400, f"{param} is not supported by this server yet. Leave it out.", code="unsupported_parameter", param=param
            )
