"""weight.bin of an mlpackage: a header of 64 bytes, then records of 64 bytes, each followed by its data.

Source: coremltools, mlmodel/src/MILBlob/Blob/StorageFormat.hpp.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np

from edge.errors import ModelFileError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["RECORD_BYTES", "Record", "WeightFile", "read_record", "unpack", "write_record", "write_record_count"]

RECORD_BYTES = 64
"""Size of a record's description, and alignment of records."""

_HEADER = struct.Struct("<II56x")
_RECORD = struct.Struct("<IIQQQ32x")
_MAGIC = 0xDEADBEEF
_VERSION = 2
# the file's own numbering of types: (numpy type of one stored element, bits an element)
_TYPES: dict[int, tuple[Any, int]] = {
    1: (np.float16, 16),
    2: (np.float32, 32),
    3: (np.uint8, 8),
    4: (np.int8, 8),
    6: (np.int16, 16),
    7: (np.uint16, 16),
    8: (np.int8, 4),
    9: (np.uint8, 1),
    10: (np.uint8, 2),
    11: (np.uint8, 4),
    12: (np.uint8, 3),
    13: (np.uint8, 6),
    14: (np.int32, 32),
    15: (np.uint32, 32),
}


class Record(NamedTuple):
    """Description of one array in a weight file: the file's type number, bytes, offset of the first, unused bits at the end."""

    kind: int
    size: int
    start: int
    padding_bits: int


def read_record(file: BinaryIO, offset: int) -> Record:
    """Read the description at an offset of an open weight file.

    Raises:
        ModelFileError: there is none.
    """
    file.seek(offset)
    raw = file.read(_RECORD.size)
    magic, *fields = _RECORD.unpack(raw) if len(raw) == _RECORD.size else (0,)
    if magic != _MAGIC:
        raise ModelFileError(f"A weight file has no record at byte {offset}.", "Convert the model again.")
    return Record(*fields)


def write_record(file: BinaryIO, record: Record, offset: int) -> None:
    """Write a description; its content is to follow it."""
    file.seek(offset)
    file.write(_RECORD.pack(_MAGIC, record.kind, record.size, offset + RECORD_BYTES, record.padding_bits))


def write_record_count(file: BinaryIO, n_records: int) -> None:
    """Write the number of records into a weight file's header."""
    file.seek(0)
    file.write(_HEADER.pack(n_records, _VERSION))


class WeightFile:
    """Reads records of a weight file, which must exist when a record is read: small models have none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes: NDArray[np.uint8] | None = None

    def read(self, offset: int, n_elements: int, dtype: Any, bits: int) -> NDArray[Any]:
        """Read the elements of one record.

        Args:
            offset: of its 64 bytes, as in the program.
            n_elements: that the program declares.
            dtype: numpy type of an unpacked element.
            bits: per element in the file.

        Returns:
            A flat array of `n_elements`.

        Raises:
            ModelFileError: the file is missing, truncated, or does not hold what the program declares.
        """
        data = self._open()
        if offset % 64 or offset + _RECORD.size > data.size:
            raise self._damaged(f"there is no record at byte {offset}")
        magic, kind, size, start, padding_bits = _RECORD.unpack(data[offset : offset + _RECORD.size].tobytes())
        if magic != _MAGIC:
            raise self._damaged(f"the record at byte {offset} has no mark")
        if kind not in _TYPES or _TYPES[kind] != (dtype, bits):
            raise self._damaged(f"the record at byte {offset} has another type than the program says")
        if start + size > data.size:
            raise self._damaged(f"the record at byte {offset} ends after the file's end")
        if size * 8 - padding_bits != n_elements * bits:
            raise self._damaged(f"the record at byte {offset} holds {size} bytes for {n_elements} elements of {bits} bits")
        raw = data[start : start + size]
        return unpack(raw, bits, n_elements, signed=dtype == np.int8) if bits < 8 else raw.view(dtype)

    def _open(self) -> NDArray[np.uint8]:
        if self._bytes is None:
            try:
                data = np.memmap(self._path, dtype=np.uint8, mode="r")
            except (OSError, ValueError) as error:
                raise self._damaged(f"it cannot be opened ({error})") from error
            if data.size < _HEADER.size or _HEADER.unpack(data[: _HEADER.size].tobytes())[1] != _VERSION:
                raise self._damaged("its header is not that of a weight file")
            self._bytes = data
        return self._bytes

    def _damaged(self, what: str) -> ModelFileError:
        return ModelFileError(f"{self._path} is damaged: {what}.", "Convert or copy the package again.")


def unpack(raw: NDArray[np.uint8], bits: int, n_elements: int, signed: bool) -> NDArray[Any]:
    """Unpack elements of 1, 2, 3, 4 or 6 bits, packed without gaps, lowest bits first.

    Returns:
        uint8, or int8 where `signed`, [n_elements].
    """
    if bits == 4:
        pairs = np.empty((raw.size, 2), np.uint8)
        pairs[:, 0], pairs[:, 1] = raw & 15, raw >> 4
        values = pairs.reshape(-1)[:n_elements]
    else:
        stream = np.unpackbits(raw, bitorder="little")[: n_elements * bits].reshape(n_elements, bits)
        values = (stream << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8)
    if not signed:
        return values
    half = 1 << (bits - 1)
    return ((values.astype(np.int16) ^ half) - half).astype(np.int8)
