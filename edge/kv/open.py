"""Opens the block store that the settings describe, and says which blocks of it a loaded model may use."""

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
_opened: weakref.WeakSet[BlockStore] = weakref.WeakSet()
"""Stores of this process: what waits in them to be written has to be forgotten, too."""


def open_block_store(settings: Settings) -> BlockStore:
    """The KV blocks on this device's disk, in `kv` below the cache directory. Never fails: see `BlockStore.problem`.

    Args:
        settings: `kv.*` and `paths.cache_dir` count.
    """
    from edge.kv.files import KEYRING
    from edge.kv.store import BlockStore

    kv = settings.kv
    store = BlockStore(
        settings.paths.kv_dir,
        budget_bytes=int(kv.budget_gb * _GB),
        min_free_bytes=int(kv.min_free_gb * _GB),
        encrypt=kv.encrypt,
        secret=KEYRING,
    )
    _opened.add(store)
    return store


def model_fingerprint(backend: Backend, artifact: Artifact, *, cache_dir: Path | None = None, exact: bool = False) -> bytes:
    """Digest of the weights and of everything else that changes what the bytes of a KV block mean.

    Args:
        backend: an open backend.
        artifact: the model it has loaded. Its weights are read through once where their hash is not known yet.
        cache_dir: where the hash is remembered.
        exact: blocks made under that promise are kept apart, see `edge.kv.cache`.

    Returns:
        32 bytes.

    Raises:
        ModelFileError: the file cannot be read.
    """
    from edge.hashes import files_sha256
    from edge.kv.blocks import fingerprint
    from edge.kv.cache import BLOCK_TOKENS

    weights = artifact.sha256 or files_sha256(artifact.weight_files, cache_dir=cache_dir)
    return fingerprint(
        {**backend.kv_identity(), "weights": weights, "chunk": min(BLOCK_TOKENS, backend.chunk_size) if exact else 0}
    )


def forget_conversations(settings: Settings, ids: Sequence[str]) -> None:
    """Delete the blocks that only these conversations used: they are deleted.

    A disk that fails leaves them to be evicted some day; that is logged, as the conversations themselves are gone already.
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
