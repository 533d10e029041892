"""One run over files: what is new is read, what changed is read again, what is gone is removed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from edge.database import Database
from edge.documents import db
from edge.documents.base import AddProgress, AddReport, OnAdd, Skipped, path_text
from edge.documents.chunks import split
from edge.documents.meaning import Meaning
from edge.documents.reading import FileReader
from edge.documents.walk import Found, walk
from edge.errors import CancelledError, StorageError
from edge.files import lock_file, open_file
from edge.units import one_line, reason

__all__ = ["LOCK_NAME", "Adding"]

LOCK_NAME = "lock"
"""Of the file that whoever adds to a collection holds, and whoever deletes it."""

_HASHED_BYTES = 1 << 20


class Adding:
    """One run; use it once.

    Args:
        database: of the collection.
        folder: of its files.
        meaning: its vectors.
        on_progress: see `OnAdd`.
    """

    def __init__(self, database: Database, folder: Path, meaning: Meaning, on_progress: OnAdd | None) -> None:
        self._db, self._folder, self._meaning, self._on_progress = database, folder, meaning, on_progress
        self._n_added = self._n_unchanged = self._n_removed = 0
        self._skipped: list[Skipped] = []
        self._has_replaced = False
        self._known: dict[Path, db.File] = {}
        self._refused: dict[tuple[Path, int, int], str] = {}

    def run(self, paths: Sequence[Path]) -> AddReport:
        """Read what is new or changed below paths, and remove what is gone from there. Errors are those of `Collection.add`."""
        self._check_there()
        with lock_file(self._folder / LOCK_NAME, on_wait=lambda: self._report(AddProgress("wait", 0, 0))):
            self._check_there()
            self._meaning.remember()
            try:
                self._read_all(paths)
            finally:
                self._forget()
            self._meaning.embed_waiting(lambda done, total: self._report(AddProgress("embed", done, total)))
        with self._db.read() as connection:
            n_passages, n_vectors = db.chunk_counts(connection)
        return AddReport(self._n_added, self._n_unchanged, self._n_removed, self._skipped, n_passages, n_vectors)

    def _check_there(self) -> None:
        """Raise a StorageError if another process deleted the collection, whose files are open here yet."""
        if not self._folder.is_dir():
            raise StorageError("The collection was deleted meanwhile.", "Add its documents again: edge docs add PATH")

    def _report(self, progress: AddProgress) -> None:
        if self._on_progress is not None and self._on_progress(progress) is False:
            raise CancelledError("Adding documents was stopped; those that were read are in the collection.")

    def _read_all(self, paths: Sequence[Path]) -> None:
        here = [path for path in paths if self._is_here(path)]
        with self._db.read() as connection:
            self._known, self._refused = db.files(connection), db.refused(connection)
        known = {path: (file.size, file.mtime, file.kind) for path, file in self._known.items()}
        found: list[Found] = []
        for one in walk((path for path in here if os.path.lexists(path)), known):
            if isinstance(one, Found):
                found.append(one)
            else:
                self._skipped.append(one)
        self._remove_gone(here, {one.path for one in found})
        with FileReader() as reader:
            for number, file in enumerate(found):
                self._report(AddProgress("read", number, len(found), file.path))
                self._read(reader, file)
        self._report(AddProgress("read", len(found), len(found)))

    def _is_here(self, path: Path) -> bool:
        """Return True if a path can be looked at. One that is missing as a whole keeps its documents, unless it was a file."""
        with self._db.read() as connection:
            known = list(db.paths_below(connection, path))
        was_file = [found for _, found in known] == [path]
        if not os.path.lexists(path):
            if was_file and path.parent.is_dir():
                return True
            self._skipped.append(Skipped(path, "it is missing; its documents are kept"))
            return False
        if known and not was_file and path.is_dir() and not any(path.iterdir()):
            self._skipped.append(Skipped(path, "the folder is empty now, as of a disk that is gone; its documents are kept"))
            return False
        return True

    def _remove_gone(self, paths: Sequence[Path], found: set[Path]) -> None:
        kept = {one.path for one in self._skipped}
        with self._db.write() as connection:
            # What another path stands for is that one's matter, such as a hidden file that was named.
            kept |= set(db.sources(connection)).difference(paths)
            for path in paths:
                for document_id, known in db.paths_below(connection, path):
                    if known not in found and kept.isdisjoint((known, *self._parents_below(known, path))):
                        db.drop_document(connection, document_id)
                        self._n_removed += 1
                if not os.path.lexists(path):
                    connection.execute("DELETE FROM source WHERE path = ?", (db.path_key(path),))

    @staticmethod
    def _parents_below(path: Path, top: Path) -> list[Path]:
        return [parent for parent in path.parents if parent == top or top in parent.parents]

    def _read(self, reader: FileReader, file: Found) -> None:
        known = self._known.get(file.path)
        if known is not None and (known.size, known.mtime) == (file.size, file.mtime):
            self._n_unchanged += 1
            return
        if (why := self._refused.get((file.path, file.size, file.mtime))) is not None:
            self._skipped.append(Skipped(file.path, why))
            return
        try:
            digest = _hash(file.path)
        except OSError as error:
            self._skipped.append(Skipped(file.path, f"it cannot be opened: {reason(error)}"))
            return
        if known is not None and known.hash == digest:
            with self._db.write() as connection:
                db.touch(connection, known.document_id, file.mtime)
            self._n_unchanged += 1
            return
        answer = reader.read(file.path, file.kind)
        if answer.refused:
            self._skipped.append(Skipped(file.path, answer.refused))
            if answer.is_lasting:
                with self._db.write() as connection:
                    db.put_refused(connection, file.path, file.size, file.mtime, answer.refused)
            return
        chunks = split(answer.blocks, *self._meaning.sizing())
        title = answer.title or one_line(path_text(Path(file.path.name)))
        with self._db.write() as connection:
            db.put_document(connection, file.path, title, file.kind, file.size, file.mtime, digest, chunks)
            db.forget_refused(connection, file.path)
        self._n_added += 1
        self._has_replaced |= known is not None

    def _forget(self) -> None:
        """Overwrite what was removed or replaced."""
        if self._n_removed or self._has_replaced:
            with self._db.write() as connection:
                db.optimise(connection)
            self._db.forget_deleted()
            self._db.shrink()
        self._meaning.wipe_deleted()


def _hash(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open_file(path) as file:
        while part := file.read(_HASHED_BYTES):
            digest.update(part)
    return digest.digest()
