"""What a model thinks before it answers, told apart from the answer by the words around it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Thinking", "Thought", "ThoughtSplitter", "choose_thinking"]


@dataclass(frozen=True, slots=True)
class Thinking:
    """Words around what a model thinks.

    Attributes:
        opening, closing: the words.
    """

    opening: str
    closing: str


_KNOWN = (
    Thinking("<|channel>thought", "<channel|>"),  # Gemma 4
    Thinking("[THINK]", "[/THINK]"),  # Mistral
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),  # Command
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("<think>", "</think>"),
)


def choose_thinking(source: str) -> Thinking | None:
    """Return the words that a model with this chat template thinks between; None if the template names none."""
    return next((one for one in _KNOWN if one.closing in source), None)


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of what a model thinks."""

    text: str


class ThoughtSplitter:
    """Takes the text of a reply in pieces, and gives thoughts and the answer: `feed` each piece, then `end`.

    A model thinks at the start of a reply or not at all: the same words later in the text are text. White space around a
    thought belongs to neither.

    Args:
        thinking: the words around a thought.
        is_open: the prompt ended with the opening word.
    """

    def __init__(self, thinking: Thinking, *, is_open: bool) -> None:
        self._thinking = thinking
        self._state = "thinking" if is_open else "start"
        self._is_fresh = True  # of a thought, or of the answer behind one: white space is left out
        self._held = ""

    @property
    def is_thinking(self) -> bool:
        """True while what comes is a thought."""
        return self._state == "thinking"

    def feed(self, text: str) -> list[Thought | str]:
        """Take more text, and return what is certain now."""
        self._held += text
        parts: list[Thought | str] = []
        if self._state == "start":
            self._begin()
        if self._state == "thinking":
            self._think(parts)
        if self._state == "answer":
            self._answer(parts)
        return parts

    def end(self) -> list[Thought | str]:
        """End the text, and return what was held; a thought that was not finished is one all the same."""
        rest, self._held = self._held, ""
        if self._state == "thinking":
            rest = (rest.lstrip() if self._is_fresh else rest).rstrip()
            return [Thought(rest)] if rest else []
        return [rest] if rest and not (self._state == "answer" and self._is_fresh) else []

    def _begin(self) -> None:
        text, opening = self._held.lstrip(), self._thinking.opening
        if text.startswith(opening):
            self._state, self._held = "thinking", text[len(opening) :]
        elif not opening.startswith(text):
            self._state, self._is_fresh = "answer", False

    def _think(self, parts: list[Thought | str]) -> None:
        closing = self._thinking.closing
        if self._is_fresh:
            self._held = self._held.lstrip()
            self._is_fresh = not self._held
        thought, found, rest = self._held.partition(closing)
        if found:
            self._state, self._held, self._is_fresh = "answer", rest, True
        else:
            sizes = range(min(len(closing) - 1, len(thought)), 0, -1)
            cut = len(thought) - next((size for size in sizes if thought.endswith(closing[:size])), 0)
            cut = len(thought[:cut].rstrip())
            thought, self._held = thought[:cut], thought[cut:]
        thought = thought.rstrip()
        if thought:
            parts.append(Thought(thought))

    def _answer(self, parts: list[Thought | str]) -> None:
        if self._is_fresh:
            self._held = self._held.lstrip()
            self._is_fresh = not self._held
        if self._held:
            parts.append(self._held)
            self._held = ""
