"""Sentence-embedding models in GGUF files, through llama.cpp, which pools as the file says."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge.backends.llamacpp.library import Batch, clear_log, load_failure, load_library, recent_log
from edge.backends.llamacpp.vocabulary import Vocabulary
from edge.embedding.base import EmbeddingEngine, EmbeddingInfo
from edge.errors import BackendError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.formats.artifact import Artifact

__all__ = ["LlamaCppEmbeddings"]

_MOST_TOKENS = 2048
"""Of a text, and of a batch: an encoder attends to all of it at once, so memory grows with the square."""
_USUAL_TOKENS = 512
_MOST_TEXTS = 32
_ALONE = 2e9
"""Weights times tokens up to which one thread computes a batch: others would take longer to wake up than they save."""
_POOLING = {1: "mean", 2: "cls", 3: "last"}
_SHORTER = {"gemma-embedding": (512, 256, 128)}
"""Architecture -> shorter vectors that its makers trained it for; files do not say."""


class LlamaCppEmbeddings(EmbeddingEngine):
    """See `EmbeddingEngine`.

    Args:
        artifact: the file; it was checked to be a model for embeddings.
        n_threads: threads that compute.

    Raises:
        BackendUnavailableError, ModelFileError, ModelTooLargeError, BackendError: llama.cpp refused; see `load_failure`.
    """

    def __init__(self, artifact: Artifact, n_threads: int) -> None:
        header = artifact.header
        assert header is not None
        self._library = library = load_library()
        self._model: Any = None
        self._context: Any = None
        self._path = artifact.path
        self._n_params, self._n_threads = header.n_params, n_threads
        clear_log()
        params = library.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = False  # faster layouts crash some builds (edge/backends/llamacpp/canary.py)
        no_devices = (ctypes.c_void_p * 1)(None)
        params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
        self._model = library.llama_model_load_from_file(os.fsencode(artifact.path), params)
        if not self._model:
            raise load_failure("load the weights", artifact.path, header.architecture)
        try:
            self._open_context(header.architecture)
            vocab = library.llama_model_get_vocab(self._model)
            self._vocabulary = Vocabulary(library, vocab)
        except BaseException:
            self.close()
            raise
        self._end = library.llama_vocab_sep(vocab) if library.llama_vocab_get_add_sep(vocab) else -1
        if self._end < 0 and library.llama_vocab_get_add_eos(vocab):
            self._end = library.llama_vocab_eos(vocab)
        self.max_batch_tokens, self.max_batch_texts = self._n_batch, _MOST_TEXTS
        self.info = EmbeddingInfo(
            n_dims=self._n_dims,
            n_ctx=self._n_ctx,
            n_vocab=library.llama_vocab_n_tokens(vocab),
            pooling=_POOLING[library.llama_pooling_type(self._context)],
            shorter=_SHORTER.get(header.architecture, ()),
            memory_bytes=artifact.size_bytes,
        )
        self._batch = Batch(library, self._n_batch)

    def _open_context(self, architecture: str) -> None:
        library = self._library
        self._n_ctx = min(library.llama_model_n_ctx_train(self._model), _MOST_TOKENS)
        self._n_batch = max(self._n_ctx, _USUAL_TOKENS)
        self._n_dims = library.llama_model_n_embd(self._model)
        params = library.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self._n_batch
        params.n_seq_max = _MOST_TEXTS
        params.kv_unified = True
        params.embeddings = True
        params.pooling_type = library.LLAMA_POOLING_TYPE_UNSPECIFIED  # as the file says
        params.n_threads = params.n_threads_batch = self._n_threads
        params.no_perf = True
        clear_log()
        self._context = library.llama_init_from_model(self._model, params)
        if not self._context:
            raise load_failure("make room for the context", self._path, architecture)
        self._has_cache = bool(library.llama_get_memory(self._context))

    def tokenize(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=True)

    def truncate(self, tokens: Sequence[int]) -> list[int]:
        kept = list(tokens[: self.info.n_ctx])
        if len(tokens) > len(kept) and self._end >= 0:
            kept[-1] = self._end
        return kept

    def compute(self, batch: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        import numpy as np

        library, arrays = self._library, self._batch
        at = 0
        for number, tokens in enumerate(batch):
            end = at + len(tokens)
            arrays.tokens[at:end] = tokens
            arrays.positions[at:end] = np.arange(len(tokens))
            arrays.seq_ids[at:end] = number
            at = end
        arrays.wants_logits[:at] = 1
        arrays.native.n_tokens = at
        n_threads = 1 if at * self._n_params < _ALONE else self._n_threads
        library.llama_set_n_threads(self._context, n_threads, n_threads)
        clear_log()
        if self._has_cache:
            library.llama_memory_clear(library.llama_get_memory(self._context), True)
            failed = library.llama_decode(self._context, arrays.native)
        else:
            failed = library.llama_encode(self._context, arrays.native)
        if failed:
            raise BackendError(f"llama.cpp could not compute embeddings ({failed}): {recent_log() or 'it gave no reason'}.")
        found = np.empty((len(batch), self.info.n_dims), np.float32)
        for number in range(len(batch)):
            pointer = library.llama_get_embeddings_seq(self._context, number)
            if not pointer:
                raise BackendError("llama.cpp computed no vector for a text.")
            found[number] = np.ctypeslib.as_array(pointer, shape=(self.info.n_dims,))
        return found

    def close(self) -> None:
        context, model = self._context, self._model
        self._context = self._model = None
        if context:
            self._library.llama_free(context)
        if model:
            if hasattr(self, "_vocabulary"):
                self._vocabulary.close()
            self._library.llama_model_free(model)
