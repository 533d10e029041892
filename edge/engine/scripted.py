"""A sampler that chooses nothing: it gives the tokens of a text, so that the engine says how likely they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.backends.base import Sampler

if TYPE_CHECKING:
    from edge.backends.base import Mask

__all__ = ["ScriptedSampler"]


class ScriptedSampler(Sampler):
    """See the module.

    Args:
        tokens: those of the text. The reply must end with the last one: it ends a reply, or `Sampling.max_tokens` does.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._left = list(reversed(tokens))

    @property
    def left(self) -> Sequence[int]:
        """The tokens that are still to come."""
        return self._left[::-1]

    def sample(self, seq_id: int, n_back: int = 0, allowed: Mask | None = None) -> int:
        return self._left.pop()

    def accept(self, tokens: Sequence[int]) -> None:
        pass  # it has no penalties

    def close(self) -> None:
        pass  # it holds nothing of the engine's
