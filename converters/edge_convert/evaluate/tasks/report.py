"""The figures of the tasks as texts, for the card."""

from __future__ import annotations

from edge_convert.evaluate.tasks.suite import Usefulness

__all__ = ["COLUMNS", "TITLE", "notes", "texts"]

TITLE = "Usefulness (95% confidence intervals in brackets)"
COLUMNS = ("questions", "as the teacher", "of what the teacher knows", "instructions", "replies in a loop", "repeated 4-grams")


def texts(found: Usefulness | None) -> tuple[str, ...]:
    """Return the figures of a model as texts, one for each of COLUMNS; "" for what was not measured."""
    if found is None:
        return ("",) * len(COLUMNS)
    facts, told, long = found.facts, found.instructions, found.repetition
    shown = (
        facts and facts.right,
        facts and facts.same,
        facts and facts.kept,
        told and told.followed,
        long and long.loops,
        long and long.repeated,
    )
    return tuple("" if one is None else str(one) for one in shown)


def notes(found: Usefulness) -> list[str]:
    """Return what a reader must know to understand the figures of a model, a sentence or two for each task."""
    said = []
    if facts := found.facts:
        whose = f"from {found.questions}" if found.questions else "written for edge"
        said.append(
            f"Questions: right answers to {facts.right.n} short questions {whose}. As the teacher: both are right, or say the "
            "same. Of what the teacher knows: right answers to the questions that it answers."
        )
    if told := found.instructions:
        said.append(
            f"Instructions: replies to {told.followed.n} prompts that keep to all that these say about length, format, JSON, "
            "language, words and case, as checked by code."
        )
    if long := found.repetition:
        said.append(
            f"Repetition: {long.loops.n} long replies; those that end in a loop, and the share of their sequences of four "
            "words that came before in the same reply."
        )
    return said
