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
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from edge.errors import ModelFileError, ModelNotFoundError
from edge.formats.gguf_tables import FILE_TYPE_GUESSED, FILE_TYPES, REMOVED_TYPES, TENSOR_TYPES
from edge.units import reason

__all__ = ["ArrayInfo", "GGUFHeader", "TensorInfo", "Value", "read_header", "split_error"]

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
_MAX_HYPERPARAMETER = 2**31 - 1
# More than llama.cpp allows (512 and 1,024); the plan loops over layers, and llama.cpp allocates a name for every token.
_MAX_LAYERS = 4096
_MAX_EXPERTS = 65_536
_ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
_NORM_EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon", "attention.group_norm_epsilon")

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


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """A list in the metadata that is too long to load, such as the vocabulary.

    Attributes:
        type: of its elements: "string", "float32", ...
        length: number of elements.
    """

    type: str
    length: int


Value = bool | int | float | str | tuple[bool | int | float | str, ...] | ArrayInfo
"""A value of the metadata."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of the file.

    Attributes:
        name: "blk.0.attn_q.weight", ...
        shape: in ggml's order, the fastest-varying dimension first.
        type: "Q4_0", "F32", ...
        offset: of its first byte, from the start of the tensor data (`GGUFHeader.data_offset`), in bytes.
        size_bytes: its length in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """The header of a GGUF file. Values that the file leaves out are 0, None or "".

    Attributes:
        version: of the format, 2 or 3.
        metadata: every key of the file; long lists as `ArrayInfo`, short ones as tuples.
        tensors: in the file's order.
        data_offset: where the tensor data starts, in bytes from the start of the file.
        file_bytes: size of the whole file.
        architecture: llama.cpp's name: "llama", "qwen2", ...
        name: general.name.
        n_layer: number of blocks.
        n_head, n_head_kv: attention heads and key-value heads; a tuple where they differ by layer.
        head_dim_k, head_dim_v: length of one key and one value vector.
        n_embd: width of the model.
        n_ctx_train: context it was trained for, in tokens.
        n_vocab: size of the vocabulary.
        sliding_window: tokens that a sliding-window layer looks back, None where there is no such layer.
        chat_template: Jinja source, or None.
        file_type: name of the mix of weight types: "Q4_K_M".
        n_params: number of weights.
        tensors_bytes: size of all tensors.
        is_recurrent: has a state instead of keys and values (Mamba, RWKV).
        is_hybrid: has both attention and recurrent layers (Jamba, Falcon-H1, LFM2, Qwen3-Next).
    """

    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...] = field(repr=False)
    data_offset: int
    file_bytes: int
    architecture: str
    name: str
    n_layer: int
    n_head: int | tuple[int, ...]
    n_head_kv: int | tuple[int, ...]
    head_dim_k: int
    head_dim_v: int
    n_embd: int
    n_ctx_train: int
    n_vocab: int
    sliding_window: int | None
    chat_template: str | None
    file_type: str
    n_params: int
    tensors_bytes: int
    is_recurrent: bool
    is_hybrid: bool

    @property
    def split_count(self) -> int:
        """Number of files of a split model; 1 where it is whole."""
        return split_count(self.metadata)

    @property
    def kind(self) -> str:
        """general.type: "model", "adapter", "mmproj", ...; "model" where the file does not say."""
        kind = self.metadata.get("general.type", "model")
        return kind if isinstance(kind, str) and kind else "model"


def read_header(path: str | os.PathLike[str]) -> GGUFHeader:
    """Read the header of a GGUF file, version 2 or 3.

    Args:
        path: the file. It is not trusted.

    Returns:
        The header. A file whose layout llama.cpp would refuse is refused.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelFileError: it cannot be read, is not GGUF, is truncated or damaged, or has an unknown version or weight type.
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
                raise self._error(f"has the metadata key {_short(key)} twice")
            metadata[key] = self._value(key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
            raise self._error(f"asks for an alignment of {_short(alignment)}, which is not a power of two")
        tensors = [self._tensor(alignment) for _ in range(n_tensors)]
        data_offset = -(-(self.base + self.pos) // alignment) * alignment
        self._check_tensors(tensors, data_offset)
        return _Facts(self, metadata, tensors).header(version, data_offset)

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
        raise self._error("is not a GGUF file, whatever its name says", "Download the model again, or give another file.")

    def _check_count(self, count: int, least_bytes: int, limit: int, what: str) -> None:
        if count > limit:
            raise self._error(f"claims {count:,} {what}, more than any model has: it is damaged")
        if count * least_bytes > self.size:
            raise self._cut_off()

    def _value(self, key: str) -> Value:
        code: int = self._unpack(_UINT32)[0]
        if code == _STRING:
            return self._text(_MAX_KEPT_BYTES, f"the value of {_short(key)}")
        if code != _ARRAY:
            if code not in _SCALARS:
                raise self._error(f"has a value of unknown type {code} under {_short(key)}")
            scalar: Value = self._unpack(_SCALARS[code][1])[0]
            return scalar
        item, length = self._unpack(struct.Struct("<IQ"))
        if item == _STRING:
            self.n_strings += length
            if self.n_strings > _MAX_STRINGS or length * 8 > self.size:
                raise self._error(f"claims {length:,} texts under {_short(key)}: it is damaged")
            if length <= _KEPT_STRINGS:
                return tuple(self._text(_MAX_KEPT_BYTES, f"a text under {_short(key)}") for _ in range(length))
            self._skip_strings(length)
            return ArrayInfo("string", length)
        if item not in _SCALARS:
            raise self._error(f"has a list of unknown type {item} under {_short(key)}")
        name, form = _SCALARS[item]
        if length > _KEPT_NUMBERS:
            self._skip(length * form.size)
            return ArrayInfo(name, length)
        return tuple(self._unpack(form)[0] for _ in range(length))

    def _tensor(self, alignment: int) -> TensorInfo:
        name = self._text(_MAX_NAME_BYTES, "a tensor's name")
        n_dims: int = self._unpack(_UINT32)[0]
        if n_dims > _MAX_DIMS:
            raise self._error(f"claims {n_dims:,} dimensions for the tensor {_short(name)}; {_MAX_DIMS} is the most")
        shape: tuple[int, ...] = self._unpack(struct.Struct(f"<{n_dims}Q"))
        code, offset = self._unpack(struct.Struct("<IQ"))
        if code not in TENSOR_TYPES:
            if code in REMOVED_TYPES:
                raise self._error(
                    f"stores the tensor {_short(name)} as {REMOVED_TYPES[code]}, which llama.cpp no longer reads",
                    "Get a newer file of this model, for example Q4_0.",
                )
            raise self._error(f"stores the tensor {_short(name)} in a weight type (number {code}) that is not known here")
        type_name, block_length, block_bytes = TENSOR_TYPES[code]
        n_weights = math.prod(shape)
        if n_weights >= 2**63 or (shape[0] if shape else 1) % block_length:
            raise self._error(f"gives the tensor {_short(name)} the impossible shape {shape} for {type_name}")
        if offset % alignment:
            raise self._error(f"puts the tensor {_short(name)} at {offset:,}, which is not a multiple of {alignment}")
        return TensorInfo(name, shape, type_name, offset, n_weights // block_length * block_bytes)

    def _check_tensors(self, tensors: list[TensorInfo], data_offset: int) -> None:
        if len({tensor.name for tensor in tensors}) != len(tensors):
            raise self._error("has two tensors of the same name")
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._error(f"has the tensor {_short(tensor.name)} overlap another")
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


def split_count(metadata: Mapping[str, Value]) -> int:
    """Return the number of files of a split model; 1 where it is whole."""
    count = metadata.get("split.count", 1)
    return count if isinstance(count, int) and count > 1 else 1


def split_error(name: str, n_parts: int) -> ModelFileError:
    """Return the error for one part of a split model."""
    return ModelFileError(
        f"{name} is one of {n_parts} parts of a split model, which edge does not load.",
        "Join them with llama.cpp's `llama-gguf-split --merge FIRST_PART OUT.gguf`, and give that file.",
    )


class _Facts:
    """Extracts the model's dimensions from the metadata, and checks that a plan can use them."""

    def __init__(self, reader: _Reader, metadata: dict[str, Value], tensors: list[TensorInfo]) -> None:
        self.error = reader._error
        self.size = reader.size
        self.metadata = metadata
        self.tensors = tensors
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            if (parts := split_count(metadata)) > 1:  # only the first part has the model's own metadata
                raise split_error(reader.path.name, parts)
            raise self.error("does not say which architecture it is (general.architecture)", "It is not a language model.")
        self.architecture = architecture

    def header(self, version: int, data_offset: int) -> GGUFHeader:
        n_layer = self._n_layer()
        self._check_values(n_layer)
        n_embd = self._number("embedding_length")
        n_head = self._per_layer("attention.head_count", n_layer, 0)
        n_head_kv = self._per_layer("attention.head_count_kv", n_layer, n_head)
        most_heads = max(n_head) if isinstance(n_head, tuple) else n_head
        head_dim = n_embd // most_heads if most_heads else 0
        template = self.metadata.get("tokenizer.chat_template")
        name = self.metadata.get("general.name")
        has_state = any(self._has(part) for part in ("ssm.", "wkv.", "shortconv.", "kda."))
        has_attention = not self._has("wkv.") and (any(n_head_kv) if isinstance(n_head_kv, tuple) else n_head_kv > 0)
        return GGUFHeader(
            version=version,
            metadata=self.metadata,
            tensors=tuple(self.tensors),
            data_offset=data_offset,
            file_bytes=self.size,
            architecture=self.architecture,
            name=name if isinstance(name, str) else "",
            n_layer=n_layer,
            n_head=n_head,
            n_head_kv=n_head_kv,
            head_dim_k=self._number("attention.key_length", head_dim),
            head_dim_v=self._number("attention.value_length", head_dim),
            n_embd=n_embd,
            n_ctx_train=self._number("context_length"),
            n_vocab=self._n_vocab(),
            sliding_window=self._number("attention.sliding_window") or None,
            chat_template=template if isinstance(template, str) and template else None,
            file_type=self._file_type(),
            n_params=sum(math.prod(tensor.shape) for tensor in self.tensors),
            tensors_bytes=sum(tensor.size_bytes for tensor in self.tensors),
            is_recurrent=has_state and not has_attention,
            is_hybrid=has_state and has_attention,
        )

    def _has(self, part: str) -> bool:
        prefix = f"{self.architecture}.{part}"
        return any(key.startswith(prefix) for key in self.metadata)

    def _n_layer(self) -> int:
        """Return the number of blocks. Each has a tensor at least, unless the file holds a vocabulary only."""
        n_layer, n_tensors = self._number("block_count"), len(self.tensors)
        if n_layer > (min(n_tensors, _MAX_LAYERS) if n_tensors else _MAX_LAYERS):
            raise self.error(f"claims {n_layer:,} layers, and has {n_tensors:,} tensors: it is damaged")
        return n_layer

    def _check_values(self, n_layer: int) -> None:
        """Refuse numbers that cannot be: llama.cpp ends the process at them, or allocates by them."""
        for key in _NORM_EPSILONS:
            value = self.metadata.get(f"{self.architecture}.{key}")
            if isinstance(value, float) and not 0 <= value < math.inf:
                raise self.error(f"has {value} as {self.architecture[:40]}.{key}, which no norm can be computed with")
        scaling = self.metadata.get(f"{self.architecture}.rope.scaling.type", "none")
        if isinstance(scaling, str) and scaling not in _ROPE_SCALINGS:
            raise self.error(
                f"scales its positions by {_short(scaling)}, which is not known here",
                f"Known are {', '.join(_ROPE_SCALINGS)}. A newer edge may know it; otherwise choose another model.",
            )
        nextn = self._number("nextn_predict_layers")
        if nextn > n_layer:
            raise self.error(f"claims {nextn:,} layers that predict further tokens, and has {n_layer} layers: it is damaged")
        for what, count, limit in (
            ("tokens", self._number("vocab_size"), _MAX_STRINGS),
            ("experts", self._number("expert_count"), _MAX_EXPERTS),
        ):
            if count > limit:
                raise self.error(f"claims {count:,} {what}, more than any model has: it is damaged")
        self._check_experts(n_layer)

    def _check_experts(self, n_layer: int) -> None:
        n_experts, used = self._number("expert_count"), self._per_layer("expert_used_count", n_layer, 0)
        most_used = max(used, default=0) if isinstance(used, tuple) else used
        if self.architecture.startswith("hunyuan") and n_experts <= 1:
            return  # llama.cpp reads these as models without experts
        if most_used > n_experts or (n_experts and not most_used):
            raise self.error(f"uses {most_used:,} of {n_experts:,} experts, which is not possible: it is damaged")

    def _number(self, key: str, default: int = 0) -> int:
        return self._checked(key, self.metadata.get(f"{self.architecture}.{key}", default))

    def _checked(self, key: str, value: Value) -> int:
        if type(value) is not int or not 0 <= value <= _MAX_HYPERPARAMETER:
            raise self.error(
                f"has {_short(value)} as {self.architecture[:40]}.{key}, which is not a usable number: it is damaged"
            )
        return value

    def _per_layer(self, key: str, n_layer: int, default: int | tuple[int, ...]) -> int | tuple[int, ...]:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if not isinstance(value, tuple):
            return self._checked(key, value)
        if len(value) != n_layer:
            raise self.error(f"has {len(value)} values of {key} for {n_layer} layers: it is damaged")
        return tuple(self._checked(key, item) for item in value)

    def _n_vocab(self) -> int:
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if isinstance(tokens, ArrayInfo):
            return tokens.length
        if isinstance(tokens, tuple) and tokens:
            return len(tokens)
        embedding = next((tensor for tensor in self.tensors if tensor.name == "token_embd.weight"), None)
        default = embedding.shape[1] if embedding and len(embedding.shape) > 1 else 0
        return self._number("vocab_size", default)

    def _file_type(self) -> str:
        code = self.metadata.get("general.file_type")
        if type(code) is int and code & ~FILE_TYPE_GUESSED in FILE_TYPES:
            return FILE_TYPES[code & ~FILE_TYPE_GUESSED]
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.size_bytes
        return max(sizes, key=lambda name: sizes[name]) if sizes else ""


def _short(value: object) -> str:
    """Return a value from the file for a message: quoted, so that it cannot control a terminal, and not too long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
