"""Takes a reply apart: thoughts, text and tool calls, however its text is split."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from edge.messages import Tool, ToolCall
from edge.prompt.reasoning import Thinking, Thought, ThoughtSplitter
from edge.prompt.tools.base import Broken, CallParser, Format

__all__ = ["ReplyParser", "ReplyPart"]

ReplyPart: TypeAlias = str | Thought | ToolCall | Broken
"""A piece of the text or of a thought, a call, or what looked like a call."""


class ReplyParser:
    """Takes the text of a reply in pieces, behind the search for stop texts: `feed` each piece, then `end`.

    Args:
        thinking: words around thoughts; None where the model does not think.
        is_open: the prompt ended within a thought.
        format: of tool calls; None where the model was told of no tools.
        tools: that it was told of.
    """

    def __init__(
        self,
        thinking: Thinking | None = None,
        *,
        is_open: bool = False,
        format: Format | None = None,
        tools: Sequence[Tool] = (),
    ) -> None:
        self._thoughts = ThoughtSplitter(thinking, is_open=is_open) if thinking is not None else None
        self._calls = CallParser(format, tools) if format is not None else None

    @property
    def is_thinking(self) -> bool:
        """True while what comes is a thought."""
        return self._thoughts is not None and self._thoughts.is_thinking

    def feed(self, text: str) -> list[ReplyPart]:
        """Take more text, and return what is certain now."""
        return self._read_calls(self._thoughts.feed(text) if self._thoughts is not None else [text])

    def end(self) -> list[ReplyPart]:
        """End the text, and return what was held."""
        parts = self._read_calls(self._thoughts.end() if self._thoughts is not None else [])
        return [*parts, *self._calls.end()] if self._calls is not None else parts

    def _read_calls(self, parts: Iterable[Thought | str]) -> list[ReplyPart]:
        found: list[ReplyPart] = []
        for part in parts:
            if isinstance(part, Thought) or self._calls is None:
                found.append(part)
            else:
                found += self._calls.feed(part)
        return [part for part in found if part != ""]
