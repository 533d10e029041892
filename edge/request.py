"""What is asked of a turn: `Assistant.generate`, `Conversation.send` and the server all make one of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edge.types import Message, Sampling

if TYPE_CHECKING:
    from edge.names import CacheHint, Priority

__all__ = ["Request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request to a model.

    Attributes:
        prompt: messages, or a text to continue without a chat template.
        sampling: how tokens are chosen; what it leaves out is the assistant's.
        window: what happens to old messages when the context window is full, see `edge.prompt.window.fit`; None is the
            assistant's.
        timeout_s: the reply is stopped this long after it was asked for, in seconds; None never.
        hint: where the KV cache of the turn stays.
        namespace: of the KV cache: only what was computed in it is reused.
        priority: "background" for a reply that nobody waits for: it makes way for others.
        n_logprobs: also return the logprob of each token, and of so many of the likeliest ones; None returns none.
        is_prefill_only: prefill what all prompts share that begin with these messages, the last of them open-ended, and
            generate nothing.
        owner: of its blocks on the disk; None is the conversation that the reply is saved in, if there is one.
    """

    prompt: str | Sequence[Message]
    sampling: Sampling = field(default_factory=Sampling)
    window: str | None = None
    timeout_s: float | None = None
    hint: CacheHint = "disk"
    namespace: str = ""
    priority: Priority = "interactive"
    n_logprobs: int | None = None
    is_prefill_only: bool = False
    owner: str | None = None
