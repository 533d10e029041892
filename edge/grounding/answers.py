"""Answers to earlier questions over a collection, given again to a question that means the same. Off by default.

Vectors alone do not tell "first on the list" from "second on the list". So a question counts as the same only if its vector is
near, it asks with the same word (who, when, why), has the same numbers, and shares most of its other words. docs/documents.md
has how often that is wrong. Each answer belongs to one state of the collection, and is gone once a document changes.
"""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge.citations import Citation
from edge.database import Database, Schema
from edge.errors import StorageError
from edge.grounding.relevance import asks_alike
from edge.types import FinishReason

if TYPE_CHECKING:
    from edge.documents import Collection

__all__ = ["MIN_SIMILARITY", "Similar", "SimilarAnswers"]

MIN_SIMILARITY = 0.92
"""Least cosine of two questions that count as the same; benchmarks/similar_answers.py calibrates it."""

_MOST = 1000  # answers of a collection, the newest ones
_SCHEMA = Schema(
    application_id=0x65646461,
    migrations=(
        """
        CREATE TABLE answer (id INTEGER PRIMARY KEY AUTOINCREMENT, version TEXT NOT NULL, key TEXT NOT NULL,
            question TEXT NOT NULL, vector BLOB NOT NULL, payload BLOB NOT NULL, created REAL NOT NULL)

        CREATE INDEX answer_key ON answer(version, key)
        """,
    ),
    title="file of answers",
    store="store of answers",
    damaged_hint="It can be done without: delete it (rm {path}).",
    item="answer",
)


class Similar(msgspec.Struct, frozen=True):
    """An answer to an earlier question.

    Attributes:
        question: the earlier question.
        text: of its answer.
        citations: passages that it rests on.
        reason: why it ended.
        total_ms: time that computing it took.
        similarity: of the two questions, as a cosine.
    """

    question: str
    text: str
    citations: tuple[Citation, ...]
    reason: FinishReason
    total_ms: float
    similarity: float = 1.0


class SimilarAnswers:
    """The answers over a collection. May be used from any thread. If the disk fails, nothing is found and nothing raised.

    Args:
        collection: with vectors; without, nothing is found.
        min_similarity: least cosine of two questions that count as the same.
    """

    def __init__(self, collection: Collection, min_similarity: float = MIN_SIMILARITY) -> None:
        self._collection, self._min = collection, min_similarity
        self._file: Path = collection.answers_file

    def find(self, key: str, question: str) -> Similar | None:
        """Return the answer to the nearest question that means the same; None if there is none.

        Args:
            key: names all else that an answer depends on: the model, the system prompt, the sampling.
            question: as the user asks it.
        """
        vector = self._collection.vector_of(question) if self._file.exists() else None
        if vector is None:
            return None
        try:
            with closing(self._open()) as database, database.read() as connection:
                sql = "SELECT question, vector, payload FROM answer WHERE version = ? AND key = ? ORDER BY id DESC"
                rows = connection.execute(sql, (self._collection.version, key)).fetchall()
        except StorageError:
            return None
        size = len(vector) * 4
        known = [row for row in rows if len(row[1]) == size]
        if not known:
            return None
        cosines = np.frombuffer(b"".join(row[1] for row in known), np.float32).reshape(len(known), -1) @ vector
        for place in np.argsort(-cosines):
            if cosines[place] < self._min:
                return None
            earlier, _, payload = known[place]
            if asks_alike(question, earlier) and (found := _read(payload)) is not None:
                return msgspec.structs.replace(found, similarity=float(cosines[place]))
        return None

    def add(self, key: str, answer: Similar) -> None:
        """Store an answer; those of earlier states of the collection are deleted.

        Args:
            key: as in `find`.
            answer: with the question that it answers.
        """
        vector = self._collection.vector_of(answer.question)
        if vector is None:
            return
        version = self._collection.version
        row = (version, key, answer.question, vector.astype(np.float32).tobytes(), msgspec.msgpack.encode(answer), time.time())
        try:
            with closing(self._open()) as database, database.write() as connection:
                connection.execute("DELETE FROM answer WHERE version <> ?", (version,))
                connection.execute(
                    "INSERT INTO answer (version, key, question, vector, payload, created) VALUES (?, ?, ?, ?, ?, ?)", row
                )
                connection.execute("DELETE FROM answer WHERE id <= (SELECT max(id) FROM answer) - ?", (_MOST,))
        except StorageError:
            pass  # it is computed again

    def _open(self) -> Database:
        """Open the file for one look at it: it is deleted whenever a document changes, here or in another process."""
        return Database(self._file, _SCHEMA)


def _read(payload: bytes) -> Similar | None:
    try:
        return msgspec.msgpack.decode(payload, type=Similar)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # of another version of edge
