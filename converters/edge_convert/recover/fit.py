"""Fits quantised matrices to the weights, layer by layer, each with the inputs that the fitted layers before it give.

The error of a weight counts by the inputs it meets, and an input by how much the prediction depends on what the matrix makes of
it: the square of the gradient of the log-likelihood of a token that the model itself would have sampled. So the first position
of a text, which all others attend to, counts tens of times as much as another for keys and values. Rounding errors are passed
on to the columns that follow.

Sources: error feedback from GPTQ (Frantar et al. 2022); weighted inputs from GuidedQuant (Kim et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edge_convert.checkpoint import Checkpoint
from edge_convert.recover.grids import Grid, Parts, Stored
from edge_convert.smaller.models import head_of, open_model
from edge_convert.torch_models import layer_calls, layer_output, layers_of

__all__ = ["assign", "damped", "fit_blocks", "importance", "inverse_factor"]

Assign = Callable[[Any, Any, Grid], tuple[Any, Parts]]

_BATCH = 4
_DAMPING = 0.02  # of the median square of an input
_LARGEST = 200.0  # times the mean: the weight of one token
_FISHER_SHARE = 0.35  # of the time


def fit_blocks(
    blocks: Stored,
    checkpoint: Checkpoint,
    tokens: Any,
    on_progress: Callable[[float], None],
    choose: Assign | None = None,
) -> None:
    """Replace the stored matrices that have a grid.

    Args:
        blocks: matrices quantised from the checkpoint, or a place for them.
        checkpoint: the unquantised model.
        tokens: to compute with, int64 [n, window].
        on_progress: called with the share that is done. What it raises stops the work.
        choose: parts and codes of a matrix from its weights and the moments of its inputs; None is `assign`.
    """
    model = open_model(checkpoint.folder)
    batches = list(tokens.to(model.device).split(_BATCH))
    weights = importance(model, batches, lambda share: on_progress(share * _FISHER_SHARE))
    with torch.inference_mode():
        started = [layer_calls(model, batch) for batch in batches]
        hidden, calls = [first for first, _ in started], [arguments for _, arguments in started]
        for index, layer in enumerate(layers_of(model)):
            arguments = [call[index] for call in calls]
            linears = {name: module for name, module in layer.named_modules() if isinstance(module, torch.nn.Linear)}
            for stage in (True, False):  # attention first: what comes after it depends on it
                chosen = {name: module for name, module in linears.items() if ("attn" in name) == stage}
                stored = {name: f"model.layers.{index}.{name}.weight" for name in chosen}
                fitted = {name: module for name, module in chosen.items() if blocks.grid(stored[name]) is not None}
                moments = _moments(layer, fitted, hidden, arguments, {name: weights[index, name] for name in fitted})
                for name, module in chosen.items():
                    found = _fit(blocks, stored[name], checkpoint, moments.get(name), choose or assign)
                    module.weight.copy_(found.reshape(module.weight.shape))
            hidden = [layer_output(layer(part, **call)) for part, call in zip(hidden, arguments, strict=True)]
            on_progress(_FISHER_SHARE + (1 - _FISHER_SHARE) * (index + 1) / len(layers_of(model)))


def importance(model: Any, batches: list[Any], on_progress: Callable[[float], None] = lambda _: None) -> dict[Any, Any]:
    """Measure how much the prediction depends on the output of each linear layer at each token.

    Args:
        model: frozen.
        batches: tokens, int64 [n, window] each.
        on_progress: called with the share that is done.

    Returns:
        (number of the layer, name in it) -> a float32 [n * window] for each batch, the mean over all being 1.
    """
    head, chance = head_of(model), torch.Generator(model.device).manual_seed(0)
    found: dict[Any, list[Any]] = {}
    handles = []

    def watch(key: Any) -> Callable[[Any, Any, Any], None]:
        def keep(slope: Any) -> None:
            found.setdefault(key, []).append(slope.float().square().sum(-1).flatten())

        def hook(_module: Any, _args: Any, output: Any) -> None:
            output.register_hook(keep)

        return hook

    for index, layer in enumerate(layers_of(model)):
        for name, module in layer.named_modules():
            if isinstance(module, torch.nn.Linear):
                handles.append(module.register_forward_hook(watch((index, name))))
    try:
        for done, batch in enumerate(batches, 1):
            inputs = model.get_input_embeddings()(batch).detach().requires_grad_(True)
            output = model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
            output.backward(head.sampled_gradient(output.detach().flatten(0, 1), chance).view_as(output))
            on_progress(done / len(batches))
    finally:
        for handle in handles:
            handle.remove()
    return {key: _scaled(parts) for key, parts in found.items()}


def _scaled(parts: list[Any]) -> list[Any]:
    mean = torch.cat(parts).mean().clamp_min(1e-30)
    return [(part / mean).clamp_max(_LARGEST) for part in parts]


def _moments(
    layer: Any, linears: dict[str, Any], hidden: list[Any], arguments: list[Any], weights: dict[str, list[Any]]
) -> dict[str, Any]:
    """Return the weighted second moments of the inputs of some linear layers."""
    sums: dict[str, Any] = {}
    at = 0

    def watch(name: str) -> Callable[[Any, Any], None]:
        def add(_module: Any, args: Any) -> None:
            x = args[0].flatten(0, -2).float()
            found = (x * weights[name][at][:, None]).T @ x
            sums[name] = sums[name] + found if name in sums else found

        return add

    handles = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
    try:
        for at, (part, call) in enumerate(zip(hidden, arguments, strict=True)):  # noqa: B007  # the hooks read it
            layer(part, **call)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def _fit(blocks: Stored, name: str, checkpoint: Checkpoint, moments: Any, choose: Assign) -> Any:
    """Fit one matrix, write it, and return its weights as they are stored now."""
    grid = blocks.grid(name)
    if grid is None:
        return blocks.floats(name)
    codes, parts = choose(torch.from_numpy(checkpoint.load_f32(name)).to(moments.device), moments, grid)
    blocks.write(name, codes, parts)
    return grid.values(codes, parts)


def assign(weight: Any, moments: Any, grid: Grid) -> tuple[Any, Parts]:
    """Choose parts and codes of a matrix, group by group, the most important first, with error feedback.

    Args:
        weight: float32 [n_rows, n_columns].
        moments: second moments of the inputs, [n_columns, n_columns].
        grid: of groups of columns.

    Returns:
        Codes, float32 [n_rows, n_groups, group], and parts, float32 [n_rows, n_groups, 1] each.
    """
    size = grid.group
    n_rows, n_groups = len(weight), weight.shape[1] // size
    order = torch.argsort(-moments.diagonal().view(n_groups, size).sum(1))
    columns = (order[:, None] * size + torch.arange(size, device=order.device)).flatten()
    upper = inverse_factor(damped(moments[columns][:, columns]))
    left = weight[:, columns].clone()
    codes = torch.empty(n_rows, n_groups, size, device=weight.device)
    found: list[Parts] = []
    for number in range(n_groups):
        start, stop = number * size, (number + 1) * size
        block = left[:, start:stop].clone()
        parts = grid.fit(block[:, None], upper.diagonal()[start:stop] ** -2)
        errors = torch.empty_like(block)
        for column in range(size):
            now = block[:, column, None, None]
            code = grid.codes(now, parts)
            codes[:, number, column] = code[:, 0, 0]
            errors[:, column] = (now - grid.values(code, parts))[:, 0, 0] / upper[start + column, start + column]
            block[:, column + 1 :] -= torch.outer(errors[:, column], upper[start + column, start + column + 1 : stop])
        left[:, stop:] -= errors @ upper[start:stop, stop:]
        found.append(parts)
    back = torch.argsort(order)
    return codes[:, back], {name: torch.cat([parts[name] for parts in found], 1)[:, back] for name in found[0]}


def damped(moments: Any) -> Any:
    """Return moments with a mean square of about one, damped against inputs that hardly vary; float64."""
    scaled = moments.double() / moments.diagonal().mean().double().clamp_min(1e-30)
    damping = _DAMPING * float(scaled.diagonal().median()) + 1e-5
    scaled.diagonal().add_(damping)
    return scaled


def inverse_factor(moments: Any) -> Any:
    """Return the upper Cholesky factor of the inverse of damped moments, float32."""
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    return torch.linalg.cholesky(inverse, upper=True).float()
