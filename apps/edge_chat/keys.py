"""Key bindings: the defaults of the command table, overridden by the user's `chat.keys`."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from textual import events
from textual.binding import Binding
from textual.keys import Keys

from edge.errors import ConfigError
from edge_chat.commands import Command, Registry, Scope

__all__ = [
    "Keymap",
    "bindings",
    "composer_actions",
    "display_key",
    "display_keys",
    "make_keymap",
    "register_enter_sequences",
    "take_all_characters",
]

_MODIFIERS = ("ctrl", "alt", "shift", "super", "hyper", "meta")
_NAMED = {key.value.rpartition("+")[2] for key in Keys} - {"<any>", "<bracketed-paste>", "<ignore>", "<sigint>"}
_SYMBOLS = {"up": "Up", "down": "Down", "left": "Left", "right": "Right", "escape": "Esc", "pageup": "PgUp"}
_SYMBOLS |= {
    "pagedown": "PgDn",
    "delete": "Del",
    "enter": "Enter",
    "space": "Space",
    "backspace": "Backspace",
    "home": "Home",
    "end": "End",
}

# Bound with priority, since the text area would take these keys for itself.
_PRIORITY_SCOPES = ("everywhere", "chat")
# Without priority: the focused widget handles these two first. Esc closes what is open there, Ctrl+C copies a selection.
_LAST_RESORT = ("stop", "interrupt")
_HEARD_WITH: dict[Scope, tuple[Scope, ...]] = {
    "everywhere": ("everywhere", "chat", "composer", "message", "sidebar"),
    "chat": ("everywhere", "chat", "composer", "message", "sidebar"),
    "composer": ("everywhere", "chat", "composer"),
    "message": ("everywhere", "chat", "message"),
    "sidebar": ("everywhere", "chat", "sidebar"),
}


def bindings(commands: Iterable[Command], scope: Scope) -> list[Binding]:
    """Return textual's bindings for the commands of one scope. Their id is the command's name, which a keymap refers to."""
    return [
        Binding(
            command.keys,
            # What works in dialogs too is an action of the app, not of the chat screen.
            command.name.replace("-", "_") if scope == "everywhere" else f"screen.command({command.name!r})",
            command.title,
            show=False,
            priority=scope in _PRIORITY_SCOPES and command.name not in _LAST_RESORT,
            id=command.name,
        )
        for command in commands
        if command.scope == scope and command.keys
    ]


def composer_actions(registry: Registry, keymap: Mapping[str, str]) -> dict[str, str]:
    """Return key -> name of the action, for the keys of the message box. `keymap` has the user's changes, checked."""
    actions = {
        key: command.name
        for command in registry
        if command.scope == "composer"
        for key in keymap.get(command.name, command.keys).split(",")
    }
    if "shift+enter" in actions:
        actions["shift+\r"] = actions["shift+enter"]  # textual's name for the sequence that xterm sends
    return actions


def make_keymap(registry: Registry, wanted: Mapping[str, str]) -> dict[str, str]:
    """Check the user's keys and return them as a keymap for textual.

    Args:
        registry: the command table.
        wanted: `chat.keys`: command name -> keys, comma-separated.

    Raises:
        ConfigError: no such command, a command without a default key, no such key, or two commands on one key.
    """
    rebindable = {command.name: command for command in registry if command.keys}
    keymap: dict[str, str] = {}
    for name, keys in wanted.items():
        if name not in rebindable:
            near = difflib.get_close_matches(name, list(rebindable), n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"chat.keys: there is no action {name!r}.", f"{hint}Known actions: {', '.join(rebindable)}.")
        keymap[name] = ",".join(_check_key(name, key) for key in keys.split(","))
        if rebindable[name].scope == "composer" and any(len(key) == 1 for key in keymap[name].split(",")):
            raise ConfigError(f"chat.keys: with {name} = {keys!r} it could not be typed any more.", "Add ctrl+ or alt+ to it.")
    _refuse_clashes(rebindable, keymap)
    return keymap


