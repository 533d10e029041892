"""Tables, passages and JSON of `edge docs`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from edge.documents.base import path_text, shown_path
from edge.units import plural, size_text
from edge_cli import output
from edge_cli.conversations_listing import time_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge.documents import AddReport, CollectionInfo, Document, Passage

__all__ = [
    "DOCUMENT_HEADINGS", "INFO_HEADINGS", "document_json", "document_row", "info_json", "info_row", "passage_json",
    "report_json", "show_passages", "show_report",
]  # fmt: skip

DOCUMENT_HEADINGS = ("changed", "kind", "size", "passages", "path")
INFO_HEADINGS = ("collection", "documents", "passages", "vectors", "size", "model")
_MOST_SKIPPED = 12


def document_row(document: Document) -> tuple[str, ...]:
    """Return a line of the list of documents."""
    changed = time_text(document.modified, time.time())
    return changed, document.kind, size_text(document.size_bytes), f"{document.n_passages:,}", shown_path(document.path)


def document_json(document: Document, collection: str) -> dict[str, Any]:
    """Return a document; times in seconds since 1970."""
    return {
        "collection": collection,
        "id": document.document_id,
        "path": path_text(document.path),
        "title": document.title,
        "kind": document.kind,
        "size_bytes": document.size_bytes,
        "modified": document.modified,
        "n_passages": document.n_passages,
        "n_vectors": document.n_vectors,
    }


def info_row(info: CollectionInfo) -> tuple[str, ...]:
    """Return a line of the list of collections."""
    model = info.model or ("words only" if info.is_words_only else "-")
    numbers = (f"{info.n_documents:,}", f"{info.n_passages:,}", f"{info.n_vectors:,}")
    return info.name, *numbers, size_text(info.size_bytes), model


def info_json(info: CollectionInfo) -> dict[str, Any]:
    """Return a collection."""
    return {
        "name": info.name,
        "n_documents": info.n_documents,
        "n_passages": info.n_passages,
        "n_vectors": info.n_vectors,
        "size_bytes": info.size_bytes,
        "model": info.model or None,
        "is_words_only": info.is_words_only,
        "sources": [path_text(path) for path in info.sources],
    }


def passage_json(passage: Passage) -> dict[str, Any]:
    """Return a passage with its place."""
    return {
        "citation": passage.citation,
        "path": path_text(passage.document),
        "lines": passage.lines,
        "page": passage.page,
        "title": passage.title,
        "heading": passage.heading or None,
        "score": passage.score,
        "similarity": passage.similarity,
        "document_id": passage.document_id,
        "position": passage.position,
        "text": passage.text,
    }


def report_json(report: AddReport) -> dict[str, Any]:
    """Return what adding did."""
    return {
        "added": report.added,
        "unchanged": report.unchanged,
        "removed": report.removed,
        "n_passages": report.n_passages,
        "n_vectors": report.n_vectors,
        "skipped": [{"path": path_text(one.path), "reason": one.reason} for one in report.skipped],
    }


def show_report(report: AddReport) -> None:
    """Write what adding did: a line, and a line for each file that was skipped, or for each reason if those are many."""
    parts = [f"{plural(report.added, 'document')} read", f"{report.unchanged:,} unchanged"]
    if report.removed:
        parts.append(f"{report.removed:,} removed")
    if report.skipped:
        parts.append(f"{len(report.skipped):,} skipped")
    output.note(f"{', '.join(parts)}; {plural(report.n_passages, 'passage')} in the collection.")
    if len(report.skipped) <= _MOST_SKIPPED:
        for one in report.skipped:
            output.note(f"  skipped {shown_path(one.path)}: {one.reason}")
        return
    reasons = Counter(one.reason for one in report.skipped)
    for why, number in reasons.most_common(_MOST_SKIPPED):
        example = next(one.path for one in report.skipped if one.reason == why)
        output.note(f"  skipped {number:,}, such as {shown_path(example)}: {why}")
    output.note("  --json lists them all.")


def show_passages(passages: Sequence[Passage]) -> None:
    """Write passages, each below its place."""
    for number, passage in enumerate(passages):
        if number:
            output.line()
        place = output.paint(passage.citation, "bold", sys.stdout)
        output.line(f"{place}  {output.plain(passage.heading or passage.title)}")
        for text in output.plain(passage.text).split("\n"):
            output.line(f"  {text}".rstrip())
