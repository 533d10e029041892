"""A collection in memory, searched by the words that a question shares with its passages."""

from __future__ import annotations

from dataclasses import dataclass

from edge.grounding.relevance import coverage


@dataclass(frozen=True)
class Passage:
    document: str
    text: str
    position: int = 0
    title: str = ""
    lines: tuple[int, int] | None = (1, 2)
    page: int | None = None
    heading: str = ""
    score: float = 0.0
    similarity: float | None = None


class Library:
    """Finds passages by their words."""

    def __init__(self, *passages: Passage, name: str = "manual") -> None:
        self.name, self.passages = name, list(passages)
        self.questions: list[str] = []
        self.is_closed = False

    def search(self, question: str, k: int = 8) -> list[Passage]:
        self.questions.append(question)
        found = [(coverage(question, passage.text), passage) for passage in self.passages]
        return [passage for share, passage in sorted(found, key=lambda one: -one[0]) if share > 0][:k]

    def close(self) -> None:
        self.is_closed = True


RESET = Passage(
    "/docs/manual.md", "To reset the pump, hold the red button for five seconds; clean its filter first.", 3, lines=(12, 13)
)
CLEAN = Passage("/docs/manual.md", "Clean the filter of the pump every month, and reset it.", 1, lines=(4, 4), heading="Care")
WARRANTY = Passage("/docs/warranty.pdf", "The warranty lasts for two years.", 0, lines=None, page=3)


def library(name: str = "manual") -> Library:
    return Library(RESET, CLEAN, WARRANTY, name=name)
