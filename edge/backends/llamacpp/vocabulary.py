"""The tokenizer in a GGUF, through llama.cpp."""

from __future__ import annotations

import ctypes
from typing import Any

from edge.errors import BackendError
from edge.prompt.tokenizers import Token, Tokenizer

__all__ = ["Vocabulary"]


class Vocabulary(Tokenizer):
    """See `Tokenizer`. llama.cpp only reads a vocabulary after it is loaded, so it may be used while the engine computes.

    Args:
        library: from `load_library`.
        vocab: the vocabulary pointer, which belongs to the model: close this before the model is freed.
    """

    def __init__(self, library: Any, vocab: Any) -> None:
        super().__init__(library.llama_vocab_n_tokens(vocab))
        self._library = library
        self._vocab = vocab
        self._buffer = ctypes.create_string_buffer(256)  # of the newest piece; `_look_up` is never called twice at a time

    def _encode(self, text: str, add_special: bool, parse_special: bool) -> list[int]:
        return self.encode_bytes(text.encode("utf-8", "replace"), add_special, parse_special)

    def encode_bytes(self, data: bytes, add_special: bool = False, parse_special: bool = False) -> list[int]:
        """Return the token ids of a text in UTF-8, or of a piece of one that need not be whole characters."""
        room = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            count = self._library.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, parse_special)
            if count >= 0:
                return tokens[:count]
            if -count <= room:
                raise BackendError(f"llama.cpp could not tokenise a text of {len(data):,} bytes.")
            room = -count

    def _look_up(self, token: int) -> Token:
        is_end = bool(self._library.llama_vocab_is_eog(self._vocab, token))
        plain = self._piece(token, special=False)
        return Token(plain, plain or self._piece(token, special=True), is_end)  # only special tokens have two spellings

    def _piece(self, token: int, *, special: bool) -> bytes:
        while True:
            count = self._library.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, special)
            if count >= 0:
                return ctypes.string_at(self._buffer, count)
            self._buffer = ctypes.create_string_buffer(-count)
