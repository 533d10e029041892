"""Distance of a model from its reference over the same tokens.

Source: KL divergence and top-1 agreement as in llama.cpp's llama-perplexity --kl-divergence.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from edge.formats.logits import log_softmax
from edge_convert.evaluate.passages import Window

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Positions", "Quality", "Scores", "compare", "summarise"]

_CHUNK = 32
_MOST_NLL = 700.0
"""Its exponential is a number."""


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """Scores over one kind of text.

    Attributes:
        n_tokens: positions that count.
        perplexity: of the text that follows (for chat: of the reference's answer).
        reference_perplexity: the reference's.
        kl_mean: Kullback-Leibler divergence from the reference's distribution, in nats, mean over the positions.
        kl_p99: its 99th percentile.
        top1: share of the positions where both prefer the same token.
    """

    n_tokens: int
    perplexity: float
    reference_perplexity: float
    kl_mean: float
    kl_p99: float
    top1: float


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """One model against the reference.

    Attributes:
        all: over all positions.
        prose: over the novel.
        chat: over the answers; None without prompts.
        divergence: for each prompt, tokens of the reference's greedy answer before the model's first other one; None if it has
            all of them.
        n_answer: tokens of such an answer.
    """

    all: Scores
    prose: Scores
    chat: Scores | None
    divergence: tuple[int | None, ...]
    n_answer: int

    @property
    def mean_divergence(self) -> float:
        """Tokens before the first difference, mean over the prompts; a full answer counts n_answer."""
        lengths = [self.n_answer if found is None else found for found in self.divergence]
        return sum(lengths) / len(lengths) if lengths else math.nan


class Positions(NamedTuple):
    """Values per position of one window, float64 or bool [n_positions].

    Attributes:
        nll: negative log-likelihood of the token that follows.
        reference_nll: the reference's.
        kl: divergence from the reference, in nats.
        same: whether both prefer the same token.
    """

    nll: NDArray[np.float64]
    reference_nll: NDArray[np.float64]
    kl: NDArray[np.float64]
    same: NDArray[np.bool_]


def compare(window: Window, reference: NDArray[np.float32], logits: NDArray[np.float32]) -> Positions:
    """Compare two models over one window.

    Args:
        window: the tokens.
        reference: float32 [n_tokens, n_vocab], the reference's logits.
        logits: the model's. If one of them is padded with tokens that do not exist, the shorter vocabulary counts.
    """
    import numpy as np

    n_vocab = min(reference.shape[1], logits.shape[1])
    targets = np.array(window.tokens[window.first + 1 :])
    parts: list[Positions] = []
    for start in range(0, len(targets), _CHUNK):
        target = targets[start : start + _CHUNK]
        rows = slice(window.first + start, window.first + start + len(target))
        theirs, ours = log_softmax(reference[rows, :n_vocab]), log_softmax(logits[rows, :n_vocab])
        at = np.arange(len(target)), target
        kl = np.einsum("tv,tv->t", np.exp(theirs), theirs - ours)
        same = theirs.argmax(axis=1) == ours.argmax(axis=1)
        parts.append(Positions(-ours[at], -theirs[at], np.maximum(kl, 0.0), same))  # rounding can take it below 0
    return Positions(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def summarise(windows: Sequence[Window], positions: Iterable[Positions]) -> Quality:
    """Summarise the results of `compare`, a window each, for a card."""
    found = list(zip(windows, positions, strict=True))
    prose = [part for window, part in found if window.kind == "prose"]
    chat = [part for window, part in found if window.kind == "chat"]
    lengths = [len(part.kl) for part in chat]
    return Quality(
        all=_scores(prose + chat),
        prose=_scores(prose),
        chat=_scores(chat) if chat else None,
        divergence=tuple(None if part.same.all() else int(part.same.argmin()) for part in chat),
        n_answer=max(lengths, default=0),
    )


def _scores(parts: Sequence[Positions]) -> Scores:
    import numpy as np

    nll, reference_nll, kl, same = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Scores(
        n_tokens=len(kl),
        perplexity=float(np.exp(min(nll.mean(), _MOST_NLL))),
        reference_perplexity=float(np.exp(min(reference_nll.mean(), _MOST_NLL))),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99)),
        top1=float(same.mean()),
    )
