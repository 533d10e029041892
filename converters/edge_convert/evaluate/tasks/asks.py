"""Prompts and how they are answered: the values that all of the tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

__all__ = ["AnswerOptions", "Ask", "spread"]

T = TypeVar("T")


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt.

    Attributes:
        messages: (role, text) each.
        max_tokens: length of the longest reply.
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int


class AnswerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model answers.

    Attributes:
        n_parallel: replies side by side. With 1 the replies are the same each time; otherwise the engine's last bits depend on
            which replies share a pass, and where two tokens are almost as likely another one may be taken.
        n_threads: CPU threads; None lets the plan choose.
        backend: name of edge's engine; "" lets the plan choose. Checkpoints are computed by transformers.
    """

    n_parallel: int = 4
    n_threads: int | None = None
    backend: str = ""


def spread(items: Sequence[T], limit: int) -> list[T]:
    """Return `limit` items at even distances, so that kinds that follow each other keep their shares; all for 0."""
    if not 0 < limit < len(items):
        return list(items)
    return [items[len(items) * number // limit] for number in range(limit)]
