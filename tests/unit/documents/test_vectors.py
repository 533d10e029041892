"""The files of vectors: exact and by signs, against a plain product, and what is overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.documents import vectors
from edge.errors import StorageError


def make(n_rows: int, n_dims: int) -> np.ndarray[Any, Any]:
    """Return unit vectors around some centres, as those of texts on some topics."""
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(50, n_dims))[rng.integers(50, size=n_rows)] + rng.normal(size=(n_rows, n_dims))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("n_dims", [8, 64, 100])
def test_the_nearest_are_those_of_a_plain_product(tmp_path: Path, n_dims: int) -> None:
    rows, path = make(500, n_dims), tmp_path / "v.f32"
    for first in range(0, 500, 130):
        vectors.append(path, first, rows[first : first + 130])
    opened = vectors.open_rows(path, 500, n_dims)
    products = rows @ rows[7]
    found, scores = vectors.nearest(opened, rows[7], 20)
    assert found == np.lexsort((np.arange(500), -products))[:20].tolist()
    np.testing.assert_allclose(scores, products[found], atol=1e-6)
    assert len(vectors.nearest(opened, rows[7], 10_000)[0]) == 500
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_signs_find_nearly_all_of_the_nearest(tmp_path: Path) -> None:
    rows, path = make(20_000, 128), tmp_path / "v.f32"
    vectors.append(path, 0, rows)
    opened = vectors.open_rows(path, len(rows), 128)
    shares = []
    for number in range(0, 20_000, 1000):
        exact, _ = vectors.nearest(opened, rows[number], 50)
        found, scores = vectors.nearest(opened, rows[number], 50, exact_rows=1000)
        assert found[0] == exact[0] == number
        assert scores == sorted(scores, reverse=True)
        np.testing.assert_allclose(scores, rows[found] @ rows[number], atol=1e-6)
        shares.append(len(set(exact) & set(found)) / 50)
    assert np.mean(shares) > 0.95


def test_signs_are_bits_of_the_dimensions() -> None:
    signs = vectors.signs_of(np.array([[1.0] * 65 + [-1.0], [-1.0, 0.0, 2.0] + [-1.0] * 63], np.float32))
    assert signs.tolist() == [[2**64 - 1, 1], [4, 0]]


def test_wiped_rows_are_zeros_in_both_files(tmp_path: Path) -> None:
    rows, path = make(10, 64), tmp_path / "v.f32"
    vectors.append(path, 0, rows)
    vectors.wipe(path, [3, 99], 64)
    opened = vectors.open_rows(path, 10, 64)
    assert not opened.values[3].any() and not opened.signs[3].any()
    np.testing.assert_array_equal(np.delete(opened.values, 3, 0), np.delete(rows, 3, 0))
    vectors.wipe(tmp_path / "missing.f32", [1], 64)


def test_what_a_killed_process_wrote_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "v.f32"
    vectors.append(path, 0, make(10, 64))
    vectors.trim(path, 4, 64)
    assert [file.stat().st_size for file in sorted(tmp_path.iterdir())] == [4 * 64 * 4, 4 * 8]
    vectors.trim(tmp_path / "missing.f32", 4, 64)


def test_short_files_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "v.f32"
    vectors.append(path, 0, make(10, 64))
    assert vectors.is_whole(path, 10, 64)
    assert not vectors.is_whole(path, 11, 64)
    with pytest.raises(StorageError, match="cannot be read"):
        vectors.open_rows(path, 11, 64)
    path.with_suffix(".signs").unlink()
    assert not vectors.is_whole(path, 10, 64)
    assert vectors.nearest(vectors.open_rows(path, 0, 64), make(1, 64)[0], 5) == ([], [])
