"""From the name of an embedding model to an embedder, and `edge.embed`, which keeps what it loaded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.embedding.embedder import Embedder, Input, OnEmbedded
from edge.errors import ModelFileError, ModelTooLargeError, UsageError
from edge.forks import ProcessLock
from edge.units import size_text

if TYPE_CHECKING:
    from edge.config.schema import Settings
    from edge.embedding.base import Embeddings
    from edge.formats.artifact import Artifact
    from edge.formats.gguf import GGUFHeader
    from edge.sources.base import OnProgress

__all__ = ["DEFAULT_MODEL", "EmbedderCache", "embed", "is_for_embeddings", "load_embedder"]

DEFAULT_MODEL = "all-minilm-l6-v2"
"""Of the catalogue: small, English, Apache-2.0."""

_ENCODERS = frozenset(
    {"bert", "modern-bert", "nomic-bert", "nomic-bert-moe", "neo-bert", "jina-bert-v2", "jina-bert-v3", "eurobert"}
)
_POOLS = frozenset({1, 2, 3})  # mean, cls, last; 4 is a reranker's score
_MEMORY_FACTOR = 1.5  # what a loaded model takes, as a multiple of its file: weights, and buffers of a batch


def load_embedder(
    model: str | None = None,
    *,
    settings: Settings | None = None,
    download: bool = True,
    on_progress: OnProgress | None = None,
) -> Embedder:
    """Load an embedding model; the caller closes it.

    Args:
        model: catalogue name, path or reference of a GGUF file that says how it pools, or path of a folder with model.onnx and
            tokenizer.json; None is `DEFAULT_MODEL`.
        settings: directories, hub, offline mode, threads; None reads the user's.
        download: fetch it if it is not here.
        on_progress: called with the progress of a download. May raise to stop it.

    Raises:
        UsageError: the model is not one for embeddings.
        ModelNotFoundError, DownloadError, ModelFileError: it cannot be found, fetched or used.
        ModelTooLargeError: there is no memory for it.
        BackendUnavailableError: its engine is not installed.
    """
    from edge.device.detection import probe

    name, chosen = model or DEFAULT_MODEL, settings or _settings()
    device = probe()
    n_threads = chosen.threads or max(1, device.cpu.usable_performance or device.cpu.usable_efficiency)
    folder = Path(name).expanduser()
    if folder.is_dir():
        from edge.embedding.onnx import OnnxEmbeddings, is_onnx_folder

        if is_onnx_folder(folder):
            return Embedder(OnnxEmbeddings(folder, n_threads), folder.resolve().name)
    artifact = _find(name, chosen, download, on_progress)
    needed, available = int(artifact.size_bytes * _MEMORY_FACTOR), device.memory.available_bytes
    if needed > available:
        raise ModelTooLargeError(
            f"{artifact.name} needs about {size_text(needed)}, and {size_text(available)} of memory are free.",
            f"Close other programs, or use {DEFAULT_MODEL}.",
        )
    from edge.embedding.llamacpp import LlamaCppEmbeddings

    return Embedder(LlamaCppEmbeddings(artifact, n_threads), artifact.name)


def is_for_embeddings(header: GGUFHeader) -> bool:
    """Return True if a GGUF file says how it makes a vector of a text."""
    architecture = header.architecture
    pooling = header.metadata.get(f"{architecture}.pooling_type")
    return pooling in _POOLS or (pooling is None and architecture in _ENCODERS)


def _find(name: str, settings: Settings, download: bool, on_progress: OnProgress | None) -> Artifact:
    from edge.catalog.api import resolve

    artifact = resolve(name, settings=settings, download=download, on_progress=on_progress, formats=("gguf",))
    header = artifact.header
    if header is None:
        raise ModelFileError(
            f"{name} is an {artifact.format} model that generates text, and makes no embeddings.", f"Use {DEFAULT_MODEL}."
        )
    if not is_for_embeddings(header):
        is_reranker = header.metadata.get(f"{header.architecture}.pooling_type") == 4
        what = "ranks texts" if is_reranker else "generates text"
        raise UsageError(
            f"The model {artifact.name} {what}, and makes no embeddings.",
            f"Leave the model out for {DEFAULT_MODEL}, or name one for embeddings; see docs/embeddings.md.",
        )
    return artifact


def _settings() -> Settings:
    from edge.config.load import load_settings

    return load_settings()


class EmbedderCache:
    """The embedding models that a program uses, loaded when they are asked for. May be used from any thread.

    Args:
        settings: as for `load_embedder`.
        most: models in memory at most; the least recently used is closed for another.
        load: instead of `load_embedder`, for tests.
    """

    def __init__(
        self, settings: Settings | None = None, *, most: int = 2, load: Callable[..., Embedder] = load_embedder
    ) -> None:
        self._settings, self._most, self._load = settings, most, load
        self._lock = ProcessLock()
        self._loaded: dict[str, tuple[Embedder, float]] = {}
        self._process = os.getpid()

    def get(self, model: str | None = None, *, settings: Settings | None = None, download: bool = True) -> Embedder:
        """Return an embedder, loaded if it is not yet. Args and errors are those of `load_embedder`."""
        name = model or DEFAULT_MODEL
        with self._lock:
            if self._process != os.getpid():  # a forked process has none of the engine's threads
                self._loaded, self._process = {}, os.getpid()
            if name not in self._loaded:
                while len(self._loaded) >= self._most:
                    oldest = min(self._loaded, key=lambda one: self._loaded[one][1])
                    self._loaded.pop(oldest)[0].close()  # which waits for a batch that is computed
                self._loaded[name] = self._load(name, settings=settings or self._settings, download=download), 0.0
            embedder = self._loaded[name][0]
            self._loaded[name] = embedder, time.monotonic()
            return embedder

    @property
    def memory_bytes(self) -> int:
        """What the loaded models take, about."""
        with self._lock:
            return sum(int(embedder.info.memory_bytes * _MEMORY_FACTOR) for embedder, _ in self._loaded.values())

    def close(self) -> None:
        """Close all of them; the cache may be used again."""
        with self._lock:
            for embedder, _ in self._loaded.values():
                embedder.close()
            self._loaded = {}


_shared = EmbedderCache()


def embed(
    texts: Input | Sequence[Input],
    model: str | None = None,
    *,
    dimensions: int | None = None,
    truncate: bool = False,
    settings: Settings | None = None,
    on_progress: OnEmbedded | None = None,
) -> Embeddings:
    """Return a vector for each text: near each other where the texts mean the same.

    The model stays loaded for the next call; `edge.embedding.load_embedder` gives one to close.

    Args:
        texts: one text or several; token ids of the model in place of a text are computed as they are.
        model: as for `load_embedder`. It is fetched if it is not here.
        dimensions: shorter vectors, for models that were trained for it.
        truncate: cut texts that are longer than the model's window, instead of refusing them.
        settings: None reads the user's.
        on_progress: called with (texts done, texts in all) after each batch; False stops.

    Raises:
        UsageError: there is no text, one is empty, or the model is not one for embeddings.
        ContextFullError: a text is longer than the window.
        CancelledError: on_progress said False.
        EdgeError: as `load_embedder`.
    """
    embedder = _shared.get(model, settings=settings)
    return embedder.embed(texts, dimensions=dimensions, truncate=truncate, on_progress=on_progress)
