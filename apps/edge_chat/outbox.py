"""Messages between the composer and the store, and drafts.

Every message on its way is saved as a draft, so that it survives a crash and returns to the composer if it cannot be sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import EdgeError
from edge_chat.attachments import pack_draft

if TYPE_CHECKING:
    from edge.conversation import Attachment, ConversationStore
    from edge_chat.library import Library

__all__ = ["Departure", "Outbox", "Outgoing"]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message that is not saved yet. `edited` is the message it replaces; None for a new one."""

    text: str
    attachments: tuple[Attachment, ...]
    edited: int | None = None

    def as_draft(self) -> str:
        """Return the form in which the store keeps it until it is sent."""
        return pack_draft(self.text, self.attachments, self.edited)


@dataclass(eq=False, slots=True)
class Departure:
    """A message from Enter until it is sent or waits. It belongs to the conversation it was typed in, which may be unsaved.

    `visit` tells one unsaved conversation from the next.
    """

    message: Outgoing
    visit: int
    conversation_id: str | None


class Outbox:
    """All typed text that is not a saved message yet.

    Args:
        library: stores the drafts.
        on_error: called, in another thread, when a draft cannot be saved.

    Attributes:
        departures: messages that left the composer and are being prepared.
        waiting: conversation -> the message that waits for the model or for the previous reply.
        unsaved: conversation -> the message being handed to the model.
    """

    def __init__(self, library: Library, on_error: Callable[[EdgeError], object]) -> None:
        self.departures: list[Departure] = []
        self.waiting: dict[str, Outgoing] = {}
        self.unsaved: dict[str, Outgoing] = {}
        self._library = library
        self._on_error = on_error
        self._drafts: dict[str, str] = {}

    def pending(self, conversation_id: str) -> Outgoing | None:
        """Return the message of a conversation that was sent but is not saved yet."""
        departing = (d.message for d in self.departures if d.conversation_id == conversation_id)
        return self.waiting.get(conversation_id) or self.unsaved.get(conversation_id) or next(departing, None)

    def note_saved_draft(self, conversation_id: str, draft: str) -> None:
        """Remember the draft that the store has."""
        self._drafts[conversation_id] = draft

    def save_draft(self, conversation_id: str, draft: str) -> None:
        """Save a draft, unless it is saved already."""
        if self._drafts.get(conversation_id) != draft:
            self._drafts[conversation_id] = draft
            self.post(lambda store: store.set_draft(conversation_id, draft))

    def forget(self, conversation_id: str) -> None:
        """Drop a conversation that is about to be deleted."""
        self.waiting.pop(conversation_id, None)
        self._drafts.pop(conversation_id, None)

    def post(self, work: Callable[[ConversationStore], object]) -> None:
        """Run something in the store's thread without waiting for it; report its errors."""

        def guarded(store: ConversationStore) -> None:
            try:
                work(store)
            except EdgeError as error:
                self._on_error(error)

        self._library.post(guarded)
