"""Chooses the layers of a model that stay.

"divergence" (the default) removes one layer after the other, each time the one without which the KL to the whole model is least
on the held-out texts; it takes minutes. "influence" ranks layers by how much they turn the hidden state, and takes seconds; its
student is worse at first, and two minutes of training make up for that.

llama.cpp knows by their place which layers of a Gemma have a sliding window, so a layer may only move to a place of its kind.

Source: Men et al., ShortGPT (2024), arXiv:2403.03853, for the influence of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from edge.errors import UsageError
from edge_convert.smaller.corpus import sample_windows
from edge_convert.smaller.models import head_of, layer_kinds
from edge_convert.smaller.recipe import Recipe
from edge_convert.torch_models import layer_output, layers_of

__all__ = ["Choice", "best_layers", "check_layers", "choose_layers", "layer_influence", "least_divergent"]

CHOICE_TOKENS, DIVERGENCE_TOKENS = 8192, 1024
"""Tokens that layers are chosen on, by influence and by divergence."""

_BATCH = 8
OnProgress = Callable[[float], None]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """Layers that stay. Written beside the student that is cut.

    Attributes:
        kept: their numbers in the teacher.
        reason: how they were chosen.
        influence: of each of the teacher's layers, where it was measured.
        repaired: number of matrices that were fitted.
    """

    kept: tuple[int, ...]
    reason: str
    influence: tuple[float, ...] = ()
    repaired: int = 0


def choose_layers(model: Any, tokens: Any, recipe: Recipe, title: str, on_progress: OnProgress) -> Choice:
    """Choose the layers that stay, as a recipe says.

    Args:
        model: the teacher, from `open_model`.
        tokens: int32 [n, window], held-out windows.
        recipe: number of layers, and how to choose them.
        title: of the model.
        on_progress: called with the share that is done.

    Raises:
        UsageError: the model cannot keep these layers.
    """
    kinds = layer_kinds(model.config)
    if not isinstance(recipe.layers, str):
        check_layers(recipe.keep_layers, recipe.layers, kinds, title)
        return Choice(kept=recipe.layers, reason="named in the recipe")
    check_layers(recipe.keep_layers, None, kinds, title)
    if recipe.layers == "divergence":
        kept = least_divergent(model, sample_windows(tokens, DIVERGENCE_TOKENS), recipe.keep_layers, on_progress)
        return Choice(kept=kept, reason="each time the layer without which the divergence was least was left out")
    influence = layer_influence(model, sample_windows(tokens, CHOICE_TOKENS), on_progress)
    best = best_layers(influence, recipe.keep_layers, kinds)
    assert best is not None  # check_layers saw to that
    return Choice(kept=best, reason="those that turn the hidden state most", influence=tuple(influence))


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


def layer_influence(model: Any, windows: Any, on_progress: OnProgress) -> list[float]:
    """Measure how much each layer turns the hidden state: one minus the mean cosine between its input and output.

    Args:
        model: from `open_model`.
        windows: int64 [n, window], tokens.
        on_progress: called with the share that is done.
    """
    import torch

    totals = torch.zeros(len(layers_of(model)), dtype=torch.float64)

    def watch(place: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, keywords: Any, output: Any) -> None:
            before = inputs[0] if inputs else keywords["hidden_states"]
            after = layer_output(output)
            totals[place] += torch.cosine_similarity(before.float(), after.float(), dim=-1).sum().double()

        return hook

    hooks = [layer.register_forward_hook(watch(place), with_kwargs=True) for place, layer in enumerate(layers_of(model))]
    try:
        with torch.inference_mode():
            for start in range(0, len(windows), _BATCH):
                model.base_model(input_ids=windows[start : start + _BATCH], use_cache=False)
                on_progress(start / len(windows))
    finally:
        for hook in hooks:
            hook.remove()
    return [float(1 - value) for value in totals / windows.numel()]


def least_divergent(model: Any, windows: Any, keep: int, on_progress: OnProgress) -> tuple[int, ...]:
    """Choose layers by removing one after the other, each time the one that costs the least divergence.

    Args:
        model: from `open_model`; not changed.
        windows: int64 [n, window], tokens.
        keep: number of layers that stay.
        on_progress: called with the share that is done.

    Returns:
        Their numbers, ascending.
    """
    import torch

    head, _ = head_of(model)
    layers = layers_of(model)
    kinds = layer_kinds(model.config)
    kept = list(range(len(layers)))
    total = sum(range(keep + 1, len(kept) + 1))
    done = 0

    def hidden() -> Any:
        found = model.base_model(input_ids=windows, use_cache=False).last_hidden_state
        return found.reshape(-1, found.shape[-1])

    try:
        with torch.inference_mode():
            teacher = hidden()
            while len(kept) > keep:
                costs = []
                for layer in kept:
                    rest = [other for other in kept if other != layer]
                    done += 1
                    on_progress(done / total)
                    if not _can_end(rest, keep, kinds):
                        continue
                    model.base_model.layers = torch.nn.ModuleList([layers[index] for index in rest])
                    costs.append((float(head.divergence(hidden(), teacher)[0].mean()), layer))
                kept.remove(min(costs)[1])
    finally:
        model.base_model.layers = layers
    return tuple(kept)


def _can_end(rest: Sequence[int], keep: int, kinds: Sequence[str]) -> bool:
    """Return whether layers can be chosen among these, each at a place of its kind."""
    places = 0
    for layer in rest:
        if places < keep and kinds[layer] == kinds[places]:
            places += 1
    return places == keep
