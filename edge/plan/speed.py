"""How fast an engine answers on this device, and how far it may be from another: what decides which one is used."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edge.names import Accelerator

__all__ = ["LOSSLESS_NATS", "TURNS_A_LOAD", "TURN_PROMPT", "TURN_REPLY", "EngineSpeed", "is_lossless", "turn_seconds"]

TURN_PROMPT, TURN_REPLY, TURNS_A_LOAD = 256, 128, 12
"""A turn of a chat: tokens to prefill (those before are in the KV cache), tokens of the reply; turns for each load."""
LOSSLESS_NATS = 0.01
"""An engine computes a model where its next-token distributions diverge by at most this much from it (mean KL divergence)."""

_Speed = Annotated[float, msgspec.Meta(gt=0, lt=1e9)]


class EngineSpeed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Measurements of one engine with one model, with the best settings that were found for it.

    Attributes:
        backend, accelerator: names as in a Plan.
        prefill_tokens_per_s, decode_tokens_per_s: medians.
        load_s: from opening the file to the end of a first step.
        peak_bytes: most memory of its process, libraries included; 0 if unknown.
        divergence: mean KL divergence of its next-token distributions from those of the reference engine, in nats; 0 for the
            reference itself, None if not measured.
        agreement: share of the tokens after which both have the same likeliest next token.
        exact: mean KL divergence from the file's own weights, computed exactly; None if not measured.
        exact_limit: the most of it that counts as rounding: LOSSLESS_NATS, or what the usual engine loses itself.
        pass_ms: (tokens, ms) of passes over so many tokens of one reply, logits after each: what a draft costs. Empty if not
            measured.
        prefill_with: another engine prefilled; "" if this one did.
    """

    backend: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    accelerator: Accelerator
    prefill_tokens_per_s: _Speed
    decode_tokens_per_s: _Speed
    load_s: Annotated[float, msgspec.Meta(ge=0, lt=1e6)]
    peak_bytes: Annotated[int, msgspec.Meta(ge=0)] = 0
    divergence: Annotated[float, msgspec.Meta(ge=0)] | None = None
    agreement: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    exact: Annotated[float, msgspec.Meta(ge=0)] | None = None
    exact_limit: Annotated[float, msgspec.Meta(ge=0)] = LOSSLESS_NATS
    pass_ms: tuple[tuple[Annotated[int, msgspec.Meta(ge=1, le=64)], _Speed], ...] = ()
    prefill_with: Annotated[str, msgspec.Meta(max_length=200)] = ""

    @property
    def turn_s(self) -> float:
        """Seconds of an average turn of a chat."""
        return turn_seconds(self.prefill_tokens_per_s, self.decode_tokens_per_s, self.load_s)

    @property
    def pass_costs(self) -> dict[int, float]:
        """Time of passes as multiples of one over a single token; empty if not measured."""
        times = dict(self.pass_ms)
        return {n: ms / times[1] for n, ms in times.items()} if 1 in times else {}


def turn_seconds(prefill_tokens_per_s: float, decode_tokens_per_s: float, load_s: float = 0.0) -> float:
    """Return the average time of a turn of a chat: prefill, reply, and its share of loading the model."""
    return TURN_PROMPT / prefill_tokens_per_s + TURN_REPLY / decode_tokens_per_s + load_s / TURNS_A_LOAD


def is_lossless(divergence: float | None, exact: float | None = None, exact_limit: float = LOSSLESS_NATS) -> bool:
    """Return whether an engine loses no more than by rounding: told from the exact weights, where that was measured.

    Args:
        divergence, exact, exact_limit: as in EngineSpeed. One that was not measured is not lossless.
    """
    if exact is not None:
        return exact <= exact_limit
    return divergence is not None and divergence <= LOSSLESS_NATS
