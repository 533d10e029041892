"""The passages that the messages of a conversation rest on already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge.citations import RECORD_KEY, Citation, read_citations
from edge.grounding.choose import Chosen

__all__ = ["Known", "known_passages"]


class NodeLike(Protocol):
    """A stored message."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def record(self) -> Mapping[str, object]: ...


@dataclass(frozen=True, slots=True)
class Known:
    """What a conversation rests on before its last question is answered.

    Attributes:
        question: the last question, as the user asked it.
        before: the question before it; "" for the first one.
        earlier: passages of messages before the last question.
        chosen: passages of the last question, if it was searched for already.
    """

    question: str = ""
    before: str = ""
    earlier: tuple[Citation, ...] = ()
    chosen: Chosen | None = None


def known_passages(nodes: Sequence[NodeLike]) -> Known:
    """Return the passages of a path of messages, first message first."""
    questions = [node for node in nodes if node.role == "user"]
    if not questions:
        return Known()
    earlier = tuple(one for node in questions[:-1] for one in read_citations(node.record)[0])
    last = questions[-1]
    chosen = None
    if RECORD_KEY in last.record:
        new, again = read_citations(last.record)
        names = {one.collection: None for one in (*new, *earlier)}
        chosen = Chosen(new, tuple(one for one in earlier if one.number in again), tuple(names))
    return Known(last.content, questions[-2].content if len(questions) > 1 else "", earlier, chosen)
