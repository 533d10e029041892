"""Keywords expressed by others: the same objects are allowed, by the judgement of another validator."""

from __future__ import annotations

import itertools
import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.backends.fake import FakeTokenizer
from edge.constraint import Constraint
from edge.errors import ConstraintError
from edge.structured.compiler import Compiler
from edge.structured.rewrite import rewrite
from edge.structured.walk import subschemas

OBJECTS: list[Any] = [
    dict(pairs)
    for n in range(4)
    for names in itertools.combinations("abc", n)
    for values in itertools.product((1, "x"), repeat=n)
    for pairs in [zip(names, values, strict=True)]
]
INSTANCES = [*OBJECTS, 1, "x", None, [], ["a"], True]


def allowed(schema: Any) -> list[Any]:
    validator = jsonschema_rs.validator_for(schema)
    return [instance for instance in INSTANCES if validator.is_valid(instance)]


def rewritten(schema: Any) -> Any:
    return json.loads(rewrite(json.dumps(schema)))


A, B, C = ({"required": [name]} for name in "abc")


@pytest.mark.parametrize(
    ("schema", "gone"),
    [
        ({"dependentRequired": {"a": ["b", "c"]}}, "dependentRequired"),
        ({"dependentSchemas": {"a": {"properties": {"b": {"type": "string"}}, "required": ["b"]}}}, "dependentSchemas"),
        (
            {"dependencies": {"a": ["b"], "b": {"required": ["c"]}}, "$schema": "http://json-schema.org/draft-07/schema#"},
            "dependencies",
        ),
        ({"not": {"required": ["a"]}}, "not"),
        ({"not": {"required": ["a", "b"]}, "allOf": [C]}, "not"),
        ({"oneOf": [A, B]}, "oneOf"),
        ({"oneOf": [A, B, {"required": ["a", "c"]}]}, "oneOf"),
        ({"oneOf": [A, {"required": ["a"]}]}, "oneOf"),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]}, "oneOf"),
        ({"oneOf": [{"enum": [1, "x"]}, {"const": None}]}, "oneOf"),
        ({"oneOf": [{"type": "object", **A, "properties": {"a": {"const": n}}} for n in (1, "x")]}, "oneOf"),
        ({"properties": {"a": {"oneOf": [{"type": "string"}, {"type": "number"}]}}, "required": ["a"]}, "oneOf"),
        ({"not": {"type": "string"}}, "not"),
        ({"not": {"type": ["number", "object"]}, "required": ["a"]}, "not"),
        ({"properties": {"a": {"not": {}}}}, "not"),
        ({"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "string"}}, "propertyNames"),
        ({"propertyNames": {"pattern": "[ab]"}}, "propertyNames"),
        ({"minProperties": 1, "properties": {"a": {}, "b": {}}, "additionalProperties": False}, "minProperties"),
        ({"minProperties": 1, "properties": {"a": {}}, "additionalProperties": False, "required": ["a"]}, "minProperties"),
        ({"uniqueItems": False}, "uniqueItems"),
        ({"uniqueItems": True, "maxItems": 1.0}, "uniqueItems"),
    ],
)
def test_the_same_is_allowed(schema: Any, gone: str) -> None:
    changed = rewritten(schema)
    assert not any(gone in each for _, each in subschemas(changed))
    assert allowed(changed) == allowed(schema)


CASES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "string", ["integer", "null"]]),
        "required": st.lists(st.sampled_from("abc"), unique=True, max_size=3),
        "properties": st.dictionaries(
            st.sampled_from("abc"), st.sampled_from([{"const": 1}, {"enum": ["x", 2]}, {"type": "string"}, {}]), max_size=3
        ),
    },
)


@settings(max_examples=300, deadline=None)
@given(st.lists(CASES, min_size=2, max_size=3), st.booleans())
def test_cases_of_one_of_are_never_allowed_together(cases: list[Any], by_reference: bool) -> None:
    schema: Any = {"oneOf": cases}
    if by_reference:
        names = [f"c{n}" for n in range(len(cases))]
        schema = {"oneOf": [{"$ref": f"#/$defs/{name}"} for name in names], "$defs": dict(zip(names, cases, strict=True))}
    after, before = allowed(rewritten(schema)), allowed(schema)
    assert all(instance in before for instance in after)


def test_what_may_be_several_is_left_alone() -> None:
    for cases in (
        [{"minimum": 1}, {"maximum": 5}],
        [{"type": "string"}, {"type": "string", "pattern": "a"}],
        [{}, {"$ref": "x"}],
    ):
        assert rewritten({"oneOf": cases}) == {"oneOf": cases}


def test_what_a_reference_names_stays_in_its_place() -> None:
    schema = {"not": {"required": ["a"]}, "properties": {"b": {"$ref": "#/not/required"}}}
    assert rewritten(schema) == schema


def test_formats_of_the_standard_stay_and_others_are_annotations() -> None:
    assert rewritten({"format": "idn-email"}) == {"format": "idn-email"}
    assert rewritten({"properties": {"format": {"format": "colour"}}}) == {"properties": {"format": {}}}
    assert rewritten({"const": {"format": "colour"}}) == {"const": {"format": "colour"}}


def test_llguidance_enforces_what_was_rewritten() -> None:
    schema = {
        "type": "object",
        "properties": {name: {"type": "integer"} for name in "abc"},
        "additionalProperties": False,
        "oneOf": [A, B],
        "dependentRequired": {"b": ["c"]},
    }
    compiled = Compiler(FakeTokenizer()).compile(Constraint.json_schema(schema))
    for text, is_valid in (
        ('{"a": 1}', True),
        ('{"b": 1, "c": 1}', True),
        ('{"a": 1, "c": 2}', True),
        ('{"a": 1, "b": 1, "c": 1}', False),
        ('{"b": 1}', False),
        ('{"c": 1}', False),
        ("{}", False),
    ):
        assert (compiled.matcher().n_valid(text.encode()) == len(text)) == is_valid, text


def test_schemas_inside_a_lark_grammar_are_rewritten_too() -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "string", "format": "colour"}}, "oneOf": [A, B]})
    compiler = Compiler(FakeTokenizer())
    compiled = compiler.compile(Constraint.lark(f'start: "<" call ">"\ncall: %json {schema}\n'))
    assert compiled.matcher().n_valid(b'<{"a":"x"}>') == 11
    assert compiled.matcher().n_valid(b"<{}>") < 4
    with pytest.raises(ConstraintError, match="Lark grammar"):
        compiler.compile(Constraint.lark("start: call\ncall: %json {broken\n"))
