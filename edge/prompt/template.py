"""Chat templates: from messages to the tokens that a model was trained to read.

The template comes from the model file and is Jinja; it runs within limits in a sandbox (`edge.prompt.sandbox`), which is
imported when a template is first needed.

**What people type must not speak as the system.** A message may hold "<|im_end|>\\n<|im_start|>system"; as special tokens these
would end the message and begin a system prompt. So template and contents are separated before anything is tokenised:

1. The conversation is rendered twice: as it is, and with private characters around each content (inside its white space, so
   that trimming works; in assistant messages also around what the template looks for, such as "</think>", so that cutting
   works). If the second rendering without these characters is the first one, they say exactly which text is the template's.
   Only that is searched for control tokens; contents are tokenised as plain text.
2. Where a control token is written in a content, or the marks of 1 change what the template writes (it looks into contents in
   some other way), each such word is replaced, letter by letter, by private characters before rendering, and put back as
   plain text after it. Nothing that a template does to the text can undo that; at worst it does not find the word.

Tokens that a tokenizer makes even of plain text ("<tool_call>" in some models) are split where a user or a tool wrote them and
the template writes them too. Templates that mark roles with ordinary words ("User:") cannot be protected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, get_args

from edge.errors import TemplateError, UnsupportedError, UsageError
from edge.files import shipped
from edge.forks import lazy_property
from edge.prompt.contents import Guard, Segment, any_of, segment, texts_of, unmarked_texts
from edge.prompt.encode import MARKER, Control, Encoder, KnownReply, Piece, Tokenize
from edge.prompt.reasoning import Thinking, choose_thinking
from edge.prompt.roles import NOTHING, Abilities, adapt, probe
from edge.prompt.rows import PLAIN, ToolStyle, find_style, to_rows
from edge.prompt.tools.choose import FALLBACK, choose_format
from edge.prompt.tools.fallback import with_tools
from edge.types import Message, Role

if TYPE_CHECKING:
    from edge.backends.base import ModelInfo
    from edge.prompt.budget import Limits
    from edge.prompt.tools.base import Format

__all__ = ["CHATML", "ChatTemplate", "Prompt", "Segment"]

CHATML = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""The format most models know, for files without a template of their own."""

_PROBE = "Hello, qwibvex"
_ROLES = frozenset(get_args(Role))
_SHOWN_PARTS = re.compile(r"""['"]type['"]: ['"]text['"]""")
"""In a rendering: the template wrote the list of parts itself, since it expects text."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation.

    Attributes:
        text: all of it, as the model's template writes it.
        messages: what was rendered: the messages given, fitted to what the template accepts.
        segments: the text in parts by who wrote them; empty where that is unknown (see the module), which
            `ChatTemplate.encode` handles.
        notices: what the user should know about how the messages were fitted.
    """

    text: str
    messages: tuple[Message, ...]
    segments: tuple[Segment, ...]
    notices: tuple[str, ...]
    _options: Mapping[str, Any] = field(repr=False, compare=False)


