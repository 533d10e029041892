"""Attachments of a message: reading files, `@path` mentions, proposing files while typing, drafts."""

from __future__ import annotations

import codecs
import json
import os
import platform
import re
import shlex
import stat
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import StorageError, UsageError
from edge.files import decode_text, open_file
from edge.units import size_text
from edge_chat.documents import is_mention

if TYPE_CHECKING:
    from edge.conversation import Attachment

__all__ = [
    "FileIndex",
    "describe",
    "dropped_files",
    "edited_by_draft",
    "find_mentions",
    "mention_before",
    "missing_mentions",
    "pack_draft",
    "paste_name",
    "read_attachment",
    "typed_paths",
    "unpack_draft",
    "with_mentions",
]

_MENTION = re.compile(r'(?<!\S)@(?:"([^"\n]+)"|([^\s"]+))')
_OPEN_MENTION = re.compile(r'(?<!\S)@(?:"([^"\n]*)|([^\s"]*))\Z')
_TRAILING = ".,;:!?)]}'"
_LIKE_A_PATH = re.compile(r"(?=.*/)[^@()]+|[^@()]*\.[A-Za-z][A-Za-z0-9]{0,4}")
"""Matches a word after `@` that is meant as a file: it has a slash or an ending, and is not a decorator or an address."""

_MAX_DROPPED = 64
_SKIPPED_DIRS = {"node_modules", "__pycache__", "venv", "target", "dist", "build", "site-packages"}
_MAX_FILES = 5000
_MAX_SCAN_S = 1.0
_MAX_AGE_S = 10.0
_DRAFT_MARK = "\x1eedge-draft "


def resolve(path_text: str, cwd: Path) -> Path:
    """Return the path for a typed one: `~` expanded, relative to `cwd`."""
    try:
        path = Path(path_text).expanduser()
    except RuntimeError:  # "~nobody/x" without such a user is a plain name
        path = Path(path_text)
    return path if path.is_absolute() else cwd / path


def read_attachment(path_text: str, cwd: Path, max_bytes: int) -> Attachment:
    """Read a text file to attach.

    Args:
        path_text: as typed; it names the attachment.
        cwd: base of relative paths.
        max_bytes: refuse larger files.

    Raises:
        UsageError: it is missing, not a regular file, too large, or not text.
        StorageError: it cannot be read.
    """
    path = resolve(path_text, cwd)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UsageError(f"{path_text} is a directory.", "Attach files one by one.")
        if not stat.S_ISREG(status.st_mode):
            raise UsageError(f"{path_text} is not a regular file.", "Only text files can be attached.")
        with open_file(path) as file:
            data = file.read(max_bytes + 1)
    except UsageError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"There is no file {path_text}.", f"Paths are relative to {cwd}.") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise StorageError(f"{path_text} cannot be read ({why(error)}).", "Check the file.") from error
    if len(data) > max_bytes:
        size = size_text(max(status.st_size, len(data)))
        hint = f"The limit is {size_text(max_bytes)}; the setting chat.attachment_bytes raises it."
        raise UsageError(f"{path_text} is too large to attach ({size}).", hint)
    return make_attachment(path_text, decode_text(data, path_text))


def why(error: Exception) -> str:
    """Return the reason of a failed file operation, without number and path: "Permission denied"."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def make_attachment(name: str, text: str) -> Attachment:
    """Return an attachment. Imports the store's module, which is not needed before the first one."""
    from edge.conversation import Attachment

    return Attachment(name=name, text=text)


def find_mentions(text: str, cwd: Path) -> list[str]:
    """Return the paths of all `@path` in a text that exist, without repeats.

    Punctuation at the end belongs to the sentence if the path exists without it.
    """
    found = []
    for match in _MENTION.finditer(text):
        path = match[1] or match[2]
        if match[1] is None and is_mention(path):
            continue
        if not _exists(path, cwd) and match[1] is None:
            path = path.rstrip(_TRAILING)
        if path and _exists(path, cwd):
            found.append(path)
    return list(dict.fromkeys(found))


