"""Palettes as a grid: a row, or some rows together, list the values that their weights may have.

Fitting finds values by weighted k-means, then codes column by column with error feedback, then in turns the best values for the
codes (least squares) and better codes for the values, one column at a time while all others stay. Each turn costs less than the
one before it, up to the rounding of the values to 16 bits.

Sources: palettes of weighted k-means from SqueezeLLM (Kim et al. 2023); error feedback from GPTQ (Frantar et al. 2022);
better codes one column at a time from QuantEase (Behdin et al. 2023).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_convert.checkpoint import Checkpoint
from edge_convert.coreml.grids import fit_palettes, int8_rows
from edge_convert.coreml.quantise import has_palette, rows_together
from edge_convert.coreml.weights import Palette, read_palette, save_vector, to_files
from edge_convert.recover.fit import damped, inverse_factor
from edge_convert.recover.grids import Grid, Parts

__all__ = ["PaletteFiles", "PaletteGrid", "assign_palettes"]

_TURNS = 2
_COLUMNS = 128  # whose changes are passed on to the others at once
_RIDGE = 1e-6  # of the mean square of a value's inputs: what no weight uses stays
_TABLE_BYTES = 64_000_000


class PaletteGrid:
    """One of the listed values of a group: values[q]. A group is `together` whole rows."""

    group = 0

    def __init__(self, bits: int, together: int = 1) -> None:
        self.bits, self.together = bits, together

    def fit(self, weight: Any, cost: Any) -> Parts:
        """Find values by k-means; `cost` is one number for each weight of a group."""
        values = fit_palettes(weight[:, 0].cpu().numpy(), cost.flatten().cpu().numpy(), self.bits)
        return {"values": torch.from_numpy(values)[:, None].to(weight.device).half().float()}

    def unit(self, parts: Parts) -> Parts:
        """Return the units of the parts; a step is the mean distance of two values."""
        values = parts["values"]
        step = (values.amax(-1, keepdim=True) - values.amin(-1, keepdim=True)) / (values.shape[-1] - 1)
        return {"step": step, "values": step}

    def codes(self, weight: Any, parts: Parts) -> Any:
        """Return the nearest codes; the values ascend."""
        values = parts["values"].half().float()
        middles = (values[..., 1:] + values[..., :-1]) / 2
        return torch.searchsorted(middles.contiguous(), weight.contiguous()).float()

    def values(self, codes: Any, parts: Parts) -> Any:
        """Return the stored weights."""
        return parts["values"].half().float().gather(-1, codes.long())

    def pull(self, codes: Any, parts: Parts, gradient: Any) -> Parts:
        """Return the gradient by the values."""
        return {"values": torch.zeros_like(parts["values"]).scatter_add_(-1, codes.long(), gradient)}


class PaletteFiles:
    """The matrices of a model that the Neural Engine takes as palettes, each in files of its own; others have 8 bits a weight.

    Args:
        folder: of the files; it exists.
        checkpoint: the unquantised model.
        bits: of the palettes.
    """

    def __init__(self, folder: Path, checkpoint: Checkpoint, bits: int) -> None:
        self._folder, self._checkpoint, self._bits = folder, checkpoint, bits

    def grid(self, name: str) -> Grid | None:
        """Return the grid of a matrix; None if it has 8 bits."""
        if not has_palette(name.removesuffix(".weight")):
            return None
        return PaletteGrid(self._bits, rows_together(self._checkpoint.tensors[name].shape[0], self._bits))

    def read(self, name: str) -> tuple[Any, Parts]:
        """Return the codes of a matrix, uint8 [groups, 1, weights of a group], and its values, float32 [groups, 1, n]."""
        palette = self._palette(name)
        codes = torch.from_numpy(np.array(palette.indices)).view(len(palette.lut), 1, -1)
        return codes, {"values": torch.from_numpy(palette.lut.astype(np.float32))[:, None]}

    def floats(self, name: str) -> Any:
        """Return a matrix as the device computes with it, float32."""
        if self.grid(name) is None:
            return torch.from_numpy(int8_rows(self._checkpoint.load_f32(name)).dequantise())
        return torch.from_numpy(self._palette(name).dequantise())

    def write(self, name: str, codes: Any, parts: Parts) -> None:
        """Write a matrix. Where training has changed the order of its values, they are written as they are."""
        n_rows = self._checkpoint.tensors[name].shape[0]
        indices = codes.to(torch.uint8).cpu().numpy().reshape(n_rows, -1)
        lut = parts["values"][:, 0].cpu().numpy().astype(np.float16)
        to_files(Palette(indices, lut, self._bits), self._folder, name.removesuffix(".weight"))

    def write_floats(self, name: str, values: Any) -> None:
        """Write a norm or a bias."""
        save_vector(self._folder, name, values.float().cpu().numpy())

    def _palette(self, name: str) -> Palette:
        palette = read_palette(self._folder, name.removesuffix(".weight"))
        assert palette is not None, name
        return palette


def assign_palettes(weight: Any, moments: Any, grid: Grid) -> tuple[Any, Parts]:
    """Choose the values and the codes of a matrix.

    Args:
        weight: float32 [n_rows, n_columns].
        moments: second moments of the inputs, [n_columns, n_columns].
        grid: a PaletteGrid.

    Returns:
        Codes, float32 [n_groups, 1, weights of a group], and values, float32 [n_groups, 1, n], ascending.
    """
    assert isinstance(grid, PaletteGrid)
    order = torch.argsort(-moments.diagonal())  # the most important first: the error of the last is not passed on
    cost = damped(moments[order][:, order])
    upper = inverse_factor(cost)
    cost = cost.float()
    left = weight[:, order]
    groups = left.reshape(len(left) // grid.together, 1, -1)
    values = grid.fit(groups, (upper.diagonal() ** -2).repeat(grid.together))["values"][:, 0]
    target = left.T.contiguous()
    codes = _feed_back(target, upper, values, grid.together)
    for _ in range(_TURNS):
        codes, values = _refit(target, cost, codes, values, grid.together)
        codes = _descend(target, cost, codes, values, grid.together)
    codes, values = _refit(target, cost, codes, values, grid.together)
    back = codes[torch.argsort(order)].T.reshape(len(groups), 1, -1)
    return back.float(), {"values": values[:, None]}


def _feed_back(target: Any, upper: Any, values: Any, together: int) -> Any:
    """Choose codes column by column, and pass on each error to the columns that follow.

    Args:
        target: float32 [n_columns, n_rows].
        upper: Cholesky factor of the inverse moments.
        values: [n_groups, n].
        together: rows of a group.

    Returns:
        int64 [n_columns, n_rows].
    """
    table = values.repeat_interleave(together, 0)
    left, codes = target.clone(), torch.empty(target.shape, dtype=torch.int64, device=target.device)
    for start in range(0, len(left), _COLUMNS):
        block, stop = left[start : start + _COLUMNS], min(start + _COLUMNS, len(left))
        errors = torch.empty_like(block)
        for at in range(len(block)):
            codes[start + at], chosen = _nearest(block[at], table)
            errors[at] = (block[at] - chosen) / upper[start + at, start + at]
            block[at + 1 :] -= torch.outer(upper[start + at, start + at + 1 : stop], errors[at])
        left[stop:] -= upper[start:stop, stop:].T @ errors
    return codes


def _descend(target: Any, cost: Any, codes: Any, values: Any, together: int) -> Any:
    """Choose the best code for each weight while all others stay, a column after the other."""
    table = values.repeat_interleave(together, 0)
    now, codes = _looked_up(codes, table), codes.clone()
    slope = cost @ (now - target)
    for start in range(0, len(now), _COLUMNS):
        stop = min(start + _COLUMNS, len(now))
        block, inner, before = slope[start:stop], cost[start:stop, start:stop], now[start:stop].clone()
        for at in range(stop - start):
            wanted = now[start + at] - block[at] / inner[at, at]
            codes[start + at], chosen = _nearest(wanted, table)
            block += torch.outer(inner[:, at], chosen - now[start + at])
            now[start + at] = chosen
        change = now[start:stop] - before
        slope[:start] += cost[:start, start:stop] @ change
        slope[stop:] += cost[stop:, start:stop] @ change
    return codes


def _refit(target: Any, cost: Any, codes: Any, values: Any, together: int) -> tuple[Any, Any]:
    """Return the codes in the order of their new values, and the values: those that cost least, ascending, in 16 bits."""
    n_columns, n_rows = target.shape
    n_groups, n_values = values.shape
    squares = torch.zeros(n_groups, n_values, n_values, dtype=torch.float64, device=target.device)
    products = torch.zeros(n_groups, n_values, dtype=torch.float64, device=target.device)
    at_once = max(1, _TABLE_BYTES // (8 * n_columns * n_values * together)) * together
    for start in range(0, n_rows, at_once):
        chosen = codes[:, start : start + at_once]
        used = torch.zeros(*chosen.shape, n_values, device=target.device).scatter_(-1, chosen[..., None], 1.0)
        weighted = (cost @ used.view(n_columns, -1)).view(used.shape).permute(1, 2, 0)
        part = slice(start // together, (start + chosen.shape[1]) // together)
        square = weighted @ used.permute(1, 0, 2)
        product = (weighted @ target[:, start : start + at_once].T[..., None])[..., 0]
        squares[part] = square.view(-1, together, n_values, n_values).sum(1).double()
        products[part] = product.view(-1, together, n_values).sum(1).double()
    ridge = _RIDGE * squares.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)[:, None]
    squares.diagonal(dim1=1, dim2=2).add_(ridge)
    found = torch.linalg.solve(squares, products + ridge * values.double()).float().half().float()
    found, order = found.sort(-1)
    place = torch.argsort(order, -1).repeat_interleave(together, 0)
    return place.gather(1, codes.T).T.contiguous(), found


def _nearest(weights: Any, table: Any) -> tuple[Any, Any]:
    """Return the codes and the values nearest to a column; `table` is [n_rows, n], ascending."""
    middles = (table[:, 1:] + table[:, :-1]) / 2
    codes = torch.searchsorted(middles, weights[:, None])
    return codes[:, 0], table.gather(1, codes)[:, 0]


def _looked_up(codes: Any, table: Any) -> Any:
    """Return the values of codes [n_columns, n_rows]."""
    return table.gather(1, codes.T).T.contiguous()
