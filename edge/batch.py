"""Many replies, a few at a time, each given as it ends."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from edge.reply import Reply

__all__ = ["Batch"]

Start: TypeAlias = "Callable[[Any], Reply]"


class Batch:
    """Numbers of prompts and their replies, as they end, for `for` and `async for`. Made by `Assistant.batch`.

        for number, reply in ai.batch(prompts): ...         # or: async for number, reply in ai.batch(prompts)

    Leaving the loop stops the replies that run.

    Args:
        prompts: (number, prompt), in the order in which they are started.
        start: starts the reply to a prompt.
        n_at_once: replies that run at the same time.
    """

    def __init__(self, prompts: Iterable[tuple[int, Any]], start: Start, n_at_once: int) -> None:
        self._prompts, self._start, self._n_at_once = prompts, start, n_at_once

    def __iter__(self) -> Iterator[tuple[int, Reply]]:
        """Yield the number of a prompt and its reply, which is over. Its `error` is set, and `wait` raises it, if it failed.

        Raises:
            UsageError: a prompt is wrong.
            BackendError: the assistant is closed, or was loaded in another process.
        """
        ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        running = _Running(self._prompts, self._start, self._n_at_once, ended.put)
        try:
            while running.fill():
                number = ended.get()
                reply = running.pop(number)
                running.fill()  # before the caller does something with this one
                yield number, reply
        finally:
            running.stop()

    def __aiter__(self) -> AsyncIterator[tuple[int, Reply]]:
        """Yield as `__iter__` does, without blocking the event loop."""
        return _AsyncBatch(self._prompts, self._start, self._n_at_once)


class _Running:
    """The replies of one loop over a batch.

    Args:
        prompts, start, n_at_once: see `Batch`.
        on_end: called with the number of a reply that is over, from any thread.
    """

    def __init__(self, prompts: Iterable[tuple[int, Any]], start: Start, n_at_once: int, on_end: Callable[[int], None]) -> None:
        self._prompts, self._start, self._n_at_once, self._on_end = iter(prompts), start, n_at_once, on_end
        self._replies: dict[int, Reply] = {}

    def fill(self) -> bool:
        """Start as many replies as may run; return False if none runs any more."""
        while len(self._replies) < self._n_at_once:
            found = next(self._prompts, None)
            if found is None:
                break
            number, prompt = found
            reply = self._replies[number] = self._start(prompt)
            reply.on_done(_telling(self._on_end, number))
        return bool(self._replies)

    def pop(self, number: int) -> Reply:
        """Return a reply that is over."""
        return self._replies.pop(number)

    def stop(self) -> None:
        """Stop all that still run."""
        while self._replies:
            self._replies.popitem()[1].cancel()


def _telling(on_end: Callable[[int], None], number: int) -> Callable[[Reply], None]:
    return lambda reply: on_end(number)


class _AsyncBatch:
    """One loop over a batch. No generator: the event loop would keep that one alive for a while after `break`."""

    def __init__(self, prompts: Iterable[tuple[int, Any]], start: Start, n_at_once: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Queue[int] = asyncio.Queue()
        loop, ended = self._loop, self._ended  # a running reply must not hold this object, which stops it when it is dropped

        def tell(number: int) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits there
                loop.call_soon_threadsafe(ended.put_nowait, number)

        self._running = _Running(prompts, start, n_at_once, tell)

    def __del__(self) -> None:
        self._running.stop()

    def __aiter__(self) -> AsyncIterator[tuple[int, Reply]]:
        return self

    async def __anext__(self) -> tuple[int, Reply]:
        try:
            if not self._running.fill():
                raise StopAsyncIteration
            number = await self._ended.get()
            reply = self._running.pop(number)
            self._running.fill()
            return number, reply
        except BaseException:
            self._running.stop()  # now: the traceback keeps this object alive
            raise
