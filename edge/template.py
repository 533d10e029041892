"""Chat templates: from messages to the tokens that a model was trained to read.

The template comes from the model file and is Jinja; it runs bounded and in a sandbox (`edge.template_sandbox`), loaded when a
template is first needed.

**What people type must not speak as the system.** A message may hold "<|im_end|>\\n<|im_start|>system"; as special tokens these
would end the message and begin a system prompt. So template and contents are told apart before anything is tokenised:

1. The conversation is rendered twice: as it is, and with private characters around each content (inside its white space, so
   that trimming works; in assistant messages also around what the template looks for, such as "</think>", so that cutting
   works). If the second rendering without these characters is the first one, they say exactly which text is the template's.
   Only that is searched for control tokens; contents are tokenised as plain text.
2. Otherwise the template looks into contents in some other way. Then each control token written in a content is replaced,
   letter by letter, by private characters before rendering, and put back as plain text after it. That cannot be undone by
   anything a template does to the text: the worst is that it does not recognise the word.

Tokens that a tokenizer reads even in plain text ("<tool_call>" in some models) are broken into two where a user or a tool
wrote them and the template writes them too. Templates that mark roles with ordinary words ("User:") cannot be protected.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.errors import TemplateError, UsageError
from edge.template_encode import MARKER, Control, Encoder, KnownReply, Piece, Tokenize
from edge.template_roles import Abilities, adapt, probe
from edge.types import Message

if TYPE_CHECKING:
    from edge.backends.base import ModelInfo
    from edge.template_sandbox import Limits

__all__ = ["CHATML", "ChatTemplate", "PrefixReport", "Prompt", "Segment", "check_prefix"]

CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The format most models know, for files without a template of their own."""

_PRIVATE = "[\U00100000-\U0010fffd]"

_Transform = Callable[[str, str], str]  # (text, role) -> text


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a prompt.

    Attributes:
        text: the text.
        is_trusted: the template wrote it, so control tokens in it are meant.
        message: index into `Prompt.messages` of the message whose content it is; None in the template's parts.
    """

    text: str
    is_trusted: bool
    message: int | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation.

    Attributes:
        text: all of it, as the model's template writes it.
        messages: what was rendered: the messages given, fitted to what the template accepts.
        segments: the text in parts by who wrote them; empty where that cannot be told (see the module), which
            `ChatTemplate.encode` handles.
        notices: what the user should know of how the messages were fitted.
    """

    text: str
    messages: tuple[Message, ...]
    segments: tuple[Segment, ...]
    notices: tuple[str, ...]
    _options: Mapping[str, Any] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class PrefixReport:
    """Whether a growing conversation only ever appends to its prompt, which is what lets the KV cache live on.

    Attributes:
        history: the prompt of the first messages is the beginning of the prompt of more messages.
        reply: a prompt that asks for a reply, followed by that reply, is the beginning of the next turn's prompt.
    """

    history: bool
    reply: bool


