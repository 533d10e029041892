"""The vectors of a collection in a file of float32 rows, which is mapped for a search.

Rows are only appended, and overwritten with zeros when their passage is deleted. Which rows count is said by the SQLite file,
in whose transactions all of this happens: a crash in the middle leaves rows that nobody refers to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import StorageError
from edge.units import reason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["append", "nearest", "open_rows", "wipe"]

_ROWS_AT_ONCE = 65_536  # of a product, so that it stays in the cache of the processor


def open_rows(path: Path, n_rows: int, n_dims: int) -> NDArray[np.float32]:
    """Return the first rows of a file, mapped: (rows, dimensions).

    Raises:
        StorageError: the file is missing or shorter than that.
    """
    import numpy as np

    if not n_rows:
        return np.zeros((0, n_dims), np.float32)
    try:
        return np.memmap(path, np.float32, "r", shape=(n_rows, n_dims))
    except (OSError, ValueError) as error:
        raise StorageError(
            f"The vectors in {path} cannot be read: {reason(error)}.",
            "edge docs update computes them again.",
        ) from error


def append(path: Path, first_row: int, vectors: NDArray[np.float32]) -> None:
    """Write rows, (rows, dimensions), from a row on, and wait until they are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    data = vectors.astype("<f4", copy=False).tobytes()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        _write(handle, data, first_row * vectors.shape[1] * 4)
        os.fsync(handle)
    finally:
        os.close(handle)


def wipe(path: Path, rows: Iterable[int], n_dims: int) -> None:
    """Overwrite rows with zeros, and wait until that is on the disk. A missing file has nothing to overwrite.

    Raises:
        OSError: they cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY)
    except FileNotFoundError:
        return
    try:
        n_rows = os.fstat(handle).st_size // (n_dims * 4)
        for row in rows:
            if row < n_rows:
                _write(handle, bytes(n_dims * 4), row * n_dims * 4)
        os.fsync(handle)
    finally:
        os.close(handle)


def nearest(rows: NDArray[np.float32], query: NDArray[np.float32], limit: int) -> tuple[list[int], list[float]]:
    """Return the rows with the largest dot product with a query, and those products, largest first. Exact.

    Args:
        rows: float32, (rows, dimensions).
        query: float32, (dimensions,).
        limit: most rows.
    """
    import numpy as np

    scores = np.empty(len(rows), np.float32)
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[first : first + _ROWS_AT_ONCE]
        np.dot(part, query, out=scores[first : first + len(part)])
    limit = min(limit, len(rows))
    if not limit:
        return [], []
    best = np.argpartition(-scores, limit - 1)[:limit]
    best = best[np.lexsort((best, -scores[best]))]
    return best.tolist(), scores[best].tolist()


def _write(handle: int, data: Sequence[int] | bytes, offset: int) -> None:
    view = memoryview(bytes(data) if not isinstance(data, bytes) else data)
    while view:
        n_written = os.pwrite(handle, view, offset)
        view, offset = view[n_written:], offset + n_written
