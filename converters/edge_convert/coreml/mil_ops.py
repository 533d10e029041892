"""The operations of the exporter's MIL programs in numpy.

Floats are float32 whatever their declared type; the evaluator rounds results to float16 where the program says so.

Source: coremltools' operator definitions (coremltools/converters/mil/mil/ops/defs).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["CONSTEXPR", "OPERATIONS"]

Inputs = dict[str, Any]


def _axes(inputs: Inputs) -> tuple[int, ...]:
    return tuple(int(axis) for axis in np.atleast_1d(inputs["axes"]))


def _reduce(function: Callable[..., Any]) -> Callable[[Inputs], Array]:
    def run(inputs: Inputs) -> Array:
        result: Array = function(inputs["x"], axis=_axes(inputs), keepdims=bool(inputs.get("keep_dims", False)))
        return result

    return run


def _binary(function: Callable[[Array, Array], Any]) -> Callable[[Inputs], Array]:
    return lambda inputs: np.asarray(function(inputs["x"], inputs["y"]))


def _unary(function: Callable[[Array], Any]) -> Callable[[Inputs], Array]:
    return lambda inputs: np.asarray(function(inputs["x"]))


def _gather(inputs: Inputs) -> Array:
    x, indices, axis = inputs["x"], inputs["indices"].astype(np.int64), int(inputs.get("axis", 0))
    if int(inputs.get("batch_dims", 0)):
        raise NotImplementedError("gather with batch_dims")
    if indices.size and (indices.min() < -x.shape[axis] or indices.max() >= x.shape[axis]):
        raise IndexError(f"index {indices.max()} of a gather is outside of its {x.shape[axis]} rows")
    return np.asarray(np.take(x, indices, axis=axis))


def _slice_by_index(inputs: Inputs) -> Array:
    if inputs.keys() != {"x", "begin", "end"}:
        raise NotImplementedError("a slice with strides or masks")
    index = tuple(slice(int(start), int(stop)) for start, stop in zip(inputs["begin"], inputs["end"], strict=True))
    return np.array(inputs["x"][index])  # a copy: the state it may come from changes later


def slice_update(inputs: Inputs, in_place: bool = False) -> Array:
    """Copy x, unless the caller owns it, and write `update` into [begin, end) of it."""
    x, update = inputs["x"], inputs["update"]
    index = []
    for axis in range(x.ndim):
        start, stop = int(inputs["begin"][axis]), int(inputs["end"][axis])
        if start < 0 or stop > x.shape[axis] or stop - start != update.shape[axis]:
            raise IndexError(
                f"a slice update of rows {start} to {stop} on axis {axis} does not fit {x.shape[axis]} rows"
                f" and an update of {update.shape[axis]}"
            )
        index.append(slice(start, stop))
    result: Array = x if in_place else x.copy()
    result[tuple(index)] = update
    return result


def _conv(inputs: Inputs) -> Array:
    x, weight = inputs["x"], inputs["weight"]
    ones = all(int(value) == 1 for name in ("strides", "dilations") for value in inputs.get(name, [1]))
    if x.ndim != 4 or weight.shape[2:] != (1, 1) or int(inputs.get("groups", 1)) != 1 or not ones:
        raise NotImplementedError("convolutions other than 1x1")
    if str(inputs.get("pad_type", "valid")) not in ("valid", "same") and np.any(inputs.get("pad", 0)):
        raise NotImplementedError("padded convolutions")
    n, channels, height, width = x.shape
    out = weight.reshape(weight.shape[0], channels) @ x.reshape(n, channels, height * width)
    out = out.reshape(n, weight.shape[0], height, width)
    return out + inputs["bias"].reshape(1, -1, 1, 1) if "bias" in inputs else np.asarray(out)


def _matmul(inputs: Inputs) -> Array:
    x, y = inputs["x"], inputs["y"]
    x = np.swapaxes(x, -1, -2) if inputs.get("transpose_x", False) else x
    y = np.swapaxes(y, -1, -2) if inputs.get("transpose_y", False) else y
    return np.asarray(x @ y)


def _softmax(inputs: Inputs) -> Array:
    x, axis = inputs["x"], int(inputs.get("axis", -1))
    exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=axis, keepdims=True))


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), dtype=x.dtype)


def _gelu(inputs: Inputs) -> Array:
    x, mode = inputs["x"], str(inputs.get("mode", "EXACT"))
    if mode == "TANH_APPROXIMATION":
        return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi, dtype=np.float32) * (x + 0.044715 * x**3))), np.float32)
    raise NotImplementedError(f"gelu in mode {mode}")


def _reshape(inputs: Inputs) -> Array:
    # MIL: 0 keeps an axis, -1 takes the rest
    shape = [inputs["x"].shape[axis] if size == 0 else int(size) for axis, size in enumerate(inputs["shape"])]
    return np.asarray(inputs["x"].reshape(shape))


def _expand_dims(inputs: Inputs) -> Array:
    return np.asarray(np.expand_dims(inputs["x"], _axes(inputs)))


def _concat(inputs: Inputs) -> Array:
    if inputs.get("interleave", False):
        raise NotImplementedError("interleaved concat")
    return np.concatenate([np.atleast_1d(value) for value in inputs["values"]], axis=int(inputs["axis"]))


def _rsqrt(inputs: Inputs) -> Array:
    return np.asarray(1.0 / np.sqrt(inputs["x"] + inputs.get("epsilon", np.float32(1e-12))), np.float32)


OPERATIONS: dict[str, Callable[[Inputs], Array]] = {
    "abs": _unary(np.abs),
    "add": _binary(np.add),
    "concat": _concat,
    "conv": _conv,
    "expand_dims": _expand_dims,
    "gather": _gather,
    "gelu": _gelu,
    "identity": lambda inputs: np.asarray(inputs["x"]),
    "matmul": _matmul,
    "maximum": _binary(np.maximum),
    "mul": _binary(np.multiply),
    "real_div": _binary(np.divide),
    "reduce_max": _reduce(np.max),
    "reduce_mean": _reduce(np.mean),
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "silu": _unary(lambda x: x * _sigmoid(x)),
    "slice_by_index": _slice_by_index,
    "slice_update": slice_update,
    "softmax": _softmax,
    "sub": _binary(np.subtract),
    "tanh": _unary(np.tanh),
    "transpose": lambda inputs: np.ascontiguousarray(np.transpose(inputs["x"], [int(axis) for axis in inputs["perm"]])),
}
"""Operation type -> its numpy form, from inputs by name to one array."""


def _blockwise_shift_scale(inputs: Inputs) -> Array:
    data, scale = inputs["data"], inputs["scale"].astype(np.float32)
    blocks = []
    for size, n_blocks in zip(data.shape, scale.shape, strict=True):
        if n_blocks == 0 or size % n_blocks:
            raise ValueError(f"{n_blocks} blocks do not divide an axis of {size}")
        blocks += [n_blocks, size // n_blocks]
    spread = [part if axis % 2 == 0 else 1 for axis, part in enumerate(blocks)]
    values = data.astype(np.float32).reshape(blocks)
    if "offset" in inputs:
        values -= inputs["offset"].astype(np.float32).reshape(spread)
    values *= scale.reshape(spread)  # in place: this may be the largest matrix of a model
    return np.asarray(values.reshape(data.shape))


def _lut_to_dense(inputs: Inputs) -> Array:
    indices, lut = inputs["indices"], inputs["lut"]
    if lut.ndim != indices.ndim + 2 or lut.shape[-1] != 1:
        raise NotImplementedError("palettes of vectors")
    n_entries = lut.shape[-2]
    table = np.zeros(indices.shape, np.int32)  # which palette each element uses
    for axis, (size, n_groups) in enumerate(zip(indices.shape, lut.shape[:-2], strict=True)):
        if n_groups == 0 or size % n_groups:
            raise ValueError(f"{n_groups} palettes do not divide an axis of {size}")
        group = np.arange(size, dtype=np.int32) // (size // n_groups)
        table = table * n_groups + group.reshape([-1 if other == axis else 1 for other in range(indices.ndim)])
    return np.asarray(lut.reshape(-1, n_entries)[table, indices].astype(np.float32))


CONSTEXPR: dict[str, Callable[[Inputs], Array]] = {
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_lut_to_dense": _lut_to_dense,
}
"""Operations that decode stored weights; evaluated once, when a package is opened."""
