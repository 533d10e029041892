"""From how likely several answers are to the likeliest one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge.types import Chosen

if TYPE_CHECKING:
    from edge.reply import Reply

__all__ = ["likeliest"]


def likeliest(choices: Sequence[str], replies: Sequence[Reply]) -> Chosen:
    """Return the likeliest of several answers.

    Args:
        choices: the answers, at least one.
        replies: of `Request.answer`, one each, which are over.

    Raises:
        TimeoutError: one was stopped before it was over.
    """
    if any(reply.is_cancelled for reply in replies):
        raise TimeoutError("The model took too long to choose.")
    logprobs = [_logprob(reply) for reply in replies]
    largest = max(logprobs)
    weights = [math.exp(one - largest) for one in logprobs]
    total = math.fsum(weights)
    shares = {choice: weight / total for choice, weight in zip(choices, weights, strict=True)}
    return Chosen(choices[logprobs.index(largest)], shares, min(1.0, math.exp(largest) * total))


def _logprob(reply: Reply) -> float:
    """Return the logarithm of the probability of a whole reply, its end included."""
    end = reply.end_logprob
    return math.fsum(one.logprob for one in reply.logprobs) + (end.logprob if end is not None else 0.0)
