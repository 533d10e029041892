"""The vectors of a collection in two files: float32 rows, and their signs, a bit a dimension; both are mapped for a search.

Rows are only appended, and overwritten with zeros when their passage is deleted. Which rows count is said by the SQLite file,
in whose transactions all of this happens: a crash in the middle leaves rows that nobody refers to.

Up to `EXACT_ROWS` a search compares all rows. Beyond, it reads the signs, a 32nd of that, and compares the rows whose signs
agree most. No graph is built, so nothing has to be built again, and what is deleted is gone.

Source: Yamada, Asai and Hajishirzi, Efficient Passage Retrieval with Hashing for Open-domain Question Answering, 2021.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edge.errors import StorageError
from edge.units import reason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["EXACT_ROWS", "Rows", "append", "is_whole", "nearest", "open_rows", "remove", "signs_of", "trim", "wipe"]

EXACT_ROWS = 100_000
_CANDIDATES = 2000  # at least; of 18,701 real sentences 800 held 99 % of the 50 nearest (docs/documents.md)
_CANDIDATES_EACH = 40  # for each row that is asked for
_ROWS_AT_ONCE = 65_536  # of a product, so that it stays in the cache of the processor


class Rows(NamedTuple):
    """Mapped files.

    Attributes:
        values: float32, (rows, dimensions).
        signs: uint64, (rows, words): bit d of a row is 1 if dimension d is above 0; the last word is filled up with zeros.
    """

    values: NDArray[np.float32]
    signs: NDArray[np.uint64]


def _n_words(n_dims: int) -> int:
    return -(-n_dims // 64)


def _signs_path(path: Path) -> Path:
    return path.with_suffix(".signs")


def open_rows(path: Path, n_rows: int, n_dims: int) -> Rows:
    """Return the first rows of the files.

    Raises:
        StorageError: a file is missing or shorter than that.
    """
    import numpy as np

    if not n_rows:
        return Rows(np.zeros((0, n_dims), np.float32), np.zeros((0, _n_words(n_dims)), np.uint64))
    try:
        return Rows(
            np.memmap(path, np.float32, "r", shape=(n_rows, n_dims)),
            np.memmap(_signs_path(path), np.uint64, "r", shape=(n_rows, _n_words(n_dims))),
        )
    except (OSError, ValueError) as error:
        raise StorageError(
            f"The vectors in {path} cannot be read: {reason(error)}.", "edge docs update computes them again."
        ) from error


def is_whole(path: Path, n_rows: int, n_dims: int) -> bool:
    """Return True unless a file is missing or shorter than so many rows."""
    try:
        return not n_rows or (
            path.stat().st_size >= n_rows * n_dims * 4 and _signs_path(path).stat().st_size >= n_rows * _n_words(n_dims) * 8
        )
    except OSError:
        return False


def append(path: Path, first_row: int, vectors: NDArray[np.float32]) -> None:
    """Write rows, (rows, dimensions), from a row on, and wait until they are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    for file, rows in ((path, vectors.astype("<f4", copy=False)), (_signs_path(path), signs_of(vectors))):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            _write(handle, rows.tobytes(), first_row * rows.shape[1] * rows.itemsize)
            os.fsync(handle)
        finally:
            os.close(handle)


def wipe(path: Path, rows: Iterable[int], n_dims: int) -> None:
    """Overwrite rows with zeros, and wait until that is on the disk. A missing file has nothing to overwrite.

    Raises:
        OSError: they cannot be written.
    """
    rows = list(rows)
    for file, n_bytes in ((path, n_dims * 4), (_signs_path(path), _n_words(n_dims) * 8)):
        try:
            handle = os.open(file, os.O_WRONLY)
        except FileNotFoundError:
            continue
        try:
            n_there = os.fstat(handle).st_size // n_bytes
            for row in rows:
                if row < n_there:
                    _write(handle, bytes(n_bytes), row * n_bytes)
            os.fsync(handle)
        finally:
            os.close(handle)


def trim(path: Path, n_rows: int, n_dims: int) -> None:
    """Cut off what a killed process wrote behind so many rows.

    Raises:
        OSError: a file cannot be written.
    """
    for file, n_bytes in ((path, n_rows * n_dims * 4), (_signs_path(path), n_rows * _n_words(n_dims) * 8)):
        if file.is_file() and file.stat().st_size > n_bytes:
            os.truncate(file, n_bytes)


def remove(path: Path) -> None:
    """Delete the files."""
    path.unlink(missing_ok=True)
    _signs_path(path).unlink(missing_ok=True)


def nearest(
    rows: Rows, query: NDArray[np.float32], limit: int, *, exact_rows: int = EXACT_ROWS
) -> tuple[list[int], list[float]]:
    """Return the rows with the largest dot product with a query, and those products, largest first.

    Args:
        rows: to compare.
        query: float32, (dimensions,).
        limit: most rows.
        exact_rows: of more rows some of the nearest may be missed; the products are exact either way.
    """
    import numpy as np

    n_candidates = max(_CANDIDATES, _CANDIDATES_EACH * limit)
    if len(rows.values) > max(exact_rows, n_candidates) and hasattr(np, "bitwise_count"):  # numpy 2
        candidates = _agreeing(rows.signs, signs_of(query[None])[0], n_candidates)
        scores = np.asarray(rows.values[candidates] @ query, np.float32)
    else:
        candidates = np.arange(len(rows.values))
        scores = _products(rows.values, query)
    limit = min(limit, len(scores))
    if not limit:
        return [], []
    best = np.argpartition(-scores, limit - 1)[:limit]
    best = best[np.lexsort((candidates[best], -scores[best]))]
    return candidates[best].tolist(), scores[best].tolist()


def signs_of(vectors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Return the signs of vectors, (rows, dimensions), as in `Rows`."""
    import numpy as np

    packed = np.packbits(vectors > 0, axis=1, bitorder="little")
    padded = np.zeros((len(vectors), _n_words(vectors.shape[1]) * 8), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view("<u8")


def _products(values: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    scores = np.empty(len(values), np.float32)
    for first in range(0, len(values), _ROWS_AT_ONCE):
        part = values[first : first + _ROWS_AT_ONCE]
        np.dot(part, query, out=scores[first : first + len(part)])
    return scores


def _agreeing(signs: NDArray[np.uint64], wanted: NDArray[np.uint64], limit: int) -> NDArray[Any]:
    """Return the rows whose signs differ least, in the order of the file."""
    import numpy as np

    differing = np.empty(len(signs), np.uint16)
    for first in range(0, len(signs), _ROWS_AT_ONCE):
        part = signs[first : first + _ROWS_AT_ONCE]
        found = np.bitwise_count(part[:, 0] ^ wanted[0]).astype(np.uint16)
        for word in range(1, len(wanted)):  # faster than all at once, and without a large array between
            found += np.bitwise_count(part[:, word] ^ wanted[word])
        differing[first : first + len(part)] = found
    return np.sort(np.argpartition(differing, limit - 1)[:limit])


def _write(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        n_written = os.pwrite(handle, view, offset)
        view, offset = view[n_written:], offset + n_written
