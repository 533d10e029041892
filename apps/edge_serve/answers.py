"""A reply for a request: its model is held, its start is waited for, and it is stopped when the client goes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.errors import CancelledError, UsageError
from edge_serve import limits
from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.events import ReplyEvent
    from edge.reply import Reply
    from edge_serve.call import Call
    from edge_serve.offer import Offered

__all__ = ["Answer", "answer", "hold_model", "notices_field"]


@dataclass(slots=True)
class Answer:
    """Replies to one prompt that the engine works on: one, or several to choose from.

    Attributes:
        replies: the replies.
        assistant: their model.
        loaded: id of the model.
    """

    replies: list[Reply]
    assistant: Assistant
    loaded: str
    _streams: list[AsyncIterator[ReplyEvent]] = field(default_factory=list)
    _next: dict[asyncio.Future[ReplyEvent | None], int] = field(default_factory=dict)

    @property
    def model(self) -> str:
        """Who answers, for the response: the model, or its next tier if the question was sent on."""
        return self.reply.answered_by if self.reply.escalated else self.loaded

    @property
    def reply(self) -> Reply:
        """The first reply."""
        return self.replies[0]

    async def wait_for_start(self, call: Call) -> None:
        """Wait until the engine works on the prompt, for a while; so what is wrong with a request is still a status code.

        Raises:
            ClientGoneError: the client went before.
            EdgeError: the reply ended with this error.
        """
        self._streams = [aiter(reply.events()) for reply in self.replies]
        for index in range(len(self.replies)):
            self._ask_next(index)
        first = next(iter(self._next))
        if await call.client.wait(first, limits.HELD_S):
            first.result()

    async def events(self, call: Call) -> AsyncIterator[tuple[int, ReplyEvent | None]]:
        """Yield the events of the replies as they come, after `wait_for_start`.

        Yields:
            (number of the reply, event); None as event where that reply is over.

        Raises:
            EdgeError: a reply ended with this error.
        """
        while self._next:
            done, _ = await asyncio.wait(self._next, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                index, event = self._next.pop(future), future.result()
                if event is not None:
                    self._ask_next(index)
                else:
                    self.check_stopped(call)
                yield index, event

    async def wait(self, call: Call) -> None:
        """Wait until all replies are over.

        Raises:
            ClientGoneError: the client went before; the replies are stopped.
            EdgeError: a reply ended with this error.
        """
        await call.client.race(asyncio.gather(*map(_whole, self.replies)))
        self.check_stopped(call)

    def check_stopped(self, call: Call) -> None:
        """Raise the error of a reply that ended because the server stops."""
        if call.service.is_stopping and any(reply.is_cancelled for reply in self.replies):
            raise CancelledError("The server is stopping.")

    def close(self) -> None:
        """Stop waiting for events."""
        for future in self._next:
            future.cancel()

    @property
    def fingerprint(self) -> str:
        """A text that changes with what could change an answer to the same request: engine and weights."""
        fingerprint = self.assistant.engine_fingerprint
        return f"{self.assistant.backend_name}-{fingerprint.hex()[:12] if fingerprint else self.loaded}"

    def finish_reason(self, index: int = 0) -> str:
        """Return the reason of an end: "stop", "tool_calls", or "length" also for a reply stopped as a loop or for its time."""
        reply = self.replies[index]
        if reply.finish_reason != "stop":
            return "length"
        return "tool_calls" if reply.tool_calls else "stop"

    def _ask_next(self, index: int) -> None:
        self._next[asyncio.ensure_future(anext(self._streams[index], None))] = index


@contextlib.asynccontextmanager
async def hold_model(call: Call, name: str | None) -> AsyncIterator[tuple[Assistant, Offered]]:
    """Hold the model of a request, which is loaded if it is not yet.

    Raises:
        ApiError: there is no such model, it is not one that chats, or loading it takes too long.
        ClientGoneError: the client went meanwhile.
        EdgeError: it cannot be loaded.
    """
    offered = await call.service.offer.find(name)
    call.record.model = offered.id
    if offered.task == "embeddings":
        message = f"The model {offered.id} makes embeddings, and does not chat. Ask /v1/embeddings, or name another model."
        raise ApiError(400, message, code="invalid_value", param="model")
    call.service.check_running()
    began = time.perf_counter()
    async with contextlib.AsyncExitStack() as held:  # also where the client goes in the moment in which it is taken
        taking = asyncio.ensure_future(held.enter_async_context(call.service.runtime.ause(offered.reference)))
        call.service.waits.add(taking)
        taking.add_done_callback(call.service.waits.discard)
        try:
            assistant = await call.client.race(asyncio.wait_for(taking, limits.LOADING_S))
        except asyncio.TimeoutError:
            message = f"{offered.id} is still being loaded. Try again later."
            raise ApiError(503, message, code="loading", retry_after_s=30) from None
        except UsageError as error:  # such as a model that makes embeddings
            raise ApiError(400, str(error), code="invalid_value", param="model") from error
        call.record.load_s = time.perf_counter() - began
        yield assistant, offered


@contextlib.asynccontextmanager
async def answer(
    call: Call, model: str | None, make: Callable[[Assistant], Reply | list[Reply]], *, is_streamed: bool
) -> AsyncIterator[Answer]:
    """Have a model answer a request.

    Args:
        call: the request.
        model: its name; None is the default one.
        make: starts the reply, or several.
        is_streamed: wait until the engine works on the prompt, so that what is wrong with the request is a status code.

    Raises:
        ApiError, ClientGoneError: as `hold_model`.
        EdgeError: the reply cannot start.
    """
    service = call.service
    service.check_running()
    async with hold_model(call, model) as (assistant, offered):
        service.check_running()  # the model took its time, and nobody would stop a reply that starts now
        call.record.asked_at = now = time.perf_counter()
        made = make(assistant)
        replies = made if isinstance(made, list) else [made]
        call.record.replies.extend(replies)
        found = Answer(replies, assistant, offered.id)
        service.replies.update(dict.fromkeys(replies, (offered.id, now)))
        try:
            async with contextlib.AsyncExitStack() as stack:
                for reply in replies:
                    await stack.enter_async_context(reply)  # leaving it stops the reply, and waits for that
                stack.callback(found.close)
                if is_streamed:
                    await found.wait_for_start(call)
                yield found
        finally:
            for reply in replies:
                del service.replies[reply]


async def _whole(reply: Reply) -> str:
    return await reply


def notices_field(reply: Reply) -> dict[str, list[str]]:
    """Return the field with what the user should know about a reply, if there is something; it is this server's own."""
    return {"notices": list(reply.notices)} if reply.notices else {}
