"""Files with an importance matrix, as llama.cpp's llama-imatrix and llama-quantize read and write them.

Two forms are read: GGUF, with the sums of squares and the number of inputs of each matrix, and the older .dat, with means
times the number of chunks. GGUF is written.

Source: `save_imatrix` of llama.cpp's tools/imatrix, `load_imatrix` and `load_legacy_imatrix` of its tools/quantize.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edge.errors import ModelFileError
from edge.files import open_file, read_bytes
from edge.units import reason

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Sums", "check_fits", "read_imatrix", "write_imatrix"]

_MAX_BYTES = 2 << 30
_MAX_NAME_BYTES = 512
_LEAST = 1e-20  # of a matrix's largest value, and its inverse: beyond that, products leave the range of float32
_SUMS, _COUNTS = ".in_sum2", ".counts"
_HINT = "Make one with: edge convert MODEL --save-imatrix FILE, or with llama-imatrix"


class Sums(NamedTuple):
    """The inputs of one matrix, summed up.

    Attributes:
        squares: float64 [inputs], sum of the squares of each input.
        n_rows: vectors of inputs.
    """

    squares: NDArray[np.float64]
    n_rows: int


def write_imatrix(path: Path, sums: Mapping[str, Sums], n_chunks: int, chunk_tokens: int, text: str) -> None:
    """Write an importance matrix as GGUF.

    Args:
        path: the file; it is replaced.
        sums: by the name of the weight.
        n_chunks, chunk_tokens: of the text that it was measured on.
        text: name of that text.
    """
    import gguf
    import numpy as np

    class Writer(gguf.GGUFWriter):  # type: ignore[misc]
        def add_architecture(self) -> None:
            """Add none: it is not a model."""

    writer = Writer(path, "")
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, [text])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, n_chunks)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, chunk_tokens)
    for name, (squares, n_rows) in sorted(sums.items()):
        writer.add_tensor(name + _SUMS, squares.astype(np.float32)[None])
        writer.add_tensor(name + _COUNTS, np.array([[n_rows]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_imatrix(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read an importance matrix of either form.

    Returns:
        Name of the weight -> mean square of each of its inputs, float32 [inputs], or [experts x inputs]. Where an expert saw
        nothing it is 1, and where all are 0, too: llama.cpp would make every weight 0. Tiny and huge matrices are scaled.

    Raises:
        ModelFileError: it cannot be read, is damaged, or is not an importance matrix.
    """
    import numpy as np

    try:
        with open_file(path) as file:  # never waits for a FIFO
            is_gguf = file.read(4) == b"GGUF"
        found = _read_gguf(path) if is_gguf else _read_dat(read_bytes(path, _MAX_BYTES))
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error, OverflowError) as error:
        raise ModelFileError(f"{path} is not an importance matrix: {reason(error)}.", _HINT) from error
    if not found:
        raise ModelFileError(f"{path} has no importance matrix.", _HINT)
    for name, values in found.items():
        if not np.isfinite(values).all() or (values < 0).any():
            raise ModelFileError(f"{path} has values for {name!r} that no mean square can have.", _HINT)
    return {name: _in_range(values) for name, values in found.items()}


def _in_range(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the values of a matrix where llama.cpp can compute with them: only their ratios matter."""
    import numpy as np

    largest = float(values.max(initial=0.0))
    if largest == 0.0:
        return np.ones_like(values)
    if _LEAST < largest < 1 / _LEAST:
        return values
    return np.ldexp(values, 1 - math.frexp(largest)[1])


def check_fits(path: Path, widths: Mapping[str, int]) -> int:
    """Check that an importance matrix is of a model, and return for how many of its matrices it has values.

    Args:
        path: of the importance matrix.
        widths: matrix of the model -> its inputs, times its experts.

    Raises:
        ModelFileError: it is of another model.
    """
    values = read_imatrix(path)
    shared = values.keys() & widths.keys()
    if not shared:
        raise ModelFileError(
            f"{path.name} knows none of this model's matrices; it has {next(iter(values))!r}, for example.", _HINT
        )
    for name in sorted(shared):
        if values[name].size != widths[name]:
            raise ModelFileError(
                f"{path.name} is of another model: it has {values[name].size:,} values for {name}, which has {widths[name]:,} "
                "inputs.",
                _HINT,
            )
    return len(shared)


def _read_gguf(path: Path) -> dict[str, NDArray[np.float32]]:
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(path)
    tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}
    found = {}
    for name in tensors:
        if not name.endswith(_SUMS):
            continue
        weight = name.removesuffix(_SUMS)
        counts = np.array(tensors[weight + _COUNTS].data, dtype=np.float32).reshape(-1, 1)
        squares = np.array(tensors[name].data, dtype=np.float32).reshape(len(counts), -1)
        means = np.divide(squares, counts, out=np.ones_like(squares), where=counts > 0)
        found[weight] = means.reshape(-1)
    return found


def _read_dat(data: bytes) -> dict[str, NDArray[np.float32]]:
    import numpy as np

    place = 0

    def number() -> int:
        nonlocal place
        (value,) = struct.unpack_from("<i", data, place)
        place += 4
        if value < 0:
            raise ValueError("a length in it is negative")
        return int(value)

    found = {}
    for _ in range(number()):
        length = number()
        if not 0 < length <= _MAX_NAME_BYTES or place + length > len(data):
            raise ValueError("a name in it is too long")
        name = data[place : place + length].decode()
        place += length
        n_calls, n_values = number(), number()
        if place + 4 * n_values > len(data):
            raise ValueError("it is cut off")
        values = np.frombuffer(data, dtype="<f4", count=n_values, offset=place)
        place += 4 * n_values
        found[name] = values / np.float32(n_calls) if n_calls else values.copy()
    return found
