"""What OpenAI's endpoints answer, for the description at /openapi.json. The tests hold every answer against it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

__all__ = [
    "Chat",
    "Citation",
    "Completion",
    "Count",
    "Detokenized",
    "Embeddings",
    "Error",
    "Model",
    "Models",
    "Response",
    "Tokenized",
]

FinishReason = Literal["stop", "length", "tool_calls"]


class _Described(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class ErrorBody(msgspec.Struct, kw_only=True):
    """What went wrong; some errors have more fields, such as n_prompt_tokens and n_ctx."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(_Described):
    """An error."""

    error: ErrorBody


class Model(_Described):
    """A model, with Anthropic's fields, too; the last two fields are those of one that is loaded."""

    id: str
    object: Literal["model"]
    type: Literal["model"]
    display_name: str
    lifecycle: Literal["active"]
    created: int
    created_at: str
    owned_by: str
    status: Literal["loaded", "loading", "not loaded"]
    format: str
    task: Literal["chat", "embeddings"]
    context_window: int | msgspec.UnsetType = msgspec.UNSET
    memory_bytes: int | msgspec.UnsetType = msgspec.UNSET


class Models(_Described):
    """The models that can be asked for, the default first."""

    object: Literal["list"]
    data: list[Model]
    has_more: bool
    first_id: str | msgspec.UnsetType = msgspec.UNSET
    last_id: str | msgspec.UnsetType = msgspec.UNSET


class CachedTokens(_Described):
    """Tokens of the prompt that were in the KV cache."""

    cached_tokens: int


class Usage(_Described):
    """Tokens of prompt and reply."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Timings(_Described):
    """Times in milliseconds and speeds in tokens a second, under the names of llama.cpp's server."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float
    queue_ms: float
    first_token_ms: float


class Token(_Described):
    """A token, its natural log probability, and its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenToken(Token):
    """A token of the reply, and the likeliest in its place."""

    top_logprobs: list[Token]


class ChatLogprobs(_Described):
    """Log probabilities of the reply's tokens."""

    content: list[ChosenToken]
    refusal: None


class CalledFunction(_Described):
    """The function of a call, its arguments as the text of a JSON object."""

    name: str
    arguments: str


class ToolCall(_Described):
    """A call for the client to carry out."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Citation(_Described):
    """A passage of a document that the reply may refer to by its number, as [1]. Lines and pages are counted from 1."""

    number: int
    collection: str
    file: str
    title: str
    heading: str
    lines: list[int] | None
    page: int | None
    text: str
    score: float


class Message(_Described):
    """The reply; without a text where the model calls tools only. `citations` is this server's own (`docs`)."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET
    citations: list[Citation] | msgspec.UnsetType = msgspec.UNSET


class ChatChoice(_Described):
    """One of the replies."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Chat(_Described):
    """A reply to a conversation. `timings`, `notices`, `answered_by` and `escalated` are this server's own."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    timings: Timings
    notices: list[str] | msgspec.UnsetType = msgspec.UNSET
    answered_by: str | msgspec.UnsetType = msgspec.UNSET
    escalated: str | msgspec.UnsetType | None = msgspec.UNSET


class CompletionLogprobs(_Described):
    """Log probabilities of the tokens, each list as long as the others."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(_Described):
    """A text that continues the prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class Completion(_Described):
    """A text that was continued."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage
    timings: Timings


class ResponseUsage(_Described):
    """Tokens of input and output."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class Response(_Described):
    """A response; `output` has messages, thoughts and calls. `citations` (`docs`) and `notices` are this server's own."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete", "failed", "in_progress"]
    error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, str | None]
    store: bool
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_p: float | None
    truncation: str
    usage: ResponseUsage | None
    citations: list[Citation] | msgspec.UnsetType = msgspec.UNSET
    notices: list[str] | msgspec.UnsetType = msgspec.UNSET


class Count(_Described):
    """The tokens of a prompt."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class Embedding(_Described):
    """The vector of a text: numbers, or base64 of float32 values, little-endian."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(_Described):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(_Described):
    """Vectors, in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Piece(_Described):
    """A token id and its text."""

    id: int
    piece: str


class Tokenized(_Described):
    """The token ids of a text, with `with_pieces` each with its text."""

    tokens: list[int | Piece]
    count: int
    max_model_len: int


class Detokenized(_Described):
    """The text of token ids, under llama.cpp's name and under vLLM's."""

    content: str
    prompt: str
