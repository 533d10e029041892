"""What Anthropic's endpoints answer, for the description at /openapi.json. The tests hold every answer against it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edge_serve.openai.described import Citation

__all__ = ["Count", "Error", "Message"]


class _Described(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class ErrorBody(msgspec.Struct, kw_only=True):
    """What went wrong; some errors have more fields, such as n_prompt_tokens and n_ctx."""

    type: str
    message: str


class Error(_Described):
    """An error."""

    type: Literal["error"]
    error: ErrorBody
    request_id: str


class Usage(_Described):
    """Tokens; those of the prompt that were in the KV cache do not count as input."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int


class TextBlock(_Described, tag_field="type", tag="text"):
    """A text."""

    text: str
    citations: None


class ThinkingBlock(_Described, tag_field="type", tag="thinking"):
    """What the model thought."""

    thinking: str
    signature: str


class ToolUseBlock(_Described, tag_field="type", tag="tool_use"):
    """A call for the client to carry out."""

    id: str
    name: str
    input: dict[str, Any]


class Message(_Described):
    """A reply. `citations` (`docs`) and `notices` are this server's own."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[TextBlock | ThinkingBlock | ToolUseBlock]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]
    stop_sequence: str | None
    usage: Usage
    citations: list[Citation] | msgspec.UnsetType = msgspec.UNSET
    notices: list[str] | msgspec.UnsetType = msgspec.UNSET


class Count(_Described):
    """The tokens of a prompt."""

    input_tokens: int
