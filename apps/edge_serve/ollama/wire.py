"""Fields of Ollama's requests, and parts that several responses share."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import msgspec

from edge.types import Sampling
from edge_serve.answers import notices_field
from edge_serve.asked import constraint_of
from edge_serve.bodies import type_fault
from edge_serve.documents import citations_field, docs_options
from edge_serve.errors import ApiError
from edge_serve.lora import AdapterScale
from edge_serve.probabilities import listed, logprob_options
from edge_serve.sampling import make_sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.types import TokenLogprob
    from edge_serve.answers import Answer
    from edge_serve.call import Call

__all__ = [
    "ChatRequest",
    "CommonRequest",
    "GenerateRequest",
    "ModelRequest",
    "end_of",
    "form_options",
    "head_of",
    "logprobs_of",
    "options_of_body",
]


class Options(msgspec.Struct):
    """How tokens are chosen; `num_predict` is the longest reply, and below 0 sets no limit.

    `lora` and `docs` are not Ollama's: the adapters of this request, and the collections that it searches. They are here, since
    Ollama's own clients send no other field.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    num_predict: int | None = None
    lora: list[AdapterScale] | None = None
    docs: str | list[str] | None = None


class CommonRequest(msgspec.Struct, kw_only=True):
    """Fields of chat and generate. Streams unless told otherwise, as Ollama does."""

    model: str = ""
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class Function(msgspec.Struct):
    """The function of a call."""

    name: str
    arguments: dict[str, Any] = {}


class ToolCall(msgspec.Struct):
    """A call that the assistant made earlier."""

    function: Function
    id: str = ""


class InputMessage(msgspec.Struct):
    """A message of a request."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class FunctionParam(msgspec.Struct):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class ToolParam(msgspec.Struct):
    """A tool."""

    function: FunctionParam
    type: str = "function"


class ChatRequest(CommonRequest, kw_only=True):
    """Of POST /api/chat."""

    messages: list[InputMessage] | None = None
    tools: list[ToolParam] | None = None


class GenerateRequest(CommonRequest, kw_only=True):
    """Of POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    images: list[Any] | None = None
    raw: bool | None = None


class ModelRequest(msgspec.Struct):
    """Of requests about one model."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


def options_of_body(call: Call, body: CommonRequest) -> tuple[Sampling, list[AdapterScale] | None, dict[str, Any]]:
    """Return how tokens are chosen, the adapters of the request, and the options of a reply that rests on documents.

    Options that nobody reads are named as ignored.

    Raises:
        ApiError: a value is out of its range.
    """
    given = body.options or {}
    try:
        options = msgspec.convert(given, Options)
    except msgspec.ValidationError as error:
        raise ApiError(400, f"The options are wrong: {type_fault(error)}.", code="invalid_type", param="options") from None
    fields = {name: value for name, value in msgspec.structs.asdict(options).items() if name not in ("lora", "docs")}
    limit = fields.pop("num_predict")
    fields["max_tokens"] = None if limit is None or limit < 0 else limit
    unknown = [name for name in given if not hasattr(options, name) and name.isidentifier() and name.isascii()]
    call.record.ignored += [f"options.{name[:40]}" for name in unknown[:20]]
    sampling = make_sampling(fields, {"max_tokens": "num_predict"})
    return sampling, options.lora, docs_options(options.docs, call.service.settings.server.docs)


def form_options(body: CommonRequest) -> dict[str, Any]:
    """Return the options for the form of a reply, for thinking, and for logprobs.

    Raises:
        ApiError: the form cannot be kept.
    """
    options: dict[str, Any] = {}
    if body.format == "json":
        options = constraint_of("json_object", None, "format")
    elif body.format:
        options = constraint_of("json_schema", body.format, "format", strict=False)
    if body.think is not None:
        options["think"] = bool(body.think)
    return options | logprob_options(bool(body.logprobs), body.top_logprobs)


def head_of(model: str) -> dict[str, Any]:
    """Return what every response begins with."""
    return {"model": model, "created_at": datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")}


def end_of(call: Call, found: Answer) -> dict[str, Any]:
    """Return what the last response has besides its text. Durations are in nanoseconds."""
    usage, timing = found.reply.usage, found.reply.timing
    reason = "length" if found.finish_reason() == "length" else "stop"
    load_ms = call.record.load_s * 1000
    return {
        "done": True,
        "done_reason": reason,
        "total_duration": int((timing.total_ms + load_ms) * 1e6),
        "load_duration": int(load_ms * 1e6),
        "prompt_eval_count": usage.n_prompt,
        "prompt_eval_duration": int(timing.prefill_ms * 1e6),
        "eval_count": usage.n_generated,
        "eval_duration": int(timing.decode_ms * 1e6),
        **citations_field(found.reply.citations),
        **notices_field(found.reply),
    }


def logprobs_of(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Return the field with the logprobs of tokens, if there are any."""
    return {"logprobs": listed(tokens)} if tokens else {}
