"""Narrows the feed-forward part of every layer: the neurons that matter least to its output leave.

A neuron matters by the mean square of its activation times that of its column in `down_proj`. What the others can say of it is
given to them: `down_proj` is fitted by least squares, so that the narrow layer's output is nearest to the whole one's on the
inputs that it has in the narrowed model. All layers get the same width, since a config has one number for it.

Source: Sun et al., Wanda (2023), arXiv:2306.11695, for the measure; LeCun et al., Optimal Brain Surgeon, for the fit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edge.errors import ModelFileError
from edge_convert.torch_models import layer_calls, layer_output, layers_of

__all__ = ["narrow_ffn"]

_BATCH = 8
_RIDGE = 1e-3


def narrow_ffn(model: Any, keep: int, windows: Any, on_progress: Callable[[float], None]) -> None:
    """Narrow a model in place.

    Args:
        model: from `edge_convert.smaller.models.open_model`, of the layers that stay.
        keep: neurons that stay in each layer.
        windows: int64 [n, window], tokens to measure on.
        on_progress: called with the share that is done.

    Raises:
        ModelFileError: its activations are no numbers.
    """
    windows = windows.to(model.device)
    with torch.no_grad():
        states = [layer_calls(model, windows[start : start + _BATCH]) for start in range(0, len(windows), _BATCH)]
        hidden = [state for state, _ in states]
        for number, layer in enumerate(layers_of(model)):
            square = _second_moment(layer, [(part, calls[number]) for part, (_, calls) in zip(hidden, states, strict=True)])
            _narrow(layer.mlp, square, keep)
            hidden = [layer_output(layer(part, **calls[number])) for part, (_, calls) in zip(hidden, states, strict=True)]
            on_progress((number + 1) / len(layers_of(model)))
    model.config.intermediate_size = keep


def _second_moment(layer: Any, calls: list[tuple[Any, dict[str, Any]]]) -> Any:
    """Return the second moment of the neurons' activations, float32 [inner, inner]."""
    width = layer.mlp.down_proj.weight.shape[1]
    square = torch.zeros(width, width, device=layer.mlp.down_proj.weight.device)

    def hook(_module: Any, inputs: Any, _output: Any) -> None:
        rows = inputs[0].reshape(-1, width).float()
        square.addmm_(rows.T, rows)

    handle = layer.mlp.down_proj.register_forward_hook(hook)
    try:
        for hidden, keywords in calls:
            layer(hidden, **keywords)
    finally:
        handle.remove()
    return square


def _narrow(mlp: Any, square: Any, keep: int) -> None:
    """Keep the neurons of one layer that matter most, and fit its last matrix."""
    down = mlp.down_proj.weight.float()
    score = square.diagonal() * down.square().sum(0)
    kept = score.topk(keep).indices.sort().values
    mean = square.diagonal().mean()
    ridge = _RIDGE * (mean if mean > 0 else 1.0)  # neurons of a layer that is switched off say nothing
    part = square[kept][:, kept]
    part.diagonal().add_(ridge)
    fitted = torch.linalg.solve(part, square[kept] @ down.T + ridge * down[:, kept].T).T
    if not torch.isfinite(fitted).all():
        raise ModelFileError("The activations of a feed-forward layer leave the range of float32.", "Leave out --keep-ffn.")
    _replace(mlp.down_proj, fitted, None, in_features=keep)
    if hasattr(mlp, "gate_up_proj"):  # both in one matrix (Phi-3), gates first
        rows = torch.cat([kept, kept + len(score)])
        _replace(mlp.gate_up_proj, mlp.gate_up_proj.weight[rows], rows, out_features=2 * keep)
        return
    for module in (mlp.gate_proj, mlp.up_proj):
        _replace(module, module.weight[kept], kept, out_features=keep)


def _replace(module: Any, weight: Any, rows: Any, **sizes: int) -> None:
    """Give a linear module another weight, and the rows of its bias that stay."""
    module.weight = torch.nn.Parameter(weight.to(module.weight.dtype).contiguous(), requires_grad=False)
    if rows is not None and module.bias is not None:
        module.bias = torch.nn.Parameter(module.bias[rows].clone(), requires_grad=False)
    for name, size in sizes.items():
        setattr(module, name, size)
