"""A running reply, as `send` and `generate` return it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from edge.device.cost import Cost
from edge.types import FinishReason, Timing, Usage

if TYPE_CHECKING:
    from edge.conversation.tree import Node
    from edge.errors import EdgeError

__all__ = ["Reply"]


class Reply:
    """Text as it comes, for `for`, `async for` and `await`; safe to use from several threads and event loops at once.

        for piece in reply: ...            # or: async for piece in reply
        text = reply.wait()                # or: text = await reply
        with conversation.send("hi") as reply: ...      # leaving the block stops the reply, and waits for that

    Attributes:
        notices: what the user should know about this reply, for example which messages no longer fit the window.
        progress: (tokens of the prompt in the KV cache, tokens of the prompt); (0, 0) before that is known.
        finish_reason: "stop", "length", "cancelled" or "error"; None while it runs.
        usage, timing: tokens and times of the turn; complete when the reply is.
        cost: memory of the turn, and energy where that is known.
        held_back: how the engine was throttled meanwhile, since the device was hot, low on battery or short of memory.
        node: the saved message, once there is one; None for replies outside a conversation.
        tokens: token ids of the reply, once it is over; empty when a stop text ended it.
        is_cancelled: whether cancel() was called.
        error: the error that ended it, if one did; iterating or waiting raises it.
    """

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.progress: tuple[int, int] = (0, 0)
        self.finish_reason: FinishReason | None = None
        self.usage = Usage()
        self.timing = Timing()
        self.cost = Cost()
        self.held_back = ""
        self.node: Node | None = None
        self.tokens: tuple[int, ...] = ()
        self._pieces: list[str] = []
        self.error: EdgeError | None = None
        self.is_cancelled = False
        self._on_cancel: Callable[[], None] | None = None
        self._changed = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._pieces)

    @property
    def is_done(self) -> bool:
        """True once the reply is over."""
        return self.finish_reason is not None

    def cancel(self) -> None:
        """Stop the reply and keep its text; does nothing once the reply is over."""
        with self._changed:
            self.is_cancelled = True
            on_cancel = self._on_cancel
        if on_cancel is not None:
            on_cancel()

    def wait(self, timeout_s: float | None = None) -> str:
        """Wait until the reply is over.

        Args:
            timeout_s: longest time to wait, in seconds; None waits as long as it takes.

        Returns:
            The whole text.

        Raises:
            TimeoutError: it still runs.
            EdgeError: the error that ended it.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self.is_done, timeout_s):
                raise TimeoutError("The reply is still running.")
        if self.error is not None:
            raise self.error
        return self.text

    def __iter__(self) -> Iterator[str]:
        """Yield the text in pieces, from the start.

        Raises:
            EdgeError: the error that ended it, after the pieces before it.
        """
        position = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: len(self._pieces) > position or self.is_done)  # noqa: B023 (called right here)
                new = self._pieces[position:]
            if not new:
                break
            position += len(new)
            yield from new
        if self.error is not None:
            raise self.error

    async def __aiter__(self) -> AsyncIterator[str]:
        """Yield the text in pieces, from the start, without blocking the event loop.

        Raises:
            EdgeError: the error that ended it, after the pieces before it.
        """
        position = 0
        while True:
            new = await self._next_pieces(position)
            if not new:
                break
            position += len(new)
            for piece in new:
                yield piece
        if self.error is not None:
            raise self.error

    def __await__(self) -> Generator[Any, None, str]:
        return self._wait_async().__await__()

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *exc: object) -> None:
        self.cancel()
        with self._changed:
            self._changed.wait_for(lambda: self.is_done)

    async def __aenter__(self) -> Reply:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()
        while await self._next_pieces(len(self._pieces)):
            pass

    def __repr__(self) -> str:
        return f"<Reply {self.finish_reason or 'running'}: {self.text[:60]!r}>"

    async def _wait_async(self) -> str:
        async for _ in self:
            pass
        return self.text

    async def _next_pieces(self, position: int) -> list[str]:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if len(self._pieces) > position or self.is_done:
                    return self._pieces[position:]
                future: asyncio.Future[None] = loop.create_future()
                self._waiters.append((loop, future))
            await future

    # The turn calls these from its own thread.

    def _bind(self, on_cancel: Callable[[], None]) -> None:
        """Set the function that cancels; call it at once if cancel() was called before."""
        with self._changed:
            self._on_cancel = on_cancel
            is_cancelled = self.is_cancelled
        if is_cancelled:
            on_cancel()

    def _write(self, piece: str) -> None:
        with self._changed:
            self._pieces.append(piece)
            self._wake()

    def _end(self, reason: FinishReason, error: EdgeError | None = None) -> None:
        with self._changed:
            self.error = error
            self.finish_reason = reason
            self._on_cancel = None
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        waiters, self._waiters = self._waiters, []
        for loop, future in waiters:
            try:
                loop.call_soon_threadsafe(_resolve, future)
            except RuntimeError:
                pass  # that event loop is closed: nobody waits there


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
