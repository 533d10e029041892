"""The numbers of quantisation: the values that weights may have, and the choice among them.

Matrices are float32 [rows, columns], a row per output. `importance` is the mean square of each input, [columns]; `hessian` the
mean of the inputs' outer products, [columns, columns].

Sources: k-means palettes as in SqueezeLLM (Kim et al. 2023); error feedback from GPTQ (Frantar et al. 2022), with fixed grids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .weights import Blocks, Palette

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]

__all__ = ["BLOCK", "assign", "fit_blocks", "fit_palettes", "int4_blocks", "int8_rows", "palettes", "shift_scale"]

BLOCK = 32
"""Columns that share a scale in the int4 variant."""
_LARGEST_OFFSET = 60000.0
_SHRINKS = (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.78)
_FEEDBACK_COLUMNS = 128
_DAMPING = 0.01


def int8_rows(weight: Matrix) -> Blocks:
    """Quantise to 8 bits, symmetric, one scale per row: every unit of a device takes that."""
    scale = (np.abs(weight).max(axis=1, keepdims=True) / 127).astype(np.float16)
    scale = np.maximum(scale, np.finfo(np.float16).tiny)
    codes = np.clip(np.rint(weight / scale.astype(np.float32)), -127, 127).astype(np.int8)
    return Blocks(codes, scale, None, 8)


def int4_blocks(weight: Matrix, hessian: Matrix) -> Blocks:
    """Quantise to 4 bits, with a scale and an offset for each 32 columns of a row.

    Weights that lie on such a grid already (they were a Q4_1 once) do not change.
    """
    step, least = fit_blocks(weight, np.diagonal(hessian))
    scale, offset = shift_scale(step, least)
    levels = scale.astype(np.float32)[..., None] * (np.arange(16, dtype=np.float32) - offset.astype(np.float32)[..., None])
    return Blocks(assign(weight, levels, hessian), scale, offset, 4)


def palettes(weight: Matrix, hessian: Matrix, bits: int, n_together: int = 1) -> Palette:
    """Quantise to 2**bits values for each `n_together` rows, by k-means."""
    groups = weight.reshape(len(weight) // n_together, -1)
    lut = fit_palettes(groups, np.tile(np.diagonal(hessian), n_together), bits).astype(np.float16)
    levels = lut.astype(np.float32).repeat(n_together, axis=0)
    return Palette(assign(weight, levels[:, None, :], hessian), lut, bits)


def shift_scale(step: Matrix, least: Matrix) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Convert step * q + least to Core ML's form, scale * (q - offset).

    A block whose step is negligible against its least value holds one value: codes of 0 give it, and others nearly.
    """
    scale, least = step.astype(np.float16), least.astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        offset = -least / scale.astype(np.float32)
    constant = ~(np.abs(offset) < _LARGEST_OFFSET)
    scale = np.where(constant, least.astype(np.float16), scale)
    offset = np.where(constant, np.where(least == 0, 0.0, -1.0), offset)
    return scale, offset.astype(np.float16)


def fit_blocks(weight: Matrix, importance: NDArray[np.float32]) -> tuple[Matrix, Matrix]:
    """Fit step and least value of each block: the range of its weights, narrowed where that costs less.

    Returns:
        (step, least), each float32 [rows, columns / 32]; least + 15 * step is the largest value.

    Raises:
        ValueError: the number of columns is not a multiple of 32.
    """
    n_rows, n_columns = weight.shape
    if n_columns % BLOCK:
        raise ValueError(f"{n_columns} columns are not a multiple of {BLOCK}")
    blocks = weight.reshape(n_rows, -1, BLOCK)
    costs = np.asarray(importance, np.float32).reshape(-1, BLOCK)
    low, high = blocks.min(axis=2), blocks.max(axis=2)
    middle, half = (low + high) / 2, (high - low) / 2
    best = np.full(low.shape, np.inf, np.float32)
    step, least = np.zeros_like(low), low.copy()
    for shrink in _SHRINKS:
        # rounded as they are stored, so that an existing grid costs nothing and wins
        trial_least = (low if shrink == 1.0 else middle - shrink * half).astype(np.float16).astype(np.float32)
        trial_step = (2 * shrink * half / 15).astype(np.float16).astype(np.float32)
        safe = np.where(trial_step == 0, 1.0, trial_step)[..., None]
        codes = np.clip(np.rint((blocks - trial_least[..., None]) / safe), 0, 15)
        error = (codes * trial_step[..., None] + trial_least[..., None] - blocks) ** 2
        cost = (error * costs).sum(axis=2)
        better = cost < best
        best, step, least = (
            np.where(better, cost, best),
            np.where(better, trial_step, step),
            np.where(better, trial_least, least),
        )
    return step, least


