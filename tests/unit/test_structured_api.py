"""Values instead of text: `generate(schema=)`, `Reply.value`, `Reply.partials`, `respond` and `extract`."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pydantic
import pytest

from edge import Assistant, Constraint, Message, Sampling
from edge.backends.fake import FakeBackend
from edge.errors import BackendError, ConstraintError, InvalidReplyError, UsageError
from edge.request import Request

ADA = '{"name": "Ada", "age": 36, "tags": ["x", "y"]}'


@dataclass
class Person:
    name: str
    age: int
    tags: list[str]


class Adult(pydantic.BaseModel):
    name: str
    age: int
    tags: list[str]

    @pydantic.field_validator("age")
    @classmethod
    def check(cls, age: int) -> int:
        if age > 30:
            raise ValueError("too old")
        return age


class Listening(FakeBackend):
    """Says ADA, or the user's message where that is short, and notes the prompts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(script=lambda message: message if len(message) < 4 else ADA, **options)
        self.heard = b""

    def prefill(self, seq_id: int, tokens: Any, **options: Any) -> int:
        self.heard += b"".join(self.tokenizer.token_bytes(token) for token in tokens)
        return super().prefill(seq_id, tokens, **options)


@pytest.fixture
def backend() -> Listening:
    return Listening()


@pytest.fixture
def ai(backend: Listening) -> Iterator[Assistant]:
    with Assistant(backend, system="Be brief") as assistant:
        yield assistant


def test_a_reply_has_a_value(ai: Assistant) -> None:
    assert ai.generate("Who is it?", schema=Person).value() == Person("Ada", 36, ["x", "y"])
    assert ai.generate("Who is it?", schema={"type": "object"}).value() == json.loads(ADA)
    assert ai.conversation().send("Who is it?", schema=Person).value().name == "Ada"
    assert ai.generate("ab", constraint=Constraint.choices(["ab", "ba"])).value() == "ab"
    assert ai.generate("12", schema=int).value() == 12


def test_async_as_well(ai: Assistant) -> None:
    async def run() -> tuple[Any, ...]:
        reply = ai.generate("Who is it?", schema=Person)
        partials = [value async for value in reply.partials()]
        assert partials[-1] == json.loads(ADA)
        return await reply.avalue(), await ai.arespond("Who is it?", Person), await ai.aextract("A letter", Person)

    ada = Person("Ada", 36, ["x", "y"])
    assert asyncio.run(run()) == (ada, ada, ada)


def test_the_value_grows_while_it_is_written(ai: Assistant) -> None:
    partials = list(ai.generate("Who is it?", schema=Person).partials())
    assert partials[0] == {}
    assert {"name": "Ad"} in partials
    assert {"name": "Ada"} in partials
    assert {"name": "Ada", "age": 36, "tags": ["x"]} in partials
    assert partials[-1] == json.loads(ADA)
    assert all(one != other for one, other in itertools.pairwise(partials))
    assert list(ai.generate("Who is it?", constraint=Constraint.regex(".{5}")).partials()) == [{}]


def test_respond_returns_the_type(ai: Assistant, backend: Listening) -> None:
    assert ai.respond("Who is it?", Person) == Person("Ada", 36, ["x", "y"])
    assert ai.respond("hi", str) == "hi"
    assert ai.respond([Message("user", "12")], int) == 12
    assert ai.respond("Who is it?", dict[str, Any])["age"] == 36


def test_the_schema_is_in_the_system_prompt(ai: Assistant, backend: Listening) -> None:
    ai.generate("Who is it?", schema=Person).wait()
    assert b"Be brief\n\nAnswer with JSON that fits this JSON Schema" in backend.heard
    assert b'"tags": {"type": "array"' in backend.heard
    for quiet in ({"schema": Person, "show_schema": False}, {"constraint": Constraint.choices(["ab"])}):
        backend.heard = b""
        ai.generate("Who was it?", **quiet).wait()
        assert b"Answer with JSON" not in backend.heard


