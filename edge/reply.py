"""A running reply, as `send` and `generate` return it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

from edge.citations import cited
from edge.errors import UsageError
from edge.events import Text
from edge.reply_state import ReplyState
from edge.structured.partial import Partials
from edge.types import kind_of

if TYPE_CHECKING:
    from edge.citations import Citation
    from edge.constraint import Constraint
    from edge.conversation.tree import Node
    from edge.device.cost import Cost
    from edge.errors import EdgeError
    from edge.events import ReplyEvent
    from edge.types import FinishReason, Timing, TokenLogprob, ToolCall, Usage

__all__ = ["Reply", "ReplyEvents"]


class Reply:
    """Text as it comes, for `for`, `async for` and `await`; safe to use from several threads and event loops at once.

        for piece in reply: ...            # or: async for piece in reply
        text = reply.wait()                # or: text = await reply
        for event in reply.events(): ...   # or: async for event in reply.events()
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
        logprobs: how likely its tokens were, so far; empty unless they were asked for.
        end_logprob: how likely the token was that ended it, if logprobs were asked for and a token did.
        tool_calls: calls that the model made, in all rounds; those of tools without a function are for the caller to run.
        answered_by: name of the model that gave the answer, and where, if that is not this device.
        escalated: why the question was sent on to the next tier; "" if it was not.
        citations: passages of documents that the prompt has, by number; the text refers to them as [1]. Empty without `docs`,
            and where nothing was found, which a notice says. `cited` are those that the text refers to.
        stopped_by: the text of `Sampling.stop` that ended it; None if none did.
        constraint: what its text has to be; None is free text.
        is_partial: it was to keep a schema or grammar, and ended before it was complete.
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
    def logprobs(self) -> list[TokenLogprob]:
        return self._state.logprobs

    @property
    def tool_calls(self) -> list[ToolCall]:
        return self._state.tool_calls

    @property
    def citations(self) -> list[Citation]:
        return self._state.citations

    @property
    def cited(self) -> tuple[Citation, ...]:
        """The citations that the text refers to so far."""
        return cited(self.text, self._state.citations)

    @property
    def end_logprob(self) -> TokenLogprob | None:
        return self._state.end_logprob

    @property
    def answered_by(self) -> str:
        return self._state.answered_by

    @property
    def escalated(self) -> str:
        return self._state.escalated

    @property
    def stopped_by(self) -> str | None:
        return self._state.stopped_by

    @property
    def error(self) -> EdgeError | None:
        return self._state.error

    @property
    def constraint(self) -> Constraint | None:
        return self._state.shape.constraint if self._state.shape is not None else None

    @property
    def is_partial(self) -> bool:
        return self._state.is_partial

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
    def reasoning(self) -> str:
        """What the model thought before it answered, so far; "" for models that do not."""
        return "".join(self._state.thoughts)

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

    def on_done(self, function: Callable[[Reply], object]) -> None:
        """Call a function with the reply once it is over: from the thread that ends it, or at once if it is over already.

        It must be quick; what it raises goes to the log. This does not keep the reply running, see `detach`.
        """
        if not callable(function):
            raise UsageError(f"on_done takes a function, not {kind_of(function)}.", "It is called with the reply.")
        state = self._state
        state.when_ended(lambda: function(Reply(state)))

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

    def value(self, timeout_s: float | None = None) -> Any:
        """Wait until the reply is over, and return the value that its schema describes.

        Args:
            timeout_s: as in `wait`.

        Returns:
            A value of the type that was asked for; dicts and lists for a schema; the text for what is not JSON.

        Raises:
            InvalidReplyError: the reply was cut off before it was complete, or the type refuses it.
            UsageError: the reply was not asked for with a schema or constraint.
            TimeoutError, EdgeError: as in `wait`.
        """
        return self._read_value(self.wait(timeout_s))

    async def avalue(self) -> Any:
        """Return `value` without blocking the event loop."""
        return self._read_value(await self)

    def partials(self) -> Partials:
        """Return the value as far as it is certain, again after every change, for `for` and `async for`.

        Dicts and lists, also where a type was asked for. Texts grow; numbers appear once they are complete.
        """
        return Partials(self)

    def _read_value(self, text: str) -> Any:
        state = self._state
        if state.shape is None:
            raise UsageError("This reply has no schema.", "Ask for one: generate(..., schema=...)")
        return state.shape.read(text, state.finish_reason, is_partial=state.is_partial)

    def __iter__(self) -> Iterator[str]:
        """Yield the text in pieces, from the start.

        Raises:
            EdgeError: the error that ended it, after the pieces before it.
        """
        for event in self._read():
            if isinstance(event, Text) and event.text:
                yield event.text

    def __aiter__(self) -> AsyncIterator[str]:
        """Yield the text in pieces, from the start, without blocking the event loop.

        Raises:
            EdgeError: the error that ended it, after the pieces before it.
        """
        return _AsyncPieces(self)

    def events(self) -> ReplyEvents:
        """Return the events of the reply, from the start: its text, and whatever else happens, in order.

        Any number of readers get all of them, also after the end. Leaving the loop is as leaving a loop over the text.
        """
        return ReplyEvents(self)

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
        while await self._next_events(len(self._state.events)):
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

    def _read(self) -> Iterator[ReplyEvent]:
        """Yield the events, and raise the error that ended the reply."""
        state, position = self._state, 0
        state.count_reader(1)
        try:
            while True:
                self._wait_until(lambda: len(state.events) > position or state.is_done)  # noqa: B023 (called right here)
                new = state.events[position:]
                if not new:
                    break
                position += len(new)
                yield from new
        finally:
            state.count_reader(-1)
        if state.error is not None:
            raise state.error

    async def _next_events(self, position: int) -> list[ReplyEvent]:
        state, loop = self._state, asyncio.get_running_loop()
        while True:
            state.check_process()
            with state.changed:
                if len(state.events) > position or state.is_done:
                    return state.events[position:]
                future: asyncio.Future[None] = loop.create_future()
                state.waiters.append((loop, future))
            try:
                await future
            except BaseException:  # the task was cancelled, or waited too long
                state.reader_interrupted()
                raise


class ReplyEvents:
    """Events of a reply, for `for` and `async for`; see `Reply.events` and `edge.events`."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def __iter__(self) -> Iterator[ReplyEvent]:
        """Yield the events, from the start.

        Raises:
            EdgeError: the error that ended the reply, after the events before it.
        """
        return self._reply._read()

    def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        """Yield the events, from the start, without blocking the event loop.

        Raises:
            EdgeError: the error that ended the reply, after the events before it.
        """
        return _AsyncEvents(self._reply)


class _AsyncEvents:
    """One reader of a reply. No generator: the event loop would keep that one alive for a while after `break`."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._new: list[ReplyEvent] = []
        self._position = 0
        self._is_reading = True
        reply._state.count_reader(1)

    def __del__(self) -> None:
        self._leave()

    def __aiter__(self) -> AsyncIterator[ReplyEvent]:
        return self

    async def __anext__(self) -> ReplyEvent:
        if not self._new:
            try:
                self._new = (await self._reply._next_events(self._position))[::-1]
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


class _AsyncPieces:
    """The texts of `_AsyncEvents`."""

    def __init__(self, reply: Reply) -> None:
        self._events = _AsyncEvents(reply)

    def __aiter__(self) -> AsyncIterator[str]:
        return self

    async def __anext__(self) -> str:
        while True:
            event = await self._events.__anext__()
            if isinstance(event, Text) and event.text:
                return event.text
