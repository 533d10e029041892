"""Core ML packages made by `edge convert`, read without coremltools and without their weights.

A package is a folder: Manifest.json names the program (a protobuf file) and, beside it, the weights. The exporter writes what a
runtime needs into the program's user-defined metadata, as a `PackageInfo` in JSON. The folder comes from outside and is not
trusted: only that metadata is looked for, lengths are checked against the file, sizes against each other.

Source: coremltools' mlmodel/format/Model.proto and FeatureTypes.proto (field numbers).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from edge.errors import ModelFileError, ModelNotFoundError
from edge.files import open_file
from edge.formats.logits import log_softmax
from edge.formats.protobuf import Message, ProtobufError
from edge.hashes import file_sha256
from edge.units import reason

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "METADATA_KEY",
    "CoreMLPackage",
    "Golden",
    "PackageInfo",
    "TopLogits",
    "Variant",
    "find_files",
    "read_info",
    "read_package",
]

Variant = Literal["fp16", "gpu", "ane"]
"""Kinds of packages: 16 bits, int4 blocks for a GPU, palettes for the Neural Engine."""

METADATA_KEY = "io.edge.package"
"""Key of the user-defined metadata that holds a PackageInfo."""

_N_TOP = 64
_NOT_NUMBERS_NATS = 100.0  # divergence of NaN logits
_MAX_MANIFEST_BYTES = 1 << 20
_MAX_INFO_BYTES = 16 << 20
_MAX_PROGRAM_BYTES = 512 << 20  # without its weights; that of 30 layers has 1 MB
_DESCRIPTION, _METADATA, _USER_DEFINED, _KEY, _VALUE = 2, 100, 100, 1, 2  # field numbers
_HINT = "Convert or copy the package again."

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
_Tokens = Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]], msgspec.Meta(max_length=1 << 16)]


class TopLogits(msgspec.Struct, frozen=True):
    """The likeliest tokens at one position; `log_probabilities` are natural logarithms, in descending order."""

    tokens: _Tokens
    log_probabilities: list[float]

    @classmethod
    def of(cls, logits: NDArray[Any]) -> TopLogits:
        """Return the likeliest tokens of logits [vocab]."""
        import numpy as np

        log_p = log_softmax(logits)
        top = np.argsort(-log_p, kind="stable")[:_N_TOP]
        return cls([int(token) for token in top], [round(float(log_p[token]), 5) for token in top])

    def divergence(self, logits: NDArray[Any]) -> float:
        """Return the KL divergence in nats from these to logits [vocab], over the tokens here and all others as one.

        NaN logits are 100 nats away from anything.
        """
        import numpy as np

        if not np.isfinite(logits).all():
            return _NOT_NUMBERS_NATS
        log_p, log_q = np.array(self.log_probabilities), log_softmax(logits)[self.tokens]
        p, q = np.exp(log_p), np.exp(log_q)
        rest_p, rest_q = max(1.0 - float(p.sum()), 1e-9), max(1.0 - float(q.sum()), 1e-9)
        return max(float((p * (log_p - log_q)).sum()) + rest_p * float(np.log(rest_p / rest_q)), 0.0)


class Golden(msgspec.Struct, frozen=True, kw_only=True):
    """Logits to compare a prediction with: of a prompt, and of its greedy continuation by the checkpoint.

    Attributes:
        prompt: tokens to prefill; longer than one chunk where the context allows.
        continuation: tokens to decode one by one after them.
        source: the likeliest tokens by the checkpoint in float32 (transformers), after the prompt and then after each token of
            the continuation but the last.
        package: by this package, evaluated with rounding to fp16, at the same places.
    """

    prompt: _Tokens
    continuation: _Tokens
    source: list[TopLogits] = []
    package: list[TopLogits] = []


class PackageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The description that the exporter stores inside a package.

    Attributes:
        version: of this layout.
        variant: "gpu" (int4 in blocks), "ane" (palettes, for the Neural Engine) or "fp16".
        context: rows of the cache, in tokens.
        chunk: tokens of one call of `prefill`.
        stateful: keys and values live in a Core ML state; otherwise they are an input, and the new rows an output.
        n_layers, n_kv_heads, head_dim, vocab: sizes.
        window: tokens that layers with a sliding window see, themselves included; None where no second mask is needed.
        n_params: numbers in the checkpoint's tensors; 0 where the package does not say.
        n_ctx_train: longest context of the training, in tokens; 0 where the package does not say.
        encodings: how many matrices are stored in which way.
        golden: logits to compare a prediction with.
    """

    version: Literal[1] = 1
    variant: Variant
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
        """Size of the cache of one sequence, in float16."""
        rows, heads, context, width = self.cache_shape
        return 2 * rows * heads * context * width


