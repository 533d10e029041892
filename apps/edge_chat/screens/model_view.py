"""What the chat shows of its model: how far it is loaded, what it is, why it could not be loaded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from edge_chat import wording
from edge_chat.widgets.cards import EmptyState, LoadErrorCard

if TYPE_CHECKING:
    from edge.errors import EdgeError
    from edge_chat.screens.chat import ChatScreen

__all__ = ["ModelView"]


class ModelView:
    """Keeps the chat screen true to the model host.

    Args:
        screen: where it is shown.
    """

    def __init__(self, screen: ChatScreen) -> None:
        self._screen = screen
        self._card_lock = asyncio.Lock()
        self._greeted: object = None  # the model whose notices have been told
        self._error: EdgeError | None = None

    def update(self) -> None:
        """The model, or how far it is loaded, has changed."""
        screen = self._screen
        host = screen.app.host
        state, assistant = host.state, host.assistant
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
        for empty in screen.query(EmptyState):
            empty.show_model(wording.model_text(host))
        if state.phase == "ready":
            if assistant is not None and assistant is not self._greeted:
                self._greeted = assistant
                for notice in assistant.notices:
                    screen.tell(notice)
            screen.run_guarded(self._show, None)
            screen.controller.sending.model_ready()
        elif state.phase == "failed" and state.error is not None:
            screen.run_guarded(self._show, state.error)
            screen.controller.sending.model_failed(state.error)

    def show_limits(self) -> None:
        """Show what is held back now, and the window that is left. Looked at again and again: nobody tells of it."""
        assistant, status = self._screen.app.host.assistant, self._screen.status
        if assistant is not None and (assistant.held_back, assistant.n_ctx) != (status.values.held_back, status.values.total):
            status.change(held_back=assistant.held_back, total=assistant.n_ctx)

    async def _show(self, error: EdgeError | None) -> None:
        self._error = error
        await self.show_error()

    async def show_error(self) -> None:
        """Show why the model could not be loaded below whatever conversation is on the screen; nothing if it could."""
        error, transcript = self._error, self._screen.transcript
        async with self._card_lock:
            await transcript.query_children(LoadErrorCard).remove()
            if error is not None:
                actions = (("r", "reload-model", "Try again"), ("m", "model", "Other model"))
                wanted = wording.short_name(self._screen.app.host.state.wanted)
                await transcript.mount(LoadErrorCard(f"{wanted} could not be loaded", error, actions))
                transcript.scroll_end(animate=False)
