"""Choices of layers, and widths of their feed-forward part, that a model can have.

llama.cpp knows by their place which layers of a Gemma have a sliding window, so a layer may only move to a place of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.errors import UsageError

__all__ = ["NEURON_STEP", "best_layers", "can_keep", "check_ffn", "check_layers"]

NEURON_STEP = 32
"""Widths are multiples of this: of the blocks that formats quantise in."""


def check_layers(keep: int, named: Sequence[int] | None, kinds: Sequence[str], title: str) -> None:
    """Refuse a choice of layers that the model cannot have.

    Args:
        keep: number of layers that stay.
        named: their numbers, if they are given.
        kinds: of attention, by place.
        title: of the model.

    Raises:
        UsageError: there are too many or too few, or the numbers are wrong.
    """
    n_layers = len(kinds)
    if not 1 <= keep < n_layers:
        raise UsageError(f"{title} has {n_layers} layers and cannot keep {keep}.", f"Keep 1 to {n_layers - 1}.")
    if named is None:
        if best_layers([1.0] * n_layers, keep, kinds) is None:
            raise UsageError(
                f"{title} cannot keep {keep} layers: layers with and without a window follow each other in a fixed pattern.",
                f"Keep one more, or one less than {keep}.",
            )
        return
    if len(named) != keep or list(named) != sorted(set(named)) or named[0] < 0 or named[-1] >= n_layers:
        raise UsageError(
            f"The recipe keeps {keep} layers and does not name as many, ascending, from 0 to {n_layers - 1}.", "Name them."
        )
    if any(kinds[index] != kinds[place] for place, index in enumerate(named)):
        raise UsageError("The layers that the recipe names do not fit the model's pattern of windows.", "Name others.")


def check_ffn(keep: int, inner: int, title: str) -> None:
    """Refuse a width that a model cannot be narrowed to.

    Args:
        keep: neurons that stay in each layer.
        inner: of the model.
        title: of the model.

    Raises:
        UsageError: it is not smaller, or not a multiple of 32.
    """
    if not NEURON_STEP <= keep < inner or keep % NEURON_STEP:
        below = (inner - 1) // NEURON_STEP * NEURON_STEP
        raise UsageError(
            f"{title} has {inner:,} feed-forward neurons in a layer and cannot keep {keep:,}.",
            f"Keep a multiple of {NEURON_STEP}, {below:,} at most.",
        )


def best_layers(scores: Sequence[float], keep: int, kinds: Sequence[str]) -> tuple[int, ...] | None:
    """Return the layers with the highest sum of scores, the first and the last among them.

    Args:
        scores: of each layer.
        keep: number of layers that stay.
        kinds: of attention, by place; a layer must match the kind of its new place.

    Returns:
        Their numbers, ascending; without the last layer if the kinds do not allow it. None if there is no choice.
    """
    n_layers = len(scores)
    # best[j]: the best choice of j layers among those seen so far.
    best: list[tuple[float, tuple[int, ...]] | None] = [(0.0, ()), *([None] * keep)]
    with_last: tuple[int, ...] | None = None
    for layer in range(n_layers):
        for count in range(min(keep, layer + 1), 0, -1):
            before = best[count - 1]
            if before is None or kinds[layer] != kinds[count - 1] or (before[1] or (layer,))[0] != 0:
                continue
            total = before[0] + scores[layer]
            if layer == n_layers - 1 and count == keep:
                with_last = (*before[1], layer)
            if best[count] is None or total > best[count][0]:  # type: ignore[index]  # not None there
                best[count] = (total, (*before[1], layer))
    found = best[keep]
    return with_last or (found[1] if found else None)


def can_keep(rest: Sequence[int], keep: int, kinds: Sequence[str]) -> bool:
    """Return whether layers can be chosen among these, each at a place of its kind."""
    places = 0
    for layer in rest:
        if places < keep and kinds[layer] == kinds[places]:
            places += 1
    return places == keep
