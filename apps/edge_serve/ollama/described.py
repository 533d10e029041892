"""What Ollama's endpoints answer, for the description at /openapi.json. The tests hold every answer against it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from edge_serve.openai.described import Citation

__all__ = ["Chat", "Embedded", "EmbeddedOne", "Error", "Generated", "Models", "Running", "Shown", "Version"]


class _Described(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    pass


class Error(_Described):
    """An error."""

    error: str


class CalledFunction(_Described):
    """The function of a call."""

    name: str
    arguments: dict[str, Any]


class MadeCall(_Described):
    """A call for the client to carry out."""

    id: str
    function: CalledFunction


class Message(_Described):
    """A reply."""

    role: Literal["assistant"]
    content: str
    thinking: str | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[MadeCall] | msgspec.UnsetType = msgspec.UNSET


class TokenProbability(_Described):
    """How likely a token was."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TokenProbability] | msgspec.UnsetType = msgspec.UNSET


class _End(_Described):
    model: str
    created_at: str
    done: bool
    done_reason: Literal["stop", "length", "load", "unload"]
    total_duration: int | msgspec.UnsetType = msgspec.UNSET
    load_duration: int | msgspec.UnsetType = msgspec.UNSET
    prompt_eval_count: int | msgspec.UnsetType = msgspec.UNSET
    prompt_eval_duration: int | msgspec.UnsetType = msgspec.UNSET
    eval_count: int | msgspec.UnsetType = msgspec.UNSET
    eval_duration: int | msgspec.UnsetType = msgspec.UNSET
    logprobs: list[TokenProbability] | msgspec.UnsetType = msgspec.UNSET
    citations: list[Citation] | msgspec.UnsetType = msgspec.UNSET
    notices: list[str] | msgspec.UnsetType = msgspec.UNSET


class Chat(_End, kw_only=True):
    """A reply to a conversation, not streamed. Durations are in nanoseconds; without a prompt there are none."""

    message: Message


class Generated(_End, kw_only=True):
    """A reply to a prompt, not streamed. Durations are in nanoseconds; without a prompt there are none."""

    response: str
    thinking: str | msgspec.UnsetType = msgspec.UNSET


class Details(_Described):
    """Of a model."""

    parent_model: str
    format: str
    family: str
    families: list[str]
    parameter_size: str
    quantization_level: str


class Model(_Described):
    """A model that can be asked for."""

    name: str
    model: str
    modified_at: str
    size: int
    digest: str
    details: Details


class Models(_Described):
    """The models that can be asked for."""

    models: list[Model]


class LoadedModel(Model):
    """A model that is loaded, and when it will be unloaded if nobody uses it."""

    size_vram: int
    expires_at: str
    context_length: int


class Running(_Described):
    """The models that are loaded."""

    models: list[LoadedModel]


class Shown(_Described):
    """What is known of a model."""

    modelfile: str
    parameters: str
    template: str
    details: Details
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str


class Embedded(_Described):
    """Vectors, in the order of the texts; times in nanoseconds."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddedOne(_Described):
    """A vector, or none of an empty text."""

    embedding: list[float]


class Version(_Described):
    """The version of this server."""

    version: str
