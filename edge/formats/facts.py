"""A model in the numbers that a plan needs, whatever its format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.formats.coreml import CoreMLPackage
    from edge.formats.gguf import GGUFHeader
    from edge.formats.onnx import OnnxFolder
    from edge.names import Accelerator

__all__ = ["ModelFacts", "facts_of_coreml", "facts_of_gguf", "facts_of_onnx", "is_for_embeddings"]

_ENCODERS = frozenset(
    {"bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert"}
)
_POOLS = frozenset({1, 2, 3})  # mean, cls, last; 4 is a reranker's score


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A model in numbers. 0, "" and None are unknown or unlimited, so `ModelFacts()` is a model of which nothing is known.

    Attributes:
        architecture: as the format names it.
        quantisation: type of most of the weights: "Q4_0", "int4".
        weights_bytes: size of all weights.
        n_layer, n_embd, n_vocab: sizes.
        head_dim_k, head_dim_v: length of one key and one value vector.
        n_ctx_train: context that it was trained for, in tokens.
        n_ctx_max: context that it was built for and cannot exceed, in tokens.
        kv_type: the only type in which it can store keys and values ("f32", "f16", "bf16"); None where the engine has a choice.
        cell_bytes: size of the keys and values of one token where kv_type is given.
        chunk: tokens of a pass that it was built for.
        made_for: the accelerator that it was converted for.
    """

    architecture: str = ""
    quantisation: str = ""
    weights_bytes: int = 0
    n_layer: int = 0
    n_embd: int = 0
    n_vocab: int = 0
    head_dim_k: int = 0
    head_dim_v: int = 0
    n_ctx_train: int = 0
    n_ctx_max: int | None = None
    kv_type: str | None = None
    cell_bytes: int = 0
    chunk: int | None = None
    made_for: Accelerator | None = None


def facts_of_gguf(header: GGUFHeader) -> ModelFacts:
    """Return the facts in the header of a GGUF file."""
    return ModelFacts(
        architecture=header.architecture,
        quantisation=header.file_type,
        weights_bytes=header.tensors_bytes,
        n_layer=header.n_layer,
        n_embd=header.n_embd,
        n_vocab=header.n_vocab,
        head_dim_k=header.head_dim_k,
        head_dim_v=header.head_dim_v,
        n_ctx_train=header.n_ctx_train,
    )


def is_for_embeddings(header: GGUFHeader) -> bool:
    """Return True if a GGUF file says how it makes a vector of a text."""
    architecture = header.architecture
    pooling = header.metadata.get(f"{architecture}.pooling_type")
    return pooling in _POOLS or (pooling is None and architecture in _ENCODERS)


def facts_of_onnx(folder: OnnxFolder) -> ModelFacts:
    """Return the facts of an ONNX folder."""
    return ModelFacts(
        architecture=folder.architecture,
        quantisation=folder.quantisation,
        weights_bytes=folder.weights_bytes,
        n_layer=folder.n_layer,
        n_embd=folder.n_embd,
        n_vocab=folder.n_vocab,
        head_dim_k=folder.head_dim,
        head_dim_v=folder.head_dim,
        n_ctx_train=folder.n_ctx_train,
        kv_type=folder.kv_type,
        cell_bytes=folder.cell_bytes,
    )


def facts_of_coreml(package: CoreMLPackage) -> ModelFacts:
    """Return the facts of a Core ML package."""
    info = package.info
    return ModelFacts(
        quantisation=info.variant,
        weights_bytes=package.weights_bytes,
        n_layer=info.n_layers,
        n_vocab=info.vocab,
        head_dim_k=info.head_dim,
        head_dim_v=info.head_dim,
        n_ctx_train=info.n_ctx_train or info.context,
        n_ctx_max=info.context,
        kv_type="f16",
        cell_bytes=info.cache_bytes // info.context,
        chunk=info.chunk,
        made_for={"ane": "ane", "gpu": "metal"}.get(info.variant),  # type: ignore[arg-type]
    )
