"""The limits of `edge tune`, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.bench.tuner import Outcome
    from edge.plan.tuning import Tuning

__all__ = ["QUICK_S", "Report", "TuneOptions"]

QUICK_S = 60.0
"""Time limit of a quick comparison of the engines, loading included."""


@dataclass(frozen=True)
class TuneOptions:
    """The limits of a search.

    Attributes:
        budget_s: its approximate duration; exact if it is quick.
        backends: engines; empty is every installed one that reads the model.
        kv_types: for keys and values, besides f16. Most save memory and cost quality, so none is tried by default.
        is_quick: compare the engines with their usual settings, and try nothing else.
    """

    budget_s: float = 180.0
    backends: tuple[str, ...] = ()
    kv_types: tuple[str, ...] = ()
    is_quick: bool = False


@dataclass(frozen=True)
class Report:
    """The result of tuning.

    Attributes:
        tuning: for the plan.
        outcome: of the search.
        is_better: the found setting beat the usual one; otherwise `tuning` is the usual one.
        seconds: duration.
    """

    tuning: Tuning
    outcome: Outcome
    is_better: bool
    seconds: float
