"""Tells what a template wrote from what people wrote, in the text of a rendered conversation. See `edge.prompt.template`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge.errors import TemplateError
from edge.types import Message

__all__ = ["SPECIAL_NAMES", "Guard", "Run", "Segment", "any_of", "segment", "texts_of"]

SPECIAL_NAMES = frozenset(("bos_token", "eos_token"))
"""Options of a template that come from the model file, not from people."""

Run = Callable[[Sequence[Message], Mapping[str, Any]], str]
"""Renders messages with options."""

_PRIVATE = "[\U00100000-\U0010fffd]"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a prompt.

    Attributes:
        text: the text.
        message: index into `Prompt.messages` of the message whose content it is; None where the template wrote it, so that
            control tokens in it are meant.
    """

    text: str
    message: int | None = None


def segment(
    run: Run, messages: Sequence[Message], options: Mapping[str, Any], text: str, own_words: re.Pattern[str]
) -> tuple[Segment, ...]:
    """Find the contents in a rendered conversation, by rendering it once more with private characters around them.

    Args:
        run: the template.
        messages: what was rendered.
        options: with what.
        text: the result.
        own_words: what the template looks for in messages of the assistant; these words stay outside the marks.

    Returns:
        The text in parts by who wrote them; () where the marks change what the template writes.
    """
    try:
        closing, *openings = _free_chars(len(messages) + 1, [text, *texts_of(messages, options)])
        marked = []
        for message, opening in zip(messages, openings, strict=True):
            words = own_words if message.role == "assistant" else any_of(())
            cuts, found = words.split(message.content), [*words.findall(message.content), ""]
            content = "".join(_mark(cut, opening, closing) + word for cut, word in zip(cuts, found, strict=True))
            marked.append(replace(message, content=content))
        marked_text = run(marked, options)
    except TemplateError:
        return ()
    numbers = {opening: number for number, opening in enumerate(openings)}
    segments: list[Segment] = []
    is_open: int | None = None
    for part in re.split(f"({_PRIVATE})", marked_text):
        if part == closing:
            if is_open is None:
                return ()
            is_open = None
        elif part in numbers:
            if is_open is not None:
                return ()
            is_open = numbers[part]
        elif part:
            segments.append(Segment(part, is_open))
    if is_open is not None or "".join(part.text for part in segments) != text:
        return ()
    return tuple(segments)


class Guard:
    """Hides words in contents from a template, and shows them again in what it wrote.

    The letters of a hidden word are replaced by private characters, one by one. Whatever a template does to the text, it
    cannot put the word together from them.

    Args:
        words: to hide in everything.
        foreign_words: to hide in what users and tools wrote, besides.
        own_words: not to hide in messages of the assistant: what the template looks for there, such as "</think>".
        texts: all texts that are or will be in play.

    Raises:
        TemplateError: the texts use up all private characters.
    """

    def __init__(
        self, words: Collection[str], foreign_words: Collection[str], own_words: Collection[str], texts: Collection[str]
    ) -> None:
        chars = sorted({*"".join(words), *"".join(foreign_words)}.union(*map(_edges, texts)))
        private = _free_chars(len(chars), texts)
        self._hide = str.maketrans(dict(zip(chars, private, strict=True)))
        self._show = str.maketrans(dict(zip(private, chars, strict=True)))
        foreign = any_of({*words, *foreign_words})
        self._words = {"system": any_of(words), "assistant": any_of(set(words).difference(own_words))}
        self._foreign = foreign

    def message(self, message: Message) -> Message:
        """A message with its words hidden."""
        name = None if message.name is None else self._hide_words(message.name, self._foreign)
        return replace(
            message, content=self._hide_words(message.content, self._words.get(message.role, self._foreign)), name=name
        )

    def edges(self, message: Message) -> Message:
        """A guarded message with its first and last letter hidden too: with half a control token at its end, whose other
        half a neighbouring message begins with, it must not make a whole one."""
        body = message.content.strip()
        if not body:
            return message
        start = message.content.index(body)
        hidden = body[0].translate(self._hide) + body[1:-1] + (body[-1].translate(self._hide) if len(body) > 1 else "")
        return replace(message, content=message.content[:start] + hidden + message.content[start + len(body) :])

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options with their words hidden."""
        return {key: value if key in SPECIAL_NAMES else self._guard_value(value) for key, value in options.items()}

    def show(self, text: str) -> str:
        """Text as it would have been."""
        return text.translate(self._show)

    def parts(self, text: str) -> Iterable[tuple[str, bool]]:
        """Text as it would have been, in parts: (text, whether it was hidden)."""
        for part in re.split(f"({_PRIVATE}+)", text):
            shown = self.show(part)
            if shown:
                yield shown, shown != part

    def _guard_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._hide_words(value, self._foreign)
        if isinstance(value, dict):
            return {key: self._guard_value(item) for key, item in value.items()}
        return [self._guard_value(item) for item in value] if isinstance(value, list) else value

    def _hide_words(self, text: str, words: re.Pattern[str]) -> str:
        return words.sub(lambda match: match.group().translate(self._hide), text)


def texts_of(messages: Sequence[Message], options: Mapping[str, Any]) -> list[str]:
    """Every text that did not come from the template or the model file."""
    texts = [message.content for message in messages]
    texts += [message.name for message in messages if message.name is not None]
    todo: list[Any] = [value for key, value in options.items() if key not in SPECIAL_NAMES]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, (list, dict)):
            todo.extend(value.values() if isinstance(value, dict) else value)
    return texts


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the words, the longest first; nothing where there are none."""
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or "(?!)")


def _mark(text: str, opening: str, closing: str) -> str:
    body = text.strip()
    if not body:
        return text
    start = text.index(body)
    return f"{text[:start]}{opening}{body}{closing}{text[start + len(body) :]}"


def _edges(text: str) -> str:
    body = text.strip()
    return body[:1] + body[-1:]


def _free_chars(count: int, texts: Iterable[str]) -> list[str]:
    """Private characters that are in none of the texts."""
    used = {char for text in texts for char in re.findall(_PRIVATE, text)}
    codes = range(0x100000, min(0x100000 + count + len(used), 0x10FFFE))
    free = [char for code in codes if (char := chr(code)) not in used]
    if len(free) < count:
        raise TemplateError("The messages use up all private characters of Unicode, which edge needs some of.")
    return free[:count]
