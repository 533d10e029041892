"""The command palette: the slash commands by their titles."""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from edge_chat.commands import Command
from edge_chat.keys import display_keys
from edge_chat.table import REGISTRY

if TYPE_CHECKING:
    from edge_chat.base import BaseApp

__all__ = ["CommandProvider"]


class CommandProvider(Provider):
    """Offers the slash commands; one that needs an argument goes into the composer to be completed there."""

    async def discover(self) -> Hits:
        for command in REGISTRY.slash_commands():
            yield DiscoveryHit(command.title, partial(self._run, command), help=self._help(command))

    async def search(self, query: str) -> Hits:
        """Yield the commands whose title, name or help matches."""
        matcher = self.matcher(query)
        for command in REGISTRY.slash_commands():
            text = f"{command.title} /{command.name}"
            score = max(matcher.match(text), matcher.match(command.help) * 0.5)
            if score > 0:
                yield Hit(score, matcher.highlight(text), partial(self._run, command), help=self._help(command))

    def _run(self, command: Command) -> Coroutine[Any, Any, bool]:
        return self.app.run_action(f"screen.command({command.name!r})")

    def _help(self, command: Command) -> str:
        keys = display_keys(cast("BaseApp", self.app).keymap.keys(command.name))
        return f"{command.help} ({keys})" if keys else command.help
