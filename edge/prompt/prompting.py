"""From messages to the tokens of a prompt, for one model, tokenising only new text."""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Generic, TypeVar

from edge.constraint import Constraint
from edge.errors import ContextFullError, TemplateError, UnsupportedError, UsageError
from edge.forks import lazy_property
from edge.kv.tree import common_prefix
from edge.prompt.options import NO_OPTIONS, PromptOptions
from edge.prompt.reply_parser import ReplyParser
from edge.prompt.stream import TextStream
from edge.prompt.template import ChatTemplate
from edge.prompt.tools.choose import FALLBACK
from edge.prompt.tools.forced import grammar_of_call, held_call
from edge.prompt.tools.grammar import Held
from edge.prompt.window import message_counter
from edge.types import NO_SYSTEM, Message

if TYPE_CHECKING:
    from edge.backends.base import ModelInfo
    from edge.prompt.tokenizers import Tokenizer
    from edge.prompt.tools.base import Format

__all__ = ["Prompting"]

_MEMO_TOKENS = 400_000
_USUAL_TOKEN_BYTES = 4
_GOES_ON = ("\n\nWhy", " 1", "a", ".", "\N{LATIN SMALL LETTER E WITH ACUTE}")
"""Ways in which a text may go on; a tokenizer may join its last token with any of them."""
Key = TypeVar("Key")


