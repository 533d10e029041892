"""Log-probabilities of tokens, from the logits of a model."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edge.backends.sampling import best

__all__ = ["logprobs_of", "top_tokens"]


def logprobs_of(logits: npt.NDArray[np.float32], tokens: Sequence[int]) -> list[float]:
    """Return the natural logarithms of the probabilities of tokens.

    Args:
        logits: shape (n_vocab,).
        tokens: token ids.
    """
    total = _log_sum(logits)
    return [float(logits[token]) - total for token in tokens]


def top_tokens(logits: npt.NDArray[np.float32], n_top: int) -> list[int]:
    """Return the likeliest tokens, the likeliest first; of equally likely ones, the first of the vocabulary."""
    return [int(token) for token in best(logits, n_top)] if n_top else []


def _log_sum(logits: npt.NDArray[np.float32]) -> float:
    """Return log(sum(exp(logits))); the sum is exact to float32's rounding, whatever the size of the vocabulary."""
    largest = logits.max()
    if np.isneginf(largest):
        return -math.inf
    return float(largest) + math.log(np.exp(logits - largest).sum(dtype=np.float64))
