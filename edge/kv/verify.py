"""Proof by computing: what is restored from the disk against reading the same tokens from the start."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.kv.records import PlainBlock

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.backends.base import Backend

__all__ = ["CacheCheck", "compare", "longest_path"]


@dataclass(frozen=True, slots=True)
class CacheCheck:
    """One restored sequence against a cold run of the same tokens.

    Attributes:
        owner: the conversation.
        n_tokens: how long the sequence is.
        n_decoded: how many of its tokens were decoded and not read; those differ from a cold run in the last bits.
        max_difference: the largest difference of two logits after it.
        kl: Kullback-Leibler divergence of the restored run's next token from the cold one's, in nats.
        is_same_choice: the likeliest next token is the same.
    """

    owner: str
    n_tokens: int
    n_decoded: int
    max_difference: float
    kl: float
    is_same_choice: bool


def longest_path(blocks: Iterable[PlainBlock], model: bytes, n_max: int) -> list[PlainBlock]:
    """The longest row of blocks that follow each other from position 0, of one model, with bytes at its end.

    Args:
        blocks: parents before children.
        model: fingerprint; others are left out.
        n_max: the most tokens it may have.
    """
    paths: dict[bytes, list[PlainBlock]] = {}
    best: list[PlainBlock] = []
    for block in blocks:
        before = [] if block.parent is None else paths.get(block.parent)
        end = block.start + len(block.tokens)
        if block.model != model or before is None or end > n_max or block.namespace:
            continue
        path = paths[block.key] = [*before, block]
        if len(block.payload) and (not best or end > best[-1].start + len(best[-1].tokens)):
            best = path
    return best


def compare(
    backend: Backend, path: Sequence[PlainBlock], owner: str, *, chunk_size: int, should_stop: Callable[[], bool] | None = None
) -> CacheCheck | None:
    """Restore a row of blocks, compute one token more, and do the same without the disk. Empties sequence 0.

    Args:
        backend: with empty sequences.
        path: from `longest_path`, not empty.
        owner: for the report.
        chunk_size: prompts are read in chunks of so many tokens.
        should_stop: asked before each chunk; True ends it.

    Returns:
        What was found; None when it was stopped.

    Raises:
        BackendError: the engine refuses a block.
    """
    tokens = [token for block in path for token in block.tokens]
    last = tokens[-1]  # any token would do: the logits after it depend on all that was restored
    try:
        ranges = backend.capabilities.export_kv
        for block in path if ranges else path[-1:]:
            backend.import_kv(0, block.payload)
        backend.prefill(0, [last])
        restored = backend.logits(0)
        backend.rewind(0, 0)
        for start in range(0, len(tokens), chunk_size):
            if should_stop is not None and should_stop():
                return None
            backend.prefill(0, tokens[start : start + chunk_size])
        backend.prefill(0, [last])
        cold = backend.logits(0)
    finally:
        backend.rewind(0, 0)
    n_decoded = sum(len(block.tokens) for block in path if block.origin == "decode")
    return CacheCheck(
        owner,
        len(tokens),
        n_decoded,
        float(abs(restored - cold).max()),
        _divergence(cold, restored),
        bool(restored.argmax() == cold.argmax()),
    )


def _divergence(cold: npt.NDArray[np.float32], restored: npt.NDArray[np.float32]) -> float:
    import numpy as np

    logs = []
    for logits in (cold, restored):
        shifted = logits.astype(np.float64) - logits.max()
        logs.append(shifted - np.log(np.exp(shifted).sum()))
    return max(0.0, float((np.exp(logs[0]) * (logs[0] - logs[1])).sum()))
