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
from edge.errors import EdgeError

__all__ = ["main"]

Progress = Callable[[float], None]

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


def _quantise(on_progress: Progress, source: str, out: str, file_type: int, threads: int, **options: Any) -> int:
    """Quantise a GGUF file. Returns the size of what came out.

    `options` are imatrix (path of a file by edge_convert.gguf.imatrix, or None), overrides (list of [pattern, ggml type]) and
    max_buffer_bytes.
    """
    import numpy as np
    from llama_cpp import llama_cpp

    from edge.errors import BackendError

    said: list[str] = []

    def log(level: int, text: bytes, _: object) -> None:
        line = text.decode("utf-8", "replace")
        found = _COUNTER.search(line)
        if found:
            on_progress(int(found[1]) / int(found[2]))
        if level in (3, 4):  # warnings and errors
            said.append(line.strip())

    callback = llama_cpp.llama_log_callback(log)
    llama_cpp.llama_log_set(callback, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = file_type, threads
    if options.get("max_buffer_bytes") and hasattr(params, "max_buf_size"):
        params.max_buf_size = options["max_buffer_bytes"]
    kept: list[Any] = []  # what C points to has to live until the call is over
    if options.get("imatrix"):
        entries = [(name, values.astype(np.float32)) for name, values in np.load(options["imatrix"]).items()]
        array = (llama_cpp.llama_model_imatrix_data * (len(entries) + 1))()
        for place, (name, values) in zip(array, entries, strict=False):
            place.name, place.size = name.encode(), values.size
            place.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = array
        kept += [entries, array]
    if options.get("overrides"):
        patterns = (llama_cpp.llama_model_tensor_override * (len(options["overrides"]) + 1))()
        for place, (pattern, kind) in zip(patterns, options["overrides"], strict=False):
            place.pattern, place.type = pattern.encode(), kind
        params.tt_overrides = patterns
        kept.append(patterns)
    code = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    if code != 0:
        raise BackendError(f"llama.cpp could not quantise: {' '.join(said[-3:]) or f'code {code}'}", "Report this.")
    return Path(out).stat().st_size


def _tokenise(on_progress: Progress, model: str, texts: list[str]) -> list[list[int]]:
    """Token ids of texts, special tokens recognised, beginning and end tokens added where the model says so."""
    from llama_cpp import llama_cpp

    from edge.errors import BackendError

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    loaded = llama_cpp.llama_model_load_from_file(os.fsencode(model), params)
    if not loaded:
        raise BackendError("llama.cpp cannot read the tokenizer of what was converted.", "Report this.")
    vocabulary = llama_cpp.llama_model_get_vocab(loaded)
    buffer = (llama_cpp.llama_token * _MAX_TEXT_TOKENS)()
    results = []
    for done, text in enumerate(texts):
        data = text.encode()
        count = llama_cpp.llama_tokenize(vocabulary, data, len(data), buffer, _MAX_TEXT_TOKENS, True, True)
        results.append(list(buffer[: max(0, count)]))
        if done % 500 == 0:
            on_progress(done / len(texts))
    return results


def _calibrate(on_progress: Progress, model: str, chunks: list[list[int]], out: str, threads: int) -> int:
    """Importance matrix of a model over token chunks, saved to `out`. Returns the number of tensors in it."""
    from edge_convert.gguf.imatrix_child import collect

    return collect(on_progress, model, chunks, out, threads)


_TASKS: dict[str, Callable[..., Any]] = {"quantise": _quantise, "tokenise": _tokenise, "calibrate": _calibrate}
