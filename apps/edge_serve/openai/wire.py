"""Fields of OpenAI's requests, and parts that several responses share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge.types import Sampling
from edge_serve import limits
from edge_serve.errors import ApiError
from edge_serve.lora import AdapterScale
from edge_serve.sampling import make_sampling

if TYPE_CHECKING:
    from edge.reply import Reply

__all__ = [
    "ChatRequest",
    "CommonRequest",
    "CompletionRequest",
    "StreamOptions",
    "check_choices",
    "sampling_of",
    "timings",
    "usage",
]


class StreamOptions(msgspec.Struct):
    """Of a streamed response.

    Attributes:
        include_usage: a chunk with the tokens comes last.
    """

    include_usage: bool | None = None


class CommonRequest(msgspec.Struct, kw_only=True):
    """Fields of chat completions and completions, with those of llama.cpp and vLLM for more of the sampler.

    Attributes:
        model: name of the model; None is the default one.
        others: as OpenAI and `edge.Sampling` have them.
    """

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    lora: list[AdapterScale] | None = None
    # Read by nobody here, and known, so that clients that always send them are not told of them at every request.
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatRequest(CommonRequest, kw_only=True):
    """Of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    docs: str | list[str] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[ToolParam] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[str] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: TemplateArguments | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    escalate: bool | None = None


class CompletionRequest(CommonRequest, kw_only=True):
    """Of POST /v1/completions."""

    prompt: str | list[Any]
    echo: bool | None = None
    best_of: int | None = None
    logprobs: int | None = None


class JsonSchema(msgspec.Struct):
    """A schema of an answer."""

    name: str = ""
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    """The form of an answer. `schema` is where llama.cpp has it."""

    type: str
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | None = None


class FunctionParam(msgspec.Struct):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolParam(msgspec.Struct):
    """A tool."""

    function: FunctionParam | None = None
    type: str = "function"


class TemplateArguments(msgspec.Struct):
    """What llama.cpp and vLLM hand to the chat template."""

    enable_thinking: bool | None = None


class Part(msgspec.Struct):
    """A part of a message's content."""

    type: str
    text: str | None = None
    refusal: str | None = None


class Function(msgspec.Struct):
    """The function of a call, its arguments as the text of a JSON object."""

    name: str
    arguments: str = ""


class Call(msgspec.Struct):
    """A call that the assistant made earlier."""

    function: Function
    id: str = ""
    type: str = "function"


class ChatMessage(msgspec.Struct):
    """A message of a request."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


def sampling_of(body: CommonRequest, max_tokens: int | None, limit_name: str = "max_tokens") -> Sampling:
    """Return how tokens are chosen.

    Args:
        body: the request.
        max_tokens: length of the longest reply, in tokens.
        limit_name: the field that says so.

    Raises:
        ApiError: a value is out of its range.
    """
    same = (
        "temperature", "top_p", "top_k", "min_p", "typical_p", "repeat_last_n", "frequency_penalty", "presence_penalty",
        "dry_multiplier", "dry_base", "dry_allowed_length", "xtc_probability", "xtc_threshold", "seed", "stop", "logit_bias",
    )  # fmt: skip
    fields = {name: getattr(body, name) for name in same}
    fields["max_tokens"] = max_tokens
    penalty = body.repeat_penalty if body.repeat_penalty is not None else body.repetition_penalty
    names = {
        "max_tokens": limit_name,
        "repeat_penalty": "repeat_penalty" if body.repeat_penalty is not None else "repetition_penalty",
    }
    return make_sampling({**fields, "repeat_penalty": penalty}, names)


def check_choices(n: int | None) -> int:
    """Return how many replies are asked for.

    Raises:
        ApiError: more than this server gives.
    """
    if n is not None and not 1 <= n <= limits.CHOICES:
        raise ApiError(400, f"n is {n}; use 1 to {limits.CHOICES}.", code="invalid_value", param="n")
    return n or 1


def usage(*replies: Reply) -> dict[str, Any]:
    """Return the tokens of replies to one prompt: the prompt counts once, the replies all."""
    n_prompt = replies[0].usage.n_prompt
    n_generated = sum(reply.usage.n_generated for reply in replies)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_generated,
        "total_tokens": n_prompt + n_generated,
        "prompt_tokens_details": {"cached_tokens": replies[0].usage.n_reused},
    }


def timings(reply: Reply) -> dict[str, Any]:
    """Return times and speeds of a reply, under the names of llama.cpp's server."""
    usage, timing = reply.usage, reply.timing
    n_computed = usage.n_computed
    return {
        "cache_n": usage.n_reused,
        "prompt_n": n_computed,
        "prompt_ms": round(timing.prefill_ms, 3),
        "prompt_per_token_ms": round(timing.prefill_ms / n_computed, 3) if n_computed else 0.0,
        "prompt_per_second": round(n_computed * 1000 / timing.prefill_ms, 3) if timing.prefill_ms else 0.0,
        "predicted_n": usage.n_generated,
        "predicted_ms": round(timing.decode_ms, 3),
        "predicted_per_token_ms": round(timing.decode_ms / usage.n_generated, 3) if usage.n_generated else 0.0,
        "predicted_per_second": round(timing.tokens_per_s(usage.n_generated), 3),
        "queue_ms": round(timing.queue_ms, 3),
        "first_token_ms": round(timing.first_token_ms, 3),
    }
