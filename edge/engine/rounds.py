"""Order and size of a round's prefill chunk.

Order: the prompt with the least left to compute goes first, so that a short message does not wait for a long one. Once
MOST_PASSES chunks in a row went to others, the oldest prompt gets the next one. So a prompt of k chunks is prefilled within
(MOST_PASSES + 1) * k chunks of the moment when it is the oldest, whatever else arrives. Background prompts get a chunk only
while no interactive reply runs.

Size: while others wait for it, a chunk takes no more time than the longest gap between two tokens of a reply allows, predicted
from the chunks before it. The pieces have at least `Backend.chunk_grain` tokens, which leave the last bits as they are.

Source: shortest remaining time first (Schrage, 1968), with a share for the oldest against starvation; chunked prefill beside
decode is Sarathi-Serve's (Agrawal et al., 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge.config.schema import EngineSettings

if TYPE_CHECKING:
    from edge.engine.generation import Generation

__all__ = ["MAX_GAP_MS", "MOST_PASSES", "ChunkTimer", "Order"]

MAX_GAP_MS = EngineSettings().max_gap_ms
MOST_PASSES = 3
_COUNTS_FROM = 16  # tokens; a shorter chunk takes as long as one of this length
_SMOOTHING = 0.5


class Order:
    """Shortest first, but the oldest after MOST_PASSES others."""

    def __init__(self) -> None:
        self._n_passes = 0

    def choose(self, candidates: Sequence[Generation], n_left: Callable[[Generation], int]) -> Generation:
        """Return the one to serve next. The order does not change before `note` says that it was served.

        Args:
            candidates: at least one, the oldest first.
            n_left: tokens that one of them still has to compute.
        """
        candidates = _first_class(candidates)
        return candidates[0] if self._n_passes >= MOST_PASSES else min(candidates, key=n_left)

    def note(self, candidates: Sequence[Generation], served: Generation) -> None:
        """Note which of the candidates of `choose` was served."""
        self._n_passes = 0 if served is _first_class(candidates)[0] else self._n_passes + 1


def _first_class(candidates: Sequence[Generation]) -> Sequence[Generation]:
    return [one for one in candidates if one.priority == "interactive"] or candidates


class ChunkTimer:
    """Predicts the time of a chunk.

    Args:
        max_gap_ms: longest gap between two tokens of a reply, in milliseconds.
        grain: the least tokens of a piece that a chunk is cut into.
    """

    def __init__(self, max_gap_ms: float, grain: int) -> None:
        self.max_gap_ms = max_gap_ms
        self._grain = grain
        self._ms_per_token = 0.0  # of the newest chunk of any prompt
        self._pass_ms = 0.0

    def predict_ms(self, generation: Generation, n_tokens: int) -> float:
        """Return the time that so many tokens of a prompt take, in milliseconds; 0 while nothing was measured."""
        return (generation.ms_per_token or self._ms_per_token) * n_tokens

    @property
    def pass_ms(self) -> float:
        """Time of a pass over a token of each reply, in milliseconds; 0 while nothing was measured."""
        return self._pass_ms

    def fit(self, generation: Generation, n_tokens: int, *, n_passes: int) -> int:
        """Return how many of the next tokens of a prompt to compute within the gap.

        Both pieces of a chunk that is cut have at least the grain, so fewer than two grains are not cut, whatever they take.

        Args:
            generation: whose prompt it is.
            n_tokens: of its next chunk.
            n_passes: replies are being decoded in so many passes, one beside each chunk: all those are part of the gap.
        """
        if n_tokens < 2 * self._grain:
            return n_tokens
        budget_ms = self.max_gap_ms / max(n_passes, 1) - (self._pass_ms if n_passes else 0.0)
        if (whole_ms := self.predict_ms(generation, n_tokens)) and whole_ms <= budget_ms:
            return n_tokens
        n_fitting = int(n_tokens * budget_ms / whole_ms) if whole_ms else 0
        n_cut = max(1, n_fitting // self._grain) * self._grain
        return min(n_cut, (n_tokens // self._grain - 1) * self._grain)

    def note_chunk(self, generation: Generation, n_tokens: int, ms: float) -> None:
        """Note how long a chunk took. Later chunks of a prompt take longer, so each prompt has an estimate of its own."""
        newest = ms / max(n_tokens, _COUNTS_FROM)
        known = generation.ms_per_token or newest
        self._ms_per_token = generation.ms_per_token = known + _SMOOTHING * (newest - known)

    def note_pass(self, ms: float) -> None:
        """Note how long it took to decode a token of each reply."""
        known = self._pass_ms or ms
        self._pass_ms = known + _SMOOTHING * (ms - known)
