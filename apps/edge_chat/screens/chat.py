"""The main screen: sidebar, conversation, composer and status line; keys, commands and widget messages arrive here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Center, Horizontal, Vertical
from textual.timer import Timer
from textual.widgets import Static

from edge.errors import EdgeError, UsageError
from edge_chat import format as fmt
from edge_chat import wording
from edge_chat.commands import Completion, parse_slash
from edge_chat.controller import ChatController
from edge_chat.documents import propose_docs
from edge_chat.keys import bindings
from edge_chat.meter import Meter
from edge_chat.offers import suggest_models
from edge_chat.outbox import Departure
from edge_chat.read_ahead import ReadAhead
from edge_chat.screens.listing import Listing
from edge_chat.screens.model_view import ModelView
from edge_chat.screens.recent import Recent
from edge_chat.screens.view import ChatView
from edge_chat.table import REGISTRY
from edge_chat.voice import VoiceDesk
from edge_chat.widgets.below import Below
from edge_chat.widgets.cards import ApprovalCard, ErrorCard, LoadErrorCard
from edge_chat.widgets.chip import Chip
from edge_chat.widgets.composer import Composer
from edge_chat.widgets.empty import EmptyState
from edge_chat.widgets.message import MessageView
from edge_chat.widgets.sidebar import Sidebar
from edge_chat.widgets.status import OF_A_REPLY, StatusLine, StatusValues
from edge_chat.widgets.transcript import Transcript
from edge_chat.widgets.voice_bar import VoiceBar, VoiceState

if TYPE_CHECKING:
    from edge_chat.base import BaseApp
    from edge_chat.replies import ReplyRun

__all__ = ["ChatScreen"]

_AT_ONCE = ("message-previous", "message-next")  # they move the focus, which the next key goes to
_DRAFT_DELAY_S = 0.3
_POLL_S = 1.0  # interval of looking for another process's messages: one row is read by its key


class ChatScreen(ChatView):
    """The main screen.

    Args:
        app: the app.
        runners: command name -> the function that runs it.
        completers: command name -> the function that proposes arguments.
        conversation: id of the conversation to open first, or the beginning of one.
    """

    AUTO_FOCUS: ClassVar[str] = "#text"
    BINDINGS: ClassVar[list[BindingType]] = list(bindings(REGISTRY, "chat"))

    def __init__(
        self,
        app: BaseApp,
        runners: Mapping[str, Callable[[ChatScreen, str], Coroutine[Any, Any, None]]],
        completers: Mapping[str, Callable[[ChatScreen, str], Sequence[Completion]]],
        conversation: str | None = None,
    ) -> None:
        super().__init__(id="chat")
        self.controller = ChatController(app, self)
        self._runners = runners
        self._completers = completers
        self._conversation = conversation
        self._draft_timer: Timer | None = None
        self._model_view = ModelView(app, self)
        self._recent = Recent(self.controller)
        self.meter = Meter(self)
        self.read_ahead = ReadAhead(self)
        self.voice = VoiceDesk(self)
        self._is_polling = False
        self._listing = Listing(self.controller)

    def compose(self) -> ComposeResult:
        settings = self.app.settings.chat
        yield Static("", id="title", markup=False)
        with Horizontal(id="body"):
            yield Sidebar()
            with Vertical(id="main"):
                yield Transcript()
                with Center():
                    yield Below()
                yield VoiceBar()
                yield Composer(
                    self.app.history,
                    self.app.cwd,
                    paste_chars=settings.paste_chars,
                    attachment_bytes=settings.attachment_bytes,
                    key_actions=self.app.keymap.composer_actions,
                    depart=self.controller.depart,
                    complete=self._complete,
                    go_on=self._go_on,
                    propose_docs=lambda typed: propose_docs(typed, self.app.settings.paths.documents_dir),
                )
        yield StatusLine()

    def on_mount(self) -> None:
        """Be ready for typing before anything is read from the disk."""
        self.composer.complain("")
        self.composer.show_size("")
        self.composer.show_mode("")
        self.composer.input.cursor_blink = self.sidebar.search.cursor_blink = self.app.blinks
        self._show_hints()
        self._place_sidebar()
        self.composer.input.focus()
        self.set_interval(_POLL_S, self._poll)
        self.call_after_refresh(self._begin)

    def _begin(self) -> None:
        """Start the slow work: the first frame is on the screen, and typing works."""
        self.run_guarded(self._open_first)
        self.run_guarded(self._find_tools)
        self.app.load_model(self.app.settings.model)
        self.app.has_begun = True
        if self.app.wants_voice:
            self.run_guarded(self.voice.switch, True)

    async def _open_first(self) -> None:
        await self.app.library.run(lambda store: None)
        self.run_guarded(self._load_history)
        await self.controller.open_first(self._conversation)

    async def _find_tools(self) -> None:
        if self.app.toolbox is not None:
            self.app.tools, notices = await asyncio.to_thread(self.app.toolbox)
            for notice in notices:
                self.tell(notice)

    async def _load_history(self) -> None:
        await asyncio.to_thread(self.app.history.load)
        # So that the first reply does not wait for the import of the Markdown parser and the highlighter.
        await asyncio.to_thread(_import_ahead)

    def _poll(self) -> None:
        """Look for what another process has added, and for a change of the engine's limits."""
        self._model_view.show_limits()
        if self.app.has_begun and self.app.app_focus and not self._is_polling:
            self._is_polling = True
            self.run_guarded(self._catch_up)

    async def _catch_up(self) -> None:
        try:
            await self._listing.catch_up()
            await self.controller.catch_up()
        finally:
            self._is_polling = False

    def model_changed(self) -> None:
        """Show the state of the model; send or put back waiting messages."""
        self._model_view.update()
        state = self.app.host.state
        if state.phase == "ready":
            self.meter.touch()
            self.read_ahead.touch()
            self.run_guarded(self.meter.measure_page)
            self.controller.sending.model_ready()
            self.run_guarded(self._suggest_models)
        elif state.phase == "failed" and state.error is not None:
            self.controller.sending.model_failed()

    async def _suggest_models(self) -> None:
        """Hint at larger models, once on this device, where the embedded one is all there is."""
        if hint := await asyncio.to_thread(suggest_models, self.app.settings):
            self.tell(hint)

    async def show_load_error(self) -> None:
        await self._model_view.show_error()

    # Used by commands

    def saved_id(self) -> str:
        """Return the id of the conversation on the screen.

        Raises:
            UsageError: it is empty.
        """
        if self.controller.active_id is None:
            raise UsageError("This conversation is empty.", "Send a message first.")
        return self.controller.active_id

    async def redraw(self) -> None:
        """Build the conversation again, as after switching plain mode."""
        self.composer.input.cursor_blink = self.app.blinks
        self._wants_sidebar = None
        self._place_sidebar()
        if self.controller.active_id is not None:
            self.controller.save_draft()  # opening restores it
            await self.controller.open(self.controller.active_id)
        else:
            await self.controller.show_empty()
        self.refresh_sidebar()

    async def escape(self) -> None:
        """Close the sidebar, return to the message box, or stop the reply, whichever comes first."""
        if self.has_class("-narrow") and self.sidebar.display:
            self.toggle_sidebar(show=False)
        elif self.focused is not self.composer.input:
            self.set_focus(self.composer.input)
        elif not (await self.stop() or self.controller.cancel_edit()):
            self.composer.complain("")

    async def stop(self) -> bool:
        """Stop the reply, and what is spoken and heard; take back the waiting message. Return whether there was any."""
        was_heard = self.voice.hush()
        return await self.controller.sending.stop() or was_heard

    def speak(self, run: ReplyRun) -> None:
        self.voice.follow(run)

    def show_voice(self, state: VoiceState) -> None:
        """Show what voice does."""
        self.query_one(VoiceBar).show(state, self.app.keymap.display, is_plain=self.app.is_plain)

    # Commands and messages

    async def action_command(self, name: str) -> None:
        """Run a command by its key or from the palette."""
        if REGISTRY[name].needs_argument:
            self.composer.load(f"/{name} ")
            self.composer.input.focus()
        elif name in _AT_ONCE:
            await self.guard(self._runners[name], self, "")
        else:
            self._note_ran(name)
            self.run_guarded(self._runners[name], self, "")

    def _note_ran(self, name: str) -> None:
        if REGISTRY[name].is_slash:
            self.app.ran.insert(0, name)

    @on(Composer.Submitted)
    def _submitted(self, event: Composer.Submitted) -> None:
        event.stop()
        if event.departure is not None:
            self.run_guarded(self._send, event, event.departure)
        elif (line := parse_slash(event.text)) is not None:
            self.run_guarded(self._run_slash, line.name, line.argument, event)

    async def _run_slash(self, name: str, argument: str, event: Composer.Submitted) -> None:
        try:
            command = REGISTRY.find(name)
            if command.needs_argument and not argument:
                hint = f"For example: {command.example or command.usage}"
                raise UsageError(f"/{command.name} needs an argument.", hint)
            self.composer.remember(event.text)
            self._note_ran(command.name)
            await self._runners[command.name](self, argument)
        except EdgeError:
            self.composer.put_back(event.text, event.attachments)
            raise

    def _complete(self, name: str, typed: str) -> Sequence[Completion]:
        completer = self._completers.get(name)
        return completer(self, typed) if completer is not None else ()

    async def show_recent(self) -> None:
        await self._recent.show()

    def _go_on(self, text: str) -> bool:
        if (conversation_id := self._recent.named(text)) is not None:
            self.run_guarded(self._open, conversation_id, None)
        return conversation_id is not None

    @on(EmptyState.GoOn)
    def _recent_clicked(self, event: EmptyState.GoOn) -> None:
        event.stop()
        self.run_guarded(self._open, event.conversation_id, None)

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
        self._recent.mark(self.composer.text)
        self.meter.touch()
        self.read_ahead.touch()
        if self._draft_timer is not None:
            self._draft_timer.stop()
        self._draft_timer = self.set_timer(_DRAFT_DELAY_S, lambda: self.run_guarded(self._save_draft))

    @property
    def is_waiting_to_save(self) -> bool:
        """Return whether a draft will be saved once typing pauses."""
        return self._draft_timer is not None

    async def _save_draft(self) -> None:
        self._draft_timer = None
        await self.controller.keep_draft()

    @on(ApprovalCard.Answered)
    def _card_answered(self, event: ApprovalCard.Answered) -> None:
        self.controller.sending.approvals.answer(event.card, event.chosen)

    @on(ErrorCard.Chosen)
    async def _card_chosen(self, event: ErrorCard.Chosen) -> None:
        event.stop()
        if event.command == "reload-model":
            self.app.load_model(self.app.host.state.wanted)
        else:
            await self.action_command(event.command)

    @on(ErrorCard.Dismissed)
    async def _card_dismissed(self, event: ErrorCard.Dismissed) -> None:
        event.stop()
        self.set_focus(self.composer.input)
        if isinstance(event.card, LoadErrorCard):
            await self._model_view.dismiss_error()
        elif self.controller.active_id is not None:
            await self.controller.sending.drop_failure(self.controller.active_id)

    @on(MessageView.BranchClicked)
    def _branch_clicked(self, event: MessageView.BranchClicked) -> None:
        event.stop()
        if event.view.node_id is not None:
            self.run_guarded(self.controller.step_branch, event.view.node_id, event.step)

    @on(Chip.Opened)
    def _chip_opened(self, event: Chip.Opened) -> None:
        event.stop()
        self.run_guarded(self.read_attachment, event.chip.attachment)

    @on(Transcript.EarlierWanted)
    async def _earlier_wanted(self, event: Transcript.EarlierWanted) -> None:
        event.stop()
        await self.transcript.show_earlier()

    @on(Transcript.Moved)
    def _transcript_moved(self, event: Transcript.Moved) -> None:
        event.stop()
        self.show_below()

    @on(Below.EndWanted)
    def _end_wanted(self, event: Below.EndWanted) -> None:
        event.stop()
        self.transcript.anchor()
        self.transcript.scroll_end(animate=False)

    def show_below(self) -> None:
        """Show what is going on out of sight: the reply's state, and lines below the screen."""
        transcript, run, state = self.transcript, self.controller.sending.run, ""
        if run is not None:
            view = next((view for view in reversed(transcript.views) if view.role == "assistant"), None)
            if view is not None and view.region and view.region.y < transcript.region.y:
                state = wording.reply_state(run, self.app.keymap)
        text = wording.below(state, *transcript.lines_below, self.app.keymap, is_plain=self.app.is_plain)
        self.query_one(Below).show(text)

    def on_reply_markdown_copy_requested(self, event: Any) -> None:
        event.stop()
        self.copy(event.code, "the code block")

    def on_reply_markdown_wide_requested(self, event: Any) -> None:
        event.stop()
        self.run_guarded(self.show_wide, event.table)

    # Sidebar

    def refresh_sidebar(self) -> None:
        self._listing.refresh()

    @on(Sidebar.SearchWanted)
    def _search_wanted(self, event: Sidebar.SearchWanted) -> None:
        event.stop()
        self.run_guarded(partial(self._listing.fill, opens=event.opens), event.text)

    @on(Sidebar.Chosen)
    def _conversation_chosen(self, event: Sidebar.Chosen) -> None:
        event.stop()
        self.run_guarded(self._open, event.conversation_id, event.node_id)

    async def _open(self, conversation_id: str, node_id: int | None) -> None:
        await self.controller.open(conversation_id, node_id, self.sidebar.search.value)
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

    # Title, status line and hints

    def page_changed(self) -> None:
        page = self.controller.page
        self.title_changed()
        values = StatusValues()
        for node in reversed(page.nodes if page is not None else ()):
            if node.role == "assistant" and node.record.get("usage"):
                values = StatusValues().with_record(node.record)
                break
        self.status.change(**{name: getattr(values, name) for name in OF_A_REPLY})
        self.run_guarded(self.meter.measure_page)
        mode = f"Editing an earlier message; sending makes a new branch. {self.app.keymap.display('stop')} cancels."
        self.composer.show_mode(mode if self.controller.editing is not None else "")
        self.transcript.mark_edited(self.controller.editing)
        self.activity_changed()

    def title_changed(self) -> None:
        page = self.controller.page
        title = fmt.clean(page.info.title) if page is not None else ""
        self.query_one("#title", Static).update(title or "New conversation")
        self.app.signals.show(title, is_writing=bool(self.controller.busy_ids))

    def activity_changed(self) -> None:
        self.title_changed()
        self.show_below()
        self.status.change(activity=wording.activity(self.app.host.state))
        self.refresh_sidebar()
        self.read_ahead.touch()  # what was typed beside a reply waits for its end


def _import_ahead() -> None:
    import pygments.lexers  # type: ignore[import-untyped]

    import edge_chat.widgets.markdown  # noqa: F401 (imported for later)

    pygments.lexers.get_lexer_by_name("python")
