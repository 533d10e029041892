"""The ASGI application: routes, and around them what every request gets: an id, a guard, an error form, a line in the log."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from edge.errors import CancelledError, EdgeError
from edge_serve import access, limits, openapi, state, status
from edge_serve.anthropic import messages
from edge_serve.call import Call, Caller, Record
from edge_serve.dialects import dialect_of
from edge_serve.errors import ApiError, ClientGoneError, from_edge
from edge_serve.ollama import chat as ollama_chat
from edge_serve.ollama import embed as ollama_embed
from edge_serve.ollama import generate as ollama_generate
from edge_serve.ollama import models as ollama_models
from edge_serve.openai import adapters, chat, completions, embeddings, models, responses, tokens

if TYPE_CHECKING:
    from edge_serve.security import Guard
    from edge_serve.service import Service

__all__ = ["App"]

_log = logging.getLogger("edge.serve")
_NOBODY = Caller()
Handle = Callable[[Call], Awaitable[None]]

_MANAGING = (("POST", "pull"), ("POST", "push"), ("POST", "create"), ("POST", "copy"), ("DELETE", "delete"))
ROUTES: list[tuple[str, str, Handle]] = [
    ("GET", "/", status.page),
    ("GET", "/openapi.json", openapi.describe),
    ("GET", "/status", status.status),
    ("GET", "/health", state.health),
    ("GET", "/metrics", state.metrics),
    ("POST", "/v1/chat/completions", chat.create),
    ("POST", "/v1/chat/completions/input_tokens", chat.count),
    ("POST", "/v1/completions", completions.create),
    ("POST", "/v1/responses", responses.create),
    ("POST", "/v1/responses/input_tokens", responses.count),
    ("GET", "/v1/responses/{id}", responses.stored),
    ("GET", "/v1/models", models.list_all),
    ("GET", "/v1/models/{id:path}", models.retrieve),
    ("POST", "/v1/messages", messages.create),
    ("POST", "/v1/messages/count_tokens", messages.count_tokens),
    ("POST", "/api/chat", ollama_chat.chat),
    ("POST", "/api/generate", ollama_generate.generate),
    ("GET", "/api/tags", ollama_models.tags),
    ("GET", "/api/ps", ollama_models.ps),
    ("POST", "/api/show", ollama_models.show),
    ("GET", "/api/version", ollama_models.version),
    ("POST", "/api/embed", ollama_embed.embed),
    ("POST", "/api/embeddings", ollama_embed.embed_one),
    ("POST", "/v1/embeddings", embeddings.create),
    *((method, f"/api/{name}", ollama_models.not_offered) for method, name in _MANAGING),
    ("GET", "/lora-adapters", adapters.list_all),
    ("POST", "/tokenize", tokens.tokenize),
    ("POST", "/detokenize", tokens.detokenize),
    ("POST", "/v1/tokenize", tokens.tokenize),
    ("POST", "/v1/detokenize", tokens.detokenize),
]
"""Method, path and handler."""

_WITHOUT_V1 = frozenset(path.removeprefix("/v1") for _, path, _ in ROUTES if path.startswith("/v1/")) - {
    path for _, path, _ in ROUTES
}
"""Paths that llama.cpp's server has without /v1, too, and clients whose address was given without it ask for."""


