"""Texts as vectors: sentence-embedding models on llama.cpp (GGUF) and onnxruntime (folders).

embedder.py  a loaded model: checks texts, sorts them by length, computes batches, normalises
base.py      what an engine does; Embeddings, the result
llamacpp.py  GGUF files through llama.cpp; onnx.py, ONNX folders through onnxruntime
loading.py   from a name to an embedder; `embed`, which keeps the last one loaded
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge.embedding.base import Embeddings
    from edge.embedding.embedder import Embedder
    from edge.embedding.loading import DEFAULT_MODEL, embed, is_for_embeddings, load_embedder

__all__ = ["DEFAULT_MODEL", "Embedder", "Embeddings", "embed", "is_for_embeddings", "load_embedder"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge.embedding.base": ("Embeddings",),
        "edge.embedding.embedder": ("Embedder",),
        "edge.embedding.loading": ("DEFAULT_MODEL", "embed", "is_for_embeddings", "load_embedder"),
    },
)
