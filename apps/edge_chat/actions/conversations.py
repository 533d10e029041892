"""Commands on whole conversations."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import StorageError, UsageError
from edge_chat import format as fmt
from edge_chat.actions.writing import complete_path
from edge_chat.attachments import resolve
from edge_chat.commands import Command, Completion

if TYPE_CHECKING:
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMMANDS"]

_MAX_IMPORT_BYTES = 256 * 1024 * 1024


async def new(screen: ChatScreen, argument: str) -> None:
    """/new"""
    await screen.controller.new()
    screen.composer.input.focus()


async def conversations(screen: ChatScreen, argument: str) -> None:
    """Show or hide the side bar."""
    screen.toggle_sidebar()


async def search(screen: ChatScreen, argument: str) -> None:
    """/search [text]"""
    screen.toggle_sidebar(show=True)
    screen.sidebar.search.value = argument
    screen.set_focus(screen.sidebar.search)


async def title(screen: ChatScreen, argument: str) -> None:
    """/title [text]"""
    conversation_id = _saved(screen)
    if argument:
        await rename(screen, conversation_id, argument)
    else:
        await ask_title(screen, conversation_id)


async def ask_title(screen: ChatScreen, conversation_id: str) -> None:
    """Ask for a title and rename."""
    from edge_chat.screens.dialogs import AskText

    info = await screen.app.library.run(lambda store: store.get(conversation_id))
    wanted = await screen.app.push_screen_wait(AskText("Title of the conversation", info.title))
    if wanted is not None:
        await rename(screen, conversation_id, wanted)


async def rename(screen: ChatScreen, conversation_id: str, wanted: str) -> None:
    """Give a conversation a title."""
    await screen.app.library.run(lambda store: store.rename(conversation_id, wanted))
    await screen.controller.reload()
    screen.refresh_sidebar()


async def delete(screen: ChatScreen, argument: str) -> None:
    """/delete"""
    await delete_one(screen, _saved(screen))


async def delete_one(screen: ChatScreen, conversation_id: str) -> None:
    """Ask, then delete a conversation; /undo brings it back as long as the app runs."""
    from edge_chat.screens.dialogs import Confirm

    if conversation_id in screen.controller.busy_ids:
        raise UsageError("A reply is being written in this conversation.", "Stop it first.")
    info = await screen.app.library.run(lambda store: store.get(conversation_id))
    name = info.title or "Untitled"
    detail = f"{fmt.plural(info.n_messages, 'message')}. /undo brings it back until you quit."
    if not await screen.app.push_screen_wait(Confirm(f"Delete “{fmt.one_line(name, 60)}”?", "Delete", detail)):
        return
    if conversation_id in screen.controller.busy_ids:  # what waited in it may have been sent meanwhile
        raise UsageError("A reply is being written in this conversation.", "Stop it first.")
    await screen.controller.forget(conversation_id)
    await screen.app.delete_conversation(conversation_id)
    screen.refresh_sidebar()
    screen.tell(f"Deleted “{fmt.one_line(name, 40)}”. /undo brings it back.")


async def list_rename(screen: ChatScreen, argument: str) -> None:
    """Ctrl+T in the list."""
    chosen = screen.sidebar.listing.chosen_id
    if chosen is not None:
        await ask_title(screen, chosen)


async def list_delete(screen: ChatScreen, argument: str) -> None:
    """Delete in the list."""
    chosen = screen.sidebar.listing.chosen_id
    if chosen is not None:
        await delete_one(screen, chosen)


async def undo(screen: ChatScreen, argument: str) -> None:
    """/undo"""
    info = await screen.app.undelete_conversation()
    screen.refresh_sidebar()
    await screen.controller.open(info.id)
    screen.tell(f"“{fmt.one_line(info.title or 'Untitled', 40)}” is back.")


async def save(screen: ChatScreen, argument: str) -> None:
    """/save [md|json] [path]"""
    conversation_id = _saved(screen)
    kind, path_text = split_format(argument)
    page = await screen.app.library.page(conversation_id)
    path = resolve(path_text or f"{file_name(page.info.title)}.{kind}", screen.composer.cwd)
    if path.is_dir():
        path = path / f"{file_name(page.info.title)}.{kind}"

    def write() -> None:
        text = store.export_markdown(conversation_id) if kind == "md" else store.export_json(conversation_id)
        try:
            # "x": what is there already is never overwritten.
            with open(path, "x", encoding="utf-8", opener=_private) as file:  # Path.open takes no opener
                file.write(text)
        except FileExistsError:
            raise UsageError(f"{path} exists already.", f"Name another file: /save {kind} other.{kind}") from None
        except OSError as error:
            raise StorageError(f"{path} cannot be written ({error}).", "Name another place.") from error

    store = await screen.app.library.store()
    await asyncio.to_thread(write)
    what = "the messages on the screen" if kind == "md" else "all branches"
    screen.tell(f"Saved {what} to {path}.")


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)


def split_format(argument: str) -> tuple[str, str]:
    """Read "[md|json] [path]": the format, from the word or from the path's ending, and the path or ""."""
    first, _, rest = argument.partition(" ")
    if first in ("md", "json", "markdown"):
        return ("json" if first == "json" else "md"), rest.strip()
    return ("json" if argument.endswith(".json") else "md"), argument.strip()


