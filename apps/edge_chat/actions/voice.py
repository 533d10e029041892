"""Commands of voice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge_chat.commands import Completion

if TYPE_CHECKING:
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMPLETERS", "RUNNERS"]

_WAYS = {
    "on": "speak replies, and listen when the key is pressed",
    "hands-free": "listen all the time",
    "off": "text only",
}


async def talk(screen: ChatScreen, argument: str) -> None:
    await screen.voice.talk()


async def voice(screen: ChatScreen, argument: str) -> None:
    asked = argument.strip().lower()
    way = asked or ("off" if screen.voice.is_on else "on")
    if way not in _WAYS:
        raise UsageError(f"/voice {argument} is not a way to talk.", f"Choose one of: {', '.join(_WAYS)}.")
    await screen.voice.switch(way != "off", {"hands-free": True, "on": False}.get(asked))


def complete_voice(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    return [Completion(way, way, detail) for way, detail in _WAYS.items() if way.startswith(typed)]


RUNNERS = {"talk": talk, "voice": voice}
COMPLETERS = {"voice": complete_voice}
