"""Open the block store of the settings, and fingerprint a loaded model."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import StorageError

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.config.schema import Settings
    from edge.formats.artifact import Artifact
    from edge.kv.store import BlockStore

__all__ = ["forget_conversations", "model_fingerprint", "open_block_store"]

_log = logging.getLogger("edge.kv")
_GB = 1_000_000_000
_MAX_GB = 1e9
_DAY_S = 86_400.0
_opened: weakref.WeakSet[BlockStore] = weakref.WeakSet()
"""Stores of this process, whose queues have to be forgotten too."""


def open_block_store(settings: Settings) -> BlockStore:
    """Open the block store `kv` below the cache directory. Never fails: see `BlockStore.problem`.

    Args:
        settings: `kv.*` and `paths.cache_dir` are used.
    """
    from edge.kv.keys import KEYRING
    from edge.kv.store import BlockStore, StoreOptions

    kv = settings.kv
    options = StoreOptions(
        _size(kv.budget_gb),
        _size(kv.min_free_gb),
        max_age_s=None if kv.max_age_days is None else kv.max_age_days * _DAY_S,
        model_budget_bytes=None if kv.model_budget_gb is None else _size(kv.model_budget_gb),
        model_budgets={name: _size(gb) for name, gb in kv.model_budgets_gb.items()},
        max_written_bytes=None if kv.max_writes_gb_per_day is None else _size(kv.max_writes_gb_per_day),
        encrypt=kv.encrypt,
        secret=KEYRING,
        read_timeout_s=kv.read_timeout_ms / 1000,
    )
    store = BlockStore(settings.paths.kv_dir, options)
    _opened.add(store)
    return store


def _size(gb: float) -> int:
    """Return a size of the settings in bytes; a program's own settings may hold any number."""
    return int(min(gb, _MAX_GB) * _GB) if gb > 0 else 0


def model_fingerprint(
    backend: Backend,
    artifact: Artifact,
    *,
    cache_dir: Path | None = None,
    exact: bool = False,
    across_engines: bool = False,
) -> bytes:
    """Return a digest of the weights and everything else that changes the meaning of KV bytes.

    Args:
        backend: an open backend.
        artifact: the model it has loaded. Its weights are read once if their hash is not known yet.
        cache_dir: folder that caches the hash.
        exact: blocks made under that promise are kept apart, see `edge.kv.cache`.
        across_engines: the same for all engines whose blocks have one layout (`Backend.neutral`), where `exact` is false.

    Returns:
        32 bytes.

    Raises:
        ModelFileError: the file cannot be read.
    """
    from edge.hashes import files_sha256
    from edge.kv.blocks import fingerprint
    from edge.kv.cache import BLOCK_TOKENS

    weights = artifact.sha256 or files_sha256(artifact.weight_files, cache_dir=cache_dir)
    identity = backend.kv_identity()
    if across_engines and backend.neutral is not None and not exact:
        identity = backend.neutral.common(identity)
    return fingerprint({**identity, "weights": weights, "chunk": min(BLOCK_TOKENS, backend.chunk_size) if exact else 0})


def forget_conversations(settings: Settings, ids: Sequence[str]) -> None:
    """Delete the blocks that only these deleted conversations used.

    If the disk fails, they stay until they are evicted; that is logged, since the conversations themselves are gone already.
    """
    if not settings.paths.kv_dir.is_dir():
        return
    running = [store for store in _opened if store.directory == settings.paths.kv_dir and store.problem is None]
    with open_block_store(settings) as last:
        for store in (*running, last):
            for id in ids:
                try:
                    store.forget(id)
                except StorageError as error:
                    if store is last:
                        _log.warning("The KV blocks of conversation %s could not be deleted: %s", id, error)