def _check_key(name: str, text: str) -> str:
    key = text.strip()
    *modifiers, last = key.split("+") if key != "+" else ["+"]
    bad = [part for part in modifiers if part not in _MODIFIERS]
    if bad or not last or not (len(last) == 1 or last in _NAMED or _is_character_name(last)):
        wrong = bad[0] if bad else last
        near = difflib.get_close_matches(wrong, [*_MODIFIERS, *_NAMED], n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"chat.keys: {name} = {text!r} is not a key.", f"{hint}Write keys like ctrl+s, f5 or alt+enter.")
    return key


def _is_character_name(name: str) -> bool:
    """Return whether textual knows a character by this name: its Unicode name, as "question_mark"."""
    try:
        unicodedata.lookup(name.replace("_", " "))
    except KeyError:
        return False
    return True


def _refuse_clashes(commands: Mapping[str, Command], keymap: Mapping[str, str]) -> None:
    """Refuse a changed key that another command in reach of it has too."""
    for name, keys in keymap.items():
        scopes = _HEARD_WITH[commands[name].scope]
        for other, command in commands.items():
            shared = set(keys.split(",")) & set(keymap.get(other, command.keys).split(","))
            if other != name and command.scope in scopes and shared:
                raise ConfigError(
                    f"chat.keys: {min(shared)} would be both {name!r} and {other!r}.",
                    "Give one of them another key in [chat.keys] of the settings file.",
                )


def register_enter_sequences() -> None:
    """Teach textual the sequences for Alt+Enter of terminals without the kitty protocol.

    It takes them for Enter, which would send an unfinished message.
    """
    from enum import Enum

    from textual._ansi_sequences import ANSI_SEQUENCES_KEYS

    class Extra(str, Enum):
        ALT_ENTER = "alt+enter"

    table: dict[str, Any] = ANSI_SEQUENCES_KEYS  # type: ignore[assignment]
    for sequence in ("\x1b\r", "\x1b\n"):
        table[sequence] = (Extra.ALT_ENTER,)


def take_all_characters() -> None:
    """Have textual take every typed character but controls: it drops those for which `str.isprintable` is false, such as
    the joiners of Persian, Hindi and emoji, and the no-break space.
    """

    def is_printable(key: events.Key) -> bool:
        return key.character is not None and all(unicodedata.category(c) not in ("Cc", "Cs") for c in key.character)

    events.Key.is_printable = property(is_printable)  # type: ignore[assignment, method-assign]


def display_key(key: str) -> str:
    """Format a key: "ctrl+j" -> "Ctrl+J"."""
    *modifiers, last = key.split("+") if key != "+" else ["+"]
    name = _SYMBOLS.get(last, last.upper() if len(last) == 1 and modifiers else last)
    if len(name) > 1 and name[0] == "f" and name[1:].isdigit():
        name = name.upper()
    return "+".join([*(part.capitalize() for part in modifiers), name])


def display_keys(keys: str) -> str:
    """Format comma-separated keys: "shift+enter,ctrl+j" -> "Shift+Enter or Ctrl+J"."""
    names = [display_key(key.strip()) for key in keys.split(",") if key.strip()]
    return ", ".join(names[:-1]) + " or " + names[-1] if len(names) > 1 else "".join(names)


class Keymap:
    """The keys in force: the user's, else the defaults. Arguments and errors as for `make_keymap`.

    Attributes:
        changes: the user's keys, checked, as textual's `set_keymap` takes them.
        composer_actions: key -> action of the message box, "send" or "newline".
    """

    def __init__(self, registry: Registry, wanted: Mapping[str, str]) -> None:
        self.changes = make_keymap(registry, wanted)
        self.composer_actions = composer_actions(registry, self.changes)
        self._registry = registry

    def keys(self, name: str) -> str:
        """Return the keys of a command, comma-separated."""
        return self.changes.get(name, self._registry[name].keys)

    def display(self, name: str) -> str:
        """Return the first key of a command, formatted."""
        return display_key(self.keys(name).partition(",")[0])

    def display_newline(self) -> str:
        """Return the safest key for a new line: many terminals send the same for Shift+Enter as for Enter."""
        names = [key.strip() for key in self.keys("newline").split(",")]
        return display_key(next((key for key in names if not key.endswith("enter")), names[0]))
