"""Trains weights in steps of a target's grid, and the parts of the grid with them: see `edge_convert.smaller.distill.Masters`.

The codes of a training step are the nearest to its numbers, and gradients pass as if nothing were rounded (the straight-through
estimator). A weight begins in the middle of its code, so only gradients that agree over many steps change that: noise would
undo what error feedback has balanced.

One learning rate serves all: a change by one moves a weight by a step, or a part by what moves the outermost weight of its
group by a step. A weight of a norm changes by a sixteenth of itself.
"""

from __future__ import annotations

from typing import Any

import torch

from edge_convert.recover.grids import Grid, Parts

__all__ = ["GridMasters"]

_VECTOR_STEPS = 16


class GridMasters:
    """See the module.

    Args:
        grids: of the matrices that are quantised, by weight.
        parts: of them, at the start.
        codes: of them, at the start.
    """

    def __init__(self, grids: dict[str, Grid], parts: dict[str, Parts], codes: dict[str, Any]) -> None:
        self._grids, self._parts, self._codes = grids, parts, codes  # on the device of the weights
        self._units = {name: grid.unit(parts[name]) for name, grid in grids.items()}
        self._vectors: dict[str, Any] = {}
        self._newest: dict[str, Any] = {}

    def start(self, weights: dict[str, Any]) -> dict[str, Any]:
        """Return the numbers to train: weights in steps, changes of parts and of vectors. Other matrices stay as they are."""
        masters = {}
        for name, weight in weights.items():
            if name in self._grids:
                masters[name] = self._first(name)
                masters |= {f"{name}/{part}": torch.zeros_like(values) for part, values in self._parts[name].items()}
            elif weight.ndim == 1:
                self._vectors[name] = weight.detach().float().clone()
                masters[name] = torch.zeros_like(self._vectors[name])
        return masters

    def pull(self, masters: dict[str, Any], gradients: dict[str, Any]) -> dict[str, Any]:
        """Return the gradients by the trained numbers."""
        found = {}
        for name, gradient in gradients.items():
            if name in self._vectors:
                found[name] = gradient.float() * self._vectors[name].abs() / _VECTOR_STEPS
            elif name in self._grids:
                unit, slope = self._units[name], gradient.float().view_as(masters[name])
                codes, parts = self._stored(name, masters)
                for part, value in self._grids[name].pull(codes, parts, slope).items():
                    found[f"{name}/{part}"] = value * unit[part]
                found[name] = slope * unit["step"]
        return found

    def push(self, masters: dict[str, Any], weights: dict[str, Any]) -> None:
        """Write the weights that the target would store."""
        self._newest = masters
        for name, weight in weights.items():
            if name in self._vectors:
                weight.copy_(self.vector(name))
            elif name in self._grids:
                weight.copy_(self._grids[name].values(*self.stored(name)).view_as(weight))

    def stored(self, name: str) -> tuple[Any, Parts]:
        """Return the codes and the parts of a matrix, as they were pushed last."""
        return self._stored(name, self._newest)

    def vector(self, name: str) -> Any:
        """Return a norm or a bias, float32, as it was pushed last."""
        return self._vectors[name] * (1 + self._newest[name].detach() / _VECTOR_STEPS)

    def _stored(self, name: str, masters: dict[str, Any]) -> tuple[Any, Parts]:
        with torch.no_grad():
            codes = self._grids[name].codes(masters[name] * self._units[name]["step"], self._parts[name])
            return codes, self._trained(name, masters)

    def _trained(self, name: str, masters: dict[str, Any]) -> Parts:
        unit = self._units[name]
        return {part: values + masters[f"{name}/{part}"] * unit[part] for part, values in self._parts[name].items()}

    def _first(self, name: str) -> Any:
        """Return a matrix in steps, each weight in the middle of its code."""
        step = self._units[name]["step"]
        return self._grids[name].values(self._codes[name].float(), self._parts[name]) / torch.where(step == 0, 1.0, step)
