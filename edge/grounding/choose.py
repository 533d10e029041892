"""Chooses the passages that a question is answered from, or says that there are none."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from edge.citations import Citation
from edge.grounding.order import Orders
from edge.grounding.relevance import relevance

if TYPE_CHECKING:
    from edge.grounding.answers import SimilarAnswers

__all__ = ["MIN_RELEVANCE", "MOST_PASSAGES", "Chosen", "Docs", "Grounding", "PassageLike", "Source", "key_of"]

MOST_PASSAGES = 6
"""Passages in a prompt at most."""

SHARE_OF_BEST = 0.6
"""Least relevance of a passage in a prompt, as a share of the best one's: over two public question sets this leaves out half of
them, and never the one with the answer (docs/documents.md).
"""

MIN_RELEVANCE = 0.85
"""Least relevance of the best passage (`edge.grounding.relevance`), from which something counts as found: docs/documents.md has
how many questions it passes that a collection can and cannot answer."""

_LONGEST_QUERY = 2000  # characters; what is longer is a text, and its beginning says what it is about


class PassageLike(Protocol):
    """A hit of a search, as `edge.documents.Passage` is one."""

    @property
    def document(self) -> Path | str: ...
    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def lines(self) -> tuple[int, int] | None: ...
    @property
    def page(self) -> int | None: ...
    @property
    def heading(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def position(self) -> int: ...
    @property
    def similarity(self) -> float | None: ...


@runtime_checkable
class Source(Protocol):
    """Where passages come from: an `edge.documents.Collection`, or anything else with a name that can be searched."""

    @property
    def name(self) -> str: ...

    def search(self, question: str, k: int = 8) -> Sequence[PassageLike]:
        """Return the nearest passages, the nearest first. Their similarity is a cosine, or None where there are no vectors."""


Docs: TypeAlias = "str | Source | Sequence[str | Source]"
"""Collections: names, or objects."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Passages of a prompt.

    Attributes:
        new: that the last message begins with, in the order of the prompt.
        again: that an earlier message of the prompt has.
        searched: names of the collections.
    """

    new: tuple[Citation, ...] = ()
    again: tuple[Citation, ...] = ()
    searched: tuple[str, ...] = ()

    @property
    def citations(self) -> tuple[Citation, ...]:
        """All of them, by number."""
        return tuple(sorted((*self.again, *self.new), key=lambda one: one.number))


class Grounding:
    """The search for one question. May be used from any thread; it is searched once.

    Args:
        sources: collections to search.
        question: as the user asks it.
        earlier: passages of earlier messages of the prompt.
        before: the question before, which says what "and the second one?" is about; it is searched, too, if nothing is found.
        answers: to earlier questions, for one that stands alone; None has none.
        orders: of passages in earlier prompts that began as this one does, by the name of their source.

    Attributes:
        sources, question, answers: see above.
        is_in_prompt: the message has its passages already.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        question: str,
        earlier: Sequence[Citation] = (),
        *,
        before: str = "",
        answers: SimilarAnswers | None = None,
        orders: Mapping[str, Orders] | None = None,
    ) -> None:
        self.sources, self.question, self.answers = tuple(sources), question, answers
        self._earlier, self._before, self._orders = tuple(earlier), before[:_LONGEST_QUERY], dict(orders or {})
        self._lock = threading.Lock()
        self._chosen: Chosen | None = None
        self.is_in_prompt = False

    @classmethod
    def known(cls, chosen: Chosen) -> Grounding:
        """Return the passages that a message has already."""
        grounding = cls((), "")
        grounding._chosen, grounding.is_in_prompt = chosen, True
        return grounding

    def choose(self, room: int, count: Callable[[str], int], *, repeats: bool = False) -> Chosen:
        """Return the passages for the prompt.

        Args:
            room: tokens that they may take.
            count: returns the number of tokens of a text.
            repeats: have passages of earlier messages again, since those may not fit the window.

        Raises:
            EdgeError: as the search of a source.
        """
        with self._lock:
            if self._chosen is None:
                self._chosen = self._choose(room, count, () if repeats else self._earlier)
            return self._chosen

    def _choose(self, room: int, count: Callable[[str], int], kept: Sequence[Citation]) -> Chosen:
        searched = tuple(source.name for source in self.sources)
        hits = self._find()
        known = {_mark(one): one for one in kept}
        new: list[tuple[Source, PassageLike]] = []
        again: list[Citation] = []
        for source, hit in hits[:MOST_PASSAGES]:
            if (earlier := known.get((source.name, str(hit.document), hit.text))) is not None:
                again.append(earlier)
                continue
            room -= count(hit.text)
            if room < 0 and (new or again):
                break  # the first is taken in any case: where even that does not fit, the window says so
            new.append((source, hit))
        first = max((one.number for one in self._earlier), default=0) + 1
        cited = [_citation(number, source, hit) for number, (source, hit) in enumerate(self._arranged(new), first)]
        return Chosen(tuple(cited), tuple(sorted(again, key=lambda one: one.number)), searched)

    def _find(self) -> list[tuple[Source, PassageLike]]:
        """Return the hits of all sources, the nearest first: those of several sources by their relevance."""
        found: list[tuple[float, Source, PassageLike]] = []
        for question in (self.question, f"{self._before} {self.question}" if self._before else ""):
            if question and not found:
                found = [(rating, source, hit) for source in self.sources for rating, hit in find(source, question)]
        if len(self.sources) > 1:
            found.sort(key=lambda one: -one[0])
        return [(source, hit) for _, source, hit in found]

    def _arranged(self, hits: list[tuple[Source, PassageLike]]) -> list[tuple[Source, PassageLike]]:
        """Return hits in the order of the prompt, source after source, and remember that."""
        arranged: list[tuple[Source, PassageLike]] = []
        for source in self.sources:
            own = sorted((hit for of, hit in hits if of is source), key=lambda hit: (str(hit.document), hit.position))
            by_key = {key_of(hit): hit for hit in own}
            if not by_key:
                continue
            orders = self._orders.get(source.name)
            order = orders.arrange(list(by_key)) if orders is not None else list(by_key)
            if orders is not None:
                orders.note(order)
            arranged += [(source, by_key[key]) for key in order]
        return arranged


def key_of(passage: PassageLike | Citation) -> str:
    """Return a hash of a passage, the same as long as its document says the same there."""
    text = f"{passage.document}\0{passage.text}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def find(source: Source, question: str) -> list[tuple[float, PassageLike]]:
    """Return the passages of a source for a question, the nearest first, each with its relevance; none if nothing there is
    about it.
    """
    question = question[:_LONGEST_QUERY]
    if not question.strip():
        return []
    rated = [(relevance(question, hit.text, hit.similarity), hit) for hit in source.search(question, MOST_PASSAGES)]
    best = max((rating for rating, _ in rated), default=0.0)
    return [one for one in rated if one[0] >= SHARE_OF_BEST * best] if best >= MIN_RELEVANCE else []


def _mark(one: Citation) -> tuple[str, str, str]:
    return one.collection, one.document, one.text


def _citation(number: int, source: Source, hit: PassageLike) -> Citation:
    return Citation(
        number, str(hit.document), hit.text, hit.title, hit.heading, hit.lines, hit.page, float(hit.score), source.name
    )
