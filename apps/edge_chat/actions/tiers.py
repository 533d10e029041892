"""The command on the next tier: a larger model or a server that takes what the model should not answer alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge_chat.commands import Completion

if TYPE_CHECKING:
    from edge.assistant import Assistant
    from edge.tiers import Escalation
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMPLETERS", "RUNNERS"]

_WORDS = ("now", "on", "off", "preview", "to")


async def escalate(screen: ChatScreen, argument: str) -> None:
    word, _, rest = argument.partition(" ")
    if word and (word not in _WORDS or bool(rest.strip()) != (word == "to")):
        raise UsageError(
            f"/escalate does not know {argument!r}.", "Use /escalate, or one of: now, on, off, preview, to MODEL, to openai:URL"
        )
    if word == "to":
        await _set_tier(screen, rest.strip())
        return
    escalation = _escalation(screen)
    if word == "now":
        await screen.controller.sending.answer_again(escalate=True)
    elif word == "preview":
        await _preview(screen)
    else:
        if word:
            escalation.is_on = word == "on"
        screen.tell(escalation.describe())


async def _set_tier(screen: ChatScreen, to: str) -> None:
    """Name another next tier, for this session."""
    from edge.loading import set_next_tier

    assistant = _assistant(screen)
    await asyncio.to_thread(set_next_tier, assistant, to, settings=screen.app.settings)
    screen.tell(_escalation(screen).describe())


async def _preview(screen: ChatScreen) -> None:
    """Show what would be sent for the last question, and send nothing."""
    sending = screen.controller.sending
    conversation = sending.conversation(sending.idle_conversation(), screen.controller.sampling)
    outgoing = await asyncio.to_thread(conversation.outgoing, "")
    if outgoing is None:
        screen.tell(f"Nothing would leave this device: {_escalation(screen).tier.name} is on it.")
        return
    text = f"Nothing was sent. This would go {outgoing.summary()}.\n\n```\n{outgoing.text()}\n```"
    await screen.read_page("What would be sent", text)


def _assistant(screen: ChatScreen) -> Assistant:
    assistant = screen.app.host.assistant
    if assistant is None:
        raise UsageError("The model is not loaded yet.", "Wait until it is, or choose one with /model.")
    return assistant


def _escalation(screen: ChatScreen) -> Escalation:
    escalation = _assistant(screen).escalation
    if escalation is None:
        raise UsageError(
            "There is no larger model to send questions on to.", "Name one: /escalate to MODEL, or /escalate to openai:URL"
        )
    return escalation


def complete_escalate(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose the words, and models behind "to"."""
    if typed.startswith("to "):
        start = typed.removeprefix("to ")
        names = [choice.value for choice in screen.app.known_models]
        return [Completion(f"to {name}", name) for name in (*names, "openai:http://") if name.startswith(start)]
    return [Completion(f"{word} " if word == "to" else word, word) for word in _WORDS if word.startswith(typed)]


RUNNERS = {"escalate": escalate}
COMPLETERS = {"escalate": complete_escalate}
