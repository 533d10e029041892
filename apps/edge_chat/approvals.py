"""Asks the user whether a tool may be run, or a text may leave this device, in the conversation that it is about."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edge.types import ToolCall
from edge_chat.widgets.cards import ApprovalCard

if TYPE_CHECKING:
    from edge.tiers import Outgoing
    from edge_chat.desk import Desk

__all__ = ["Approvals"]


def _allows(about: ToolCall | Outgoing) -> str:
    """Return what "always" allows in this session."""
    return about.name if isinstance(about, ToolCall) else f"sending to {about.host}"


class Approvals:
    """The questions that wait for an answer, and the tools and servers that need none any more in this session.

    Args:
        desk: the conversation on the screen.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._allowed: set[str] = set()
        self._waiting: dict[ApprovalCard, tuple[str, asyncio.Future[str]]] = {}

    def ask(self, conversation_id: str, about: ToolCall | Outgoing) -> bool:
        """Return whether a call may be run, or a text may be sent. Called by the thread of a reply, which waits here."""
        if _allows(about) in self._allowed:
            return True
        ask: Callable[..., Any] = self._ask
        chosen: str = self._desk.app.call_from_thread(ask, conversation_id, about)
        return chosen != "no"

    async def _ask(self, conversation_id: str, about: ToolCall | Outgoing) -> str:
        card = ApprovalCard(about)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting[card] = (conversation_id, answer)
        try:
            if conversation_id == self._desk.active_id:
                await self._mount(card)
            chosen = await answer
        finally:
            current = next((known for known, (_, future) in self._waiting.items() if future is answer), card)
            del self._waiting[current]
            if current.is_attached:
                await current.remove()
                self._desk.screen.composer.input.focus()
        if chosen == "always":
            self._allowed.add(_allows(about))
        return chosen

    async def show(self, conversation_id: str) -> None:
        """Show the questions of a conversation that comes onto the screen."""
        for card, (owner, answer) in list(self._waiting.items()):
            if owner == conversation_id and not card.is_attached:
                del self._waiting[card]
                fresh = card.copy()
                self._waiting[fresh] = (owner, answer)
                await self._mount(fresh)

    def answer(self, card: ApprovalCard, chosen: str) -> None:
        """Answer the question of a card: "yes", "always" or "no"."""
        found = self._waiting.get(card)
        if found is not None and not found[1].done():
            found[1].set_result(chosen)

    def refuse_all(self, conversation_id: str) -> None:
        """Answer all questions of a conversation with no, since its reply is stopped."""
        for owner, answer in self._waiting.values():
            if owner == conversation_id and not answer.done():
                answer.set_result("no")

    async def _mount(self, card: ApprovalCard) -> None:
        await self._desk.screen.transcript.add(card)
        if not self._desk.screen.composer.text:
            card.focus()
