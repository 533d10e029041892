"""Settings by their dotted names: types, allowed values, and values from text."""

from __future__ import annotations

import difflib
import functools
import json
import os
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edge.config.schema import PATH_VARIABLES, TABLES, Settings
from edge.errors import ConfigError, UsageError
from edge.files import absolute_path
from edge.types import Sampling

__all__ = ["Key", "Typed", "convert", "find_key", "get_value", "nearest", "parse_text", "setting_keys", "split_key"]


class Key(msgspec.Struct, frozen=True):
    """One setting.

    Attributes:
        name: dotted, such as "sampling.top_k".
        type: its Python type.
        variable: the environment variable that sets it; for a free table, the prefix of its entries' variables.
        is_free: a table whose keys the user chooses, such as chat.keys.
        is_optional: None is a value, written "auto".
    """

    name: str
    type: Any
    variable: str
    is_free: bool
    is_optional: bool

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        if self.is_path:
            return 'a path, or "auto"' if self.is_optional else "a path"
        return describe(msgspec.inspect.type_info(self.type))

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that can be listed: of a choice, or of a switch; empty for text and numbers."""
        return _choices(msgspec.inspect.type_info(self.type)) if not self.is_path else ()

    @property
    def is_path(self) -> bool:
        """True if it is a path, or a path or None."""
        return self.type is Path or Path in typing.get_args(self.type)


@functools.cache
def setting_keys() -> dict[str, Key]:
    """Return every setting by its dotted name, in the order of the structs."""
    keys: dict[str, Key] = {}

    def add(name: str, annotation: Any) -> None:
        variable = PATH_VARIABLES.get(name, "EDGE_" + name.replace(".", "_").upper())
        origin = typing.get_origin(annotation)
        is_free = origin in (dict, Mapping)
        is_optional = type(None) in typing.get_args(annotation)
        keys[name] = Key(name, annotation, variable, is_free, is_optional)

    for name, annotation in typing.get_type_hints(Settings, include_extras=True).items():
        if name == "sources":
            continue
        if name not in TABLES:
            add(name, annotation)
            continue
        for field, below in typing.get_type_hints(TABLES[name], include_extras=True).items():
            add(f"{name}.{field}", below)
    return keys


def find_key(name: str) -> Key:
    """Return the setting of that dotted name; "chat.keys.quit" finds the free table chat.keys.

    Raises:
        ConfigError: there is none; the nearest one is named.
    """
    keys = setting_keys()
    if name in keys:
        return keys[name]
    for key in keys.values():
        if key.is_free and name.startswith(key.name + ".") and len(name) > len(key.name) + 1:
            return key
    if name in TABLES:
        raise ConfigError(f"{name} is a section, not one setting.", f"See what is in it: edge config get {name}")
    raise ConfigError(f"There is no setting {name!r}.", nearest(name, keys))


def split_key(name: str) -> tuple[str, ...]:
    """Split a dotted name into its tables and its own name; an entry of a free table keeps its dots.

    Raises:
        ConfigError: there is no such setting.
    """
    key = find_key(name)
    return (*key.name.split("."), *([name[len(key.name) + 1 :]] if name != key.name else []))


def get_value(settings: Settings, name: str) -> Any:
    """Return the value of a setting by its dotted name; None for a missing entry of a free table.

    Raises:
        ConfigError: there is no such setting.
    """
    key = find_key(name)
    value: Any = settings
    for part in key.name.split("."):
        value = getattr(value, part)
    if name != key.name:
        entry = name[len(key.name) + 1 :]
        return value.get(int(entry) if key.name == "sampling.logit_bias" else entry)
    return value


def parse_text(name: str, text: str, source: str) -> Any:
    """Convert a text, as in a variable or on a command line, to the setting's type.

    Texts stay as they are; "auto" is None where that is allowed; a list is JSON, or one text by itself.

    Args:
        name: dotted key. An entry of a free table gives a dict with that entry.
        text: the value.
        source: its origin, for the error.

    Raises:
        ConfigError: there is no such setting, or the value is not allowed.
    """
    key = find_key(name)
    value: object = text
    if key.is_free:
        if name == key.name:
            raise ConfigError(f"{source}: {name} is a table.", f"Set one entry, such as {name}.NAME.")
        value = {name[len(key.name) + 1 :]: text}
    elif key.type == tuple[str, ...]:
        value = [text]
        if text.lstrip().startswith("["):
            try:
                value = json.loads(text)
            except ValueError as error:
                hint = 'Write a list as JSON: ["one", "two"].'
                raise ConfigError(f"{_subject(source, name)} is not a list ({error}).", hint) from None
    elif key.type is bool:
        word = text.strip().lower()
        value = {"yes": True, "on": True, "no": False, "off": False}.get(word, word)
    return convert(key, value, source, strict=False)


def convert(key: Key, value: object, source: str, *, strict: bool = True, base: Path | None = None) -> Any:
    """Convert a value to the setting's type; the ConfigError of one that is not allowed says where it is and what is."""
    if key.is_optional and value == "auto":
        return None
    if key.is_path and isinstance(value, (str, os.PathLike)) and str(value):
        try:
            return absolute_path(value, base)
        except UsageError as error:
            raise ConfigError(f"{_subject(source, key.name)}: {error.message}", error.hint) from None
    refused = ConfigError(f"{_subject(source, key.name)} cannot be {_show(value)}.", f"Allowed: {key.allowed}.")
    if key.is_path:
        raise refused
    try:
        converted = msgspec.convert(value, key.type, strict=strict, str_keys=True)
    except msgspec.ValidationError:
        raise refused from None
    table, _, field = key.name.rpartition(".")
    if table == "sampling":
        try:
            Sampling(**{field: converted})
        except UsageError as error:
            raise ConfigError(f"{source}: {error.message}", error.hint) from None
    return converted


