"""Shares and means with 95 % confidence intervals.

Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927; the percentile bootstrap of
B. Efron, 1979.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence

import msgspec

__all__ = ["Mean", "Share", "mean_of", "share_of"]

_Z = 1.959963984540054
"""Quantile of the normal distribution at 97.5 %."""
_N_RESAMPLES = 1000


class Share(msgspec.Struct, frozen=True):
    """A share of trials, with Wilson's interval, which holds for few trials and near 0 and 1.

    Attributes:
        n_yes: trials that succeeded.
        n: trials.
        value: n_yes / n; 0 without trials.
        low, high: 95 % confidence interval; 0 and 1 without trials.
    """

    n_yes: int
    n: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.0f}% ({100 * self.low:.0f} to {100 * self.high:.0f})" if self.n else "-"


class Mean(msgspec.Struct, frozen=True):
    """A mean over items, with a bootstrap interval.

    Attributes:
        n: items.
        value: the mean; 0 without items.
        low, high: 95 % confidence interval.
    """

    n: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.value:.1f}% ({100 * self.low:.1f} to {100 * self.high:.1f})" if self.n else "-"


def share_of(outcomes: Iterable[bool]) -> Share:
    """Return the share of outcomes that are true."""
    found = list(outcomes)
    n, n_yes = len(found), sum(found)
    if not n:
        return Share(0, 0, 0.0, 0.0, 1.0)
    share, spread = n_yes / n, _Z * _Z / n
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread * spread / 4) / (1 + spread)
    return Share(n_yes, n, share, max(0.0, middle - half), min(1.0, middle + half))


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of values, with the percentile bootstrap of a fixed seed."""
    if not values:
        return Mean(0, 0.0, 0.0, 0.0)
    draw = random.Random(0)  # noqa: S311 (not for secrets)
    means = sorted(sum(draw.choices(values, k=len(values))) / len(values) for _ in range(_N_RESAMPLES))
    tail = round(0.025 * _N_RESAMPLES)
    return Mean(len(values), sum(values) / len(values), means[tail], means[-tail - 1])
