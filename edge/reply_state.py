"""What a turn writes and its `Reply` reads: events in order, and how the reply ended."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.device.cost import Cost
from edge.errors import BackendError
from edge.events import Notice, Passages, Progress, Reasoning, ReplyEvent, Text, ToolCall
from edge.types import FinishReason, Timing, TokenLogprob, Usage
from edge.types import ToolCall as Call

if TYPE_CHECKING:
    from edge.citations import Citation
    from edge.conversation.tree import Node
    from edge.errors import EdgeError
    from edge.structured.shapes import Shape

__all__ = ["ReplyState"]

_log = logging.getLogger("edge.reply")


@dataclass(eq=False)
class ReplyState:
    """Everything that a turn writes and its `Reply` reads. The turn holds only this, so that a dropped Reply is noticed.

    Attributes:
        shape: how `Reply.value` reads the text.
        events: all events so far; `emit` adds one.
        pieces, thoughts: the texts in them.
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
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tool_calls: list[Call] = field(default_factory=list)
    citations: list[Citation] = field(default_factory=list)
    end_logprob: TokenLogprob | None = None
    stopped_by: str | None = None
    answered_by: str = ""
    escalated: str = ""
    shape: Shape | None = None
    is_partial: bool = False
    error: EdgeError | None = None
    is_cancelled: bool = False
    is_detached: bool = False
    is_repeating: bool = False
    n_readers: int = 0
    events: list[ReplyEvent] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = field(default_factory=list)
    process: int = field(default_factory=os.getpid)
    _on_cancel: Callable[[], None] | None = None
    _on_end: list[Callable[[], object]] = field(default_factory=list)

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

    def emit(self, event: ReplyEvent) -> None:
        """Add an event and what it says, and wake the readers."""
        with self.changed:
            match event:
                case Text(text, logprobs):
                    if text:
                        self.pieces.append(text)
                    self.logprobs.extend(logprobs)
                case Reasoning(text, logprobs):
                    self.thoughts.append(text)
                    self.logprobs.extend(logprobs)
                case ToolCall(call):
                    self.tool_calls.append(call)
                case Passages(citations):
                    self.citations = list(citations)
                case Notice(text):
                    self.notices.append(text)
                case Progress(done, total):
                    self.progress = (done, total)
            self.events.append(event)
            self._wake()

    def note(self, text: str) -> None:
        """Add a notice."""
        self.emit(Notice(text))

    def end(self, reason: FinishReason, error: EdgeError | None = None) -> None:
        """End the reply."""
        with self.changed:
            self.error = error
            self.finish_reason = reason
            self._on_cancel = None
            self._wake()
            on_end, self._on_end = self._on_end, []
        for call in on_end:
            _run(call)

    def when_ended(self, call: Callable[[], object]) -> None:
        """Call a function once the reply is over, from the thread that ends it; at once, if it is over already."""
        with self.changed:
            if not self.is_done:
                self._on_end.append(call)
                return
        _run(call)

    def _wake(self) -> None:
        self.changed.notify_all()
        waiters, self.waiters = self.waiters, []
        for loop, future in waiters:
            try:
                loop.call_soon_threadsafe(_resolve, future)
            except RuntimeError:
                pass  # that event loop is closed: nobody waits there


def _run(call: Callable[[], object]) -> None:
    """Call what a program asked for. Its error is the program's, and must not end the turn's thread."""
    try:
        call()
    except Exception:  # noqa: BLE001 (whatever it raises goes to the log)
        _log.exception("A function that Reply.on_done was given raised an error")


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
