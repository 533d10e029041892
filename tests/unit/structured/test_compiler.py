"""Compiled constraints: what they allow, what they force, and what they refuse by name."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import numpy as np
import pytest

from edge.backends.fake import FakeTokenizer
from edge.constraint import Constraint
from edge.errors import BackendError, BackendUnavailableError, ConstraintError, UnsupportedError
from edge.prompt.tokenizers import Token
from edge.structured.compiler import Compiler
from edge.structured.matcher import GrammarMatcher

ENDS = [257, 258]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE = 'start: "a" | "(" start ")"'
ODD = ['"\\/\n', "日本😀", "<|im_end|>"]


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(FakeTokenizer())


def matcher(compiler: Compiler, constraint: Constraint) -> GrammarMatcher:
    return compiler.compile(constraint).matcher()


def takes(compiler: Compiler, constraint: Constraint, text: str) -> str:
    """Tell how a text fares: "no", "more" (a beginning), "maybe" (it may end), "over" (it must)."""
    one = matcher(compiler, constraint)
    for byte in text.encode():
        if not one.allowed()[byte]:
            return "no"
        assert not one.is_over
        one.accept(byte)
    assert one.is_complete or not one.is_over
    assert [bool(one.allowed()[end]) for end in ENDS] == [one.is_complete] * 2
    return "over" if one.is_over else "maybe" if one.is_complete else "more"


@pytest.mark.parametrize(
    ("constraint", "text", "expected"),
    [
        (Constraint.json_schema(PERSON), '{"name": "Ada", "age": 36}', "over"),
        (Constraint.json_schema(PERSON), '{"name": "Ada", "age": -', "no"),
        (Constraint.json_schema(PERSON), '{"name": "Ada", "age": 3', "more"),
        (Constraint.json_schema(PERSON), '{"name":"Ada"', "no"),  # separators are fixed
        (Constraint.json_schema(PERSON), "{\n", "no"),
        (Constraint.json_schema(PERSON), '{"age"', "no"),  # in the order of the schema
        (Constraint.json_schema(PERSON), '{"name": "Zoë \\n \\""', "more"),
        (Constraint.json_schema({"type": "integer"}), "12", "maybe"),
        (Constraint.json_schema(True), "[1, null]", "over"),
        (Constraint.json_object(), '{"a": {"b": []}}', "over"),
        (Constraint.json_object(), "[", "no"),
        (Constraint.json_object(), "{ ", "no"),
        (Constraint.regex(r"[a-c]{2}-\d+"), "ab-1", "maybe"),
        (Constraint.regex(r"[a-c]{2}-\d"), "ab-1", "over"),
        (Constraint.regex("a/b"), "a/b", "over"),
        (Constraint.regex("(?s:.)x"), "\nx", "over"),
        (Constraint.regex(".x"), "\n", "no"),
        (Constraint.lark(TREE), "((a))", "over"),
        (Constraint.lark(TREE), "((a", "more"),
        (Constraint.gbnf('root ::= "a" | "(" root ")"'), "((a))", "over"),
        (Constraint.choices(["yes", "no", "yes, please"]), "yes", "maybe"),
        (Constraint.choices(["yes", "no", "yes, please"]), "no", "over"),
        (Constraint.choices(["yes", "no"]), "nope", "no"),
        *((Constraint.choices(ODD), text, "over") for text in ODD),
    ],
)
def test_texts_and_how_they_fare(compiler: Compiler, constraint: Constraint, text: str, expected: str) -> None:
    assert takes(compiler, constraint, text) == expected


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_drawn_is_valid(compiler: Compiler, seed: int) -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["a", "b"]},
            "items": {"type": "array", "items": {"$ref": "#/$defs/item"}, "maxItems": 3},
            "note": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 5}]},
        },
        "required": ["kind", "items", "note"],
        "additionalProperties": False,
        "$defs": {"item": {"type": "object", "properties": {"n": {"type": "number", "maximum": 9}}, "required": ["n"]}},
    }
    one, choose, written = matcher(compiler, Constraint.json_schema(schema)), random.Random(seed), bytearray()
    while not one.is_over and len(written) < 3000:
        allowed = [int(token) for token in np.flatnonzero(one.allowed())]
        closing = [token for token in allowed if token < 128 and chr(token) in '"}]'] if len(written) > 200 else []
        token = choose.choice(closing or allowed)
        one.accept(token)
        written.append(token)
    jsonschema_rs.validate(schema, json.loads(written))


def test_no_special_token_is_allowed_inside_and_ends_only_where_it_may_end(compiler: Compiler) -> None:
    one = matcher(compiler, Constraint.json_schema({"type": "string"}))
    one.accept(ord('"'))
    assert not one.allowed()[256:].any()
    one.accept(ord('"'))
    assert list(np.flatnonzero(one.allowed())) == ENDS


def test_what_is_forced_is_written_in_letters(compiler: Compiler) -> None:
    one = matcher(compiler, Constraint.json_schema({"const": "a<|im_end|>b"}))
    forced = one.forced()
    assert bytes(forced) == b'"a<|im_end|>b"'
    for token in forced:
        one.accept(token)
    assert one.is_over
    assert one.forced() == []


def test_asking_changes_nothing(compiler: Compiler) -> None:
    one = matcher(compiler, Constraint.json_schema(PERSON))
    assert bytes(one.forced()) == b'{"name": "'
    assert one.n_valid(b'{"name": "x", "age": 1}') == 23
    assert one.n_valid(b'{"name": 1') == 9
    assert one.n_valid([]) == one.n_valid([257]) == 0
    assert bytes(one.forced()) == b'{"name": "'
    assert list(np.flatnonzero(one.allowed())) == [ord("{")]


def test_replies_do_not_share_their_place(compiler: Compiler) -> None:
    one, other = (matcher(compiler, Constraint.choices(["ab", "ba"])) for _ in range(2))
    one.accept(ord("a"))
    assert list(np.flatnonzero(one.allowed())) == [ord("b")]
    assert list(np.flatnonzero(other.allowed())) == [ord("a"), ord("b")]


def test_a_wrong_token_is_an_error_that_shows_nothing_of_the_text(compiler: Compiler) -> None:
    one = matcher(compiler, Constraint.json_schema(PERSON))
    for byte in b'{"name": "secret':
        one.accept(byte)
    with pytest.raises(ConstraintError) as caught:
        one.accept(256)
    assert "secret" not in str(caught.value)


# -- what is refused


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"not": {"pattern": "a"}}, '"not" at #'),
        ({"type": "array", "uniqueItems": True}, '"uniqueItems" at #'),
        ({"properties": {"a": {"items": {"if": {}}}}}, '"if" at #/properties/a/items'),
        ({"properties": {"not": {"type": "string", "format": "iri"}}}, '"format: iri" at #/properties/not'),
        ({"$defs": {"a/b": {"contains": {}}}, "$ref": "#/$defs/a~1b"}, '"contains" at #/\\$defs/a~1b'),
        ({"anyOf": [{}, {"propertyNames": {}}]}, '"propertyNames" at #/anyOf/1'),
        ({"type": "string", "pattern": "(?=a)b"}, '"pattern" at #.*look-around'),
        ({"type": "string", "pattern": r"(a)\1"}, '"pattern" at #.*backreferences'),
        ({"$ref": "https://example.com/x"}, r'"\$ref" at #.*does not fetch'),
        ({"type": "foo"}, "Invalid type: foo"),
        ({"properties": 3}, "properties"),
        (False, "No JSON is valid"),
        ({"enum": []}, "No JSON is valid"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "No JSON is valid"),
        ({"x-guidance": {"lenient": True}, "not": {"minimum": 1}}, '"not" at #'),
    ],
)
def test_a_schema_is_refused_by_the_keyword_and_its_place(compiler: Compiler, schema: Any, says: str) -> None:
    with pytest.raises(ConstraintError, match=says):
        compiler.compile(Constraint.json_schema(schema))


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        (Constraint.regex("("), "regular expression.*unclosed"),
        (Constraint.regex("a{,3}"), "regular expression.*decimal"),
        (Constraint.regex(r"\bfoo"), "regular expression.*lookarounds"),
        (Constraint.lark("start: foo"), r'Lark grammar.*unknown name: "foo" \(line 1, column 8\)'),
        (Constraint.lark('begin: "a"'), "Lark grammar.*start"),
        (Constraint.gbnf('root ::= "a'), "GBNF grammar"),
        (Constraint.gbnf('root ::= "a" b'), "GBNF grammar.*'b'"),
    ],
)
def test_grammars_are_refused_with_a_reason(compiler: Compiler, constraint: Constraint, says: str) -> None:
    with pytest.raises(ConstraintError, match=says):
        compiler.compile(constraint)


def test_a_lenient_schema_lists_what_it_does_not_enforce(compiler: Compiler) -> None:
    schema = {"properties": {"a": {"not": {"minimum": 1}}, "b": {"type": "string", "format": "iri"}}, "uniqueItems": True}
    compiled = compiler.compile(Constraint.json_schema(schema, strict=False))
    assert set(compiled.ignored) == {"not", "format: iri", "uniqueItems"}
    with pytest.raises(ConstraintError, match="pattern"):  # nothing can be made of that
        compiler.compile(Constraint.json_schema({"type": "string", "pattern": "(?=a)"}, strict=False))


BOMBS: dict[str, Any] = {
    "properties": {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}},
    "all of any of": {
        "allOf": [{"anyOf": [{"properties": {f"x{i}{j}": {"type": "string"}}} for j in range(8)]} for i in range(8)]
    },
    "enum": {"enum": [f"{i:x}" * 4 for i in range(60_000)]},
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(compiler: Compiler, name: str) -> None:
    with pytest.raises(ConstraintError, match=r"too (large|big)|bytes"):
        compiler.compile(Constraint.json_schema(BOMBS[name]))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "string", "pattern": "^(a|b)*a(a|b){200}$"},
        {"type": "string", "minLength": 1000, "maxLength": 1_000_000},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1500)}},
    ],
)
def test_what_is_slow_elsewhere_is_bounded_here(compiler: Compiler, schema: Any) -> None:
    """It may end in an error; what it must not is run away. llguidance counts its steps, so this is the same everywhere."""
    one, choose = matcher(compiler, Constraint.json_schema(schema)), random.Random(1)
    try:
        for _ in range(200):
            allowed = np.flatnonzero(one.allowed()[:256])
            if not len(allowed):
                break
            one.accept(int(choose.choice(allowed)))
    except ConstraintError as error:
        assert "cannot go on under its schema" in str(error)


# -- compiling


def test_a_constraint_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Constraint] = []
    compile_one = Compiler._compile

    def counted(self: Compiler, constraint: Constraint) -> Any:
        made.append(constraint)
        return compile_one(self, constraint)

    monkeypatch.setattr(Compiler, "_compile", counted)
    fresh = Compiler(FakeTokenizer())
    threads = [threading.Thread(target=fresh.compile, args=(Constraint.regex("abc"),)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    for number in range(80):
        fresh.compile(Constraint.regex(f"x{number}"))
    fresh.compile(Constraint.regex("x79"))
    assert len(made) == 81
    fresh.compile(Constraint.regex("abc"))  # dropped meanwhile
    assert len(made) == 82


def test_a_closed_model_and_one_without_ends_are_refused() -> None:
    class Endless(FakeTokenizer):
        def entries(self) -> Iterator[Token]:
            return (entry._replace(is_end=False) for entry in super().entries())

    with pytest.raises(UnsupportedError, match="ends a reply"):
        Compiler(Endless()).compile(Constraint.regex("a"))
    tokenizer = FakeTokenizer()
    tokenizer.close()
    with pytest.raises(BackendError, match="closed"):
        Compiler(tokenizer).compile(Constraint.regex("a"))


def test_without_llguidance_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(BackendUnavailableError, match="pip install llguidance"):
        Compiler(FakeTokenizer()).compile(Constraint.regex("a"))
