"""Logits of a GGUF: llama.cpp through llama-cpp-python's low-level functions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from edge.errors import BackendError, ModelFileError
from edge.formats.gguf import read_header
from edge_convert.evaluate.logits import CONTEXT, LogitModel
from edge_convert.gguf.llama import fill_batch, load_library, load_model

if TYPE_CHECKING:
    from edge_convert.evaluate.logits import Logits

__all__ = ["open_model"]


class _LlamaModel(LogitModel):
    def __init__(self, path: Path, n_threads: int, is_safe: bool) -> None:
        read_header(path)  # llama.cpp only gets files that pass this
        self._library = library = load_library()
        self._context: Any = None
        self._model = load_model(library, path, n_gpu_layers=0, use_extra_bufts=not is_safe)
        if not self._model:
            raise ModelFileError(f"llama.cpp cannot load {path}.", "Its version may not know this architecture.")
        settings = library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = CONTEXT
        settings.n_threads = settings.n_threads_batch = n_threads
        settings.swa_full = True
        self._context = library.llama_init_from_model(self._model, settings)
        if not self._context:
            self.close()
            raise BackendError(f"llama.cpp cannot make a context for {path}.", "Free some memory and try again.")
        self._vocabulary: Any = library.llama_model_get_vocab(self._model)
        self._n_past = 0
        self.tool = f"llama.cpp (llama-cpp-python {llama_cpp.__version__}{', without weight repacking' if is_safe else ''})"
        self.n_vocab = int(library.llama_vocab_n_tokens(self._vocabulary))

    def _reset(self) -> None:
        self._library.llama_memory_clear(self._library.llama_get_memory(self._context), True)
        self._n_past = 0

    def _read(self, tokens: Sequence[int], *, wants_all: bool) -> Logits:
        batch = self._library.llama_batch_init(len(tokens), 0, 1)
        try:
            fill_batch(batch, tokens, self._n_past, wants_all=wants_all)
            code = self._library.llama_decode(self._context, batch)
        finally:
            self._library.llama_batch_free(batch)
        if code != 0:
            raise BackendError(f"llama.cpp stopped with code {code}.", "Free some memory and try again.")
        self._n_past += len(tokens)
        shape = (len(tokens) if wants_all else 1, self.n_vocab)
        return np.ctypeslib.as_array(self._library.llama_get_logits(self._context), shape).astype(np.float32, copy=True)

    def tokenise(self, text: str) -> list[int] | None:
        if self._library.llama_vocab_type(self._vocabulary) == self._library.LLAMA_VOCAB_TYPE_NONE:
            return None
        data = text.encode()
        found = (ctypes.c_int32 * (len(data) + 8))()
        n = self._library.llama_tokenize(self._vocabulary, data, len(data), found, len(found), True, True)
        return list(found[:n])

    def close(self) -> None:
        if self._context:
            self._library.llama_free(self._context)
        if self._model:
            self._library.llama_model_free(self._model)
        self._context = self._model = None


def open_model(path: Path, *, n_threads: int, is_safe: bool) -> LogitModel:
    """Load a GGUF file; see `open_logits`."""
    return _LlamaModel(path, n_threads, is_safe)
