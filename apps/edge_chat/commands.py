"""Commands: their descriptions, the registry that finds them, and slash lines.

Slash commands, the command palette, the help pages and the key bindings are all made from one table, in `table.py`. A command
has a name ("/regenerate"), a key or both; `actions` has the functions that run them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from edge.errors import UsageError

__all__ = ["GROUPS", "Command", "Completion", "Registry", "Scope", "SlashLine", "parse_slash"]

Scope = Literal["everywhere", "chat", "composer", "message", "sidebar"]
"""Scope of a key: in dialogs too, in the whole chat, in the message box, on a selected message, in the conversation list."""

GROUPS = ("Writing", "Conversation", "Messages", "Model", "View", "App")
"""Headings of the help page, in order."""

_FIRST = ("new", "model", "set", "system", "edit", "regenerate", "copy", "help", "search", "save", "stats", "theme")
"""Commands to propose first when only the slash is typed."""

_SLASH = re.compile(r"/([A-Za-z][A-Za-z-]*)(?:[ \t]+(.*))?\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Completion:
    """One line of the completion popup, or of a list to pick from.

    Attributes:
        value: the text to insert, or what the list returns.
        label: the line's name.
        detail: a dimmed explanation.
        columns: short values that a list puts below each other, the most important first.
        aside: what a list shows at the right edge.
        about: a sentence that a list shows for the highlighted line.
    """

    value: str
    label: str
    detail: str = ""
    columns: tuple[str, ...] = ()
    aside: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """One thing the app can do.

    Attributes:
        name: the slash name, also used in `chat.keys`; lower case.
        title: name in the palette.
        help: one sentence.
        argument: the argument as the help shows it, e.g. "[name]"; "" for none.
        needs_argument: the palette puts the command into the composer to be completed there.
        aliases: other slash names.
        keys: default keys, comma-separated; "" for none.
        scope: where the keys work.
        example: a sample command line.
        keys_of: commands whose keys do the same; the help lists them with its own.
        is_slash: it can be typed and is in the palette; otherwise it only has a key.
        group: heading in the help page, one of GROUPS.
    """

    name: str
    title: str
    help: str
    argument: str = ""
    needs_argument: bool = False
    aliases: tuple[str, ...] = ()
    keys: str = ""
    scope: Scope = "chat"
    example: str = ""
    is_slash: bool = True
    keys_of: tuple[str, ...] = ()
    group: str = ""

    @property
    def usage(self) -> str:
        """Return name and argument: "/save [md|json] [path]"."""
        return f"/{self.name} {self.argument}".rstrip()


@dataclass(frozen=True, slots=True)
class SlashLine:
    """A slash command as typed."""

    name: str
    argument: str


def parse_slash(text: str) -> SlashLine | None:
    """Parse a slash command; return None when the text is a message.

    "/usr/bin/env" is a message, because its first word has a second slash. "//new" is a message that begins with "/new".
    """
    match = _SLASH.match(text.strip())
    return SlashLine(match[1].lower(), (match[2] or "").strip()) if match else None


class Registry:
    """All commands, with unique names and aliases, in the order of the help page."""

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
        """Return the commands that can be typed."""
        return [command for command in self if command.is_slash]

    def find(self, name: str) -> Command:
        """Return the slash command with this name or alias.

        Raises:
            UsageError: there is none; the hint names the closest.
        """
        command = self._by_name.get(name) or self._aliases.get(name)
        if command is None or not command.is_slash:
            raise UsageError(f"There is no command /{name}.", self._suggestion(name))
        return command

    def search(self, start: str) -> list[Command]:
        """Return the slash commands that match a partly typed name: by its beginning first, then by any part of it."""
        start = start.lower()
        commands = sorted(self.slash_commands(), key=lambda c: _FIRST.index(c.name) if c.name in _FIRST else len(_FIRST))
        first = [c for c in commands if c.name.startswith(start)]
        by_alias = [c for c in commands if c not in first and any(a.startswith(start) for a in c.aliases)]
        inside = [c for c in commands if c not in first and c not in by_alias and start and start in c.name]
        return first + by_alias + inside

    def _suggestion(self, name: str) -> str:
        names = [c.name for c in self.slash_commands()] + list(self._aliases)
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        rest = "Type /help for all commands, or start with // to send this as a message."
        return f"Did you mean /{near[0]}? {rest}" if near else rest
