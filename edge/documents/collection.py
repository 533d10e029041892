"""A collection of documents: files go in, passages with their places come out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from edge.database import Database
from edge.documents import db
from edge.documents.adding import LOCK_NAME, Adding
from edge.documents.base import (
    DEFAULT_COLLECTION,
    NAME_PATTERN,
    AddReport,
    CollectionInfo,
    Document,
    How,
    LoadEmbedder,
    OnAdd,
    Passage,
)  # fmt: skip
from edge.documents.meaning import Meaning
from edge.documents.search import fuse, search_words
from edge.errors import StorageError, UsageError
from edge.files import absolute_path, lock_file, make_private_dir, overwrite_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge.embedding import Embedder

__all__ = ["Collection", "check_name", "collection_names", "collections", "existing_name", "no_collection"]

FILE_NAME = "documents.db"
_ANSWERS_NAME = "answers.db"
_POOL = 50  # passages of each search that are ranked together
_MOST = 1000
_MOST_NAMED = 10


class Collection:
    """Documents that are searched together. May be used from any thread; `Collection.open` makes one.

    Attributes:
        name: of the collection.
        folder: of its files.
    """

    def __init__(
        self, name: str, folder: Path, embedder: Embedder | LoadEmbedder | str | None = None, model: str | None = None
    ) -> None:
        self.name, self.folder = name, folder
        make_private_dir(folder)
        self._db = Database(folder / FILE_NAME, db.SCHEMA)
        self._meaning = Meaning(self._db, folder, embedder, model)

    @classmethod
    def open(
        cls,
        name: str = DEFAULT_COLLECTION,
        *,
        store: Path | None = None,
        embedder: Embedder | LoadEmbedder | str | None = None,
        model: str | None = None,
    ) -> Collection:
        """Open a collection, and make it if there is none of that name. Close it, or use it in a `with` block.

        Args:
            name: letters, digits, "-" and "_"; 64 at most.
            store: folder of all collections; None is the user's.
            embedder: a loaded embedding model, which the caller closes; or a function that returns one, see `LoadEmbedder`; or
                a name, as `model`. None loads the model when it is first needed, and never downloads it.
            model: name of the embedding model, as for `edge.embedding.load_embedder`; "" is none: then passages are found by
                their words only. None is the one that the collection was made with, else the default one. If it is not on
                this device, and not named here, the collection does without.

        Raises:
            UsageError: that cannot be a name.
            StorageError: its files cannot be made or opened, or are damaged.
        """
        return cls(check_name(name), _store(store) / name, embedder, model)

    def add(
        self, paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], on_progress: OnAdd | None = None
    ) -> AddReport:
        """Read files, and those below folders, and remember the paths for `update`.

        What is unchanged is not read again (by size and time, then by content), and what is gone from a folder is removed. Each
        document is stored when it was read, so whatever ends this, a kill too, leaves the ones before; vectors that are
        missing then are computed by the next `add` or `update`.

        Args:
            paths: files and folders. What cannot be read is skipped, each file with its reason; what could not be parsed before
            is tried again, which `update` does only if it changed.
            on_progress: see `OnAdd`.

        Raises:
            UsageError: there is no path, or one of them is missing.
            CancelledError: on_progress said False.
            StorageError: the disk is full, or the collection cannot be written.
            BackendError: the embedding model failed; the words of all documents are stored by then.
        """
        given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        if not given:
            raise UsageError("There is no path to add.", "Give files or folders.")
        found = [_present(path) for path in given]
        with self._db.write() as connection:
            for path in found:
                connection.execute("INSERT OR IGNORE INTO source VALUES (?)", (db.path_key(path),))
                db.forget_refused(connection, path)
        return self._run(found, on_progress)

    def update(self, on_progress: OnAdd | None = None) -> AddReport:
        """Look at all paths that were added: read what changed, and remove documents whose files are gone.

        A path that is missing as a whole, such as a disk that is not mounted, is skipped, and its documents stay.

        Args, errors: as for `add`.
        """
        with self._db.read() as connection:
            paths = db.sources(connection)
        return self._run(paths, on_progress)

    def _run(self, paths: Sequence[Path], on_progress: OnAdd | None) -> AddReport:
        before = self.version
        try:
            return Adding(self._db, self.folder, self._meaning, on_progress).run(paths)
        finally:  # also where it was stopped after some documents
            if self.version != before:
                self._forget_answers()

    def _forget_answers(self) -> None:
        """Overwrite and delete the answers that were given from what the documents said before."""
        for suffix in ("", "-wal", "-shm"):
            file = self.answers_file.with_name(_ANSWERS_NAME + suffix)
            overwrite_file(file)
            file.unlink(missing_ok=True)

    def search(self, query: str, k: int = 8, how: How = "hybrid") -> list[Passage]:
        """Return the passages that answer a question best, best first; [] if none has anything of it.

        Args:
            query: words or a question; nothing in it is syntax.
            k: most passages, 1 to 1,000.
            how: "words" (BM25), "meaning" (nearest vectors), or "hybrid", the ranks of both in one. Without vectors "hybrid" is
                "words".

        Raises:
            UsageError: the query is empty, k or `how` is none of these, or "meaning" is asked of a collection without vectors.
            StorageError: the collection cannot be read.
            BackendError: the embedding model failed.
        """
        if not query.strip():
            raise UsageError("There is nothing to search for: the query is empty.", "Give words, or a question.")
        if how not in get_args(How):
            raise UsageError(f"how is {str(how)[:40]!r}.", f"Use one of {', '.join(get_args(How))}.")
        if not 1 <= k <= _MOST:
            raise UsageError(f"k is {k}.", f"Ask for 1 to {_MOST:,} passages.")
        vector = None if how == "words" else self._meaning.of_query(query, is_required=how == "meaning")
        n_pool = max(_POOL, 4 * k)
        with self._db.read() as connection:
            by_meaning = [] if vector is None else self._meaning.nearest(connection, vector, n_pool)
            is_alone = not by_meaning  # also while no passage has its vector yet
            by_words = [] if how == "meaning" else search_words(connection, query, n_pool, is_alone=is_alone)
            if how == "hybrid" and vector is not None:
                ranked = fuse([[number for number, _ in by_words], [number for number, _ in by_meaning]])
            else:
                ranked = by_words or by_meaning
            ranked = ranked[:k]
            found = db.passages_by_id(connection, [number for number, _ in ranked])
            similar = {} if vector is None else self._meaning.similarities(connection, vector, [number for number, _ in ranked])
        return [
            replace(found[number], score=score, similarity=similar.get(number)) for number, score in ranked if number in found
        ]

    def documents(self) -> list[Document]:
        """Return the documents, by path."""
        with self._db.read() as connection:
            return list(db.documents(connection))

    def passages(self, document_id: int) -> list[Passage]:
        """Return the passages of a document in their order; [] if there is no such document."""
        with self._db.read() as connection:
            return list(db.passages(connection, document_id))

    def remove(self, *paths: str | os.PathLike[str]) -> int:
        """Remove documents, or all below folders, and return how many. Their text and vectors are overwritten on the disk.

        The paths are no longer looked at by `update`; a file below a folder that was added comes back with it. Several at once
        take about as long as one, since the full-text index is rewritten once.

        Raises:
            StorageError: the collection cannot be written.
        """
        n_gone = 0
        with self._db.write() as connection:
            for where in map(absolute_path, paths):
                for document_id, _ in db.paths_below(connection, where):
                    db.drop_document(connection, document_id)
                    n_gone += 1
                for source in db.sources(connection):
                    if source == where or where in source.parents:
                        connection.execute("DELETE FROM source WHERE path = ?", (db.path_key(source),))
            if n_gone:
                db.optimise(connection)
        self._meaning.wipe_deleted()
        if n_gone:
            self._db.forget_deleted()
            self._db.shrink()
            self._forget_answers()
        return n_gone

    def holds(self, path: str | os.PathLike[str]) -> bool:
        """Return True if a document is at a path or below it."""
        with self._db.read() as connection:
            return any(True for _ in db.paths_below(connection, absolute_path(path)))

    def delete(self) -> None:
        """Delete the collection with all that is in it, overwritten on the disk, and close it. The documents' files stay.

        Raises:
            StorageError: another process adds documents to it, or it cannot be written.
        """
        with lock_file(self.folder / LOCK_NAME, on_wait=self._refuse_deletion):
            with self._db.write() as connection:
                db.drop_everything(connection)
            self._meaning.wipe_all()
            self._db.forget_deleted()
            self.close()
            self._forget_answers()
            for file in sorted(self.folder.iterdir()):
                file.unlink()
            self.folder.rmdir()

    def _refuse_deletion(self) -> None:
        raise StorageError(
            f"Another process adds documents to {self.name}, so nothing was deleted.",
            "Wait for it, or stop it, then try again.",
        )

    @property
    def version(self) -> str:
        """The state of its passages: another one after every change."""
        with self._db.read() as connection:
            newest = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'chunk'").fetchone()
            n_passages, _ = db.chunk_counts(connection)
        return f"{newest[0] if newest is not None else 0}-{n_passages}"

    @property
    def answers_file(self) -> Path:
        """Where answers from its documents may be stored (`edge.grounding.answers`); deleted when a document changes."""
        return self.folder / _ANSWERS_NAME

    def vector_of(self, question: str) -> NDArray[np.float32] | None:
        """Return the vector of a question, of length 1; None if the collection has no vectors, or its model is not here.

        Raises:
            BackendError: the embedding model failed.
        """
        return self._meaning.of_query(question, is_required=False)

    @property
    def info(self) -> CollectionInfo:
        """The collection in numbers."""
        with self._db.read() as connection:
            n_passages, n_vectors = db.chunk_counts(connection)
            n_documents = connection.execute("SELECT count(*) FROM document").fetchone()[0]
            model = cast(str, db.get_meta(connection, "model", ""))
            paths = tuple(db.sources(connection))
            is_words_only = bool(db.get_meta(connection, "is_words_only", 0))
        size = sum(file.stat().st_size for file in self.folder.iterdir())
        return CollectionInfo(self.name, n_documents, n_passages, n_vectors, size, model, paths, is_words_only)

    def close(self) -> None:
        """Close its files, and the model that it loaded. May be called twice."""
        self._meaning.close()
        self._db.close()

    def __enter__(self) -> Collection:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Collection {self.name}>"


def collections(store: Path | None = None) -> list[CollectionInfo]:
    """Return the collections, by name.

    Args:
        store: as for `Collection.open`.

    Raises:
        StorageError: one of them cannot be opened.
    """
    found = []
    for name in collection_names(store):
        with Collection.open(name, store=store, embedder="") as collection:
            found.append(collection.info)
    return found


def collection_names(store: Path | None = None) -> list[str]:
    """Return the names of the collections, without opening them."""
    folder = _store(store)
    if not folder.is_dir():
        return []
    return sorted(one.name for one in folder.iterdir() if re.fullmatch(NAME_PATTERN, one.name) and (one / FILE_NAME).is_file())


def check_name(name: str) -> str:
    """Return the name of a collection.

    Raises:
        UsageError: it cannot be one.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise UsageError(f"{name[:80]!r} cannot be the name of a collection.", 'Use letters, digits, "-" and "_".')
    return name


def existing_name(name: str, store: Path | None = None) -> str:
    """Return the name of a collection that is there.

    Raises:
        UsageError: it cannot be a name, or there is no such collection.
    """
    names = collection_names(store)
    if check_name(name) not in names:
        raise no_collection(name, names)
    return name


def no_collection(name: str, known: Sequence[str]) -> UsageError:
    """Return the error for a collection that is not among those that may be named."""
    hint = f"There are: {', '.join(known[:_MOST_NAMED])}." if known else "Make one: edge docs add PATH"
    return UsageError(f"There is no collection of documents {name[:80]!r}.", hint)


def _store(store: Path | None) -> Path:
    if store is not None:
        return absolute_path(store)
    from edge.config.load import load_settings

    return load_settings().paths.documents_dir


def _present(path: str | os.PathLike[str]) -> Path:
    found = absolute_path(path)
    if ".." in found.parts:  # otherwise a document keeps the name that the user knows, with links in it
        found = found.resolve()
    if not os.path.lexists(found):
        raise UsageError(f"There is no file or folder {str(path)[:200]}.", "Check the path.")
    return found
