"""The value: made once and refused where it is made."""

from __future__ import annotations

import copy
import pickle
from collections import ChainMap
from typing import Any

import pytest

from edge import Constraint
from edge.errors import ConstraintError, UsageError


def test_equal_rules_are_equal_and_serve_as_keys() -> None:
    schema = {"type": "object", "properties": {"é": {"const": 1}}}
    one, same = Constraint.json_schema(schema), Constraint.json_schema('{"type": "object", "properties": {"é": {"const": 1}}}')
    assert one == same
    assert len({one, same, Constraint.json_schema(schema, strict=False), Constraint.regex("a")}) == 3
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one


def test_the_order_of_properties_counts() -> None:
    one, other = ({"properties": {key: {} for key in order}} for order in ("ab", "ba"))
    assert Constraint.json_schema(one) != Constraint.json_schema(other)


def test_mappings_of_any_kind_and_booleans_are_schemas() -> None:
    assert Constraint.json_schema(ChainMap({"type": "object"}, {})).source == '{"type": "object"}'
    assert Constraint.json_schema({"properties": {"a": ChainMap({"const": 1})}}).source == '{"properties": {"a": {"const": 1}}}'
    assert Constraint.json_schema(True).source == "true"


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ("", "not JSON"),
        (3, "JSON object"),
        (None, "JSON object"),
        ({"const": float("nan")}, "written as JSON"),
        ({"const": {1, 2}}, "written as JSON"),
        ({"const": b"x"}, "written as JSON"),
        ({"title": "x" * (1 << 20)}, "bytes"),
    ],
)
def test_what_is_no_schema(schema: Any, says: str) -> None:
    with pytest.raises(ConstraintError, match=says):
        Constraint.json_schema(schema)


@pytest.mark.parametrize("n", [51, 5000, 200_000])
def test_deep_schemas_are_refused_without_recursion(n: int) -> None:
    with pytest.raises(ConstraintError, match=r"nested|bytes"):
        Constraint.json_schema('{"items": [' * n + "]}" * n)
    nested: Any = {}
    for _ in range(min(n, 5000)):
        nested = {"items": [nested]}
    with pytest.raises(ConstraintError, match="nested"):
        Constraint.json_schema(nested)


def test_a_schema_that_contains_itself_is_refused() -> None:
    nested: dict[str, Any] = {}
    nested["items"] = nested
    with pytest.raises(ConstraintError, match="nested"):
        Constraint.json_schema(nested)


def test_choices_are_texts() -> None:
    assert Constraint.choices(["b", "a", "b"]).source == '["b", "a"]'
    for wrong in ("ab", b"ab", 3, [1], None):
        with pytest.raises(UsageError, match="texts"):
            Constraint.choices(wrong)  # type: ignore[arg-type]
    for empty in ([], ["a", ""]):
        with pytest.raises(ConstraintError, match="choice"):
            Constraint.choices(empty)


def test_kinds_and_sources_are_checked() -> None:
    with pytest.raises(UsageError, match="kind"):
        Constraint("xml", "<a/>")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="text"):
        Constraint.regex(3)  # type: ignore[arg-type]
    for empty in (Constraint.regex, Constraint.lark, Constraint.gbnf):
        with pytest.raises(ConstraintError, match="empty"):
            empty(" ")
