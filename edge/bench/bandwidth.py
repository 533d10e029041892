"""Memory bandwidth and computation of this device, and the bytes that decoding one token reads.

Decoding a token reads every weight once, so memory bandwidth is a ceiling for decode speed, whatever the engine; the share of
it that is reached tells how much room an engine leaves. (A model that partly stays in the processor's caches can exceed it.)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.plan.memory import gguf_memory

if TYPE_CHECKING:
    from edge.bench.values import Setting
    from edge.formats.artifact import Artifact

__all__ = ["decode_bytes", "measure_bandwidth", "measure_compute", "sweep_bytes"]

_MIN_BYTES, _MAX_BYTES = 256 << 20, 2 << 30
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def sweep_bytes(available_bytes: int, caches: Path = _CACHES) -> int:
    """Return the bytes to read: 8 times the largest cache, at least 256 MiB, at most 2 GiB and an eighth of free memory."""
    largest = 0
    for file in sorted(caches.glob("index*/size")):
        try:
            text = file.read_text("ascii").strip()
            largest = max(largest, int(text.rstrip("KMG")) * _UNITS.get(text[-1:], 1))
        except (OSError, ValueError):
            continue  # this kernel does not tell
    return min(max(_MIN_BYTES, 8 * largest), _MAX_BYTES, max(32 << 20, available_bytes // 8))


def measure_bandwidth(n_threads: int, n_bytes: int, n_sweeps: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the bytes per second that `n_threads` threads read together, the best of several sweeps.

    Args:
        n_threads: as many as decode uses.
        n_bytes: read in each sweep by all threads together; well above the caches.
        n_sweeps: at least 1.
        clock: seconds.
    """
    import numpy as np

    # The maximum of bytes takes vector instructions on every CPU, and almost no computation.
    parts = [np.ones(n_bytes // n_threads, np.uint8) for _ in range(n_threads)]
    return sum(part.nbytes for part in parts) / _fastest([part.max for part in parts], n_sweeps, clock)


def measure_compute(
    n_threads: int, size: int = 512, n_rounds: int = 8, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the float32 operations per second of a matrix product on `n_threads` threads, the best of several rounds.

    Args:
        n_threads: as many as prefill uses. Each multiplies matrices of its own, in a library that is held to one thread, which
            works only where numpy was not imported before.
        size: rows and columns of the matrices.
        n_rounds: at least 1.
        clock: seconds.
    """
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ[name] = "1"
    import numpy as np

    n_each = 4
    pairs = [(np.ones((size, size), np.float32), np.ones((size, size), np.float32)) for _ in range(n_threads)]

    def multiply(one: Any, other: Any) -> None:
        for _ in range(n_each):
            one @ other

    return 2.0 * size**3 * n_each * n_threads / _fastest([partial(multiply, *pair) for pair in pairs], n_rounds, clock)


def _fastest(works: Sequence[Callable[[], object]], n_rounds: int, clock: Callable[[], float]) -> float:
    """Return the seconds that all works take together, each in a thread of its own: the fewest of several rounds."""
    best = float("inf")
    for _ in range(n_rounds):
        threads = [threading.Thread(target=work, daemon=True) for work in works]
        started = clock()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = min(best, clock() - started)
    return best


def decode_bytes(artifact: Artifact, setting: Setting, n_past: float) -> int | None:
    """Return the bytes that decoding one token reads: weights, and the KV cache of the tokens in the window.

    Args:
        artifact: the model. Of a folder, only the size of its weights is known, the embedding table included.
        setting: types of its KV cache.
        n_past: tokens in the window.
    """
    header, facts = artifact.header, artifact.facts
    if header is None:
        return round(facts.weights_bytes + facts.cell_bytes * n_past) if facts.weights_bytes else None
    layers = gguf_memory(header)
    n_experts, n_used = (header.metadata.get(f"{header.architecture}.expert_{what}") for what in ("count", "used_count"))
    idle = 0.0
    if isinstance(n_experts, int) and isinstance(n_used, int) and 0 < n_used < n_experts:
        expert_bytes = sum(tensor.size_bytes for tensor in header.tensors if "_exps" in tensor.name)
        idle = expert_bytes * (1 - n_used / n_experts)
    kv = layers.cell_bytes(setting.kv_type_k, setting.kv_type_v) * n_past
    return round(sum(layers.weights) + layers.output_bytes - idle + kv)
