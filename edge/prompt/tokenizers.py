"""The tokenizer of a loaded model, usable from any thread while the engine computes.

A backend opens it with the model and has it as `tokenizer`:

    llama.cpp        edge/backends/llamacpp/vocabulary.py    the vocabulary in the GGUF
    ONNX, Core ML    edge/prompt/hf_tokenizer.py             a folder in Hugging Face's layout, with the package `tokenizers`
    fake             edge/backends/fake.py                   bytes
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

from edge.errors import BackendError, UsageError

__all__ = ["Token", "Tokenizer"]

_BATCH = 256  # tokens that are looked up under one lock, which the engine waits for, too


class Token(NamedTuple):
    """One entry of a vocabulary.

    Attributes:
        plain: UTF-8 bytes in a reply; b"" for special tokens.
        special: UTF-8 bytes with the text of special tokens.
        is_end: ends a reply (end of sequence, end of turn).
    """

    plain: bytes
    special: bytes
    is_end: bool


class Tokenizer(ABC):
    """Text to token ids and back. Thread-safe.

    Args:
        n_vocab: token ids of the model, numbered from 0.

    Attributes:
        n_vocab: as above.

    Raises:
        UsageError: every method that takes a token, where the vocabulary does not have it.
        BackendError: every method, once the tokenizer is closed.
    """

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab
        # Two locks, so that the engine, which needs the bytes of each new token, never waits for a long text. close() takes
        # both: the model that the vocabulary belongs to is freed after it.
        self._text_lock, self._token_lock = threading.Lock(), threading.Lock()
        self._is_open = True
        self._tokens: dict[int, Token] = {}
        self._longest_token = 0

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text.

        Args:
            text: any text; lone surrogates become "?".
            add_special: put the beginning-of-sequence token in front where the model wants one.
            parse_special: turn "<|im_end|>" and the like into the special tokens that they name. Only for text from a
                template: what a user typed must not be able to speak as the system.

        Raises:
            BackendError: the text cannot be tokenised.
            UsageError: it has a special token that the tokenizer knows and the model does not.
        """
        with self._text_lock:
            self._check_open()
            # Where a vocabulary has no unknown token, llama.cpp gives -1 for text that it cannot spell.
            return [token for token in self._encode(text, add_special, parse_special) if token >= 0]

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """Return the UTF-8 bytes of a token. A character may be spread over several tokens.

        Args:
            token: a token id.
            special: give the text of special tokens too; otherwise they are b"".
        """
        found = self._find(token)
        return found.special if special else found.plain

    def is_end(self, token: int) -> bool:
        """Tell if a token ends a reply (end of sequence, end of turn)."""
        return self._find(token).is_end

    def vocabulary(self) -> list[bytes]:
        """Return the bytes of every token, special ones included. Takes about a microsecond a token."""
        return [entry.special for entry in self.entries()]

    def entries(self) -> Iterator[Token]:
        """Yield every token in the order of ids."""
        for start in range(0, self.n_vocab, _BATCH):
            with self._token_lock:
                self._check_open()
                entries = [self._look_up(token) for token in range(start, min(start + _BATCH, self.n_vocab))]
            yield from entries

    @property
    def longest_token(self) -> int:
        """Bytes of the longest token."""
        if not self._longest_token:
            self._longest_token = max(map(len, self.vocabulary()), default=0) or 1
        return self._longest_token

    def close(self) -> None:
        """Wait for the calls that use the vocabulary, and let no other one begin. May be called twice."""
        with self._text_lock, self._token_lock:
            self._is_open = False
            self._tokens = {}

    # -- for each kind of tokenizer; never called after close()

    @abstractmethod
    def _encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        """Tokenise one text. Never called twice at the same time."""

    @abstractmethod
    def _look_up(self, token: int) -> Token:
        """Return an entry of the vocabulary. Called beside `_encode`, but never twice at the same time."""

    # -- inside

    def _find(self, token: int) -> Token:
        found = self._tokens.get(token)
        if found is None:
            with self._token_lock:
                self._check_open()
                if not 0 <= token < self.n_vocab:
                    raise UsageError(f"There is no token {token}.", f"The vocabulary has {self.n_vocab} tokens.")
                found = self._tokens[token] = self._look_up(token)
        return found

    def _check_open(self) -> None:
        if not self._is_open:
            raise BackendError("The model is closed.", "Load it again.")
