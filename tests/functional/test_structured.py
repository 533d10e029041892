"""The real model under schemas: valid values, with drafts and beside others, and prompts that come back from the KV cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import edge
from edge import Assistant, Constraint
from edge.config import load_settings

pytestmark = pytest.mark.model


@dataclass
class Visit:
    name: str
    day: Literal["Monday", "Tuesday", "Friday"]
    people: Literal[1, 2, 3]


LETTER = "Ada Byron will come on Tuesday with a friend, two people in all."


@pytest.fixture(scope="module")
def ai(model_path: Path) -> Iterator[Assistant]:
    settings = load_settings({"context": 1024, "threads": 1})
    with edge.load(str(model_path), settings=settings) as assistant:
        yield assistant


def test_a_text_becomes_a_value_and_its_prompt_is_reused(ai: Assistant) -> None:
    reply = ai.generate(LETTER, schema=Visit, temperature=0, max_tokens=120)
    visit = reply.value()
    assert isinstance(visit, Visit)
    assert visit.day in ("Monday", "Tuesday", "Friday")
    assert reply.usage.n_forced > 0
    assert json.loads(reply.text)["people"] == visit.people
    other = ai.generate("Karl comes alone on Friday.", schema=Visit, temperature=0, max_tokens=120)
    assert isinstance(other.value(), Visit)
    assert other.usage.n_reused > 50  # the schema, in the system prompt


def test_replies_beside_each_other_keep_their_own_schemas(ai: Assistant) -> None:
    replies = [
        ai.generate(LETTER, schema=Visit, max_tokens=120),
        ai.generate("Is snow white?", constraint=Constraint.choices(["yes", "no"])),
        ai.generate("Invent a number plate.", constraint=Constraint.regex("[A-Z]{2}-[0-9]{3}")),
        ai.generate("Say hello.", max_tokens=8),
    ]
    texts = [reply.wait() for reply in replies]
    assert isinstance(replies[0].value(), Visit)
    assert texts[1] in ("yes", "no")
    assert len(texts[2]) == 6
    assert texts[3]


def test_a_repeated_list_is_drafted_within_its_schema(ai: Assistant) -> None:
    schema = {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 30, "maxItems": 30}
    reply = ai.generate("Write red, green, blue, ten times, as a list.", schema=schema, temperature=0, max_repeats=0)
    assert len(reply.value()) == 30
    assert set(reply.value()) <= {"red", "green", "blue"}
