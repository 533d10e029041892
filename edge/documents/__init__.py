"""Documents: files as passages in collections that are searched by words and by meaning.

collection.py  `Collection`: add, update, remove, search
adding.py      one run over files: new, changed, gone
base.py        values: passages, documents, reports
walk.py        which files are below the given paths
reading.py     reads files in a child process within time and memory; reader_child.py, what runs there
readers/       a file format each, as blocks: paragraphs, headings, functions, pages
chunks.py      blocks to passages of a bounded size
places.py      citations, such as "guide.md:12-18"; watching.py, keeps a collection as its files are
db.py          the SQLite file of a collection
meaning.py     the embedding model of a collection and its vectors; vectors.py, their file, and the nearest ones
search.py      a question as a full-text query; ranks of both searches in one
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge.lazy import lazy_names

if TYPE_CHECKING:
    from edge.documents.base import DEFAULT_COLLECTION, AddProgress, AddReport, CollectionInfo, Document, Passage, Skipped
    from edge.documents.collection import Collection, collections
    from edge.documents.watching import watch

__all__ = [
    "DEFAULT_COLLECTION",
    "AddProgress",
    "AddReport",
    "Collection",
    "CollectionInfo",
    "Document",
    "Passage",
    "Skipped",
    "collections",
    "watch",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "edge.documents.base": (
            "DEFAULT_COLLECTION", "AddProgress", "AddReport", "CollectionInfo", "Document", "Passage", "Skipped",
        ),
        "edge.documents.collection": ("Collection", "collections"),
        "edge.documents.watching": ("watch",),
    },
)  # fmt: skip
