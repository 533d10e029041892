"""Checks of the arguments that a program gives to an assistant and its conversations.

They raise a UsageError that names the argument, before anything is stored or started.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast, get_args

from edge.constraint import Constraint
from edge.conversation.tree import Attachment, Node
from edge.errors import UsageError
from edge.grounding.choose import Source
from edge.messages import read_message
from edge.names import CACHE_HINTS, PRIORITIES, is_client_namespace
from edge.prompt.options import PromptOptions, ToolFormat
from edge.request import Request, RequestOptions
from edge.structured.shapes import Shape, shape_of, shape_of_constraint
from edge.types import Message, Sampling, SamplingOptions, Tool, kind_of

if TYPE_CHECKING:
    from edge.grounding.choose import Docs
    from edge.tiers.base import Consent
    from edge.tool_runner import Approve

__all__ = [
    "TOOL_FORMATS",
    "asked",
    "check_approve",
    "check_attachments",
    "check_choice",
    "check_choices",
    "check_consent",
    "check_count",
    "check_docs",
    "check_history",
    "check_message",
    "check_messages",
    "check_namespace",
    "check_node_id",
    "check_number",
    "check_sampling",
    "check_shape",
    "check_text",
    "check_timeout",
    "check_tool_choice",
    "check_tools",
]

T = TypeVar("T")
TOOL_FORMATS: tuple[ToolFormat, ...] = get_args(ToolFormat)


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
    """Return the messages of a prompt: a text is one of the user, and dicts are read."""
    if isinstance(prompt, str):
        check_message(prompt, ())
        return [Message("user", prompt)]
    messages = check_history("A prompt is a text, or", prompt)
    if not messages:
        raise UsageError("There is no message to answer.", "Give a text or at least one message.")
    return messages


def check_history(what: str, messages: object) -> list[Message]:
    """Return messages: those of a conversation as they are, and dicts read."""
    hint = 'For example: [{"role": "user", "content": "hi"}], or [edge.Message("user", "hi")]'
    if isinstance(messages, str | bytes | Message | Node | Mapping) or not isinstance(messages, Iterable):
        raise UsageError(f"{what} a list of messages, not {kind_of(messages)}.", hint)
    found = []
    for one in messages:
        if not isinstance(one, Message | Node | Mapping):
            raise UsageError(f"{what} a list of messages, and {kind_of(one)} is none.", hint)
        found.append(read_message(one) if isinstance(one, Mapping) else one.message() if isinstance(one, Node) else one)
    return found


def check_timeout(timeout_s: object) -> None:
    if timeout_s is None or (isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool) and timeout_s > 0):
        return
    raise UsageError(f"timeout_s is a number of seconds above 0, not {kind_of(timeout_s)}.", "None sets no limit.")


def check_sampling(sampling: object) -> Sampling | None:
    if sampling is not None and not isinstance(sampling, Sampling):
        raise UsageError(f"sampling is an edge.Sampling, not {kind_of(sampling)}.", "For example: edge.Sampling(max_tokens=64)")
    return sampling


def asked(sampling: Sampling | None, options: RequestOptions) -> Request:
    """Return what a call says, still without a prompt.

    Args:
        sampling: as in `Conversation.send`.
        options: its keywords.

    Raises:
        UsageError: a value is wrong, or there is no such option.
    """
    unknown = next((name for name in options if name not in RequestOptions.__annotations__), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, RequestOptions.__annotations__, n=1)
        raise UsageError(f"There is no option {unknown!r}.", f"Did you mean {near[0]}?" if near else "See edge.RequestOptions.")
    fields = {name: value for name, value in options.items() if name in SamplingOptions.__annotations__}
    chosen = Sampling(**fields).over(check_sampling(sampling) or Sampling())  # type: ignore[arg-type]
    check_timeout(timeout_s := options.get("timeout_s"))
    shape = check_shape(options.get("schema"), options.get("constraint"))
    return Request(
        sampling=chosen,
        timeout_s=timeout_s,
        cache=check_choice("cache", options.get("cache"), CACHE_HINTS),
        priority=check_choice("priority", options.get("priority"), PRIORITIES) or "interactive",
        n_logprobs=check_count("logprobs", options.get("logprobs")),
        constraint=shape.constraint if shape is not None else None,
        shape=shape,
        shows_schema=bool(options.get("show_schema", True)),
        options=PromptOptions(
            check_tools(options.get("tools")),
            check_choice("tool_format", options.get("tool_format"), TOOL_FORMATS) or "template",
            think=check_choice("think", options.get("think"), (True, False)),
            tool_choice=check_tool_choice(options.get("tool_choice")),
        ),
        inherits_tools=options.get("tools") is None,
        approve=check_approve(options.get("approve")),
        max_thinking=check_count("max_thinking", options.get("max_thinking")),
        lora=options.get("lora"),
        consent=check_consent(options.get("consent")),
        escalate=check_choice("escalate", options.get("escalate"), (True, False)),
        docs=check_docs(options.get("docs")),
    )


def check_shape(schema: object, constraint: object) -> Shape | None:
    """Return what a reply has to be; None is free text."""
    if constraint is None:
        return None if schema is None else shape_of(schema)
    if not isinstance(constraint, Constraint):
        hint = "For example: edge.Constraint.regex('[a-z]+')"
        raise UsageError(f"constraint is an edge.Constraint, not {kind_of(constraint)}.", hint)
    if schema is not None:
        raise UsageError("schema and constraint exclude each other.", "Give one of them.")
    return shape_of_constraint(constraint)


def check_docs(docs: object) -> Docs | None:
    """Return collections: one, or a list; they are not opened."""
    if docs is None or isinstance(docs, str | Source):
        return docs
    if isinstance(docs, Sequence) and not isinstance(docs, bytes) and all(isinstance(one, str | Source) for one in docs):
        return cast("Docs", docs)
    hint = 'For example: docs="manual", or docs=["manual", "faq"]'
    raise UsageError(f"docs names collections of documents, not {kind_of(docs)}.", hint)


def check_tools(tools: object) -> tuple[Tool, ...]:
    """Return tools, functions among them as tools."""
    if tools is None:
        return ()
    if isinstance(tools, str | bytes | Mapping | Tool) or not isinstance(tools, Iterable):
        raise UsageError(f"tools is a list of edge.Tool or functions, not {kind_of(tools)}.", "For example: tools=[weather]")
    from edge.functions import to_tool

    found = tuple(to_tool(one) for one in tools)
    names = [tool.name for tool in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"Two tools have the name {twice!r}.", "Rename one: @edge.tool(name=...)")
    return found


def check_tool_choice(choice: object) -> str:
    """Return which tool has to be called."""
    if choice is None or (isinstance(choice, str) and choice):
        return choice or "auto"
    raise UsageError(f'tool_choice is "auto", "required" or the name of a tool, not {kind_of(choice)}.', "Pass a str.")


def check_approve(approve: object) -> Approve | None:
    """Return who approves tool calls."""
    if approve is None or approve == "always" or callable(approve):
        return cast("Approve | None", approve)
    hint = "Pass a function that takes a call and returns True or False."
    raise UsageError(f'approve is a function or "always", not {kind_of(approve)}.', hint)


def check_consent(consent: object) -> Consent | None:
    """Return who allows that text leaves this device."""
    if consent is None or consent == "always" or callable(consent):
        return cast("Consent | None", consent)
    hint = "Pass a function that takes an edge.tiers.Outgoing and returns True or False."
    raise UsageError(f'consent is a function or "always", not {kind_of(consent)}.', hint)


def check_choice(name: str, value: T | None, choices: Sequence[T]) -> T | None:
    """Return one of these values, or None."""
    if value is not None and value not in choices:
        raise UsageError(f"{name} cannot be {value!r}.", f"Use {', '.join(map(repr, choices))} or None.")
    return value


def check_count(name: str, value: object) -> int | None:
    """Return a number of things, or None."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise UsageError(f"{name} is a whole number from 0 up, not {kind_of(value)}.", "None turns it off.")


def check_number(name: str, value: object) -> int:
    """Return a number of things, at least one."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise UsageError(f"{name} is a whole number from 1 up, not {kind_of(value)}.", f"For example: {name}=3")


def check_choices(choices: object) -> None:
    """Check the answers to choose from."""
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence) or not choices:
        raise UsageError(f"choices is a list of answers, not {kind_of(choices)}.", 'For example: ["yes", "no"]')
    for choice in choices:
        if not check_text("An answer to choose", choice):
            raise UsageError("An answer to choose is empty.", "Leave it out.")
    if len(set(choices)) < len(choices):
        raise UsageError("Two answers to choose from are the same.", "Leave one of them out.")
