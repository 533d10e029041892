"""What happens in the chat: opening and switching conversations, sending, following replies, failing in place.

The store is the truth: the transcript shows what is saved, plus the reply that is being written. All of this runs on the
event loop; whatever blocks goes through `Library` or a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError, UsageError
from edge_chat import format as fmt
from edge_chat.attachments import edited_by_draft, pack_draft, unpack_draft
from edge_chat.library import Page
from edge_chat.replies import ReplyRun
from edge_chat.widgets.cards import ErrorCard, WaitingCard
from edge_chat.widgets.message import MessageView

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.conversation import Attachment, ConversationStore
    from edge.reply import Reply
    from edge.types import Sampling
    from edge_chat.app import ChatApp
    from edge_chat.screens.chat import ChatScreen

__all__ = ["ChatController"]

_FOLLOW_S = 0.05  # how often new text is put on the screen; the event loop is free for keys in between
_FOLLOW_PLAIN_S = 1.0  # a screen reader reads every change, so it gets fewer and larger ones


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


class ChatController:
    """State of the chat and the operations on it.

    Args:
        app: settings, library and model.
        screen: where it is shown.

    Attributes:
        page: the conversation on the screen as it is saved; None for a new one that is not saved yet.
        editing: the message that the composer replaces; None for a new one.
    """

    def __init__(self, app: ChatApp, screen: ChatScreen) -> None:
        self.app = app
        self.screen = screen
        self.page: Page | None = None
        self._changed: dict[str, Any] = {}
        self.editing: int | None = None
        self._runs: dict[str, ReplyRun] = {}
        self._waiting: dict[str, Outgoing] = {}
        self._unsaved: dict[str, Outgoing] = {}
        self._departures: list[Departure] = []
        self._visit = 0  # counts what has been on the screen, to tell one unsaved conversation from the next
        self._drafts: dict[str, str] = {}
        self._failures: dict[str, ErrorCard] = {}
        self._notices: dict[int, list[str]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._creating = asyncio.Lock()

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen in this session. What was changed stays so when the model is changed."""
        return replace(self.default_sampling, **self._changed)

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        default = self.default_sampling
        values = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
        self._changed = {name: value for name, value in values.items() if value != getattr(default, name)}

    @property
    def default_sampling(self) -> Sampling:
        """How tokens are chosen where nothing was set in this session."""
        assistant = self.app.host.assistant
        return assistant.sampling if assistant is not None else self.app.settings.sampling

    @property
    def active_id(self) -> str | None:
        """Id of the conversation on the screen."""
        return self.page.info.id if self.page is not None else None

    @property
    def run(self) -> ReplyRun | None:
        """The reply that is being written on the screen."""
        return self._runs.get(self.active_id or "")

    @property
    def busy_ids(self) -> frozenset[str]:
        """Conversations in which a reply is being written."""
        return frozenset(self._runs)

    @property
    def replies(self) -> list[asyncio.Task[None]]:
        """The replies that are being written, as tasks that end with them."""
        return [run.task for run in self._runs.values()]

    @property
    def is_busy(self) -> bool:
        """Whether something is under way that nobody waits for."""
        return bool(self._tasks)

    # Opening

    async def new(self) -> None:
        """Show an empty conversation; it is saved when something is typed."""
        self._leave()
        self._visit += 1
        self.page = None
        self.editing = None
        self.screen.composer.load("")
        await self.show_empty()

    async def show_empty(self) -> None:
        """Show that there is no message yet, without touching what is being typed."""
        await self.screen.transcript.show(None, self.screen.make_empty_state())
        await self.screen.show_load_error()
        self.screen.page_changed()

    async def open(self, conversation_id: str, node_id: int | None = None) -> None:
        """Show a conversation.

        Args:
            conversation_id: whose.
            node_id: a message to scroll to; its branch becomes the active one.

        Raises:
            UsageError: there is no such conversation or message.
            StorageError: it cannot be read.
        """
        if node_id is not None and conversation_id not in self._runs:
            path = await self.app.library.run(lambda store: store.path(conversation_id))
            if node_id not in {node.id for node in path}:
                await self.app.library.run(lambda store: store.set_head(conversation_id, store.leaf(node_id).id))
        page = await self.app.library.page(conversation_id)
        # From here to the new draft nothing waits: a key that is pressed meanwhile would be lost with the old one.
        typed_early = self.screen.composer.text if self.page is None else ""
        self._leave()
        self._visit += 1
        self.page = page
        edited = edited_by_draft(page.info.draft)
        self.editing = edited if any(node.id == edited and node.role == "user" for node in page.nodes) else None
        self._drafts[page.info.id] = page.info.draft
        draft, attachments = unpack_draft(page.info.draft)
        self.screen.composer.load(draft + typed_early, attachments)
        await self.screen.transcript.show(page, self.screen.make_empty_state())
        await self._show_rest(page.info.id)
        await self.screen.show_load_error()
        self.screen.page_changed()
        if node_id is not None:
            self.screen.reveal(node_id)

    async def reload(self) -> None:
        """Read the conversation on the screen again and show what has changed."""
        if self.page is not None:
            self.page = await self.app.library.page(self.page.info.id)
            await self.screen.transcript.follow(self.page)
            self._show_notices()
            self.screen.page_changed()

    async def ensure_saved(self) -> str:
        """The id of the conversation on the screen, which is saved first if it is new.

        Raises:
            StorageError: it cannot be saved.
        """
        async with self._creating:
            if self.page is not None:
                return self.page.info.id
            visit, system = self._visit, self.app.settings.system
            info = await self.app.library.run(lambda store: store.create(system=system))
            for departure in self._departures:
                if departure.visit == visit:
                    departure.conversation_id = info.id
            if visit == self._visit:  # otherwise something else has been opened meanwhile
                self.page = Page(info, (), {})
                self.screen.page_changed()
            return info.id

    async def _destination(self, departure: Departure) -> str:
        """The id of the conversation that a message was written in, which is saved first if it is new."""
        if departure.conversation_id is None and departure.visit == self._visit:
            await self.ensure_saved()
        async with self._creating:
            if departure.conversation_id is None:
                system = self.app.settings.system
                info = await self.app.library.run(lambda store: store.create(system=system))
                departure.conversation_id = info.id
            return departure.conversation_id

    # Writing

    def depart(self, text: str, attachments: tuple[Attachment, ...]) -> Departure:
        """Enter was pressed: keep hold of a message that leaves the composer, until `on_its_way` is over."""
        departure = Departure(Outgoing(text, attachments, self.editing), self._visit, self.active_id)
        self._departures.append(departure)
        return departure

    async def submit(self, departure: Departure, text: str, attachments: tuple[Attachment, ...]) -> None:
        """Send a message, now or as soon as the model is free.

        Args:
            departure: where it comes from.
            text, attachments: what is said.

        Raises:
            StorageError: it cannot be saved; nothing was sent.
            UsageError: another message is waiting already.
        """
        conversation_id = await self._destination(departure)
        if conversation_id in self._waiting:
            raise UsageError("A message is waiting to be sent already.", "Wait, or press Esc to take it back.")
        message = Outgoing(text, attachments, departure.message.edited)
        is_active = conversation_id == self.active_id
        if is_active:
            self.editing = None
            self.screen.page_changed()
        if self.app.host.assistant is None or conversation_id in self._runs:
            self._waiting[conversation_id] = message
            self._post_draft(conversation_id, message.as_draft())
            if is_active:
                await self.screen.transcript.add(WaitingCard(text or "(attachment)", self._why_waiting()))
            if self.app.host.state.phase in ("failed", "idle") and self.app.host.assistant is None:
                self.app.load_model(self.app.host.state.wanted or self.app.settings.model)
            return
        await self._send(conversation_id, message)

    @contextmanager
    def on_its_way(self, departure: Departure) -> Iterator[None]:
        """While a message is being made ready it stays the draft, so that it outlives the process. What goes wrong with it
        brings it back to where it was written."""
        message, is_refused = departure.message, False
        try:
            yield
        except EdgeError:
            is_refused = True
            raise
        finally:
            self._departures.remove(departure)
            if is_refused and departure.visit == self._visit:
                self.screen.composer.put_back(message.text, message.attachments)
            elif is_refused and departure.conversation_id is not None and departure.conversation_id not in self._waiting:
                self._post_draft(departure.conversation_id, message.as_draft())
            self.save_draft()

    async def answer_again(self, node_id: int | None = None) -> None:
        """Ask for another answer.

        Args:
            node_id: an answer or a question; None is the last one.

        Raises:
            UsageError: there is nothing to answer, no model, or a reply is being written.
        """
        conversation_id = self._idle_conversation()
        self._assistant()
        nodes = self.page.nodes if self.page is not None else ()
        target = node_id if node_id is not None else (nodes[-1].id if nodes else None)
        answer = next((node for node in nodes if node.id == target), None)
        if answer is None or not any(node.role == "user" for node in nodes):
            raise UsageError("There is no message to answer yet.", "Send one first.")
        if answer.role == "assistant":
            await self.screen.transcript.cut(answer.id)
        else:
            following = next((node for node in nodes if node.parent == answer.id), None)
            if following is not None:
                await self.screen.transcript.cut(following.id)
        await self._begin(
            conversation_id,
            lambda: self._assistant().conversation(conversation_id, sampling=self.sampling).regenerate(target),
        )

    def start_edit(self, node_id: int) -> None:
        """Put one of the user's messages into the composer, to be said differently.

        Raises:
            UsageError: it is not one of the user's.
        """
        node = next((n for n in (self.page.nodes if self.page is not None else ()) if n.id == node_id), None)
        if node is None or node.role != "user":
            raise UsageError("Only your own messages can be edited.", "To get another answer, use /regenerate.")
        self._idle_conversation()
        self.editing = node_id
        self.screen.composer.load(node.content, node.attachments)
        self.screen.page_changed()
        self.screen.composer.input.focus()

    def cancel_edit(self) -> bool:
        """Give up editing. Returns whether there was something to give up."""
        if self.editing is None:
            return False
        self.editing = None
        self.screen.composer.load("")
        self.save_draft()
        self.screen.page_changed()
        return True

    async def stop(self) -> bool:
        """Stop the reply, or take back the message that waits. Returns whether there was either."""
        waiting = self._waiting.pop(self.active_id or "", None)
        if waiting is not None:
            await self.screen.transcript.clear_waiting()
            self._put_back(waiting)
            return True
        if self.run is not None:
            self.run.stop()
            return True
        return False

    async def step_branch(self, node_id: int, step: int) -> None:
        """Go to the next or previous alternative of a message.

        Raises:
            UsageError: there is none, or a reply is being written.
        """
        conversation_id = self._idle_conversation()
        assert self.page is not None
        ids = self.page.siblings.get(node_id, ())
        if len(ids) < 2:
            raise UsageError("This message has no other branch.", "Edit a message or regenerate an answer to make one.")
        target = ids[(ids.index(node_id) + step) % len(ids)]
        await self.app.library.run(lambda store: store.set_head(conversation_id, store.leaf(target).id))
        await self._drop_failure(conversation_id)
        await self.reload()
        self.screen.reveal(target, focus=True)

    async def fork(self, node_id: int | None) -> None:
        """Copy the conversation up to a message into a new one and show that.

        Raises:
            UsageError: it is empty.
        """
        if self.page is None or not self.page.nodes:
            raise UsageError("This conversation is empty.", "Send a message first.")
        conversation_id = self.page.info.id
        head = node_id if node_id is not None else self.page.nodes[-1].id
        info = await self.app.library.run(lambda store: store.fork(conversation_id, head))
        await self.open(info.id)

    def save_draft(self) -> None:
        """Save what is typed, or what waits to be sent; until it is saved as a message it must not get lost."""
        if self.page is None:
            return
        conversation_id = self.page.info.id
        composer = self.screen.composer
        message = self._on_hold(conversation_id) or Outgoing(composer.text, composer.attachments, self.editing)
        self._post_draft(conversation_id, message.as_draft())

    def _on_hold(self, conversation_id: str) -> Outgoing | None:
        """The message of a conversation that was sent, but is not saved as one yet."""
        departing = (d.message for d in self._departures if d.conversation_id == conversation_id)
        return self._waiting.get(conversation_id) or self._unsaved.get(conversation_id) or next(departing, None)

    async def forget(self, conversation_id: str) -> None:
        """Let go of a conversation that is about to be deleted: what waits in it is not sent, and it leaves the screen."""
        self._waiting.pop(conversation_id, None)
        if conversation_id == self.active_id:
            self.save_draft()
            self.page = None  # so that it is not left as one that is kept, or deleted for being empty
            await self.new()
        self._failures.pop(conversation_id, None)
        self._drafts.pop(conversation_id, None)

    def model_ready(self) -> None:
        """A model can be used: send what waits."""
        for conversation_id in list(self._waiting):
            if conversation_id not in self._runs:
                message = self._waiting.pop(conversation_id)
                self._unsaved[conversation_id] = message
                self._start(self._send(conversation_id, message))

    def model_failed(self, error: EdgeError) -> None:
        """No model can be used: give back what waits."""
        for conversation_id, message in list(self._waiting.items()):
            del self._waiting[conversation_id]
            if conversation_id == self.active_id:
                self._start(self.screen.transcript.clear_waiting())
                self._put_back(message)

    async def close(self) -> None:
        """Stop all replies and wait until what they said is saved."""
        self.save_draft()
        runs = list(self._runs.values())
        for run in runs:
            run.stop()
        if runs:
            await asyncio.wait([run.task for run in runs], timeout=5)

    # How a message gets its reply

    async def _send(self, conversation_id: str, message: Outgoing) -> None:
        if self.app.host.assistant is None:
            self._unsaved.pop(conversation_id, None)
            self._waiting[conversation_id] = message
            return

        def start() -> Reply:
            conversation = self._assistant().conversation(conversation_id, sampling=self.sampling)
            if message.edited is not None:
                return conversation.edit(message.edited, message.text, attachments=message.attachments)
            return conversation.send(message.text, attachments=message.attachments)

        if conversation_id == self.active_id:
            transcript = self.screen.transcript
            await transcript.clear_waiting()
            if message.edited is not None:
                await transcript.cut(message.edited)
            await transcript.add(MessageView("user", message.text, "You", message.attachments))
        await self._begin(conversation_id, start, message)

    async def _begin(self, conversation_id: str, start: Callable[[], Reply], message: Outgoing | None = None) -> None:
        await self._drop_failure(conversation_id)
        if message is not None:
            self._unsaved[conversation_id] = message
        run = ReplyRun(conversation_id, start, self._accepted, lambda run: self._start(self._ended(run, message)))
        self._runs[conversation_id] = run
        if conversation_id == self.active_id:
            await self._show_run(run)
        self.screen.activity_changed()

    async def _show_run(self, run: ReplyRun) -> None:
        """Put the reply on the screen and keep it up to date there."""
        transcript = self.screen.transcript
        saved = run.reply.node if run.reply is not None else None
        view = transcript.view_of(saved.id) if saved is not None else None
        if view is None:
            assistant = self.app.host.assistant
            view = MessageView("assistant", run.text, assistant.model_name if assistant is not None else "Assistant")
            await transcript.add(view)
        transcript.anchor()
        self._start(self._follow(run, view))

    async def _follow(self, run: ReplyRun, view: MessageView) -> None:
        pause = _FOLLOW_PLAIN_S if self.app.is_plain else _FOLLOW_S
        while not run.is_over and view.is_attached:
            began = time.perf_counter()
            view.state = self._run_state(run)
            if run.notices:
                view.notices = tuple(run.notices)
            await view.extend(run.text)
            # A long reply takes longer to lay out; most of the time must stay free for keys all the same.
            await asyncio.wait([run.task], timeout=max(pause, 2 * (time.perf_counter() - began)))

    def _run_state(self, run: ReplyRun) -> str:
        stop = f"{self.app.key_display('stop')} stops"
        if run.phase == "reading":
            done, total = run.progress
            return f"reading {fmt.count(done)} of {fmt.count(total)} tokens · {stop}"
        return f"writing · {stop}" if run.phase == "writing" else f"waiting · {stop}"

    def _accepted(self, run: ReplyRun) -> None:
        """The message is saved, so the draft must not bring it back; what has been typed since stays."""
        self._start(self._show_title(run.conversation_id))
        reference = self.app.host.reference
        self.app.library.post(self._reporting(lambda store: store.set_model(run.conversation_id, reference)))
        if self._unsaved.pop(run.conversation_id, None) is None:
            return
        if run.conversation_id == self.active_id:
            self.save_draft()
        else:
            self._post_draft(run.conversation_id, "")

    async def _show_title(self, conversation_id: str) -> None:
        """The first message gives a conversation its title."""
        info = await self.app.library.run(lambda store: store.get(conversation_id))
        if self.page is not None and self.page.info.id == conversation_id:
            self.page = replace(self.page, info=info)
            self.screen.title_changed()
        self.screen.refresh_sidebar()

    async def _ended(self, run: ReplyRun, message: Outgoing | None) -> None:
        conversation_id = run.conversation_id
        self._runs.pop(conversation_id, None)
        self._unsaved.pop(conversation_id, None)
        if run.reply is not None and run.reply.node is not None and run.notices:
            self._notices[run.reply.node.id] = run.notices
        is_active = conversation_id == self.active_id
        if run.error is not None:
            if not run.was_accepted and message is not None:
                await self._give_back(conversation_id, message)
            again = ((("r", "regenerate", "Try again"),) if run.was_accepted else ()) + (("m", "model", "Other model"),)
            title = "The reply broke off" if run.text else "There is no reply"
            self._failures[conversation_id] = ErrorCard(title, run.error, again)
        if is_active:
            await self._show_end(run)
        self.screen.activity_changed()
        waiting = self._waiting.pop(conversation_id, None)
        if waiting is not None:
            await self._send(conversation_id, waiting)

    async def _show_end(self, run: ReplyRun) -> None:
        """Show the reply as it was saved; a reply of which nothing was saved leaves the screen."""
        view = next((v for v in reversed(self.screen.transcript.views) if v.role == "assistant" and v.node_id is None), None)
        if view is not None:
            if run.text:
                await view.finish(run.text)
            else:
                await view.remove()
        try:
            await self.reload()
        except EdgeError as error:
            self.screen.complain(error)
        failure = self._failures.get(run.conversation_id)
        if failure is not None:
            await self.screen.transcript.add(failure)

    async def _give_back(self, conversation_id: str, message: Outgoing) -> None:
        """What was not accepted goes back to where it was typed."""
        if conversation_id == self.active_id:
            view = next((v for v in reversed(self.screen.transcript.views) if v.role == "user" and v.node_id is None), None)
            if view is not None:
                await view.remove()
            self._put_back(message)
        else:
            self._post_draft(conversation_id, message.as_draft())

    def _put_back(self, message: Outgoing) -> None:
        self.screen.composer.put_back(message.text, message.attachments)
        self.editing = message.edited
        self.screen.page_changed()

    # Small things

    def _leave(self) -> None:
        """Save the draft of the conversation on the screen; one in which nothing was ever typed is not kept."""
        page = self.page
        if page is None:
            return
        self.save_draft()
        composer = self.screen.composer
        is_unused = not page.nodes and not composer.text.strip() and not composer.attachments
        if is_unused and page.info.id not in self._runs and self._on_hold(page.info.id) is None:
            self.app.library.post(self._reporting(lambda store: store.delete(page.info.id)))

    async def _show_rest(self, conversation_id: str) -> None:
        """What a conversation has besides saved messages: a running reply, a failure, a message that waits."""
        self._show_notices()
        if conversation_id in self._runs:
            await self._show_run(self._runs[conversation_id])
        failure = self._failures.get(conversation_id)
        if failure is not None:
            self._failures[conversation_id] = fresh = failure.copy()
            await self.screen.transcript.add(fresh)
        if conversation_id in self._waiting:
            self.screen.composer.load("")
            self.editing = None
            waiting = self._waiting[conversation_id]
            await self.screen.transcript.add(WaitingCard(waiting.text, self._why_waiting()))

    def _show_notices(self) -> None:
        for view in self.screen.transcript.views:
            if view.node_id in self._notices:
                view.notices = tuple(self._notices[view.node_id])

    async def _drop_failure(self, conversation_id: str) -> None:
        if self._failures.pop(conversation_id, None) is not None and conversation_id == self.active_id:
            await self.screen.transcript.clear_failure()

    def _idle_conversation(self) -> str:
        if self.page is None:
            raise UsageError("This conversation is empty.", "Send a message first.")
        if self.page.info.id in self._runs:
            raise UsageError("A reply is being written.", f"Wait for it, or stop it with {self.app.key_display('stop')}.")
        return self.page.info.id

    def _assistant(self) -> Assistant:
        """The model in use. Asked for when a reply begins, not before: it may be changed at any time until then."""
        assistant = self.app.host.assistant
        if assistant is None:
            raise UsageError("The model is not loaded yet.", "Wait until it is, or choose one with /model.")
        return assistant

    def _why_waiting(self) -> str:
        takes_back = f"{self.app.key_display('stop')} takes it back"
        if self.app.host.assistant is None:
            return f"will be sent when the model is ready · {takes_back}"
        return f"will be sent after this reply · {takes_back}"

    def _post_draft(self, conversation_id: str, draft: str) -> None:
        if self._drafts.get(conversation_id) != draft:
            self._drafts[conversation_id] = draft
            self.app.library.post(self._reporting(lambda store: store.set_draft(conversation_id, draft)))

    def _reporting(self, work: Callable[[ConversationStore], object]) -> Callable[[ConversationStore], None]:
        """Work for the store's thread whose errors are shown."""

        def guarded(store: ConversationStore) -> None:
            try:
                work(store)
            except EdgeError as error:
                self.app.call_later(self.screen.complain, error)

        return guarded

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside what is going on; its errors are shown."""

        async def guarded() -> None:
            try:
                await work
            except EdgeError as error:
                self.screen.complain(error)

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
