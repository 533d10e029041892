"""Reads what a Core ML package made by `edge convert` says about itself, without coremltools and without its weights.

A package is a folder: Manifest.json names the program (a protobuf file) and, beside it, the weights. The exporter writes what a
runtime needs to know into the program's user-defined metadata, as JSON. The folder comes from outside and is not trusted: only
that metadata is looked for, lengths are held against the file, sizes against what they mean.

Source: coremltools' mlmodel/format/Model.proto and FeatureTypes.proto (field numbers), protobuf's wire format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec

from edge.errors import ModelFileError, ModelNotFoundError
from edge.hashes import file_sha256

__all__ = ["CoreMLPackage", "Golden", "PackageInfo", "TopLogits", "read_package"]

METADATA_KEY = "io.edge.package"
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_INFO_BYTES = 16 << 20
_MAX_FIELDS = 100_000
_DESCRIPTION, _METADATA, _USER_DEFINED, _KEY, _VALUE = 2, 100, 100, 1, 2  # field numbers
_HINT = "Convert or copy the package again."

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
_Tokens = Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]], msgspec.Meta(max_length=1 << 16)]


class TopLogits(msgspec.Struct, frozen=True):
    """The likeliest tokens at one position; `log_probabilities` are natural logarithms, in descending order."""

    tokens: _Tokens
    log_probabilities: list[float]


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """What a device that computes what was meant gives.

    Attributes:
        prompt: tokens to read first.
        continuation: tokens to feed one by one after them.
        package: the likeliest tokens after the prompt, then after each token of the continuation but the last.
    """

    prompt: _Tokens
    continuation: _Tokens
    package: list[TopLogits] = []


class PackageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a package says about itself.

    Attributes:
        version: of this layout.
        variant: "gpu" (int4 in blocks), "ane" (palettes, for the Neural Engine) or "fp16".
        context: rows of the cache, in tokens.
        chunk: tokens that one call of `prefill` reads.
        stateful: keys and values live in a Core ML state; otherwise they are an input, and the new rows an output.
        n_layers, n_kv_heads, head_dim, vocab: sizes.
        window: tokens that layers with a sliding window see; None where no second mask is needed.
        n_params, n_ctx_train: weights, and the longest context of the training; 0 where the package does not say.
        encodings: how many matrices are stored in which way.
        golden: logits to hold a prediction to.
    """

    version: Literal[1] = 1
    variant: Literal["fp16", "gpu", "ane"]
    context: _Count
    chunk: _Count
    stateful: bool
    n_layers: _Count
    n_kv_heads: _Count
    head_dim: _Count
    vocab: _Count
    window: _Count | None
    n_params: Annotated[int, msgspec.Meta(ge=0)] = 0
    n_ctx_train: Annotated[int, msgspec.Meta(ge=0)] = 0
    encodings: dict[str, int] = {}
    golden: Golden

    @property
    def cache_shape(self) -> tuple[int, int, int, int]:
        """[2 x layers, key heads, context, head dimension]; rows 2l are layer l's keys, 2l + 1 its values."""
        return 2 * self.n_layers, self.n_kv_heads, self.context, self.head_dim

    @property
    def cache_bytes(self) -> int:
        """Of the cache of one sequence, in float16."""
        rows, heads, context, width = self.cache_shape
        return 2 * rows * heads * context * width


