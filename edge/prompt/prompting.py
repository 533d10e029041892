"""From messages to the tokens of a prompt, for one model, tokenising only what was not seen before."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from edge.errors import TemplateError
from edge.kv.tree import common_prefix
from edge.prompt.stream import TextStream
from edge.prompt.template import ChatTemplate
from edge.prompt.window import MessageCounter
from edge.types import Message

if TYPE_CHECKING:
    from edge.backends.base import ModelInfo
    from edge.prompt.tokenizers import Tokenizer

__all__ = ["Prompting"]

_MEMO_TOKENS = 400_000
Key = TypeVar("Key")


class Prompting:
    """What turns need to make prompts. Thread-safe.

    Args:
        info: the model.
        tokenizer: of the model.
        system: system prompt where a conversation has none; "" is an empty one, None leaves it to the template.

    Attributes:
        template: the model's chat template.
        tokenizer, system: as above.
    """

    def __init__(self, info: ModelInfo, tokenizer: Tokenizer, system: str | None) -> None:
        self.template = ChatTemplate.from_model(info)
        self.system = system
        self.tokenizer = tokenizer
        self._texts: _Memo[tuple[str, bool, bool]] = _Memo()
        self._replies: _Memo[str] = _Memo()
        self._counter = MessageCounter(lambda messages: len(self.encode(messages)))
        self._counter_lock = threading.Lock()
        self._told: dict[object, object] = {}
        self._told_lock = threading.Lock()

    def system_message(self, system: str) -> list[Message]:
        """The system prompt of a conversation, or else the default one, or else none: at most one message."""
        text = system or self.system
        return [] if text is None else [Message("system", text)]

    def encode(self, messages: Sequence[Message], tell: Callable[[str], None] | None = None) -> list[int]:
        """The tokens of a prompt.

        Args:
            messages: at least one.
            tell: called with what the template could not take as it was.

        Raises:
            TemplateError: the template refuses these messages.
            BackendError: the model is closed.
        """
        prompt = self.template.render(messages)
        if tell is not None:
            for notice in prompt.notices:
                tell(notice)
        return self.template.encode(prompt, self.tokenize, known=self._replies.get)

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """`Tokenizer.tokenize` with a memo.

        Raises:
            BackendError: the model is closed.
        """
        key = (text, add_special, parse_special)
        known = self._texts.get(key)
        if known is None:
            known = self.tokenizer.tokenize(text, add_special=add_special, parse_special=parse_special)
            self._texts.put(key, known)
        return known

    def count_one(self, message: Message) -> int:
        """How many tokens a message adds to a prompt; rather too many than too few."""
        with self._counter_lock:
            return self._counter(message)

    def remember_reply(self, text: str, tokens: Sequence[int]) -> None:
        """The next prompt shall hold the very tokens that were generated: only those are in the KV cache."""
        self._replies.put(text, list(tokens))

    def recall_replies(self, kept: Iterable[tuple[str, object]]) -> None:
        """Remember replies of an earlier run of the program.

        Args:
            kept: texts and what was kept as their tokens. That came from a file, so tokens that do not make up the text, or are
                none, are left out.
        """
        for text, tokens in kept:
            if isinstance(tokens, list) and tokens and self._replies.get(text) is None and _says(self.tokenizer, tokens, text):
                self._replies.put(text, tokens)

    def shared_end(self, messages: Sequence[Message], tokens: Sequence[int]) -> int:
        """Up to where a prompt is what every conversation with the same system prompt begins with; 0 where that is nothing.

        Args:
            messages: of the prompt.
            tokens: of the prompt.
        """
        if not messages or messages[0].role != "system":
            return 0
        try:
            return common_prefix(self.encode([messages[0], Message("user", "")]), tokens)
        except TemplateError:
            return 0

    def is_news(self, about: str, what: object) -> bool:
        """Whether this was not the last thing told about that: a notice comes when it becomes true, not at every turn."""
        with self._told_lock:
            is_new = self._told.get(about) != what
            self._told[about] = what
            return is_new


def _says(tokenizer: Tokenizer, tokens: list[object], text: str) -> bool:
    """Whether these are tokens of this model that make up this text."""
    stream, said = TextStream(), ""
    for token in tokens:
        if not isinstance(token, int) or not 0 <= token < tokenizer.n_vocab or len(said) > len(text):
            return False
        data = tokenizer.token_bytes(token)
        if data != tokenizer.token_bytes(token, special=True):  # "<|im_start|>" is no text, but would speak as the system
            return False
        said += stream.feed(data)
    return said + stream.final() == text


class _Memo(Generic[Key]):
    """Token ids that are known already, least recently used out first."""

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
        with self._lock:
            self._n_tokens += len(tokens) + 1 - self._size(key)
            self._entries[key] = tokens
            self._entries.move_to_end(key)
            while self._n_tokens > _MEMO_TOKENS:
                self._n_tokens -= len(self._entries.popitem(last=False)[1]) + 1

    def _size(self, key: Key) -> int:
        return len(self._entries[key]) + 1 if key in self._entries else 0
