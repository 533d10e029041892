"""One reply while it is being written: started in a thread, followed on the event loop, read by whichever view shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from edge.errors import EdgeError

if TYPE_CHECKING:
    from edge.reply import Reply

__all__ = ["ReplyRun"]

Phase = Literal["starting", "reading", "writing", "done", "stopped", "failed"]


class ReplyRun:
    """A reply of one conversation. It goes on when the user looks at another conversation.

    Args:
        conversation_id: whose.
        start: begins the reply; blocks for as long as saving the message takes, so it is called in a thread.
        on_accept: called on the event loop when the message is saved.
        on_end: called on the event loop when it is over, however it ended.

    Attributes:
        text: what has been written.
        reply: the reply, once it has begun.
        error: why it failed.
        was_accepted: the message that it answers has been saved.
        n_written: about how many tokens have been written: pieces of text, which are tokens but for parts of characters.
    """

    def __init__(
        self,
        conversation_id: str,
        start: Callable[[], Reply],
        on_accept: Callable[[ReplyRun], None],
        on_end: Callable[[ReplyRun], None],
    ) -> None:
        self.conversation_id = conversation_id
        self.text = ""
        self.reply: Reply | None = None
        self.error: EdgeError | None = None
        self.was_accepted = False
        self._start = start
        self._on_accept = on_accept
        self._on_end = on_end
        self._is_stopped = False
        self._is_over = False
        self.n_written = 0
        self._times = (time.perf_counter(), 0.0, 0.0)  # of asking, of the first piece, of the last one
        self.task = asyncio.create_task(self._run(), name=f"reply in {conversation_id}")

    @property
    def phase(self) -> Phase:
        """How far it is."""
        if self._is_over:
            if self.error is not None:
                return "failed"
            return "stopped" if self.reply is not None and self.reply.finish_reason == "cancelled" else "done"
        if self.text:
            return "writing"
        return "reading" if self.reply is not None and self.reply.progress[1] else "starting"

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._is_over

    @property
    def progress(self) -> tuple[int, int]:
        """(tokens of the prompt that are read, all of them); (0, 0) before that is known."""
        return self.reply.progress if self.reply is not None else (0, 0)

    @property
    def first_token_s(self) -> float:
        """Seconds from asking to the first piece; 0 before that."""
        asked, first, _ = self._times
        return first - asked if first else 0.0

    @property
    def writing_s(self) -> float:
        """Seconds from the first to the last piece."""
        return self._times[2] - self._times[1]

    @property
    def notices(self) -> list[str]:
        """What the user should know about this reply."""
        return list(self.reply.notices) if self.reply is not None else []

    def stop(self) -> None:
        """Stop writing; what was written stays."""
        self._is_stopped = True
        if self.reply is not None:
            self.reply.cancel()

    async def _run(self) -> None:
        try:
            self.reply = await asyncio.to_thread(self._start)
            self.was_accepted = True
            self._on_accept(self)
            if self._is_stopped:
                self.reply.cancel()
            async for piece in self.reply:
                self.text += piece
                self.n_written += 1
                asked, first, _ = self._times
                now = time.perf_counter()
                self._times = (asked, first or now, now)
        except EdgeError as error:
            self.error = error
        except Exception as unexpected:  # noqa: BLE001 (a bug below us; it is shown in place, and the app goes on)
            self.error = EdgeError(f"The reply broke down: {unexpected!r}.", "Please report this.")
            self.error.__cause__ = unexpected
        finally:
            self._is_over = True
            self._on_end(self)