class Typed(str):
    """The option that a user typed, such as "--kv-type": the source of a value, and its name at the same time."""

    __slots__ = ()


def _subject(source: str, name: str) -> str:
    """Return the subject of an error, as the user wrote it."""
    return source if isinstance(source, Typed) else f"{source}: {name}"


def _show(value: object) -> str:
    """Return a value roughly as the user wrote it, and not too long."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def describe(info: Any) -> str:
    """Describe a type in words."""
    kinds = msgspec.inspect
    if isinstance(info, kinds.UnionType):
        rest = [one for one in info.types if not isinstance(one, kinds.NoneType)]
        text = " or ".join(describe(one) for one in rest)
        return text + ', or "auto"' if len(rest) < len(info.types) else text
    if isinstance(info, kinds.LiteralType):
        return ", ".join(sorted(f'"{value}"' for value in info.values))
    if isinstance(info, (kinds.IntType, kinds.FloatType)):
        kind = "a whole number" if isinstance(info, kinds.IntType) else "a number"
        if info.ge is not None and info.le is not None:
            return f"{kind} from {info.ge} to {info.le}"
        return kind + (f", {info.ge} or more" if info.ge is not None else "")
    if isinstance(info, kinds.VarTupleType):
        return f"a list, each {describe(info.item_type)}"
    if isinstance(info, kinds.DictType):
        return f"a table, each entry {describe(info.value_type)}"
    if isinstance(info, kinds.StrType) and info.pattern:
        return "a name of letters, digits, dots, dashes and underscores"
    words: dict[type, str] = {kinds.BoolType: "true or false", kinds.StrType: "a text"}
    return words[type(info)]


def _choices(info: Any) -> tuple[str, ...]:
    kinds = msgspec.inspect
    if isinstance(info, kinds.UnionType):
        return tuple(choice for one in info.types for choice in _choices(one))
    if isinstance(info, kinds.LiteralType):
        return tuple(str(value) for value in info.values)
    return ("true", "false") if isinstance(info, kinds.BoolType) else ()


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint with the name that was probably meant: the whole name is compared first, then its last part."""
    known = list(known)
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not found:
        by_end = {candidate.rpartition(".")[2]: candidate for candidate in known}
        ends = difflib.get_close_matches(name.rpartition(".")[2], list(by_end), n=1, cutoff=0.7)
        found = [by_end[end] for end in ends] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {found[0]}?" if found else "See them all with: edge config ls"
