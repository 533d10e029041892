"""Commands on single messages: the selected one, or the last one that fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge_chat import format as fmt
from edge_chat.commands import Completion

if TYPE_CHECKING:
    from edge_chat.screens.chat import ChatScreen
    from edge_chat.widgets.message import MessageView

__all__ = ["COMPLETERS", "RUNNERS"]


async def copy(screen: ChatScreen, argument: str) -> None:
    if argument.startswith("code"):
        await copy_code(screen, argument[4:].strip())
    elif argument == "all":
        conversation_id = screen.saved_id()
        text = await screen.app.library.run(lambda store: store.export_markdown(conversation_id))
        screen.copy(text, "the conversation")
    elif argument:
        raise UsageError(f"/copy does not know {argument!r}.", "Use /copy, /copy code or /copy all.")
    else:
        view = _target(screen, "assistant")
        screen.copy(view.text, "the answer" if view.role == "assistant" else "the message")


def complete_copy(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """Propose what can be copied."""
    known = [Completion("code", "code", "the last code block"), Completion("all", "all", "the whole conversation")]
    return [c for c in known if c.value.startswith(typed)]


async def copy_code(screen: ChatScreen, argument: str) -> None:
    chosen = screen.chosen_view
    views = [chosen] if chosen is not None else [v for v in reversed(screen.transcript.views) if v.role == "assistant"]
    if argument:
        codes = next((v.markdown.codes for v in views if v.role == "assistant" and v.markdown.codes), [])
        if not argument.isdigit() or not 1 <= int(argument) <= len(codes):
            raise UsageError(f"There is no code block {argument!r}.", f"The answer has {fmt.plural(len(codes), 'code block')}.")
        return screen.copy(codes[int(argument) - 1], f"code block {argument} of {len(codes)}")
    for view in views:
        found = view.next_code()
        if found is not None:
            number, total, code = found
            return screen.copy(code, "the code block" if total == 1 else f"code block {number} of {total}")
    raise UsageError("There is no code block here.", "/copy copies the whole answer.")


async def table(screen: ChatScreen, argument: str) -> None:
    chosen = screen.chosen_view
    views = [chosen] if chosen is not None else [v for v in reversed(screen.transcript.views) if v.role == "assistant"]
    if argument:
        tables = next((v.markdown.tables for v in views if v.role == "assistant" and v.markdown.tables), [])
        if not argument.isdigit() or not 1 <= int(argument) <= len(tables):
            raise UsageError(f"There is no table {argument!r}.", f"The answer has {fmt.plural(len(tables), 'table')}.")
        return await screen.show_wide(tables[int(argument) - 1])
    for view in views:
        found = view.next_table()
        if found is not None:
            return await screen.show_wide(found)
    key = screen.app.keymap.display("message-previous")
    raise UsageError("There is no table here.", f"{key} selects another message.")


async def regenerate(screen: ChatScreen, argument: str) -> None:
    view = screen.chosen_view
    await screen.controller.sending.answer_again(view.node_id if view is not None else None)
    screen.composer.input.focus()


async def continue_answer(screen: ChatScreen, argument: str) -> None:
    view = screen.chosen_view
    await screen.controller.sending.resume(view.node_id if view is not None else None)
    screen.set_focus(screen.composer.input)


async def edit(screen: ChatScreen, argument: str) -> None:
    screen.controller.sending.idle_conversation()
    screen.controller.start_edit(_saved_id(_target(screen, "user")))


async def fork(screen: ChatScreen, argument: str) -> None:
    view = screen.chosen_view
    await screen.controller.fork(_saved_id(view) if view is not None else None)
    screen.refresh_sidebar()
    screen.composer.input.focus()
    screen.tell("This is a copy; the original conversation stays as it is.")


async def branch_previous(screen: ChatScreen, argument: str) -> None:
    await _step(screen, -1)


async def branch_next(screen: ChatScreen, argument: str) -> None:
    await _step(screen, 1)


async def stop(screen: ChatScreen, argument: str) -> None:
    await screen.escape()


async def message_previous(screen: ChatScreen, argument: str) -> None:
    screen.choose_message(-1)


async def message_next(screen: ChatScreen, argument: str) -> None:
    screen.choose_message(1)


async def _step(screen: ChatScreen, step: int) -> None:
    view = screen.chosen_view
    if view is None:
        view = next((v for v in reversed(screen.transcript.views) if v.branch is not None), None)
    if view is None or view.node_id is None:
        raise UsageError("No message here has another branch.", "Edit a message or regenerate an answer to make one.")
    await screen.controller.step_branch(view.node_id, step)


def _saved_id(view: MessageView) -> int:
    """Return the id of a message.

    Raises:
        UsageError: it has none yet.
    """
    if view.node_id is None:
        raise UsageError("This message is not saved yet.", "Wait until its answer is complete.")
    return view.node_id


def _target(screen: ChatScreen, role: str) -> MessageView:
    """Return the selected message, or the last one of that role."""
    view = screen.chosen_view or next((v for v in reversed(screen.transcript.views) if v.role == role), None)
    if view is None:
        raise UsageError("There is no message yet.", "Send one first.")
    return view


RUNNERS = {
    "message-previous": message_previous,
    "message-next": message_next,
    "stop": stop,
    "copy": copy,
    "copy-code": copy_code,
    "table": table,
    "regenerate": regenerate,
    "continue": continue_answer,
    "edit": edit,
    "fork": fork,
    "branch": branch_next,
    "branch-previous": branch_previous,
    "branch-next": branch_next,
}
COMPLETERS = {"copy": complete_copy}
