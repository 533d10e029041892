"""Log probabilities of tokens, in the forms of chat completions and of completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edge.types import TokenLogprob
from edge_serve.errors import ApiError

__all__ = ["MOST", "chat_form", "check_number", "completion_form"]

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


def chat_form(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Return them as chat completions have them."""
    content = [{**_token(token), "top_logprobs": [_token(other) for other in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def completion_form(tokens: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """Return them as completions have them.

    Args:
        tokens: the tokens.
        offset: characters of the text before the first.
    """
    texts = [token.text for token in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [_finite(token.logprob) for token in tokens],
        # The token itself is among them, even beyond the number that was asked for: clients look it up there.
        "top_logprobs": [{other.text: _finite(other.logprob) for other in (*token.top, token)} for token in tokens],
        "text_offset": offsets,
    }


def _token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.data)}


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
