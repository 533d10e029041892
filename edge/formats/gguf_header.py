"""The header of a GGUF file as a value: metadata, tensors, and the numbers of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ArrayInfo", "GGUFHeader", "TensorInfo", "Value", "quote", "split_count"]


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
        offset: of its first byte, from the start of the tensor data of its file (`GGUFHeader.data_offset` is that of the first
            file), in bytes.
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
        tensors: in the file's order; of a split model those of all files.
        data_offset: where the tensor data starts, in bytes from the start of the file.
        file_bytes: size of the whole file, or of all files of a split model.
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


def split_count(metadata: Mapping[str, Value]) -> int:
    """Return the number of files of a split model; 1 where it is whole."""
    count = metadata.get("split.count", 1)
    return count if isinstance(count, int) and count > 1 else 1


def quote(value: object) -> str:
    """Return a value from the file for a message: quoted, so that it cannot control a terminal, and not too long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
