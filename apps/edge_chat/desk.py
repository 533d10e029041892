"""State of the chat that the controller and `sending` share: the conversation on the screen and what is being typed in it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from edge.errors import EdgeError
from edge.prompt.repetition import USUAL_MAX_REPEATS
from edge.types import Sampling
from edge_chat.library import Page
from edge_chat.outbox import Departure, Outbox, Outgoing

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.conversation import Attachment
    from edge_chat.base import BaseApp
    from edge_chat.screens.view import ChatView

__all__ = ["Desk"]


class Desk:
    """See the module.

    Args:
        app: settings, library and model.
        screen: the chat screen.

    Attributes:
        page: the conversation on the screen as saved; None for a new one that is not saved yet.
        editing: the message that the composer replaces; None for a new message.
        put_aside: text and attachments that were being written before an edit began.
        visit: counts the conversations shown, to tell one unsaved conversation from the next.
        outbox: typed messages that are not saved yet.
        think: whether models should think before they answer; None leaves it to them.
        tools_off: names of tools that are turned off in this session.
        lora: scales of adapters by conversation, where they are not those that the model was loaded with.
        moving: held while unsaved messages are put on the screen, and while saved ones are matched with it.
    """

    def __init__(self, app: BaseApp, screen: ChatView) -> None:
        self.app = app
        self.screen = screen
        self.page: Page | None = None
        self.editing: int | None = None
        self.put_aside: tuple[str, Sequence[Attachment]] = ("", ())
        self.visit = 0
        self.outbox = Outbox(app.library, lambda error: app.call_later(screen.complain, error))
        self.moving = asyncio.Lock()
        self.think: bool | None = None
        self.tools_off: set[str] = set()
        self.lora: dict[str, dict[str, float]] = {}
        self._changed_sampling: dict[str, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._creating = asyncio.Lock()

    @property
    def sampling(self) -> Sampling:
        """Return the sampling of this session. Changed parameters survive a change of the model."""
        return replace(self.default_sampling, **self._changed_sampling)

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        default = self.default_sampling
        values = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
        self._changed_sampling = {name: value for name, value in values.items() if value != getattr(default, name)}

    @property
    def default_sampling(self) -> Sampling:
        """Return the sampling without the changes of this session. Loops are stopped unless a setting says otherwise."""
        assistant = self.app.host.assistant
        sampling = assistant.sampling if assistant is not None else self.app.settings.sampling
        return sampling.over(Sampling(max_repeats=USUAL_MAX_REPEATS))

    def lora_of(self, assistant: Assistant, conversation_id: str | None = None) -> dict[str, float]:
        """Return the adapters of a conversation, None for the one on the screen; after a change of the model, that model's."""
        chosen = self.lora.get(conversation_id or self.active_id or "")
        known = {adapter.name for adapter in assistant.adapters}
        return chosen if chosen is not None and known.issuperset(chosen) else assistant.lora

    @property
    def active_id(self) -> str | None:
        """Return the id of the conversation on the screen."""
        return self.page.info.id if self.page is not None else None

    @property
    def is_busy(self) -> bool:
        """Return whether work that nobody waits for is running."""
        return bool(self._tasks)

    async def ensure_saved(self) -> str:
        """Return the id of the conversation on the screen; save it first if it is new.

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
            if visit == self.visit:  # otherwise another conversation was opened meanwhile
                self.page = Page(info, (), {})
                self.screen.page_changed()
            return info.id

    async def destination(self, departure: Departure) -> str:
        """Return the id of the conversation that a message was written in; save it first if it is new."""
        if departure.conversation_id is None and departure.visit == self.visit:
            await self.ensure_saved()
        async with self._creating:
            if departure.conversation_id is None:
                system = self.app.settings.system
                info = await self.app.library.run(lambda store: store.create(system=system))
                departure.conversation_id = info.id
            return departure.conversation_id

    async def keep_draft(self) -> None:
        """Save the text being typed, with its conversation if that is new. A command alone is none.

        Raises:
            StorageError: it cannot be saved.
        """
        composer = self.screen.composer
        if self.page is None:
            is_command = composer.text.startswith("/") and not composer.attachments
            if is_command or not (composer.text.strip() or composer.attachments):
                return
            await self.ensure_saved()
        self.save_draft()

    def save_draft(self) -> None:
        """Save the text being typed or waiting to be sent, so that it is not lost before it is saved as a message."""
        if self.page is None:
            return
        conversation_id = self.page.info.id
        composer = self.screen.composer
        message = self.outbox.pending(conversation_id) or Outgoing(composer.text, composer.attachments, self.editing)
        self.outbox.save_draft(conversation_id, message.as_draft())

    def take_up(self) -> None:
        """Put the text that was being written before an edit began back into the composer."""
        text, attachments = self.put_aside
        self.put_aside = ("", ())
        self.screen.composer.load(text, attachments)

    def start(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Start a coroutine function; show its errors, log and show its bugs."""

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
