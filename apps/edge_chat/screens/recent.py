"""The last conversations on the first screen, to go on with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_chat.widgets.empty import EmptyState

if TYPE_CHECKING:
    from edge_chat.controller import ChatController

__all__ = ["Recent"]

_N_RECENT = 3  # conversations that the first screen offers


class Recent:
    """Offers the last conversations where a conversation without messages is on the screen."""

    def __init__(self, controller: ChatController) -> None:
        self._controller = controller
        self._screen = controller.screen

    async def show(self) -> None:
        """Read and show them, if there is a place for them."""
        app, active = self._controller.app, self._controller.active_id
        infos = await app.library.run(lambda store: store.list(limit=_N_RECENT + 1))
        recent = [info for info in infos if info.n_messages and info.id != active]
        for empty in self._screen.transcript.query(EmptyState):
            empty.show_recent(recent[:_N_RECENT], app.clock())
        self.mark(self._screen.composer.text)

    def mark(self, typed: str) -> None:
        """Mark the one that Enter would open with this text in the message box."""
        for empty in self._screen.transcript.query(EmptyState):
            empty.mark(typed)

    def named(self, typed: str) -> str | None:
        """Return the id of the conversation that a text names; None if it names none."""
        info = next((empty.named(typed) for empty in self._screen.transcript.query(EmptyState)), None)
        return info.id if info is not None else None
