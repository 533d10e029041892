"""What the app can do, as one table: slash commands, command palette, help screen and key bindings are all read off it.

A command is something with a name ("/regenerate"). A key action is something that only has a key ("newline"). Both are
`Command`s; what a key action lacks is a place behind the slash. The table itself is put together in `actions`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edge.errors import UsageError

if TYPE_CHECKING:
    from edge_chat.screens.chat import ChatScreen

__all__ = ["GROUPS", "Command", "Completion", "Registry", "Scope", "SlashLine", "parse_slash"]

Scope = Literal["everywhere", "chat", "composer", "message", "sidebar"]
"""Where a key works: in dialogs too, in the whole chat, while writing, on a chosen message, in the list of conversations."""

GROUPS = ("Writing", "Conversation", "Messages", "Model", "View", "App")
"""Headings of the help screen, in order."""

_FIRST = ("new", "model", "set", "system", "edit", "regenerate", "copy", "help", "search", "save", "stats", "theme")
"""What is proposed first when nothing but the slash is typed."""

_SLASH = re.compile(r"/([A-Za-z][A-Za-z-]*)(?:[ \t]+(.*))?\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Completion:
    """One line of the popup.

    Attributes:
        value: what is put into the text.
        label: what is shown.
        detail: shown beside it, quieter.
    """

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """One thing the app can do.

    Attributes:
        name: behind the slash, in `chat.keys` and in tests; lower case.
        title: in the palette, as a person would call it.
        help: one sentence.
        group: heading in the help screen, one of GROUPS.
        run: does it, given the screen and the text behind the name; None for key actions, which a widget carries out.
        argument: how the argument is written in the help, e.g. "[name]"; "" when there is none.
        needs_argument: without one the palette only puts the command into the composer.
        complete: proposes arguments, given the screen and what is typed of them so far.
        aliases: other names behind the slash.
        keys: default keys, comma-separated; "" for none.
        scope: where the keys work.
        example: a line to learn from.
        keys_of: commands whose keys do the same; the help shows them with its own.
        is_slash: can be typed behind a slash and is in the palette, given that it has `run`.
    """

    name: str
    title: str
    help: str
    group: str
    run: Callable[[ChatScreen, str], Coroutine[Any, Any, None]] | None = None
    argument: str = ""
    needs_argument: bool = False
    complete: Callable[[ChatScreen, str], Sequence[Completion]] | None = None
    aliases: tuple[str, ...] = ()
    keys: str = ""
    scope: Scope = "chat"
    example: str = ""
    is_slash: bool = True
    keys_of: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """How it is typed: "/save [md|json] [path]"."""
        return f"/{self.name} {self.argument}".rstrip()


@dataclass(frozen=True, slots=True)
class SlashLine:
    """A slash command as it was typed."""

    name: str
    argument: str


def parse_slash(text: str) -> SlashLine | None:
    """Read a slash command; None when the text is a message.

    A message may begin with a slash: "/usr/bin/env" has a second slash in its first word and is no command, and a doubled
    slash ("//new") stands for a message that begins with one.
    """
    match = _SLASH.match(text.strip())
    return SlashLine(match[1].lower(), (match[2] or "").strip()) if match else None


class Registry:
    """All commands, in the order of the help screen.

    Args:
        commands: names, aliases and keys within one scope must not clash.
    """

    def __init__(self, commands: Iterable[Command]) -> None:
        self._by_name: dict[str, Command] = {}
        self._aliases: dict[str, Command] = {}
        for command in commands:
            if command.group not in GROUPS:
                raise ValueError(f"{command.name}: no group {command.group!r}")
            for name in (command.name, *command.aliases):
                if name in self._by_name or name in self._aliases:
                    raise ValueError(f"Two commands are called {name!r}")
            self._by_name[command.name] = command
            self._aliases.update(dict.fromkeys(command.aliases, command))

    def __iter__(self) -> Iterator[Command]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Command:
        return self._by_name[name]

    def slash_commands(self) -> list[Command]:
        """What can be typed behind a slash."""
        return [command for command in self if command.run is not None and command.is_slash]

    def find(self, name: str) -> Command:
        """The slash command of that name or alias.

        Raises:
            UsageError: there is none; the nearest is named.
        """
        command = self._by_name.get(name) or self._aliases.get(name)
        if command is None or command.run is None or not command.is_slash:
            raise UsageError(f"There is no command /{name}.", self._suggestion(name))
        return command

    def search(self, start: str) -> list[Command]:
        """Slash commands for what was typed of a name: those that begin with it, then those that contain it."""
        start = start.lower()
        commands = sorted(self.slash_commands(), key=lambda c: _FIRST.index(c.name) if c.name in _FIRST else len(_FIRST))
        first = [c for c in commands if c.name.startswith(start)]
        by_alias = [c for c in commands if c not in first and any(a.startswith(start) for a in c.aliases)]
        inside = [c for c in commands if c not in first and c not in by_alias and start and start in c.name]
        return first + by_alias + inside

    def _suggestion(self, name: str) -> str:
        names = [c.name for c in self.slash_commands()] + list(self._aliases)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        rest = "Type /help for all of them, or begin with // to send this as a message."
        return f"Did you mean /{near[0]}? {rest}" if near else rest
