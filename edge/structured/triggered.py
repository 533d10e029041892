"""A reply of free text in which each tool call is held to a grammar: it begins once the text that opens a call was generated.

Free text costs nothing: without a mask all tokens are allowed. An `edge.engine.constraint.Matcher`.

Source: the lazy grammars of llama.cpp (`llama_sampler_init_grammar_lazy_patterns`).
"""

from __future__ import annotations

import re
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
    """Looks for the text that opens a call, which in a thought is text like any other.

    Attributes:
        opening: of a call, in bytes; what follows its match belongs to the call.
        longest: bytes that the match, and what it looks ahead at, may have.
        is_first: a call opens only where no other text stands before it.
        thought: words that open and close a thought; None where the model has none.
        is_thinking: the text is in a thought now.
    """

    opening: re.Pattern[bytes]
    longest: int
    is_first: bool = False
    thought: tuple[bytes, bytes] | None = None
    is_thinking: bool = False
    _tail: bytes = b""
    _is_behind: bool = False  # text stands before what comes

    def feed(self, data: bytes) -> bytes | None:
        """Take more text. Returns what stands behind the opening of a call; None if there is none."""
        self._tail += data
        while True:
            opening, closing = self.thought or (b"", b"")
            if self.is_thinking:
                if not self._cut(closing, self._tail.find(closing)):
                    return None
                self.is_thinking = self._is_behind = False
                continue
            place = self._tail.find(opening) if opening else -1
            find = self.opening.match if self.is_first else self.opening.search
            found = find(self._tail) if not (self.is_first and self._is_behind) else None
            if found is not None and (place < 0 or found.start() <= place):
                rest, self._tail, self._is_behind = self._tail[found.end() :], b"", False
                return rest
            if not self._cut(opening, place):
                return None
            self.is_thinking = True

    def _cut(self, word: bytes, place: int) -> bool:
        """Drop what stands before the end of a word; without one, what cannot be part of what is looked for."""
        if place >= 0:
            self._tail = self._tail[place + len(word) :]
            return True
        longest = max(self.longest, len(word))
        if len(self._tail) > longest:
            self._tail, self._is_behind = self._tail[-longest:], True
        return False


class TriggeredMatcher:
    """See the module.

    Args:
        watch: finds the opening.
        begin: returns a matcher of what follows it, behind this much of that; None if the grammar does not have it.
        tokenizer: of the model.
    """

    def __init__(self, watch: Watch, begin: Callable[[bytes], Matcher | None], tokenizer: Tokenizer) -> None:
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
            self._call = self._begin(rest)
            self._is_off = self._call is None
            if self._call is not None and self._call.is_over:
                self._call = None

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

    def _bytes(self, token: int) -> bytes:
        return self._tokenizer.token_bytes(token, special=True)
