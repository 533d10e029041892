"""Checks of the arguments that a program gives to an assistant and its conversations.

They raise a UsageError that names the argument, before anything is stored or started.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from edge.conversation.tree import Attachment
from edge.errors import UsageError
from edge.names import is_client_namespace
from edge.types import Message, Sampling, SamplingOptions, kind_of

__all__ = [
    "check_attachments",
    "check_message",
    "check_messages",
    "check_namespace",
    "check_node_id",
    "check_sampling",
    "check_text",
    "check_timeout",
    "given",
]


def check_text(name: str, text: object, *, is_optional: bool = False) -> bool:
    """Return whether there is text, which must be a str, or None if that is allowed."""
    if not isinstance(text, str) and not (is_optional and text is None):
        raise UsageError(f"{name} is text, not {kind_of(text)}.", "Pass a str.")
    return bool(text)


def check_namespace(namespace: object) -> None:
    if namespace is None or namespace == "" or (isinstance(namespace, str) and is_client_namespace(namespace)):
        return
    raise UsageError(
        f"{str(namespace)[:80]!r} cannot be a namespace of the KV cache.",
        'Use up to 64 letters, digits and _ . @ + -, but not "answers".',
    )


def check_node_id(node_id: object, *, is_optional: bool = False) -> None:
    if not isinstance(node_id, int) and not (is_optional and node_id is None):
        raise UsageError(f"The id of a message is a number, not {kind_of(node_id)}.", "Use node.id of conversation.messages.")


def check_message(text: object, attachments: object) -> None:
    has_text = check_text("A message", text) and bool(str(text).strip())
    check_attachments(attachments)
    if not has_text and not attachments:
        raise UsageError("The message is empty.", "Type something, or attach a file.")


def check_attachments(attachments: object) -> None:
    if not isinstance(attachments, Sequence) or not all(isinstance(one, Attachment) for one in attachments):
        raise UsageError(
            f"attachments is a list of edge.Attachment, not {kind_of(attachments)}.",
            'For example: [edge.Attachment("a.txt", Path("a.txt").read_text())]',
        )


def check_messages(prompt: object) -> list[Message]:
    """Return the messages of a prompt, a text being one of the user."""
    if isinstance(prompt, str):
        check_message(prompt, ())
        return [Message("user", prompt)]
    hint = 'For example: [edge.Message("user", "hi")]'
    if isinstance(prompt, Message | Mapping | bytes) or not isinstance(prompt, Iterable):
        raise UsageError(f"A prompt is a text or a list of edge.Message, not {kind_of(prompt)}.", hint)
    messages = list(prompt)
    for message in messages:
        if not isinstance(message, Message):
            raise UsageError(f"A prompt is made of edge.Message, not {kind_of(message)}.", hint)
    if not messages:
        raise UsageError("There is no message to answer.", "Give a text or at least one message.")
    return messages


def check_timeout(timeout_s: object) -> None:
    if timeout_s is None or (isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool) and timeout_s > 0):
        return
    raise UsageError(f"timeout_s is a number of seconds above 0, not {kind_of(timeout_s)}.", "None sets no limit.")


def check_sampling(sampling: object) -> Sampling | None:
    if sampling is not None and not isinstance(sampling, Sampling):
        raise UsageError(f"sampling is an edge.Sampling, not {kind_of(sampling)}.", "For example: edge.Sampling(max_tokens=64)")
    return sampling


def given(sampling: Sampling | None, options: SamplingOptions) -> Sampling:
    """Return everything that a call says about sampling.

    Raises:
        UsageError: a value is wrong, or there is no such option.
    """
    unknown = next((name for name in options if name not in SamplingOptions.__annotations__), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, SamplingOptions.__annotations__, n=1)
        raise UsageError(f"There is no option {unknown!r}.", f"Did you mean {near[0]}?" if near else "See edge.Sampling.")
    own = Sampling(**options)  # type: ignore[arg-type]
    return own.over(check_sampling(sampling) or Sampling())
