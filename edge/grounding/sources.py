"""The collections that a loaded model answers from, opened when they are asked for, with the orders of their passages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

from edge.grounding.choose import Docs, Source
from edge.grounding.order import Orders

if TYPE_CHECKING:
    from edge.documents import Collection
    from edge.grounding.answers import SimilarAnswers

__all__ = ["Sources", "open_collection", "orders_of"]

_ORDERS_FILE = "orders.json"

Opener = Callable[[str], Source]


def open_collection(name: str, folder: Path | None = None) -> Collection:
    """Open a collection that there is.

    Args:
        name: of the collection.
        folder: of all collections; None is the user's.

    Raises:
        UsageError: that cannot be a name, or there is none of it.
        StorageError: it cannot be read.
    """
    from edge.documents import Collection
    from edge.documents.collection import existing_name

    return Collection.open(existing_name(name, folder), store=folder)


def orders_of(source: Source) -> Orders:
    """Return the orders of a collection's passages, read from its folder if it has one."""
    folder = getattr(source, "folder", None)  # which a collection of a program's own may not have
    return Orders(folder / _ORDERS_FILE if isinstance(folder, Path) else None)


class Sources:
    """See the module. May be used from any thread.

    Args:
        folder: of the collections; None is the user's.
        opener: opens a collection by its name instead.
        answer_similarity: give earlier answers again to questions that are at least so near, as a cosine; None never does.
    """

    def __init__(
        self, folder: Path | None = None, *, opener: Opener | None = None, answer_similarity: float | None = None
    ) -> None:
        self._answer_similarity = answer_similarity
        self._opener = opener or partial(open_collection, folder=folder)
        self._lock = threading.Lock()
        self._opened: dict[str, _Opened] = {}
        self._orders: dict[str, Orders] = {}

    def find(self, docs: Docs | None) -> tuple[Source, ...]:
        """Return the collections that a call names, each once.

        Raises:
            UsageError, StorageError: as `open_collection`.
        """
        if docs is None:
            return ()
        listed = cast("Sequence[str | Source]", [docs] if isinstance(docs, str | Source) else docs)
        found: dict[str, Source] = {}
        for one in listed:
            source = self._open(one) if isinstance(one, str) else one
            found.setdefault(source.name, source)
        return tuple(found.values())

    def orders(self, sources: Sequence[Source]) -> Mapping[str, Orders]:
        """Return the orders of passages of each collection, by name."""
        with self._lock:
            for source in sources:
                if source.name not in self._orders:
                    self._orders[source.name] = orders_of(source)
            return {source.name: self._orders[source.name] for source in sources}

    def answers(self, sources: Sequence[Source]) -> SimilarAnswers | None:
        """Return the earlier answers over the collection that is searched; None for several, and where they are not wanted."""
        from edge.documents import Collection

        source = sources[0] if len(sources) == 1 else None
        if self._answer_similarity is None or not isinstance(source, Collection):
            return None
        from edge.grounding.answers import SimilarAnswers

        return SimilarAnswers(source, self._answer_similarity)

    def _open(self, name: str) -> Source:
        """Return a collection by name, opened again if it was deleted or made again meanwhile."""
        with self._lock:
            known = self._opened.get(name)
            if known is not None and _mark(known.source) == known.mark:
                return known.source
            if known is not None:
                del self._opened[name]
                self._orders.pop(name, None)
                _close(known.source)
            source = self._opener(name)
            self._opened[name] = _Opened(source, _mark(source))
            return source

    def close(self) -> None:
        """Close the collections that were opened by name."""
        with self._lock:
            opened, self._opened = list(self._opened.values()), {}
        for known in opened:
            _close(known.source)


class _Opened(NamedTuple):
    """A collection, and the mark of its folder when it was opened."""

    source: Source
    mark: tuple[int, int] | None


def _mark(source: Source) -> tuple[int, int] | None:
    """Return what tells the folder of a collection from a later one of its name; None without a folder, or once it is gone."""
    folder = getattr(source, "folder", None)
    try:
        status = folder.stat() if isinstance(folder, Path) else None
    except OSError:
        return None
    return (status.st_dev, status.st_ino) if status is not None else None


def _close(source: Source) -> None:
    if callable(close := getattr(source, "close", None)):
        close()