def file_name(title: str) -> str:
    """A title as a file name: letters and digits, hyphens between them."""
    return re.sub(r"\W+", "-", title.lower()).strip("-_")[:50] or "conversation"


def complete_save(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Formats first, then paths."""
    formats = [
        Completion("md", "md", "the messages on the screen, as Markdown"),
        Completion("json", "json", "all branches"),
    ]
    return [c for c in formats if c.value.startswith(typed)] if " " not in typed else []


async def import_file(screen: ChatScreen, argument: str) -> None:
    """/import path"""
    if not argument:
        raise UsageError("Which file?", "Type the path of a file that /save wrote.")
    path = resolve(argument.strip("\"'"), screen.composer.cwd)

    def read() -> bytes:
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_IMPORT_BYTES + 1)
        except OSError as error:
            raise StorageError(f"{path} cannot be read ({error}).", "Check the path.") from error
        if len(data) > _MAX_IMPORT_BYTES:
            raise UsageError(f"{path} is larger than {fmt.n_bytes(_MAX_IMPORT_BYTES)}.", "It is no saved conversation.")
        return data

    data = await asyncio.to_thread(read)
    is_json = data.lstrip()[:1] == b"{"
    info = await screen.app.library.run(lambda store: store.import_json(data) if is_json else store.import_markdown(data))
    await screen.controller.open(info.id)
    screen.refresh_sidebar()
    screen.tell(f"Imported {fmt.plural(info.n_messages, 'message')} from {Path(path).name}.")


async def system(screen: ChatScreen, argument: str) -> None:
    """/system [text]"""
    from edge_chat.screens.dialogs import EditText

    wanted: str | None = argument
    if not argument:
        page = screen.controller.page
        now = page.info.system if page is not None else screen.app.settings.system
        note = "What the model is told before the first message, in this conversation. Empty leaves it to the model."
        wanted = await screen.app.push_screen_wait(EditText("System prompt", now, note))
    if wanted is None:
        return
    text = wanted
    conversation_id = await screen.controller.ensure_saved()
    await screen.app.library.run(lambda store: store.set_system(conversation_id, text))
    await screen.controller.reload()
    screen.tell("The system prompt is changed; it holds from the next message on.")


def _saved(screen: ChatScreen) -> str:
    if screen.controller.active_id is None:
        raise UsageError("This conversation is empty.", "Send a message first.")
    return screen.controller.active_id


COMMANDS = (
    Command("new", "New conversation", "Start a new conversation.", "Conversation", new, aliases=("clear",), keys="ctrl+n"),
    Command(
        "conversations",
        "Conversations",
        "Show or hide the list of conversations.",
        "Conversation",
        conversations,
        aliases=("sidebar", "list"),
        keys="ctrl+o,f2",
    ),
    Command(
        "search",
        "Search conversations",
        "Search titles, messages and attachments of all conversations.",
        "Conversation",
        search,
        argument="[text]",
        keys="ctrl+f",
        example='/search "context window"',
    ),
    Command(
        "title",
        "Rename the conversation",
        "Give this conversation a title; an empty one is made from the first message.",
        "Conversation",
        title,
        argument="[text]",
        aliases=("rename",),
    ),
    Command(
        "system",
        "System prompt",
        "Show or change what the model is told before the first message.",
        "Conversation",
        system,
        argument="[text]",
        example="/system Answer in one sentence.",
    ),
    Command(
        "save",
        "Save to a file",
        "Save the conversation as Markdown (what is on the screen) or JSON (all branches). Both can be imported again.",
        "Conversation",
        save,
        argument="[md|json] [path]",
        complete=complete_save,
        aliases=("export",),
        example="/save md talk.md",
    ),
    Command(
        "import",
        "Import from a file",
        "Add a conversation that /save wrote.",
        "Conversation",
        import_file,
        argument="path",
        needs_argument=True,
        complete=complete_path,
    ),
    Command("delete", "Delete the conversation", "Delete this conversation, after a question.", "Conversation", delete),
    Command("undo", "Undo deleting", "Bring back the conversation that was deleted last.", "Conversation", undo),
    Command(
        "list-rename",
        "Rename",
        "Rename the marked conversation.",
        "Conversation",
        list_rename,
        keys="ctrl+t",
        scope="sidebar",
        is_slash=False,
    ),
    Command(
        "list-delete",
        "Delete",
        "Delete the marked conversation, after a question.",
        "Conversation",
        list_delete,
        keys="delete,ctrl+d",
        scope="sidebar",
        is_slash=False,
    ),
)