def with_mentions(text: str, attachments: Sequence[Attachment], cwd: Path, max_bytes: int) -> tuple[Attachment, ...]:
    """Return these attachments and the files that a text mentions. Blocks.

    Args:
        text: the message.
        attachments: a file with the name of one of them is left out.
        cwd, max_bytes: as in `read_attachment`.

    Raises:
        UsageError, StorageError: as `read_attachment`.
    """
    names = {attachment.name for attachment in attachments}
    paths = [path for path in find_mentions(text, cwd) if path not in names]
    return (*attachments, *(read_attachment(path, cwd, max_bytes) for path in paths))


def missing_mentions(text: str, cwd: Path) -> list[str]:
    """Return the `@path` in a text that look like paths of files, but where nothing is."""
    missing = []
    for match in _MENTION.finditer(text):
        path = match[1] or match[2].rstrip(_TRAILING)
        is_meant = match[1] is not None or _LIKE_A_PATH.fullmatch(path)
        if path and is_meant and not any(_exists(one, cwd) for one in (path, match[1] or match[2])):
            missing.append(path)
    return list(dict.fromkeys(missing))


def mention_before(text: str) -> tuple[int, str] | None:
    """Return the unfinished `@path` at the end of `text`: the position of its @, and the path so far."""
    match = _OPEN_MENTION.search(text)
    return (match.start(), match[1] if match[1] is not None else match[2]) if match else None


def _exists(path_text: str, cwd: Path) -> bool:
    try:
        return resolve(path_text, cwd).exists()
    except (OSError, ValueError):
        return False


def is_file(path_text: str) -> bool:
    """Return whether an absolute path names a regular file."""
    try:
        return Path(path_text).is_file()
    except (OSError, ValueError):  # too long for a name, or with a NUL: pasted text, not a path
        return False


def quote(path: str) -> str:
    """Return a mention of the path, in quotes if it has blanks."""
    return f'@"{path}"' if any(c.isspace() for c in path) else f"@{path}"


def can_mention(path: str) -> bool:
    """Return whether a mention can name the path."""
    return '"' not in path and "\n" not in path


def dropped_files(text: str) -> list[str]:
    """Return the files that a terminal pasted when they were dropped on it; [] where that is any other text.

    Terminals differ: blanks escaped or quoted, or the bare path, or file:// addresses, several in one line or one a line.
    """
    if len(text) > _MAX_DROPPED * 4096:
        return []
    whole = text.strip()
    for parts in ([whole], _split(text), [_of_url(line) for line in whole.splitlines()]):
        if parts and len(parts) <= _MAX_DROPPED and all(part.startswith("/") and is_file(part) for part in parts):
            return parts
    return []


def typed_paths(argument: str, cwd: Path) -> list[str]:
    """Return the paths in the argument of a command: the whole of it, or several, quoted and escaped as in a shell."""
    whole = argument.strip().strip("\"'")
    parts = _split(argument)
    if _exists(whole, cwd) or not parts:
        return [whole]
    return parts if len(parts) == 1 or all(_exists(part, cwd) for part in parts) else [whole]


def _split(text: str) -> list[str]:
    try:
        return [_of_url(part) for part in shlex.split(text)]
    except ValueError:  # an open quote
        return []


def _of_url(text: str) -> str:
    """Return the path of a file:// address of this machine; any other text as it is."""
    if not text.startswith("file:"):
        return text
    parts = urllib.parse.urlsplit(text.strip())
    is_here = parts.netloc in ("", "localhost", platform.node())
    return urllib.parse.unquote(parts.path, errors="surrogateescape") if is_here else text


def describe(path_text: str, cwd: Path, max_bytes: int) -> str | None:
    """Return the size of a file to propose, "" for a directory, and None for what `read_attachment` would refuse."""
    path = resolve(path_text, cwd)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            return ""
        if not stat.S_ISREG(status.st_mode) or status.st_size > max_bytes:
            return None
        with open_file(path) as file:
            start = file.read(1024)
        is_text = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" not in start
        return size_text(status.st_size) if is_text else None
    except (OSError, ValueError):
        return None


