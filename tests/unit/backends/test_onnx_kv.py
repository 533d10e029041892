"""Adjacent keys and values of ONNX models: neighbours do not touch each other, and memory is freed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from edge.backends.onnx.kv import InPlaceBuffers, Layout
from edge.formats.onnx import read_onnx_folder

pytest.importorskip("onnx", reason="needs the extra [convert]")
from tests.tiny_onnx import write_onnx


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(read_onnx_folder(write_onnx(tmp_path)))


def random_rows(layout: Layout, n_rows: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    shape = (len(layout.names), layout.heads, n_rows, layout.width)
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def test_rows_are_where_they_were_written(layout: Layout) -> None:
    store = InPlaceBuffers(layout, 50, 3)
    rows = [random_rows(layout, 50, seed) for seed in range(3)]
    for seq_id in (2, 0, 1):
        store.write(seq_id, 0, rows[seq_id][:, :, :20])
        store.write(seq_id, 20, rows[seq_id][:, :, 20:])
    store.free(1)
    for seq_id in (0, 2):
        np.testing.assert_array_equal(store.rows(seq_id, 50), rows[seq_id])
    store.write(1, 0, rows[1])
    for seq_id in range(3):
        np.testing.assert_array_equal(store.rows(seq_id, 33), rows[seq_id][:, :, :33])


@pytest.mark.skipif(sys.platform != "linux", reason="others free pages when they need them")
def test_an_empty_sequence_frees_its_memory_and_an_unused_one_takes_none(layout: Layout) -> None:
    n_rows = 30_000
    size = n_rows * layout.row_bytes()
    process = psutil.Process()
    before = process.memory_info().rss
    store = InPlaceBuffers(layout, n_rows, 20)
    part = random_rows(layout, 1000, 1)
    for seq_id in (3, 4, 5):
        for start in range(0, n_rows, 1000):
            store.write(seq_id, start, part)
    used = process.memory_info().rss - before
    assert 2.9 * size < used < 4 * size
    store.free(4)
    freed = before + used - process.memory_info().rss
    assert 0.95 * size < freed < 1.05 * size
    for seq_id in (3, 5):
        np.testing.assert_array_equal(store.rows(seq_id, n_rows)[:, :, -1000:], part)
