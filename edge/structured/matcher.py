"""One reply under a compiled grammar: an `edge.engine.constraint.Matcher`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge.errors import ConstraintError

if TYPE_CHECKING:
    from edge.backends.base import Mask

__all__ = ["GrammarMatcher"]


class GrammarMatcher:
    """See `Matcher`.

    Args:
        native: a `llguidance.LLMatcher` of its own.
        n_vocab: tokens of the vocabulary.
        noun: the kind of constraint, for errors.
    """

    def __init__(self, native: Any, n_vocab: int, noun: str) -> None:
        import numpy as np

        self._native, self._n_vocab, self._noun = native, n_vocab, noun
        self._bits = np.zeros((n_vocab + 31) // 32, dtype=np.int32)
        self._address = self._bits.ctypes.data

    @property
    def is_complete(self) -> bool:
        return bool(self._native.is_accepting())

    @property
    def is_over(self) -> bool:
        return bool(self._native.is_stopped())

    def allowed(self) -> Mask:
        import numpy as np

        self._native.unsafe_compute_mask_ptr(self._address, self._bits.nbytes)
        if self._native.is_error():
            raise self._failure()
        # llguidance's own way to expand the bits takes ten times as long.
        mask: Mask = np.unpackbits(self._bits.view(np.uint8), count=self._n_vocab, bitorder="little").view(np.bool_)
        return mask

    def accept(self, token: int) -> None:
        if not self._native.consume_token(token):
            raise self._failure()

    def n_valid(self, tokens: Sequence[int]) -> int:
        return int(self._native.validate_tokens(list(tokens)))

    def forced(self) -> Sequence[int]:
        tokens: list[int] = self._native.compute_ff_tokens()
        # Checked, since a tokenizer may spell the forced bytes in another way, with a space in front for example.
        return tokens[: self._native.validate_tokens(tokens)] if tokens else tokens

    def _failure(self) -> ConstraintError:
        reason = str(self._native.get_error()).split("\n")[0][:200]
        return ConstraintError(
            f"The reply cannot go on under its {self._noun}: {reason or self._native.stop_reason()}.",
            f"Simplify the {self._noun}: fewer properties, alternatives or repetitions at one place.",
        )
