"""The header of a GGUF file: metadata, and where the weights are.

The file comes from outside and is not trusted: every count and length is checked against the size of the file before
anything is allocated, at most a few MB are held, and the only errors are ours. The weights themselves are not read.

Source: docs/gguf.md of ggml-org/ggml; `gguf_init_from_file` of llama.cpp, whose refusals are kept.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from io import FileIO
from pathlib import Path
from typing import Any

from edge.errors import ModelFileError, ModelNotFoundError
from edge.formats.gguf_facts import Facts
from edge.formats.gguf_header import ArrayInfo, GGUFHeader, TensorInfo, Value, quote
from edge.formats.gguf_shards import shards_of
from edge.formats.gguf_tables import REMOVED_TYPES, TENSOR_TYPES
from edge.units import reason

__all__ = ["ArrayInfo", "GGUFHeader", "TensorInfo", "Value", "read_header"]

MAGIC = b"GGUF"
_CHUNK_BYTES = 256 * 1024
# Far above any real model (262,144 words, as many merges, 30 MB of header), far below what takes a second to walk.
_MAX_STRINGS = 4_000_000
_MAX_HEADER_BYTES = 256 << 20
_MAX_KEPT_BYTES = 16 << 20
_MAX_KEYS = 65_536
_MAX_TENSORS = 131_072
_MAX_NAME_BYTES = 65_535
_KEPT_NUMBERS = 1024  # more than per-layer values need, less than token scores and types
_KEPT_STRINGS = 64
_MAX_DIMS = 4

_STRING, _ARRAY = 8, 9
_UINT32, _UINT64 = struct.Struct("<I"), struct.Struct("<Q")
_SCALARS = {
    code: (name, struct.Struct("<" + letter))
    for code, name, letter in (
        (0, "uint8", "B"), (1, "int8", "b"), (2, "uint16", "H"), (3, "int16", "h"), (4, "uint32", "I"),
        (5, "int32", "i"), (6, "float32", "f"), (7, "bool", "?"), (10, "uint64", "Q"), (11, "int64", "q"),
        (12, "float64", "d"),
    )
}  # fmt: skip

_NEEDS_GGUF = "Look for a GGUF version of it, for example in a repository whose name ends in -GGUF."
_OTHER_FORMATS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model itself", "Fetch the file with: git lfs pull"),
    (b"<", "a web page, not a model", "Download it again; the address may need a login."),
    (b"PK\x03\x04", "a zip archive (a PyTorch checkpoint or a wheel)", _NEEDS_GGUF),
    (b"ggjt", "in the old GGML format, from before GGUF", "Download a GGUF file of this model."),
    (b"ggml", "in the old GGML format, from before GGUF", "Download a GGUF file of this model."),
)


def read_header(path: str | os.PathLike[str]) -> GGUFHeader:
    """Read the header of a GGUF file, version 2 or 3.

    Args:
        path: the file, of a split model the first. It is not trusted.

    Returns:
        The header. A file whose layout llama.cpp would refuse is refused.

    Raises:
        ModelNotFoundError: there is no such file, or a part of a split model is missing.
        ModelFileError: it is a later part of a split model, cannot be read, is not GGUF, is truncated or damaged, or has an
            unknown version or weight type.
    """
    path = Path(path)
    try:
        # Opening a named pipe would wait for a writer, so the kind of file comes first.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelFileError(f"{path} is not a file.", "Give the path of a .gguf file.")
        with path.open("rb", buffering=0) as file:
            return _Reader(path, file).read()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"There is no file {path}.", "Check the path.") from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{path} cannot be read: {reason(error)}.", "Check its permissions and the disk.") from error


class _Reader:
    """A cursor over the file that holds one chunk of it, and never reads or holds more than the limits above."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        self.base = 0  # where the chunk starts in the file
        self.chunk = b""
        self.pos = 0  # in the chunk; may point beyond it
        self.n_strings = 0
        self.kept_bytes = 0

    def read(self) -> GGUFHeader:
        """Read the header; that of a split model has the tensors of all its files."""
        version, metadata, tensors, data_offset = self._read_file()
        size = self.size
        for number, shard in enumerate(shards_of(self.path, metadata)[1:], 1):
            with shard.open("rb", buffering=0) as file:
                reader = _Reader(shard, file)
                _, about, more, _ = reader._read_file()
            if about.get("split.no") != number or about.get("split.count") != metadata["split.count"]:
                raise reader._error(f"is not part {number + 1} of {self.path.name}, whatever its name says")
            tensors += more
            size += reader.size
        self._check_names(tensors)
        return Facts(self.path, size, metadata, tensors, _MAX_STRINGS).header(version, data_offset)

    def _read_file(self) -> tuple[int, dict[str, Value], list[TensorInfo], int]:
        """Return version, metadata, tensors and where their data starts, of this file alone."""
        self._check_format()
        version, n_tensors, n_keys = self._unpack(struct.Struct("<4xIQQ"))
        if version not in (2, 3):
            if version & 0xFFFF == 0 and version >> 16:
                raise self._error("is in big-endian byte order, which no backend here reads", "Get its little-endian file.")
            raise self._error(f"is GGUF version {version}; versions 2 and 3 are known", "Get a newer file of this model.")
        # The shortest entry is an empty key, its type and a byte; the shortest tensor has no name and no dimension.
        self._check_count(n_keys, 13, _MAX_KEYS, "metadata entries")
        self._check_count(n_tensors, 24, _MAX_TENSORS, "tensors")
        metadata: dict[str, Value] = {}
        for _ in range(n_keys):
            key = self._text(_MAX_NAME_BYTES, "a metadata key")
            if key in metadata:
                raise self._error(f"has the metadata key {quote(key)} twice")
            metadata[key] = self._value(key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise self._error(f"asks for an alignment of {quote(alignment)}, which is not a power of two")
        tensors = [self._tensor(alignment) for _ in range(n_tensors)]
        data_offset = -(-(self.base + self.pos) // alignment) * alignment
        self._check_tensors(tensors, data_offset)
        return version, metadata, tensors, data_offset

    def _check_format(self) -> None:
        self._fill(0)
        start = self.chunk[:32]
        if not self.size:
            raise self._error("is empty", "Download it again.")
        if start[:4] == MAGIC:
            return
        if start[:4] == MAGIC[: len(start)]:
            raise self._cut_off()
        for prefix, what, hint in _OTHER_FORMATS:
            if start.lstrip().startswith(prefix):
                raise self._error(f"is {what}", hint)
        if start[8:9] == b"{":
            raise self._error("is a safetensors file, not GGUF", _NEEDS_GGUF)
        raise self._error("is not a GGUF file, whatever its name says", "Download it again, or give another file.")

    def _check_count(self, count: int, least_bytes: int, limit: int, what: str) -> None:
        if count > limit:
            raise self._error(f"claims {count:,} {what}, more than any model has: it is damaged")
        if count * least_bytes > self.size:
            raise self._cut_off()

    def _value(self, key: str) -> Value:
        code: int = self._unpack(_UINT32)[0]
        if code == _STRING:
            return self._text(_MAX_KEPT_BYTES, f"the value of {quote(key)}")
        if code != _ARRAY:
            if code not in _SCALARS:
                raise self._error(f"has a value of unknown type {code} under {quote(key)}")
            scalar: Value = self._unpack(_SCALARS[code][1])[0]
            return scalar
        item, length = self._unpack(struct.Struct("<IQ"))
        if item == _STRING:
            self.n_strings += length
            if self.n_strings > _MAX_STRINGS or length * 8 > self.size:
                raise self._error(f"claims {length:,} texts under {quote(key)}: it is damaged")
            if length <= _KEPT_STRINGS:
                return tuple(self._text(_MAX_KEPT_BYTES, f"a text under {quote(key)}") for _ in range(length))
            self._skip_strings(length)
            return ArrayInfo("string", length)
        if item not in _SCALARS:
            raise self._error(f"has a list of unknown type {item} under {quote(key)}")
        name, form = _SCALARS[item]
        if length > _KEPT_NUMBERS:
            self._skip(length * form.size)
            return ArrayInfo(name, length)
        return tuple(self._unpack(form)[0] for _ in range(length))

    def _tensor(self, alignment: int) -> TensorInfo:
        name = self._text(_MAX_NAME_BYTES, "a tensor's name")
        n_dims: int = self._unpack(_UINT32)[0]
        if n_dims > _MAX_DIMS:
            raise self._error(f"claims {n_dims:,} dimensions for the tensor {quote(name)}; {_MAX_DIMS} is the most")
        shape: tuple[int, ...] = self._unpack(struct.Struct(f"<{n_dims}Q"))
        code, offset = self._unpack(struct.Struct("<IQ"))
        if code not in TENSOR_TYPES:
            if code in REMOVED_TYPES:
                raise self._error(
                    f"stores the tensor {quote(name)} as {REMOVED_TYPES[code]}, which llama.cpp no longer reads",
                    "Get a newer file of this model, for example Q4_0.",
                )
            raise self._error(f"stores the tensor {quote(name)} in a weight type (number {code}) that is not known here")
        type_name, block_length, block_bytes = TENSOR_TYPES[code]
        n_weights = math.prod(shape)
        if n_weights >= 2**63 or (shape[0] if shape else 1) % block_length:
            raise self._error(f"gives the tensor {quote(name)} the impossible shape {shape} for {type_name}")
        if offset % alignment:
            raise self._error(f"puts the tensor {quote(name)} at {offset:,}, which is not a multiple of {alignment}")
        return TensorInfo(name, shape, type_name, offset, n_weights // block_length * block_bytes)

    def _check_names(self, tensors: list[TensorInfo]) -> None:
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise self._error("has two tensors of the same name")

    def _check_tensors(self, tensors: list[TensorInfo], data_offset: int) -> None:
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._error(f"has the tensor {quote(tensor.name)} overlap another")
            end = tensor.offset + tensor.size_bytes
        if data_offset + end > self.size:
            raise self._error(
                f"is cut off: it has {self.size:,} of {data_offset + end:,} bytes",
                "Download it again; a download through edge resumes where it stopped.",
            )

    # -- the cursor

    def _fill(self, n_bytes: int) -> None:
        """Read a chunk from the cursor on. The next `n_bytes` must exist in the file."""
        at = self.base + self.pos
        if at + n_bytes > self.size:
            raise self._cut_off()
        if at > _MAX_HEADER_BYTES:
            raise self._error(f"has a header of more than {_MAX_HEADER_BYTES >> 20} MiB: it is damaged")
        self.file.seek(at)
        wanted = max(_CHUNK_BYTES, n_bytes)
        self.chunk = self.file.read(wanted)
        while n_bytes > len(self.chunk):  # a raw read may give less than asked for
            more = self.file.read(wanted - len(self.chunk))
            if not more:
                raise self._cut_off()
            self.chunk += more
        self.base, self.pos = at, 0

    def _unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        if self.pos + form.size > len(self.chunk):
            self._fill(form.size)
        values = form.unpack_from(self.chunk, self.pos)
        self.pos += form.size
        return values

    def _skip(self, n_bytes: int) -> None:
        self.pos += n_bytes
        if self.base + self.pos > self.size:
            raise self._cut_off()

    def _text(self, limit: int, what: str) -> str:
        length: int = self._unpack(_UINT64)[0]
        self.kept_bytes += length
        if length > self.size - self.base - self.pos:
            raise self._cut_off()
        if length > limit or self.kept_bytes > _MAX_KEPT_BYTES:
            raise self._error(f"claims {length:,} bytes for {what}: it is damaged")
        if self.pos + length > len(self.chunk):
            self._fill(length)
        raw = self.chunk[self.pos : self.pos + length]
        self.pos += length
        return raw.decode("utf-8", errors="replace")

    def _skip_strings(self, count: int) -> None:
        """Skip texts without decoding them. Vocabularies have 50,000 and more, so the inner loop does nothing else."""
        length_at = _UINT64.unpack_from
        walked = 0
        while walked < count:
            if self.pos + 8 > len(self.chunk):
                self._fill(8)
            chunk, pos = self.chunk, self.pos
            try:
                for walked in range(walked, count):  # noqa: B007, B020  (goes on where the last chunk ended)
                    pos += length_at(chunk, pos)[0] + 8
                walked = count
            except (struct.error, OverflowError):
                pass  # ran over the end of the chunk: the next one starts at `pos`
            self.pos = pos
        if self.base + self.pos > self.size:
            raise self._cut_off()

    def _cut_off(self) -> ModelFileError:
        return self._error(
            f"ends in the middle of its header: it has only {self.size:,} bytes, and the model needs more",
            "It is cut off or damaged. Download it again.",
        )

    def _error(self, what: str, hint: str = "Download it again.") -> ModelFileError:
        return ModelFileError(f"{self.path.name} {what}.", hint)
