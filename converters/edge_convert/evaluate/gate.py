"""The quality gate: how much worse than its source a converted model may be."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import msgspec

from edge.errors import QualityGateError, UsageError
from edge_convert.evaluate.card import AT_LEAST, Card, Failure
from edge_convert.evaluate.metrics import Quality
from edge_convert.evaluate.tasks.suite import Usefulness

__all__ = ["MEASURES", "Limit", "check", "check_tasks", "enforce", "parse_gate"]

MEASURES = {
    "top1": "top-1 agreement with the reference, at least",
    "kl": "mean KL divergence in nats, at most",
    "kl99": "99th percentile of the KL divergence, at most",
    "ppl": "perplexity on prose, at most; with + and % relative to the reference",
    "divergence": "mean number of tokens before a greedy answer leaves the reference's, at least",
    "facts": "share of the short questions that are answered, at least",
    "kept": "share of the questions that the reference answers, at least",
    "instructions": "share of the instructions that are followed, at least",
    "loops": "share of the long replies that end in a loop, at most",
}

_TASKS = {"facts": "facts", "kept": "facts", "instructions": "instructions", "loops": "repetition"}
"""Measure -> the task that it is of."""
_SHARES = ("top1", *_TASKS)


class Limit(msgspec.Struct, frozen=True):
    """One condition.

    Attributes:
        measure: a key of MEASURES.
        value: the limit; for a relative one, 0.05 means 5% above the reference.
        is_relative: whether the value is relative to the reference's.
    """

    measure: str
    value: float
    is_relative: bool = False


def parse_gate(text: str) -> tuple[Limit, ...]:
    """Read a gate such as "top1=0.9,kl=0.1,ppl=+5%".

    Raises:
        UsageError: a measure is unknown or given twice, or a value is not a number.
    """
    limits: dict[str, Limit] = {}
    for part in (piece.strip() for piece in text.split(",")):
        measure, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or measure not in MEASURES:
            known = "; ".join(f"{name}: {what}" for name, what in MEASURES.items())
            raise UsageError(
                f"{part!r} is not a condition of a gate.", f"Write MEASURE=VALUE,... with these measures: {known}."
            )
        if measure in limits:
            raise UsageError(f"The gate names {measure} twice.", "Name each measure once.")
        limits[measure] = _limit(measure, value)
    return tuple(limits.values())


def _limit(measure: str, value: str) -> Limit:
    is_relative = value.startswith("+") and value.endswith("%")
    if is_relative and measure != "ppl":
        raise UsageError(f"{measure}={value}: only ppl can be relative to the reference.", f"Write {measure}=NUMBER.")
    try:
        number = float(value[1:-1]) / 100 if is_relative else float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number < float("inf") or (measure in _SHARES and number > 1):
        raise UsageError(f"{measure}={value} is not a usable limit.", "For example: --gate top1=0.9,kl=0.1,ppl=+5%")
    return Limit(measure, number, is_relative)


def check_tasks(limits: Sequence[Limit], tasks: Collection[str]) -> None:
    """Check that what a gate names is measured.

    Raises:
        UsageError: a condition is about a task that is not among `tasks`.
    """
    for limit in limits:
        task = _TASKS.get(limit.measure)
        if task is not None and task not in tasks:
            raise UsageError(f"The gate names {limit.measure}, which was not measured.", f"Add the option: --tasks {task}")


def check(quality: Quality, limits: Sequence[Limit], usefulness: Usefulness | None = None) -> tuple[Failure, ...]:
    """Return the conditions that a model does not meet; one about replies that nothing here can give is not met."""
    values = {
        "top1": quality.all.top1,
        "kl": quality.all.kl_mean,
        "kl99": quality.all.kl_p99,
        "ppl": quality.prose.perplexity,
        "divergence": quality.mean_divergence,
    } | _task_values(usefulness)
    failures = []
    for limit in limits:
        value = values[limit.measure]
        allowed = quality.prose.reference_perplexity * (1 + limit.value) if limit.is_relative else limit.value
        is_met = value >= allowed if limit.measure in AT_LEAST else value <= allowed
        if not is_met:  # NaN meets nothing
            failures.append(Failure(limit.measure, value, allowed))
    return tuple(failures)


def _task_values(found: Usefulness | None) -> dict[str, float]:
    facts, told, long = (found.facts, found.instructions, found.repetition) if found else (None, None, None)
    shares = {
        "facts": facts and facts.right,
        "kept": facts and facts.kept,
        "instructions": told and told.followed,
        "loops": long and long.loops,
    }
    return {measure: share.value if share and share.n else math.nan for measure, share in shares.items()}


def enforce(card: Card) -> None:
    """Raise if a model of the card failed its gate.

    Raises:
        QualityGateError: with each such model, and what failed by how much.
    """
    failed = [row for row in card.rows if row.failures]
    if failed:
        listed = "; ".join(f"{row.name}: {', '.join(map(str, row.failures))}" for row in failed)
        raise QualityGateError(
            f"The quality gate failed. {listed}.", "Use a closer quantisation (more bits, mixed precision), or a wider gate."
        )
