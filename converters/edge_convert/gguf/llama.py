"""llama.cpp's C functions as conversions use them: quiet, on the CPU. Import it in child processes only."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["fill_batch", "load_library", "load_model"]

_callback: Any = None  # kept alive here: llama.cpp stores only its address


def load_library(on_log: Callable[[int, bytes, object], None] | None = None) -> Any:
    """Return the module with llama.cpp's C functions; its log (level, text, user data) goes to `on_log`, or nowhere."""
    global _callback
    from llama_cpp import llama_cpp

    _callback = llama_cpp.llama_log_callback(on_log or (lambda *_: None))
    llama_cpp.llama_log_set(_callback, None)
    llama_cpp.llama_backend_init()
    return llama_cpp


def load_model(library: Any, path: str | Path, **settings: Any) -> Any:
    """Load a model. Returns llama.cpp's pointer, which is null if it cannot.

    Args:
        library: from `load_library`.
        path: of a GGUF file.
        settings: fields of llama_model_params.
    """
    params = library.llama_model_default_params()
    for name, value in settings.items():
        setattr(params, name, value)
    return library.llama_model_load_from_file(os.fsencode(path), params)


def fill_batch(batch: Any, tokens: Sequence[int], first: int, *, wants_all: bool) -> None:
    """Put tokens of sequence 0 into a llama_batch.

    Args:
        batch: with room for them.
        tokens: ids.
        first: position of the first.
        wants_all: compute the logits of all tokens instead of the last one's.
    """
    batch.n_tokens = len(tokens)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index] = token, first + index
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
        batch.logits[index] = wants_all or index == len(tokens) - 1