@dataclass(frozen=True, slots=True)
class CoreMLPackage:
    """A package on disk.

    Attributes:
        path: the .mlpackage folder.
        info: its description.
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
        """Return the digest of the package's content, wherever it lies. Its files are read once, see `edge.hashes`.

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
        ModelFileError: it is not a Core ML package, was not made by `edge convert`, is damaged, or of a newer layout.
    """
    try:
        if not path.exists():
            raise ModelNotFoundError(f"There is no package {path}.", "Check the path. See names: edge models ls")
        program, weights = find_files(path)
        text = _find_info(program)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {reason(error)}.", "Check its permissions.") from error
    except ProtobufError as error:
        raise ModelFileError(f"{program} is damaged: {error}.", _HINT) from error
    info = read_info({METADATA_KEY: text} if text is not None else {}, path.name)
    _check(path, info)
    return CoreMLPackage(path, info, program, weights)


def read_info(metadata: Mapping[str, str | bytes], name: str) -> PackageInfo:
    """Return the description in a package's user-defined metadata.

    Args:
        metadata: of the program.
        name: of the package, for messages.

    Raises:
        ModelFileError: the package was not made by `edge convert`, or the description is damaged.
    """
    if METADATA_KEY not in metadata:
        raise ModelFileError(
            f"{name} was not made by `edge convert`, so edge does not know what its functions take.",
            "Convert the checkpoint with: edge convert CHECKPOINT --to coreml",
        )
    try:
        return msgspec.json.decode(metadata[METADATA_KEY], type=PackageInfo)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(f"The description inside {name} is damaged: {error}.", "Convert it again.") from error


def _check(path: Path, info: PackageInfo) -> None:
    """Refuse sizes that contradict each other, which would only fail during a computation."""
    golden = info.golden
    n_fed = len(golden.prompt) + len(golden.continuation)
    contradictions = {
        "its chunk is longer than its context": info.chunk > info.context,
        "its cache would take more than 1 TiB": info.cache_bytes > 1 << 40,
        "its golden prompt does not fit its context": not 0 < len(golden.prompt) < info.context or n_fed > info.context,
        "its golden logits do not belong to its golden prompt": bool(golden.package)
        and len(golden.package) != len(golden.continuation),
        "its golden tokens are not in its vocabulary": any(token >= info.vocab for token in _tokens_of(golden)),
    }
    for what, is_so in contradictions.items():
        if is_so:
            raise ModelFileError(f"The description inside {path.name} contradicts itself: {what}.", "Convert it again.")


def _tokens_of(golden: Golden) -> Iterator[int]:
    yield from (*golden.prompt, *golden.continuation)
    for top in golden.package:
        yield from top.tokens


def find_files(path: Path) -> tuple[Path, Path]:
    """Return a package's program and its weight file, which need not exist, as Manifest.json names them.

    Raises:
        ModelFileError: it is not a package, or its manifest is damaged.
    """
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise ModelFileError(f"{path} is not a Core ML package: it has no Manifest.json.", _HINT)
    try:
        with open_file(manifest) as file:
            found = json.loads(file.read(_MAX_MANIFEST_BYTES))
        entry = str(found["itemInfoEntries"][found["rootModelIdentifier"]]["path"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFileError(f"{manifest} is damaged ({error!r}).", _HINT) from error
    data = (path / "Data").resolve()
    program = (data / entry).resolve()
    if data not in program.parents or not program.is_file():
        raise ModelFileError(f"{path} names a program that it does not hold ({entry}).", _HINT)
    return program, program.parent / "weights" / "weight.bin"


def _find_info(program: Path) -> bytes | None:
    """Return the JSON in Model.description.metadata.userDefined; None where there is none under our key.

    Raises:
        ProtobufError: the program is damaged, or the description is too large.
    """
    if program.stat().st_size > _MAX_PROGRAM_BYTES:
        raise ProtobufError("it is larger than any program")
    metadata = Message(memoryview(program.read_bytes())).inner(_DESCRIPTION).inner(_METADATA)
    for entry in map(Message, metadata.all(_USER_DEFINED)):
        if entry.text(_KEY) == METADATA_KEY:
            value = (entry.all(_VALUE) or [memoryview(b"")])[-1]
            if len(value) > _MAX_INFO_BYTES:
                raise ProtobufError("its description is larger than any description")
            return bytes(value)
    return None
