"""The chat screen without the controller: its widgets, focus, hints and short messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from textual import events
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Input, TextArea

from edge.errors import EdgeError
from edge_chat import format as fmt
from edge_chat import wording
from edge_chat.widgets.cards import ErrorCard
from edge_chat.widgets.composer import Composer
from edge_chat.widgets.empty import EmptyState
from edge_chat.widgets.message import MessageView
from edge_chat.widgets.sidebar import Sidebar
from edge_chat.widgets.status import StatusLine
from edge_chat.widgets.transcript import Transcript

if TYPE_CHECKING:
    from textual.worker import Worker

    from edge.conversation import Attachment
    from edge_chat.base import BaseApp
    from edge_chat.markup.tables import Table
    from edge_chat.replies import ReplyRun

__all__ = ["ChatView"]

_LINES_ABOVE = 3  # shown above a word that was found
_MOST_LAYOUTS, _LAYOUT_S = 100, 0.02
_NARROW = 100  # below this many columns the sidebar covers the conversation instead of standing beside it


class ChatView(Screen[None]):
    """The chat screen as the controller sees it. Methods that raise NotImplementedError are those of ChatScreen."""

    _wants_sidebar: bool | None = None

    @property
    def app(self) -> BaseApp:  # type: ignore[override]
        return cast("BaseApp", super().app)

    @property
    def transcript(self) -> Transcript:
        return self.query_one(Transcript)

    @property
    def composer(self) -> Composer:
        return self.query_one(Composer)

    @property
    def sidebar(self) -> Sidebar:
        return self.query_one(Sidebar)

    @property
    def status(self) -> StatusLine:
        return self.query_one(StatusLine)

    @property
    def chosen_view(self) -> MessageView | None:
        """Return the selected message: the one with the focus."""
        return self.focused if isinstance(self.focused, MessageView) else None

    def on_resize(self, event: events.Resize) -> None:
        self._place_sidebar()
        self._show_hints()

    def claim(self, event: events.Key | events.Paste) -> None:
        """Focus the message box if a letter or a paste would be lost on the focused widget. Letters bound there are not."""
        if isinstance(self.focused, (Input, TextArea)):
            return
        if isinstance(event, events.Paste) or (event.is_printable and event.key not in self.active_bindings):
            if self.app.is_plain and self.sidebar.display:
                self.toggle_sidebar(show=False)
            self.set_focus(self.composer.input)

    def on_descendant_focus(self) -> None:
        self._show_hints()

    def _show_hints(self) -> None:
        keymap = self.app.keymap
        is_listing = self.focused is self.sidebar.listing
        is_covered = self.has_class("-narrow")
        covered = wording.list_keys(keymap) if is_listing and is_covered else []
        if covered and self.has_class("-low"):  # a line for each would leave none for the list
            covered = [wording.hints(covered, self.sidebar.size.width - 2, is_plain=self.app.is_plain)]
        self.sidebar.show_keys("\n".join(covered))
        keys = wording.list_keys(keymap) if is_listing else wording.focus_keys(keymap, self.focused)
        self.composer.show_hints(wording.hints(keys, self.composer.size.width - 4, is_plain=self.app.is_plain))

    def _place_sidebar(self) -> None:
        wide_enough = self.size.width >= _NARROW and not self.app.is_plain  # a screen reader reads across both
        self.set_class(not wide_enough, "-narrow")
        self.sidebar.display = self._wants_sidebar if self._wants_sidebar is not None else wide_enough
        self.query_one("#main").display = not (self.app.is_plain and self.sidebar.display)

    def toggle_sidebar(self, *, show: bool | None = None) -> None:
        """Show or hide the list of conversations."""
        visible = not self.sidebar.display if show is None else show
        self._wants_sidebar = visible
        self._place_sidebar()
        if visible:
            self.refresh_sidebar()
            self.set_focus(self.sidebar.listing)  # not focus(), which is later and would override the next focus
        else:
            self.set_focus(self.composer.input)

    def choose_message(self, step: int) -> None:
        """Select the message above or below the selected one; below the last one is the composer."""
        targets = [w for w in self.transcript.children if isinstance(w, (MessageView, ErrorCard))]
        position = targets.index(self.focused) if self.focused in targets else len(targets)
        position += step
        if position >= len(targets):
            self.set_focus(self.composer.input)
            self.transcript.anchor()
            self.transcript.scroll_end(animate=False)
        elif targets:
            self.transcript.release_anchor()
            self.set_focus(targets[max(0, position)])  # not focus(), which is later: the next key counts from here

    def reveal(self, node_id: int, *, focus: bool = False, searched: str = "") -> None:
        """Scroll to a message, and in it to the words that were searched for."""
        view = self.transcript.view_of(node_id)
        if view is None:
            return
        self.transcript.release_anchor()
        if focus:
            view.focus(scroll_visible=False)
        self.run_guarded(self._show_place, view, searched, not focus)

    async def _show_place(self, view: MessageView, searched: str, top: bool) -> None:
        for _ in range(_MOST_LAYOUTS):  # a message that was just mounted has no place yet
            if view.size.height:
                break
            await asyncio.sleep(_LAYOUT_S)
        found = view.mark(searched)
        if found is None:
            self.transcript.scroll_to_widget(view, animate=False, top=top)
            return
        part, n_lines = found
        y = part.virtual_region_with_margin.y + n_lines - _LINES_ABOVE
        above = part.parent
        while isinstance(above, Widget) and above is not self.transcript:
            y += above.virtual_region.y
            above = above.parent
        self.transcript.scroll_to(y=y, animate=False)

    def tell(self, text: str) -> None:
        """Show a short message that disappears by itself."""
        self.notify(fmt.clean(text), markup=False)

    def complain(self, error: EdgeError) -> None:
        """Show an error above the message box."""
        self.composer.complain(error.message, error.hint)

    def copy(self, text: str, what: str) -> None:
        """Put a text on the clipboard (with OSC 52, which works over ssh) and say so."""
        self.app.copy_to_clipboard(text)
        self.tell(f"Copied {what} ({fmt.plural(len(text), 'character')}).")

    async def read_page(self, title: str, text: str | Callable[[int], str]) -> None:
        """Show a page of Markdown until it is closed. A function makes its text for the cells of a line."""
        from edge_chat.screens.dialogs import ReadPage

        await self.app.push_screen_wait(ReadPage(title, text))

    async def show_wide(self, table: Table) -> None:
        """Show a table with nothing wrapped until it is closed."""
        from edge_chat.screens.wide import WideTable

        await self.app.push_screen_wait(WideTable(table))

    async def read_attachment(self, attachment: Attachment) -> None:
        """Show the text of an attachment until it is closed."""
        from edge.messages import fence_for

        fence = fence_for(attachment.text)
        await self.read_page(fmt.one_line(fmt.clean(attachment.name), 60), f"{fence}\n{attachment.text}\n{fence}")

    def make_empty_state(self) -> EmptyState:
        """Return what a conversation without messages shows."""
        keymap = self.app.keymap
        return EmptyState(
            wording.tips(keymap),
            wording.model_text(self.app.host),
            partial(wording.recent_keys, keymap.display("send")),
            wording.promise(self.app.settings),
        )

    def run_guarded(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Start a coroutine function; show its errors in place, log and show its bugs.

        Args:
            work: the function. A coroutine would be left over, with a warning, if the app ended before it was started.
            arguments: its arguments.
        """

        _: Worker[None] = self.run_worker(partial(self.guard, work, *arguments), exit_on_error=False)  # mypy cannot infer it

    async def guard(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Run a coroutine function as `run_guarded` does, and wait for it."""
        try:
            await work(*arguments)
        except EdgeError as error:
            self.complain(error)
        except Exception as bug:  # noqa: BLE001 (a bug in one command must not end the chat)
            if self.is_attached and self.app.is_running:  # otherwise the widgets it needed are gone
                self.complain(self.app.report_bug(bug))

    def speak(self, run: ReplyRun) -> None:
        """Speak a reply while it is generated, if voice is on."""
        raise NotImplementedError

    def page_changed(self) -> None:
        """Update title, status line and composer for another conversation, or another state of it."""
        raise NotImplementedError

    def title_changed(self) -> None:
        """Update the title."""
        raise NotImplementedError

    def activity_changed(self) -> None:
        """Update the status line and the sidebar for what is running."""
        raise NotImplementedError

    def refresh_sidebar(self) -> None:
        """Read the conversation list again, or search again, if it is visible."""
        raise NotImplementedError

    def show_below(self) -> None:
        """Show what is going on out of sight."""
        raise NotImplementedError

    async def show_recent(self) -> None:
        """Offer the last conversations, if a conversation without messages is on the screen."""
        raise NotImplementedError

    async def show_load_error(self) -> None:
        """Show why the model could not be loaded, if it could not."""
        raise NotImplementedError