def fit_palettes(weight: Matrix, importance: NDArray[np.float32], bits: int, n_rounds: int = 40) -> Matrix:
    """Fit values to each row by weighted k-means (Lloyd's rounds on sorted rows, where a cluster is an interval).

    Returns:
        float32 [rows, 2**bits], ascending.
    """
    n_rows, n_columns = weight.shape
    order = np.argsort(weight, axis=1)
    values = np.take_along_axis(weight, order, axis=1)
    costs = np.maximum(np.asarray(importance, np.float64), 1e-12)[order]
    mass = np.concatenate([np.zeros((n_rows, 1)), np.cumsum(costs, axis=1)], axis=1)
    moment = np.concatenate([np.zeros((n_rows, 1)), np.cumsum(costs * values, axis=1)], axis=1)
    size = 1 << bits
    # between the quantiles, which crowd the middle, and an even spread, which starves it
    shares = (np.arange(size) + 0.5) / size
    quantiles = values[:, np.minimum((shares * n_columns).astype(np.intp), n_columns - 1)]
    even = values[:, :1] + (values[:, -1:] - values[:, :1]) * shares
    centres = (quantiles + even) / 2
    for _ in range(n_rounds):
        middles = (centres[:, 1:] + centres[:, :-1]) / 2
        cuts = np.zeros((n_rows, size + 1), np.intp)
        cuts[:, -1] = n_columns
        cuts[:, 1:-1] = _search_rows(values, middles)
        masses = np.diff(np.take_along_axis(mass, cuts, axis=1), axis=1)
        moments = np.diff(np.take_along_axis(moment, cuts, axis=1), axis=1)
        moved = np.sort(np.where(masses > 0, moments / np.maximum(masses, 1e-300), centres), axis=1)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres.astype(np.float32)


def _search_rows(values: Matrix, targets: NDArray[np.floating]) -> NDArray[np.intp]:
    """Apply numpy.searchsorted to each row: count a row's ascending values below each of its targets."""
    low = np.zeros(targets.shape, np.intp)
    high = np.full(targets.shape, values.shape[1], np.intp)
    while (low < high).any():
        middle = (low + high) // 2
        below = np.take_along_axis(values, np.minimum(middle, values.shape[1] - 1), axis=1) < targets
        below &= low < high
        low, high = np.where(below, middle + 1, low), np.where(below, high, np.minimum(middle, high))
    return low


def assign(weight: Matrix, levels: Matrix, hessian: Matrix) -> NDArray[np.uint8]:
    """Choose a level for each weight, column by column; the error of each is passed on to the columns that follow.

    Args:
        weight: [rows, columns].
        levels: [rows, groups, n]; the columns are split into that many groups of equal size.
        hessian: of the inputs.

    Returns:
        Indices into the levels, uint8 [rows, columns].
    """
    n_rows, n_columns = weight.shape
    group_size = n_columns // levels.shape[1]
    # the most important inputs first: their errors can still be compensated
    order = np.argsort(-np.diagonal(hessian), kind="stable")
    upper = _inverse_factor(hessian[np.ix_(order, order)])
    work = np.ascontiguousarray(weight[:, order].T)  # a column of the matrix is a row here
    chosen = np.empty((n_columns, n_rows), np.uint8)
    rows = np.arange(n_rows)
    for start in range(0, n_columns, _FEEDBACK_COLUMNS):
        stop = min(start + _FEEDBACK_COLUMNS, n_columns)
        errors = np.empty((stop - start, n_rows), np.float32)
        for column in range(start, stop):
            group = levels[:, order[column] // group_size]
            index = np.abs(group - work[column][:, None]).argmin(axis=1)
            chosen[column] = index
            error = (work[column] - group[rows, index]) / upper[column, column]
            errors[column - start] = error
            work[column + 1 : stop] -= np.outer(upper[column, column + 1 : stop], error)
        work[stop:] -= upper[start:stop, stop:].T @ errors
    codes = np.empty((n_rows, n_columns), np.uint8)
    codes[:, order] = chosen.T
    return codes


def _inverse_factor(hessian: Matrix) -> Matrix:
    """Return the upper Cholesky factor of the inverse, damped against inputs that never vary."""
    matrix = hessian.astype(np.float64)
    mean = float(np.diagonal(matrix).mean()) or 1.0
    matrix[np.diag_indices_from(matrix)] += _DAMPING * mean
    upper: Matrix = np.linalg.cholesky(np.linalg.inv(matrix)).T.astype(np.float32)
    return upper
