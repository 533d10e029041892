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
from edge.errors import BackendError, EdgeError, ModelFileError
from edge_convert.gguf.imatrix_child import collect
from edge_convert.gguf.imatrix_file import read_imatrix
from edge_convert.gguf.llama import fill_batch, load_library, load_model

__all__ = ["main"]

OnProgress = Callable[[float], None]

_COUNTER = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_MISSING = re.compile(r"[Mm]issing importance matrix for tensor (\S+)")
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
        result = {"kind": type(error).__name__, "error": error.message, "hint": error.hint}
    send(json.dumps(result).encode())
    # llama.cpp's threads need no orderly end, and some builds crash in theirs.
    os._exit(0)


def _quantise(on_progress: OnProgress, source: str, out: str, file_type: int, threads: int, imatrix: str | None) -> int:
    """Quantise a GGUF file and return the size of the new one. `imatrix` is a file that imatrix_file.py reads."""
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
        entries = list(read_imatrix(Path(imatrix)).items())
        params.imatrix = array = (library.llama_model_imatrix_data * (len(entries) + 1))()
        for place, (name, values) in zip(array, entries, strict=False):
            place.name, place.size = name.encode(), values.size
            place.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    code = library.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params))
    if code != 0 and (missing := _MISSING.search(" ".join(warnings))):
        raise ModelFileError(
            f"A type with so few bits needs an importance matrix for every matrix, and there is none for {missing[1]}.",
            "Name a type with more bits, such as --quant Q4_K_M, or another importance matrix.",
        )
    if code != 0:
        raise BackendError(f"llama.cpp could not quantise: {' '.join(warnings[-3:]) or f'code {code}'}", "Report this.")
    return Path(out).stat().st_size


def _tokenise(on_progress: OnProgress, model: str, texts: list[str]) -> list[list[int]]:
    """Return the token ids of texts, with special tokens, and beginning and end tokens if the model adds them."""
    library = load_library()
    vocabulary = _load_vocabulary(library, model)
    buffer = (library.llama_token * _MAX_TEXT_TOKENS)()
    results = []
    for done, text in enumerate(texts):
        data = text.encode()
        count = library.llama_tokenize(vocabulary, data, len(data), buffer, _MAX_TEXT_TOKENS, True, True)
        results.append(list(buffer[: max(0, count)]))
        if done % 500 == 0:
            on_progress(done / len(texts))
    return results


def _find_ends(on_progress: OnProgress, model: str) -> list[int]:
    """Return the token ids that llama.cpp ends a reply at."""
    library = load_library()
    vocabulary = _load_vocabulary(library, model)
    return [token for token in range(library.llama_vocab_n_tokens(vocabulary)) if library.llama_vocab_is_eog(vocabulary, token)]


def _compute_logits(on_progress: OnProgress, model: str, tokens: list[int], out: str) -> int:
    """Save the logits of every token, float32 [n_tokens, n_vocab], without any shortcut; return the size of the vocabulary."""
    import numpy as np

    library = load_library()
    loaded = load_model(library, model, use_extra_bufts=False)
    params = library.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = len(tokens)
    params.n_threads = params.n_threads_batch = os.cpu_count() or 1
    params.type_k = params.type_v = 0  # float32
    params.flash_attn_type = 0
    context = library.llama_init_from_model(loaded, params) if loaded else None
    if not context:
        raise BackendError("llama.cpp cannot load the GGUF that was written.", "Report this.")
    batch = library.llama_batch_init(len(tokens), 0, 1)
    fill_batch(batch, tokens, 0, wants_all=True)
    if library.llama_decode(context, batch) != 0:
        raise BackendError("llama.cpp cannot compute with the GGUF that was written.", "Report this.")
    n_vocab: int = library.llama_vocab_n_tokens(library.llama_model_get_vocab(loaded))
    rows = [np.ctypeslib.as_array(library.llama_get_logits_ith(context, at), (n_vocab,)) for at in range(len(tokens))]
    np.save(out, np.stack(rows))
    return n_vocab


def _load_vocabulary(library: Any, model: str) -> Any:
    loaded = load_model(library, model, vocab_only=True)
    if not loaded:
        what = f"llama.cpp cannot read the tokenizer of {Path(model).name}: a value in it is of a wrong kind or out of range."
        raise ModelFileError(what, "Download the model again.")
    return library.llama_model_get_vocab(loaded)


_TASKS: dict[str, Callable[..., Any]] = {
    "quantise": _quantise,
    "tokenise": _tokenise,
    "find_ends": _find_ends,
    "compute_logits": _compute_logits,
    "calibrate": collect,
}
