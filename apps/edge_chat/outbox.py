"""Messages between the composer and the store, and what is typed but not sent. Nothing of either is kept anywhere else, so
that it outlives the process, and comes back to where it was typed when it cannot be sent."""

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
    """A message on its way.

    Attributes:
        text, attachments: what is said.
        edited: the message it replaces; None for a new one.
    """

    text: str
    attachments: tuple[Attachment, ...]
    edited: int | None = None

    def as_draft(self) -> str:
        """As the store keeps it until it is sent."""
        return pack_draft(self.text, self.attachments, self.edited)


@dataclass(eq=False, slots=True)
class Departure:
    """A message from Enter until it is sent or waits. It belongs where it was written, whatever is on the screen by then.

    Attributes:
        message: as it was typed.
        visit: the visit to a page in which it was written.
        conversation_id: whose it is; None as long as that conversation is not saved.
    """

    message: Outgoing
    visit: int
    conversation_id: str | None


class Outbox:
    """Everything that was typed and is not a saved message yet.

    Args:
        library: where drafts are kept.
        on_error: told, in another thread, of what could not be kept.

    Attributes:
        departures: messages that left the composer and are being made ready.
        waiting: conversation -> the message that waits for the model or for the reply before it.
        unsaved: conversation -> the message that is being handed to the model.
    """

    def __init__(self, library: Library, on_error: Callable[[EdgeError], object]) -> None:
        self.departures: list[Departure] = []
        self.waiting: dict[str, Outgoing] = {}
        self.unsaved: dict[str, Outgoing] = {}
        self._library = library
        self._on_error = on_error
        self._drafts: dict[str, str] = {}

    def on_hold(self, conversation_id: str) -> Outgoing | None:
        """The message of a conversation that was sent, but is not saved as one yet."""
        departing = (d.message for d in self.departures if d.conversation_id == conversation_id)
        return self.waiting.get(conversation_id) or self.unsaved.get(conversation_id) or next(departing, None)

    def know_draft(self, conversation_id: str, draft: str) -> None:
        """Remember what the store has as the draft of a conversation."""
        self._drafts[conversation_id] = draft

    def keep_draft(self, conversation_id: str, draft: str) -> None:
        """Save a draft, unless it is saved already."""
        if self._drafts.get(conversation_id) != draft:
            self._drafts[conversation_id] = draft
            self.post(lambda store: store.set_draft(conversation_id, draft))

    def forget(self, conversation_id: str) -> None:
        """Let go of a conversation that is about to be deleted."""
        self.waiting.pop(conversation_id, None)
        self._drafts.pop(conversation_id, None)

    def post(self, work: Callable[[ConversationStore], object]) -> None:
        """Do something in the store's thread that nobody waits for; its errors are told."""

        def guarded(store: ConversationStore) -> None:
            try:
                work(store)
            except EdgeError as error:
                self._on_error(error)

        self._library.post(guarded)
