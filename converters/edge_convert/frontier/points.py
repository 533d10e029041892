"""Candidates and points of a frontier: their names, their speed by what a token reads, and which of them are worth going on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from edge.errors import UsageError
from edge_convert.smaller.layers import NEURON_STEP, can_keep
from edge_convert.smaller.records import HeldOut

__all__ = ["LIMITS", "WHOLE", "Candidate", "Frontier", "Point", "candidates", "choose_point", "parse_limits", "survivors"]

WHOLE = "whole"
LIMITS = {
    "speed": "decode speed over the teacher's, at least",
    "kl": "mean KL to the teacher on held-out texts, at most",
    "top1": "top-1 agreement with the teacher, at least",
    "kept": "share of the teacher's right answers that are kept, at least",
}

_LAYER_SHARES = (1.0, 28 / 30, 26 / 30, 24 / 30, 22 / 30, 20 / 30, 1 / 2)
_FFN_SHARES = (1.0, 5 / 6, 2 / 3)
_SUPER_BLOCK = 256  # of K-quants: a width that is no multiple of it gets larger types
_BEATEN = 1_000.0
_FEWEST_BOTH = 24 / 30  # below that share of the layers, feed-forward layers keep their width


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """What stays of a model.

    Attributes:
        name: such as "26-layers-ffn-1280".
        n_layers: of the student.
        inner: feed-forward neurons of a layer.
    """

    name: str
    n_layers: int
    inner: int


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A trained candidate, or the whole model over the tokens that stay.

    Attributes:
        name, n_layers, inner: of the candidate.
        kept: numbers of the teacher's layers.
        n_params: weights; a shared head counts once.
        n_rounds: that it was trained in.
        seconds, n_tokens: of training, over all rounds.
        divergence, top1: means over the held-out texts.
        held_out: text -> quality.
        decode_estimate, prefill_estimate: times the teacher's speed, by the weights that a token reads and computes with.
        decode, prefill: times the teacher's speed over the same text, measured in the same layout; None if it was not measured.
        decode_tokens_per_s, prefill_tokens_per_s: the same in tokens.
        answers_kept: share of the questions that the teacher answers that the point answers, too; None if not measured.
        n_answers: questions that the teacher answers.
    """

    name: str
    n_layers: int
    inner: int
    kept: tuple[int, ...]
    n_params: int
    n_rounds: int
    seconds: float
    n_tokens: int
    divergence: float
    top1: float
    held_out: dict[str, HeldOut]
    decode_estimate: float
    prefill_estimate: float
    decode: float | None = None
    prefill: float | None = None
    decode_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    answers_kept: float | None = None
    n_answers: int = 0

    @property
    def speed(self) -> float:
        """Decode speed over the teacher's: measured, else estimated."""
        return self.decode_estimate if self.decode is None else self.decode

    @property
    def prefill_speed(self) -> float:
        """Prefill speed over the teacher's: measured, else estimated."""
        return self.prefill_estimate if self.prefill is None else self.prefill


