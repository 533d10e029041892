"""Settings: flag > environment (EDGE_*) > file (TOML) > default, merged once, each with its origin.

The structs of schema.py have the names, types and defaults; the names of the environment variables, the texts of the errors and
`edge config ls` follow from them. An unknown key or EDGE_ variable is an error, so that no typing mistake goes unnoticed. In
other programs (`strict=False`) such a variable may be the program's own: it is ignored and logged.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge.config.keys import Key, Typed, convert, find_key, nearest, parse_text, setting_keys
from edge.config.schema import TABLES, Settings, default_path
from edge.config.toml import read_toml
from edge.errors import ConfigError, UsageError
from edge.files import absolute_path
from edge.types import kind_of

__all__ = ["COMMAND_LINE", "DEFAULT", "RESERVED_VARIABLES", "load_settings"]

_log = logging.getLogger("edge.config")

COMMAND_LINE = "command line"
"""Origin of a flag, in `Settings.sources`."""

DEFAULT = "default"
"""Origin of a value that nobody set."""

RESERVED_VARIABLES = {
    "EDGE_DEBUG": "1 shows the traceback of an unexpected error",
    "EDGE_REMOTE_KEY": "the API key of the server that escalation.to names",
    "EDGE_TORCH_DEVICE": "auto, cpu, cuda or mps: where edge convert and edge eval compute with torch",
    "EDGE_TEST_MODEL": "the model file that the tests use",
}
"""EDGE_ variables that are not settings. Others that begin with EDGE_TEST_ belong to tests and are left alone, too."""

# Variables of the hub's own library with the same meaning; EDGE_HUB_* wins over them.
_BORROWED_VARIABLES = {"HF_ENDPOINT": "hub.endpoint", "HF_HUB_OFFLINE": "hub.offline"}


def load_settings(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    path: str | os.PathLike[str] | None = None,
    flag_names: Mapping[str, str] | None = None,
    strict: bool = True,
    use_file: bool = True,
) -> Settings:
    """Merge flags, environment, file and defaults.

    Args:
        flags: dotted key -> value; a value of None counts as not given, the text "auto" stands for None.
        flag_names: dotted key -> the option that the user typed for it, such as "--kv-type", for errors.
        environ: instead of the process's own. A variable that is empty counts as not set.
        path: the settings file, which must exist; without it EDGE_CONFIG or the user's own, which need not.
        strict: refuse EDGE_ variables that are not settings or have a value that is not allowed; otherwise they are taken for
            another program's, ignored and logged.
        use_file: read the settings file at all.

    Raises:
        UsageError: an argument has another type.
        ConfigError: a key or EDGE_ variable is unknown, a value is not allowed, or the file is not TOML.
        StorageError: the file is there and cannot be read.
    """
    for argument, given in {"flags": flags, "environ": environ, "flag_names": flag_names}.items():
        _check_mapping(argument, given)
    if path is not None and not isinstance(path, str | os.PathLike):
        raise UsageError(f"path is that of a settings file, not {kind_of(path)}.", 'For example: path="settings.toml"')
    environ = os.environ if environ is None else environ
    config_file = default_path("paths.config_file", environ) if path is None else absolute_path(path)
    merged = _Merged()
    if use_file:
        document = read_toml(config_file, must_exist=path is not None)
        merged.add_table("", document.values, document.where, base=config_file.parent)
    merged.add_environment(environ, strict=strict)
    for name, value in (flags or {}).items():
        if value is not None:
            typed = (flag_names or {}).get(name)
            merged.add_flag(name, value, COMMAND_LINE if typed is None else Typed(typed))
    return merged.build(environ, config_file)


def _check_mapping(argument: str, given: object) -> None:
    hint = "For example: edge.load_settings({'kv.enabled': False})"
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise UsageError(f"{argument} maps names to values, it is not {kind_of(given)}.", hint)
    for name, value in given.items():
        if not isinstance(name, str):
            raise UsageError(f"{argument} maps names to values, and a name is text, not {kind_of(name)}.", hint)
        if argument != "flags" and not isinstance(value, str):
            raise UsageError(f"{argument} maps names to texts, and {name} is {kind_of(value)}.", hint)


class _Merged:
    """Values by dotted key. Later ones win, so sources are added from the weakest to the strongest."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}

    def add(self, name: str, value: object, source: str, *, base: Path | None = None) -> None:
        try:
            key = find_key(name)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error.message}", error.hint) from None
        if name != key.name:
            value = {name[len(key.name) + 1 :]: value}
        self._put(key, convert(key, value, source, base=base), source)

    def add_flag(self, name: str, value: object, typed: str) -> None:
        """Add a value of the command line; errors name it as it was typed."""
        if isinstance(value, str):
            self.add_text(name, value, typed)
        else:
            self.add(name, value, typed)
        self.sources[find_key(name).name] = COMMAND_LINE

    def add_text(self, name: str, text: str, source: str) -> None:
        self._put(find_key(name), parse_text(name, text, source), source)

    def _put(self, key: Key, value: Any, source: str) -> None:
        self.values[key.name] = {**self.values.get(key.name, {}), **value} if key.is_free else value
        self.sources[key.name] = source

    def add_table(self, prefix: str, table: Mapping[str, Any], where: Any, *, base: Path) -> None:
        keys = setting_keys()
        for part, value in table.items():
            name = prefix + part
            source = where(name)
            if name in TABLES:
                if not isinstance(value, dict):
                    hint = f"Write [{name}] on a line of its own, and its settings below."
                    raise ConfigError(f"{source}: {name} is a table, not a single value.", hint)
                self.add_table(name + ".", value, where, base=base)
            elif name not in keys:
                raise ConfigError(f"{source}: there is no setting {name!r}.", nearest(name, keys))
            elif name == "paths.config_file":
                raise ConfigError(f"{source}: a settings file cannot say where it is.", "Set EDGE_CONFIG instead.")
            else:
                self.add(name, value, source, base=base)

    def add_environment(self, environ: Mapping[str, str], *, strict: bool) -> None:
        names = sorted(name for name in environ if name.startswith("EDGE_") and not name.startswith("EDGE_TEST_"))
        for variable in [*_BORROWED_VARIABLES, *names]:
            try:
                self._add_variable(variable, environ.get(variable, ""))
            except ConfigError:
                if strict:
                    raise
                # Without its value, which may be another program's secret.
                _log.warning("%s is ignored: it is not a setting of edge, or has a value that is not allowed.", variable)

    def _add_variable(self, variable: str, text: str) -> None:
        if variable in RESERVED_VARIABLES:
            return
        name = _BORROWED_VARIABLES.get(variable) or _setting_of(variable)
        if text:
            self.add_text(name, text, variable)

    def build(self, environ: Mapping[str, str], config_file: Path) -> Settings:
        """Return the settings; paths that follow from other paths are set here."""
        nested: dict[str, dict[str, Any]] = {table: {} for table in TABLES}
        top: dict[str, Any] = {}
        for name, value in self.values.items():
            table, _, field = name.rpartition(".")
            (nested[table] if table else top)[field] = value
        found = nested["paths"]
        data_dir = found.get("data_dir") or default_path("paths.data_dir", environ)
        nested["paths"] = {
            "data_dir": data_dir,
            "cache_dir": found.get("cache_dir") or default_path("paths.cache_dir", environ),
            "models_dir": found.get("models_dir") or data_dir / "models",
            "config_file": config_file,
        }
        return Settings(
            **top,
            **{table: made(**nested[table]) for table, made in TABLES.items()},
            sources={name: self.sources.get(name, DEFAULT) for name in setting_keys()},
        )


def _setting_of(variable: str) -> str:
    """Return the dotted name of the setting that a variable sets.

    Raises:
        ConfigError: it sets none; the nearest one is named.
    """
    by_variable = {key.variable: key for key in setting_keys().values()}
    key = by_variable.get(variable)
    if key is not None and not key.is_free:
        return key.name
    for start, table in by_variable.items():
        if table.is_free and variable.startswith(start + "_") and len(variable) > len(start) + 1:
            return f"{table.name}.{variable[len(start) + 1 :].lower()}"
    known = [name for name, key in by_variable.items() if not key.is_free] + list(RESERVED_VARIABLES)
    raise ConfigError(f"The environment variable {variable} is not a setting.", f"Unset it. {nearest(variable, known)}")
