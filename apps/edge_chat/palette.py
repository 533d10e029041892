"""The command palette: the same commands as behind the slash."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from edge_chat.commands import Command
from edge_chat.keys import display_keys

if TYPE_CHECKING:
    from edge_chat.app import ChatApp

__all__ = ["CommandProvider"]


class CommandProvider(Provider):
    """Commands by their titles; what needs an argument goes into the composer to be completed there."""

    @property
    def _chat(self) -> ChatApp:
        return cast("ChatApp", self.app)

    async def discover(self) -> Hits:
        """All commands."""
        for command in self._chat.registry.slash_commands():
            yield DiscoveryHit(command.title, lambda command=command: self._choose(command), help=self._help(command))

    async def search(self, query: str) -> Hits:
        """Commands whose title, name or explanation match."""
        matcher = self.matcher(query)
        for command in self._chat.registry.slash_commands():
            text = f"{command.title} /{command.name}"
            score = max(matcher.match(text), matcher.match(command.help) * 0.5)
            if score > 0:
                yield Hit(
                    score,
                    matcher.highlight(text),
                    lambda command=command: self._choose(command),
                    help=self._help(command),
                )

    def _choose(self, command: Command) -> None:
        chat = self._chat.chat_screen
        if command.needs_argument:
            chat.composer.load(f"/{command.name} ")
            chat.composer.input.focus()
        else:
            chat.start_command(command, "")

    def _help(self, command: Command) -> str:
        keys = display_keys(self._chat.keys_of(command.name))
        return f"{command.help} ({keys})" if keys else command.help
