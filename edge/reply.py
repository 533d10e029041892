"""A running reply, as `send` and `generate` return it."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from edge.device.cost import Cost
from edge.errors import BackendError, UsageError
from edge.types import FinishReason, Timing, Usage, kind_of

if TYPE_CHECKING:
    from edge.conversation.tree import Node
    from edge.errors import EdgeError

__all__ = ["Reply", "ReplyState"]


@dataclass(eq=False)
class ReplyState:
    """Everything that a turn writes and its `Reply` reads. The turn holds only this, so that a dropped Reply is noticed.

    Attributes:
        pieces: the text so far.
        n_readers: threads and tasks that read the reply or wait for it now.
        is_detached: nobody has to hold the reply or read it for it to go on.
        others: see `Reply`.
    """

    notices: list[str] = field(default_factory=list)
    progress: tuple[int, int] = (0, 0)
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    timing: Timing = field(default_factory=Timing)
    cost: Cost = field(default_factory=Cost)
    held_back: str = ""
    node: Node | None = None
    tokens: tuple[int, ...] = ()
    stopped_by: str | None = None
    error: EdgeError | None = None
    is_cancelled: bool = False
    is_detached: bool = False
    is_repeating: bool = False
    n_readers: int = 0
    pieces: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = field(default_factory=list)
    process: int = field(default_factory=os.getpid)
    _on_cancel: Callable[[], None] | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)

    @property
    def is_done(self) -> bool:
        """True once the reply is over."""
        return self.finish_reason is not None

    def cancel(self) -> None:
        """Stop the reply; does nothing once it is over."""
        with self.changed:
            self.is_cancelled = True
            on_cancel = self._on_cancel
        if on_cancel is not None:
            on_cancel()

    def count_reader(self, change: int) -> None:
        """Count a reader that comes (1) or goes (-1)."""
        with self.changed:
            self.n_readers += change

    def reader_interrupted(self) -> None:
        """Stop the reply if the reader that was interrupted is the last one."""
        if self.n_readers <= 1 and not self.is_detached:
            self.cancel()

    def dropped(self) -> None:
        """Stop the reply, since nobody holds it any more. Called by the garbage collector, from any thread."""
        if not self.is_detached and not self.is_done and self.process == os.getpid():
            self.cancel()

    def check_process(self) -> None:
        """Raise if this is a forked copy, in which nobody writes the reply.

        Raises:
            BackendError: it is.
        """
        if not self.is_done and self.process != os.getpid():
            raise BackendError("This reply runs in another process.", "Load the model again in this one.")

    def bind(self, on_cancel: Callable[[], None]) -> None:
        """Set the function that cancels; call it at once if cancel() was called before."""
        with self.changed:
            self._on_cancel = on_cancel
            is_cancelled = self.is_cancelled
        if is_cancelled:
            on_cancel()

    def write(self, piece: str) -> None:
        """Add text."""
        with self.changed:
            self.pieces.append(piece)
            self._wake()

    def end(self, reason: FinishReason, error: EdgeError | None = None) -> None:
        """End the reply."""
        with self.changed:
            self.error = error
            self.finish_reason = reason
            self._on_cancel = None
            self._wake()

    def _wake(self) -> None:
        self.changed.notify_all()
        waiters, self.waiters = self.waiters, []
        for loop, future in waiters:
            try:
                loop.call_soon_threadsafe(_resolve, future)
            except RuntimeError:
                pass  # that event loop is closed: nobody waits there


class Reply:
    """Text as it comes, for `for`, `async for` and `await`; safe to use from several threads and event loops at once.

        for piece in reply: ...            # or: async for piece in reply
        text = reply.wait()                # or: text = await reply
        with conversation.send("hi") as reply: ...      # leaving the block stops the reply, and waits for that

    A reply runs as long as somebody wants it. It stops when nobody holds it any more (a loop over `send(...)` that is left by
    `break`, `return` or an exception), and when its last reader is interrupted: a cancelled task, `asyncio.wait_for`, Ctrl-C.
    `detach` lets it run to its end in any case.

    Attributes:
        notices: what the user should know about this reply, for example which messages no longer fit the window.
        progress: (tokens of the prompt in the KV cache, tokens of the prompt); (0, 0) before that is known.
        finish_reason: "stop", "length", "cancelled" or "error"; None while it runs.
        usage, timing: tokens and times of the turn; complete when the reply is.
        cost: memory of the turn, and energy where that is known.
        held_back: how the engine was throttled meanwhile, since the device was hot, low on battery or short of memory.
        node: the saved message, once there is one; None for replies outside a conversation.
        tokens: token ids of the reply, once it is over; empty when a stop text ended it.
        stopped_by: the text of `Sampling.stop` that ended it; None if none did.
        is_cancelled: whether it was told to stop.
        is_repeating: it repeats itself, and is stopped as a loop if that goes on; see `Sampling.max_repeats`.
        error: the error that ended it, if one did; iterating or waiting raises it.
    """

    def __init__(self, state: ReplyState | None = None) -> None:
        self._state = ReplyState() if state is None else state

    def __del__(self) -> None:
        self._state.dropped()

    @property
    def notices(self) -> list[str]:
        return self._state.notices

    @property
    def progress(self) -> tuple[int, int]:
        return self._state.progress

    @property
    def finish_reason(self) -> FinishReason | None:
        return self._state.finish_reason

    @property
    def usage(self) -> Usage:
        return self._state.usage

    @property
    def timing(self) -> Timing:
        return self._state.timing

    @property
    def cost(self) -> Cost:
        return self._state.cost

    @property
    def held_back(self) -> str:
        return self._state.held_back

    @property
    def node(self) -> Node | None:
        return self._state.node

    @property
    def tokens(self) -> tuple[int, ...]:
        return self._state.tokens

    @property
    def stopped_by(self) -> str | None:
        return self._state.stopped_by

    @property
    def error(self) -> EdgeError | None:
        return self._state.error

    @property
    def is_cancelled(self) -> bool:
        return self._state.is_cancelled

    @property
    def is_repeating(self) -> bool:
        return self._state.is_repeating

    @property
    def text(self) -> str:
        """The text so far."""
        return self._state.text

    @property
    def is_done(self) -> bool:
        """True once the reply is over."""
        return self._state.is_done

    def cancel(self) -> None:
        """Stop the reply and keep its text; does nothing once the reply is over."""
        self._state.cancel()

    def detach(self) -> Reply:
        """Let the reply run to its end although nobody holds it or reads it; only `cancel` stops it then.

        Returns:
            The reply itself: `conversation.send("hi").detach()`.
        """
        self._state.is_detached = True
        return self

    def wait(self, timeout_s: float | None = None, *, cancel: bool = False) -> str:
        """Wait until the reply is over.

        Args:
            timeout_s: longest time to wait, in seconds; None waits as long as it takes.
            cancel: stop the reply when that time is over, and wait until it has stopped; otherwise it goes on.

        Returns:
            The whole text.

        Raises:
            TimeoutError: it was not over in time.
            EdgeError: the error that ended it.
            UsageError: the time is not a number.
        """
        longest: object = timeout_s
        if longest is not None and not (isinstance(longest, int | float) and longest == longest):  # NaN does not equal itself
            raise UsageError(f"timeout_s is a number of seconds, not {kind_of(longest)}.", "None waits as long as it takes.")
        state, until = self._state, None if timeout_s is None else time.monotonic() + timeout_s
        state.count_reader(1)
        try:
            if not self._wait_until(lambda: state.is_done, until):
                if not cancel:
                    raise TimeoutError("The reply is still running.")
                state.cancel()
                self._wait_until(lambda: state.is_done)
                if state.finish_reason == "cancelled":
                    raise TimeoutError("The reply took too long and was stopped.")
        finally:
            state.count_reader(-1)
        if state.error is not None:
            raise state.error
        return state.text

    def __iter__(self) -> Iterator[str]:
        """Yield the text in pieces, from the start.

        Raises:
            EdgeError: the error that ended it, after the pieces before it.
        """
        state, position = self._state, 0
        state.count_reader(1)
        try:
            while True:
                self._wait_until(lambda: len(state.pieces) > position or state.is_done)  # noqa: B023 (called right here)
                new = state.pieces[position:]
                if not new:
                    break
                position += len(new)
                yield from new
        finally:
            state.count_reader(-1)
        if state.error is not None:
            raise state.error

    def __aiter__(self) -> AsyncIterator[str]:
        """Yield the text in pieces, from the start, without blocking the event loop.

        Raises:
            EdgeError: the error that ended it, after the pieces before it.
        """
        return _AsyncPieces(self)

    def __await__(self) -> Generator[Any, None, str]:
        return self._wait_async().__await__()

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *exc: object) -> None:
        self._state.cancel()
        self._wait_until(lambda: self.is_done)

    async def __aenter__(self) -> Reply:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._state.cancel()
        while await self._next_pieces(len(self._state.pieces)):
            pass

    def __repr__(self) -> str:
        return f"<Reply {self.finish_reason or 'running'}: {self.text[:60]!r}>"

    def _wait_until(self, is_true: Callable[[], bool], until: float | None = None) -> bool:
        """Wait for the turn, no longer than `until` of `time.monotonic`, and return if that is true."""
        state = self._state
        state.check_process()
        try:
            with state.changed:
                return state.changed.wait_for(is_true, None if until is None else max(0.0, until - time.monotonic()))
        except BaseException:  # Ctrl-C, or what a signal handler raised
            state.reader_interrupted()
            raise

    async def _wait_async(self) -> str:
        async for _ in self:
            pass
        return self.text

    async def _next_pieces(self, position: int) -> list[str]:
        state, loop = self._state, asyncio.get_running_loop()
        while True:
            state.check_process()
            with state.changed:
                if len(state.pieces) > position or state.is_done:
                    return state.pieces[position:]
                future: asyncio.Future[None] = loop.create_future()
                state.waiters.append((loop, future))
            try:
                await future
            except BaseException:  # the task was cancelled, or waited too long
                state.reader_interrupted()
                raise


class _AsyncPieces:
    """One reader of a reply. No generator: the event loop would keep that one alive for a while after `break`."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._new: list[str] = []
        self._position = 0
        self._is_reading = True
        reply._state.count_reader(1)

    def __del__(self) -> None:
        self._leave()

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        if not self._new:
            try:
                self._new = (await self._reply._next_pieces(self._position))[::-1]
            except BaseException:
                self._leave()  # now: the traceback keeps this object alive
                raise
            self._position += len(self._new)
        if self._new:
            return self._new.pop()
        error = self._reply.error
        if error is not None:
            raise error
        raise StopAsyncIteration

    def _leave(self) -> None:
        if self._is_reading:
            self._is_reading = False
            self._reply._state.count_reader(-1)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
