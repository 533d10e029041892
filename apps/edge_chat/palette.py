"""The lines of the command palette: a command each, what was used last on top."""

from __future__ import annotations

from collections.abc import Iterable

from edge_chat.commands import Completion, Registry, parse_slash
from edge_chat.keys import Keymap, display_key

__all__ = ["last_used", "palette_choices"]

_MAX_RECENT = 5


def palette_choices(registry: Registry, keymap: Keymap, recent: Iterable[str] = ()) -> list[Completion]:
    """Return the commands with their slash names and keys.

    Args:
        registry: the command table.
        keymap: the keys in force.
        recent: names of the commands used last, the newest first; they come first.
    """
    commands = registry.slash_commands()
    first = [registry[name] for name in recent if name in {command.name for command in commands}][:_MAX_RECENT]

    def keys(names: Iterable[str]) -> str:
        found = (key for name in names for key in keymap.keys(name).split(",") if key)
        return next((display_key(key) for key in found), "")

    return [
        Completion(c.name, c.title, f"/{c.name}", aside=keys((c.name, *c.keys_of)), about=c.help)
        for c in (*first, *(command for command in commands if command not in first))
    ]


def last_used(registry: Registry, ran: Iterable[str], typed: Iterable[str]) -> list[str]:
    """Return the names of the commands used last, the newest first.

    Args:
        registry: the command table.
        ran: commands run in this session, the newest first.
        typed: inputs of this and earlier sessions, the newest first.
    """
    by_name = {name: command.name for command in registry.slash_commands() for name in (command.name, *command.aliases)}
    lines = (parse_slash(text) for text in typed)
    names = [*ran, *(by_name[line.name] for line in lines if line is not None and line.name in by_name)]
    return list(dict.fromkeys(names))
