"""A larger model on this device as a tier: it is held for one answer at a time, so that its memory can be used otherwise."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

from edge.errors import BackendError
from edge.tiers.base import Ended, Outgoing, broke

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.reply import Reply
    from edge.request import Request
    from edge.tiers.base import TierEvent

__all__ = ["Hold", "LocalTier"]

Hold = Callable[[], "AbstractContextManager[Assistant]"]
"""Holds the model for the time of an answer; loads it first if it is not in memory."""


class LocalTier:
    """A larger model on this device. Tools and schemas work as with any model; LoRA adapters stay with the first one.

    Args:
        name: of the model.
        hold: see `Hold`. It may raise any EdgeError: the first model answers then.
        on_close: frees what `hold` loads.
    """

    is_remote = False

    def __init__(self, name: str, hold: Hold, on_close: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self._hold, self._on_close = hold, on_close

    def why_not(self, request: Request) -> str:
        return "it asks for adapters of another model" if request.lora else ""

    def outgoing(self, request: Request, why: str = "") -> Outgoing | None:
        return None

    def start(self, request: Request, put: Callable[[TierEvent], None]) -> Callable[[], None]:
        answer = _Answer(self._hold, request, put)
        threading.Thread(target=answer.run, name="edge-tier-local", daemon=True).start()
        return answer.cancel

    def close(self) -> None:
        self._on_close()


class _Answer:
    """One answer, in a thread of its own: loading the model takes its time."""

    def __init__(self, hold: Hold, request: Request, put: Callable[[TierEvent], None]) -> None:
        self._hold, self._put = hold, put
        # Tools are run, and schemas are checked, by the turn that asks; prompts of another model share no KV cache.
        tools = tuple(replace(tool, function=None) for tool in request.options.tools)
        options = replace(request.options, tools=tools)
        self._request = replace(request, options=options, lora=None, mix=(), shared=None, owner=None)
        self._reply: Reply | None = None
        self._is_cancelled = False
        self._lock = threading.Lock()

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
            reply = self._reply
        if reply is not None:
            reply.cancel()
        else:
            self._put(Ended("cancelled", ""))

    def run(self) -> None:
        try:
            with self._hold() as assistant:
                with self._lock:
                    if self._is_cancelled:
                        return
                    self._reply = reply = assistant.pass_on(self._request)
                for event in reply.events():
                    self._put(event)
                reason = reply.finish_reason or "error"
                about = (reply.usage, reply.timing, reply.stopped_by, reply.is_partial)
                self._put(Ended(reason, assistant.model_name, *about))
        except Exception as error:  # noqa: BLE001 (whoever waits must hear of it)
            unexpected = BackendError(f"The larger model broke down: {error!r}.", "Please report this.")
            self._put(broke(error, unexpected))
