"""Quantisation numerics: grids against brute force, carried blocks against gguf's own dequantiser."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]")

from edge_convert.coreml.grids import assign, fit_blocks, fit_palettes, int4_blocks, int8_rows, palettes, shift_scale

RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers in whatever order the tests run."""
    RNG.bit_generator.state = np.random.default_rng(7).bit_generator.state


def _moments(n_columns: int, n_samples: int = 400) -> np.ndarray:
    mixing = RNG.normal(size=(n_columns, n_columns)) / 8
    inputs = RNG.normal(size=(n_samples, n_columns)) @ (mixing + np.diag(RNG.uniform(0.1, 3, n_columns)))
    return (inputs.T @ inputs / n_samples).astype(np.float32)


def _cost(weight: np.ndarray, other: np.ndarray, hessian: np.ndarray) -> float:
    difference = (weight - other).astype(np.float64)
    return float(np.einsum("ri,ij,rj->", difference, hessian.astype(np.float64), difference))


def test_a_q4_1_grid_is_found_again() -> None:
    step = RNG.uniform(0.01, 0.1, (8, 4)).astype(np.float16).astype(np.float32)
    least = RNG.normal(-0.5, 0.2, (8, 4)).astype(np.float16).astype(np.float32)
    codes = RNG.integers(0, 16, (8, 4, 32))
    codes[..., 0], codes[..., 1] = 0, 15  # both ends are used, as the quantiser that made them leaves it
    weight = (codes * step[..., None] + least[..., None]).astype(np.float32).reshape(8, 128)
    found = int4_blocks(weight, _moments(128))
    np.testing.assert_array_equal(found.codes, codes.reshape(8, 128))
    assert np.abs(found.dequantise() - weight).max() < 0.01 * step.max()  # what 11 bits of offset leave


def test_blocks_are_drawn_in_where_that_costs_less() -> None:
    weight = RNG.normal(size=(64, 64)).astype(np.float32)
    step, least = fit_blocks(weight, np.ones(64, np.float32))
    blocks = weight.reshape(64, 2, 32)
    plain = (blocks.max(2) - blocks.min(2)) / 15
    assert (step <= plain * 1.001).all() and (step < plain * 0.98).any()
    assert (least >= blocks.min(2) - 1e-3).all()


def test_a_block_of_one_value_and_a_block_of_zeros() -> None:
    scale, offset = shift_scale(np.array([[0.0, 0.0, 1e-7]], np.float32), np.array([[0.25, 0.0, -1.0]], np.float32))
    np.testing.assert_allclose(scale.astype(np.float32) * (0 - offset.astype(np.float32)), [[0.25, 0.0, -1.0]], rtol=1e-3)
    assert np.isfinite(offset.astype(np.float32)).all()


def test_rows_in_8_bits_are_within_half_a_step() -> None:
    weight = RNG.normal(size=(5, 40)).astype(np.float32)
    weight[2] = 0
    found = int8_rows(weight)
    steps = np.abs(weight).max(axis=1, keepdims=True) / 127
    assert (np.abs(found.dequantise() - weight) <= steps * 0.57 + 1e-6).all()


def test_palettes_are_near_the_best_of_many_k_means() -> None:
    weight, importance = RNG.normal(size=(3, 200)).astype(np.float32), RNG.uniform(0.1, 4, 200).astype(np.float32)
    ours = fit_palettes(weight, importance, bits=3)
    for row, centres in zip(weight, ours, strict=True):
        best = min(_lloyd(row, importance, RNG.choice(row, 8, replace=False)) for _ in range(30))
        assert _palette_cost(row, importance, centres) <= best * 1.15


def _palette_cost(row: np.ndarray, importance: np.ndarray, centres: np.ndarray) -> float:
    return float((importance * (np.abs(row[:, None] - centres).min(axis=1)) ** 2).sum())


def _lloyd(row: np.ndarray, importance: np.ndarray, centres: np.ndarray) -> float:
    for _ in range(50):
        nearest = np.abs(row[:, None] - centres).argmin(axis=1)
        for index in range(len(centres)):
            if (nearest == index).any():
                centres[index] = np.average(row[nearest == index], weights=importance[nearest == index])
    return _palette_cost(row, importance, centres)


