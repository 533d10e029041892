"""The values that a target can store for a weight, as torch computes with them.

A grid gives each group of weights (32 inputs of a row, or a whole row) a few numbers, its parts, and each weight a code. A file
stores parts and codes, so `values` is exactly what a runtime computes with: parts are rounded as the file rounds them.

Shapes: weights and codes are float32 [n_rows, n_groups, n], parts float32 [n_rows, n_groups, n of the part].
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

__all__ = ["Grid", "ListedGrid", "OffsetGrid", "Parts", "ScaledGrid", "Stored"]

Parts = dict[str, Any]
"""The parts of a matrix by name."""

_SHRINKS = tuple(0.64 + 0.04 * step for step in range(13))
"""Shares of the scale that holds the largest weight of a group."""
_ROUNDS = 2
_TINY = 1e-12


class Grid(Protocol):
    """A kind of grid.

    Attributes:
        group: inputs of a row that share parts; 0 is all of them.
    """

    group: int

    def fit(self, weight: Any, cost: Any) -> Parts:
        """Choose the parts that cost least; `cost` of a squared error is broadcast to the weights."""

    def unit(self, parts: Parts) -> Parts:
        """Return for each part the change that moves the outermost weight of a group by a step; "step" is a step itself."""

    def codes(self, weight: Any, parts: Parts) -> Any:
        """Return the code of the nearest value."""

    def values(self, codes: Any, parts: Parts) -> Any:
        """Return the weights that are stored."""

    def pull(self, codes: Any, parts: Parts, gradient: Any) -> Parts:
        """Return the gradient by the parts from that by the weights, for codes that stay."""


class Stored(Protocol):
    """Quantised matrices of a model where a target stores them, by their names in the checkpoint."""

    def grid(self, name: str) -> Grid | None:
        """Return the grid of a matrix; None if it stays as it is."""

    def read(self, name: str) -> tuple[Any, Parts]:
        """Return the codes and the parts of a matrix that has a grid."""

    def floats(self, name: str) -> Any:
        """Return a matrix as the target computes with it, float32."""

    def write(self, name: str, codes: Any, parts: Parts) -> None:
        """Replace a matrix that has a grid."""

    def write_floats(self, name: str, values: Any) -> None:
        """Replace a norm or a bias."""


class ScaledGrid:
    """Integer codes times a scale: d * q (Q4_0: -8 to 7)."""

    def __init__(self, lowest: int = -8, highest: int = 7, group: int = 32) -> None:
        self.group, self._lowest, self._highest = group, lowest, highest

    def fit(self, weight: Any, cost: Any) -> Parts:
        """Try scales of both signs, since one side has a code more, and refine the best by least squares."""
        return {"scale": _fit_scale(self, weight, cost, self._lowest)}

    def unit(self, parts: Parts) -> Parts:
        """Return the units of the parts."""
        step = parts["scale"]
        return {"step": step, "scale": step / -self._lowest}

    def codes(self, weight: Any, parts: Parts) -> Any:
        """Return the nearest codes."""
        return torch.round(weight / _safe(_half(parts["scale"]))).clamp_(self._lowest, self._highest)

    def values(self, codes: Any, parts: Parts) -> Any:
        """Return the stored weights."""
        return codes * _half(parts["scale"])

    def pull(self, codes: Any, parts: Parts, gradient: Any) -> Parts:
        """Return the gradient by the scales."""
        return {"scale": (codes * gradient).sum(-1, keepdim=True)}


class OffsetGrid:
    """Integer codes times a scale, plus the least value: d * q + m (Q4_1: 0 to 15)."""

    def __init__(self, highest: int = 15, group: int = 32) -> None:
        self.group, self._highest = group, highest

    def fit(self, weight: Any, cost: Any) -> Parts:
        """Try narrower ranges than that of the weights, and refine the best by least squares."""
        low, high = weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True)
        best = torch.full_like(low, torch.inf)
        found = {"scale": torch.zeros_like(low), "least": low}
        mean = _mean(weight, cost)
        for shrink in (*_SHRINKS[5:], None, None):
            if shrink is None:
                codes = self.codes(weight, found)
                middle = _mean(codes, cost)
                spread = ((codes - middle) * cost).mul_(codes).sum(-1, keepdim=True)
                scale = ((codes - middle) * cost).mul_(weight).sum(-1, keepdim=True) / spread.clamp_min(_TINY)
                trial = {"scale": scale, "least": mean - scale * middle}
            else:
                scale = (high - low) * (shrink / self._highest)
                trial = {"scale": scale, "least": (low + high) / 2 - scale * (self._highest / 2)}
            trial = {name: _half(part) for name, part in trial.items()}
            best, found = _better(self, weight, cost, best, found, trial)
        return found

    def unit(self, parts: Parts) -> Parts:
        """Return the units of the parts."""
        step = parts["scale"]
        return {"step": step, "scale": step / self._highest, "least": step}

    def codes(self, weight: Any, parts: Parts) -> Any:
        """Return the nearest codes."""
        found = torch.round((weight - _half(parts["least"])) / _safe(_half(parts["scale"])))
        return found.clamp_(0, self._highest)

    def values(self, codes: Any, parts: Parts) -> Any:
        """Return the stored weights."""
        return codes * _half(parts["scale"]) + _half(parts["least"])

    def pull(self, codes: Any, parts: Parts, gradient: Any) -> Parts:
        """Return the gradient by the parts."""
        return {"scale": (codes * gradient).sum(-1, keepdim=True), "least": gradient.sum(-1, keepdim=True)}


class ListedGrid:
    """One of a list of numbers times a scale: d * values[q] (IQ4_NL)."""

    def __init__(self, listed: tuple[int, ...], group: int = 32) -> None:
        self.group, self._listed = group, torch.tensor(listed, dtype=torch.float32)
        self._middles = (self._listed[1:] + self._listed[:-1]) / 2

    def fit(self, weight: Any, cost: Any) -> Parts:
        """Try scales of both signs, and refine the best by least squares."""
        return {"scale": _fit_scale(self, weight, cost, float(self._listed[0]))}

    def unit(self, parts: Parts) -> Parts:
        """Return the units of the parts; a step is the mean distance of two values."""
        step = parts["scale"] * float((self._listed[-1] - self._listed[0]) / (len(self._listed) - 1))
        return {"step": step, "scale": step / float(self._listed.abs().max())}

    def codes(self, weight: Any, parts: Parts) -> Any:
        """Return the nearest codes."""
        return torch.bucketize(weight / _safe(_half(parts["scale"])), self._middles.to(weight.device)).float()

    def values(self, codes: Any, parts: Parts) -> Any:
        """Return the stored weights."""
        return self._listed.to(codes.device)[codes.int()] * _half(parts["scale"])

    def pull(self, codes: Any, parts: Parts, gradient: Any) -> Parts:
        """Return the gradient by the scales."""
        return {"scale": (self._listed.to(codes.device)[codes.int()] * gradient).sum(-1, keepdim=True)}


def _fit_scale(grid: Any, weight: Any, cost: Any, reach: float) -> Any:
    """Fit the scale of each group, where `reach` is the number that the largest weight becomes, on one side or the other."""
    largest = weight.gather(-1, weight.abs().argmax(-1, keepdim=True))
    best = torch.full_like(largest, torch.inf)
    found = {"scale": torch.zeros_like(largest)}
    for shrink in _SHRINKS:
        for sign in (reach, -reach):
            best, found = _better(grid, weight, cost, best, found, {"scale": _half(largest * (shrink / sign))})
    for _ in range(_ROUNDS):
        plain = grid.values(grid.codes(weight, found), {"scale": torch.ones_like(largest)})
        scale = (plain * weight * cost).sum(-1, keepdim=True) / (plain * plain * cost).sum(-1, keepdim=True).clamp_min(_TINY)
        best, found = _better(grid, weight, cost, best, found, {"scale": _half(scale)})
    return found["scale"]


def _better(grid: Any, weight: Any, cost: Any, best: Any, found: Parts, trial: Parts) -> tuple[Any, Parts]:
    """Return for each group the cheaper of two choices, and its cost."""
    error = grid.values(grid.codes(weight, trial), trial).sub_(weight).square_().mul_(cost).sum(-1, keepdim=True)
    is_better = error < best
    return torch.where(is_better, error, best), {name: torch.where(is_better, trial[name], found[name]) for name in found}


def _mean(values: Any, cost: Any) -> Any:
    """Return the weighted mean of each group."""
    total = (torch.ones_like(values) * cost).sum(-1, keepdim=True).clamp_min(_TINY)
    return (values * cost).sum(-1, keepdim=True) / total


def _half(part: Any) -> Any:
    """Round as the file does."""
    return part.half().float()


def _safe(scale: Any) -> Any:
    return torch.where(scale == 0, torch.ones_like(scale), scale)
