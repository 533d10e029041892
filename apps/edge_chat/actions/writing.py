"""Commands of the composer."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import StorageError, UsageError
from edge_chat.attachments import FileIndex, why
from edge_chat.commands import Completion

if TYPE_CHECKING:
    from edge_chat.base import BaseApp
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMPLETERS", "RUNNERS", "editor_command"]

_EDITORS = ("nano", "vim", "vi")


async def attach(screen: ChatScreen, argument: str) -> None:
    if not argument:
        raise UsageError("Which file?", "Type its path after /attach, or @ and part of its name in the message.")
    await screen.composer.attach_files(argument)


def complete_path(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose paths. Lists only one directory, since this runs on the event loop."""
    start = typed if typed.startswith(("/", "~", "./", "../")) else f"./{typed}"
    found = FileIndex(screen.composer.cwd).search(start, limit=50)
    names = [path[2:] if start != typed else path for path in found]
    return [Completion(name, name) for name in names]


def editor_command(environ: Mapping[str, str], find: Callable[[str], str | None] = shutil.which) -> list[str]:
    """Return the user's editor as a command line: $VISUAL, $EDITOR, or the first common editor that `find` finds.

    Raises:
        UsageError: the variable is not a valid command line.
    """
    text = environ.get("VISUAL") or environ.get("EDITOR") or next(filter(find, _EDITORS), _EDITORS[0])
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(
            f"$VISUAL or $EDITOR is {text!r}, which is not a valid command ({error}).", "Correct the variable."
        ) from None


async def editor(screen: ChatScreen, argument: str) -> None:
    from textual.app import SuspendNotSupported

    command = editor_command(os.environ)
    try:
        path = await asyncio.to_thread(_write_temporary, screen.composer.text)
        try:
            with _suspended(screen.app):
                result = await asyncio.to_thread(_run_editor, command, path)
            text = await asyncio.to_thread(path.read_text, "utf-8")
        finally:
            await asyncio.to_thread(path.unlink, missing_ok=True)
    except SuspendNotSupported:
        raise UsageError("This terminal cannot run an editor.", "Write the message here.") from None
    except UnicodeDecodeError:
        raise UsageError("The editor wrote a text that is not UTF-8.", "The message is unchanged; save it as UTF-8.") from None
    except OSError as error:
        raise StorageError(f"The message could not be passed to the editor ({why(error)}).", "Check the disk.") from error
    screen.app.refresh(layout=True)
    if result != 0:
        raise UsageError(f"{command[0]} ended with an error ({result}).", "The message is unchanged.")
    screen.composer.load(text.rstrip("\n"), screen.composer.attachments)
    screen.composer.input.focus()


@contextmanager
def _suspended(app: BaseApp) -> Iterator[None]:
    """Hand the terminal to another program, and take it back however that ends.

    Textual's `suspend` does not take it back when its block fails. It also lets the app draw, for example a reply being
    generated, into a short queue that nobody empties: once that is full, the app hangs.

    Raises:
        SuspendNotSupported: this terminal cannot be handed over.
    """
    failure: BaseException | None = None
    with app.batch_update(), app.suspend():
        try:
            yield
        except BaseException as error:  # noqa: BLE001 (raised again below)
            failure = error
    if failure is not None:
        raise failure


def _write_temporary(text: str) -> Path:
    file, name = tempfile.mkstemp(prefix="edge-message-", suffix=".md")
    with os.fdopen(file, "w", encoding="utf-8") as writer:
        writer.write(text)
    return Path(name)


def _run_editor(command: Sequence[str], path: Path) -> int:
    try:
        return subprocess.run([*command, str(path)], check=False).returncode
    except OSError as error:
        hint = "Set $VISUAL or $EDITOR to an editor that is installed."
        raise UsageError(f"The editor {command[0]!r} cannot be started ({why(error)}).", hint) from None


RUNNERS = {"attach": attach, "editor": editor}
COMPLETERS = {"attach": complete_path}
