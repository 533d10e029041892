"""The settings file: bounded reads, edits that keep comments, atomic writes."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.errors import ConfigError, StorageError
from edge.files import check_replaceable, open_file, parse_toml, toml_text, write_private

__all__ = ["Document", "read_toml", "set_in_file", "unset_in_file", "write_document"]

MAX_SIZE_BYTES = 1 << 20
"""A settings file is a page or two; more is a mistake, such as a device or a model file."""


@dataclass(frozen=True)
class Document:
    """A TOML file.

    Attributes:
        values: its tables; empty where there is no file.
        where: dotted key -> "file:line", for messages.
    """

    values: dict[str, Any]
    where: Callable[[str], str]


def read_toml(path: Path, *, must_exist: bool = False) -> Document:
    """Read a TOML file.

    Raises:
        ConfigError: it is not TOML, not UTF-8, much too long, or missing although it must exist.
        StorageError: it is there and cannot be read, or is not an ordinary file.
    """
    text = _read_text(path)
    if text is None:
        if must_exist:
            raise ConfigError(f"There is no settings file {path}.", "Check the path.")
        text = ""
    values = parse_toml(path, text)
    lines = _key_lines(text)
    return Document(values, lambda name: f"{path}:{lines[name]}" if name in lines else str(path))


def set_in_file(path: Path, parts: Sequence[str], value: object) -> None:
    """Set one key, keeping the rest of the file, comments included, as it is.

    Args:
        path: the file; made, readable by its owner only, where it is missing.
        parts: names of the tables and of the key, already checked.
        value: text, number, bool, list or table.

    Raises:
        ConfigError: the file is not TOML, or has a value where a table is needed.
        StorageError: it cannot be written.
    """
    import tomlkit

    document = _edit(path)
    *tables, last = parts
    table: Any = document
    for part in tables:
        if part not in table:
            table[part] = tomlkit.table()
        table = table[part]
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {part} is not a table, so {'.'.join(parts)} has no place there.", "Remove it first.")
    table[last] = value
    write_document(path, document)


def unset_in_file(path: Path, parts: Sequence[str]) -> bool:
    """Remove one key. Tables that are then empty go too.

    Args:
        path: the file.
        parts: names of the tables and of the key.

    Returns:
        False if the key was not there.

    Raises:
        ConfigError: the file is not TOML.
        StorageError: it cannot be written.
    """

    document = _edit(path)
    parents: list[tuple[Any, str]] = []
    table: Any = document
    for part in parts:
        if not isinstance(table, dict) or part not in table:
            return False
        parents.append((table, part))
        table = table[part]
    for parent, part in reversed(parents):
        if (parent, part) == parents[-1] or not parent[part]:
            del parent[part]
    write_document(path, document)
    return True


def write_document(path: Path, document: Any) -> None:
    """Write an edited TOML document.

    Raises:
        ConfigError: it has a text that is not UTF-8, such as a path with other bytes.
        StorageError: it cannot be written.
    """
    import tomlkit

    text = tomlkit.dumps(document)
    try:
        data = text.encode()
    except UnicodeEncodeError as error:
        found = text[text.rfind("\n", 0, error.start) + 1 :].partition("\n")[0]
        raise ConfigError(
            f"This cannot be written to {path}, since it is not UTF-8 text: {found[:200]!r}",
            "TOML is UTF-8. Rename the file, or make a link to it with another name; write another text in UTF-8.",
        ) from None
    write_private(path, data)


def _read_text(path: Path) -> str | None:
    try:
        with open_file(path) as file:
            data = file.read(MAX_SIZE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        hint = "Check its owner."
        if error.errno in (errno.EINVAL, errno.EISDIR):
            hint = "Set EDGE_CONFIG to the path of an ordinary file, which need not exist."
        raise StorageError(f"The settings file {path} cannot be read: {error.strerror}.", hint) from error
    if len(data) > MAX_SIZE_BYTES:
        raise ConfigError(f"{path} is longer than a settings file can be (1 MiB).", "Check EDGE_CONFIG.")
    return toml_text(path, data)


def _edit(path: Path) -> Any:
    """Return the file as an editable document."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    check_replaceable(path)
    text = _read_text(path) or ""
    parse_toml(path, text)  # it says what is wrong, and where
    try:
        return tomlkit.parse(text)
    except TOMLKitError as error:
        raise ConfigError(f"{path} cannot be edited: {error}.", "Correct that line first, or edit it by hand.") from None


_PART = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_PART}(?:\s*\.\s*{_PART})*"
_HEADER = re.compile(rf"\s*\[\[?\s*({_DOTTED})\s*\]\]?")
_ASSIGNMENT = re.compile(rf"\s*({_DOTTED})\s*=\s*(.*)")


def _key_lines(text: str) -> dict[str, int]:
    """Return dotted key -> its line. For messages only, since tomllib does not say."""
    lines: dict[str, int] = {}
    table = ""
    open_quote = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if open_quote:
            # Inside a multi-line text nothing is a key.
            open_quote = "" if open_quote in line else open_quote
            continue
        if header := _HEADER.fullmatch(line.split("#")[0].rstrip()):
            table = _plain(header[1])
            lines.setdefault(table, number)
            table += "."
        elif assignment := _ASSIGNMENT.match(line):
            lines.setdefault(table + _plain(assignment[1]), number)
            quote = assignment[2][:3]
            if quote in ('"""', "'''") and quote not in assignment[2][3:]:
                open_quote = quote
    return lines


def _plain(dotted: str) -> str:
    return ".".join(part.strip("\"'") for part in re.findall(_PART, dotted))
