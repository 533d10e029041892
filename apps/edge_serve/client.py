"""Notices that the client of a request has gone, whatever is waited for meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.types import Receive

from edge_serve.errors import ClientGoneError

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """The other end of a request whose body has been read.

    Args:
        receive: of ASGI. Servers report a lost connection there at once, also while nothing is sent.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._gone: asyncio.Task[None] | None = None

    @property
    def is_gone(self) -> bool:
        """True once the client has closed its connection."""
        return self._gone is not None and self._gone.done()

    async def race(self, awaitable: Awaitable[T]) -> T:
        """Return the result of something that is waited for.

        Raises:
            ClientGoneError: the client goes before it is there; it is cancelled then.
        """
        task = asyncio.ensure_future(awaitable)
        try:
            if not await self.wait(task, None):
                raise ClientGoneError
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)  # also takes its error, which nobody else will

    async def wait(self, task: asyncio.Future[T], timeout_s: float | None) -> bool:
        """Wait for a task for a while, and return if it is done.

        Raises:
            ClientGoneError: the client goes before it is.
        """
        if self._gone is None:
            self._gone = asyncio.ensure_future(self._watch())
        if not task.done():
            either: set[asyncio.Future[Any]] = {task, self._gone}
            await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if self._gone.done() and not task.done():
            raise ClientGoneError
        return task.done()

    def close(self) -> None:
        """Stop watching."""
        if self._gone is not None:
            self._gone.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
