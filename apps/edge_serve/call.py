"""One request while it is answered: who asks, what is sent back, and what the log says of it."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from edge_serve import limits
from edge_serve.bodies import decode, read_body
from edge_serve.client import Client

if TYPE_CHECKING:
    from edge.reply import Reply
    from edge_serve.service import Service

__all__ = ["Call", "Caller", "Record"]

T = TypeVar("T", bound=msgspec.Struct)
Headers = list[tuple[bytes, bytes]]
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Caller:
    """The client of a request, as its key names it.

    Attributes:
        name: for the log; "" without a key.
        namespace: of the KV cache: clients do not see what others asked in the times and cached tokens of theirs.
    """

    name: str = ""
    namespace: str = ""


@dataclass(slots=True)
class Record:
    """What the log and the metrics get of a request. Never any text of it.

    Attributes:
        id: of the request, also in the header X-Request-Id.
        status: of HTTP; 499 if the client went before it was answered.
        model: that answered.
        replies: which ran for it.
        asked_at: when its replies were asked for, of `time.perf_counter`; 0 before that.
        load_s: time that it waited for its model, in seconds.
        began: of `time.perf_counter`.
    """

    method: str
    path: str
    id: str = field(default_factory=lambda: f"req_{uuid.uuid4().hex}")
    caller: str = ""
    status: int = 0
    model: str = ""
    ignored: list[str] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    asked_at: float = 0.0
    load_s: float = 0.0
    began: float = field(default_factory=time.perf_counter)


class Call:
    """A request and the way to answer it.

    Args:
        scope, receive, send: of ASGI.
        service: what all requests share.
        record: for the log.
        caller: who asks.

    Attributes:
        has_begun: headers were sent: what goes wrong now cannot be a status any more.
        client: the other end.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, service: Service, record: Record, caller: Caller) -> None:
        self.scope, self.service, self.record, self.caller = scope, service, record, caller
        self._receive, self._send = receive, send
        self.client = Client(receive)
        self.has_begun = False

    @property
    def path_params(self) -> dict[str, str]:
        """Parts of the path that the route names."""
        params: dict[str, str] = self.scope.get("path_params", {})
        return params

    async def body(self, kind: type[T], refused: Collection[str] = ()) -> T:
        """Read and decode the body, as `edge_serve.bodies` does; fields that nobody reads are named in the response."""
        # Programs for Ollama need not name a type. No page can use that: a browser sends its Origin with every such request.
        data = await read_body(self.scope, self._receive, of_any_type=self.record.path.startswith("/api/"))
        body, ignored = decode(data, kind, refused)
        self.record.ignored = ignored
        return body

    async def json(self, value: object, status: int = 200, headers: Headers | None = None) -> None:
        """Answer with a JSON value."""
        await self.send(_encoder.encode(value), b"application/json", status, headers)

    async def send(self, data: bytes, kind: bytes, status: int = 200, headers: Headers | None = None) -> None:
        """Answer with a body."""
        about = [] if status == 204 else [(b"content-type", kind), (b"content-length", str(len(data)).encode())]
        await self._start(status, [*about, *(headers or [])])
        await self._send({"type": "http.response.body", "body": data})

    async def stream(
        self, chunks: AsyncIterator[bytes], kind: bytes = b"text/event-stream; charset=utf-8", ping: bytes = b""
    ) -> None:
        """Answer with parts as they come.

        Args:
            chunks: the parts. What it raises ends the connection.
            kind: of the content.
            ping: sent after some time without a part; b"" sends none.

        Raises:
            ClientGoneError: the client went, or reads nothing for too long.
        """
        await self._start(200, [(b"content-type", kind), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")])
        try:
            while True:
                step = asyncio.ensure_future(anext(chunks, None))
                try:
                    while not await self.client.wait(step, limits.PING_S if ping else None):
                        await self._send_part(ping)
                finally:
                    if not step.done():
                        step.cancel()
                        await asyncio.wait({step})
                if (chunk := step.result()) is None:
                    break
                await self._send_part(chunk)
        finally:
            aclose: Any = getattr(chunks, "aclose", None)
            if aclose is not None:
                await aclose()
        await self._send({"type": "http.response.body", "body": b""})

    async def _send_part(self, data: bytes) -> None:
        """Send a part; waits while the client does not read, until `edge_serve.connection` takes it for gone."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _start(self, status: int, headers: Headers) -> None:
        self.has_begun = True
        self.record.status = status
        own = [(b"x-request-id", self.record.id.encode())]
        if self.record.ignored:
            own.append((b"x-edge-ignored", ", ".join(self.record.ignored).encode()))
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *own]})
