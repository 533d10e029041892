"""Roles: system prompts of one's own, each a Markdown file in `prompts` beside the settings file."""

from __future__ import annotations

import difflib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import StorageError, UsageError
from edge.files import open_file

if TYPE_CHECKING:
    from edge.config.schema import Settings

__all__ = ["RolePrompt", "list_roles", "read_role"]

_MAX_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class RolePrompt:
    """A system prompt with a name.

    Attributes:
        name: of its file, without the ending.
        path: the file.
    """

    name: str
    path: Path

    @property
    def text(self) -> str:
        """The system prompt.

        Raises:
            UsageError: it is empty, not UTF-8 text, no ordinary file, or too long.
            StorageError: the file cannot be read.
        """
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                raise UsageError(f"{self.path} is not a file, so there is no role {self.name!r}.", "Remove or rename it.")
            with open_file(self.path) as file:
                data = file.read(_MAX_BYTES + 1)
        except OSError as error:
            raise StorageError(f"{self.path} cannot be read: {error.strerror}.", "Check its permissions.") from error
        if len(data) > _MAX_BYTES:
            raise UsageError(f"{self.path} is too long for a system prompt.", f"Keep it below {_MAX_BYTES:,} bytes.")
        try:
            text = data.decode("utf-8-sig").replace("\r\n", "\n").strip()
        except UnicodeDecodeError:
            raise UsageError(f"{self.path} is not UTF-8 text.", "Save it as UTF-8.") from None
        if not text:
            raise UsageError(f"{self.path} is empty, so the role {self.name!r} says nothing.", "Write a system prompt into it.")
        return text


def list_roles(settings: Settings) -> list[RolePrompt]:
    """Return the roles by name; none if there is no folder of them.

    Raises:
        StorageError: the folder cannot be read.
    """
    folder = settings.paths.prompts_dir
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"The roles in {folder} cannot be read: {error.strerror}.", "Check the folder.") from error
    return [
        RolePrompt(name[:-3], folder / name)
        for name in names
        if name.endswith(".md") and not name.startswith(".") and name[:-3]
    ]


def read_role(name: str, settings: Settings) -> RolePrompt:
    """Return the role of that name, case ignored where it leaves no doubt.

    Raises:
        UsageError: there is none; the hint names the nearest one, or how to make one.
        StorageError: the folder cannot be read.
    """
    roles = {role.name: role for role in list_roles(settings)}
    found = roles.get(name) or next((role for role in roles.values() if role.name.lower() == name.lower()), None)
    if found is not None:
        return found
    near = difflib.get_close_matches(name, roles, n=1, cutoff=0.5)
    known = f"Did you mean {near[0]}? Roles: {', '.join(roles)}." if near else f"Roles: {', '.join(roles)}."
    make = f"Write a system prompt into a file such as {settings.paths.prompts_dir / 'translator.md'}; its name is the role's."
    raise UsageError(f"There is no role {name!r}.", known if roles else make)
