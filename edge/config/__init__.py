"""Settings: flag > `EDGE_*` > TOML > default, each with its origin; unknown keys are errors.

load.py    merges the sources; `load_settings`
schema.py  the settings as structs: names, types, defaults
keys.py    settings by dotted name; values from text
toml.py    the settings file: bounded reads, edits that keep comments
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge.config.keys import Key, Typed, convert, find_key, get_value, nearest, parse_text, setting_keys, split_key
    from edge.config.load import COMMAND_LINE, DEFAULT, RESERVED_VARIABLES, load_settings
    from edge.config.schema import ChatSettings, GovernorSettings, HubSettings, KVSettings, Paths, Settings, default_paths

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
        "COMMAND_LINE": "edge.config.load",
        "ChatSettings": "edge.config.schema",
        "DEFAULT": "edge.config.load",
        "GovernorSettings": "edge.config.schema",
        "HubSettings": "edge.config.schema",
        "KVSettings": "edge.config.schema",
        "Key": "edge.config.keys",
        "Paths": "edge.config.schema",
        "RESERVED_VARIABLES": "edge.config.load",
        "Settings": "edge.config.schema",
        "Typed": "edge.config.keys",
        "convert": "edge.config.keys",
        "default_paths": "edge.config.schema",
        "find_key": "edge.config.keys",
        "get_value": "edge.config.keys",
        "load_settings": "edge.config.load",
        "nearest": "edge.config.keys",
        "parse_text": "edge.config.keys",
        "setting_keys": "edge.config.keys",
        "split_key": "edge.config.keys",
    },
)
