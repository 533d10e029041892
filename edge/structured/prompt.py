"""The schema of a reply in its prompt: a mask alone makes a model write what is valid, not what is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edge.constraint import Constraint
from edge.types import Message

__all__ = ["with_schema"]

_ASK = "Answer with JSON that fits this JSON Schema, and with nothing else:"
_ANY = {
    Constraint.json_object().source: "Answer with a JSON object, and with nothing else.",
    Constraint.json_schema(True).source: "Answer with JSON, and with nothing else.",
}


def with_schema(messages: Sequence[Message], constraint: Constraint) -> list[Message]:
    """Return messages whose system prompt ends with the schema, if there is one.

    There, the prompts of all replies with this schema share their prefix.
    """
    if not constraint.is_json:
        return list(messages)
    text = _ANY.get(constraint.source, f"{_ASK}\n{constraint.source}")
    if messages and messages[0].role == "system":
        return [replace(messages[0], content=f"{messages[0].content}\n\n{text}"), *messages[1:]]
    return [Message("system", text), *messages]