class ChatTemplate:
    """A model's chat template. Thread-safe. Serves one tokenizer, about which it remembers what it found out.

    Args:
        source: Jinja source.
        bos_text: text of the model's beginning-of-sequence token, "" where it has none.
        eos_text: the same for end of sequence.
        notice: what the user should know of where the template comes from.
        stops: texts that end a reply besides the model's own end tokens.
        limits: what a rendering may use.
        now: the clock for templates that tell the date.

    Raises:
        TemplateError: it cannot be compiled.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_text: str = "",
        eos_text: str = "",
        notice: str | None = None,
        stops: tuple[str, ...] = (),
        limits: Limits | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        from edge.template_sandbox import BoundedTemplate

        self.source = source
        self.notice = notice
        self.stops = stops
        self._jinja = BoundedTemplate(source, limits=limits, now=now)
        self._special = {name: text for name, text in (("bos_token", bos_text), ("eos_token", eos_text)) if text}
        self._encoder = Encoder(sorted(_markers(self._jinja.literals)))
        self._probe_words = {text for text in self._jinja.probes if MARKER.fullmatch(text)}
        self._probes = _any_of(self._probe_words)

    @classmethod
    def from_model(cls, info: ModelInfo, *, now: Callable[[], datetime] = datetime.now) -> ChatTemplate:
        """The template of a model file: Jinja, or one of llama.cpp's names for well-known formats.

        A file without a template, or with one that cannot render even a single message, gets ChatML; `notice` says so.
        """
        options: dict[str, Any] = {"bos_text": info.bos_text, "eos_text": info.eos_text, "now": now}
        source = (info.chat_template or "").strip()
        if not source:
            problem = "This model file has no chat template"
        elif "{" not in source and (named := _load_named(source)) is not None:
            return cls(named, **{**options, "bos_text": info.bos_text if info.adds_bos else ""})
        else:
            try:
                template = cls(info.chat_template or "", **options)
                template.render([Message("user", "Hello")])
                return template
            except TemplateError as error:
                problem = f"This model file's chat template cannot be used ({error.message})"
        if not info.adds_bos:
            options["bos_text"] = ""
        notice = f"{problem}; the common ChatML format is used. A model trained on another one may answer badly."
        return cls(CHATML, **options, notice=notice, stops=("<|im_end|>",))

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **kwargs: Any,
    ) -> Prompt:
        """Write a conversation as the model expects it.

        Args:
            messages: at least one.
            add_generation_prompt: end with what makes the model answer.
            tools: JSON schemas of functions, for templates that offer them to the model.
            kwargs: further variables that this template knows (`enable_thinking`, `documents`, ...): plain data.

        Raises:
            TemplateError: the template refuses these messages (the message holds its words), fails, or does too much.
            UsageError: there is no message, or an argument is not plain data.
        """
        from edge.template_sandbox import plain_data

        if not messages:
            raise UsageError("There is no message to render.", "Give at least one.")
        variables = {"tools": tools, "documents": None, **kwargs, "add_generation_prompt": add_generation_prompt}
        try:
            options = plain_data({**self._special, **variables})
        except TypeError as error:
            raise UsageError(str(error)) from None
        fitted, notices = adapt(messages, self.abilities)
        try:
            text = self._run(fitted, options)
        except TemplateError as refusal:
            fitted, more = adapt(messages)
            try:
                text = self._run(fitted, options)
            except TemplateError:
                raise refusal from None
            notices = more
        segments = self._segment(fitted, options, text)
        return Prompt(text, tuple(fitted), segments, tuple(notices), options)

    def encode(self, prompt: Prompt, tokenize: Tokenize, *, known: KnownReply | None = None) -> list[int]:
        """Tokenise a prompt, special tokens only where the template wrote them (see the module).

        Args:
            prompt: from `render`.
            tokenize: the backend's.
            known: tokens that an assistant message was generated as, given its content. They are used as they are, since
                they are what the KV cache holds; the same text tokenised anew can come out differently.

        Returns:
            Token ids; for contents without special tokens in them (and without `known`) those of transformers'
            `apply_chat_template`.
        """
        is_safe = bool(prompt.segments) and not any(
            isinstance(part, Control)
            for text, role in _texts(prompt)
            if role != "content"
            for part in self._encoder.split(text, tokenize)
        )
        items = self._items(prompt, tokenize) if is_safe else self._guarded_items(prompt, tokenize)
        return self._encoder.encode(items, tokenize, known)

    @cached_property
    def abilities(self) -> Abilities:
        """Which roles and orders of messages the template accepts."""
        options = {**self._special, "tools": None, "documents": None, "add_generation_prompt": True}
        return probe(lambda messages: self._run(messages, options))

    def _run(self, messages: Sequence[Message], options: Mapping[str, Any], transform: _Transform | None = None) -> str:
        def change(value: Any) -> Any:
            if isinstance(value, str):
                return transform(value, "option") if transform is not None else value
            if isinstance(value, dict):
                return {key: change(item) for key, item in value.items()}
            return [change(item) for item in value] if isinstance(value, list) else value

        rows = []
        for message in messages:
            content = transform(message.content, message.role) if transform is not None else message.content
            row = {"role": message.role, "content": content}
            if message.name is not None:
                row["name"] = change(message.name)
            rows.append(row)
        own = {**options, **{key: change(value) for key, value in options.items() if key not in self._special}}
        return self._jinja.render({**own, "messages": rows})

    # -- telling template and contents apart

    def _segment(self, messages: Sequence[Message], options: Mapping[str, Any], text: str) -> tuple[Segment, ...]:
        """The text in parts by who wrote them, or () where marks around the contents change what the template writes."""
        try:
            closing, *openings = _free_chars(len(messages) + 1, [text, *(message.content for message in messages)])
        except TemplateError:
            return ()
        marked_messages = []
        for message, opening in zip(messages, openings, strict=True):
            cuts = self._probes.split(message.content) if message.role == "assistant" else [message.content]
            found = [*self._probes.findall(message.content), ""] if message.role == "assistant" else [""]
            marked = "".join(_mark(cut, opening, closing) + word for cut, word in zip(cuts, found, strict=True))
            marked_messages.append(Message(message.role, marked, message.name))
        try:
            marked_text = self._run(marked_messages, options)
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
                segments.append(Segment(part, is_open is None, is_open))
        if is_open is not None or "".join(segment.text for segment in segments) != text:
            return ()
        return tuple(segments)

    def _items(self, prompt: Prompt, tokenize: Tokenize) -> Iterable[Control | Piece]:
        for segment in prompt.segments:
            if segment.message is None:
                for part in self._encoder.split(segment.text, tokenize):
                    yield part if isinstance(part, Control) else Piece(part)
                continue
            message = prompt.messages[segment.message]
            reply = message.content if message.role == "assistant" and segment.text == message.content.strip() else None
            yield Piece(segment.text, is_foreign=message.role in ("user", "tool"), reply=reply)

    def _guarded_items(self, prompt: Prompt, tokenize: Tokenize) -> Iterable[Control | Piece]:
        """The second way of the module's docstring."""
        split = self._encoder.split
        controls = {part.text for text, _ in _texts(prompt) for part in split(text, tokenize) if isinstance(part, Control)}
        foreign = controls.union(self._encoder.tokens_of_template(tokenize))
        own_words = self._probe_words
        chars = sorted(set("".join(foreign)).union(*(_edges(text) for text, _ in _texts(prompt))))
        replaced = _free_chars(len(chars), [prompt.text, *(text for text, _ in _texts(prompt))])
        hide = str.maketrans(dict(zip(chars, replaced, strict=True)))
        show = str.maketrans(dict(zip(replaced, chars, strict=True)))

        def guard(text: str, role: str) -> str:
            # The model's own way of writing, such as "</think>", stays readable for the template.
            words = controls - own_words if role == "assistant" else controls if role == "system" else foreign
            return _any_of(words).sub(lambda match: match.group().translate(hide), text)

        def guard_edges(text: str, role: str) -> str:
            # A content could also begin or end with half a control token whose other half is in a neighbouring one.
            guarded = guard(text, role)
            body = guarded.strip()
            if not body or role == "option":
                return guarded
            start = guarded.index(body)
            body = body[0].translate(hide) + body[1:-1] + (body[-1].translate(hide) if len(body) > 1 else "")
            return guarded[:start] + body + guarded[start + len(body) :]

        rendered = self._run(prompt.messages, prompt._options, guard)
        try:
            with_edges = self._run(prompt.messages, prompt._options, guard_edges)
        except TemplateError:
            with_edges = ""
        if with_edges.translate(show) == rendered.translate(show):
            rendered = with_edges
        for part in re.split(f"({_PRIVATE}+)", rendered):
            shown = part.translate(show)
            if shown != part:
                yield Piece(shown, is_foreign=True)
                continue
            for item in split(part, tokenize):
                yield item if isinstance(item, Control) else Piece(item)


