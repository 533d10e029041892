"""Read-ahead: a message is prefilled while it is being written, so that its reply begins sooner.

Once typing pauses, and every second without a pause, the conversation, the attachments and the text so far are prefilled in the
background, as far as the tokens cannot change any more; behind a whole sentence, at once and to the end of the prompt, as the
next key may send it. What is edited afterwards costs only its own prefill; sending ends it, and the reply reuses what is there.
Nothing is stored on the disk before the message is sent. It waits while replies are generated, and leaves the battery alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, NamedTuple

from textual.timer import Timer

from edge.errors import EdgeError
from edge.prompt.sentences import ends_sentence
from edge_chat import attachments as att
from edge_chat.commands import parse_slash
from edge_chat.documents import take_docs

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.conversation import Attachment
    from edge.reply import Reply
    from edge_chat.screens.chat import ChatScreen

__all__ = ["ReadAhead"]

_PAUSE_S = 0.4
_SENTENCE_PAUSE_S = 0.05  # Enter may be the next key
_LONGEST_S = 1.0  # of typing without a pause
_POWER_S = 10.0  # between two looks at the battery


class _Draft(NamedTuple):
    """A message that is being written, and where."""

    assistant: Assistant
    conversation_id: str
    text: str
    attachments: tuple[Attachment, ...]

    def continues(self, earlier: _Draft) -> bool:
        """Return whether all that an earlier draft prefills is part of this one."""
        return self[:2] == earlier[:2] and self.attachments == earlier.attachments and self.text.startswith(earlier.text)


class ReadAhead:
    """Prefills the message in the composer of a screen, one draft after the other."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._timer: Timer | None = None
        self._typed_since: float | None = None  # the oldest key that no prefill has looked at
        self._draft: _Draft | None = None  # prefilled last, or now
        self._reply: Reply | None = None  # its prefill, while that runs
        self._is_running = False
        self._has_power, self._looked_at = False, float("-inf")

    @property
    def is_waiting(self) -> bool:
        """Return whether something is being prefilled, or will be once typing pauses."""
        return self._timer is not None or self._is_running

    def touch(self, pause_s: float | None = None) -> None:
        """Prefill what is in the composer once typing pauses, or has gone on for long; stop what no longer fits it.

        Args:
            pause_s: the pause, in seconds; None is the usual one. Speech is not typed on.
        """
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        if not self._screen.app.settings.chat.read_ahead:
            return
        wanted = self._wanted()
        if self._draft is not None and (wanted is None or not wanted.continues(self._draft)):
            self._draft = None
            if self._reply is not None:
                self._reply.cancel()
        if self._is_message:
            is_whole = ends_sentence(self._screen.composer.text.rstrip())
            usual_s = _SENTENCE_PAUSE_S if is_whole else _PAUSE_S
            now = time.monotonic()
            self._typed_since = now if self._typed_since is None else self._typed_since
            wait_s = min(self._typed_since + _LONGEST_S - now, usual_s if pause_s is None else pause_s)
            if wait_s > 0:
                self._timer = self._screen.set_timer(wait_s, self._pause)
            else:  # a timer of no time is an error now and then
                self._pause()
        else:
            self._typed_since = None

    def _pause(self) -> None:
        self._timer = self._typed_since = None
        if not self._is_running:
            self._is_running = True
            self._screen.run_guarded(self._run)

    @property
    def _is_message(self) -> bool:
        """Return whether the composer holds a new message."""
        composer = self._screen.composer
        text = composer.text.strip()
        return bool(text or composer.attachments) and parse_slash(text) is None and self._screen.controller.editing is None

    def _wanted(self) -> _Draft | None:
        """Return what to prefill now; None for nothing."""
        assistant, conversation_id = self._screen.app.host.assistant, self._screen.controller.active_id
        if assistant is None or conversation_id is None or not self._is_message:
            return None
        text = self._screen.composer.text.strip()
        said = text[1:] if text.startswith("//") else text
        if take_docs(said)[1]:
            return None  # passages that are not known yet come first
        return _Draft(assistant, conversation_id, said, self._screen.composer.attachments)

    async def _run(self) -> None:
        """Prefill what is in the composer, and again what has been written meanwhile, unless somebody is typing."""
        try:
            if self._is_message:
                with contextlib.suppress(EdgeError):  # saving the draft, which does the same, says why
                    await self._screen.controller.ensure_saved()
            while self._timer is None and (wanted := self._wanted()) is not None and wanted != self._draft:
                if self._screen.controller.busy_ids or wanted.assistant.held_back or not await self._looks_powered():
                    return
                self._draft = wanted
                with contextlib.suppress(EdgeError):  # sending says why
                    await self._prefill(wanted)
        finally:
            self._is_running, self._reply = False, None

    async def _looks_powered(self) -> bool:
        """Return whether the device does not run on battery."""
        if time.monotonic() - self._looked_at >= _POWER_S:
            self._has_power, self._looked_at = await asyncio.to_thread(_is_powered), time.monotonic()
        return self._has_power

    async def _prefill(self, draft: _Draft) -> None:
        cwd, max_bytes = self._screen.composer.cwd, self._screen.app.settings.chat.attachment_bytes

        def begin() -> Reply:
            attachments = att.with_mentions(draft.text, draft.attachments, cwd, max_bytes)
            conversation = self._screen.controller.sending.conversation(draft.conversation_id)
            return conversation.prewarm(draft.text, attachments=attachments, cache="memory")

        reply = await asyncio.to_thread(begin)
        now = self._wanted()
        if now is None or not now.continues(draft) or self._screen.controller.busy_ids:  # sent or changed meanwhile
            reply.cancel()
        self._reply = reply
        await reply
        self._reply = None


def _is_powered() -> bool:
    from edge.device.sensors import Sensors

    return not Sensors().read().is_on_battery
