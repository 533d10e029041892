"""Types as schemas, and texts as their values."""

from __future__ import annotations

import datetime
import decimal
import enum
import json
import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest

from edge.backends.fake import FakeTokenizer
from edge.constraint import Constraint
from edge.errors import ConstraintError, UsageError
from edge.structured.compiler import Compiler
from edge.structured.shapes import shape_of, shape_of_constraint


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Item:
    title: str
    price: decimal.Decimal
    tags: set[str] = field(default_factory=set)


@dataclass
class Invoice:
    number: int
    day: datetime.date
    items: list[Item]
    colour: Colour = Colour.RED
    note: str | None = None
    data: bytes = b""


class Typed(TypedDict):
    a: int


class Named(NamedTuple):
    a: int
    b: str


class Struct(msgspec.Struct):
    a: int
    b: list[str] = []


class Model(pydantic.BaseModel):
    n: int = pydantic.Field(ge=1, le=3)
    d: decimal.Decimal
    s: set[str]
    p: pathlib.Path
    secret: pydantic.SecretStr
    day: datetime.date
    kind: Literal["a", "b"]
    other: Item | None = None


INVOICE = '{"number": 1, "day": "2026-01-02", "items": [{"title": "x", "price": "1.50", "tags": ["a", "a"]}], "data": "YWI="}'
MODEL = '{"n": 2, "d": "1.5", "s": ["x", "x"], "p": "a/b", "secret": "s", "day": "2026-01-02", "kind": "a"}'
CASES: list[tuple[Any, str, Callable[[Any], bool]]] = [
    (Invoice, INVOICE, lambda it: it.items[0] == Item("x", decimal.Decimal("1.50"), {"a"}) and it.data == b"ab"),
    (Model, MODEL, lambda it: it.s == {"x"} and it.p == pathlib.Path("a/b")),
    (Typed, '{"a": 1}', lambda it: it == {"a": 1}),
    (Named, '[1, "x"]', lambda it: it == Named(1, "x")),
    (Struct, '{"a": 1}', lambda it: it == Struct(1)),
    (list[Item], '[{"title": "x", "price": "1"}]', lambda it: it[0].title == "x"),
    (dict[str, int], '{"x": 1}', lambda it: it == {"x": 1}),
    (int, "12", lambda it: it == 12),
    (int | None, "null", lambda it: it is None),
    (Literal["a", "b"], '"b"', lambda it: it == "b"),
    (Colour, '"blue"', lambda it: it is Colour.BLUE),
    (pydantic.TypeAdapter(list[Model]), f"[{MODEL}]", lambda it: it[0].n == 2),
    ({"type": "integer"}, "3", lambda it: it == 3),
    (True, "[]", lambda it: it == []),
]


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(FakeTokenizer())


@pytest.mark.parametrize(("source", "text", "is_right"), CASES)
def test_a_type_allows_its_values_and_reads_them(
    compiler: Compiler, source: Any, text: str, is_right: Callable[[Any], bool]
) -> None:
    shape = shape_of(source)
    matcher = compiler.compile(shape.constraint).matcher()
    assert matcher.n_valid(text.encode()) == len(text)
    assert is_right(shape.decode(text))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Invoice, '{"number": 1, "more"'),  # a type has no other fields
        (Invoice, '{"day"'),
        (Model, '{"n": 4'),
        (Colour, '"green"'),
        (Named, "[1, 2"),
    ],
)
def test_a_type_allows_nothing_else(compiler: Compiler, source: Any, text: str) -> None:
    n_valid = compiler.compile(shape_of(source).constraint).matcher().n_valid(text.encode() + b"x")
    assert n_valid < len(text)


def test_a_field_may_be_called_as_a_keyword_is() -> None:
    schema = json.loads(shape_of(Item).constraint.source)
    assert list(schema["$defs"]["Item"]["properties"]) == ["title", "price", "tags"]
    assert "title" not in schema["$defs"]["Item"]


def test_a_constraint_that_is_not_json_is_its_text() -> None:
    assert shape_of_constraint(Constraint.regex("a+")).decode("aa") == "aa"
    assert shape_of_constraint(Constraint.json_object()).decode('{"a": 1}') == {"a": 1}


@pytest.mark.parametrize("source", ["x", 3, None, object, complex, Item("x", decimal.Decimal(1)), list["Nowhere"]])  # noqa: F821
def test_what_has_no_schema_is_refused(source: Any) -> None:
    with pytest.raises(UsageError, match=r"[Ss]chema"):
        shape_of(source)


def test_a_mapping_that_is_no_schema_is_refused() -> None:
    with pytest.raises(ConstraintError):
        shape_of({"const": {1}})
