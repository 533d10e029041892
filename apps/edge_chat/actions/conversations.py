"""Commands on conversations."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.conversation.files import file_name
from edge.conversation.imports import import_file as import_conversations
from edge.errors import StorageError, UsageError
from edge.files import write_private
from edge_chat import format as fmt
from edge_chat.actions.writing import complete_path
from edge_chat.attachments import resolve, typed_paths, why
from edge_chat.base import private_opener
from edge_chat.commands import Completion

if TYPE_CHECKING:
    from edge_chat.screens.chat import ChatScreen

__all__ = ["COMPLETERS", "RUNNERS"]

_OTHER_FORMATS = {"csv", "doc", "docx", "epub", "htm", "html", "odt", "pdf", "rtf", "tex", "xml", "yaml", "yml"}


async def new(screen: ChatScreen, argument: str) -> None:
    screen.sidebar.search.value = ""  # the list shows the new one once it has a message
    await screen.controller.new()
    screen.composer.input.focus()


async def conversations(screen: ChatScreen, argument: str) -> None:
    screen.toggle_sidebar()


async def search(screen: ChatScreen, argument: str) -> None:
    screen.toggle_sidebar(show=True)
    screen.sidebar.search.value = argument
    screen.set_focus(screen.sidebar.search)


async def title(screen: ChatScreen, argument: str) -> None:
    if argument:
        await rename(screen, screen.saved_id(), argument)
    else:
        await ask_title(screen, screen.saved_id())


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
    await screen.controller.sending.reload()
    screen.refresh_sidebar()


async def delete(screen: ChatScreen, argument: str) -> None:
    await delete_one(screen, screen.saved_id())


async def delete_one(screen: ChatScreen, conversation_id: str) -> None:
    """Delete a conversation, after asking; /undo restores it while the app runs."""
    from edge_chat.screens.dialogs import Confirm

    def refuse_busy() -> None:
        if conversation_id in screen.controller.busy_ids:
            raise UsageError("A reply is being generated in this conversation.", "Stop it first.")

    refuse_busy()
    info = await screen.app.library.run(lambda store: store.get(conversation_id))
    name = info.title or "Untitled"
    detail = f"{fmt.plural(info.n_messages, 'message')}. /undo restores it until you quit."
    if not await screen.app.push_screen_wait(Confirm(f"Delete “{fmt.one_line(name, 60)}”?", "Delete", detail)):
        return
    refuse_busy()  # a waiting message may have been sent meanwhile
    await screen.controller.delete(conversation_id)
    screen.refresh_sidebar()
    screen.tell(f"Deleted “{fmt.one_line(name, 40)}”. /undo restores it.")


async def list_rename(screen: ChatScreen, argument: str) -> None:
    chosen = screen.sidebar.listing.chosen_id
    if chosen is not None:
        await ask_title(screen, chosen)


async def list_delete(screen: ChatScreen, argument: str) -> None:
    chosen = screen.sidebar.listing.chosen_id
    if chosen is not None:
        await delete_one(screen, chosen)


async def undo(screen: ChatScreen, argument: str) -> None:
    info = await screen.controller.undelete()
    screen.refresh_sidebar()
    await screen.controller.open(info.id)
    screen.tell(f"“{fmt.one_line(info.title or 'Untitled', 40)}” is restored.")


async def save(screen: ChatScreen, argument: str) -> None:
    conversation_id = screen.saved_id()
    kind, path_text = split_format(argument)
    page = await screen.app.library.page(conversation_id)
    default = f"{file_name(page.info.title)}.{kind}"
    cwd = screen.composer.cwd
    path = resolve(typed_paths(path_text, cwd)[0] if path_text else default, cwd)
    is_named = bool(path_text) and not path.is_dir()
    if is_named and not path.suffix:
        path = path.with_name(f"{path.name}.{kind}")
    elif path.is_dir():
        path = path / default

    def write() -> Path:
        text = store.export_markdown(conversation_id) if kind == "md" else store.export_json(conversation_id)
        for candidate in [path] if is_named else _numbered(path):
            try:
                # "x" never overwrites a file, except what was saved here before and not changed since.
                if screen.app.is_own_file(candidate, conversation_id):
                    write_private(candidate, text.encode())
                else:
                    with open(candidate, "x", encoding="utf-8", opener=private_opener) as file:  # Path.open takes no opener
                        file.write(text)
            except FileExistsError:
                continue
            except OSError as error:
                raise StorageError(f"{candidate} cannot be written ({why(error)}).", "Name another place.") from error
            screen.app.own_files[candidate] = (conversation_id, text)
            return candidate
        raise UsageError(f"{path} already exists.", f"Name another file: /save {kind} other.{kind}")

    store = await screen.app.library.store()
    written = await asyncio.to_thread(write)
    what = "the messages on the screen" if kind == "md" else "all branches"
    screen.tell(f"Saved {what} to {written}.")


def _numbered(path: Path) -> Iterator[Path]:
    """Yield names for a file: "talk.md", then "talk-2.md" and so on."""
    yield path
    for number in range(2, 1000):
        yield path.with_name(f"{path.stem}-{number}{path.suffix}")


def split_format(argument: str) -> tuple[str, str]:
    """Split "[md|json] [path]" into the format, from the word or the path's ending, and the path or "".

    Raises:
        UsageError: it asks for a format that edge does not write.
    """
    first, _, rest = argument.partition(" ")
    if first.lower() in ("md", "json", "markdown"):
        return ("json" if first.lower() == "json" else "md"), rest.strip()
    named = argument.strip()
    ending = named.rpartition(".")[2].lower()
    if ending in _OTHER_FORMATS:
        raise UsageError(f"A conversation cannot be saved as {ending}.", "Formats are md and json: /save md talk.md")
    return ("json" if ending == "json" and "." in named else "md"), named


def complete_save(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose the formats."""
    formats = [
        Completion("md", "md", "the messages on the screen, as Markdown"),
        Completion("json", "json", "all branches"),
    ]
    return [c for c in formats if c.value.startswith(typed)] if " " not in typed else []


