"""Documents, as this server's own in all protocols: the field `docs` of a request, and `citations` of its answer.

Clients may name the collections that the operator allows (`server.docs`), and hear of no others, nor where files are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge_serve.errors import ApiError

if TYPE_CHECKING:
    from edge.citations import Citation

__all__ = ["citations_field", "citations_of", "docs_options"]

_MOST = 16


def docs_options(docs: str | Sequence[str] | None, allowed: Sequence[str]) -> dict[str, Any]:
    """Return the options of a reply that rests on these collections; None searches none.

    Raises:
        ApiError: the operator allows one of them not, or there are too many.
    """
    if docs is None:
        return {}
    names = [docs] if isinstance(docs, str) else list(docs)
    if len(names) > _MOST:
        raise ApiError(400, f"docs has {_MOST} collections at most.", code="invalid_value", param="docs")
    unknown = next((name for name in names if name not in allowed), None)
    if unknown is not None:
        known = f"Use {', '.join(allowed)}." if allowed else "This server allows none (edge serve --docs NAME)."
        raise ApiError(400, f"docs: {unknown[:80]!r} cannot be searched here. {known}", code="invalid_value", param="docs")
    return {"docs": names}


def citations_of(citations: Sequence[Citation]) -> list[dict[str, Any]]:
    """Return the passages of an answer. A document is named by its file alone: its folders are the operator's."""
    return [
        {
            "number": one.number,
            "collection": one.collection,
            "file": one.file_name,
            "title": one.title,
            "heading": one.heading,
            "lines": list(one.lines) if one.lines is not None else None,
            "page": one.page,
            "text": one.text,
            "score": round(one.score, 6),
        }
        for one in citations
    ]


def citations_field(citations: Sequence[Citation]) -> dict[str, Any]:
    """Return the field with the passages of an answer, if it rests on some."""
    return {"citations": citations_of(citations)} if citations else {}
