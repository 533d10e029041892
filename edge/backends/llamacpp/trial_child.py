"""The child process that tries a model file: it loads it as the engine does, and uses each part of it once.

Run by trial.py only. It dies, or ends with 0; with `REFUSED` where edge has a sentence for the problem. The last line of its
stdout says what it did when it died, in words that "it crashes when it" can begin.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.backends.llamacpp.canary_child import load_binding, without_core_dump
from edge.backends.llamacpp.trial import NOT_NUMBERS, REFUSED
from edge.backends.llamacpp.vocabulary import Vocabulary
from edge.errors import EdgeError
from edge.types import Sampling

if TYPE_CHECKING:
    from edge.backends.base import Backend

__all__ = ["main"]

_N_CTX = 256  # llama.cpp's smallest
_N_TOKENS = 4  # two passes: each token costs tens of milliseconds of a small model on a slow core
_N_UBATCH = 2
# Address space for what is not the model: buffers of the library, and of each thread.
_SPARE_BYTES, _THREAD_BYTES = 1 << 30, 256 << 20
# Words, digits, blanks, other scripts, emoji, joiners, and what chat templates are made of.
_TEXT = (
    "Hello, World's 1234567890!\n\n\tfoo_bar() caf\u00e9 \u041f\u0440\u0438\u0432\u0435\u0442 \u4f60\u597d \u3053\u3093 "
    "\u0645\u0631\u062d\u0628\u0627 \U0001f600\U0001f44d\U0001f3fd\u00a0\u200d\ufffd <s> </s> <|im_start|> [INST]"
)
# Every byte of UTF-8 occurs in a text, and a vocabulary has to know each; the bytes C0, C1 and F5 to FF never do.
_BYTES = (*range(0xC0), *range(0xC2, 0xF5))
_SAMPLING = Sampling(
    top_k=40, top_p=0.9, min_p=0.05, typical_p=0.9, repeat_penalty=1.1, dry_multiplier=0.8, xtc_probability=0.1, seed=0
)  # fmt: skip


def main(request: str) -> None:
    """Load a model file and use it.

    Args:
        request: JSON with "path" and those settings of a plan that `_use` takes.
    """
    without_core_dump()
    load_binding()
    try:
        _use(**json.loads(request))
    except EdgeError:
        sys.exit(REFUSED)


def _use(path: str, n_threads: int, cpu_s: int, memory_bytes: int | None, adapter: str = "", **settings: Any) -> None:
    from edge.adapters import Adapter
    from edge.backends.llamacpp.backend import LlamaCppBackend
    from edge.formats.artifact import Artifact
    from edge.plan.receipt import MemoryEstimate, Plan

    plan = Plan(
        backend="llamacpp",
        artifact=Artifact(Path(path), "gguf", "", 0),
        n_ctx=_N_CTX,
        n_seq=1,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        n_ubatch=_N_UBATCH,
        use_extra_buffers=False,  # a second copy of the weights; canary.py tries these kernels
        memory=MemoryEstimate(0, 0, 0, 0, 0),
        choices=(),
        adapters=(Adapter("adapter", Path(adapter), 1.0, "", 0, 0, 0),) if adapter else (),
        **settings,
    )
    _limit(cpu_s, None if memory_bytes is None else memory_bytes + _SPARE_BYTES + n_threads * _THREAD_BYTES)
    _says("loads it")
    with LlamaCppBackend(plan) as backend:
        if adapter:
            _says("applies it")
            backend.set_adapters(((0, 1.0),))
        _says("tokenises a text")
        tokens = _tokenise(backend)
        _says("computes with it")
        if adapter:
            _check_numbers(backend)
        _compute(backend, [0, backend.info.n_vocab - 1, *tokens][:_N_TOKENS])


def _limit(cpu_s: int, more_bytes: int | None) -> None:
    """Bound what a file can make this process use: some vocabularies are searched for ever, and fill the memory meanwhile."""
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = [(resource.RLIMIT_CPU, cpu_s)]
    statm = Path("/proc/self/statm")
    if more_bytes is not None and statm.exists():
        limits.append((resource.RLIMIT_AS, int(statm.read_text().split()[0]) * resource.getpagesize() + more_bytes))
    for kind, value in limits:
        _, most = resource.getrlimit(kind)
        resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _tokenise(backend: Backend) -> list[int]:
    tokenizer = backend.tokenizer
    tokens = tokenizer.tokenize(_TEXT) + tokenizer.tokenize(_TEXT, add_special=True, parse_special=True)
    if isinstance(tokenizer, Vocabulary) and backend.info.details.get("tokenizer") == "SPM":
        for byte in _BYTES:  # such a vocabulary spells in bytes what it has no token for
            tokenizer.encode_bytes(bytes((byte,)))
    return tokens


def _check_numbers(backend: Backend) -> None:
    """End the process if an adapter makes the model useless: unlike other errors, loading it would not find that."""
    import numpy as np

    backend.prefill(0, [0])
    if not np.isfinite(backend.logits(0)).all():
        sys.exit(NOT_NUMBERS)
    backend.rewind(0, 0)


def _compute(backend: Backend, tokens: list[int]) -> None:
    backend.prefill(0, tokens)
    for sampling in (Sampling(seed=0), _SAMPLING):
        _says("samples from it")
        token = backend.open_sampler(sampling, tokens).sample(0)
    _says("computes with it")
    backend.decode([(0, token)])
    _says("exports its KV cache")
    block = backend.export_kv(0, 0, backend.length(0))
    backend.rewind(0, 0)
    backend.import_kv(0, block)


def _says(doing: str) -> None:
    print(doing, flush=True)  # noqa: T201 (for trial.py)
