"""Checks the newest conversations of the disk: restored against cold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from edge.errors import UsageError
from edge.kv.verify import CacheCheck, compare, longest_path

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.kv.records import PlainBlock
    from edge.kv.store import BlockStore

__all__ = ["check_cache"]

Comparison = Callable[["Backend", int], "CacheCheck | None"]


def check_cache(
    blocks: BlockStore,
    model: bytes,
    run: Callable[[Comparison], CacheCheck | None],
    *,
    n_ctx: int,
    n: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[CacheCheck]:
    """Restore the newest conversations of a model and compare what it says next with a cold run.

    Args:
        blocks: the store.
        model: fingerprint of weights and engine, 32 bytes.
        run: runs a function of (backend with empty sequences, chunk size).
        n_ctx: context window, in tokens.
        n: number of conversations at most.
        on_progress: called with (conversations done, conversations in all).

    Raises:
        UsageError: the disk has nothing of this model.
        StorageError: the disk cannot be read.
        BackendError: the engine refuses a block, or is closed.
    """
    last_used: dict[str, float] = {}
    for info in blocks.ls():
        if info.model == model.hex() and not info.namespace:
            last_used.update({owner: max(info.last_used, last_used.get(owner, 0.0)) for owner in info.owners})
    owners = sorted(last_used, key=last_used.__getitem__, reverse=True)[:n]
    checks: list[CacheCheck] = []
    for n_done, owner in enumerate(owners):
        if on_progress is not None:
            on_progress(n_done, len(owners))
        path = longest_path(blocks.export_blocks(owner), model, n_ctx - 1)
        if path:
            found = run(_comparison(path, owner))
            checks += [found] if found is not None else []
    if not checks:
        raise UsageError("The disk has nothing of this model and these settings.", "Chat a little first: edge chat")
    return checks


def _comparison(path: Sequence[PlainBlock], owner: str) -> Comparison:
    return lambda backend, chunk_size: compare(backend, path, owner, chunk_size=chunk_size)
