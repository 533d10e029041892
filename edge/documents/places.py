"""Citations: from "guide.md:12-18" or "manual.pdf, page 4" to the passages there."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edge.documents.base import Document, Passage, shown_path
from edge.documents.collection import Collection
from edge.errors import UsageError

__all__ = ["Place", "find_place", "parse_place"]

_PLACE = re.compile(r"(.+?)(?::(\d{1,9})(?:-(\d{1,9}))?|(?:, ?page |#page=|#)(\d{1,9}))", re.DOTALL)
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Place:
    """What a citation names.

    Attributes:
        name: a path, or the end of one.
        lines: first and last, from 1; None is all.
        page: from 1; None is all.
    """

    name: str
    lines: tuple[int, int] | None = None
    page: int | None = None


def parse_place(text: str) -> Place:
    """Return what a citation names: NAME, NAME:LINE, NAME:FIRST-LAST, "NAME, page N", NAME#N."""
    found = _PLACE.fullmatch(text.strip())
    if found is None:
        return Place(text.strip())
    name, first, last, page = found.groups()
    if page is not None:
        return Place(name, page=int(page))
    return Place(name, (int(first), max(int(first), int(last or first))))


def find_place(collection: Collection, text: str) -> tuple[Document, list[Passage]]:
    """Return the document of a citation, and its passages there; all of them if the citation has no place.

    Args:
        collection: to look in.
        text: a citation; the name may be a path, or its end.

    Raises:
        UsageError: no document, or several, have that name; or it has nothing there.
    """
    documents = collection.documents()
    place = parse_place(text)
    matching = _named(documents, text.strip())
    if matching:  # a name that looks like a place
        place = Place(text.strip())
    matching = matching or _named(documents, place.name)
    if not matching:
        raise UsageError(f"No document of {collection.name} is called {place.name[:200]!r}.", "edge docs ls lists them.")
    if len(matching) > 1:
        named = ", ".join(shown_path(document.path) for document in matching[:_MOST_NAMED])
        raise UsageError(f"{len(matching)} documents are called {place.name[:200]!r}: {named}.", "Give more of the path.")
    document = matching[0]
    passages = [one for one in collection.passages(document.document_id) if _is_there(one, place)]
    if not passages:
        raise UsageError(
            f"{shown_path(document.path)} has no passage at {text[len(place.name) :].strip(' ,:#')}.", "Give the name alone."
        )
    return document, passages


def _named(documents: list[Document], name: str) -> list[Document]:
    path = Path(name).expanduser()
    exact = [document for document in documents if document.path in (path, path.absolute())]
    n_parts = len(path.parts)
    found = exact or [document for document in documents if document.path.parts[-n_parts:] == path.parts]
    if found or not name:
        return found
    return [
        one for one in documents if f"{os.sep}{shown_path(one.path)}".endswith(f"{os.sep}{name}")
    ]  # as a citation writes it


def _is_there(passage: Passage, place: Place) -> bool:
    if place.page is not None:
        return passage.page == place.page
    if place.lines is None:
        return True
    return passage.lines is not None and passage.lines[0] <= place.lines[1] and passage.lines[1] >= place.lines[0]
