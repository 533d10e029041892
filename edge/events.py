"""Typed events of a reply, in the order in which they happen. `Reply.events` yields them.

    for event in conversation.send("hi").events():
        match event:
            case events.Text(text): print(text, end="")
            case events.Progress(done, total): bar.update(done, total)

Every event has a `kind`, by which type checkers tell them apart, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from edge.citations import Citation
from edge.types import TokenLogprob
from edge.types import ToolCall as Call

__all__ = ["Notice", "Passages", "Progress", "Reasoning", "ReplyEvent", "Text", "ToolCall", "ToolResult"]


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer. Those of a reply, joined, are its text.

    Attributes:
        text: whole characters, and no part of a stop text; "" where an event only has logprobs.
        logprobs: of the tokens that begin in this piece, if they were asked for.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    kind: Literal["text"] = field(default="text", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of what the model thinks before it answers. It is no part of the text.

    Attributes:
        text: whole characters.
        logprobs: as of `Text`.
    """

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    kind: Literal["reasoning"] = field(default="reasoning", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that the model wrote.

    Attributes:
        call: the call; its id names it in `ToolResult`.
    """

    call: Call
    kind: Literal["tool_call"] = field(default="tool_call", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The result of a call that edge ran, as the model reads it.

    Attributes:
        call: the call.
        text: of the result, or of what went wrong.
        is_error: the tool was not found, was refused, or failed.
    """

    call: Call
    text: str
    is_error: bool = False
    kind: Literal["tool_result"] = field(default="tool_result", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Passages:
    """Passages of documents were chosen for the prompt, which is processed next.

    Attributes:
        citations: the passages, by number; none if nothing was found.
        searched: names of the collections.
    """

    citations: tuple[Citation, ...]
    searched: tuple[str, ...] = ()
    kind: Literal["passages"] = field(default="passages", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Notice:
    """What the user should know about the reply.

    Attributes:
        text: a sentence or two.
    """

    text: str
    kind: Literal["notice"] = field(default="notice", init=False, repr=False)


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of the prompt.

    Attributes:
        done: tokens of the prompt in the KV cache, reused ones included.
        total: tokens of the prompt.
    """

    done: int
    total: int
    kind: Literal["progress"] = field(default="progress", init=False, repr=False)


ReplyEvent: TypeAlias = Text | Reasoning | ToolCall | ToolResult | Passages | Notice | Progress
"""Any event of a reply."""
