"""Values of the documents: what is found, what is there, and what adding files did."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edge.citations import place_text

if TYPE_CHECKING:
    from edge.embedding import Embedder

__all__ = [
    "DEFAULT_COLLECTION", "NAME_PATTERN", "AddProgress", "AddReport", "Block", "CollectionInfo", "Document", "How",
    "LoadEmbedder", "OnAdd", "Passage", "Skipped", "path_text", "shown_path",
]  # fmt: skip

DEFAULT_COLLECTION = "docs"
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""Of a collection, which is also the name of its folder."""
HEADING_SIGN = " > "

How = Literal["hybrid", "words", "meaning"]


def path_text(path: Path) -> str:
    """Return a path as text that can be written anywhere: bytes that are not UTF-8 become "\\xff"."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def shown_path(path: Path) -> str:
    """Return a path as a line for a terminal: what does not print, such as a line end or an escape, becomes "\\n", "\\x1b"."""
    text = path_text(path)
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a file as its reader saw it: a paragraph, a list item, a table row, a line of code.

    Attributes:
        text: of the block, without line end; never blank.
        first, last: its lines, from 1; 0 where the format has none.
        page: from 1; 0 where the format has none.
        path: the headings, or names of classes and functions, that it is below, outermost first.
        begins: a new unit (a section, function or page) begins here; chunks prefer to end before it.
        is_verbatim: the text is that of the lines, so blank lines between two blocks belong to it.
    """

    text: str
    first: int = 0
    last: int = 0
    page: int = 0
    path: tuple[str, ...] = ()
    begins: bool = False
    is_verbatim: bool = True


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a document, with its place.

    Attributes:
        document: the file, absolute.
        title: of the document.
        text: of the passage.
        lines: first and last line, from 1; None where the format has none (PDF, DOCX).
        page: from 1; None where the format has none.
        heading: the headings it is below, "Guide > Install"; "" if none.
        score: higher is better; comparable only within one search. 0 where nothing was searched for.
        chunk_id: of the passage; it changes when the document does.
        document_id: of the document; it stays.
        position: within the document, from 0.
        similarity: cosine with the question, -1 to 1; None if one of them has no vector.
    """

    document: Path
    title: str
    text: str
    lines: tuple[int, int] | None
    page: int | None
    heading: str
    score: float
    chunk_id: int
    document_id: int
    position: int
    similarity: float | None = None

    @property
    def citation(self) -> str:
        """File name and place: "guide.md:12-18", "manual.pdf, page 4"."""
        return place_text(shown_path(Path(self.document.name)), self.lines, self.page)


@dataclass(frozen=True, slots=True)
class Document:
    """A file of a collection.

    Attributes:
        document_id: stays the same while the file changes.
        path: absolute.
        title: its first heading or its own title, else the name of the file.
        kind: "text", "markdown", "code", "html", "pdf" or "docx".
        size_bytes: of the file when it was read.
        modified: when it was last changed, in unix seconds.
        n_passages: passages it was split into.
        n_vectors: of them that have a vector.
    """

    document_id: int
    path: Path
    title: str
    kind: str
    size_bytes: int
    modified: float
    n_passages: int
    n_vectors: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was not read.

    Attributes:
        path: of the file or folder.
        reason: why, as the end of a sentence: "it is a binary file".
    """

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class AddReport:
    """What adding or updating did.

    Attributes:
        added: documents that are new, or whose content was replaced.
        unchanged: documents that are as they were.
        removed: documents whose files are gone.
        skipped: what was not read, and why. A document that cannot be read any more keeps its earlier passages.
        n_passages: passages in the collection now.
        n_vectors: of them that have a vector. Fewer than n_passages if there is no embedding model, or it was stopped.
    """

    added: int
    unchanged: int
    removed: int
    skipped: list[Skipped]
    n_passages: int = 0
    n_vectors: int = 0


@dataclass(frozen=True, slots=True)
class AddProgress:
    """How far adding is.

    Attributes:
        phase: "wait" for another process that adds, "read" files, "embed" passages.
        done, total: files or passages.
        path: the file that is read next; None in other phases.
    """

    phase: Literal["wait", "read", "embed"]
    done: int
    total: int
    path: Path | None = None


OnAdd = Callable[[AddProgress], "bool | None"]
"""Called as adding goes on; False stops. May raise to stop, too. What is done by then stays."""


LoadEmbedder = Callable[["str | None"], "Embedder | None"]
"""Returns the embedding model of a name, the default one for None; None if there is none. Whoever made it closes the model."""


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection in numbers.

    Attributes:
        name: of the collection.
        n_documents, n_passages, n_vectors: in it.
        size_bytes: that it takes on the disk.
        model: the embedding model of its vectors; "" while it has none.
        sources: files and folders that were added.
        is_words_only: it was made to have no vectors.
    """

    name: str
    n_documents: int
    n_passages: int
    n_vectors: int
    size_bytes: int
    model: str
    sources: tuple[Path, ...]
    is_words_only: bool = False
