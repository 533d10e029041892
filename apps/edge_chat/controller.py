"""The chat's controller: opening and switching conversations, branches, drafts, deleting.

The store is the truth: the transcript shows the saved messages plus the reply being generated. Everything runs on the event
loop; blocking work goes through `Library` or a thread. Messages get their replies in `sending`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from edge.errors import EdgeError, UsageError
from edge_chat import wording
from edge_chat.attachments import edited_by_draft, unpack_draft
from edge_chat.desk import Desk
from edge_chat.documents import with_docs
from edge_chat.outbox import Departure, Outgoing
from edge_chat.sending import Sending

if TYPE_CHECKING:
    from edge.conversation import Attachment, ConversationInfo, ConversationStore
    from edge_chat.base import BaseApp
    from edge_chat.library import Page
    from edge_chat.screens.view import ChatView

__all__ = ["ChatController"]


class ChatController(Desk):
    """State of the chat and the operations on it. Arguments as for Desk; `sending` has the replies being generated."""

    def __init__(self, app: BaseApp, screen: ChatView) -> None:
        super().__init__(app, screen)
        self.sending = Sending(self)
        self._lost: Page | None = None
        self._deleted: list[str] = []

    @property
    def busy_ids(self) -> frozenset[str]:
        """Return the conversations in which a reply is being generated."""
        return frozenset(self.sending.runs)

    @property
    def replies(self) -> list[asyncio.Task[None]]:
        """Return the tasks of the replies being generated."""
        return [run.task for run in self.sending.runs.values()]

    # Opening

    async def open_first(self, wanted: str | None) -> None:
        """Show a conversation; None shows the newest if it has a draft, else a new one."""
        if wanted is None and not self.screen.composer.text:
            newest = await self.app.library.run(lambda store: store.list(limit=1))
            wanted = next((info.id for info in newest if info.draft), None)
        if wanted is None:
            await self.show_empty()
        else:
            info = await self.app.library.run(lambda store: store.get(wanted))
            await self.open(info.id)
        self.screen.refresh_sidebar()

    async def new(self) -> None:
        """Show an empty conversation; it is saved when something is typed."""
        self._leave()
        self.visit += 1
        self.put_aside = ("", ())
        self.page = self.editing = None
        self.screen.composer.load("")
        await self.show_empty()

    async def show_empty(self) -> None:
        """Show that there is no message yet; the text being typed stays."""
        await self.screen.transcript.show(None, self.screen.make_empty_state())
        await self.screen.show_load_error()
        self.screen.page_changed()
        self.screen.run_guarded(self.screen.show_recent)

    async def open(self, conversation_id: str, node_id: int | None = None, searched: str = "") -> None:
        """Show a conversation. If a message is given, scroll to it and make its branch the active one.

        Args:
            conversation_id: its id.
            node_id: the message.
            searched: mark these words in the message, and scroll to the first of them.

        Raises:
            UsageError: there is no such conversation or message.
            StorageError: it cannot be read.
        """
        if node_id is not None and conversation_id not in self.sending.runs:
            path = await self.app.library.run(lambda store: store.path(conversation_id))
            if node_id not in {node.id for node in path}:
                await self.app.library.run(lambda store: store.set_head(conversation_id, store.leaf(node_id).id))
        page = await self.app.library.page(conversation_id)
        # No await from here to the new draft: a key pressed in between would be lost with the old one.
        typed_early = self.screen.composer.text if self.page is None else ""
        self._leave()
        self.visit += 1
        self.put_aside = ("", ())
        self.page = page
        edited = edited_by_draft(page.info.draft)
        self.editing = edited if any(node.id == edited and node.role == "user" for node in page.nodes) else None
        self.outbox.note_saved_draft(page.info.id, page.info.draft)
        draft, attachments = unpack_draft(page.info.draft)
        self.screen.composer.load(draft + typed_early, attachments)
        await self.screen.transcript.show(page, self.screen.make_empty_state(), at=node_id)
        await self.sending.show_rest(page.info.id)
        await self.screen.show_load_error()
        self.screen.page_changed()
        if node_id is not None:
            self.screen.reveal(node_id, searched=searched)
        elif not page.nodes:
            self.screen.run_guarded(self.screen.show_recent)

    async def catch_up(self) -> None:
        """Show what another process has added to the conversation on the screen. The text being typed stays.

        Raises:
            UsageError: the conversation no longer exists.
            StorageError: it cannot be read.
        """
        page = self.page
        if page is None or page is self._lost or self._is_changing(page.info.id):
            return
        try:
            info = await self.app.library.run(lambda store: store.get(page.info.id))
        except EdgeError:
            self._lost = page  # report it once
            raise
        is_growing = bool(page.nodes) and page.nodes[-1].status == "partial"
        if (info.updated, info.head) == (page.info.updated, page.info.head) and not is_growing:
            return
        fresh = await self.app.library.page(page.info.id)
        async with self.moving:
            if self.page is page and not self._is_changing(page.info.id):
                await self.sending.follow(fresh, "elsewhere")
                self.screen.refresh_sidebar()

    def _is_changing(self, conversation_id: str) -> bool:
        """Return whether this process is changing the conversation, and shows the changes by itself."""
        return self.is_busy or conversation_id in self.sending.runs or bool(self.outbox.departures)

    # Writing

    def depart(self, text: str, attachments: tuple[Attachment, ...]) -> Departure:
        """Track a message that leaves the composer, until `on_its_way` ends."""
        departure = Departure(Outgoing(text, attachments, self.editing), self.visit, self.active_id)
        self.outbox.departures.append(departure)
        return departure

    @contextmanager
    def on_its_way(self, departure: Departure) -> Iterator[None]:
        """Keep a message as the draft while it is prepared, so that it outlives the process; put it back if that fails."""
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
                self.outbox.save_draft(departure.conversation_id, message.as_draft())
            self.save_draft()

    def start_edit(self, node_id: int) -> None:
        """Put one of the user's messages into the composer, to send an edited version.

        Raises:
            UsageError: it is not the user's message.
        """
        node = next((n for n in (self.page.nodes if self.page is not None else ()) if n.id == node_id), None)
        if node is None or node.role != "user":
            raise UsageError("Only your own messages can be edited.", "To get another answer, use /regenerate.")
        self.sending.idle_conversation()
        if self.editing is None:
            self.put_aside = (self.screen.composer.text, self.screen.composer.attachments)
        self.editing = node_id
        self.screen.composer.load(with_docs(node), node.attachments)
        self.screen.page_changed()
        self.screen.composer.input.focus()

    def cancel_edit(self) -> bool:
        """Stop editing a message. Return whether one was being edited."""
        if self.editing is None:
            return False
        self.editing = None
        self.take_up()
        self.save_draft()
        self.screen.page_changed()
        return True

    async def step_branch(self, node_id: int, step: int) -> None:
        """Show the next or previous branch of a message.

        Raises:
            UsageError: it has no other branch, or a reply is being generated.
        """
        conversation_id = self.sending.idle_conversation()
        assert self.page is not None
        ids = self.page.siblings.get(node_id, ())
        if len(ids) < 2:
            raise UsageError("This message has no other branch.", "Edit a message or regenerate an answer to make one.")
        target = ids[(ids.index(node_id) + step) % len(ids)]
        await self.app.library.run(lambda store: store.set_head(conversation_id, store.leaf(target).id))
        await self.sending.drop_failure(conversation_id)
        await self.sending.reload()
        self.screen.reveal(target, focus=True)

    async def fork(self, node_id: int | None) -> None:
        """Copy the conversation up to a message into a new one and show that.

        Raises:
            UsageError: the conversation is empty.
        """
        conversation_id = self.active_id

        def copy(store: ConversationStore) -> ConversationInfo:
            path = store.path(conversation_id, node_id) if conversation_id is not None else []
            if path and path[-1].status == "partial":  # a reply that is being generated
                path.pop()
            if conversation_id is None or not path:
                raise UsageError("This conversation is empty.", "Send a message first.")
            return store.fork(conversation_id, path[-1].id)

        info = await self.app.library.run(copy)
        await self.open(info.id)

    # Deleting and leaving

    async def delete(self, conversation_id: str) -> None:
        """Delete a conversation, its waiting message and its input history. `undelete` restores it."""
        self.outbox.waiting.pop(conversation_id, None)
        if conversation_id == self.active_id:
            self.save_draft()
            self.page = None  # so that leaving it neither saves a draft nor deletes it for being empty
            await self.new()
        self.sending.failures.pop(conversation_id, None)
        self.outbox.forget(conversation_id)

        def delete(store: ConversationStore) -> tuple[str, str]:
            copy, draft = store.export_json(conversation_id), store.get(conversation_id).draft
            store.delete(conversation_id)
            return copy, draft

        copy, draft = await self.app.library.run(delete)
        self._deleted.append(copy)
        said = [node["content"] for node in json.loads(copy)["nodes"] if node["role"] == "user"]
        self.screen.run_guarded(asyncio.to_thread, self.app.history.forget, [*said, unpack_draft(draft)[0]])

    async def undelete(self) -> ConversationInfo:
        """Restore the last deleted conversation.

        Raises:
            UsageError: none was deleted in this session.
        """
        if not self._deleted:
            raise UsageError("No conversation was deleted in this session.", "")
        info = await self.app.library.run(lambda store: store.import_json(self._deleted[-1]))
        self._deleted.pop()
        return info

    async def close(self) -> None:
        """Save the draft, stop all replies, and wait until their text is saved."""
        with suppress(EdgeError):  # the disk has failed, as the draft before it has said
            await self.keep_draft()
        runs = list(self.sending.runs.values())
        for run in runs:
            run.stop()
        if runs:
            await asyncio.wait([run.task for run in runs], timeout=5)

    async def farewell(self) -> str:
        """Return the line that tells how to open the conversation on the screen again; "" if it is empty or cannot be read."""
        conversation_id = self.active_id
        if conversation_id is None:
            return ""
        try:
            info = await self.app.library.run(lambda store: store.get(conversation_id))
            short = await self.app.library.run(lambda store: store.short_id(conversation_id))
        except EdgeError:
            return ""
        return wording.farewell(info.title, info.n_messages, short, is_plain=self.app.is_plain) if info.n_messages else ""

    def _leave(self) -> None:
        """Save the draft of the conversation on the screen; delete a conversation that never had any text."""
        page = self.page
        if page is None:
            return
        self.save_draft()
        composer = self.screen.composer
        is_unused = not page.nodes and not composer.text.strip() and not composer.attachments
        if is_unused and page.info.id not in self.sending.runs and self.outbox.pending(page.info.id) is None:
            self.outbox.post(lambda store: store.delete(page.info.id))
