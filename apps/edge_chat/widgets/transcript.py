"""The conversation on the screen: the messages of the active path, newest at the bottom."""

from __future__ import annotations

from collections.abc import Sequence

from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.style import Style
from textual.widget import Widget
from textual.widgets import Static

from edge_chat import format as fmt
from edge_chat.library import Page
from edge_chat.widgets.cards import EmptyState, ErrorCard, LoadErrorCard, WaitingCard
from edge_chat.widgets.message import MessageView

__all__ = ["Transcript"]

_PAGE = 30  # messages that are put on the screen at once; a long conversation opens as fast as a short one


class _Earlier(Static):
    """Stands for the messages above that are not on the screen yet."""

    def __init__(self, number: int) -> None:
        text = f"Show {fmt.plural(number, 'earlier message')}"
        super().__init__(
            Content.styled(text, Style.from_meta({"@click": "earlier"}) + Style(underline=True)), classes="earlier"
        )

    def action_earlier(self) -> None:
        """It was clicked."""
        self.post_message(Transcript.EarlierWanted())


class _Note(Static):
    """Something to know about the end of the conversation."""

    def __init__(self, text: str) -> None:
        super().__init__(text, classes="note", markup=False)


class Transcript(VerticalScroll, can_focus=False):
    """A list of message views that follows a `Page`; it stays at the bottom until the user scrolls up."""

    class EarlierWanted(Message):
        """More of the beginning should be shown."""

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._page: Page | None = None
        self._first = 0

    @property
    def views(self) -> list[MessageView]:
        """The messages on the screen, from top to bottom."""
        return list(self.query_children(MessageView))

    def view_of(self, node_id: int) -> MessageView | None:
        """The view of a saved message."""
        return next((view for view in self.views if view.node_id == node_id), None)

    async def show(self, page: Page | None, empty: EmptyState | None = None) -> None:
        """Show another conversation, from its end.

        Args:
            page: the conversation; None or an empty one shows `empty`.
            empty: shown when there is no message.
        """
        self._page = page
        nodes = page.nodes if page is not None else ()
        self._first = max(0, len(nodes) - _PAGE)
        children: list[Widget] = [_Earlier(self._first)] if self._first else []
        children += [MessageView.of_node(node) for node in nodes[self._first :]]
        if not nodes and empty is not None:
            children.append(empty)
        with self.app.batch_update():
            await self.remove_children()
            await self.mount_all(children)
            self._number_branches()
        self.anchor(bool(nodes))
        self.scroll_end(animate=False)

    async def follow(self, page: Page) -> None:
        """Go along with a change of the conversation on the screen: keep the views of messages that stayed, take over those
        that were put up before they were saved, and replace the rest."""
        self._page = page
        nodes = page.nodes[self._first :]
        views = self.views
        n_same = 0
        for node, view in zip(nodes, views, strict=False):
            is_unsaved = view.node_id is None and view.role == node.role and view.text == node.content
            if view.node_id != node.id and not is_unsaved:
                break
            view.adopt(node)
            if view.text != node.content:  # another process goes on writing it
                await view.finish(node.content)
            n_same += 1
        with self.app.batch_update():
            for view in views[n_same:]:
                await view.remove()
            await self.add(*(MessageView.of_node(node) for node in nodes[n_same:]))
            if nodes:
                await self.query_children(EmptyState).remove()
            self._number_branches()

    async def add(self, *widgets: Widget) -> None:
        """Put something at the end, above a message that waits."""
        if not widgets:
            return
        await self.query_children(EmptyState).remove()
        waiting = self.query_children(WaitingCard)
        await self.mount_all(widgets, before=waiting.first() if waiting else None)

    async def cut(self, node_id: int) -> None:
        """Take a message and all below it off the screen."""
        views = self.views
        position = next((i for i, view in enumerate(views) if view.node_id == node_id), len(views))
        for view in views[position:]:
            await view.remove()

    async def show_note(self, text: str) -> None:
        """Say something below the last message; "" takes it away."""
        await self.query_children(_Note).remove()
        if text:
            await self.add(_Note(text))

    async def clear_waiting(self) -> None:
        """Take the message that waits off the screen."""
        await self.query_children(WaitingCard).remove()

    async def clear_failure(self) -> None:
        """Take the error of the last reply off the screen; one of the model stays."""
        for card in self.query_children(ErrorCard):
            if not isinstance(card, LoadErrorCard):
                await card.remove()

    async def show_earlier(self) -> None:
        """Show more of the beginning, without moving what is on the screen."""
        if self._page is None or not self._first:
            return
        first = max(0, self._first - _PAGE)
        new: Sequence[Widget] = [MessageView.of_node(node) for node in self._page.nodes[first : self._first]]
        self._first = first
        distance = self.max_scroll_y - self.scroll_offset.y
        with self.app.batch_update():
            await self.query_children(_Earlier).remove()
            heads: list[Widget] = [_Earlier(first)] if first else []
            await self.mount_all([*heads, *new], before=0 if self.children else None)
            self._number_branches()
        self.call_after_refresh(lambda: self.scroll_to(y=self.max_scroll_y - distance, animate=False))

    def _number_branches(self) -> None:
        siblings = self._page.siblings if self._page is not None else {}
        for view in self.views:
            ids = siblings.get(view.node_id or -1, ())
            is_branch = len(ids) > 1 and view.node_id in ids
            view.branch = (ids.index(view.node_id) + 1, len(ids)) if is_branch else None
