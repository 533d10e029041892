"""The child process of engine.py: reads one task from stdin, writes progress and the result to stdout as JSON lines."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge.child import claim_stdout, end_with_parent
from edge.errors import BackendError, EdgeError
from edge_convert.gguf.imatrix_child import collect
from edge_convert.gguf.llama import load_library, load_model

__all__ = ["main"]

OnProgress = Callable[[float], None]

_COUNTER = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_MAX_TEXT_TOKENS = 65_536


def main() -> None:
    """Run the task on the first line of stdin."""
    send = claim_stdout()
    request = json.loads(sys.stdin.readline())
    end_with_parent(signal.SIGKILL)

    def on_progress(share: float) -> None:
        send(json.dumps({"progress": share}).encode())

    try:
        result = {"result": _TASKS[request["task"]](on_progress, **request["arguments"])}
    except EdgeError as error:
        result = {"error": error.message, "hint": error.hint}
    send(json.dumps(result).encode())
    # llama.cpp's threads need no orderly end, and some builds crash in theirs.
    os._exit(0)


def _quantise(on_progress: OnProgress, source: str, out: str, file_type: int, threads: int, imatrix: str | None) -> int:
    """Quantise a GGUF file and return the size of the new one. `imatrix` is a file by edge_convert.gguf.imatrix."""
    import numpy as np

    warnings: list[str] = []

    def on_log(level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace")
        if found := _COUNTER.search(line):
            on_progress(int(found[1]) / int(found[2]))
        if level in (3, 4):  # warnings and errors
            warnings.append(line.strip())

    library = load_library(on_log)
    params = library.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, threads
    entries: list[tuple[str, Any]] = []  # the arrays that C points to have to live until the call is over
    if imatrix:
        entries = [(name, values.astype(np.float32)) for name, values in np.load(imatrix).items()]
        params.imatrix = array = (library.llama_model_imatrix_data * (len(entries) + 1))()
        for place, (name, values) in zip(array, entries, strict=False):
            place.name, place.size = name.encode(), values.size
            place.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    code = library.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    if code != 0:
        raise BackendError(f"llama.cpp could not quantise: {' '.join(warnings[-3:]) or f'code {code}'}", "Report this.")
    return Path(out).stat().st_size


def _tokenise(on_progress: OnProgress, model: str, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts, with special tokens, and beginning and end tokens if the model adds them."""
    library = load_library()
    loaded = load_model(library, model, vocab_only=True)
    if not loaded:
        raise BackendError("llama.cpp cannot read the tokenizer of the converted model.", "Report this.")
    vocabulary = library.llama_model_get_vocab(loaded)
    buffer = (library.llama_token * _MAX_TEXT_TOKENS)()
    results = []
    for done, text in enumerate(texts):
        data = text.encode()
        count = library.llama_tokenize(vocabulary, data, len(data), buffer, _MAX_TEXT_TOKENS, True, True)
        results.append(list(buffer[: max(0, count)]))
        if done % 500 == 0:
            on_progress(done / len(texts))
    return results


_TASKS: dict[str, Callable[..., Any]] = {"quantise": _quantise, "tokenise": _tokenise, "calibrate": collect}