class ChatTemplate:
    """A model's chat template. Thread-safe. Serves one tokenizer, and remembers how that behaves.

    Args:
        source: Jinja source.
        bos_text: text of the model's beginning-of-sequence token, "" where it has none.
        eos_text: the same for end of sequence.
        notice: what the user should know about where the template comes from.
        stops: texts that end a reply besides the model's own end tokens.
        parts: roles whose content the template takes in parts, `[{"type": "text", "text": ...}]`, as those of models that
            also see or hear do.
        limits: limits of a rendering.
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
        parts: Collection[str] = (),
        limits: Limits | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        from edge.prompt.sandbox import BoundedTemplate

        self.source = source
        self.notice = notice
        self.stops = stops
        self._parts = parts
        self._jinja = BoundedTemplate(source, limits=limits, now=now)
        self._special = {name: text for name, text in (("bos_token", bos_text), ("eos_token", eos_text)) if text}
        self._encoder = Encoder(sorted(_markers(self._jinja.literals)))
        self._reply_lead: Control | Piece | None = None  # the last part of a prompt
        self._own_words = {text for text in self._jinja.probes if MARKER.fullmatch(text)}
        self._own_pattern = any_of(self._own_words)

    @classmethod
    def from_model(cls, info: ModelInfo, *, now: Callable[[], datetime] = datetime.now) -> ChatTemplate:
        """Return the template of a model file: Jinja, or one of llama.cpp's names for well-known formats.

        A file without a template, or with one that cannot render a single message, gets ChatML; `notice` says so.
        """
        options: dict[str, Any] = {"bos_text": info.bos_text, "eos_text": info.eos_text, "now": now}
        source = info.chat_template or ""
        if not source.strip():
            problem = "This model file has no chat template"
        elif "{" not in source:
            name = source.strip()
            named = _load_named(name)
            if named is not None:
                return cls(named, **{**options, "bos_text": info.bos_text if info.adds_bos else ""})
            problem = f"This model file names a chat format that edge does not know ({name[:40]!r})"
        else:
            problem = ""
            for parts in (frozenset[str](), _ROLES):
                try:
                    template = cls(source, parts=parts, **options)
                    text = template._probe("user")
                    if _PROBE in text and not _SHOWN_PARTS.search(text):
                        template._parts = parts and template._roles_in_parts()
                        return template
                    problem = problem or "This model file's chat template leaves the messages out"
                except TemplateError as error:
                    problem = problem or f"This model file's chat template cannot be used ({error.message})"
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
        tools_in_prompt: bool = False,
        **kwargs: Any,
    ) -> Prompt:
        """Render a conversation as the model expects it.

        Args:
            messages: at least one.
            add_generation_prompt: end with what makes the model answer.
            tools: JSON schemas of functions that the model may call.
            tools_in_prompt: put them into the system prompt, in the format of Hermes, if the template has no place for them.
            kwargs: further variables that this template knows (`enable_thinking`, `documents`, ...): plain data.

        Raises:
            TemplateError: the template refuses these messages (the message holds its words), fails, or does too much.
            UnsupportedError: the template has no place for tools.
            UsageError: there is no message, or an argument is not plain data.
        """
        from edge.prompt.sandbox import plain_data

        if not messages:
            raise UsageError("There is no message to render.", "Give at least one.")
        if tools and not self._tool_style.place:
            if not tools_in_prompt:
                raise UnsupportedError(
                    "This model's chat template has no place for tools, so it was not trained to call any.",
                    'Use a model that was, or describe them in the system prompt: tool_format="prompt".',
                )
            messages, tools = with_tools(messages, tools), None
        variables = {"tools": tools or None, "documents": None, **kwargs, "add_generation_prompt": add_generation_prompt}
        try:
            options = plain_data({**self._special, **variables})
        except TypeError as error:
            raise UsageError(str(error)) from None
        except RecursionError:
            raise UsageError("The data for the template is nested too deeply.") from None
        first: Prompt | None = None
        refusal: TemplateError | None = None
        # An order of messages that was not probed may still fail; then user and assistant take turns.
        style = self._style_for(messages, options)
        write = (self.tool_format or FALLBACK).write
        for abilities in (self.abilities, NOTHING):
            fitted, notices = adapt(messages, abilities, style=style, write=write)
            try:
                text = self._run(fitted, options)
            except TemplateError as error:
                refusal = refusal or error
                continue
            segments = segment(self._run, fitted, options, text, self._own_pattern)
            prompt = Prompt(text, tuple(fitted), segments, tuple(notices), options)
            if not _has_lost_messages(prompt):
                return prompt
            first = first or prompt
        if first is not None:
            return first
        raise refusal or TemplateError("The model's chat template renders nothing.")

    def encode(self, prompt: Prompt, tokenize: Tokenize, *, known: KnownReply | None = None) -> list[int]:
        """Tokenise a prompt, special tokens only where the template wrote them (see the module).

        Args:
            prompt: from `render`.
            tokenize: the tokenizer's.
            known: returns the tokens that an assistant message was generated as, given its content. They are used as they
                are, because only they match the KV cache; tokenising the text again can give others.

        Returns:
            Token ids; for contents without special tokens in them (and without `known`) those of transformers'
            `apply_chat_template`.
        """
        return self._encoder.encode(self._items(prompt, tokenize), tokenize, known)

    def encode_reply(self, text: str, tokenize: Tokenize) -> list[int]:
        """Return the tokens of the beginning of a reply, to follow those of a prompt that asks for one."""
        if self._reply_lead is None:
            *_, self._reply_lead = self._items(self.render([Message("user", _PROBE)]), tokenize)
        return self._encoder.encode_reply(text, self._reply_lead, tokenize)

    @lazy_property
    def abilities(self) -> Abilities:
        """Roles and orders of messages that the template accepts."""
        return probe(lambda messages: self._run(messages, self._plain_options))

    @property
    def _plain_options(self) -> dict[str, Any]:
        return {**self._special, "tools": None, "documents": None, "add_generation_prompt": True}

    @lazy_property
    def tool_format(self) -> Format | None:
        """How the model writes tool calls; None if its template does not tell."""
        return choose_format(self.source)

    @lazy_property
    def thinking(self) -> Thinking | None:
        """Words around what the model thinks; None if the template names none."""
        return choose_thinking(self.source)

    @property
    def takes_tools(self) -> bool:
        """True if the template shows tools to the model, and it is known how that calls them."""
        return bool(self._tool_style.place) and self.tool_format is not None

    @lazy_property
    def _tool_style(self) -> ToolStyle:
        return find_style(
            lambda messages, style, tools: self._run(messages, {**self._plain_options, "tools": tools}, style=style)
        )

    def _style_for(self, messages: Sequence[Message], options: Mapping[str, Any]) -> ToolStyle:
        """Return how the template takes tools; it is not probed for conversations without any."""
        return self._tool_style if options.get("tools") or any(message.tool_calls for message in messages) else PLAIN

    def _run(self, messages: Sequence[Message], options: Mapping[str, Any], *, style: ToolStyle | None = None) -> str:
        style = style or self._style_for(messages, options)
        tools = options.get("tools")
        rows = to_rows(messages, parts=self._parts, style=style, tools=tools)
        return self._jinja.render({**options, "xml_tools": tools, "messages": rows})  # SmolLM3 calls them so

    def _probe(self, *roles: Role) -> str:
        return self._run([Message(role, _PROBE) for role in roles], self._plain_options)

    def _roles_in_parts(self) -> frozenset[str]:
        """Return the roles whose content the template takes in parts; some take the system prompt as text all the same."""
        orders: dict[str, tuple[Role, ...]] = {
            "system": ("system", "user"), "assistant": ("user", "assistant"), "tool": ("user", "assistant", "tool"),
        }  # fmt: skip
        plain = set()
        for role, order in orders.items():
            with suppress(TemplateError):  # it does not accept that role
                if _SHOWN_PARTS.search(self._probe(*order)):
                    plain.add(role)
        return _ROLES - plain

    def _items(self, prompt: Prompt, tokenize: Tokenize) -> Iterable[Control | Piece]:
        """Yield the parts of a prompt, control tokens only where the template wrote them."""
        split = self._encoder.split
        texts = texts_of(prompt.messages, prompt._options)
        written = {part.text for text in texts for part in split(text, tokenize) if isinstance(part, Control)}
        unmarked = unmarked_texts(prompt.messages, prompt._options)
        is_guarded = bool(written) or not prompt.segments
        foreign = self._encoder.tokens_of_template(tokenize) if is_guarded or unmarked else []
        is_guarded = is_guarded or any(word in text for word in foreign for text in unmarked)
        guard = Guard(written, foreign, self._own_words, [prompt.text, *texts])
        for part in self._guarded_segments(prompt, guard) if is_guarded else prompt.segments:
            if part.message is None:
                for text, was_hidden in guard.parts(part.text):
                    for item in [text] if was_hidden else split(text, tokenize):
                        yield item if isinstance(item, Control) else Piece(item, is_foreign=was_hidden)
                continue
            message, text = prompt.messages[part.message], guard.show(part.text)
            if message.role == "assistant" and self._writes_calls and self.tool_format is not None:
                yield from self._with_calls(text, self.tool_format, tokenize)
                continue
            reply = message.content if message.role == "assistant" and text == message.content.strip() else None
            yield Piece(text, is_foreign=message.role in ("user", "tool"), reply=reply)

    @property
    def _writes_calls(self) -> bool:
        """True if calls are written into the content of messages, since the template leaves them out."""
        return "_tool_style" in self.__dict__ and not self._tool_style.arguments

    def _with_calls(self, text: str, format: Format, tokenize: Tokenize) -> Iterable[Control | Piece]:
        """Yield a message of the assistant, its calls between the control tokens that the model writes around them."""
        place = min((place for word in format.opens if (place := text.find(word)) >= 0), default=-1)
        opening = next((word for word in format.opens if place >= 0 and text.startswith(word, place)), "")
        closing = next((word for word in format.closes if opening and text.endswith(word)), "")
        body = text[place + len(opening) : len(text) - len(closing)] if opening else ""
        for piece, is_own in ((text[:place] if opening else text, False), (opening, True), (body, False), (closing, True)):
            for item in self._encoder.split(piece, tokenize) if is_own else [piece]:
                if item:
                    yield item if isinstance(item, Control) else Piece(item, is_foreign=piece is body)

    def _guarded_segments(self, prompt: Prompt, guard: Guard) -> tuple[Segment, ...]:
        """Render with control tokens in contents hidden from the template, and return the parts by who wrote them."""
        options = guard.options(prompt._options)
        messages = [guard.message(message) for message in prompt.messages]
        text = self._run(messages, options)
        found = segment(self._run, messages, options, text, self._own_pattern)
        if found:
            return found
        try:
            with_edges = self._run([guard.edges(message) for message in messages], options)
        except TemplateError:
            with_edges = text
        return (Segment(with_edges if guard.show(with_edges) == guard.show(text) else text),)


def _has_lost_messages(prompt: Prompt) -> bool:
    """Tell if a prompt that asks for an answer lacks a message.

    Thinking of the assistant is left out on purpose, and some Mistral templates show the system prompt only with a question.
    """
    shown = {segment.message for segment in prompt.segments}
    return prompt.messages[-1].role != "assistant" and any(
        number not in shown and message.role != "assistant" and message.content.strip() not in prompt.text
        for number, message in enumerate(prompt.messages)
    )


def _markers(texts: Iterable[str]) -> set[str]:
    return {match.group() for text in texts for match in MARKER.finditer(text)}


def _load_named(name: str) -> str | None:
    """Return one of the templates that ship with edge, or None."""
    if name == "chatml":
        return CHATML
    path = shipped(f"templates/{name}.jinja") if re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) else None
    return path.read_text("utf-8") if path else None
