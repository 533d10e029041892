"""edge's tokenizer as llguidance's: the bytes of every token, which are special, and how text becomes tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge.errors import UnsupportedError

if TYPE_CHECKING:
    from edge.prompt.tokenizers import Tokenizer

__all__ = ["open_vocabulary"]


class _Wrapped:
    """The attributes that `llguidance.TokenizerWrapper` reads.

    Special tokens are named, so that no JSON string or pattern may contain one, and the text of forced tokens is never parsed
    for them: a constant "<|im_end|>" is written in letters.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        entries = list(tokenizer.entries())
        self.tokens = [entry.special for entry in entries]
        self.ends = [token for token, entry in enumerate(entries) if entry.is_end]
        self.special_token_ids = [token for token, entry in enumerate(entries) if not entry.plain]
        self.eos_token_id = self.ends[0] if self.ends else None
        self.bos_token_id = None
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        return self._tokenizer.tokenize(text.decode("utf-8", "replace") if isinstance(text, bytes) else text)


def open_vocabulary(tokenizer: Tokenizer) -> Any:
    """Return the `llguidance.LLTokenizer` of a model. Takes a few tenths of a second for 49,152 tokens.

    Raises:
        UnsupportedError: the model has no token that ends a reply.
        BackendError: the model is closed.
    """
    from llguidance import LLTokenizer, TokenizerWrapper

    wrapped = _Wrapped(tokenizer)
    if not wrapped.ends:
        raise UnsupportedError("This model has no token that ends a reply.", "Choose a chat model.")
    # In two steps, since each holds Python's lock, and replies go on in between.
    plain = LLTokenizer(TokenizerWrapper(wrapped), n_vocab=tokenizer.n_vocab, eos_token=wrapped.ends, slices=[])
    return plain.with_slices(LLTokenizer.json_slices())
