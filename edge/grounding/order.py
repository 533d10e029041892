"""Orders in which passages stood in prompts: the next prompt begins as one that is in the KV cache, as far as it can.

A KV prefix ends at the first token that differs. So the passages that are wanted anyway are put into the order of the earlier
prompt that shares the most of its first passages with them; what is left follows with those that were asked for most often in
front, and by document and position among equals. Source: RAGCache (arXiv 2404.12457), which keeps the same tree by documents.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from edge.errors import StorageError
from edge.files import read_record, write_private

__all__ = ["Orders"]

_MOST = 512  # orders that are remembered, the newest ones
_MAX_BYTES = 1 << 20


class _Stored(msgspec.Struct):
    orders: list[list[str]]


class Orders:
    """The orders of a collection. May be used from any thread; a file that cannot be read or written is done without.

    Args:
        file: remembers them between processes, as hashes of passages; None remembers nothing.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file, self._lock = file, threading.Lock()
        stored = read_record(file, _Stored, _MAX_BYTES) if file is not None else None
        self._orders: list[list[str]] = stored.orders[-_MOST:] if stored is not None else []

    def arrange(self, wanted: Sequence[str]) -> list[str]:
        """Return keys of passages in the order of the prompt.

        Args:
            wanted: by document and position, without repeats.
        """
        with self._lock:
            orders = list(self._orders)
        keys, n_shared = set(wanted), Counter[tuple[str, ...]]()
        for order in orders:
            n = next((n for n, key in enumerate(order) if key not in keys), len(order))
            if n:
                n_shared[tuple(order[:n])] += 1
        # The longest wins; among equals the one that was asked for most, then the newest.
        begun = max(reversed(n_shared), key=lambda found: (len(found), n_shared[found]), default=())
        uses = Counter(key for order in orders for key in order)
        rest = sorted((key for key in wanted if key not in begun), key=lambda key: -uses[key])
        return [*begun, *rest]

    def note(self, order: Iterable[str]) -> None:
        """Remember the order of a prompt."""
        with self._lock:
            self._orders = [*self._orders[1 - _MOST :], list(order)]
            data = msgspec.json.encode(_Stored(self._orders))
        if self._file is not None:
            try:
                write_private(self._file, data)
            except StorageError:
                pass  # only speed is lost

    @property
    def frequent(self) -> list[list[str]]:
        """Orders that came more than once, the most frequent first."""
        with self._lock:
            counted = Counter(tuple(order) for order in self._orders).most_common()
        return [list(order) for order, n in counted if n > 1]

    @property
    def popular(self) -> list[str]:
        """Keys by how often they were in prompts, the most frequent first."""
        with self._lock:
            return [key for key, _ in Counter(key for order in self._orders for key in order).most_common()]
