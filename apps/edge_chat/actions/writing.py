"""Commands of the composer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge.errors import StorageError, UsageError
from edge_chat.attachments import FileIndex, why
from edge_chat.commands import Completion
from edge_chat.editor import Editor, editor_command

if TYPE_CHECKING:
    from edge_chat.base import BaseApp
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMPLETERS", "RUNNERS", "suspended"]


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


async def editor(screen: ChatScreen, argument: str) -> None:
    from textual.app import SuspendNotSupported

    app, composer = screen.app, screen.composer
    command = editor_command(os.environ)
    app.editor = Editor(command, composer.text)
    try:
        with suspended(app):
            edited = await asyncio.to_thread(app.editor.run)
        if edited.text is not None:
            composer.load(edited.text, composer.attachments)
    except SuspendNotSupported:
        raise UsageError("This terminal cannot run an editor.", "Write the message here.") from None
    except UnicodeDecodeError:
        raise UsageError("The editor wrote a text that is not UTF-8.", "The message is unchanged; save it as UTF-8.") from None
    except OSError as error:
        raise StorageError(f"The message could not be passed to the editor ({why(error)}).", "Check the disk.") from error
    finally:
        app.editor.closed.set()
        app.editor = None
    app.refresh(layout=True)
    if edited.left is not None:
        app.left_by_editor = str(edited.left)
        raise UsageError("The editor was stopped.", f"Text that it had not saved may be in {edited.left}.")
    if edited.text is None:
        raise UsageError(f"{command[0]} ended with an error ({edited.code}).", "The message is unchanged.")
    composer.input.focus()


@contextmanager
def suspended(app: BaseApp) -> Iterator[None]:
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


RUNNERS = {"attach": attach, "editor": editor}
COMPLETERS = {"attach": complete_path}
