"""Verification by computing: restored KV cache against a cold prefill of the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge.formats.logits import log_softmax
from edge.kv.records import PlainBlock
from edge.names import is_answer_namespace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from edge.backends.base import Backend
    from edge.kv.store import BlockStore

__all__ = ["CacheCheck", "check_cache", "compare", "longest_path"]

Comparison = Callable[["Backend", int], "CacheCheck"]


@dataclass(frozen=True, slots=True)
class CacheCheck:
    """One restored sequence against a cold run of the same tokens.

    Attributes:
        owner: the conversation.
        n_tokens: length of the sequence.
        n_decoded: tokens of it that were decoded, not prefilled; those differ from a cold run in the last bits.
        max_difference: largest difference of two logits after it.
        kl: Kullback-Leibler divergence of the restored next-token distribution from the cold one, in nats.
        is_same_choice: the most likely next token is the same.
        n_foreign: tokens of it that another engine computed; those differ, too.
    """

    owner: str
    n_tokens: int
    n_decoded: int
    max_difference: float
    kl: float
    is_same_choice: bool
    n_foreign: int = 0


def check_cache(
    blocks: BlockStore,
    model: bytes,
    run: Callable[[Comparison], CacheCheck],
    *,
    n_ctx: int,
    n: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[CacheCheck]:
    """Restore the newest conversations of a model and compare each with a cold run.

    Args:
        blocks: the store.
        model: fingerprint of weights and engine, 32 bytes.
        run: calls a function with (backend with empty sequences, chunk size).
        n_ctx: context window, in tokens.
        n: most conversations.
        on_progress: called with (conversations done, conversations in all).

    Raises:
        UsageError: the disk has nothing of this model.
        StorageError: the disk cannot be read.
        BackendError: the engine refuses a block, or is closed.
    """
    last_used: dict[str, float] = {}
    for used in blocks.usages():
        if used.model == model.hex() and not is_answer_namespace(used.namespace):
            last_used.update({owner: max(used.last_used, last_used.get(owner, 0.0)) for owner in used.owners})
    owners = sorted(last_used, key=last_used.__getitem__, reverse=True)[:n]
    checks: list[CacheCheck] = []
    for n_done, owner in enumerate(owners):
        if on_progress is not None:
            on_progress(n_done, len(owners))
        path = longest_path(blocks.export_blocks(owner), model, n_ctx - 1)
        if path:
            checks.append(run(lambda backend, chunk_size, path=path, owner=owner: compare(backend, path, owner, chunk_size)))  # type: ignore[misc]
    if not checks:
        raise UsageError("The disk has nothing of this model and these settings.", "Chat a little first: edge chat")
    return checks


def longest_path(blocks: Iterable[PlainBlock], model: bytes, n_max: int) -> list[PlainBlock]:
    """Return the longest chain of blocks from position 0 that belongs to a model and ends with a payload.

    Args:
        blocks: parents before children.
        model: fingerprint.
        n_max: most tokens of the chain.
    """
    paths: dict[bytes, list[PlainBlock]] = {}
    best: list[PlainBlock] = []
    for block in blocks:
        before = [] if block.parent is None else paths.get(block.parent)
        end = block.start + len(block.tokens)
        if block.model != model or before is None or end > n_max or is_answer_namespace(block.namespace):
            continue
        path = paths[block.key] = [*before, block]
        if len(block.payload) and (not best or end > best[-1].start + len(best[-1].tokens)):
            best = path
    return best


def compare(backend: Backend, path: Sequence[PlainBlock], owner: str, chunk_size: int) -> CacheCheck:
    """Restore a chain of blocks and compute one more token, then do the same without the disk. Leaves sequence 0 empty.

    Args:
        backend: with empty sequences.
        path: from `longest_path`, not empty.
        owner: for the result.
        chunk_size: tokens prefilled at once.

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
        sum(len(block.tokens) for block in path if backend.maker(block.payload)),
    )


def _divergence(cold: npt.NDArray[np.float32], restored: npt.NDArray[np.float32]) -> float:
    import numpy as np

    p, q = log_softmax(cold), log_softmax(restored)
    found = float((np.exp(p) * (p - q)).sum())
    return 0.0 if found < 0 else found  # NaN stays what it is
