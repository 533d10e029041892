"""The state of the model on the chat screen: loading, ready, failed, throttled."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from edge_chat import wording
from edge_chat.widgets.cards import LoadErrorCard
from edge_chat.widgets.empty import EmptyState

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.errors import EdgeError
    from edge_chat.base import BaseApp
    from edge_chat.screens.view import ChatView

__all__ = ["ModelView"]


class ModelView:
    """Shows the state of the model host on the chat screen."""

    def __init__(self, app: BaseApp, screen: ChatView) -> None:
        self._host = app.host
        self._screen = screen
        self._card_lock = asyncio.Lock()
        self._greeted: Assistant | None = None  # its notices have been shown
        self._disk_problem: str | None = None  # has been shown
        self._error: EdgeError | None = None

    def update(self) -> None:
        """Show a changed state of the host."""
        screen, state, assistant = self._screen, self._host.state, self._host.assistant
        changes: dict[str, Any] = {"activity": wording.activity(state)}
        if assistant is not None:
            plan = assistant.plan
            changes |= {
                "backend": assistant.backend_name,
                "accelerator": plan.accelerator if plan is not None else "",
                "model": assistant.model_name,
            }
        screen.status.change(**changes)
        self.show_limits()
        for empty in screen.transcript.query(EmptyState):
            empty.show_model(wording.model_text(self._host))
        if state.phase == "ready":
            if assistant is not None and assistant is not self._greeted:
                self._greeted = assistant
                for notice in assistant.notices:
                    screen.tell(notice)
            screen.run_guarded(self._show, None)
        elif state.phase == "failed" and state.error is not None:
            screen.run_guarded(self._show, state.error)

    def show_limits(self) -> None:
        """Show the current throttling, context window and disk cache. Polled, since nothing reports a change of them."""
        assistant, status = self._host.assistant, self._screen.status
        if assistant is None:
            return
        now = {"throttled": assistant.held_back, "total": assistant.n_ctx, "has_disk": assistant.disk_problem is None}
        if now != {name: getattr(status.values, name) for name in now}:
            status.change(**now)
        if assistant.disk_problem != self._disk_problem:
            self._disk_problem = assistant.disk_problem
            if self._disk_problem is not None:
                self._screen.tell(wording.disk_problem(self._disk_problem))

    async def _show(self, error: EdgeError | None) -> None:
        self._error = error
        await self.show_error()

    async def dismiss_error(self) -> None:
        """Remove the error of a model that could not be loaded."""
        await self._show(None)

    async def show_error(self) -> None:
        """Show why the model could not be loaded, below the conversation on the screen; remove that if it could."""
        error, transcript = self._error, self._screen.transcript
        async with self._card_lock:
            await transcript.query_children(LoadErrorCard).remove()
            if error is not None:
                actions = (("r", "reload-model", "Try again"), ("m", "model", "Other model"))
                title = f"{wording.short_name(self._host.state.wanted)} could not be loaded"
                if self._host.assistant is not None:
                    title += f"; {self._host.assistant.model_name} is still in use"
                await transcript.mount(LoadErrorCard(title, error, actions, hint=wording.chat_hint(error.hint)))
                transcript.scroll_end(animate=False)
