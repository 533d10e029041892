"""Prompts, replies and how they are made: the values that all of the tasks share."""

from __future__ import annotations

import msgspec

__all__ = ["Answer", "AnswerOptions", "Ask"]


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt.

    Attributes:
        messages: (role, text) each.
        max_tokens: length of the longest reply.
    """

    messages: tuple[tuple[str, str], ...]
    max_tokens: int


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A reply.

    Attributes:
        text: of it.
        is_cut: it was as long as allowed.
    """

    text: str
    is_cut: bool = False


class AnswerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model answers.

    Attributes:
        n_parallel: replies side by side. With 1 the replies are the same each time; otherwise the engine's last bits depend on
            which replies share a pass, and where two tokens are almost as likely another one may be taken.
        n_threads: CPU threads; None lets the plan choose.
    """

    n_parallel: int = 4
    n_threads: int | None = None
