"""A reply for a request: its model is held, its start is waited for, and it is stopped when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import CancelledError
from edge_serve import limits
from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.events import ReplyEvent
    from edge.reply import Reply
    from edge_serve.call import Call
    from edge_serve.offer import Offered

__all__ = ["Answer", "answer", "hold_model"]


@dataclass(slots=True)
class Answer:
    """A reply that the engine works on.

    Attributes:
        reply: the reply.
        assistant: its model.
        model: id of the model, for the response.
    """

    reply: Reply
    assistant: Assistant
    model: str
    _first: asyncio.Future[ReplyEvent | None] | None = None
    _events: AsyncIterator[ReplyEvent] | None = None

    async def wait_for_start(self, call: Call) -> None:
        """Wait until the engine works on the prompt, for a while; so what is wrong with a request is still a status code.

        Raises:
            ClientGoneError: the client went before.
            EdgeError: the reply ended with this error.
        """
        self._events = aiter(self.reply.events())
        self._first = asyncio.ensure_future(anext(self._events, None))
        if await call.client.wait(self._first, limits.HELD_S):
            self._first.result()

    async def events(self, call: Call) -> AsyncIterator[ReplyEvent]:
        """Yield the events of the reply, after `wait_for_start`.

        Raises:
            EdgeError: the reply ended with this error.
        """
        assert self._first is not None and self._events is not None
        event = await self._first
        while event is not None:
            yield event
            event = await anext(self._events, None)
        self.check_stopped(call)

    async def text(self, call: Call) -> str:
        """Wait for the whole text.

        Raises:
            ClientGoneError: the client went before; the reply is stopped.
            EdgeError: the reply ended with this error.
        """
        text = await call.client.race(_whole(self.reply))
        self.check_stopped(call)
        return text

    def check_stopped(self, call: Call) -> None:
        """Raise the error of a reply that ended because the server stops."""
        if self.reply.is_cancelled and call.service.is_stopping:
            raise CancelledError("The server is stopping.")

    def close(self) -> None:
        """Stop waiting for events."""
        if self._first is not None:
            self._first.cancel()

    @property
    def fingerprint(self) -> str:
        """A text that changes with what could change an answer to the same request: engine and weights."""
        fingerprint = self.assistant.kv_fingerprint
        return f"{self.assistant.backend_name}-{fingerprint.hex()[:12] if fingerprint else self.model}"

    @property
    def finish_reason(self) -> str:
        """The reason of its end: "stop" or "length", which also stands for a reply stopped as a loop or for its time."""
        return "stop" if self.reply.finish_reason == "stop" else "length"


@contextlib.asynccontextmanager
async def hold_model(call: Call, name: str | None) -> AsyncIterator[tuple[Assistant, Offered]]:
    """Hold the model of a request, which is loaded if it is not yet.

    Raises:
        ApiError: there is no such model, or loading it takes too long.
        ClientGoneError: the client went meanwhile.
        EdgeError: it cannot be loaded.
    """
    offered = await call.service.offer.find(name)
    call.record.model = offered.id
    holding = call.service.runtime.ause(offered.reference)
    try:
        assistant = await call.client.race(asyncio.wait_for(holding.__aenter__(), limits.LOADING_S))
    except asyncio.TimeoutError:
        raise ApiError(503, f"{offered.id} is still being loaded. Try again later.", code="loading", retry_after_s=30) from None
    try:
        yield assistant, offered
    finally:
        await holding.__aexit__(None, None, None)


@contextlib.asynccontextmanager
async def answer(
    call: Call, model: str | None, make: Callable[[Assistant], Reply], *, is_streamed: bool
) -> AsyncIterator[Answer]:
    """Have a model answer a request.

    Args:
        call: the request.
        model: its name; None is the default one.
        make: starts the reply.
        is_streamed: wait until the engine works on the prompt, so that what is wrong with the request is a status code.

    Raises:
        ApiError, ClientGoneError: as `hold_model`.
        EdgeError: the reply cannot start.
    """
    service = call.service
    if service.is_stopping:
        raise CancelledError("The server is stopping.")
    async with hold_model(call, model) as (assistant, offered):
        reply = make(assistant)
        service.replies.add(reply)
        call.record.replies.append(reply)
        try:
            async with reply:  # leaving it stops the reply, and waits for that
                found = Answer(reply, assistant, offered.id)
                try:
                    if is_streamed:
                        await found.wait_for_start(call)
                    yield found
                finally:
                    found.close()
        finally:
            service.replies.discard(reply)


async def _whole(reply: Reply) -> str:
    return await reply