def test_a_schema_that_says_nothing_is_asked_for_in_words(ai: Assistant, backend: Listening) -> None:
    ai.generate("Who is it?", constraint=Constraint.json_object()).wait()
    assert b"Be brief\n\nAnswer with a JSON object, and with nothing else." in backend.heard
    assert b"JSON Schema" not in backend.heard


def test_extract_reads_a_text_at_temperature_zero(ai: Assistant, backend: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []
    make = ai._turns.make

    def note(request: Request, *rest: Any) -> Any:
        asked.append(request)
        return make(request, *rest)

    monkeypatch.setattr(ai._turns, "make", note)
    ai.extract("A long letter", Person)
    ai.extract("A long letter", Person, Sampling(temperature=0.5), instruction="Lies das.")
    ai.extract("A long letter", Person, temperature=0.2, max_tokens=100)
    assert [one.sampling.temperature for one in asked] == [0, 0.5, 0.2]
    assert [one.content for one in asked[1].prompt] == ["Lies das.", "A long letter"]
    assert b"Lies das.\n\nAnswer with JSON" in backend.heard


# -- what is not the value


def test_a_reply_that_was_cut_off_has_no_value_and_keeps_its_text(ai: Assistant) -> None:
    reply = ai.generate("Who is it?", schema=Person, max_tokens=15)
    with pytest.raises(InvalidReplyError, match="maximum length") as caught:
        reply.value()
    assert caught.value.text == reply.text == ADA[:15]
    assert reply.is_partial
    assert list(reply.partials())[-1] == {"name": "Ada"}
    assert any("not complete" in notice for notice in reply.notices)
    with pytest.raises(InvalidReplyError, match="ended early"):
        ai.generate("Who is it?", schema=Person, stop="age").value()


def test_what_the_type_refuses_is_said_in_its_words(ai: Assistant) -> None:
    with pytest.raises(InvalidReplyError, match=r"not Adult: .*too old") as caught:
        ai.respond("Who is it?", Adult)
    assert caught.value.text == ADA
    assert isinstance(caught.value.__cause__, pydantic.ValidationError)


def test_a_reply_without_a_schema_has_no_value(ai: Assistant) -> None:
    with pytest.raises(UsageError, match="no schema"):
        ai.generate("hi").value()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"schema": 3}, UsageError, "JSON Schema or a type"),
        ({"schema": {"const": {1}}}, ConstraintError, "JSON"),
        ({"constraint": "[a-z]"}, UsageError, "edge.Constraint"),
        ({"schema": Person, "constraint": Constraint.json_object()}, UsageError, "exclude"),
    ],
)
def test_wrong_arguments_are_refused_at_once(ai: Assistant, options: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        ai.generate("hi", **options)
    with pytest.raises(error, match=says):
        ai.conversation().send("hi", **options)


def test_wrong_questions_are_refused(ai: Assistant) -> None:
    with pytest.raises(UsageError, match="no text"):
        ai.extract("", Person)
    with pytest.raises(UsageError, match="instruction"):
        ai.extract("x", Person, instruction=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="schema and constraint out"):
        ai.respond("x", Person, schema=Person)


def test_a_schema_that_cannot_be_kept_leaves_no_question_in_the_conversation(ai: Assistant) -> None:
    conversation = ai.conversation()
    with pytest.raises(ConstraintError, match='"not"'):
        conversation.send("Who is it?", schema={"not": {"minimum": 1}}).wait()
    assert conversation.messages == []
    assert conversation.send("Who is it?", schema=Person).value().age == 36


def test_a_schema_can_be_compiled_ahead(ai: Assistant) -> None:
    assert ai.prepare_schema(Person) == ()
    assert ai.prepare_schema(constraint=Constraint.json_schema({"not": {"minimum": 1}}, strict=False)) == ("not",)
    with pytest.raises(ConstraintError, match='"not"'):
        ai.prepare_schema({"not": {"minimum": 1}})
    with pytest.raises(UsageError, match="no schema"):
        ai.prepare_schema()
    ai.close()
    with pytest.raises(BackendError, match="closed"):
        ai.prepare_schema(Person)
