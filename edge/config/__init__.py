"""Settings: flag > `EDGE_*` > TOML > default, each with its origin; unknown keys are errors.

load.py    merges the sources; `load_settings`
schema.py  the settings as structs: names, types, defaults
keys.py    settings by dotted name; values from text
roles.py   system prompts of one's own, by name
toml.py    the settings file: bounded reads, edits that keep comments
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge.config.keys import Key, Typed, convert, find_key, get_value, nearest, parse_text, setting_keys, split_key
    from edge.config.load import COMMAND_LINE, DEFAULT, RESERVED_VARIABLES, load_settings
    from edge.config.schema import (
        ChatSettings,
        GovernorSettings,
        HubSettings,
        KVSettings,
        Paths,
        Settings,
        default_path,
        default_paths,
    )

__all__ = [
    "COMMAND_LINE",
    "DEFAULT",
    "RESERVED_VARIABLES",
    "ChatSettings",
    "GovernorSettings",
    "HubSettings",
    "KVSettings",
    "Key",
    "Paths",
    "Settings",
    "Typed",
    "convert",
    "default_path",
    "default_paths",
    "find_key",
    "get_value",
    "load_settings",
    "nearest",
    "parse_text",
    "setting_keys",
    "split_key",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge.config.keys": (
            "Key",
            "Typed",
            "convert",
            "find_key",
            "get_value",
            "nearest",
            "parse_text",
            "setting_keys",
            "split_key",
        ),
        "edge.config.load": ("COMMAND_LINE", "DEFAULT", "RESERVED_VARIABLES", "load_settings"),
        "edge.config.schema": (
            "ChatSettings",
            "GovernorSettings",
            "HubSettings",
            "KVSettings",
            "Paths",
            "Settings",
            "default_path",
            "default_paths",
        ),
    },
)