class Frontier(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a search.

    Attributes:
        model: the teacher's name.
        n_vocab, whole_vocab: tokens of the students, and of the teacher.
        growth: tokens that a text takes with the smaller vocabulary, over those with the whole.
        layout: GGUF quantisation that speed was measured in.
        machine: that it was measured on.
        teacher_decode, teacher_prefill: its tokens per second in that layout; None if nothing was measured.
        points: the whole model first, then the slowest first.
        finalists: names of the last ones of the search, which have a folder of that name beside the report.
    """

    model: str
    n_vocab: int
    whole_vocab: int
    growth: float
    layout: str
    machine: str
    teacher_decode: float | None
    teacher_prefill: float | None
    points: tuple[Point, ...]
    finalists: tuple[str, ...]


def candidates(n_layers: int, inner: int, kinds: Sequence[str], order: Sequence[int] | None = None) -> list[Candidate]:
    """Return the candidates of a search, largest first: fewer layers, narrower ones, and mild cuts of both.

    Args:
        n_layers, inner: of the teacher.
        kinds: of attention, by place.
        order: of the layers that leave, first to last; None if it is not known yet.
    """
    step = _SUPER_BLOCK if inner % _SUPER_BLOCK == 0 and inner > 2 * _SUPER_BLOCK else NEURON_STEP
    widths = dict.fromkeys(inner if share == 1 else max(step, round(inner * share / step) * step) for share in _FFN_SHARES)
    depths = dict.fromkeys(n_layers if share == 1 else max(1, round(n_layers * share)) for share in _LAYER_SHARES)
    found = []
    for depth in depths:
        for width in widths:
            is_mild = depth == n_layers or (depth >= round(n_layers * _FEWEST_BOTH) and width != min(widths))
            if (depth, width) == (n_layers, inner) or not (is_mild or width == inner):
                continue
            left = [layer for layer in range(n_layers) if order is None or layer not in order[: n_layers - depth]]
            if not can_keep(left, depth, kinds):
                continue
            parts = [f"{depth}-layers"] if depth < n_layers else []
            parts += [f"ffn-{width}"] if width < inner else []
            found.append(Candidate(name="-".join(parts), n_layers=depth, inner=width))
    return found


def survivors(points: Sequence[Point], count: int, min_speed: float = 0.0) -> list[Point]:
    """Return the points that are worth going on with.

    With a speed to be reached, those are the nearest to the teacher of those that reach it. Otherwise those that lie lowest
    below the line through their neighbours in the plane of speed and the logarithm of KL; one that another beats in both goes
    first.

    Args:
        points: of one round.
        count: how many at most.
        min_speed: to be reached, in times the teacher's; 0 is any.

    Returns:
        Slowest first.
    """
    fast = [point for point in points if point.speed >= min_speed > 0]
    if len(fast) >= count:
        return sorted(sorted(fast, key=lambda point: point.divergence)[:count], key=lambda point: point.speed)
    left = sorted(points, key=lambda point: (point.speed, -point.divergence))
    while len(left) > max(1, count):
        excesses = [_excess(point, left) for point in left]
        del left[excesses.index(max(excesses))]
    return left


def _excess(point: Point, others: Sequence[Point]) -> float:
    """Return how far a point lies above the line through the two nearest others, one on each side where there are; far above
    where another beats it."""
    better = [_log(other) for other in others if other.speed >= point.speed and other.divergence < point.divergence]
    if better:
        return _BEATEN + _log(point) - min(better)
    slower = sorted((one for one in others if one.speed < point.speed), key=lambda one: -one.speed)
    faster = sorted((one for one in others if one.speed > point.speed), key=lambda one: one.speed)
    near = [*slower[:1], *faster[:1]] if slower and faster else [*slower[:2], *faster[:2]]
    if len(near) < 2 or near[0].speed == near[1].speed:
        return 0.0
    share = (point.speed - near[0].speed) / (near[1].speed - near[0].speed)
    return _log(point) - (_log(near[0]) + share * (_log(near[1]) - _log(near[0])))


def _log(point: Point) -> float:
    return math.log(max(point.divergence, 1e-6))


def parse_limits(text: str) -> dict[str, float]:
    """Read limits such as "top1=0.85" or "speed=1.3,kl=0.25".

    Raises:
        UsageError: a measure is unknown or given twice, or a value is not a number.
    """
    found: dict[str, float] = {}
    for part in (piece.strip() for piece in text.split(",")):
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in LIMITS or name in found or not math.isfinite(number):
            known = "; ".join(f"{measure}: {what}" for measure, what in LIMITS.items())
            raise UsageError(f"{part!r} is not a limit.", f"Write MEASURE=VALUE,... with each of these once: {known}.")
        found[name] = number
    return found


def choose_point(frontier: Frontier, limits: dict[str, float]) -> tuple[Point, str]:
    """Choose the finalist that meets limits: the fastest, or with a limit on speed alone the one nearest to the teacher.

    Returns:
        The point, and why.

    Raises:
        UsageError: no finalist meets them.
    """
    finalists = [point for point in frontier.points if point.name in frontier.finalists]
    good = [point for point in finalists if _meets(point, limits)]
    if not good:
        listed = "; ".join(
            f"{point.name}: speed={point.speed:.2f}, kl={point.divergence:.2f}, top1={point.top1:.2f}" for point in finalists
        )
        raise UsageError("No point of the frontier meets these limits.", f"The finalists: {listed}.")
    if set(limits) == {"speed"}:
        return min(good, key=lambda point: point.divergence), "the nearest to the teacher of those that are fast enough"
    return max(good, key=lambda point: point.speed), "the fastest of those that are good enough"


def _meets(point: Point, limits: dict[str, float]) -> bool:
    values = {"speed": point.speed, "top1": point.top1, "kept": point.answers_kept}
    for name, limit in limits.items():
        value = values.get(name)
        if (point.divergence > limit) if name == "kl" else (value is None or value < limit):
            return False
    return True
