"""The list of conversations on the main screen: filled, searched, and kept up to date with other windows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_chat import format as fmt

if TYPE_CHECKING:
    from edge_chat.controller import ChatController

__all__ = ["Listing"]


class Listing:
    """Fills the sidebar."""

    def __init__(self, controller: ChatController) -> None:
        self._controller = controller
        self._screen = controller.screen
        self._listed: object = None
        self._data_version = 0

    def refresh(self) -> None:
        """Read the list again, or search again, if it is visible."""
        sidebar = self._screen.sidebar
        if sidebar.display:
            self._screen.run_guarded(self.fill, sidebar.search.value.strip())

    async def fill(self, text: str, *, opens: bool = False) -> None:
        """Show the conversations, or what a search finds.

        Args:
            text: of the search; "" is the plain list.
            opens: open the first hit.
        """
        app, controller, sidebar = self._controller.app, self._controller, self._screen.sidebar
        now = app.clock()
        if text:
            self._listed = None
            hits = await app.library.run(lambda store: store.search(text))
            sidebar.show_hits(hits, text, now=now)
            if opens:
                sidebar.listing.action_select()
            return
        infos = await app.library.run(lambda store: store.list())
        active, busy = controller.active_id, controller.busy_ids
        listed = [info for info in infos if info.n_messages or info.draft or info.id == active]
        state = (listed, active, busy, fmt.day_group(0.0, now), app.is_plain)
        if state != self._listed:
            self._listed = state
            sidebar.show_conversations(listed, active=active, busy=busy, now=now)

    async def catch_up(self) -> None:
        """Read the list again if another window has changed the store."""
        version = await self._controller.app.library.run(lambda store: store.data_version())
        if version != self._data_version:
            self._data_version = version
            self.refresh()
