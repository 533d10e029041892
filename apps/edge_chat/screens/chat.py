"""The main screen: side bar, conversation, composer and status line, and where keys and commands arrive."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, ClassVar, cast

from textual import events, on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Input, Static, TextArea

from edge.errors import EdgeError, UsageError
from edge_chat import format as fmt
from edge_chat import wording
from edge_chat.actions import REGISTRY
from edge_chat.commands import Command, parse_slash
from edge_chat.controller import ChatController
from edge_chat.keys import bindings
from edge_chat.outbox import Departure
from edge_chat.screens.model_view import ModelView
from edge_chat.widgets.cards import EmptyState, ErrorCard
from edge_chat.widgets.composer import Composer
from edge_chat.widgets.message import MessageView
from edge_chat.widgets.sidebar import Sidebar
from edge_chat.widgets.status import OF_A_REPLY, StatusLine, StatusValues
from edge_chat.widgets.transcript import Transcript

if TYPE_CHECKING:
    from textual.worker import Worker

    from edge_chat.app import ChatApp

__all__ = ["ChatScreen"]

_DRAFT_DELAY_S = 0.3
_LOOK_S = 1.0  # how often another process's messages are looked for: one row is read by its key
_NARROW = 100  # below so many columns the side bar lies over the conversation instead of beside it


class ChatScreen(Screen[None]):
    """See the module."""

    AUTO_FOCUS: ClassVar[str] = "#text"
    BINDINGS: ClassVar[list[BindingType]] = list(bindings(REGISTRY, "chat"))

    def __init__(self, app: ChatApp) -> None:
        super().__init__(id="chat")
        self.controller = ChatController(app, self)
        self._draft_timer: Timer | None = None
        self._wants_sidebar: bool | None = None
        self.model_view = ModelView(self)
        self._is_looking = False

    @property
    def app(self) -> ChatApp:  # type: ignore[override]
        """The app."""
        return cast("ChatApp", super().app)

    def compose(self) -> ComposeResult:
        settings = self.app.settings
        yield Static("", id="title", markup=False)
        with Horizontal(id="body"):
            yield Sidebar()
            with Vertical(id="main"):
                yield Transcript()
                yield Composer(
                    self.app.history,
                    self.app.cwd,
                    paste_chars=settings.chat.paste_chars,
                    attachment_bytes=settings.chat.attachment_bytes,
                    depart=self.controller.depart,
                )
        yield StatusLine()

    @property
    def transcript(self) -> Transcript:
        """The conversation."""
        return self.query_one(Transcript)

    @property
    def composer(self) -> Composer:
        """Where messages are written."""
        return self.query_one(Composer)

    @property
    def sidebar(self) -> Sidebar:
        """The list of conversations."""
        return self.query_one(Sidebar)

    @property
    def status(self) -> StatusLine:
        """The line at the bottom."""
        return self.query_one(StatusLine)

    @property
    def chosen_view(self) -> MessageView | None:
        """The message that has the focus."""
        return self.focused if isinstance(self.focused, MessageView) else None

    def on_mount(self) -> None:
        """Ready for typing before anything is read from the disk."""
        self.composer.complain("")
        self.composer.show_mode("")
        self.composer.input.cursor_blink = self.sidebar.search.cursor_blink = self.app.blinks
        self._show_hints()
        self._place_sidebar()
        self.composer.input.focus()
        self.set_interval(_LOOK_S, self._look)
        self.call_after_refresh(self.app.begin)

    def on_resize(self, event: events.Resize) -> None:
        """The side bar goes where there is room for it."""
        self.set_class(event.size.width < _NARROW, "-narrow")
        self.set_class(event.size.height < 20, "-low")
        self._place_sidebar()
        self._show_hints()

    def claim(self, event: events.Key | events.Paste) -> None:
        """Give the message box the focus if a letter or a paste would be lost on what has it; a letter that does something
        there is not."""
        if isinstance(self.focused, (Input, TextArea)):
            return
        if isinstance(event, events.Paste) or (event.is_printable and event.key not in self.active_bindings):
            self.set_focus(self.composer.input)

    def on_descendant_focus(self) -> None:
        """The keys that are shown are those that work now."""
        self._show_hints()

    def _look(self) -> None:
        """Look for what another process has added, and for what is held back."""
        self.model_view.show_limits()
        if self.app.has_begun and self.app.app_focus and self.controller.page is not None and not self._is_looking:
            self._is_looking = True
            self.run_guarded(self._catch_up)

    async def _catch_up(self) -> None:
        try:
            await self.controller.catch_up()
        finally:
            self._is_looking = False

    # What commands use

    def tell(self, text: str) -> None:
        """A short message that goes away by itself."""
        self.notify(fmt.clean(text), markup=False)

    def complain(self, error: EdgeError) -> None:
        """Say above the text being written what did not work."""
        self.composer.complain(error.message, error.hint)

    def copy(self, text: str, what: str) -> None:
        """Put a text on the clipboard (OSC 52, which works over ssh) and say so."""
        self.app.copy_to_clipboard(text)
        self.tell(f"Copied {what} ({fmt.plural(len(text), 'character')}).")

    def toggle_sidebar(self, *, show: bool | None = None) -> None:
        """Show or hide the list of conversations."""
        visible = not self.sidebar.display if show is None else show
        self._wants_sidebar = visible
        self._place_sidebar()
        if visible:
            self.refresh_sidebar()
            self.set_focus(self.sidebar.listing)  # at once: focus() comes later, and would take it from what is focused next
        else:
            self.set_focus(self.composer.input)

    def choose_message(self, step: int) -> None:
        """Choose the message above or below the chosen one; below the last one is the composer."""
        targets = [w for w in self.transcript.children if isinstance(w, (MessageView, ErrorCard))]
        position = targets.index(self.focused) if self.focused in targets else len(targets)
        position += step
        if position >= len(targets):
            self.composer.input.focus()
            self.transcript.anchor()
            self.transcript.scroll_end(animate=False)
        elif targets:
            self.transcript.release_anchor()
            targets[max(0, position)].focus()

    def reveal(self, node_id: int, *, focus: bool = False) -> None:
        """Scroll to a message."""
        view = self.transcript.view_of(node_id)
        if view is None:
            return
        self.transcript.release_anchor()
        if focus:
            view.focus(scroll_visible=False)
        self.call_after_refresh(self.transcript.scroll_to_widget, view, animate=False, top=not focus)

    async def redraw(self) -> None:
        """Build the conversation anew, as after switching plain mode."""
        self.composer.input.cursor_blink = self.app.blinks
        if self.controller.active_id is not None:
            self.controller.save_draft()  # it comes back from there
            await self.controller.open(self.controller.active_id)
        else:
            await self.controller.show_empty()
        self.refresh_sidebar()

    async def escape(self) -> None:
        """What Esc does, the nearest thing first."""
        if self.has_class("-narrow") and self.sidebar.display:
            return self.toggle_sidebar(show=False)
        if not self.composer.input.has_focus:
            self.composer.input.focus()
            return None
        if await self.controller.sending.stop() or self.controller.cancel_edit():
            return None
        return self.composer.complain("")

    # Commands and messages

    async def action_command(self, name: str) -> None:
        """A key of a command was pressed."""
        self.start_command(self.app.registry[name], "")

    def start_command(self, command: Command, argument: str) -> None:
        """Carry a command out; what it refuses is said above the text being written."""
        assert command.run is not None
        self.run_guarded(command.run, self, argument)

    def run_guarded(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Call something beside what is going on; errors are shown in place, bugs are logged and shown in place.

        Args:
            work: what to call. A coroutine would be left over, with a warning, where the app ends before its turn comes.
            arguments: for it.
        """

        async def guarded() -> None:
            try:
                await work(*arguments)
            except EdgeError as error:
                self.complain(error)
            except Exception as bug:  # noqa: BLE001 (a bug in one command must not take the conversation down)
                if not self.is_attached or not self.app.is_running:
                    return  # the app is being left, and what the work wanted to change is gone from the screen
                self.complain(self.app.report_bug(bug))

        _: Worker[None] = self.run_worker(guarded, exit_on_error=False)  # mypy cannot tell what it runs by itself

    @on(Composer.Submitted)
    def _submitted(self, event: Composer.Submitted) -> None:
        event.stop()
        line = parse_slash(event.text)
        if event.departure is not None:
            self.run_guarded(self._send, event, event.departure)
        elif line is not None:
            self.run_guarded(self._carry_out_or_put_back, line.name, line.argument, event)

    async def _carry_out_or_put_back(self, name: str, argument: str, event: Composer.Submitted) -> None:
        try:
            await self._carry_out(name, argument, event)
        except EdgeError:
            self.composer.put_back(event.text, event.attachments)
            raise

    async def _carry_out(self, name: str, argument: str, event: Composer.Submitted) -> None:
        command = self.app.registry.find(name)
        if command.needs_argument and not argument:
            raise UsageError(f"/{command.name} needs something behind it.", f"Like this: {command.example or command.usage}")
        assert command.run is not None
        self.composer.remember(event.text)
        await command.run(self, argument)

    async def _send(self, event: Composer.Submitted, departure: Departure) -> None:
        text = event.text.strip()
        said = text[1:] if text.startswith("//") else text
        with self.controller.on_its_way(departure):
            attachments = await self.composer.read_mentions(said, event.attachments)
            complaint = self.composer.remember(text)
            await self.controller.sending.submit(departure, said, attachments)
        if complaint:
            self.composer.complain(complaint)

    @on(Composer.Changed)
    def _draft_changed(self, event: Composer.Changed) -> None:
        event.stop()
        if self._draft_timer is not None:
            self._draft_timer.stop()
        self._draft_timer = self.set_timer(_DRAFT_DELAY_S, lambda: self.run_guarded(self._save_draft))

    @property
    def is_waiting_to_save(self) -> bool:
        """Whether a draft will be saved when typing has stopped for a moment."""
        return self._draft_timer is not None

    async def _save_draft(self) -> None:
        self._draft_timer = None
        composer = self.composer
        if self.controller.page is None:
            is_command = composer.text.startswith("/") and not composer.attachments
            if is_command or not (composer.text.strip() or composer.attachments):
                return
            await self.controller.ensure_saved()
        self.controller.save_draft()

    @on(ErrorCard.Chosen)
    def _card_chosen(self, event: ErrorCard.Chosen) -> None:
        event.stop()
        if event.command == "reload-model":
            self.app.load_model(self.app.host.state.wanted)
        else:
            self.start_command(self.app.registry[event.command], "")

    @on(MessageView.BranchClicked)
    def _branch_clicked(self, event: MessageView.BranchClicked) -> None:
        event.stop()
        if event.view.node_id is not None:
            self.run_guarded(self.controller.step_branch, event.view.node_id, event.step)

    @on(Transcript.EarlierWanted)
    async def _earlier_wanted(self, event: Transcript.EarlierWanted) -> None:
        event.stop()
        await self.transcript.show_earlier()

    def on_code_fence_copy_requested(self, event: Any) -> None:
        """ "copy" was clicked on a code block."""
        event.stop()
        self.copy(event.code, "the code block")

    # Side bar

    def refresh_sidebar(self) -> None:
        """Read the list again, or search again, if it is on the screen."""
        if self.sidebar.display:
            self.run_guarded(self._fill_sidebar, self.sidebar.search.value.strip())

    async def _fill_sidebar(self, text: str) -> None:
        if text:
            hits = await self.app.library.run(lambda store: store.search(text))
            self.sidebar.show_hits(hits, text, now=self.app.clock())
            return
        infos = await self.app.library.run(lambda store: store.list())
        active = self.controller.active_id
        listed = [info for info in infos if info.n_messages or info.draft or info.id == active]
        self.sidebar.show_conversations(listed, active=active, busy=self.controller.busy_ids, now=self.app.clock())

    @on(Sidebar.SearchWanted)
    def _search_wanted(self, event: Sidebar.SearchWanted) -> None:
        event.stop()
        self.run_guarded(self._fill_sidebar, event.text)

    @on(Sidebar.Chosen)
    def _conversation_chosen(self, event: Sidebar.Chosen) -> None:
        event.stop()
        self.run_guarded(self._open, event.conversation_id, event.node_id)

    async def _open(self, conversation_id: str, node_id: int | None) -> None:
        await self.controller.open(conversation_id, node_id)
        if self.has_class("-narrow"):
            self.toggle_sidebar(show=False)
        self.composer.input.focus()

    @on(Sidebar.Left)
    def _sidebar_left(self, event: Sidebar.Left) -> None:
        event.stop()
        if self.has_class("-narrow"):
            self.toggle_sidebar(show=False)
        else:
            self.composer.input.focus()

    def _place_sidebar(self) -> None:
        wide_enough = self.size.width >= _NARROW
        self.sidebar.display = self._wants_sidebar if self._wants_sidebar is not None else wide_enough

    # What is on the screen besides messages

    def page_changed(self) -> None:
        """Another conversation, or another state of it: title, status, mode of the composer."""
        page, controller = self.controller.page, self.controller
        self.title_changed()
        values = StatusValues()
        for node in reversed(page.nodes if page is not None else ()):
            if node.role == "assistant" and node.record.get("usage"):
                values = StatusValues().with_record(node.record)
                break
        self.status.change(**{name: getattr(values, name) for name in OF_A_REPLY})
        mode = f"Editing an earlier message; sending makes a new branch. {self.app.key_display('stop')} cancels."
        self.composer.show_mode(mode if controller.editing is not None else "")
        self.activity_changed()

    def title_changed(self) -> None:
        """Show the title of the conversation."""
        page = self.controller.page
        title = fmt.clean(page.info.title) if page is not None else ""
        self.query_one("#title", Static).update(title or "New conversation")

    def activity_changed(self) -> None:
        """What runs has changed: status line and marks in the side bar."""
        state = self.app.host.state
        self.status.change(activity=wording.activity(state))
        self.refresh_sidebar()

    def make_empty_state(self) -> EmptyState:
        """What a conversation without messages shows."""
        return EmptyState(wording.tips(self.app), wording.model_text(self.app.host))

    def _show_hints(self) -> None:
        width = self.composer.size.width - 4
        is_listing = self.focused is self.sidebar.listing
        is_covered = self.has_class("-narrow")
        self.sidebar.show_keys("\n".join(wording.list_keys(self.app)) if is_listing and is_covered else "")
        keys = wording.list_keys(self.app) if is_listing else wording.focus_keys(self.app, self.focused)
        self.composer.show_hints(wording.hints(keys, width, is_plain=self.app.is_plain))
