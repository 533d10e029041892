"""Chooses the layers of a model that stay.

"divergence" (the default) removes one layer after the other, each time the one without which the KL to the whole model is least
on the held-out texts; it takes minutes. "influence" ranks layers by how much they turn the hidden state, and takes seconds; its
student is worse at first, and two minutes of training make up for that.

Source: Men et al., ShortGPT (2024), arXiv:2403.03853, for the influence of a layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from edge_convert.smaller.layers import best_layers, can_keep, check_layers
from edge_convert.smaller.models import head_of, layer_kinds
from edge_convert.smaller.recipe import CHOICE_TOKENS, DIVERGENCE_TOKENS, Recipe
from edge_convert.smaller.records import Choice
from edge_convert.torch_models import layer_output, layers_of

__all__ = ["choose_layers", "layer_influence", "least_divergent", "removal_order", "sample_windows"]

_BATCH = 8
OnProgress = Callable[[float], None]


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
    if not recipe.keep_layers:
        return Choice(kept=tuple(range(len(kinds))), reason="all")
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


def layer_influence(model: Any, windows: Any, on_progress: OnProgress) -> list[float]:
    """Measure how much each layer turns the hidden state: one minus the mean cosine between its input and output.

    Args:
        model: from `open_model`.
        windows: int64 [n, window], tokens.
        on_progress: called with the share that is done.
    """
    totals = [0.0] * len(layers_of(model))

    def watch(place: int) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, keywords: Any, output: Any) -> None:
            before = inputs[0] if inputs else keywords["hidden_states"]
            after = layer_output(output)
            totals[place] += float(torch.cosine_similarity(before.float(), after.float(), dim=-1).sum())

        return hook

    hooks = [layer.register_forward_hook(watch(place), with_kwargs=True) for place, layer in enumerate(layers_of(model))]
    try:
        with torch.inference_mode():
            for start in range(0, len(windows), _BATCH):
                model.base_model(input_ids=windows[start : start + _BATCH].to(model.device), use_cache=False)
                on_progress(start / len(windows))
    finally:
        for hook in hooks:
            hook.remove()
    return [1 - total / windows.numel() for total in totals]


def least_divergent(model: Any, windows: Any, keep: int, on_progress: OnProgress) -> tuple[int, ...]:
    """Choose layers by removing one after the other, each time the one that costs the least divergence.

    Returns:
        The numbers of those that stay, ascending; see `removal_order` for the arguments.
    """
    order = removal_order(model, windows, keep, on_progress)
    return tuple(layer for layer in range(len(layers_of(model))) if layer not in order)


def removal_order(model: Any, windows: Any, keep: int, on_progress: OnProgress) -> tuple[int, ...]:
    """Return the layers that leave, first to last, each time the one that costs the least divergence.

    Args:
        model: from `open_model`; not changed.
        windows: int64 [n, window], tokens.
        keep: number of layers that stay.
        on_progress: called with the share that is done.
    """
    head = head_of(model)
    windows = windows.to(model.device)
    layers = layers_of(model)
    kinds = layer_kinds(model.config)
    kept = list(range(len(layers)))
    order: list[int] = []
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
                    if not can_keep(rest, keep, kinds):
                        continue
                    model.base_model.layers = torch.nn.ModuleList([layers[index] for index in rest])
                    costs.append((float(head.divergence(hidden(), teacher)[0].mean()), layer))
                order.append(min(costs)[1])
                kept.remove(order[-1])
    finally:
        model.base_model.layers = layers
    return tuple(order)


def sample_windows(tokens: Any, n_tokens: int) -> Any:
    """Take windows from all over a corpus, as a torch tensor int64 [n, window] in main memory."""
    n_windows = min(len(tokens), max(1, n_tokens // tokens.shape[1]))
    rows = np.linspace(0, len(tokens) - 1, n_windows).astype(int)
    return torch.from_numpy(tokens[np.unique(rows)].astype(np.int64))
