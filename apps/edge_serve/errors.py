"""What goes wrong with a request: one error inside, which each protocol writes in its own form."""

from __future__ import annotations

from typing import Any

from edge.errors import (
    BackendError,
    BusyError,
    CancelledError,
    ContextFullError,
    EdgeError,
    ModelError,
    ModelNotFoundError,
    ModelTooLargeError,
    TemplateError,
    UnsupportedError,
    UsageError,
)

__all__ = ["ApiError", "ClientGoneError", "from_edge"]


class ApiError(Exception):
    """An error that the client is told of.

    Args:
        status: of HTTP.
        message: what happened, what it means and what to do.
        code: a word for programs, such as "context_length_exceeded".
        param: the field of the request that is wrong.
        retry_after_s: when to try again, in seconds; None says nothing.
        details: more fields for programs.
        allowed: the methods that the path takes, where it does not take this one.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        details: dict[str, Any] | None = None,
        allowed: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.allowed = allowed
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_s, self.details = retry_after_s, details or {}

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Headers that go with it."""
        headers = [] if self.retry_after_s is None else [(b"retry-after", str(self.retry_after_s).encode())]
        if self.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        if self.allowed:
            headers.append((b"allow", ", ".join(self.allowed).encode()))
        return headers


class ClientGoneError(Exception):
    """The client closed its connection: nobody is left to answer."""


def from_edge(error: EdgeError, *, retry_after_s: int = 5) -> ApiError:
    """Return what a client is told of an error of the runtime.

    Args:
        error: what was raised.
        retry_after_s: when a busy model may be asked again, in seconds.
    """
    if isinstance(error, ContextFullError):
        return _context_full(error)
    if isinstance(error, BusyError):
        return ApiError(429, str(error), code="busy", retry_after_s=retry_after_s)
    if isinstance(error, UsageError | TemplateError | UnsupportedError):
        param = error.message.split(" ", 1)[0] if isinstance(error, UsageError) else None
        return ApiError(400, str(error), code="invalid_value", param=param if param and param.islower() else None)
    if isinstance(error, ModelNotFoundError):
        return ApiError(404, str(error), code="model_not_found", param="model")
    if isinstance(error, ModelTooLargeError):
        return ApiError(503, str(error), code="model_too_large", retry_after_s=60)
    if isinstance(error, CancelledError):
        return ApiError(503, "The server is stopping. Try again once it is up.", code="stopping", retry_after_s=retry_after_s)
    if isinstance(error, ModelError):
        return ApiError(500, error.message, code="model_error")
    if isinstance(error, BackendError):
        return ApiError(500, "The model failed while it answered. The server's log says why; try again.", code="engine_error")
    return ApiError(500, "The server failed at this request. Its log says why.", code="server_error")


def _context_full(error: ContextFullError) -> ApiError:
    n_prompt, n_ctx = error.n_prompt, error.n_ctx
    least = "at least " if error.is_least else ""
    # "prompt is too long" and "model's maximum context length is" are what programs look for, to shorten it themselves.
    message = (
        f"The prompt is too long: it has {least}{n_prompt:,} tokens, and the context window has to hold the reply, too. This "
        f"model's maximum context length is {n_ctx:,} tokens. Shorten the messages, or serve the model with a larger context "
        "(edge serve --context)."
    )
    details = {"n_prompt_tokens": n_prompt, "n_ctx": n_ctx}
    return ApiError(400, message if n_prompt else str(error), code="context_length_exceeded", param="messages", details=details)
