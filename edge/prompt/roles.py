"""Fits a conversation to a chat template. Many refuse a system prompt, tool results or two messages of one role in a row.

A template is probed once, with small conversations. So a message is always treated the same way, whatever follows it, and the
tokens of a growing conversation keep their prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from edge.errors import TemplateError
from edge.prompt.rows import PLAIN, ToolStyle
from edge.types import Message, ToolCall

__all__ = ["NOTHING", "Abilities", "adapt", "probe"]


@dataclass(frozen=True, slots=True)
class Abilities:
    """Messages that a template accepts.

    Attributes:
        system: a system prompt, which it also shows.
        late_system: a system message after the first message.
        tool: a message of the role "tool", also without a call before it.
        repeats: two messages of one role in a row.
        assistant_first: a conversation that the assistant opens.
    """

    system: bool
    late_system: bool
    tool: bool
    repeats: bool
    assistant_first: bool


NOTHING = Abilities(*[False] * len(fields(Abilities)))
"""Of a template that takes the user and the assistant in turn, and nothing else."""


def probe(render: Callable[[Sequence[Message]], str]) -> Abilities:
    """Find out what a template accepts.

    Args:
        render: the template, with generation prompt. Raises TemplateError where it refuses.
    """

    def accepts(*roles: str) -> bool:
        # Words that no template contains, so that a dropped message is noticed.
        messages = [Message(role, f"qwib{number}vex") for number, role in enumerate(roles)]  # type: ignore[arg-type]
        try:
            text = render(messages)
        except TemplateError:
            return False
        return all(message.content in text for message in messages)

    system = accepts("system", "user")
    return Abilities(
        system=system,
        late_system=accepts(*["system"] * system, "user", "assistant", "system", "user"),
        tool=accepts("user", "assistant", "tool", "assistant", "user"),
        repeats=accepts("user", "user", "assistant", "assistant", "user"),
        assistant_first=accepts("assistant", "user"),
    )


def adapt(
    messages: Sequence[Message],
    abilities: Abilities = NOTHING,
    *,
    style: ToolStyle = PLAIN,
    write: Callable[[Sequence[ToolCall]], str] | None = None,
) -> tuple[list[Message], list[str]]:
    """Rewrite the messages that a template does not accept.

    Args:
        messages: the conversation.
        abilities: of the template; the default is nothing but user and assistant in turn.
        style: how it takes tool calls.
        write: writes calls as the model does, where the template does not; None leaves them out.

    Returns:
        (the messages to render, notices for the user).
    """
    notices: list[str] = []
    adapted = _name_results(messages)
    if not style.arguments:
        adapted = _write_calls(adapted, write)
    elif not style.many:
        adapted = _one_call_each(adapted)
    has_calls = any(message.tool_calls for message in adapted)
    if not (abilities.tool or has_calls):
        adapted = _tools_as_user(adapted, notices)
    adapted = _place_systems(adapted, abilities, notices)
    if not abilities.assistant_first:
        first = next((n for n, message in enumerate(adapted) if message.role != "system"), None)
        if first is not None and adapted[first].role == "assistant":
            adapted.insert(first, Message("user", ""))
            notices.append("This model cannot open a conversation; an empty message was put before its first one.")
    if not abilities.repeats:
        adapted = _merge_repeats(adapted, notices)
    return adapted, notices


def _name_results(messages: Sequence[Message]) -> list[Message]:
    """Return the messages, each result with the name of the tool that was called."""
    names = {call.id: call.name for message in messages for call in message.tool_calls if call.id}
    return [
        replace(message, name=names[message.tool_call_id])
        if message.role == "tool" and not message.name and message.tool_call_id in names
        else message
        for message in messages
    ]


def _write_calls(messages: Sequence[Message], write: Callable[[Sequence[ToolCall]], str] | None) -> list[Message]:
    written = []
    for message in messages:
        if message.tool_calls:
            texts = [message.content, write(message.tool_calls) if write is not None else ""]
            message = replace(message, content="\n".join(text for text in texts if text), tool_calls=())
        written.append(message)
    return written


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Put each call of a message with several into a message of its own, followed by its result."""
    split: list[Message] = []
    results: Mapping[str, Message] = {}
    for n, message in enumerate(messages):
        if message.role == "tool" and results.get(message.tool_call_id or "") is message:
            continue
        if len(message.tool_calls) < 2:
            split.append(message)
            continue
        end = next((k for k in range(n + 1, len(messages)) if messages[k].role != "tool"), len(messages))
        results = {one.tool_call_id: one for one in messages[n + 1 : end] if one.tool_call_id}
        for k, call in enumerate(message.tool_calls):
            split.append(replace(message, tool_calls=(call,)) if k == 0 else Message("assistant", "", tool_calls=(call,)))
            if call.id in results:
                split.append(results[call.id])
    return split


def _tools_as_user(messages: list[Message], notices: list[str]) -> list[Message]:
    if not any(message.role == "tool" for message in messages):
        return messages
    notices.append("This model has no role for tool results; they are given to it as messages of the user.")
    return [
        Message("user", f"Result of {message.name or 'the tool'}:\n{message.content}") if message.role == "tool" else message
        for message in messages
    ]


def _place_systems(messages: list[Message], abilities: Abilities, notices: list[str]) -> list[Message]:
    """Move system messages to where they are accepted: to the start, or in front of the user's next message."""
    placed: list[Message] = []
    waiting: list[str] = []
    moved = False
    for message in messages:
        is_first = not placed and not waiting
        if message.role == "system" and not (abilities.system and (is_first or abilities.late_system)):
            moved = True
            if abilities.system and len(placed) == 1 and placed[0].role == "system":
                placed[0] = replace(placed[0], content=f"{placed[0].content}\n\n{message.content}")
            else:
                waiting.append(message.content)
        elif waiting and message.role == "user":
            placed.append(replace(message, content="\n\n".join([*waiting, message.content])))
            waiting = []
        elif waiting and message.role == "assistant":
            placed += [Message("user", "\n\n".join(waiting)), message]
            waiting = []
        else:
            placed.append(message)
    if waiting:
        placed.append(Message("user", "\n\n".join(waiting)))
    if moved and not abilities.system:
        notices.append("This model has no role for a system prompt; it is put in front of the user's message.")
    elif moved:
        notices.append("This model takes a system prompt at the start only; later ones are put where it reads them.")
    return placed


def _merge_repeats(messages: list[Message], notices: list[str]) -> list[Message]:
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role and message.role != "tool":
            last = merged[-1]
            merged[-1] = replace(
                last,
                content="\n\n".join(
                    [last.content, message.content] if last.content or not last.tool_calls else [message.content]
                ),
                tool_calls=last.tool_calls + message.tool_calls,
                reasoning="\n\n".join(text for text in (last.reasoning, message.reasoning) if text),
            )
        else:
            merged.append(message)
    if len(merged) < len(messages):
        notices.append("This model wants user and assistant in turn; messages in a row are joined into one.")
    return merged
