"""The tokens of the message being written, before it is sent: counted in a thread, once typing pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from textual.timer import Timer

from edge.errors import EdgeError
from edge_chat import attachments as att
from edge_chat.commands import parse_slash

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.conversation import Attachment, Node
    from edge_chat.screens.chat import ChatScreen

__all__ = ["Measured", "Meter", "measure"]

_PAUSE_S = 0.25
_EXACT_CHARS = 400_000  # of a longer text only the beginning is counted
_PER_MESSAGE = 8  # tokens that a template puts around a message


@dataclass(frozen=True, slots=True)
class Measured:
    """Tokens of a message that is not sent yet.

    Attributes:
        n_tokens: of text and attachments; 0 for an empty message and for a command.
        room: the most that a message may have in the context window.
        of_attachments: name -> tokens.
    """

    n_tokens: int = 0
    room: int = 0
    of_attachments: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_too_long(self) -> bool:
        """Return whether no window is large enough for it."""
        return self.n_tokens > self.room > 0


def measure(
    assistant: Assistant, text: str, attachments: Sequence[Attachment], *, cwd: Path, max_bytes: int, max_tokens: int | None
) -> Measured:
    """Count the tokens of a message. Blocks: it reads mentioned files and tokenises.

    Args:
        assistant: the loaded model.
        text, attachments: the message.
        cwd, max_bytes: of mentioned files, as in `read_attachment`.
        max_tokens: longest reply; None is no limit.
    """
    if parse_slash(text) is not None or not (text.strip() or attachments):
        return Measured()
    parts = list(attachments)
    names = {attachment.name for attachment in parts}
    for path in att.find_mentions(text, cwd):
        if path not in names:
            try:
                parts.append(att.read_attachment(path, cwd, max_bytes))
            except EdgeError:
                pass  # sending says why
    counts = {part.name: _count(assistant, part.text) + _PER_MESSAGE for part in parts}
    reserve = assistant.n_ctx // 4
    room = assistant.n_ctx - (reserve if max_tokens is None else min(max_tokens, reserve))
    return Measured(_count(assistant, text) + sum(counts.values()) + _PER_MESSAGE, room, counts)


def measure_path(assistant: Assistant, nodes: Sequence[Node]) -> int:
    """Return about how many tokens the messages of a path take. Blocks."""
    return sum(_count(assistant, node.message().content) + _PER_MESSAGE for node in nodes)


def _count(assistant: Assistant, text: str) -> int:
    part = text[:_EXACT_CHARS]
    return round(assistant.count_tokens(part) * len(text) / len(part)) if part else 0


class Meter:
    """Shows the tokens of what is being written in the status line, at the message box and on its attachments."""

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._timer: Timer | None = None
        self._n_asked = self._n_counting = 0
        self.measured = Measured()

    @property
    def is_waiting(self) -> bool:
        """Return whether tokens are being counted, or will be once typing pauses."""
        return self._timer is not None or self._n_counting > 0

    def touch(self) -> None:
        """Count once typing pauses. An empty message is shown as such at once."""
        if self._timer is not None:
            self._timer.stop()
        composer = self._screen.composer
        if not composer.text.strip() and not composer.attachments:
            self._timer = None
            self._n_asked += 1
            self._show(Measured())
        else:
            self._timer = self._screen.set_timer(_PAUSE_S, lambda: self._screen.run_guarded(self._measure))

    async def _measure(self) -> None:
        self._timer = None
        screen, assistant = self._screen, self._screen.app.host.assistant
        if assistant is None:
            return
        self._n_asked += 1
        number = self._n_asked
        composer, max_tokens = screen.composer, screen.controller.sampling.max_tokens
        text, attachments = composer.text, composer.attachments
        max_bytes = screen.app.settings.chat.attachment_bytes

        def count() -> Measured:
            return measure(assistant, text, attachments, cwd=composer.cwd, max_bytes=max_bytes, max_tokens=max_tokens)

        self._n_counting += 1
        try:
            measured = await asyncio.to_thread(count)
        except EdgeError:
            return  # the model was replaced meanwhile
        finally:
            self._n_counting -= 1
        if number == self._n_asked:
            self._show(measured)

    def _show(self, measured: Measured) -> None:
        if measured == self.measured:
            return
        self.measured = measured
        n_tokens, too_long = measured.n_tokens, measured.is_too_long
        self._screen.status.change(draft=n_tokens, is_draft_too_long=too_long)
        complaint = (
            f"This message has about {n_tokens:,} tokens, and there is room for {measured.room:,}. Shorten it, or send parts."
        )
        self._screen.composer.show_size(complaint if too_long else "")
        self._screen.composer.show_tokens(measured.of_attachments)

    async def measure_page(self) -> None:
        """Count the messages of a conversation whose last reply has no figures, as after a crash."""
        assistant, page = self._screen.app.host.assistant, self._screen.controller.page
        if assistant is None or page is None or not page.nodes or page.info.id in self._screen.controller.busy_ids:
            return
        if page.nodes[-1].record.get("usage"):
            return
        try:
            n_tokens = await asyncio.to_thread(measure_path, assistant, page.nodes)
        except EdgeError:
            return
        now = self._screen.controller.page
        if now is not None and now.nodes == page.nodes and page.info.id not in self._screen.controller.busy_ids:
            self._screen.status.change(used=n_tokens)
