"""A GGUF file with its weights unpacked: the same numbers, as a plain loop would compute with them."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Literal

from edge.backends.llamacpp.library import clear_log, load_library, recent_log
from edge.errors import BackendError

__all__ = ["unpack"]

_FILE_TYPES = {16: 1, 32: 0}  # bits -> enum llama_ftype


def unpack(source: Path, out: Path, n_threads: int, *, bits: Literal[16, 32] = 16) -> None:
    """Write the weights of a GGUF file as floats, in seconds for a small model. Call it in a child process.

    Args:
        source: of any quantisation that llama.cpp reads.
        out: the new file.
        n_threads: at least 1.
        bits: of a float. In 32 bits they are exactly those of the file.

    Raises:
        BackendError: llama.cpp cannot read or write one of them.
    """
    library = load_library()
    clear_log()
    params = library.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = _FILE_TYPES[bits], n_threads, True
    if library.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)) != 0:
        why = recent_log() or "no reason given"
        raise BackendError(f"{source.name} cannot be written in {bits} bits: {why}", "Check that the disk has room for it.")
