"""The passages below an answer: a line each, which opens to the text."""

from __future__ import annotations

from collections.abc import Sequence

from textual.containers import Vertical

from edge.citations import Citation, cited
from edge_chat import format as fmt
from edge_chat.widgets.fold import Fold

__all__ = ["Passages"]


class Passages(Vertical):
    """See the module. Passages that the answer does not refer to come in parentheses."""

    def __init__(self) -> None:
        super().__init__(classes="passages")
        self.citations: tuple[Citation, ...] = ()
        self._shown: list[tuple[str, str, str]] = []
        self.display = False

    def show(self, citations: Sequence[Citation], text: str) -> None:
        """Show the passages of an answer.

        Args:
            citations: by number.
            text: of the answer so far.
        """
        self.citations = tuple(citations)
        used = cited(text, citations)
        shown = [_fold(one, is_cited=one in used) for one in citations]
        if shown == self._shown:
            return
        self._shown = shown
        folds = list(self.query(Fold))
        for fold, now in zip(folds, shown, strict=False):
            fold.set(*now)
        for fold in folds[len(shown) :]:
            fold.remove()
        if len(shown) > len(folds):
            self.mount_all([Fold(*now) for now in shown[len(folds) :]])
        self.display = bool(shown)


def _fold(citation: Citation, *, is_cited: bool) -> tuple[str, str, str]:
    """Return title, text and note of the line of a passage."""
    number = f"[{citation.number}]" if is_cited else f"({citation.number})"
    text = f"{citation.text}\n\n{fmt.one_line(citation.document, 400)}\n/open {citation.number} opens it"
    return f"{number} {citation.place}", text, citation.heading or citation.title
