"""How fast memory can be read here, and how much of that writing a token takes.

Writing a token reads every weight once. What memory delivers is therefore a ceiling for decode, whatever the engine does; the
share of it that is reached says how much an engine leaves lying. (A model that partly stays in the processor's caches can go
beyond.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edge.plan.memory import model_layers

if TYPE_CHECKING:
    from edge.bench.values import Setting
    from edge.formats.artifact import Artifact

__all__ = ["decode_bytes", "measure_bandwidth", "sweep_bytes"]

_MIN_BYTES, _MAX_BYTES = 256 << 20, 2 << 30
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def sweep_bytes(available_bytes: int, caches: Path = _CACHES) -> int:
    """How much to read: eight times the largest cache, at least 256 MiB, at most 2 GiB and an eighth of what is free."""
    largest = 0
    for file in sorted(caches.glob("index*/size")):
        try:
            text = file.read_text("ascii").strip()
            largest = max(largest, int(text.rstrip("KMG")) * _UNITS.get(text[-1:], 1))
        except (OSError, ValueError):
            continue  # the kernel of this device does not say
    return min(max(_MIN_BYTES, 8 * largest), _MAX_BYTES, max(32 << 20, available_bytes // 8))


def measure_bandwidth(n_threads: int, n_bytes: int, n_sweeps: int = 5, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second that `n_threads` threads read together; the best of several sweeps.

    Args:
        n_threads: as many as decode uses.
        n_bytes: read in each sweep, all threads together; well above the caches.
        n_sweeps: at least 1.
        clock: seconds.
    """
    import numpy as np

    # The largest of bytes: vector instructions on every CPU, and next to nothing to compute.
    parts = [np.ones(n_bytes // n_threads, np.uint8) for _ in range(n_threads)]
    best = float("inf")
    for _ in range(n_sweeps):
        threads = [threading.Thread(target=part.max, daemon=True) for part in parts]
        started = clock()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = min(best, clock() - started)
    return sum(part.nbytes for part in parts) / best


def decode_bytes(artifact: Artifact, setting: Setting, n_past: float) -> int | None:
    """Bytes that writing one token reads: weights, and the KV of what is in the window.

    Args:
        artifact: the model. Of a folder only the size of its weights is known, the table of embeddings included.
        setting: how its KV cache is kept.
        n_past: tokens in the window.
    """
    header, facts = artifact.header, artifact.facts
    if header is None:
        return round(facts.weights_bytes + facts.cell_bytes * n_past) if facts is not None and facts.weights_bytes else None
    layers = model_layers(header)
    n_experts, n_used = (header.metadata.get(f"{header.architecture}.expert_{what}") for what in ("count", "used_count"))
    idle = 0.0
    if isinstance(n_experts, int) and isinstance(n_used, int) and 0 < n_used < n_experts:
        expert_bytes = sum(tensor.size_bytes for tensor in header.tensors if "_exps" in tensor.name)
        idle = expert_bytes * (1 - n_used / n_experts)
    kv = layers.cell_bytes(setting.kv_type_k, setting.kv_type_v) * n_past
    return round(sum(layers.weights) + layers.output_bytes - idle + kv)
