"""Frozen values that all rooms use, validated where they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edge.errors import UsageError

__all__ = ["FinishReason", "Message", "Role", "Sampling", "Timing", "Usage"]

Role = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: of the speaker.
        content: the text.
        name: the tool's or speaker's name, where the role has one.
    """

    role: Role
    content: str
    name: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ("system", "user", "assistant", "tool"):
            raise UsageError(f"There is no role {self.role!r}.", "Roles are system, user, assistant and tool.")


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of the sampler. Names, order and meaning are those of llama.cpp's sampler chain: logit bias, penalties, DRY,
    top-k, typical-p, top-p, min-p, XTC, temperature, draw.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it (>= 0).
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities add up to p (0 to 1; 1 keeps all).
        min_p: drop tokens less likely than min_p times the likeliest (0 to 1; 0 keeps all).
        typical_p: locally typical sampling (0 to 1; 1 turns it off).
        repeat_penalty: divides the logits of tokens seen in the last `repeat_last_n` (> 0; 1 turns it off).
        repeat_last_n: number of newest tokens that the penalties look at; -1 is the whole context, 0 none.
        frequency_penalty: subtracted per earlier occurrence (0 turns it off).
        presence_penalty: subtracted once when the token occurred (0 turns it off).
        dry_multiplier: strength of DRY, which punishes continuing a repeated sequence (0 turns it off).
        dry_base: base of DRY's exponential.
        dry_allowed_length: repeats up to this many tokens go unpunished.
        dry_penalty_last_n: number of newest tokens that DRY looks at; -1 is the whole context.
        dry_sequence_breakers: texts that end a repeated sequence.
        xtc_probability: chance that XTC drops all but the least likely of the top tokens (0 turns it off).
        xtc_threshold: the probability a token must have for XTC to count it as a top token.
        seed: makes the draw repeatable; None takes a fresh one.
        logit_bias: token id -> value added to its logit; -inf forbids the token.
        stop: texts that end the reply; they may span tokens and are not part of the reply.
        max_tokens: length of the longest reply in tokens; None is until the model stops or the window is full.

    Raises:
        UsageError: a value is out of its range.

    Source: llama.cpp `common/sampling.cpp`; DRY by p-e-w; XTC by p-e-w; min-p by Nguyen et al., 2024.
    """

    temperature: float = 0.7
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = ("\n", ":", '"', "*")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    seed: int | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        ranges: list[tuple[str, float | None, float | None]] = [
            ("temperature", 0.0, None),
            ("top_k", 0, None),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("typical_p", 0.0, 1.0),
            ("repeat_last_n", -1, None),
            ("dry_multiplier", 0.0, None),
            ("dry_base", 1.0, None),
            ("dry_allowed_length", 0, None),
            ("dry_penalty_last_n", -1, None),
            ("xtc_probability", 0.0, 1.0),
            ("xtc_threshold", 0.0, 1.0),
        ]
        for name, low, high in ranges:
            value = getattr(self, name)
            # NaN fails every comparison, so the test is for being inside, not outside.
            is_inside = (low is None or value >= low) and (high is None or value <= high)
            if not is_inside:
                top = "up" if high is None else f"to {high:g}"
                raise UsageError(f"{name} is {value}, which is out of range.", f"Use a value from {low:g} {top}.")
        if not self.repeat_penalty > 0:
            raise UsageError(f"repeat_penalty is {self.repeat_penalty}, which is out of range.", "1 turns it off.")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise UsageError(f"max_tokens is {self.max_tokens}.", "Ask for at least one token.")
        if any(not text for text in self.stop):
            raise UsageError("A stop text is empty, so every reply would end at once.", "Leave it out.")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one turn.

    Attributes:
        n_prompt: tokens of the prompt.
        n_reused: tokens of the prompt that were in the KV cache or on the disk and not computed.
        n_generated: tokens of the reply.
        n_restored: reused tokens that came from the disk.
        saved_ms: estimated time to compute the reused tokens, less the time to restore them.
        is_answer_cached: nothing was computed: the same request was answered before.
    """

    n_prompt: int = 0
    n_reused: int = 0
    n_generated: int = 0
    n_restored: int = 0
    saved_ms: float = 0.0
    is_answer_cached: bool = False

    @property
    def n_computed(self) -> int:
        """Prompt tokens that were computed."""
        return self.n_prompt - self.n_reused


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of one turn, in milliseconds of wall clock.

    Attributes:
        queue_ms: waiting for the engine while another turn used it.
        tokenize_ms: template and tokenizer.
        prefill_ms: computing the part of the prompt that was not in the cache.
        first_token_ms: from the request to the first text that can be shown; 0 without any.
        decode_ms: from the first token to the end, also while its text was withheld in case a stop text followed.
        total_ms: from the request to the end.
    """

    queue_ms: float = 0.0
    tokenize_ms: float = 0.0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    decode_ms: float = 0.0
    total_ms: float = 0.0

    def tokens_per_s(self, n_generated: int) -> float:
        """Return the decode speed. The first token belongs to prefill and does not count; 0 with fewer than two tokens."""
        return (n_generated - 1) * 1000.0 / self.decode_ms if n_generated > 1 and self.decode_ms > 0 else 0.0
