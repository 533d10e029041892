"""A connection of uvicorn with the bounds that it lacks: how many there are, and how long a request may take to arrive and its
response to be read."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from edge_serve import limits

__all__ = ["Connection"]


class Connection(H11Protocol):
    """See the module."""

    _timer: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close the connection at once if there are too many, or after a while if no request comes."""
        super().connection_made(transport)
        stream = transport.get_extra_info("socket")
        if stream is not None and stream.family != getattr(socket, "AF_UNIX", None):
            # asyncio does so only where a socket names its protocol, and those of `socket.create_server` do not. Without it
            # each answer and each token waits, up to 40 ms, for the client to acknowledge the one before.
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        transport.set_write_buffer_limits(high=0)  # so that `pause_writing` hears of everything that is not read
        if len(self.connections) > limits.CONNECTIONS:
            transport.abort()
            return
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        """Read what came, and wait no longer once it is the head of a request."""
        cycle = self.cycle
        super().data_received(data)
        if self.cycle is not cycle and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif self._timer is None and self.cycle.response_complete:  # the next request on the same connection begins
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for timer in (self._timer, self._sending):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to watch if the client reads at all. Closing would wait for it for ever."""
        super().pause_writing()
        self._watch_sending(None)

    def resume_writing(self) -> None:
        """Watch no longer."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        super().resume_writing()

    def _watch_sending(self, before: int | None) -> None:
        """Give up when nothing was read since the last look; `before` are the bytes that waited then."""
        n_waiting = self.transport.get_write_buffer_size()
        if before is not None and n_waiting >= before:
            self._give_up(is_forced=True)
            return
        self._sending = self.loop.call_later(limits.SEND_S, self._watch_sending, n_waiting)

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(limits.HEADER_S, self._give_up)

    def _give_up(self, *, is_forced: bool = False) -> None:
        transport: Any = self.transport
        if transport is not None and (is_forced or not transport.is_closing()):
            transport.abort()
