"""Events for readers: a queue that `for` and `async for` read."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_voice.events import VoiceEvent

__all__ = ["EventStream"]

_MOST = 10_000  # that wait for a reader; the oldest go first


class EventStream:
    """Events in order, each for one reader. `add` and `end` may be called by any thread."""

    def __init__(self) -> None:
        self._events: deque[VoiceEvent] = deque(maxlen=_MOST)
        self._is_over = False
        self._changed = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def add(self, event: VoiceEvent) -> None:
        """Add an event."""
        self._events.append(event)
        self._wake()

    def end(self) -> None:
        """Let readers end once they have read what is there."""
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
            waiters, self._waiters = self._waiters, []
        for loop, future in waiters:
            try:
                loop.call_soon_threadsafe(_resolve, future)
            except RuntimeError:
                pass  # that loop is closed, and its reader gone

    def get(self, timeout_s: float | None = None) -> VoiceEvent | None:
        """Return the next event; None at the end, or after timeout_s seconds without one."""
        with self._changed:
            self._changed.wait_for(lambda: self._events or self._is_over, timeout_s)
            return self._events.popleft() if self._events else None

    def __iter__(self) -> Iterator[VoiceEvent]:
        while (event := self.get()) is not None:
            yield event

    async def __aiter__(self) -> AsyncIterator[VoiceEvent]:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if not self._events and self._is_over:
                    return
                future = None if self._events else loop.create_future()
                if future is not None:
                    self._waiters.append((loop, future))
            if future is not None:
                await future
            elif self._events:
                yield self._events.popleft()


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