class Prompting:
    """Makes the prompts of one model. Thread-safe.

    Args:
        info: the model.
        tokenizer: of the model.
        system: system prompt where a conversation has none; "none" is none at all, None leaves it to the template.

    Attributes:
        template: the model's chat template.
        n_ctx_train: context that the model was trained for, in tokens; 0 if unknown.
        tokenizer, system: as above.
        count_one: returns how many tokens a message adds to a prompt, rather too many than too few.
        at_least: returns a lower bound of the tokens of a text once it is above a limit, otherwise None.
    """

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer, system: str | None) -> None:
        self.template = ChatTemplate.from_model(info)
        self.n_ctx_train = info.n_ctx_train
        self.system = system
        self.tokenizer = tokenizer
        self._texts: _Memo[tuple[str, bool, bool]] = _Memo()
        self._replies: _Memo[str] = _Memo()
        self.at_least = functools.lru_cache(maxsize=64)(self._at_least)
        self._special_token = functools.lru_cache(maxsize=64)(self._find_special_token)
        self.count_one = message_counter(lambda messages: len(self.encode(messages)))
        self._told: dict[str, object] = {}
        self._told_lock = threading.Lock()

    def system_message(self, system: str) -> list[Message]:
        """Return the system prompt of a conversation, else the default one, else none: at most one message."""
        text = system or self.system
        if text is None:
            return []
        return self._no_system if text.strip().lower() == NO_SYSTEM else [Message("system", text)]

    @lazy_property
    def _no_system(self) -> list[Message]:
        """Return what keeps a template from writing a system prompt: an empty one, if it has one of its own."""
        empty, question = Message("system", ""), Message("user", "Hello")
        try:
            is_shorter = len(self.template.render([empty, question]).text) < len(self.template.render([question]).text)
        except TemplateError:
            return []
        return [empty] if is_shorter else []

    @lazy_property
    def end_token(self) -> int | None:
        """The token that the template puts behind an answer to end it; None if it puts none there."""
        try:
            tokens = self.encode([Message("user", "a"), Message("assistant", "b")])
        except TemplateError:
            return None
        return next((token for token in reversed(tokens) if self.tokenizer.is_end(token)), None)

    def encode(
        self,
        messages: Sequence[Message],
        on_notice: Callable[[str], None] | None = None,
        *,
        options: PromptOptions = NO_OPTIONS,
    ) -> list[int]:
        """Return the tokens of a prompt.

        Args:
            messages: at least one.
            on_notice: called with what was changed to fit the template.
            options: tools and thinking.

        Raises:
            TemplateError: the template refuses these messages.
            UnsupportedError: it has no place for tools.
            BackendError: the model is closed.
        """
        prompt = self.template.render(messages, **options.variables())
        if on_notice is not None:
            for notice in prompt.notices:
                on_notice(notice)
        return self.template.encode(prompt, self.tokenize, known=self._replies.get)

    def encode_reply(self, text: str) -> list[int]:
        """Return the tokens of a reply so far, to follow those of its prompt: the generated ones, where they are known."""
        return list(self._replies.get(text) or self.template.encode_reply(text, self.tokenize))

    def reply_parser(self, tokens: Sequence[int], options: PromptOptions = NO_OPTIONS) -> ReplyParser:
        """Return what takes the reply to a prompt apart.

        Args:
            tokens, options: of the prompt.

        Raises:
            UnsupportedError: it is not known how this model calls tools.
        """
        thinking = self.template.thinking
        is_open = thinking is not None and self._ends_with(tokens, thinking.opening)
        format = self._tool_format(options) if options.tools else None
        return ReplyParser(thinking, is_open=is_open, format=format, tools=options.tools)

    def markers(self, options: PromptOptions = NO_OPTIONS) -> frozenset[int]:
        """Return the special tokens that `reply_parser` looks for."""
        thinking = self.template.thinking
        words = (
            {thinking.opening, thinking.opening.removesuffix("thought"), thinking.closing} if thinking is not None else set()
        )
        if options.tools:
            words.update(self._tool_format(options).markers)
        return frozenset(token for word in words if (token := self._special_token(word)) is not None)

    def forced_call(self, options: PromptOptions) -> Constraint | None:
        """Return the constraint of a reply that has to call a tool; None where it need not.

        Raises:
            UnsupportedError: this model's form of calls cannot be enforced.
            UsageError: there is no such tool.
        """
        if not options.tools or options.tool_choice == "auto":
            return None
        is_any = options.tool_choice == "required"
        tools = [tool for tool in options.tools if is_any or tool.name == options.tool_choice]
        if not tools:
            raise UsageError(f"There is no tool {options.tool_choice!r} to call.", "Use the name of one of the tools.")
        format = self._tool_format(options)
        grammar = grammar_of_call(format, tools, self._special_token)
        if grammar is None:
            raise UnsupportedError(f"A model that calls tools as {format.name} does cannot be made to.", 'Use "auto".')
        return Constraint.lark(grammar)

    def held_call(self, options: PromptOptions) -> Held | None:
        """Return what a tool call is held to once a reply has begun one; None where that is left to the model."""
        return held_call(self._tool_format(options), options.tools, self._special_token) if options.tools else None

    def closing_of_thought(self) -> tuple[str, list[int]]:
        """Return what ends a thought: its text, and its tokens."""
        thinking = self.template.thinking
        text = f"\n{thinking.closing}\n\n" if thinking is not None else ""
        return text, self.tokenize(text, parse_special=True)

    def _tool_format(self, options: PromptOptions) -> Format:
        if self.template.takes_tools and self.template.tool_format is not None:
            return self.template.tool_format
        if options.tool_format != "prompt":
            raise UnsupportedError(
                "Edge does not know how this model calls tools.",
                'Use another model, or describe the tools in the system prompt: tool_format="prompt".',
            )
        return FALLBACK

    def _find_special_token(self, word: str) -> int | None:
        tokens = self.tokenizer.tokenize(word, parse_special=True)
        is_special = len(tokens) == 1 and self.tokenizer.token_bytes(tokens[0]) == b""
        return tokens[0] if is_special else None

    def _ends_with(self, tokens: Sequence[int], word: str) -> bool:
        """Tell if the text of tokens ends with a word, and perhaps white space."""
        tail = b"".join(self.tokenizer.token_bytes(token, special=True) for token in tokens[-4 - len(word) :])
        return tail.decode("utf-8", "replace").rstrip().endswith(word)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Tokenise a text as `Tokenizer.tokenize` does, with a memo."""
        key = (text, add_special, parse_special)
        known = self._texts.get(key)
        if known is None:
            known = self.tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)
            self._texts.put(key, known)
        return known

    def check_size(self, text: str, n_ctx: int) -> None:
        """Reject a text that cannot fit the context window, without tokenising all of it.

        Raises:
            ContextFullError: it cannot fit, however it goes on.
        """
        n_least = self.at_least(text, n_ctx)
        if n_least is not None:
            is_enough = 2 * n_least <= self.n_ctx_train and self.n_ctx_train > n_ctx  # it has rarely twice the least number
            larger = f", or load the model with a larger context (--context {self.n_ctx_train})" if is_enough else ""
            raise ContextFullError(
                f"This message has {_n_bytes(text):,} bytes, which is {n_least:,} tokens at the very least. "
                f"The context window has {n_ctx:,}.",
                f"Send a part of it{larger}.",
                n_prompt=n_least,
                n_ctx=n_ctx,
                is_least=True,
            )

    def _at_least(self, text: str, limit: int) -> int | None:
        """Return a lower bound of the tokens of a text that is above the limit; None if it has fewer, or perhaps.

        No token covers more bytes than the longest of the vocabulary. If that does not decide, growing prefixes are tokenised.
        """
        n_bytes = _n_bytes(text)
        if n_bytes <= limit * _USUAL_TOKEN_BYTES:
            return None
        n_least = n_bytes // self.tokenizer.longest_token
        n_chars = 2 * _USUAL_TOKEN_BYTES * limit
        while n_least <= limit and n_chars < len(text):
            n_tokens = len(self.tokenizer.tokenize(text[:n_chars]))
            n_least, n_chars = n_tokens - n_tokens // 8, 4 * n_chars  # the last tokens can change with what follows
        return n_least if n_least > limit else None

    def remember_reply(self, text: str, tokens: Sequence[int]) -> None:
        """Reuse the generated token ids in the next prompt; only they match the KV cache.

        Replies with special tokens are left out, as in `recall_replies`: prompts must not depend on when a process started.
        """
        if _spell(self.tokenizer, tokens, text):
            self._replies.put(text, list(tokens))

    def recall_replies(self, stored: Iterable[tuple[str, object]]) -> None:
        """Remember replies of an earlier process.

        Args:
            stored: texts and what was stored as their tokens. Files are input from outside: what does not make up the text, or
                has special tokens in it, is left out.
        """
        for text, tokens in stored:
            if isinstance(tokens, list) and tokens and self._replies.get(text) is None and _spell(self.tokenizer, tokens, text):
                self._replies.put(text, tokens)

    def spells(self, tokens: Sequence[object], text: str) -> bool:
        """Tell if these are tokens of the model, none of them special, that make up a text."""
        return _spell(self.tokenizer, tokens, text)

    def leading_tokens(self, tokens: Sequence[int], text: str) -> list[int]:
        """Return the tokens at the beginning of a reply that spell its beginning; none if a token reaches beyond that.

        Args:
            tokens: of the whole reply.
            text: its beginning.
        """
        stream, spelled = TextStream(), ""
        for n, token in enumerate(tokens):
            if len(spelled) >= len(text):
                return list(tokens[:n]) if spelled == text else []
            spelled += stream.feed(self.tokenizer.token_bytes(token))
        return list(tokens) if spelled == text else []

    def shared_end(self, messages: Sequence[Message], tokens: Sequence[int], options: PromptOptions = NO_OPTIONS) -> int:
        """Return the length of the prefix that conversations with this system prompt and these tools share; 0 without any.

        Args:
            messages, options: of the prompt.
            tokens: of the prompt.
        """
        system = [message for message in messages[:1] if message.role == "system"]
        if not system and not options.tools:
            return 0
        try:
            return common_prefix(self.encode([*system, Message("user", "")], options=options), tokens)
        except TemplateError:
            return 0

    def open_prefix(self, messages: Sequence[Message], tokens: Sequence[int], options: PromptOptions = NO_OPTIONS) -> list[int]:
        """Return the prefix that a prompt shares with all in which the text of the last message goes on in another way.

        Args:
            messages, options: of the prompt.
            tokens: of the prompt.
        """
        last = messages[-1]
        n_shared = len(tokens)
        for text in _GOES_ON:
            other = self.encode([*messages[:-1], replace(last, content=last.content + text)], options=options)
            n_shared = min(n_shared, common_prefix(other, tokens))
        return list(tokens[:n_shared])

    def is_news(self, about: str, what: object) -> bool:
        """Tell if something else was last said about this. Notices come when they become true, not at every turn."""
        with self._told_lock:
            is_new = self._told.get(about) != what
            self._told[about] = what
            return is_new


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _spell(tokenizer: Tokenizer, tokens: Sequence[object], text: str) -> bool:
    """Tell if these are tokens of the model, none of them special, that make up a text."""
    stream, spelled = TextStream(), ""
    for token in tokens:
        if not isinstance(token, int) or not 0 <= token < tokenizer.n_vocab or len(spelled) > len(text):
            return False
        data = tokenizer.token_bytes(token)
        if data != tokenizer.token_bytes(token, special=True):  # "<|im_start|>" has no text, but would speak as the system
            return False
        spelled += stream.feed(data)
    return spelled + stream.final() == text


class _Memo(Generic[Key]):
    """Token ids by text, bounded; the least recently used go first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Key, list[int]] = OrderedDict()
        self._n_tokens = 0  # of all entries, and one for each
        self._lock = threading.Lock()

    def get(self, key: Key) -> list[int] | None:
        with self._lock:
            tokens = self._entries.get(key)
            if tokens is not None:
                self._entries.move_to_end(key)
            return tokens

    def put(self, key: Key, tokens: list[int]) -> None:
        if len(tokens) >= _MEMO_TOKENS:
            return  # it would push out everything else
        with self._lock:
            if key in self._entries:
                self._n_tokens -= len(self._entries.pop(key)) + 1
            self._entries[key] = tokens
            self._n_tokens += len(tokens) + 1
            while self._n_tokens > _MEMO_TOKENS:
                self._n_tokens -= len(self._entries.popitem(last=False)[1]) + 1
