"""How each protocol writes an error: as the body of a response, and as an event of a stream that has begun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from edge_serve.errors import ApiError

__all__ = ["ANTHROPIC", "OLLAMA", "OPENAI", "Dialect", "dialect_of"]

_encode = msgspec.json.encode

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "overloaded_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """The forms of one protocol.

    Attributes:
        body: returns the body of an error, from the error and the id of the request.
        event: returns the end of a stream that failed, likewise.
        busy: status of a request that is refused since too many wait.
    """

    body: Callable[[ApiError, str], dict[str, Any]]
    event: Callable[[ApiError, str], bytes]
    busy: int = 429


def _openai(error: ApiError, id: str) -> dict[str, Any]:
    kind = _OPENAI_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code, **error.details}}


def _openai_event(error: ApiError, id: str) -> bytes:
    return b"data: " + _encode(_openai(error, id)) + b"\n\n"


def _anthropic(error: ApiError, id: str) -> dict[str, Any]:
    kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": error.message, **error.details}, "request_id": id}


def _anthropic_event(error: ApiError, id: str) -> bytes:
    return b"event: error\ndata: " + _encode(_anthropic(error, id)) + b"\n\n"


def _ollama(error: ApiError, id: str) -> dict[str, Any]:
    return {"error": error.message}


def _ollama_event(error: ApiError, id: str) -> bytes:
    return _encode(_ollama(error, id)) + b"\n"


OPENAI = Dialect(_openai, _openai_event)
ANTHROPIC = Dialect(_anthropic, _anthropic_event, busy=529)
OLLAMA = Dialect(_ollama, _ollama_event, busy=503)


def dialect_of(path: str) -> Dialect:
    """Return the protocol of a path."""
    if path.startswith("/v1/messages"):
        return ANTHROPIC
    return OLLAMA if path.startswith("/api/") else OPENAI
