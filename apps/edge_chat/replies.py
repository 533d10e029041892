"""One reply being generated: started in a thread, followed on the event loop, shown by any view."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from edge import events
from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.citations import Citation
    from edge.conversation import Node
    from edge.events import ReplyEvent
    from edge.reply import Reply
    from edge.types import ToolCall

__all__ = ["ReplyRun"]

Phase = Literal["starting", "prefill", "decode", "done", "stopped", "failed"]


class ReplyRun:
    """A reply in one conversation. It continues while another conversation is on the screen.

    Args:
        conversation_id: of the conversation.
        start: starts the reply; blocks while the message is saved, so it is called in a thread.
        on_accept: called on the event loop once the message is saved.
        on_end: called on the event loop when the reply has ended, in whatever way.
        continued: the answer that it continues; None for a new one.

    Attributes:
        text: generated so far, without the text of the answer that it continues.
        reasoning: thoughts so far.
        calls: tool calls so far, each with the text of its result, or None while it has none.
        citations: passages of documents that it rests on.
        reply: the reply, once started.
        error: why it failed.
        was_accepted: the message that it answers is saved.
        is_over: nothing more will come.
        has_ended: set once it is shown as saved.
        on_text: called with each piece of text.
        n_generated: about how many tokens: pieces of text, which are tokens except for parts of characters.
    """

    def __init__(
        self,
        conversation_id: str,
        start: Callable[[], Reply],
        on_accept: Callable[[ReplyRun], None],
        on_end: Callable[[ReplyRun], None],
        continued: Node | None = None,
    ) -> None:
        self.conversation_id = conversation_id
        self.continued = continued
        self.text = self.reasoning = ""
        self.calls: list[tuple[ToolCall, str | None]] = []
        self.citations: tuple[Citation, ...] = ()
        self.reply: Reply | None = None
        self.error: EdgeError | None = None
        self.was_accepted = self.is_over = False
        self.on_text: Callable[[str], None] = lambda text: None
        self.has_ended = asyncio.Event()
        self.n_generated = 0
        self._start = start
        self._on_accept = on_accept
        self._on_end = on_end
        self._is_stopped = False
        self._times = (time.perf_counter(), 0.0, 0.0)  # of the request, the first piece, the last piece
        self.task = asyncio.create_task(self._run(), name=f"reply in {conversation_id}")

    @property
    def phase(self) -> Phase:
        """Return the current phase."""
        if self.is_over:
            if self.error is not None:
                return "failed"
            return "stopped" if self.reply is not None and self.reply.finish_reason == "cancelled" else "done"
        if self.text or self.reasoning or self.calls:
            return "decode"
        return "prefill" if self.reply is not None and self.reply.progress[1] else "starting"

    @property
    def shown(self) -> str:
        """Return the text of the message so far, half a character at the end of a continued one left out."""
        before = self.continued.content if self.continued is not None else ""
        return (before.rstrip("\ufffd") if self.text else before) + self.text

    @property
    def progress(self) -> tuple[int, int]:
        """Return (prompt tokens processed, all prompt tokens); (0, 0) before that is known."""
        return self.reply.progress if self.reply is not None else (0, 0)

    @property
    def first_token_s(self) -> float:
        """Return seconds from the request to the first piece; 0 before that."""
        asked, first, _ = self._times
        return first - asked if first else 0.0

    @property
    def elapsed_s(self) -> float:
        """Return seconds since the request, up to the last piece once it is over."""
        asked, _, last = self._times
        return (last or time.perf_counter()) - asked if self.is_over else time.perf_counter() - asked

    @property
    def decode_s(self) -> float:
        """Return seconds from the first to the last piece."""
        return self._times[2] - self._times[1]

    @property
    def notices(self) -> list[str]:
        """Return what the user should know about this reply."""
        return list(self.reply.notices) if self.reply is not None else []

    def stop(self) -> None:
        """Stop generating; the text so far stays."""
        self._is_stopped = True
        if self.reply is not None:
            self.reply.cancel()

    def _take(self, event: ReplyEvent) -> None:
        """Note what an event says."""
        match event:
            case events.Text(text):
                self.text += text
                self.on_text(text)
            case events.Reasoning(text):
                self.reasoning += text
            case events.Passages(citations):
                self.citations = citations
                return
            case events.ToolCall(call):
                self.calls.append((call, None))
                return
            case events.ToolResult(call, text):
                self.calls = [(known, text if known == call else result) for known, result in self.calls]
                return
            case _:
                return
        self.n_generated += 1
        asked, first, _ = self._times
        now = time.perf_counter()
        self._times = (asked, first or now, now)

    async def _run(self) -> None:
        try:
            self.reply = await asyncio.to_thread(self._start)
            self.was_accepted = True
            self._on_accept(self)
            if self._is_stopped:
                self.reply.cancel()
            async for event in self.reply.events():
                self._take(event)
        except EdgeError as error:
            self.error = error
        except Exception as unexpected:  # noqa: BLE001 (a bug below us; it is shown in place, and the app goes on)
            self.error = EdgeError(f"The reply failed because of a bug: {unexpected!r}.", "Please report this.")
            self.error.__cause__ = unexpected
        finally:
            self.is_over = True
            self._on_end(self)
