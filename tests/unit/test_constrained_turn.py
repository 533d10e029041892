"""Replies under a constraint, from the request to the notices at the end."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from edge import Assistant, Constraint, Message, Reply, Sampling
from edge.backends.fake import FakeBackend
from edge.errors import ConstraintError
from edge.request import Request

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "tags": {"type": "array", "items": {"enum": ["a", "b"]}}},
    "required": ["name", "tags"],
    "additionalProperties": False,
}
ADA = '{"name": "Ada", "tags": ["a", "b", "a", "b"]}'


@pytest.fixture
def assistant() -> Any:
    with Assistant(FakeBackend(script=lambda _: ADA, drafts=True)) as assistant:
        yield assistant


def ask(assistant: Assistant, constraint: Constraint, **sampling: Any) -> Reply:
    request = Request(
        prompt=[Message("user", "Who?")], sampling=Sampling(**{"temperature": 0, **sampling}), constraint=constraint
    )
    turns = assistant._turns
    return turns.start(turns.make(request), assistant)


def test_a_reply_is_what_its_schema_says(assistant: Assistant) -> None:
    reply = ask(assistant, Constraint.json_schema(PERSON))
    assert reply.wait() == ADA
    assert reply.finish_reason == "stop"
    assert reply.notices == []
    assert reply.usage.n_forced >= len('{"name": "')
    assert reply.usage.n_generated == len(ADA)


def test_a_model_that_would_say_something_else_says_what_is_allowed(assistant: Assistant) -> None:
    schema = {**PERSON, "properties": {**PERSON["properties"], "name": {"enum": ["Bob", "Eve"]}}}
    found = json.loads(ask(assistant, Constraint.json_schema(schema)).wait())
    assert found["name"] in ("Bob", "Eve")


def test_a_bad_schema_is_an_error_before_any_token(assistant: Assistant) -> None:
    reply = ask(assistant, Constraint.json_schema({"not": {"minimum": 1}}))
    with pytest.raises(ConstraintError, match='"not"'):
        reply.wait()
    assert reply.usage.n_generated == 0
    assert ask(assistant, Constraint.json_schema(PERSON)).wait() == ADA  # the others go on


@pytest.mark.parametrize(
    ("constraint", "sampling", "says"),
    [
        (
            Constraint.json_schema(PERSON),
            {"max_tokens": 20},
            "JSON of this reply is not complete, because it reached",
        ),
        (Constraint.json_schema(PERSON), {"stop": "tags"}, "not complete, because the stop text 'tags' came first"),
        (Constraint.regex(r"\{.*\} end"), {"max_tokens": 3}, "text of this reply is not complete"),
    ],
)
def test_an_incomplete_reply_says_so(assistant: Assistant, constraint: Constraint, sampling: dict[str, Any], says: str) -> None:
    reply = ask(assistant, constraint, **sampling)
    reply.wait()
    assert any(says in notice for notice in reply.notices)


def test_a_lenient_schema_is_enforced_in_part_and_checked_at_the_end(assistant: Assistant) -> None:
    tags = {**PERSON["properties"]["tags"], "uniqueItems": True}
    schema = {**PERSON, "properties": {**PERSON["properties"], "tags": tags}}
    reply = ask(assistant, Constraint.json_schema(schema, strict=False))
    assert reply.wait() == ADA
    first, last = reply.notices
    assert first == "Not enforced while this reply is generated: uniqueItems."
    assert "non-unique" in last and "(at #/tags)" in last
    distinct = {**schema, "properties": {**schema["properties"], "tags": {"uniqueItems": True, "maxItems": 0}}}
    assert len(ask(assistant, Constraint.json_schema(distinct, strict=False)).wait()) < len(ADA)


def test_without_the_checker_the_reply_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, assistant: Assistant) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema_rs", None)
    schema = {**PERSON, "minProperties": 1, "propertyNames": {}}
    reply = ask(assistant, Constraint.json_schema(schema, strict=False))
    reply.wait()
    assert "pip install 'edge-assistant[structured]'" in reply.notices[-1]


def test_a_schema_inside_a_grammar_is_not_mistaken_for_the_whole(assistant: Assistant) -> None:
    tags = {**PERSON["properties"]["tags"], "uniqueItems": True}
    schema = {**PERSON, "properties": {**PERSON["properties"], "tags": tags}, "x-guidance": {"lenient": True}}
    reply = ask(assistant, Constraint.lark(f'start: "<" call ">"\ncall: %json {json.dumps(schema)}\n'), max_tokens=200)
    assert reply.wait().startswith("<{")
    assert "Not enforced while this reply is generated: uniqueItems." in reply.notices
    assert not any("breaks its schema" in notice for notice in reply.notices)
