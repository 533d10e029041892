"""Log probabilities of tokens: how many are asked for, and the list that several protocols have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edge.types import TokenLogprob
from edge_serve.errors import ApiError

__all__ = ["MOST", "check_number", "finite", "listed", "logprob_options"]

MOST = 20
_LEAST = -9999.0  # JSON has no infinity


def check_number(name: str, number: int) -> int:
    """Return how many of the likeliest tokens are asked for.

    Raises:
        ApiError: more than are given.
    """
    if not 0 <= number <= MOST:
        raise ApiError(400, f"{name} is {number}; use 0 to {MOST}.", code="invalid_value", param=name)
    return number


def logprob_options(is_wanted: bool, n_top: int | None) -> dict[str, Any]:
    """Return the options of a reply with logprobs, or without.

    Raises:
        ApiError: the number is out of range, or asks for what is not wanted.
    """
    check_number("top_logprobs", n_top or 0)
    if n_top and not is_wanted:
        raise ApiError(400, "top_logprobs needs logprobs.", code="invalid_value", param="top_logprobs")
    return {"logprobs": n_top or 0} if is_wanted else {}


def listed(tokens: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Return tokens with their logprobs, and with the likeliest in the place of each."""
    return [{**_token(token), "top_logprobs": [_token(other) for other in token.top]} for token in tokens]


def finite(logprob: float) -> float:
    """Return a logprob as JSON has it."""
    return max(logprob, _LEAST)


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": finite(token.logprob), "bytes": list(token.data)}
