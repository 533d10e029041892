"""From the name of an embedding model to an embedder, and `edge.embed`, which keeps what it loaded."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from edge.embedding.embedder import Embedder, Input, OnEmbedded
from edge.errors import ModelFileError, ModelTooLargeError, UsageError
from edge.forks import ProcessLock
from edge.formats.facts import is_for_embeddings
from edge.units import size_text

if TYPE_CHECKING:
    from edge.config.schema import Settings
    from edge.embedding.base import Embeddings
    from edge.formats.artifact import Artifact
    from edge.sources.base import OnProgress

__all__ = ["DEFAULT_MODEL", "EmbedderCache", "LoadedEmbedder", "embed", "is_for_embeddings", "load_embedder"]

DEFAULT_MODEL = "all-minilm-l6-v2"
"""Of the catalogue: small, English, Apache-2.0."""

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


@dataclass(slots=True, eq=False)
class LoadedEmbedder:
    """An embedding model in memory.

    Attributes:
        name: by which it was asked for.
        embedder: the model.
        n_users: that compute with it now.
        used_at: when it was last used, of `time.monotonic`.
    """

    name: str
    embedder: Embedder
    n_users: int = 0
    used_at: float = field(default_factory=time.monotonic)

    @property
    def memory_bytes(self) -> int:
        """What it takes, about."""
        return int(self.embedder.info.memory_bytes * _MEMORY_FACTOR)


class EmbedderCache:
    """The embedding models that a program uses, loaded when they are asked for. May be used from any thread.

    Args:
        settings: as for `load_embedder`.
        most: models in memory at most, unless more are in use; the least recently used is closed for another.
        load: instead of `load_embedder`, for tests.
    """

    def __init__(
        self, settings: Settings | None = None, *, most: int = 2, load: Callable[..., Embedder] = load_embedder
    ) -> None:
        self._settings, self._most, self._load = settings, most, load
        self._lock = ProcessLock()
        self._loaded: dict[str, LoadedEmbedder] = {}
        self._process = os.getpid()

    @contextlib.contextmanager
    def use(self, model: str | None = None, *, settings: Settings | None = None, download: bool = True) -> Iterator[Embedder]:
        """Hold an embedder, loaded if it is not yet, and not closed before the block ends; see `load_embedder`."""
        name = model or DEFAULT_MODEL
        with self._lock:
            if self._process != os.getpid():  # a forked process has none of the engine's threads
                self._loaded, self._process = {}, os.getpid()
            if name not in self._loaded:
                while len(self._loaded) >= self._most and self._close_one(lambda one: True):
                    pass
                embedder = self._load(name, settings=settings or self._settings, download=download)
                self._loaded[name] = LoadedEmbedder(name, embedder)
            loaded = self._loaded[name]
            loaded.n_users += 1
        try:
            yield loaded.embedder
        finally:
            with self._lock:
                loaded.n_users -= 1
                loaded.used_at = time.monotonic()

    @property
    def loaded(self) -> list[LoadedEmbedder]:
        """The models in memory, the most recently used first."""
        return sorted(self._loaded.copy().values(), key=lambda one: -one.used_at)  # without the lock: a load may take long

    def close_unused(self, since: float) -> bool:
        """Close the model that was not used for the longest time, if that is since this time of `time.monotonic`.

        Returns:
            Whether there was one that nobody uses.
        """
        with self._lock:
            return self._close_one(lambda one: one.used_at <= since)

    def close(self) -> None:
        """Close all of them; the cache may be used again."""
        with self._lock:
            for one in self._loaded.values():
                one.embedder.close()  # which waits for a batch that is computed
            self._loaded = {}

    def _close_one(self, may_go: Callable[[LoadedEmbedder], bool]) -> bool:
        unused = [one for one in self._loaded.values() if not one.n_users and may_go(one)]
        if not unused:
            return False
        oldest = min(unused, key=lambda one: one.used_at)
        del self._loaded[oldest.name]
        oldest.embedder.close()
        return True


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
    with _shared.use(model, settings=settings) as embedder:
        return embedder.embed(texts, dimensions=dimensions, truncate=truncate, on_progress=on_progress)
