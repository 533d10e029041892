"""What each endpoint does, reads and answers, for the description at /openapi.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edge_serve import described
from edge_serve.anthropic import described as anthropic
from edge_serve.anthropic import wire as anthropic_wire
from edge_serve.ollama import described as ollama
from edge_serve.ollama import embed as ollama_embed
from edge_serve.ollama import wire as ollama_wire
from edge_serve.openai import described as openai
from edge_serve.openai import embeddings, response_wire, tokens
from edge_serve.openai import wire as openai_wire

__all__ = ["OPERATIONS", "Operation"]

SSE = "text/event-stream"
NDJSON = "application/x-ndjson"


@dataclass(frozen=True, slots=True)
class Operation:
    """An endpoint.

    Attributes:
        group: "OpenAI", "Anthropic", "Ollama" or "Edge"; also what the names of its types begin with.
        summary: what it does, in a sentence.
        reads: struct of its body; None reads none.
        answers: struct of its answer, or the type of a content that is not JSON.
        streams: type of the content where the answer is streamed; "" never is.
        is_refused: it is there so that clients are told clearly; the answer is always an error 501.
        may_be_busy: 503 is one of its answers, not an error.
        is_open: it asks for no key.
        example: a body.
    """

    group: str
    summary: str
    reads: type | None = None
    answers: type | str | None = None
    streams: str = ""
    is_refused: bool = False
    may_be_busy: bool = False
    is_open: bool = False
    example: dict[str, Any] = field(default_factory=dict)


def _managing() -> Iterator[tuple[tuple[str, str], Operation]]:
    for method, name in (("POST", "pull"), ("POST", "push"), ("POST", "create"), ("POST", "copy"), ("DELETE", "delete")):
        yield (method, f"/api/{name}"), Operation("Ollama", f"Not offered: {name} a model.", is_refused=True)


_ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}
_TOKENIZE = Operation(
    "OpenAI",
    "Give the token ids of a text.",
    tokens.TokenizeRequest,
    openai.Tokenized,
    example={"content": "one two", "parse_special": False},
)
_DETOKENIZE = Operation(
    "OpenAI", "Give the text of token ids.", tokens.DetokenizeRequest, openai.Detokenized, example={"tokens": [1, 2]}
)

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("GET", "/"): Operation("Edge", "Show the page for people.", answers="text/html", is_open=True),
    ("GET", "/openapi.json"): Operation("Edge", "Describe these endpoints.", answers="application/json", is_open=True),
    ("GET", "/status"): Operation("Edge", "Give the state of the server.", answers=described.Status),
    ("GET", "/health"): Operation(
        "Edge", "Say whether requests are answered at once.", answers=described.Health, may_be_busy=True, is_open=True
    ),
    ("GET", "/metrics"): Operation("Edge", "Give the counters to Prometheus.", answers="text/plain"),
    ("POST", "/v1/chat/completions"): Operation(
        "OpenAI",
        "Answer a conversation.",
        openai_wire.ChatRequest,
        openai.Chat,
        SSE,
        example={**_ASK, "max_tokens": 20, "temperature": 0.5},
    ),
    ("POST", "/v1/chat/completions/input_tokens"): Operation(
        "OpenAI", "Count the tokens of a conversation.", openai_wire.ChatRequest, openai.Count, example=_ASK
    ),
    ("POST", "/v1/completions"): Operation(
        "OpenAI",
        "Continue a text, without the chat template.",
        openai_wire.CompletionRequest,
        openai.Completion,
        SSE,
        example={"prompt": "Once upon a time", "max_tokens": 20},
    ),
    ("POST", "/v1/responses"): Operation(
        "OpenAI",
        "Answer an input; nothing is stored.",
        response_wire.ResponsesRequest,
        openai.Response,
        SSE,
        example={"input": [{"role": "user", "content": "Say hello."}], "max_output_tokens": 20},
    ),
    ("POST", "/v1/responses/input_tokens"): Operation(
        "OpenAI", "Count the tokens of an input.", response_wire.ResponsesRequest, openai.Count, example={"input": "Say hello."}
    ),
    ("GET", "/v1/responses/{id}"): Operation("OpenAI", "Not there, since nothing is stored: always an error 404."),
    ("GET", "/lora-adapters"): Operation("OpenAI", "List the adapters of the default model.", answers="application/json"),
    ("GET", "/v1/models"): Operation("OpenAI", "List the models that can be asked for.", answers=openai.Models),
    ("GET", "/v1/models/{id}"): Operation("OpenAI", "Show one model.", answers=openai.Model),
    ("POST", "/v1/messages"): Operation(
        "Anthropic",
        "Answer a conversation.",
        anthropic_wire.MessagesRequest,
        anthropic.Message,
        SSE,
        example={**_ASK, "system": [{"type": "text", "text": "Be brief."}], "max_tokens": 20},
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "Anthropic", "Count the tokens of a prompt.", anthropic_wire.CountRequest, anthropic.Count, example=_ASK
    ),
    ("POST", "/api/chat"): Operation(
        "Ollama",
        "Answer a conversation.",
        ollama_wire.ChatRequest,
        ollama.Chat,
        NDJSON,
        example={**_ASK, "options": {"num_predict": 20}, "stream": False},
    ),
    ("POST", "/api/generate"): Operation("Ollama", "Answer a prompt.", ollama_wire.GenerateRequest, ollama.Generated, NDJSON),
    ("GET", "/api/tags"): Operation("Ollama", "List the models that can be asked for.", answers=ollama.Models),
    ("GET", "/api/ps"): Operation("Ollama", "List the models that are loaded.", answers=ollama.Running),
    ("POST", "/api/show"): Operation("Ollama", "Describe a model.", ollama_wire.ModelRequest, ollama.Shown),
    ("GET", "/api/version"): Operation("Ollama", "Give the version of this server.", answers=ollama.Version),
    ("POST", "/api/embed"): Operation(
        "Ollama", "Turn texts into vectors.", ollama_embed.EmbedRequest, ollama.Embedded, example={"input": ["one", "two"]}
    ),
    ("POST", "/api/embeddings"): Operation(
        "Ollama", "Turn a text into a vector.", ollama_embed.EmbedOneRequest, ollama.EmbeddedOne, example={"prompt": "one"}
    ),
    ("POST", "/v1/embeddings"): Operation(
        "OpenAI", "Turn texts into vectors.", embeddings.EmbeddingsRequest, openai.Embeddings, example={"input": "one"}
    ),
    **dict(_managing()),
    ("POST", "/tokenize"): _TOKENIZE,
    ("POST", "/detokenize"): _DETOKENIZE,
    ("POST", "/v1/tokenize"): _TOKENIZE,
    ("POST", "/v1/detokenize"): _DETOKENIZE,
}
"""Method and path -> operation: one for each route."""
