"""Blocks of GGUF as OpenVINO's compressed weights, against gguf-py's own reading of them."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf.quants import dequantize, quantize

from edge.backends.openvino.weights import TYPES, Packed, join_rows, unpack
from edge.errors import ModelFileError

N_ROWS, N_COLUMNS = 24, 512
EXACT = ("F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0")
MIN_AT = {"Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}


def blocks(name: str, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Random weights of a type, as the bytes of a tensor; where gguf-py cannot write a type, random blocks with sane scales."""
    rng = np.random.default_rng(seed)
    kind = gguf.GGMLQuantizationType[name]
    if name not in MIN_AT:
        weights = rng.normal(0, 0.05, (N_ROWS, N_COLUMNS)) + rng.normal(0, 0.03, (N_ROWS, 1))
        return np.frombuffer(quantize(weights.astype(np.float32), kind).tobytes(), np.uint8)
    data = rng.integers(0, 256, (N_ROWS, N_COLUMNS // 256, TYPES[name][0]), dtype=np.uint8)
    for at in MIN_AT[name]:
        scale = np.asarray(rng.uniform(0.001, 0.01, (N_ROWS, N_COLUMNS // 256, 1)), np.float16)
        data[:, :, at : at + 2] = scale.view(np.uint8)
    return data.reshape(-1)


@pytest.mark.parametrize("name", TYPES)
def test_what_is_unpacked_stands_for_what_the_blocks_stand_for(name: str) -> None:
    data = blocks(name)
    expected = dequantize(data.reshape(N_ROWS, -1), gguf.GGMLQuantizationType[name]).astype(np.float32)
    found = unpack(name, data, (N_COLUMNS, N_ROWS))
    assert found.shape == (N_ROWS, N_COLUMNS)
    if name in EXACT:
        np.testing.assert_array_equal(found.dense(), expected)
        return
    error = np.abs(found.dense() - expected).reshape(found.values.shape)
    if name == "Q6_K":
        assert error.max() <= 2**-11 * np.abs(expected).max(), "the rounding of a float16"
        return
    # The zero point is rounded: half a step of the finer grid, and the rounding of the scale.
    assert found.scales is not None
    assert (error <= found.scales.astype(np.float32) * 0.51 + 2**-10 * np.abs(expected).reshape(error.shape)).all()
    assert np.sqrt((error**2).mean()) < 0.006 * expected.std()


@pytest.mark.parametrize("name", ["Q4_1", "Q5_1", "Q4_K", "Q5_K"])
def test_with_floats_as_zero_points_weights_are_rounded_less(name: str) -> None:
    data = blocks(name)
    expected = dequantize(data.reshape(N_ROWS, -1), gguf.GGMLQuantizationType[name]).astype(np.float32)
    found = unpack(name, data, (N_COLUMNS, N_ROWS), in_floats=True)
    assert found.bits == (4 if "4" in name else 8)
    assert found.scales is not None
    assert isinstance(found.zeros, np.ndarray)
    # The zero point is rounded to 11 bits, and so is the scale.
    size = np.abs(found.scales.astype(np.float32)) * (np.abs(found.zeros.astype(np.float32)) + found.values)
    error = np.abs(found.dense() - expected).reshape(size.shape)
    assert (error <= size * 2**-10).all()
    assert np.sqrt((error**2).mean()) < 0.001 * np.abs(expected).mean()


@pytest.mark.parametrize("in_floats", [False, True])
def test_a_block_of_equal_weights_and_one_far_from_zero_keep_their_values(in_floats: bool) -> None:
    q = np.arange(32, dtype=np.uint8) % 16
    nibbles = (q[:16] | (q[16:] << 4)).astype(np.uint8)

    def block(d: float, minimum: float) -> bytes:
        return np.array([d, minimum], np.float16).tobytes() + nibbles.tobytes()

    near = block(2**-20, 1.0)  # its zero point, -2 ** 20, is no float16
    data = np.frombuffer(block(0.0, 0.25) + block(0.001, 5.0) + block(0.001, -5.0) + near + block(0.0, 0.0), np.uint8)
    expected = dequantize(data.reshape(1, -1), gguf.GGMLQuantizationType.Q4_1)
    found = unpack("Q4_1", data, (160, 1), in_floats=in_floats).dense()
    np.testing.assert_allclose(found, expected, atol=0.011, rtol=0)
    assert (found[:, 128:] == 0).all()


@pytest.mark.parametrize("in_floats", [False, True])
@pytest.mark.parametrize("at", [0, 2])
def test_a_scale_or_minimum_that_is_no_number_is_refused(at: int, in_floats: bool) -> None:
    data = blocks("Q4_1").copy()
    data[at : at + 2] = np.frombuffer(np.array([np.nan], np.float16).tobytes(), np.uint8)
    with pytest.raises(ModelFileError, match="not a number"):
        unpack("Q4_1", data, (N_COLUMNS, N_ROWS), in_floats=in_floats)


def test_weights_that_are_no_numbers_are_refused() -> None:
    data = blocks("Q8_0").copy()
    data[0:2] = np.frombuffer(np.array([np.nan], np.float16).tobytes(), np.uint8)
    with pytest.raises(ModelFileError, match="not a number"):
        unpack("Q8_0", data, (N_COLUMNS, N_ROWS))


@pytest.mark.parametrize("name", ["F16", "Q4_0", "Q4_1", "Q8_0"])
def test_joined_rows_are_the_rows_of_both(name: str) -> None:
    parts = [unpack(name, blocks(name, seed), (N_COLUMNS, N_ROWS)) for seed in (1, 2)]
    joined = join_rows(parts)
    assert joined is not None
    np.testing.assert_array_equal(joined.dense(), np.concatenate([part.dense() for part in parts]))


def test_matrices_of_different_formats_are_not_joined() -> None:
    parts = [unpack(name, blocks(name), (N_COLUMNS, N_ROWS)) for name in ("Q4_0", "Q8_0")]
    assert join_rows(parts) is None
    other = Packed(parts[0].values, parts[0].scales, 7, bits=4)
    assert join_rows([parts[0], other]) is None


def test_rows_in_another_order() -> None:
    packed = unpack("Q4_1", blocks("Q4_1"), (N_COLUMNS, N_ROWS))
    order = np.random.default_rng(0).permutation(N_ROWS)
    np.testing.assert_array_equal(packed.rows(order).dense(), packed.dense()[order])
