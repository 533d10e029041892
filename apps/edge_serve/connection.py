"""A connection of uvicorn with the bounds that it lacks: how many there are, and how long a request may take to arrive."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from edge_serve import limits

__all__ = ["Connection"]


class Connection(H11Protocol):
    """See the module."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close the connection at once if there are too many, or after a while if no request comes."""
        super().connection_made(transport)
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
        """Forget the timer."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(limits.HEADER_S, self._give_up)

    def _give_up(self) -> None:
        transport: Any = self.transport
        if transport is not None and not transport.is_closing():
            transport.abort()
