"""The SQLite file of a collection: documents, passages, their full-text index, and the rows of their vectors.

The text of passages is not kept in the full-text index, so whoever deletes one hands in its words once more.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge.database import Database, Schema
from edge.documents.base import Document, Passage

if TYPE_CHECKING:
    from edge.documents.chunks import Chunk

__all__ = ["SCHEMA", "Database", "File", "indexed", "path_key"]

MIGRATIONS = (
    # Version 1. A slot is the row of a passage's vector; it is never used twice in one file of vectors.
    # wiped: slots of deleted passages whose numbers are not overwritten yet. refused: files that could not be parsed.
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID

    CREATE TABLE source (path BLOB PRIMARY KEY) WITHOUT ROWID

    CREATE TABLE refused (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime INTEGER NOT NULL, reason TEXT NOT NULL)
        WITHOUT ROWID

    CREATE TABLE document (
        id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, title TEXT NOT NULL, kind TEXT NOT NULL,
        size INTEGER NOT NULL, mtime INTEGER NOT NULL, hash BLOB NOT NULL)

    CREATE TABLE chunk (
        id INTEGER PRIMARY KEY AUTOINCREMENT, document INTEGER NOT NULL REFERENCES document(id), position INTEGER NOT NULL,
        text TEXT NOT NULL, heading TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, page INTEGER NOT NULL,
        slot INTEGER)

    CREATE UNIQUE INDEX chunk_place ON chunk(document, position)

    CREATE UNIQUE INDEX chunk_slot ON chunk(slot) WHERE slot IS NOT NULL

    CREATE INDEX chunk_waiting ON chunk(id) WHERE slot IS NULL

    CREATE TABLE wiped (slot INTEGER PRIMARY KEY)

    CREATE VIRTUAL TABLE chunk_fts USING fts5(heading, text, content='', tokenize='porter unicode61 remove_diacritics 2')
    """,
    # Version 2: documents are counted without reading their passages.
    """
    CREATE INDEX chunk_waiting_of ON chunk(document, slot) WHERE slot IS NULL
    """,
)

SCHEMA = Schema(
    application_id=0x65646463,
    migrations=MIGRATIONS,
    title="collection of documents",
    store="collection",
    damaged_hint="It can be made again from its files: move it aside (mv {path} {damaged}), and add them again.",
    item="passage",
)

# Scripts without spaces between words, which the index would take for one word a sentence.
_UNSPACED = re.compile(
    r"([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])"
)
_PASSAGE = """chunk.id, chunk.document, position, text, heading, first, last, page, path, title
    FROM chunk JOIN document ON document.id = chunk.document"""


def indexed(text: str) -> str:
    """Return a text as it is indexed: every character of a script without spaces is a word."""
    return _UNSPACED.sub(r" \1 ", text)


def path_key(path: Path) -> bytes:
    """Return a path as it is stored: names of files need not be UTF-8."""
    return os.fsencode(path)


@dataclass(frozen=True, slots=True)
class File:
    """What is stored about a file that was read.

    Attributes:
        document_id: of its document.
        size: in bytes; mtime, in nanoseconds; kind, of its format; hash, SHA-256 of its content.
    """

    document_id: int
    size: int
    mtime: int
    kind: str
    hash: bytes


def get_meta(db: sqlite3.Connection, key: str, default: str | int) -> str | int:
    """Return a value of the collection."""
    row = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return default if row is None else row[0]


def set_meta(db: sqlite3.Connection, key: str, value: str | int) -> None:
    """Store a value of the collection."""
    db.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value))


def files(db: sqlite3.Connection) -> dict[Path, File]:
    """Return what is stored about each file that was read."""
    rows = db.execute("SELECT path, id, size, mtime, kind, hash FROM document")
    return {_path(path): File(*rest) for path, *rest in rows}


def refused(db: sqlite3.Connection) -> dict[tuple[Path, int, int], str]:
    """Return the files that could not be parsed: (path, size, mtime) -> why."""
    return {(_path(path), size, mtime): why for path, size, mtime, why in db.execute("SELECT * FROM refused")}


def touch(db: sqlite3.Connection, document_id: int, mtime: int) -> None:
    """Note that a file has the same content and another time."""
    db.execute("UPDATE document SET mtime = ? WHERE id = ?", (mtime, document_id))


def put_document(
    db: sqlite3.Connection, path: Path, title: str, kind: str, size: int, mtime: int, digest: bytes, chunks: Sequence[Chunk]
) -> int:
    """Store a document with its passages, in place of what was stored of that file, and return its number."""
    key = path_key(path)
    row = db.execute("SELECT id FROM document WHERE path = ?", (key,)).fetchone()
    if row is None:
        values = (key, title, kind, size, mtime, digest)
        document_id = db.execute(
            "INSERT INTO document (path, title, kind, size, mtime, hash) VALUES (?, ?, ?, ?, ?, ?)", values
        ).lastrowid
        assert document_id is not None
    else:
        document_id = row[0]
        drop_chunks(db, document_id)
        db.execute(
            "UPDATE document SET title = ?, kind = ?, size = ?, mtime = ?, hash = ? WHERE id = ?",
            (title, kind, size, mtime, digest, document_id),
        )
    for position, chunk in enumerate(chunks):
        chunk_id = db.execute(
            "INSERT INTO chunk (document, position, text, heading, first, last, page) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (document_id, position, chunk.text, chunk.heading, chunk.first, chunk.last, chunk.page),
        ).lastrowid
        db.execute(
            "INSERT INTO chunk_fts (rowid, heading, text) VALUES (?, ?, ?)",
            (chunk_id, indexed(chunk.heading), indexed(chunk.text)),
        )
    return int(document_id)


