"""The messages of the active path, newest at the bottom."""

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
from edge_chat.widgets.cards import ErrorCard, LoadErrorCard, WaitingCard
from edge_chat.widgets.empty import EmptyState
from edge_chat.widgets.message import MessageView

__all__ = ["Transcript"]

_PAGE = 30  # messages mounted at once, so that a long conversation opens as fast as a short one


class _Earlier(Static):
    """A link in place of the earlier messages that are not mounted yet."""

    def __init__(self, number: int) -> None:
        text = f"Show {fmt.plural(number, 'earlier message')}"
        super().__init__(
            Content.styled(text, Style.from_meta({"@click": "earlier"}) + Style(underline=True)), classes="earlier"
        )

    def action_earlier(self) -> None:
        self.post_message(Transcript.EarlierWanted())


class _Note(Static):
    """A note below the last message."""


class Transcript(VerticalScroll, can_focus=False):
    """The message views of a `Page`. It stays at the bottom until the user scrolls up."""

    class EarlierWanted(Message):
        """Earlier messages should be shown."""

    class Moved(Message):
        """It was scrolled, or has another length."""

    def __init__(self) -> None:
        super().__init__(id="transcript")
        self._page: Page | None = None
        self._first = 0
        self._seen_lines: int | None = None  # length when its end was last on the screen; None while it is laid out

    @property
    def lines_below(self) -> tuple[int, int]:
        """Return how many lines are below the screen, and how many of them are new since its end was last on the screen."""
        n_below = max(0, self.max_scroll_y - max(0, self.scroll_offset.y))
        if self._anchored and not self._anchor_released:  # the layout to come scrolls to the end
            n_below = 0
        if not n_below:
            self._seen_lines = self.virtual_size.height
        return n_below, max(0, self.virtual_size.height - self._seen_lines) if self._seen_lines is not None else 0

    def on_resize(self) -> None:
        """Count no line as new that another width has made."""
        self._start_counting()

    def _start_counting(self) -> None:
        """Count the lines as new that come from the next layout on."""

        def start() -> None:
            self._seen_lines = self.virtual_size.height
            self.vertical_scrollbar.refresh()  # textual moves it to the end of an anchored text without drawing it
            self.post_message(self.Moved())

        self._seen_lines = None
        self.call_after_refresh(start)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self.post_message(self.Moved())

    def watch_virtual_size(self) -> None:
        self.post_message(self.Moved())

    @property
    def views(self) -> list[MessageView]:
        """Return the mounted messages, from top to bottom."""
        return list(self.query_children(MessageView))

    def view_of(self, node_id: int) -> MessageView | None:
        """Return the view of a saved message."""
        return next((view for view in self.views if view.node_id == node_id), None)

    async def show(self, page: Page | None, empty: EmptyState | None = None, *, at: int | None = None) -> None:
        """Show another conversation, or `empty` if it has no message.

        Args:
            page: the conversation.
            empty: shown in place of messages.
            at: the message that will be scrolled to; None is the end.
        """
        self._page = page
        nodes = page.nodes if page is not None else ()
        position = next((n for n, node in enumerate(nodes) if node.id == at), len(nodes))
        self._first = max(0, min(len(nodes) - _PAGE, position))
        children: list[Widget] = [_Earlier(self._first)] if self._first else []
        children += [MessageView.of_node(node) for node in nodes[self._first :]]
        if not nodes and empty is not None:
            children.append(empty)
        with self.app.batch_update():
            await self.remove_children()
            await self.mount_all(children)
            self._mark_views()
        self._start_counting()
        self.anchor(bool(nodes) and at is None)
        if nodes and at is None:
            self.scroll_end(animate=False)
        elif not nodes:
            self.scroll_home(animate=False)

    async def follow(self, page: Page) -> None:
        """Show a changed state of the same conversation.

        Views of unchanged messages stay, views mounted before their message was saved are adopted, the rest is replaced.
        """
        self._page = page
        nodes = page.nodes[self._first :]
        views = self.views
        n_same = 0
        for node, view in zip(nodes, views, strict=False):
            is_unsaved = view.node_id is None and view.role == node.role and view.text == node.content
            if view.node_id != node.id and not is_unsaved:
                break
            view.adopt(node)
            if view.text != node.content:  # another process is generating it
                await view.finish(node.content)
            n_same += 1
        with self.app.batch_update():
            for view in views[n_same:]:
                await view.remove()
            await self.add(*(MessageView.of_node(node) for node in nodes[n_same:]))
            if nodes:
                await self.query_children(EmptyState).remove()
            self._mark_views()

    async def add(self, *widgets: Widget) -> None:
        """Mount widgets at the end, above a waiting message."""
        if not widgets:
            return
        await self.query_children(EmptyState).remove()
        waiting = self.query_children(WaitingCard)
        await self.mount_all(widgets, before=waiting.first() if waiting else None)
        self._mark_views()

    async def truncate(self, node_id: int) -> None:
        """Remove a message and all below it from the screen."""
        views = self.views
        position = next((i for i, view in enumerate(views) if view.node_id == node_id), len(views))
        for view in views[position:]:
            await view.remove()

    async def show_note(self, text: str) -> None:
        """Show a note below the last message; "" removes it."""
        await self.query_children(_Note).remove()
        if text:
            await self.add(_Note(text, classes="note", markup=False))

    async def clear_waiting(self) -> None:
        """Remove the waiting message from the screen."""
        await self.query_children(WaitingCard).remove()

    async def clear_failure(self) -> None:
        """Remove the error of the last reply from the screen; that of the model stays."""
        for card in self.query_children(ErrorCard):
            if not isinstance(card, LoadErrorCard):
                await card.remove()

    async def show_earlier(self) -> None:
        """Mount earlier messages without moving the visible ones."""
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
            self._mark_views()
        self._start_counting()
        self.call_after_refresh(lambda: self.scroll_to(y=self.max_scroll_y - distance, animate=False))

    def _mark_views(self) -> None:
        """Number the branches, and mark the replies of another model than the one before."""
        self._number_branches()
        earlier = self._page.nodes[: self._first] if self._page is not None else ()
        before = next((node.model for node in reversed(earlier) if node.role == "assistant"), "")
        for view in self.views:
            if view.role == "assistant":
                view.model_before = before if before != view.author else ""
                before = view.author

    def _number_branches(self) -> None:
        siblings = self._page.siblings if self._page is not None else {}
        for view in self.views:
            ids = siblings.get(view.node_id or -1, ())
            is_branch = len(ids) > 1 and view.node_id in ids
            view.branch = (ids.index(view.node_id) + 1, len(ids)) if is_branch else None
        last = self._page.nodes[-1] if self._page is not None and self._page.nodes else None
        for view in self.views:
            is_last = last is not None and last.role == "assistant" and view.node_id == last.id
            view.is_open = is_last and view.state in ("stopped", "failed", "unfinished", "cut off")

    def mark_edited(self, node_id: int | None) -> None:
        """Mark the message that is being edited; None is none."""
        for view in self.views:
            view.is_edited = node_id is not None and view.node_id == node_id
