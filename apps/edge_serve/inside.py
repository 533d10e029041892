"""Asks the application from inside this process: what it answers to a request, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.types import Scope

from edge_serve.app import App

__all__ = ["Answered", "post"]


@dataclass(frozen=True, slots=True)
class Answered:
    """A response.

    Attributes:
        status: of HTTP.
        request_id: of the header X-Request-Id.
        body: its JSON.
    """

    status: int
    request_id: str
    body: bytes


async def post(app: App, path: str, body: bytes) -> Answered:
    """Send a JSON body to a path of the application, and return the whole response. Cancelling it stops the reply."""
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": None,
        "server": None,
    }
    to_send = [body]
    status, headers, parts = 500, dict[bytes, bytes](), list[bytes]()

    async def receive() -> MutableMapping[str, Any]:
        if to_send:
            return {"type": "http.request", "body": to_send.pop(), "more_body": False}
        await asyncio.Event().wait()  # the client never goes
        raise AssertionError

    async def send(message: MutableMapping[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.update(message["headers"])
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return Answered(status, headers.get(b"x-request-id", b"").decode(), b"".join(parts))