def test_palettes_of_rows_with_few_values_are_exact() -> None:
    weight = RNG.choice(np.linspace(-1, 1, 9).astype(np.float16).astype(np.float32), (6, 64))
    found = palettes(weight, np.eye(64, dtype=np.float32), bits=4)
    assert np.abs(found.dequantise() - weight).max() < 0.13  # Lloyd may merge two of nine values, never three


def test_rows_that_share_a_palette_get_the_best_one_for_all_of_them() -> None:
    weight, hessian = RNG.normal(size=(12, 40)).astype(np.float32), _moments(40)
    found = palettes(weight, hessian, bits=4, n_together=4)
    assert (found.lut.shape, found.group_size) == ((3, 16), 4)
    for group in range(3):
        rows = weight[4 * group : 4 * group + 4]
        alone = fit_palettes(rows.reshape(1, -1), np.tile(np.diagonal(hessian), 4), bits=4)
        np.testing.assert_array_equal(found.lut[group], alone[0].astype(np.float16))
    assert set(found.dequantise()[4:8].reshape(-1)) <= set(found.lut[1].astype(np.float32))


@pytest.mark.parametrize(("start", "stop"), [(0, 12), (4, 8), (2, 12), (3, 7)])
def test_a_cut_through_a_group_changes_no_weight(start: int, stop: int) -> None:
    found = palettes(RNG.normal(size=(12, 40)).astype(np.float32), _moments(40), bits=4, n_together=4)
    np.testing.assert_array_equal(found.rows(start, stop).dequantise(), found.dequantise()[start:stop])


def test_error_feedback_costs_less_than_rounding() -> None:
    weight, hessian = RNG.normal(size=(32, 96)).astype(np.float32), _moments(96)
    levels = np.linspace(-2.5, 2.5, 16, dtype=np.float32)[None, None].repeat(32, 0)
    rounded = levels[0, 0][np.abs(weight[..., None] - levels[0, 0]).argmin(-1)]
    chosen = np.take_along_axis(levels[:, 0], assign(weight, levels, hessian).astype(np.intp), axis=1)
    assert _cost(weight, chosen, hessian) < 0.7 * _cost(weight, rounded, hessian)


def test_without_correlation_feedback_is_rounding() -> None:
    weight = RNG.normal(size=(4, 40)).astype(np.float32)
    levels = np.sort(RNG.normal(size=(4, 1, 16)), axis=2).astype(np.float32)
    nearest = np.abs(weight[..., None] - levels).argmin(-1)
    np.testing.assert_array_equal(assign(weight, levels, np.eye(40, dtype=np.float32)), nearest)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_carried_blocks_are_what_gguf_dequantises(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    from edge_convert.architectures import ARCHITECTURES
    from edge_convert.coreml.carried import CarriedWeights
    from edge_convert.coreml.decoder import Decoder

    decoder = Decoder("LlamaForCausalLM", 1, 64, 96, 4, 2, 16, 50, 1e-5, "silu", 0.25, True, (None,), ("full_attention",))
    weight = RNG.normal(size=(64, 64)).astype(np.float32)
    quantised = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[kind])
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name in ("attn_q", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", quantised, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    expected = gguf.quants.dequantize(quantised, gguf.GGMLQuantizationType[kind])
    carried = CarriedWeights(path, decoder, ARCHITECTURES["LlamaForCausalLM"])
    output = carried.find("model.layers.0.self_attn.o_proj", expected)
    assert output is not None
    scale = np.abs(output.scale.astype(np.float32)).repeat(32, axis=1)
    assert (np.abs(output.dequantise() - expected) <= 0.01 * scale).all()
    # llama.cpp keeps rotated rows interleaved: row 2i of a head is the checkpoint's row i, row 2i + 1 its row i + 8
    unpermuted = expected.reshape(4, 8, 2, 64).swapaxes(1, 2).reshape(64, 64)
    queries = carried.find("model.layers.0.self_attn.q_proj", unpermuted)
    assert queries is not None
    assert (np.abs(queries.dequantise() - unpermuted) <= 0.01 * np.abs(queries.scale.astype(np.float32)).repeat(32, 1)).all()
    assert carried.find("model.layers.0.self_attn.o_proj", expected + 0.5) is None  # changed since
    assert carried.find("model.layers.0.mlp.up_proj", expected) is None  # not there
