"""From message to reply: sent now or when the model is free, followed on the screen, stopped, failing in place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from edge.errors import ContextFullError, EdgeError, UsageError
from edge_chat import wording
from edge_chat.approvals import Approvals
from edge_chat.documents import take_docs
from edge_chat.outbox import Departure, Outgoing
from edge_chat.replies import ReplyRun
from edge_chat.signals import LONG_REPLY_S
from edge_chat.widgets.cards import ErrorCard, WaitingCard
from edge_chat.widgets.message import MessageView
from edge_chat.wording import Unanswered

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.conversation import Attachment, Node
    from edge.dialogue import Conversation
    from edge.reply import Reply
    from edge.tiers.base import Consent
    from edge.types import Sampling
    from edge_chat.desk import Desk
    from edge_chat.library import Page

__all__ = ["Sending"]

_FOLLOW_S = 0.05  # seconds between two updates of the text; the event loop is free for keys in between
_FIGURES_S = 0.5  # seconds between two updates of the status line; faster is unreadable
_FOLLOW_PLAIN_S = 1.0  # a screen reader reads every change, so it gets fewer and larger ones


class Sending:
    """The replies of all conversations, and how they ended.

    Attributes:
        runs: conversation -> the reply being generated in it.
        approvals: asks about tool calls.
        failures: conversation -> the card that shows why its last reply failed.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._app = desk.app
        self._screen = desk.screen
        self._outbox = desk.outbox
        self.runs: dict[str, ReplyRun] = {}
        self.failures: dict[str, ErrorCard] = {}
        self._notices: dict[int, list[str]] = {}
        self.approvals = Approvals(desk)

    @property
    def run(self) -> ReplyRun | None:
        """Return the reply being generated on the screen."""
        return self.runs.get(self._desk.active_id or "")

    async def submit(self, departure: Departure, text: str, attachments: tuple[Attachment, ...]) -> None:
        """Send a message now, or as soon as the model is free.

        Raises:
            StorageError: it cannot be saved; nothing was sent.
            UsageError: another message is already waiting.
        """
        conversation_id = await self._desk.destination(departure)
        if conversation_id in self._outbox.waiting:
            raise UsageError("A message is already waiting to be sent.", "Wait, or press Esc to take it back.")
        message = Outgoing(text, attachments, departure.message.edited)
        is_active = conversation_id == self._desk.active_id
        if is_active:
            self._desk.editing = None
            self._screen.page_changed()
        if self._app.host.assistant is None or conversation_id in self.runs:
            self._outbox.waiting[conversation_id] = message
            self._outbox.save_draft(conversation_id, message.as_draft())
            if is_active:
                await self._screen.transcript.add(WaitingCard(text or "(attachment)", self._why_waiting()))
            if self._app.host.state.phase in ("failed", "idle") and self._app.host.assistant is None:
                self._app.load_model(self._app.host.state.wanted or self._app.settings.model)
            return
        await self._send(conversation_id, message)

    async def answer_again(self, node_id: int | None = None, *, escalate: bool | None = None) -> None:
        """Generate another answer to a question or in place of an answer; None is the last one.

        Args:
            node_id: of the message.
            escalate: True has the next tier answer.

        Raises:
            UsageError: there is nothing to answer, no model is loaded, or a reply is being generated.
        """
        conversation_id = self.idle_conversation()
        self._assistant()
        nodes = self._desk.page.nodes if self._desk.page is not None else ()
        target = node_id if node_id is not None else (nodes[-1].id if nodes else None)
        answer = next((node for node in nodes if node.id == target), None)
        if answer is None or not any(node.role == "user" for node in nodes):
            raise UsageError("There is no message to answer yet.", "Send one first.")
        if answer.role != "assistant":
            answer = next((node for node in nodes if node.parent == target), None)
        place = next(n for n, node in enumerate(nodes) if node.id == target)
        question = max((n for n in range(place + 1) if nodes[n].role == "user"), default=place)
        async with self._desk.moving:
            if answer is not None:  # with the tool calls before it
                await self._screen.transcript.truncate(nodes[question + 1].id)
            await self._begin(
                conversation_id,
                lambda sampling: self.conversation(conversation_id, sampling).regenerate(
                    target, escalate=escalate, consent=self._consent(conversation_id)
                ),
                before=answer.content if answer is not None else None,
            )

    async def resume(self, node_id: int | None = None) -> None:
        """Continue the last answer, or the one that is given, in the same message.

        Raises:
            UsageError: it is not an answer, other messages follow it, no model is loaded, or a reply is being generated.
        """
        conversation_id = self.idle_conversation()
        self._assistant()
        nodes = self._desk.page.nodes if self._desk.page is not None else ()
        answer = nodes[-1] if nodes else None
        if answer is not None and node_id not in (None, answer.id):
            raise UsageError("Other messages follow this one, so it stays as it is.", "/fork copies the conversation up to it.")
        if answer is None or answer.role != "assistant":
            raise UsageError("There is no answer to continue.", "/regenerate answers the last message.")
        async with self._desk.moving:
            await self._begin(
                conversation_id,
                lambda sampling: self.conversation(conversation_id, sampling).resume(answer.id),
                continued=answer,
            )

    async def stop(self) -> bool:
        """Stop the reply, or take back the waiting message. Return whether there was either."""
        waiting = self._outbox.waiting.pop(self._desk.active_id or "", None)
        if waiting is not None:
            await self._screen.transcript.clear_waiting()
            self._put_back(waiting)
            return True
        if self.run is not None:
            self.run.stop()
            self.approvals.refuse_all(self.run.conversation_id)
            return True
        return False

    def model_ready(self) -> None:
        """Send the waiting messages, now that a model is loaded."""
        for conversation_id in list(self._outbox.waiting):
            if conversation_id not in self.runs:
                message = self._outbox.waiting.pop(conversation_id)
                self._outbox.unsaved[conversation_id] = message
                self._desk.start(self._send, conversation_id, message)

    def model_failed(self) -> None:
        """Put the waiting messages back, since no model could be loaded."""
        for conversation_id, message in list(self._outbox.waiting.items()):
            del self._outbox.waiting[conversation_id]
            if conversation_id == self._desk.active_id:
                self._desk.start(self._screen.transcript.clear_waiting)
                self._put_back(message)

    async def _send(self, conversation_id: str, message: Outgoing) -> None:
        if self._app.host.assistant is None:
            self._outbox.unsaved.pop(conversation_id, None)
            self._outbox.waiting[conversation_id] = message
            return

        def start(sampling: Sampling) -> Reply:
            conversation, consent = self.conversation(conversation_id, sampling), self._consent(conversation_id)
            text, docs = take_docs(message.text)
            if message.edited is not None:
                return conversation.edit(message.edited, text, attachments=message.attachments, docs=docs, consent=consent)
            return conversation.send(text, attachments=message.attachments, docs=docs, consent=consent)

        async with self._desk.moving:
            if conversation_id == self._desk.active_id:
                transcript = self._screen.transcript
                await transcript.clear_waiting()
                if message.edited is not None:
                    await transcript.truncate(message.edited)
                await transcript.add(MessageView("user", message.text, "You", message.attachments))
            await self._begin(conversation_id, start, message)

    async def _begin(
        self,
        conversation_id: str,
        start: Callable[[Sampling], Reply],
        message: Outgoing | None = None,
        before: str | None = None,
        continued: Node | None = None,
    ) -> None:
        await self.drop_failure(conversation_id)
        if message is not None:
            self._outbox.unsaved[conversation_id] = message
        sampling = self._desk.sampling
        run = ReplyRun(
            conversation_id,
            lambda: start(sampling),
            self._accepted,
            lambda run: self._desk.start(self._finish, run, message, wording.reply_notices(run, sampling, before)),
            continued,
        )
        self.runs[conversation_id] = run
        self._screen.speak(run)
        if conversation_id == self._desk.active_id:
            await self._screen.transcript.show_note("")
            await self._show_run(run)
        self._screen.activity_changed()

    async def _show_run(self, run: ReplyRun) -> None:
        """Put the reply on the screen and keep it up to date there."""
        transcript = self._screen.transcript
        saved = run.continued or (run.reply.node if run.reply is not None else None)
        view = transcript.view_of(saved.id) if saved is not None else None
        if view is None:
            assistant = self._app.host.assistant
            view = MessageView("assistant", run.shown, assistant.model_name if assistant is not None else "Assistant")
            await transcript.add(view)
        if run.continued is not None:
            self._notices.pop(run.continued.id, None)  # that it was cut off
            view.notices = ()
        transcript.anchor()
        self._desk.start(self._update_view, run, view)

    async def _update_view(self, run: ReplyRun, view: MessageView) -> None:
        pause = _FOLLOW_PLAIN_S if self._app.is_plain else _FOLLOW_S
        shown, next_figures = (0, 0), 0.0
        while not run.is_over and view.is_attached:
            began = time.perf_counter()
            view.state = wording.reply_state(run, self._app.keymap)
            figures = (run.progress[0], run.n_generated)
            if figures != shown and began >= next_figures:
                shown, next_figures = figures, began + _FIGURES_S
                self._screen.status.show_progress(*figures, run.first_token_s, run.decode_s)
            if run.notices:
                view.notices = tuple(run.notices)
            view.show_details(run.reasoning, tuple(run.calls))
            view.show_passages(run.citations, run.shown)
            await view.extend(run.shown)
            self._screen.show_below()
            # A long reply takes longer to lay out, but most of the time must stay free for keys.
            await asyncio.wait([run.task], timeout=max(pause, 2 * (time.perf_counter() - began)))

    def _accepted(self, run: ReplyRun) -> None:
        """Clear the draft, since the message is saved; text typed since stays."""
        self._desk.start(self._show_title, run.conversation_id)
        reference = self._app.host.reference
        self._outbox.post(lambda store: store.set_model(run.conversation_id, reference))
        message = self._outbox.unsaved.pop(run.conversation_id, None)
        if message is None:
            return
        if run.conversation_id == self._desk.active_id:
            if message.edited is not None and not self._screen.composer.text:
                self._desk.take_up()
            self._desk.save_draft()
        else:
            self._outbox.save_draft(run.conversation_id, "")

    async def _show_title(self, conversation_id: str) -> None:
        """Show the title, which the first message sets."""
        info = await self._app.library.run(lambda store: store.get(conversation_id))
        if self._desk.page is not None and self._desk.page.info.id == conversation_id:
            self._desk.page = replace(self._desk.page, info=info)
            self._screen.title_changed()
        self._screen.refresh_sidebar()

    async def _finish(self, run: ReplyRun, message: Outgoing | None, notices: list[str]) -> None:
        try:
            await self._ended(run, message, notices)
        finally:
            run.has_ended.set()

    async def _ended(self, run: ReplyRun, message: Outgoing | None, notices: list[str]) -> None:
        conversation_id = run.conversation_id
        self.runs.pop(conversation_id, None)
        self._outbox.unsaved.pop(conversation_id, None)
        notices = [*run.notices, *notices]
        if run.continued is not None and run.phase == "done" and not run.text:
            notices.append("The model has nothing to add.")
        if run.reply is not None and run.reply.node is not None and notices:
            self._notices[run.reply.node.id] = notices
        if run.error is not None:
            # A message that is too long is saved beside the conversation, so that it does not block it.
            is_kept = run.was_accepted and not (
                isinstance(run.error, ContextFullError) and message is not None and not run.text
            )
            if not is_kept and message is not None:
                await self._give_back(conversation_id, message)
            once_more = ("r", "continue" if run.continued is not None else "regenerate", "Try again")
            again = ((once_more,) if is_kept or run.continued is not None else ()) + (("m", "model", "Other model"),)
            title = "The reply broke off" if run.text else "There is no reply"
            self.failures[conversation_id] = ErrorCard(title, run.error, again)
        if conversation_id == self._desk.active_id:
            await self._show_end(run)
        self._screen.activity_changed()
        if run.phase in ("done", "failed") and run.elapsed_s >= LONG_REPLY_S and not self._app.app_focus:
            await self._give_notice(conversation_id)
        waiting = self._outbox.waiting.pop(conversation_id, None)
        if waiting is not None:
            await self._send(conversation_id, waiting)

    async def _give_notice(self, conversation_id: str) -> None:
        """Tell the user, who is in another window, that a long reply is complete."""
        try:
            info = await self._app.library.run(lambda store: store.get(conversation_id))
        except EdgeError:
            return  # it was deleted meanwhile
        self._app.signals.tell_done(info.title)

    async def _show_end(self, run: ReplyRun) -> None:
        """Show the reply as saved; remove a reply of which nothing was saved."""
        continued = run.continued
        is_new = continued is None
        transcript = self._screen.transcript
        view = self._unsaved_view("assistant") if continued is None else transcript.view_of(continued.id)
        if view is not None:
            if run.text or not is_new:
                await view.finish(run.shown)
            else:
                await view.remove()
        try:
            await self.reload()
        except EdgeError as error:
            self._screen.complain(error)
        failure = self.failures.get(run.conversation_id)
        if failure is not None:
            await self._screen.transcript.add(failure)
        elif not run.text and is_new:
            await self.show_unanswered("stopped")

    async def _give_back(self, conversation_id: str, message: Outgoing) -> None:
        """Return a message that was not accepted to the composer, or to the draft of its conversation."""
        if conversation_id == self._desk.active_id:
            view = self._unsaved_view("user")
            if view is not None:
                await view.remove()
            self._put_back(message)
        else:
            self._outbox.save_draft(conversation_id, message.as_draft())

    def _unsaved_view(self, role: str) -> MessageView | None:
        views = reversed(self._screen.transcript.views)
        return next((view for view in views if view.role == role and view.node_id is None), None)

    def _put_back(self, message: Outgoing) -> None:
        self._screen.composer.put_back(message.text, message.attachments)
        self._desk.editing = message.edited
        self._screen.page_changed()

    async def reload(self) -> None:
        """Read the conversation on the screen again and show its changes."""
        if self._desk.page is not None:
            await self.follow(await self._app.library.page(self._desk.page.info.id))

    async def follow(self, page: Page, why_unanswered: Unanswered = "left") -> None:
        """Show another state of the conversation on the screen."""
        self._desk.page = page
        await self._screen.transcript.follow(page)
        self._show_notices()
        await self.show_unanswered(why_unanswered)
        self._screen.page_changed()

    async def show_rest(self, conversation_id: str) -> None:
        """Show what a conversation has besides saved messages: a running reply, a failure, a waiting message."""
        self._show_notices()
        if conversation_id in self.runs:
            await self._show_run(self.runs[conversation_id])
            await self.approvals.show(conversation_id)
        failure = self.failures.get(conversation_id)
        if failure is not None:
            self.failures[conversation_id] = fresh = failure.copy()
            await self._screen.transcript.add(fresh)
        if conversation_id in self._outbox.waiting:
            self._screen.composer.load("")
            self._desk.editing = None
            waiting = self._outbox.waiting[conversation_id]
            await self._screen.transcript.add(WaitingCard(waiting.text, self._why_waiting()))
        await self.show_unanswered("left")

    async def show_unanswered(self, why: Unanswered) -> None:
        """Note below the last message that it has no answer and how to get one; remove the note if it has."""
        page = self._desk.page
        is_last = page is not None and bool(page.nodes) and page.nodes[-1].role == "user"
        is_coming = page is not None and (
            page.info.id in self.runs or page.info.id in self.failures or self._outbox.pending(page.info.id) is not None
        )
        note = wording.unanswered(self._app.keymap, why) if is_last and not is_coming else ""
        await self._screen.transcript.show_note(note)

    def _show_notices(self) -> None:
        for view in self._screen.transcript.views:
            if view.node_id in self._notices:
                view.notices = tuple(self._notices[view.node_id])

    async def drop_failure(self, conversation_id: str) -> None:
        """Forget why the last reply of a conversation failed, and remove its card."""
        if self.failures.pop(conversation_id, None) is not None and conversation_id == self._desk.active_id:
            await self._screen.transcript.clear_failure()

    def idle_conversation(self) -> str:
        """Return the id of the conversation on the screen.

        Raises:
            UsageError: it is empty, or a reply is being generated in it.
        """
        if self._desk.page is None:
            raise UsageError("This conversation is empty.", "Send a message first.")
        if self._desk.page.info.id in self.runs:
            hint = f"Wait for it, or stop it with {self._app.keymap.display('stop')}."
            raise UsageError("A reply is being generated.", hint)
        return self._desk.page.info.id

    def conversation(self, conversation_id: str, sampling: Sampling | None = None) -> Conversation:
        """Return a conversation with the loaded model and the tools that are on. Called by the thread of a reply."""
        assistant, desk = self._assistant(), self._desk
        tools = [tool for tool in self._app.tools if tool.name not in desk.tools_off] if assistant.can_call_tools else []
        return assistant.conversation(
            conversation_id,
            sampling=sampling,
            tools=tools,
            think=desk.think,
            lora=desk.lora_of(assistant, conversation_id),
            approve=partial(self.approvals.ask, conversation_id),
        )

    def _consent(self, conversation_id: str) -> Consent | None:
        """Return what asks the user before text leaves this device; None if the settings have agreed."""
        escalation = self._assistant().escalation
        is_asked = escalation is not None and escalation.consent is None
        return partial(self.approvals.ask, conversation_id) if is_asked else None

    def _assistant(self) -> Assistant:
        """Return the loaded model. Call it when a reply begins, not before: the model may change until then."""
        assistant = self._app.host.assistant
        if assistant is None:
            raise UsageError("The model is not loaded yet.", "Wait until it is, or choose one with /model.")
        return assistant

    def _why_waiting(self) -> str:
        takes_back = f"{self._app.keymap.display('stop')} takes it back"
        if self._app.host.assistant is None:
            return f"will be sent when the model is ready · {takes_back}"
        return f"will be sent after this reply · {takes_back}"