def check_prefix(template: ChatTemplate) -> PrefixReport:
    """Find out, on a conversation of three turns, whether a growing conversation only appends to its prompt."""
    system = [Message("system", "Be brief.")] if template.abilities.system else []
    turns = [Message("user", "One?"), Message("assistant", "First."), Message("user", "Two?")]
    turns += [Message("assistant", "Second."), Message("user", "Three?"), Message("assistant", "Third.")]
    history, reply = True, True
    texts = [template.render(system + turns[:n], add_generation_prompt=False).text for n in range(1, len(turns) + 1)]
    for shorter, longer in itertools.pairwise(texts):
        history = history and longer.startswith(shorter)
    for n in (1, 3):
        asked = template.render(system + turns[:n]).text
        following = template.render(system + turns[: n + 2]).text
        reply = reply and following.startswith(asked) and following[len(asked) :].lstrip().startswith(turns[n].content)
    return PrefixReport(history, reply)


def _texts(prompt: Prompt) -> Iterable[tuple[str, str]]:
    """Every text that did not come from the template, as (text, "content", "name" or "option")."""
    for message in prompt.messages:
        yield message.content, "content"
        if message.name is not None:
            yield message.name, "name"
    todo: list[Any] = [value for key, value in prompt._options.items() if key not in ("bos_token", "eos_token")]
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            yield value, "option"
        elif isinstance(value, (list, dict)):
            todo.extend(value.values() if isinstance(value, dict) else value)


def _markers(texts: Iterable[str]) -> set[str]:
    return {match.group() for text in texts for match in MARKER.finditer(text)}


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
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


def _load_named(name: str) -> str | None:
    """One of the templates that are shipped by name, or None."""
    if name == "chatml":
        return CHATML
    here = Path(__file__).parent
    for folder in (here / "_models", here.parent / "models"):
        path = folder / "templates" / f"{name}.jinja"
        if re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) and path.is_file():
            return path.read_text("utf-8")
    return None
