"""Log probabilities of tokens, in the forms of chat completions and of completions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from edge.types import TokenLogprob
from edge_serve.probabilities import finite, listed

__all__ = ["chat_form", "completion_form"]


def chat_form(tokens: Iterable[TokenLogprob]) -> dict[str, Any]:
    """Return them as chat completions have them."""
    return {"content": listed(tokens), "refusal": None}


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
        "token_logprobs": [finite(token.logprob) for token in tokens],
        # The token itself is among them, even beyond the number that was asked for: clients look it up there.
        "top_logprobs": [{other.text: finite(other.logprob) for other in (*token.top, token)} for token in tokens],
        "text_offset": offsets,
    }