def drop_chunks(db: sqlite3.Connection, document_id: int) -> None:
    """Delete the passages of a document."""
    rows = db.execute("SELECT id, heading, text, slot FROM chunk WHERE document = ?", (document_id,)).fetchall()
    db.executemany(
        "INSERT INTO chunk_fts (chunk_fts, rowid, heading, text) VALUES ('delete', ?, ?, ?)",
        [(chunk_id, indexed(heading), indexed(text)) for chunk_id, heading, text, _ in rows],
    )
    db.executemany("INSERT INTO wiped VALUES (?)", [(slot,) for *_, slot in rows if slot is not None])
    db.execute("DELETE FROM chunk WHERE document = ?", (document_id,))


def drop_document(db: sqlite3.Connection, document_id: int) -> None:
    """Delete a document with its passages."""
    drop_chunks(db, document_id)
    db.execute("DELETE FROM document WHERE id = ?", (document_id,))


def drop_everything(db: sqlite3.Connection) -> None:
    """Delete all documents with their passages, and what was added."""
    db.execute("INSERT INTO chunk_fts (chunk_fts) VALUES ('delete-all')")
    for table in ("chunk", "document", "source", "refused", "wiped"):
        db.execute(f"DELETE FROM {table}")  # noqa: S608 (a name from above)


def documents(db: sqlite3.Connection) -> Iterator[Document]:
    """Yield the documents by path."""
    rows = db.execute(
        """SELECT id, path, title, kind, size, mtime, (SELECT count(*) FROM chunk WHERE chunk.document = document.id),
        (SELECT count(*) FROM chunk WHERE chunk.document = document.id AND slot IS NULL) FROM document ORDER BY path"""
    )
    for document_id, path, title, kind, size, mtime, n_passages, n_waiting in rows:
        yield Document(document_id, _path(path), title, kind, size, mtime / 1e9, n_passages, n_passages - n_waiting)


def paths_below(db: sqlite3.Connection, path: Path) -> Iterator[tuple[int, Path]]:
    """Yield number and path of each document that is a path or below it."""
    key = path_key(path)
    inside = key.rstrip(b"/") + b"/"
    rows = db.execute(
        "SELECT id, path FROM document WHERE path = ? OR substr(path, 1, ?) = ? ORDER BY path", (key, len(inside), inside)
    )
    for document_id, found in rows.fetchall():
        yield document_id, _path(found)


def put_refused(db: sqlite3.Connection, path: Path, size: int, mtime: int, why: str) -> None:
    """Remember that a file could not be parsed, and why."""
    db.execute("INSERT OR REPLACE INTO refused VALUES (?, ?, ?, ?)", (path_key(path), size, mtime, why))


def forget_refused(db: sqlite3.Connection, path: Path) -> None:
    """Forget which files at a path or below it could not be parsed."""
    key = path_key(path)
    inside = key.rstrip(b"/") + b"/"
    db.execute("DELETE FROM refused WHERE path = ? OR substr(path, 1, ?) = ?", (key, len(inside), inside))


def passages(db: sqlite3.Connection, document_id: int) -> Iterator[Passage]:
    """Yield the passages of a document in their order."""
    sql = f"SELECT {_PASSAGE} WHERE chunk.document = ? ORDER BY position"
    yield from (_passage(row, 0.0) for row in db.execute(sql, (document_id,)))


def passages_by_id(db: sqlite3.Connection, chunk_ids: Iterable[int]) -> dict[int, Passage]:
    """Return passages by their numbers; those that are gone are missing."""
    sql = f"SELECT {_PASSAGE} WHERE chunk.id = ?"
    found = (db.execute(sql, (chunk_id,)).fetchone() for chunk_id in chunk_ids)
    return {row[0]: _passage(row, 0.0) for row in found if row is not None}


def chunk_counts(db: sqlite3.Connection) -> tuple[int, int]:
    """Return the numbers of passages and of those with a vector."""
    # Two counts over indexes; one over both columns would read all texts.
    n_passages: int = db.execute("SELECT count(*) FROM chunk").fetchone()[0]
    n_waiting: int = db.execute("SELECT count(*) FROM chunk WHERE slot IS NULL").fetchone()[0]
    return n_passages, n_passages - n_waiting


def sources(db: sqlite3.Connection) -> list[Path]:
    """Return the files and folders that were added."""
    return [_path(row[0]) for row in db.execute("SELECT path FROM source ORDER BY path")]


def optimise(db: sqlite3.Connection) -> None:
    """Rewrite the full-text index without the words of deleted passages, which stay in it until then."""
    db.execute("INSERT INTO chunk_fts (chunk_fts) VALUES ('optimize')")


def _path(key: bytes) -> Path:
    return Path(os.fsdecode(key))


def _passage(row: tuple[int, int, int, str, str, int, int, int, bytes, str], score: float) -> Passage:
    chunk_id, document_id, position, text, heading, first, last, page, path, title = row
    lines = (first, last) if first else None
    return Passage(_path(path), title, text, lines, page or None, heading, score, chunk_id, document_id, position)
