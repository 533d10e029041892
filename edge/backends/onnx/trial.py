"""The first passes of a model: they prepare much, and show what works."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from edge.backends.onnx.session import PROVIDERS, placement_text
from edge.errors import BackendError, BackendUnavailableError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.backends.onnx.passes import Passes
    from edge.plan.receipt import Plan

__all__ = ["try_model"]

_log = logging.getLogger("edge.onnx")
_SAME = 0.05  # of the spread of logits; measured: 0.009 at most where rows are right, 0.28 at least where a length is wrong


def try_model(passes: Passes, plan: Plan) -> tuple[str, str]:
    """Run the first passes.

    Returns:
        Which provider got which share of the model, and why several sequences cannot be computed in one pass ("" if they can).

    Raises:
        BackendUnavailableError: the accelerator's providers got nothing.
        BackendError, ModelTooLargeError: onnxruntime cannot compute.
    """
    import numpy as np

    first = passes.compute(0, 0, np.zeros(1, dtype=np.int64), None)
    assert first is not None
    placement = passes.session.placement()
    _check_placement(plan, placement)
    reason = _why_not_batched(passes, plan, first)
    for seq_id in range(plan.n_seq):
        passes.free(seq_id)
    return placement_text(placement), reason


def _check_placement(plan: Plan, placement: Counter[str]) -> None:
    """Refuse an accelerator that takes nothing of a model: all of it would run on the CPU without a word."""
    wanted = [name for name, _ in PROVIDERS[plan.accelerator]]
    if wanted and not any(placement[name] for name in wanted):
        raise BackendUnavailableError(
            f"{' and '.join(wanted)} cannot compute any part of {plan.artifact.name}, so all would run on the CPU.",
            "Use --require cpu, or the same model as GGUF.",
        )


def _why_not_batched(passes: Passes, plan: Plan, first: npt.NDArray[np.float32]) -> str:
    """Compare two sequences in one pass with each by itself; `first` are logits of sequence 0 after its only token, 0."""
    import numpy as np

    if plan.n_seq < 2 or plan.n_ctx < 3:
        return "there is room for one only"
    if not passes.kv.can_batch:
        return "their keys and values do not lie side by side"
    if passes.folder.has_branches:
        return "the model computes in another way from some length on, for all rows alike"
    try:
        second = passes.compute(1, 0, np.array([1, 2, 3], np.int64), None)
        assert second is not None
        alone = [first.copy(), second.copy()]  # the next pass overwrites them
        both = passes.compute_neighbours(0, [0, 2], {0: 0, 1: 3})
    except BackendError as error:
        _log.info("Several rows in one pass: %s", error)
        return "the model takes one row only"
    is_same = all(_distance(both[row], alone[row]) < _SAME for row in both)
    return "" if is_same else "rows of different lengths disturb each other in this model"


def _distance(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Return how far apart logits are, as a share of their spread."""
    return float(((one - other) ** 2).mean() ** 0.5 / max(float(other.std()), 1e-9))