@dataclass(frozen=True, slots=True)
class CoreMLPackage:
    """A package on disk.

    Attributes:
        path: the .mlpackage folder.
        info: what it says about itself.
        program: the protobuf file.
        weights: the weight file, which a tiny model may lack.
    """

    path: Path
    info: PackageInfo
    program: Path
    weights: Path

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that decides what the package computes."""
        return (self.program, self.weights) if self.weights.is_file() else (self.program,)

    @property
    def weights_bytes(self) -> int:
        """Size of the weight file."""
        return self.weights.stat().st_size if self.weights.is_file() else 0

    def sha256(self, *, cache_dir: Path | None = None) -> str:
        """Digest of the package's content, wherever it lies. Its files are read through once, see `edge.hashes`.

        Raises:
            ModelFileError: a file cannot be read.
        """
        parts = [f"{path.name} {file_sha256(path, cache_dir=cache_dir)}\n" for path in self.files]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def read_package(path: Path) -> CoreMLPackage:
    """Open a package.

    Args:
        path: an .mlpackage folder.

    Raises:
        ModelNotFoundError: there is nothing at that path.
        ModelFileError: it is no Core ML package, was not made by `edge convert`, is damaged, or of a newer layout.
    """
    try:
        if not path.exists():
            raise ModelNotFoundError(f"There is no package {path}.", "Check the path. See names: edge models ls")
        program, weights = _find_files(path)
        with program.open("rb") as file:
            text = _find_info(file, program.stat().st_size)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error}.", "Check its permissions.") from error
    except _DamagedError as error:
        raise ModelFileError(f"{program} is damaged: {error}.", _HINT) from error
    if text is None:
        raise ModelFileError(
            f"{path.name} was not made by `edge convert`, so edge does not know what its functions take.",
            "Convert the checkpoint with: edge convert CHECKPOINT --to coreml",
        )
    try:
        info = msgspec.json.decode(text, type=PackageInfo)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ModelFileError(f"What {path.name} says about itself cannot be used: {error}.", "Convert it again.") from error
    _check(path, info)
    return CoreMLPackage(path, info, program, weights)


def _check(path: Path, info: PackageInfo) -> None:
    """Sizes that contradict each other would only fail while something is computed."""
    golden = info.golden
    n_fed = len(golden.prompt) + len(golden.continuation)
    contradictions = {
        "its chunk is longer than its context": info.chunk > info.context,
        "its cache would take more than 1 TiB": info.cache_bytes > 1 << 40,
        "its golden prompt does not fit its context": n_fed > info.context or not golden.prompt,
        "its golden logits do not belong to its golden prompt": bool(golden.package)
        and len(golden.package) != len(golden.continuation),
        "its golden tokens are not in its vocabulary": any(token >= info.vocab for token in _tokens_of(golden)),
    }
    for what, is_so in contradictions.items():
        if is_so:
            raise ModelFileError(f"What {path.name} says about itself contradicts itself: {what}.", "Convert it again.")


def _tokens_of(golden: Golden) -> Iterator[int]:
    yield from (*golden.prompt, *golden.continuation)
    for top in golden.package:
        yield from top.tokens


def _find_files(path: Path) -> tuple[Path, Path]:
    """The program and its weight file, as Manifest.json names them."""
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise ModelFileError(f"{path} is no Core ML package: it has no Manifest.json.", _HINT)
    try:
        with manifest.open("rb") as file:
            found = json.loads(file.read(_MAX_MANIFEST_BYTES))
        entry = str(found["itemInfoEntries"][found["rootModelIdentifier"]]["path"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{manifest} is damaged ({error!r}).", _HINT) from error
    data = (path / "Data").resolve()
    program = (data / entry).resolve()
    if data not in program.parents or not program.is_file():
        raise ModelFileError(f"{path} names a program that it does not hold ({entry}).", _HINT)
    return program, program.parent / "weights" / "weight.bin"


class _DamagedError(Exception):
    """The protobuf is not what it should be; the text says where."""


def _find_info(file: BinaryIO, size: int) -> bytes | None:
    """The JSON in Model.description.metadata.userDefined; None where there is none under our name."""
    for description in _fields(file, 0, size, _DESCRIPTION):
        for metadata in _fields(file, *description, _METADATA):
            for entry in _fields(file, *metadata, _USER_DEFINED):
                key = next(_fields(file, *entry, _KEY), (0, 0))
                if key[1] - key[0] == len(METADATA_KEY) and _read(file, *key) == METADATA_KEY.encode():
                    value = next(_fields(file, *entry, _VALUE), (0, 0))
                    if value[1] - value[0] > _MAX_INFO_BYTES:
                        raise _DamagedError("what it says about itself is larger than any description")
                    return _read(file, *value)
    return None


def _read(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(stop - start)


def _fields(file: BinaryIO, start: int, stop: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Where the fields of one number lie in a message that lies at [start, stop). Only fields with a length are looked at."""
    position = start
    for _ in range(_MAX_FIELDS):
        if position >= stop:
            return
        tag, position = _varint(file, position, stop)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _, position = _varint(file, position, stop)
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        elif kind == 2:
            length, position = _varint(file, position, stop)
            if length > stop - position:
                raise _DamagedError(f"a field at byte {position} is longer than the file")
            if number == wanted:
                yield position, position + length
            position += length
        else:
            raise _DamagedError(f"there is no field at byte {position}")
    raise _DamagedError("it has more fields than any program")


def _varint(file: BinaryIO, position: int, stop: int) -> tuple[int, int]:
    """A number and where it ends."""
    file.seek(position)
    raw = file.read(min(10, stop - position))
    value = 0
    for index, byte in enumerate(raw):
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, position + index + 1
    raise _DamagedError(f"a number at byte {position} does not end")