class App:
    """The application.

    Args:
        service: what all requests share.
        guard: decides who may use it.
    """

    def __init__(self, service: Service, guard: Guard) -> None:
        self._service, self._guard = service, guard
        self._n_requests = 0
        self._n_of_callers: Counter[str] = Counter()  # of those who have a key
        by_path: dict[str, dict[str, Handle]] = {}
        for method, path, handle in ROUTES:
            by_path.setdefault(path, {})[method] = handle
        routes = [Route(path, _Endpoint(self, path, handles)) for path, handles in by_path.items()]
        self._router = Router(routes, redirect_slashes=False, default=_Endpoint(self, "", {}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; see ASGI."""
        if scope["type"] == "http":
            if scope["path"] in _WITHOUT_V1:
                scope = {**scope, "path": f"/v1{scope['path']}"}
            await self._router(scope, receive, send)

    async def answer(self, path: str, handles: dict[str, Handle], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request to one route.

        Args:
            path: of the route; "" if there is none.
            handles: by method.
            scope, receive, send: of ASGI.
        """
        record = Record(scope["method"], scope["path"])
        self._n_requests += 1
        try:
            await self._answer(handles, scope, receive, _with_headers(send, self._guard.cors(scope)), record)
        finally:
            self._n_requests -= 1
            if record.caller:
                self._n_of_callers -= Counter((record.caller,))  # which forgets those who have none left
            seconds = time.perf_counter() - record.began
            self._service.counters.add(record, path or "other", seconds)
            access.log(record, seconds)
            if self._service.tracing is not None:
                self._service.tracing.add(record, path, scope["headers"])

    async def _answer(self, handles: dict[str, Handle], scope: Scope, receive: Receive, send: Send, record: Record) -> None:
        service, dialect = self._service, dialect_of(scope["path"])
        call: Call | None = None
        try:
            if scope["method"] == "OPTIONS":
                await Call(scope, receive, send, service, record, _NOBODY).send(
                    b"", b"text/plain", 204, self._guard.preflight(scope)
                )
                return
            _check_head(scope)
            caller = self._guard.check(scope)
            record.caller = caller.name
            self._n_of_callers[caller.name] += bool(caller.name)
            call = Call(scope, receive, send, service, record, caller)
            if self._n_requests > limits.REQUESTS and scope["method"] == "POST":  # what watches the server is answered
                raise ApiError(
                    429, "The server is answering too many requests.", code="busy", retry_after_s=service.retry_after_s
                )
            limit = service.settings.server.max_requests_each
            if limit is not None and self._n_of_callers[caller.name] > limit and scope["method"] == "POST":
                raise ApiError(
                    429, f"{limit} requests of this key are being answered.", code="busy", retry_after_s=service.retry_after_s
                )
            handle = handles.get("GET" if scope["method"] == "HEAD" else scope["method"])
            if handle is None:
                raise _no_such(handles, scope)
            await handle(call)
            return
        except ClientGoneError:
            record.status = 499
            return
        except asyncio.CancelledError:
            if not service.is_stopping:
                raise
            error = from_edge(CancelledError("The server is stopping."), retry_after_s=service.retry_after_s)
        except ApiError as failure:
            error = failure
        except EdgeError as failure:
            error = from_edge(failure, retry_after_s=service.retry_after_s)
            if error.status >= 500:
                _log.error("%s failed: %s", record.id, failure, exc_info=failure.__cause__)
        except Exception as failure:  # noqa: BLE001 (a bug ends one request, and its client hears nothing of the inside)
            _log.error("%s failed with an unexpected error", record.id, exc_info=failure)
            error = ApiError(500, f"The server failed at this request ({record.id}). Its log says why.", code="server_error")
        finally:
            if call is not None:
                call.client.close()
        if call is not None and call.has_begun:
            await send({"type": "http.response.body", "body": dialect.event(error, record.id)})
            return
        call = call or Call(scope, receive, send, service, record, _NOBODY)
        status = dialect.busy if error.status == 429 else error.status
        await call.json(dialect.body(error, record.id), status, error.headers)


def _no_such(handles: dict[str, Handle], scope: Scope) -> ApiError:
    path = scope["path"][:100]
    if handles:
        message = f"{path} takes {' or '.join(handles)}, not {scope['method'][:20]}."
        return ApiError(405, message, code="method_not_allowed", allowed=tuple(handles))
    return ApiError(404, f"There is nothing at {path}. See docs/serve.md for what this server offers.", code="not_found")


def _check_head(scope: Scope) -> None:
    """Refuse a head that arrived in one piece, which the protocol's own limit does not hold for."""
    n_bytes = (
        sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["raw_path"]) + len(scope["query_string"])
    )
    if n_bytes > limits.HEADER_BYTES or len(scope["headers"]) > limits.HEADERS:
        raise ApiError(431, f"The head of a request has {limits.HEADER_BYTES:,} bytes and {limits.HEADERS} headers at most.")


def _with_headers(send: Send, headers: list[tuple[bytes, bytes]]) -> Send:
    if not headers:
        return send

    async def send_more(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *headers]}  # type: ignore[misc]
        await send(message)

    return send_more  # type: ignore[return-value]


class _Endpoint:
    """What the router calls for one route."""

    def __init__(self, app: App, path: str, handles: dict[str, Handle]) -> None:
        self._app, self._path, self._handles = app, path, handles

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app.answer(self._path, self._handles, scope, receive, send)