class FileIndex:
    """Files below the working directory, to propose while an `@path` is typed. Blocks: use it in a thread.

    Hidden files and build directories are only proposed once typed.
    """

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd
        self._files: list[str] = []
        self._read_at = -_MAX_AGE_S

    def search(self, typed: str, limit: int = 20) -> list[str]:
        """Return at most `limit` paths that match, best first, then those in fewer folders. Directories end in a slash.

        A path that begins with "/", "~" or "." lists that directory.
        """
        if typed.startswith(("/", "~", ".")) or "/." in typed:
            return self._list_directory(typed)[:limit]
        now = time.monotonic()
        if now - self._read_at > _MAX_AGE_S:
            self._files = list(self._walk(now + _MAX_SCAN_S))
            self._read_at = now
        typed = typed.lower()
        scored = [(score, path.count("/"), path) for path in self._files if (score := _score(typed, path.lower())) >= 0]
        return [path for _, _, path in sorted(scored)[:limit]]

    def _walk(self, deadline: float) -> Iterator[str]:
        n_found = 0
        for folder, directories, names in os.walk(self._cwd):
            directories[:] = sorted(d for d in directories if not d.startswith(".") and d not in _SKIPPED_DIRS)
            relative = Path(folder).relative_to(self._cwd)
            for name in sorted(names):
                if not name.startswith("."):
                    yield (relative / name).as_posix()
                    n_found += 1
            if n_found >= _MAX_FILES or time.monotonic() > deadline:
                return

    def _list_directory(self, typed: str) -> list[str]:
        head, slash, start = typed.rpartition("/")
        folder = resolve(head + slash, self._cwd) if slash else self._cwd
        try:
            with os.scandir(folder) as entries:
                found = [
                    f"{head}{slash}{entry.name}{'/' if entry.is_dir() else ''}"
                    for entry in entries
                    if entry.name.lower().startswith(start.lower()) and (start or not entry.name.startswith("."))
                ]
        except (OSError, ValueError):
            return []  # not a directory, or not readable
        return sorted(found)


def _score(typed: str, path: str) -> int:
    """Rank a match: 0 begins the name, 1 is in the name, 2 is in the path, 3 is spread over the path; -1 for no match."""
    name = path.rpartition("/")[2]
    if name.startswith(typed):
        return 0
    if typed in name:
        return 1
    if typed in path:
        return 2
    letters = iter(path)
    return 3 if all(letter in letters for letter in typed) else -1


def paste_name(taken: Iterable[str]) -> str:
    """Return an unused name for a pasted text: "pasted text 1"."""
    names = set(taken)
    return next(name for number in count(1) if (name := f"pasted text {number}") not in names)


def pack_draft(text: str, attachments: Sequence[Attachment], edited: int | None = None) -> str:
    """Return a draft as the store keeps it: the plain text, or marked JSON if it has attachments or replaces a message."""
    if not attachments and (edited is None or not text.strip()):
        return text
    content: dict[str, object] = {"text": text, "attachments": [[a.name, a.text] for a in attachments]}
    if edited is not None:
        content["edited"] = edited
    return _DRAFT_MARK + json.dumps(content)


def unpack_draft(draft: str) -> tuple[str, list[Attachment]]:
    """Return text and attachments of a packed draft. Text that only looks packed is returned as it is."""
    try:
        content = _packed(draft)
        return str(content["text"]), [make_attachment(str(n), str(t)) for n, t in content["attachments"]]
    except (ValueError, KeyError, TypeError):
        return draft, []


def edited_by_draft(draft: str) -> int | None:
    """Return the message that a draft replaces; None for a new one."""
    try:
        edited = _packed(draft)["edited"]
        return edited if isinstance(edited, int) else None
    except (ValueError, KeyError, TypeError):
        return None


def _packed(draft: str) -> Any:
    if not draft.startswith(_DRAFT_MARK):
        raise ValueError("not packed")
    return json.loads(draft[len(_DRAFT_MARK) :])