async def import_file(screen: ChatScreen, argument: str) -> None:
    if not argument:
        raise UsageError("Which file?", "Type the path of a file that /save wrote, or of an export of ChatGPT or llm.")
    path = resolve(typed_paths(argument, screen.composer.cwd)[0], screen.composer.cwd)
    report = await screen.app.library.run(lambda store: import_conversations(store, path))
    if len(report.found) == 1:
        await screen.controller.open(report.found[0].conversation.id)
    screen.refresh_sidebar()
    problems = f" {fmt.plural(len(report.problems), 'problem')}: {report.problems[0]}" if report.problems else ""
    screen.tell(f"{path.name}: {report.summary()}{problems}")


async def system(screen: ChatScreen, argument: str) -> None:
    from edge_chat.screens.dialogs import EditText

    wanted: str | None = argument
    if not argument:
        page = screen.controller.page
        now = page.info.system if page is not None else screen.app.settings.system
        note = (
            "The model reads this before the first message of this conversation. Leave it empty for the model's default, or "
            "write none for none at all."
        )
        wanted = await screen.app.push_screen_wait(EditText("System prompt", now, note))
    if wanted is None:
        return
    await set_system(screen, wanted, "The system prompt is changed")


async def set_system(screen: ChatScreen, text: str, what: str) -> None:
    """Change the system prompt of this conversation, and say what that means. `what` begins the sentence."""
    conversation_id = await screen.controller.ensure_saved()
    await screen.app.library.run(lambda store: store.set_system(conversation_id, text))
    await screen.controller.sending.reload()
    page = screen.controller.page
    has_said = page is not None and bool(page.nodes)
    cost = " The KV cache begins with it, so the conversation is processed again then." if has_said else ""
    screen.tell(f"{what}, from the next message on.{cost}")


RUNNERS = {
    "new": new,
    "conversations": conversations,
    "search": search,
    "title": title,
    "system": system,
    "save": save,
    "import": import_file,
    "delete": delete,
    "undo": undo,
    "list-rename": list_rename,
    "list-delete": list_delete,
}
COMPLETERS = {"save": complete_save, "import": complete_path}
