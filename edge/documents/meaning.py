"""Passages by meaning: the embedding model of a collection, and the vectors that it made."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, cast

from edge.database import Database
from edge.documents import db, vectors
from edge.documents.base import LoadEmbedder
from edge.documents.chunks import CountTokens, estimate_tokens
from edge.errors import ModelNotFoundError, UsageError
from edge.files import overwrite_file
from edge.forks import ProcessLock
from edge.units import quoted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.embedding import Embedder

__all__ = ["Meaning"]

_MOST_DEAD = 1000  # rows of deleted passages that are not worth a new file
_MOVED_AT_ONCE = 8192
_AT_ONCE = 32  # passages between two commits
_MOST_TOKENS = 320
_HEADING_TOKENS = 40
_USUAL_TOKENS = 256


class Meaning:
    """The vectors of a collection. May be used from any thread.

    Args:
        database: of the collection.
        folder: of its files.
        embedder, model: as for `Collection.open`.
    """

    def __init__(
        self, database: Database, folder: Path, embedder: Embedder | LoadEmbedder | str | None, model: str | None
    ) -> None:
        self._db, self._folder = database, folder
        self._name = _source(embedder if isinstance(embedder, str) else model)
        self._embedder: Embedder | None = None
        self._load: LoadEmbedder = self._load_own
        self._own: Embedder | None = None  # loaded here, so closed here
        if callable(embedder):
            self._load = embedder
        elif embedder is not None and not isinstance(embedder, str):
            self._embedder, self._name = embedder, embedder.name
        self._lock = ProcessLock()
        self._is_missing = False
        self._rows: tuple[tuple[int, int], vectors.Rows] | None = None

    def sizing(self) -> tuple[int, CountTokens]:
        """Return the most tokens of a passage, and how they are counted."""
        embedder = self.embedder()
        if embedder is None:
            return _USUAL_TOKENS - _HEADING_TOKENS, estimate_tokens
        return max(16, min(embedder.info.n_ctx, _MOST_TOKENS) - _HEADING_TOKENS), embedder.count_tokens

    def embedder(self) -> Embedder | None:
        """Return the embedding model, loaded if it is not yet; None if there is none.

        Raises:
            ModelNotFoundError: one was named that is not on this device.
            EdgeError: as `edge.embedding.load_embedder`.
        """
        if self._name == "":
            return None
        with self._lock:
            if self._embedder is None and not self._is_missing:
                with self._db.read() as connection:
                    is_words_only = self._name is None and db.get_meta(connection, "is_words_only", 0)
                    source = cast(str, db.get_meta(connection, "model_source", ""))
                self._embedder = None if is_words_only else self._load(self._name or source or None)
                self._is_missing = self._embedder is None
            return self._embedder

    def _load_own(self, name: str | None) -> Embedder | None:
        from edge.embedding import load_embedder

        try:
            self._own = load_embedder(name, download=False)
        except ModelNotFoundError:
            if self._name is not None:
                raise
        return self._own

    def remember(self) -> None:
        """Note that the collection is to have no vectors, or that it is, if that was said when it was opened."""
        if self._name is not None:
            with self._db.write() as connection:
                n_vectors = db.chunk_counts(connection)[1]
                db.set_meta(connection, "is_words_only", int(not self._name and not n_vectors))

    def of_query(self, query: str, *, is_required: bool) -> NDArray[np.float32] | None:
        """Return the vector of a question, of length 1; None if the collection has no vectors, or no model is here.

        Raises:
            UsageError: `is_required`, and there is none; or the vectors are of another model.
        """
        with self._db.read() as connection:
            own = db.get_meta(connection, "model", "")
        embedder = self.embedder() if own else None
        if embedder is None:
            if is_required:
                why = f"its model {own} is not on this device" if own else "none were computed"
                raise UsageError(
                    f"There are no vectors to search by meaning: {why}.",
                    "edge docs update fetches the model and computes them; how='words' needs none.",
                )
            return None
        if embedder.name != own:
            raise UsageError(
                f"The vectors of this collection are of {own}, and the question would be of {embedder.name}.",
                f"Open it with {own}, or compute them again: edge docs update --model {quoted(embedder.name)}",
            )
        vector: NDArray[np.float32] = _unit(embedder.embed(query, truncate=True).vectors)[0]
        return vector

    def nearest(self, connection: sqlite3.Connection, vector: NDArray[np.float32], limit: int) -> list[tuple[int, float]]:
        """Return numbers and cosines of the passages nearest to a vector, nearest first."""
        slots, scores = vectors.nearest(self._mapped(connection, len(vector)), vector, limit)
        found = []
        for slot, score in zip(slots, scores, strict=True):
            row = connection.execute("SELECT id FROM chunk WHERE slot = ?", (slot,)).fetchone()
            if row is not None:
                found.append((row[0], score))
        return found

    def similarities(
        self, connection: sqlite3.Connection, vector: NDArray[np.float32], chunk_ids: Iterable[int]
    ) -> dict[int, float]:
        """Return the cosines of passages with a vector, by number; those without a vector are missing."""
        rows = self._mapped(connection, len(vector))
        found = {}
        for chunk_id in chunk_ids:
            row = connection.execute("SELECT slot FROM chunk WHERE id = ?", (chunk_id,)).fetchone()
            if row is not None and row[0] is not None:
                found[chunk_id] = float(rows.values[row[0]] @ vector)
        return found

    def embed_waiting(self, on_done: Callable[[int, int], None]) -> None:
        """Compute the vectors that are missing, and store some at a time.

        Args:
            on_done: called with (vectors done, vectors to compute) after each time. May raise to stop.
        """
        sql = "SELECT count(*) FROM chunk WHERE slot IS NULL"
        with self._db.read() as connection:
            n_waiting = connection.execute(sql).fetchone()[0]
            is_whole = self._is_whole(connection)
        if not n_waiting and is_whole and self._name is None:
            return  # without loading the model
        embedder = self.embedder()
        if embedder is None:
            return
        self._begin(embedder)
        with self._db.read() as connection:
            n_waiting = connection.execute(sql).fetchone()[0]
        n_done = 0
        sql = "SELECT id, heading, text FROM chunk WHERE slot IS NULL ORDER BY id LIMIT ?"
        while n_done < n_waiting:
            on_done(n_done, n_waiting)
            with self._db.read() as connection:
                batch = connection.execute(sql, (_AT_ONCE,)).fetchall()
            if not batch:  # another process computed them
                break
            texts = [f"{heading}\n{text}" if heading else text for _, heading, text in batch]
            self._store([chunk_id for chunk_id, _, _ in batch], _unit(embedder.embed(texts, truncate=True).vectors))
            n_done += len(batch)
        on_done(n_done, n_done)

    def _begin(self, embedder: Embedder) -> None:
        """Note the model. If the vectors are of another one, or their file is damaged, they are all computed again."""
        with self._db.write() as connection:
            if db.get_meta(connection, "model", "") == embedder.name and self._is_whole(connection):
                return
            generation = int(db.get_meta(connection, "generation", 0))
            connection.execute("UPDATE chunk SET slot = NULL WHERE slot IS NOT NULL")
            connection.execute("DELETE FROM wiped")
            vectors.remove(self._path(generation + 1))  # of a run that was killed
            for key, value in (
                ("model", embedder.name),
                ("model_source", self._name or ""),
                ("n_dims", embedder.info.n_dims),
                ("generation", generation + 1),
                ("n_slots", 0),
            ):
                db.set_meta(connection, key, value)

    def _store(self, chunk_ids: list[int], found: NDArray[np.float32]) -> None:
        with self._db.write() as connection:
            n_slots = int(db.get_meta(connection, "n_slots", 0))
            # Without what was removed, or computed by another process, meanwhile.
            sql = "SELECT 1 FROM chunk WHERE id = ? AND slot IS NULL"
            waiting = [number for number, chunk_id in enumerate(chunk_ids) if connection.execute(sql, (chunk_id,)).fetchone()]
            # In the transaction: no other process appends meanwhile, and what it wrote counts only if this is committed.
            vectors.append(self._path(int(db.get_meta(connection, "generation", 0))), n_slots, found[waiting])
            connection.executemany(
                "UPDATE chunk SET slot = ? WHERE id = ?",
                [(n_slots + place, chunk_ids[number]) for place, number in enumerate(waiting)],
            )
            db.set_meta(connection, "n_slots", n_slots + len(waiting))

    def wipe_deleted(self) -> None:
        """Overwrite the vectors of deleted passages. If they are most of a file, the others move to a new one."""
        with self._db.write() as connection:
            self._drop_stale(connection)
            generation, n_slots, n_dims = (int(db.get_meta(connection, key, 0)) for key in ("generation", "n_slots", "n_dims"))
            vectors.trim(self._path(generation), n_slots, n_dims)
            slots = [row[0] for row in connection.execute("SELECT slot FROM wiped")]
            if slots:
                vectors.wipe(self._path(generation), slots, n_dims)
                connection.execute("DELETE FROM wiped")
            n_vectors = db.chunk_counts(connection)[1]
            if n_slots > 2 * n_vectors + _MOST_DEAD:
                self._move(connection)

    def wipe_all(self) -> None:
        """Overwrite all vectors, of a collection that is deleted."""
        with self._db.write():
            for file in self._folder.glob("vectors-*"):
                overwrite_file(file)

    def _drop_stale(self, connection: sqlite3.Connection) -> None:
        """Delete files that are no longer used. Not at once: a search that began before may open them yet."""
        generation = int(db.get_meta(connection, "generation", 0))
        for file in self._folder.glob("vectors-*.f32"):
            if file != self._path(generation):
                vectors.remove(file)

    def _move(self, connection: sqlite3.Connection) -> None:
        generation, n_slots, n_dims = (int(db.get_meta(connection, key, 0)) for key in ("generation", "n_slots", "n_dims"))
        rows = vectors.open_rows(self._path(generation), n_slots, n_dims)
        # By slot, so that a new number is never one that another passage still has.
        found = connection.execute("SELECT slot, id FROM chunk WHERE slot IS NOT NULL ORDER BY slot").fetchall()
        vectors.remove(self._path(generation + 1))  # of a run that was killed here
        for first in range(0, len(found), _MOVED_AT_ONCE):
            part = found[first : first + _MOVED_AT_ONCE]
            vectors.append(self._path(generation + 1), first, rows.values[[slot for slot, _ in part]])
        connection.executemany(
            "UPDATE chunk SET slot = ? WHERE id = ?", [(number, chunk_id) for number, (_, chunk_id) in enumerate(found)]
        )
        db.set_meta(connection, "generation", generation + 1)
        db.set_meta(connection, "n_slots", len(found))

    def close(self) -> None:
        """Close the model that was loaded here. May be called twice."""
        with self._lock:
            own, self._own, self._embedder, self._rows = self._own, None, None, None
        if own is not None:
            own.close()

    def _is_whole(self, connection: sqlite3.Connection) -> bool:
        """Return True unless the file of vectors is missing or too short."""
        n_slots, n_dims, generation = (int(db.get_meta(connection, key, 0)) for key in ("n_slots", "n_dims", "generation"))
        return vectors.is_whole(self._path(generation), n_slots, n_dims)

    def _mapped(self, connection: sqlite3.Connection, n_dims: int) -> vectors.Rows:
        generation, n_slots = (int(db.get_meta(connection, key, 0)) for key in ("generation", "n_slots"))
        held = self._rows
        if held is None or held[0] != (generation, n_slots):
            held = self._rows = (generation, n_slots), vectors.open_rows(self._path(generation), n_slots, n_dims)
        return held[1]

    def _path(self, generation: int) -> Path:
        return self._folder / f"vectors-{generation}.f32"


def _source(name: str | None) -> str | None:
    """Return the name of a model as it is remembered: a path is absolute."""
    return str(Path(name).absolute()) if name and (os.sep in name or Path(name).exists()) and ":" not in name else name


def _unit(found: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    unit: NDArray[np.float32] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return unit
