"""The conversation on the screen: opening and switching, branches, what is being typed in it.

The store is the truth: the transcript shows what is saved, plus the reply that is being written. All of this runs on the
event loop; whatever blocks goes through `Library` or a thread. Messages get their replies in `sending`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError, UsageError
from edge_chat.attachments import edited_by_draft, unpack_draft
from edge_chat.library import Page
from edge_chat.outbox import Departure, Outbox, Outgoing
from edge_chat.replies import ReplyRun
from edge_chat.sending import Sending
from edge_chat.wording import Unanswered

if TYPE_CHECKING:
    from edge.conversation import Attachment
    from edge.types import Sampling
    from edge_chat.app import ChatApp
    from edge_chat.screens.chat import ChatScreen

__all__ = ["ChatController"]


class ChatController:
    """State of the chat and the operations on it.

    Args:
        app: settings, library and model.
        screen: where it is shown.

    Attributes:
        page: the conversation on the screen as it is saved; None for a new one that is not saved yet.
        editing: the message that the composer replaces; None for a new one.
        visit: counts what has been on the screen, to tell one unsaved conversation from the next.
        outbox: what was typed and is no saved message yet.
        sending: replies that are being written.
        moving: held while messages that are not saved yet are put on the screen, or what is saved is made to agree with it.
    """

    def __init__(self, app: ChatApp, screen: ChatScreen) -> None:
        self.app = app
        self.screen = screen
        self.page: Page | None = None
        self._changed: dict[str, Any] = {}
        self.editing: int | None = None
        self.visit = 0
        self.outbox = Outbox(app.library, lambda error: app.call_later(screen.complain, error))
        self.sending = Sending(self)
        self.moving = asyncio.Lock()
        self._lost: Page | None = None
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
        return self.sending.run

    @property
    def busy_ids(self) -> frozenset[str]:
        """Conversations in which a reply is being written."""
        return frozenset(self.sending.runs)

    @property
    def replies(self) -> list[asyncio.Task[None]]:
        """The replies that are being written, as tasks that end with them."""
        return [run.task for run in self.sending.runs.values()]

    @property
    def is_busy(self) -> bool:
        """Whether something is under way that nobody waits for."""
        return bool(self._tasks)

    # Opening

    async def new(self) -> None:
        """Show an empty conversation; it is saved when something is typed."""
        self._leave()
        self.visit += 1
        self.page = None
        self.editing = None
        self.screen.composer.load("")
        await self.show_empty()

    async def show_empty(self) -> None:
        """Show that there is no message yet, without touching what is being typed."""
        await self.screen.transcript.show(None, self.screen.make_empty_state())
        await self.screen.model_view.show_error()
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
        if node_id is not None and conversation_id not in self.sending.runs:
            path = await self.app.library.run(lambda store: store.path(conversation_id))
            if node_id not in {node.id for node in path}:
                await self.app.library.run(lambda store: store.set_head(conversation_id, store.leaf(node_id).id))
        page = await self.app.library.page(conversation_id)
        # From here to the new draft nothing waits: a key that is pressed meanwhile would be lost with the old one.
        typed_early = self.screen.composer.text if self.page is None else ""
        self._leave()
        self.visit += 1
        self.page = page
        edited = edited_by_draft(page.info.draft)
        self.editing = edited if any(node.id == edited and node.role == "user" for node in page.nodes) else None
        self.outbox.know_draft(page.info.id, page.info.draft)
        draft, attachments = unpack_draft(page.info.draft)
        self.screen.composer.load(draft + typed_early, attachments)
        await self.screen.transcript.show(page, self.screen.make_empty_state())
        await self.sending.show_rest(page.info.id)
        await self.screen.model_view.show_error()
        self.screen.page_changed()
        if node_id is not None:
            self.screen.reveal(node_id)

    async def reload(self) -> None:
        """Read the conversation on the screen again and show what has changed."""
        if self.page is not None:
            await self._follow(await self.app.library.page(self.page.info.id))

    async def catch_up(self) -> None:
        """Show what another process has added to the conversation on the screen. What is being typed stays.

        Raises:
            UsageError: the conversation is not there any more.
            StorageError: it cannot be read.
        """
        page = self.page
        if page is None or page is self._lost or self._is_in_motion(page.info.id):
            return
        try:
            info = await self.app.library.run(lambda store: store.get(page.info.id))
        except EdgeError:
            self._lost = page  # said once
            raise
        is_growing = bool(page.nodes) and page.nodes[-1].status == "partial"
        if (info.updated, info.head) == (page.info.updated, page.info.head) and not is_growing:
            return
        fresh = await self.app.library.page(page.info.id)
        async with self.moving:
            if self.page is page and not self._is_in_motion(page.info.id):
                await self._follow(fresh, "elsewhere")
                self.screen.refresh_sidebar()

    def _is_in_motion(self, conversation_id: str) -> bool:
        """Whether this process is changing the conversation itself, and shows that itself."""
        return self.is_busy or conversation_id in self.sending.runs or bool(self.outbox.departures)

    async def _follow(self, page: Page, why_unanswered: Unanswered = "left") -> None:
        self.page = page
        await self.screen.transcript.follow(page)
        self.sending.show_notices()
        await self.sending.show_unanswered(why_unanswered)
        self.screen.page_changed()

    async def ensure_saved(self) -> str:
        """The id of the conversation on the screen, which is saved first if it is new.

        Raises:
            StorageError: it cannot be saved.
        """
        async with self._creating:
            if self.page is not None:
                return self.page.info.id
            visit, system = self.visit, self.app.settings.system
            info = await self.app.library.run(lambda store: store.create(system=system))
            for departure in self.outbox.departures:
                if departure.visit == visit:
                    departure.conversation_id = info.id
            if visit == self.visit:  # otherwise something else has been opened meanwhile
                self.page = Page(info, (), {})
                self.screen.page_changed()
            return info.id

    async def destination(self, departure: Departure) -> str:
        """The id of the conversation that a message was written in, which is saved first if it is new."""
        if departure.conversation_id is None and departure.visit == self.visit:
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
        departure = Departure(Outgoing(text, attachments, self.editing), self.visit, self.active_id)
        self.outbox.departures.append(departure)
        return departure

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
            self.outbox.departures.remove(departure)
            if is_refused and departure.visit == self.visit:
                self.screen.composer.put_back(message.text, message.attachments)
            elif is_refused and departure.conversation_id is not None and departure.conversation_id not in self.outbox.waiting:
                self.outbox.keep_draft(departure.conversation_id, message.as_draft())
            self.save_draft()

    def start_edit(self, node_id: int) -> None:
        """Put one of the user's messages into the composer, to be said differently.

        Raises:
            UsageError: it is not one of the user's.
        """
        node = next((n for n in (self.page.nodes if self.page is not None else ()) if n.id == node_id), None)
        if node is None or node.role != "user":
            raise UsageError("Only your own messages can be edited.", "To get another answer, use /regenerate.")
        self.sending.idle_conversation()
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

    async def step_branch(self, node_id: int, step: int) -> None:
        """Go to the next or previous alternative of a message.

        Raises:
            UsageError: there is none, or a reply is being written.
        """
        conversation_id = self.sending.idle_conversation()
        assert self.page is not None
        ids = self.page.siblings.get(node_id, ())
        if len(ids) < 2:
            raise UsageError("This message has no other branch.", "Edit a message or regenerate an answer to make one.")
        target = ids[(ids.index(node_id) + step) % len(ids)]
        await self.app.library.run(lambda store: store.set_head(conversation_id, store.leaf(target).id))
        await self.sending.drop_failure(conversation_id)
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
        message = self.outbox.on_hold(conversation_id) or Outgoing(composer.text, composer.attachments, self.editing)
        self.outbox.keep_draft(conversation_id, message.as_draft())

    async def forget(self, conversation_id: str) -> None:
        """Let go of a conversation that is about to be deleted: what waits in it is not sent, and it leaves the screen."""
        self.outbox.waiting.pop(conversation_id, None)
        if conversation_id == self.active_id:
            self.save_draft()
            self.page = None  # so that it is not left as one that is kept, or deleted for being empty
            await self.new()
        self.sending.failures.pop(conversation_id, None)
        self.outbox.forget(conversation_id)

    async def close(self) -> None:
        """Stop all replies and wait until what they said is saved."""
        self.save_draft()
        runs = list(self.sending.runs.values())
        for run in runs:
            run.stop()
        if runs:
            await asyncio.wait([run.task for run in runs], timeout=5)

    def _leave(self) -> None:
        """Save the draft of the conversation on the screen; one in which nothing was ever typed is not kept."""
        page = self.page
        if page is None:
            return
        self.save_draft()
        composer = self.screen.composer
        is_unused = not page.nodes and not composer.text.strip() and not composer.attachments
        if is_unused and page.info.id not in self.sending.runs and self.outbox.on_hold(page.info.id) is None:
            self.outbox.post(lambda store: store.delete(page.info.id))

    def start(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Call something beside what is going on; its errors are shown, bugs are logged and shown."""

        async def guarded() -> None:
            try:
                await work(*arguments)
            except EdgeError as error:
                self.screen.complain(error)
            except Exception as bug:  # noqa: BLE001 (as in ChatScreen.run_guarded)
                if self.screen.is_attached and self.app.is_running:
                    self.screen.complain(self.app.report_bug(bug))

        task = asyncio.create_task(guarded())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
