"""Fields of Anthropic's requests."""

from __future__ import annotations

from typing import Any

import msgspec

from edge_serve.lora import AdapterScale

__all__ = ["Block", "CountRequest", "InputMessage", "MessagesRequest", "Source"]


class Source(msgspec.Struct):
    """Of a picture or document."""

    type: str = ""
    data: str | None = None
    content: Any = None


class Block(msgspec.Struct):
    """A block of a message, of any type; each type has its own fields."""

    type: str
    text: str | None = None
    thinking: str | None = None
    source: Source | None = None
    title: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Any = None
    is_error: bool | None = None


class InputMessage(msgspec.Struct):
    """A message of a request."""

    role: str
    content: str | list[Block]


class Thinking(msgspec.Struct):
    """Whether the model's thinking is shown."""

    type: str
    budget_tokens: int | None = None


class ToolParam(msgspec.Struct):
    """A tool that the client runs; others have a type of their own."""

    name: str = ""
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class Format(msgspec.Struct):
    """The form of an answer: a JSON schema."""

    type: str
    schema: dict[str, Any] | None = None


class OutputConfig(msgspec.Struct):
    """How the answer is written."""

    format: Format | None = None
    effort: str | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """Of POST /v1/messages/count_tokens."""

    messages: list[InputMessage]
    model: str | None = None
    system: str | list[Block] | None = None
    tools: list[ToolParam] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: Format | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """Of POST /v1/messages. `lora` and `docs` are not Anthropic's: the adapters of this request, and what it searches."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    lora: list[AdapterScale] | None = None
    docs: str | list[str] | None = None
