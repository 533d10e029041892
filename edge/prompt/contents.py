"""Separates what a template wrote from what people wrote in a rendered conversation. See `edge.prompt.template`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from edge.errors import TemplateError
from edge.types import Message, ToolCall

__all__ = ["SPECIAL_NAMES", "Guard", "Run", "Segment", "any_of", "segment", "texts_of", "unmarked_texts"]

SPECIAL_NAMES = frozenset(("bos_token", "eos_token"))
"""Template options that come from the model file, not from people."""

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
    """Find the contents in a rendered conversation, by rendering it again with private characters around them.

    Args:
        run: the template.
        messages, options: what was rendered.
        text: the result.
        own_words: words that the template looks for in messages of the assistant; they stay outside the marks.

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
        elif part and segments and segments[-1].message == is_open:
            segments[-1] = Segment(segments[-1].text + part, is_open)  # letters that a guard has hidden
        elif part:
            segments.append(Segment(part, is_open))
    if is_open is not None or "".join(part.text for part in segments) != text:
        return ()
    return tuple(segments)


class Guard:
    """Hides words in contents from a template, and shows them again in the result.

    Each letter of a hidden word is replaced by a private character. Whatever a template does to the text, it cannot put the
    word together from them.

    Args:
        words: to hide everywhere.
        foreign_words: also to hide in what users and tools wrote.
        own_words: not to hide in messages of the assistant, since the template looks for them there: "</think>".
        texts: all texts in play.

    Raises:
        TemplateError: the texts use up all private characters.
    """

    def __init__(
        self, words: Collection[str], foreign_words: Collection[str], own_words: Collection[str], texts: Collection[str]
    ) -> None:
        chars = sorted(
            {*"".join(words), *"".join(foreign_words)}.union(*(text.strip()[:1] + text.strip()[-1:] for text in texts))
        )
        private = _free_chars(len(chars), texts)
        self._hide = str.maketrans(dict(zip(chars, private, strict=True)))
        self._show = str.maketrans(dict(zip(private, chars, strict=True)))
        self._words = {"system": any_of(words), "assistant": any_of(set(words).difference(own_words))}
        self._foreign = any_of({*words, *foreign_words})

    def message(self, message: Message) -> Message:
        """Return a message with its words hidden."""
        name = None if message.name is None else self._hide_words(message.name, self._foreign)
        content = self._hide_words(message.content, self._words.get(message.role, self._foreign))
        if not message.tool_calls and not message.reasoning:
            return replace(message, content=content, name=name)
        calls = tuple(
            ToolCall(self._hide_words(call.name, self._foreign), self._guard_value(call.arguments), call.id)
            for call in message.tool_calls
        )
        reasoning = self._hide_words(message.reasoning, self._foreign)
        return replace(message, content=content, name=name, tool_calls=calls, reasoning=reasoning)

    def edges(self, message: Message) -> Message:
        """Return a guarded message with its first and last letter hidden too.

        Half a control token at its end must not become a whole one with the start of the next message.
        """
        before, body, after = _strip(message.content)
        if not body:
            return message
        hidden = body[0].translate(self._hide) + body[1:-1] + (body[-1].translate(self._hide) if len(body) > 1 else "")
        return replace(message, content=before + hidden + after)

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options with their words hidden."""
        return {key: value if key in SPECIAL_NAMES else self._guard_value(value) for key, value in options.items()}

    def show(self, text: str) -> str:
        """Return text with the hidden words shown again."""
        return text.translate(self._show)

    def parts(self, text: str) -> Iterable[tuple[str, bool]]:
        """Yield text with the hidden words shown again, in parts: (text, whether it was hidden)."""
        for part in re.split(f"({_PRIVATE}+)", text):
            shown = self.show(part)
            if shown:
                yield shown, shown != part

    def _guard_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._hide_words(value, self._foreign)
        if isinstance(value, dict):
            return {self._hide_words(key, self._foreign): self._guard_value(item) for key, item in value.items()}
        return [self._guard_value(item) for item in value] if isinstance(value, list) else value

    def _hide_words(self, text: str, words: re.Pattern[str]) -> str:
        return words.sub(lambda match: match.group().translate(self._hide), text)


def texts_of(messages: Sequence[Message], options: Mapping[str, Any]) -> list[str]:
    """Return every text that did not come from the template or the model file."""
    return [*(message.content for message in messages), *unmarked_texts(messages, options)]


def unmarked_texts(messages: Sequence[Message], options: Mapping[str, Any]) -> list[str]:
    """Return those of them that are no contents, so that `segment` takes them for the template's."""
    texts = [message.name for message in messages if message.name is not None]
    texts += [message.reasoning for message in messages if message.reasoning]
    todo: list[Any] = [value for key, value in options.items() if key not in SPECIAL_NAMES]
    for message in messages:
        for call in message.tool_calls:
            todo += [call.name, call.arguments]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            texts.append(value)
        elif isinstance(value, dict):
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            todo += value
    return texts


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the words, the longest first; nothing where there are none."""
    return re.compile("|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or "(?!)")


def _mark(text: str, opening: str, closing: str) -> str:
    before, body, after = _strip(text)
    return f"{before}{opening}{body}{closing}{after}" if body else text


def _strip(text: str) -> tuple[str, str, str]:
    """Split text into white space, body and white space."""
    body = text.strip()
    return text.partition(body) if body else (text, "", "")


def _free_chars(count: int, texts: Iterable[str]) -> list[str]:
    """Return private characters that are in none of the texts."""
    used = {char for text in texts for char in re.findall(_PRIVATE, text)}
    codes = range(0x100000, min(0x100000 + count + len(used), 0x10FFFE))
    free = [char for code in codes if (char := chr(code)) not in used]
    if len(free) < count:
        raise TemplateError("The messages use up all private characters of Unicode; edge needs some of them.")
    return free[:count]
