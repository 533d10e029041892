"""Chooses the best of several conversions for this device: the fastest here of those that meet the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge.errors import QualityGateError, UsageError
from edge.formats.gguf import read_header
from edge_convert.evaluate.card import Card, Row
from edge_convert.gguf.quantise import FLOATS, QUANTISATIONS, type_of_weights

if TYPE_CHECKING:
    from edge_convert.facts import Request
    from edge_convert.inputs import Input

__all__ = ["CANDIDATES", "DEFAULT_GATE", "Choice", "choose", "with_candidates"]

CANDIDATES = ("Q4_0", "IQ4_NL", "Q4_K_M", "Q5_K_M", "Q8_0")
"""GGUF quantisations to try: the first two have repacked kernels on many CPUs, the others keep more quality."""

DEFAULT_GATE = "top1=0.9,kl=0.1"
_PREFILL_TOKENS, _DECODE_TOKENS = 256, 128


class Choice(msgspec.Struct, frozen=True):
    """The chosen conversion.

    Attributes:
        index: of the artifact among those on the card.
        reasons: a sentence for each candidate, the chosen one first.
    """

    index: int
    reasons: tuple[str, ...]


def with_candidates(request: Request, source: Input) -> Request:
    """Return the request with all candidates. A quantised GGUF's own blocks are one of them: they cost nothing."""
    names: tuple[str, ...] = CANDIDATES
    if source.kind == "gguf" and not request.changes_model:
        own = type_of_weights(read_header(source.path))
        names = (own, *names) if own in QUANTISATIONS and own not in (*FLOATS, *names) else names
    return msgspec.structs.replace(request, gguf=msgspec.structs.replace(request.gguf, quantisations=names))


def choose(card: Card) -> Choice:
    """Choose by the time of a typical turn: 256 tokens of prefill, 128 of decode.

    Raises:
        QualityGateError: no candidate meets the gate.
        UsageError: no row has a speed.
    """
    others = [row for row in card.rows if not row.is_reference]
    # A checkpoint is on the card to show the cost of a distillation; nobody runs it on a device.
    rows = [(index, row) for index, row in enumerate(others) if row.speed is not None and row.format != "checkpoint"]
    if not rows:
        raise UsageError("The card has no speeds to choose by.", "Measure at least one round, of a format that runs here.")
    good = sorted((turn_s(row), index) for index, row in rows if not row.failures)
    if not good:
        listed = "; ".join(f"{row.name}: {row.failures[0]}" for _, row in rows)
        raise QualityGateError(
            f"No candidate meets the gate ({card.gate}). {listed}.", "Use a wider gate, or more bits: --quant Q8_0,F16"
        )
    best = good[0][1]
    ordered = sorted(rows, key=lambda entry: (entry[0] != best, bool(entry[1].failures), turn_s(entry[1])))
    untimed = [f"{row.name} does not run here, so it was not timed." for row in others if row.speed is None]
    return Choice(best, (*(_reason(row, index == best, len(good), card.gate) for index, row in ordered), *untimed))


def turn_s(row: Row) -> float:
    """Return the seconds of a typical turn."""
    assert row.speed is not None
    return _PREFILL_TOKENS / row.speed.prefill_tokens_per_s + _DECODE_TOKENS / row.speed.decode_tokens_per_s


def _reason(row: Row, is_best: bool, n_good: int, gate: str) -> str:
    took = f"{turn_s(row):.1f} s for {_PREFILL_TOKENS} tokens read and {_DECODE_TOKENS} written"
    if is_best:
        return f"{row.name} is chosen: {took}, the fastest here of the {n_good} that meet {gate}."
    if row.failures:
        return f"{row.name} is not good enough: {row.failures[0]}."
    return f"{row.name} is slower: {took}."
