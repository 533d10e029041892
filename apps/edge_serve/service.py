"""What all requests share: the models, the settings, the counters, and whether the server is stopping."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.errors import CancelledError
from edge_serve.metrics import Counters

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.config import Settings
    from edge.reply import Reply
    from edge.runtime import Runtime
    from edge_serve.keys import Keys
    from edge_serve.offer import Offer
    from edge_serve.tracing import Tracing

__all__ = ["Service"]

_LONGEST_RETRY_S = 60


@dataclass
class Service:
    """See the module.

    Attributes:
        runtime: loads the models.
        offer: which models there are.
        settings: of everything.
        keys: who may use the server.
        counters: for the metrics and the log.
        replies: that run now, each with its model and when it was asked for (of `time.perf_counter`).
        tracing: where spans of requests go; None traces nothing.
        waits: of requests for a model that is being loaded.
        is_starting: the default model was not tried yet.
        problem: why the default model could not be loaded; "" if nothing is known against it.
        is_stopping: the server is about to end.
        started_at: in seconds since 1970.
    """

    runtime: Runtime
    offer: Offer
    settings: Settings
    keys: Keys
    counters: Counters = field(default_factory=Counters)
    replies: dict[Reply, tuple[str, float]] = field(default_factory=dict)
    tracing: Tracing | None = None
    waits: set[asyncio.Future[Assistant]] = field(default_factory=set)
    is_starting: bool = False
    problem: str = ""
    is_stopping: bool = False
    started_at: int = field(default_factory=lambda: int(time.time()))

    @property
    def retry_after_s(self) -> int:
        """When a client that was refused may try again, in whole seconds: about when a reply of now will have ended."""
        return max(1, min(_LONGEST_RETRY_S, round(self.counters.reply_s)))

    @property
    def state(self) -> str:
        """In a word: "ok", "loading", "failed" or "stopping"."""
        if self.is_stopping:
            return "stopping"
        if self.problem and not self.runtime.loaded:
            return "failed"
        return "loading" if self.is_starting or (self.runtime.loading and not self.runtime.loaded) else "ok"

    def check_running(self) -> None:
        """Raise a CancelledError if the server is about to end."""
        if self.is_stopping:
            raise CancelledError("The server is stopping.")

    def stop_replies(self) -> None:
        """Stop all replies and waits; what was written so far is sent before the connections are closed."""
        self.is_stopping = True
        for wait in list(self.waits):
            wait.cancel()
        for reply in list(self.replies):
            reply.cancel()
