"""Commands on single messages: the chosen one, or the last one that they make sense for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge_chat import format as fmt
from edge_chat.commands import Command, Completion

if TYPE_CHECKING:
    from edge_chat.screens.chat import ChatScreen
    from edge_chat.widgets.message import MessageView

__all__ = ["COMMANDS"]


async def copy(screen: ChatScreen, argument: str) -> None:
    """/copy [code|all]"""
    if argument.startswith("code"):
        return await copy_code(screen, argument[4:].strip())
    if argument == "all":
        conversation_id = screen.controller.active_id
        if conversation_id is None:
            raise UsageError("This conversation is empty.", "Send a message first.")
        text = await screen.app.library.run(lambda store: store.export_markdown(conversation_id))
        screen.copy(text, "the conversation")
    elif argument:
        raise UsageError(f"/copy does not know {argument!r}.", "Use /copy, /copy code or /copy all.")
    else:
        view = _target(screen, "assistant")
        screen.copy(view.text, "the answer" if view.role == "assistant" else "the message")
    return None


def complete_copy(screen: ChatScreen, typed: str) -> Sequence[Completion]:
    """What can be copied."""
    known = [Completion("code", "code", "the last code block"), Completion("all", "all", "the whole conversation")]
    return [c for c in known if c.value.startswith(typed)]


async def copy_code(screen: ChatScreen, argument: str) -> None:
    """y, /copy code [number]"""
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


async def regenerate(screen: ChatScreen, argument: str) -> None:
    """/regenerate"""
    view = screen.chosen_view
    await screen.controller.sending.answer_again(view.node_id if view is not None else None)
    screen.composer.input.focus()


async def edit(screen: ChatScreen, argument: str) -> None:
    """/edit"""
    view = _target(screen, "user")
    if view.node_id is None:
        raise UsageError("This message is not saved yet.", "Wait a moment.")
    screen.controller.start_edit(view.node_id)


async def fork(screen: ChatScreen, argument: str) -> None:
    """/fork"""
    view = screen.chosen_view
    await screen.controller.fork(view.node_id if view is not None else None)
    screen.refresh_sidebar()
    screen.composer.input.focus()
    screen.tell("This is a copy; the conversation it was made from stays as it is.")


async def branch_previous(screen: ChatScreen, argument: str) -> None:
    """Left"""
    await _step(screen, -1)


async def branch_next(screen: ChatScreen, argument: str) -> None:
    """Right"""
    await _step(screen, 1)


async def branch(screen: ChatScreen, argument: str) -> None:
    """/branch"""
    await _step(screen, 1)


async def stop(screen: ChatScreen, argument: str) -> None:
    """Esc"""
    await screen.escape()


async def message_previous(screen: ChatScreen, argument: str) -> None:
    """Ctrl+Up"""
    screen.choose_message(-1)


async def message_next(screen: ChatScreen, argument: str) -> None:
    """Ctrl+Down"""
    screen.choose_message(1)


async def _step(screen: ChatScreen, step: int) -> None:
    view = screen.chosen_view
    if view is None:
        view = next((v for v in reversed(screen.transcript.views) if v.branch is not None), None)
    if view is None or view.node_id is None:
        raise UsageError("No message here has another branch.", "Edit a message or regenerate an answer to make one.")
    await screen.controller.step_branch(view.node_id, step)


def _target(screen: ChatScreen, role: str) -> MessageView:
    """The chosen message, or the last one of that role."""
    view = screen.chosen_view
    if view is None:
        view = next((v for v in reversed(screen.transcript.views) if v.role == role), None)
    if view is None:
        raise UsageError("There is no message yet.", "Send one first.")
    return view


COMMANDS = (
    Command(
        "message-previous",
        "Previous message",
        "Choose the message above; single keys act on it.",
        "Messages",
        message_previous,
        keys="ctrl+up,alt+up",
        is_slash=False,
    ),
    Command(
        "message-next",
        "Next message",
        "Choose the message below; after the last one, write.",
        "Messages",
        message_next,
        keys="ctrl+down,alt+down",
        is_slash=False,
    ),
    Command(
        "stop",
        "Stop",
        "Stop the reply and keep what it said; close what is open; go back to writing.",
        "Messages",
        stop,
        keys="escape",
    ),
    Command(
        "copy",
        "Copy",
        "Copy the chosen message or the last answer; `code`: its code block; `all`: everything.",
        "Messages",
        copy,
        argument="[code|all]",
        complete=complete_copy,
        keys="c",
        scope="message",
    ),
    Command(
        "copy-code",
        "Copy a code block",
        "Copy the last code block; once more takes the one before.",
        "Messages",
        copy_code,
        argument="[number]",
        keys="y",
        scope="message",
    ),
    Command(
        "regenerate",
        "Regenerate the answer",
        "Answer again, as a new branch.",
        "Messages",
        regenerate,
        aliases=("retry", "again"),
        keys="ctrl+r",
    ),
    Command(
        "edit",
        "Edit a message",
        "Say the chosen or last message of yours differently, as a new branch.",
        "Messages",
        edit,
        keys="e",
        scope="message",
    ),
    Command(
        "fork",
        "Fork the conversation",
        "Copy everything up to the chosen message into a new conversation.",
        "Messages",
        fork,
        keys="f",
        scope="message",
    ),
    Command(
        "branch",
        "Next branch",
        "Go to the next branch of the chosen or last branched message.",
        "Messages",
        branch,
        keys_of=("branch-previous", "branch-next"),
    ),
    Command(
        "branch-previous",
        "Previous branch",
        "Go to the branch before this one.",
        "Messages",
        branch_previous,
        keys="left",
        scope="message",
        is_slash=False,
    ),
    Command(
        "branch-next",
        "Next branch of the message",
        "Go to the branch after this one.",
        "Messages",
        branch_next,
        keys="right",
        scope="message",
        is_slash=False,
    ),
)
