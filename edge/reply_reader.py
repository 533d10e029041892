"""What one round of a reply says: its text, thoughts and tool calls, passed on as events while it is generated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from edge import events
from edge.messages import Message, ToolCall
from edge.prompt.reasoning import Thought
from edge.prompt.tools.base import Broken

if TYPE_CHECKING:
    from edge.events import ReplyEvent
    from edge.prompt.reply_parser import ReplyParser, ReplyPart
    from edge.types import TokenLogprob

__all__ = ["Listener", "ReplyReader"]


class Listener(Protocol):
    """Hears what a round says: the state of its reply, or what holds that back.

    Attributes:
        pieces: texts of the reply so far.
    """

    pieces: list[str]

    def emit(self, event: ReplyEvent) -> None:
        """Take an event."""

    def note(self, text: str) -> None:
        """Take a notice."""


class ReplyReader:
    """Reads one round: the model's text up to its end, or up to its tool calls.

    Args:
        reply: gets the events.
        parser: takes the text apart; None where all of it is text.
        begun: text that the model continues, which was passed on already.

    Attributes:
        parser: as above.
        calls: tool calls so far.
    """

    def __init__(self, reply: Listener, parser: ReplyParser | None = None, begun: str = "") -> None:
        self.parser = parser
        self.calls: list[ToolCall] = []
        self._reply = reply
        self._raw: list[str] = []
        self._pieces: list[str] = [begun] if begun else []
        self._thoughts: list[str] = []
        self._logprobs: tuple[TokenLogprob, ...] = ()  # of text that the parser holds
        self._follows = bool(reply.pieces) and not begun  # on the text of an earlier round

    @property
    def raw(self) -> str:
        """All of it, as the model wrote it."""
        return "".join(self._raw)

    @property
    def text(self) -> str:
        """The text so far, without thoughts and calls."""
        return "".join(self._pieces)

    @property
    def reasoning(self) -> str:
        """The thoughts so far."""
        return "".join(self._thoughts)

    @property
    def is_thinking(self) -> bool:
        """True while the model thinks."""
        return self.parser is not None and self.parser.is_thinking

    @property
    def is_plain(self) -> bool:
        """True if all of it is text."""
        return not self._thoughts and not self.calls

    def message(self) -> Message:
        """Return the message of the assistant."""
        return Message("assistant", self.text, tool_calls=tuple(self.calls), reasoning=self.reasoning)

    def feed(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> None:
        """Take more of what the model writes."""
        self._raw.append(text)
        self._logprobs += tuple(logprobs)
        self._emit([text] if self.parser is None else self.parser.feed(text), is_last=False)

    def take(self, event: ReplyEvent) -> None:
        """Pass on an event of a reply that another model gives."""
        match event:
            case events.Text(text):
                self._raw.append(text)
                self._pieces.append(text)
            case events.Reasoning(text):
                self._thoughts.append(text)
            case events.ToolCall(call):
                self.calls.append(call)
        self._reply.emit(event)

    def end(self) -> None:
        """Pass on what was held in case more followed."""
        self._emit(self.parser.end() if self.parser is not None else [], is_last=True)

    def _emit(self, parts: Iterable[ReplyPart], *, is_last: bool) -> None:
        for part in parts:
            if isinstance(part, ToolCall):
                self.calls.append(part)
                self._reply.emit(events.ToolCall(part))
                continue
            logprobs, self._logprobs = self._logprobs, ()
            if isinstance(part, Thought):
                self._thoughts.append(part.text)
                self._reply.emit(events.Reasoning(part.text, logprobs))
                continue
            text = part.text if isinstance(part, Broken) else part
            if self._follows and text:
                self._reply.emit(events.Text("\n\n"))
                self._follows = False
            self._pieces.append(text)
            self._reply.emit(events.Text(text, logprobs))
            if isinstance(part, Broken):
                self._reply.note(f"The model wrote a tool call that cannot be read: {part.why}.")
        if is_last and self._logprobs:
            self._reply.emit(events.Text("", self._logprobs))
            self._logprobs = ()
