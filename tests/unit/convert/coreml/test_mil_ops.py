"""The evaluator's operations against torch and numpy, and its weight decoding against coremltools' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")

import torch

from edge_convert.coreml.blobs import unpack
from edge_convert.coreml.mil_ops import CONSTEXPR, OPERATIONS

RNG = np.random.default_rng(5)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
Y = (RNG.normal(size=(2, 3, 4)) + 3).astype(np.float32)
POSITIVE = np.abs(X) + 0.5


def _t(array: Any) -> Any:
    return torch.from_numpy(np.asarray(array))


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "abs": ({"x": X}, _t(X).abs()),
    "add": ({"x": X, "y": Y}, _t(X) + _t(Y)),
    "concat": ({"values": [X, Y], "axis": np.int32(1)}, torch.cat([_t(X), _t(Y)], 1)),
    "expand_dims": ({"x": X, "axes": np.array([1])}, _t(X).unsqueeze(1)),
    "gather": ({"x": X, "indices": np.array([1, 0, 1], np.int32), "axis": np.int32(0)}, _t(X)[[1, 0, 1]]),
    "gelu": ({"x": X, "mode": "TANH_APPROXIMATION"}, torch.nn.functional.gelu(_t(X), approximate="tanh")),
    "identity": ({"x": X}, _t(X)),
    "matmul": ({"x": X, "y": Y, "transpose_y": np.bool_(True)}, _t(X) @ _t(Y).transpose(1, 2)),
    "maximum": ({"x": X, "y": np.float32(0.1)}, _t(X).clamp(min=0.1)),
    "mul": ({"x": X, "y": Y}, _t(X) * _t(Y)),
    "real_div": ({"x": X, "y": Y}, _t(X) / _t(Y)),
    "reduce_max": ({"x": X, "axes": np.array([1]), "keep_dims": np.bool_(True)}, _t(X).amax(1, keepdim=True)),
    "reduce_mean": ({"x": X, "axes": np.array([-1]), "keep_dims": np.bool_(False)}, _t(X).mean(-1)),
    "reshape": ({"x": X, "shape": np.array([0, -1])}, _t(X).reshape(2, 12)),
    "rsqrt": ({"x": POSITIVE, "epsilon": np.float32(0)}, _t(POSITIVE).rsqrt()),
    "silu": ({"x": X}, torch.nn.functional.silu(_t(X))),
    "slice_by_index": ({"x": X, "begin": np.array([0, 1, 0]), "end": np.array([2, 3, 2])}, _t(X)[:, 1:3, :2]),
    "softmax": ({"x": X, "axis": np.int32(1)}, _t(X).softmax(1)),
    "sub": ({"x": X, "y": Y}, _t(X) - _t(Y)),
    "tanh": ({"x": X}, _t(X).tanh()),
    "transpose": ({"x": X, "perm": np.array([2, 0, 1])}, _t(X).permute(2, 0, 1)),
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_operation_equals_torch(name: str) -> None:
    inputs, expected = CASES[name]
    result = OPERATIONS[name](inputs)
    assert tuple(result.shape) == tuple(expected.shape)
    np.testing.assert_allclose(result, expected.numpy(), rtol=2e-6, atol=1e-6)


def test_every_operation_has_a_case() -> None:
    assert set(OPERATIONS) - set(CASES) == {"conv", "slice_update"}


def test_conv_is_torchs_1x1() -> None:
    x, weight = RNG.normal(size=(1, 6, 1, 5)).astype(np.float32), RNG.normal(size=(4, 6, 1, 1)).astype(np.float32)
    bias = RNG.normal(size=4).astype(np.float32)
    expected = torch.nn.functional.conv2d(_t(x), _t(weight), _t(bias)).numpy()
    np.testing.assert_allclose(OPERATIONS["conv"]({"x": x, "weight": weight, "bias": bias}), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(NotImplementedError):
        OPERATIONS["conv"]({"x": x, "weight": np.zeros((4, 6, 3, 3), np.float32)})


def test_slice_update_copies_and_checks_its_bounds() -> None:
    inputs = {"x": X, "update": np.ones((2, 1, 4), np.float32), "begin": np.array([0, 1, 0]), "end": np.array([2, 2, 4])}
    result = OPERATIONS["slice_update"](inputs)
    expected = X.copy()
    expected[:, 1] = 1
    np.testing.assert_array_equal(result, expected)
    assert X[0, 1, 0] != 1
    with pytest.raises(IndexError):
        OPERATIONS["slice_update"](inputs | {"begin": np.array([0, 3, 0]), "end": np.array([2, 4, 4])})


def test_gather_refuses_rows_that_are_not_there() -> None:
    with pytest.raises(IndexError):
        OPERATIONS["gather"]({"x": X, "indices": np.array([2]), "axis": np.int32(0)})


def test_slices_of_a_state_are_copies() -> None:
    state = X.copy()
    part = OPERATIONS["slice_by_index"]({"x": state, "begin": np.array([0, 0, 0]), "end": np.array([1, 3, 4])})
    state[:] = 0
    np.testing.assert_array_equal(part, X[:1])


@pytest.mark.parametrize("with_offset", [False, True])
def test_blockwise_shift_scale_equals_coremltools(with_offset: bool) -> None:
    pytest.importorskip("coremltools")
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_blockwise_shift_scale as oracle

    data = RNG.integers(0, 16, (6, 64, 1, 1)).astype(np.uint8)
    scale = RNG.normal(size=(6, 2, 1, 1)).astype(np.float16).astype(np.float32)
    offset = RNG.normal(size=(6, 2, 1, 1)).astype(np.float16).astype(np.float32) if with_offset else None
    inputs = {"data": data, "scale": scale} | ({} if offset is None else {"offset": offset})
    result = CONSTEXPR["constexpr_blockwise_shift_scale"](inputs)
    np.testing.assert_allclose(result, oracle.decompress(data, scale, offset), rtol=1e-6)


@pytest.mark.parametrize("groups", [(6, 1), (1, 4), (3, 2), (1, 1)])
def test_lut_to_dense_equals_coremltools(groups: tuple[int, int]) -> None:
    pytest.importorskip("coremltools")
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_lut_to_dense as oracle

    indices = RNG.integers(0, 16, (6, 8, 1, 1)).astype(np.uint8)
    lut = RNG.normal(size=(*groups, 1, 1, 16, 1)).astype(np.float32)
    result = CONSTEXPR["constexpr_lut_to_dense"]({"indices": indices, "lut": lut})
    np.testing.assert_array_equal(result, oracle.decompress(indices, lut, None))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_packed_elements_come_out_as_they_went_in(bits: int) -> None:
    values = RNG.integers(0, 1 << bits, 101).astype(np.uint8)
    stream = "".join(format(value, f"0{bits}b")[::-1] for value in values)
    stream += "0" * (-len(stream) % 8)
    raw = np.array([int(stream[start : start + 8][::-1], 2) for start in range(0, len(stream), 8)], np.uint8)
    np.testing.assert_array_equal(unpack(raw, bits, len(values), signed=False), values)


def test_packed_signed_elements() -> None:
    raw = np.array([0x8F, 0x71], np.uint8)  # low half first: -1, -8, 1, 7
    np.testing.assert_array_equal(unpack(raw, 4, 4, signed=True), np.array([-1, -8, 1, 7], np.int8))
