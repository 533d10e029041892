"""A reply of free text in which each tool call is held to a grammar: it begins once the word that opens a call was generated.

Free text costs nothing: without a mask all tokens are allowed. An `edge.engine.constraint.Matcher`.

Source: the lazy grammars of llama.cpp (`llama_sampler_init_grammar_lazy_patterns`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import ConstraintError

if TYPE_CHECKING:
    from edge.backends.base import Mask
    from edge.engine.constraint import Matcher
    from edge.prompt.tokenizers import Tokenizer

__all__ = ["TriggeredMatcher", "Watch"]


@dataclass(slots=True)
class Watch:
    """Looks for the word that opens a call, which in a thought is text like any other.

    Attributes:
        opens: words that open a call.
        thought: words that open and close a thought; None where the model has none.
        is_thinking: the text is in a thought now.
    """

    opens: Sequence[bytes]
    thought: tuple[bytes, bytes] | None = None
    is_thinking: bool = False
    _tail: bytes = b""

    def feed(self, data: bytes) -> bytes | None:
        """Take more text. Returns what stands behind an opening word; None if there is none."""
        self._tail += data
        while True:
            words = (
                self.thought[1:] if self.thought is not None and self.is_thinking else (*self.opens, *self._begin_of_thought)
            )
            found = min(((place, word) for word in words if (place := self._tail.find(word)) >= 0), default=None)
            if found is None:
                longest = max(map(len, words))
                self._tail = self._tail[-longest:]
                return None
            place, word = found
            self._tail = self._tail[place + len(word) :]
            if word in self.opens and not self.is_thinking:
                rest, self._tail = self._tail, b""
                return rest
            self.is_thinking = not self.is_thinking

    @property
    def _begin_of_thought(self) -> tuple[bytes, ...]:
        return self.thought[:1] if self.thought is not None else ()


class TriggeredMatcher:
    """See the module.

    Args:
        watch: finds the opening word.
        begin: returns a matcher of what follows it.
        tokenizer: of the model.
    """

    def __init__(self, watch: Watch, begin: Callable[[], Matcher], tokenizer: Tokenizer) -> None:
        self._watch, self._begin, self._tokenizer = watch, begin, tokenizer
        self._call: Matcher | None = None  # while one is written
        self._is_off = False  # a call began in a way that the grammar does not have: what follows is free

    @property
    def is_complete(self) -> bool:
        return self._call is None or self._call.is_complete

    @property
    def is_over(self) -> bool:
        return False

    def allowed(self) -> Mask | None:
        return self._call.allowed() if self._call is not None else None

    def accept(self, token: int) -> None:
        if self._call is not None:
            self._call.accept(token)
            if self._call.is_over:
                self._call = None
        elif not self._is_off and (rest := self._watch.feed(self._bytes(token))) is not None:
            self._call = self._begin()
            self._follow(rest)

    def resume(self, tokens: Sequence[int]) -> None:
        """Go on behind the beginning of a reply, whatever that is."""
        for token in tokens:
            try:
                self.accept(token)
            except ConstraintError:
                self._call, self._is_off = None, True

    def n_valid(self, tokens: Sequence[int]) -> int:
        if self._call is not None:
            return self._call.n_valid(tokens)
        watch = copy(self._watch)
        for number, token in enumerate(tokens, 1):
            if not self._is_off and watch.feed(self._bytes(token)) is not None:
                return number
        return len(tokens)

    def forced(self) -> Sequence[int]:
        return self._call.forced() if self._call is not None else ()

    def _follow(self, rest: bytes) -> None:
        """Take what the token that ended the opening word holds of the call."""
        tokens = self._tokenizer.tokenize(rest.decode("utf-8", "replace")) if rest else []
        assert self._call is not None
        if self._call.n_valid(tokens) < len(tokens):
            self._call, self._is_off = None, True
            return
        for token in tokens:
            self._call.accept(token)

    def _bytes(self, token: int) -> bytes:
        return self._tokenizer.token_bytes(token, special=True)
