"""Checks of the chat's settings, without starting the chat."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["check_keys", "check_theme"]


def check_theme(name: str | None) -> None:
    """Refuse an unknown theme.

    Raises:
        ConfigError: there is no theme of that name.
    """
    from textual.theme import BUILTIN_THEMES

    from edge_chat.theme import THEMES, choose_theme

    choose_theme(name, [*BUILTIN_THEMES, *(own.name for own in THEMES)], {})


def check_keys(wanted: Mapping[str, str]) -> None:
    """Refuse key bindings that the chat would refuse at its start.

    Args:
        wanted: `chat.keys`: action -> keys, comma-separated.

    Raises:
        ConfigError: no such action, no such key, or two actions on one key.
    """
    from edge_chat.keys import make_keymap
    from edge_chat.table import REGISTRY

    make_keymap(REGISTRY, wanted)
