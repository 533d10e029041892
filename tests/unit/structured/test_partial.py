"""Values of JSON that is not whole yet."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.structured.partial import PartialJSON

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def value_of(text: str) -> Any:
    parser = PartialJSON()
    parser.feed(text)
    return parser.value()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("{", {}),
        ('{"na', {}),
        ('{"name"', {}),
        ('{"name": ', {}),
        ('{"name": "', {"name": ""}),
        ('{"name": "Ad', {"name": "Ad"}),
        ('{"name": "Ada", "age": 3', {"name": "Ada"}),
        ('{"name": "Ada", "age": 36,', {"name": "Ada", "age": 36}),
        ('{"name": "Ada", "age": 36}', {"name": "Ada", "age": 36}),
        ('{"a": tru', {}),
        ('{"a": true ', {"a": True}),
        ('{"a": [', {"a": []}),
        ('{"a": [1, 2', {"a": [1]}),
        ('{"a": [1, {"b": [', {"a": [1, {"b": []}]}),
        ('["a\\', ["a"]),
        ('["a\\n', ["a\n"]),
        ('["a\\u00', ["a"]),
        ('["a\\u00e9', ["aé"]),
        ('["\\ud83d', [""]),
        ('["\\ud83d\\ude', [""]),
        ('["\\ud83d\\ude00', ["😀"]),
        ('["\\\\', ["\\"]),
        ('["a}],{', ["a}],{"]),
        ("[-", []),
        ("[1.5e", []),
        ("[1.5e3]", [1500.0]),
        ('"abc', "abc"),
        ("12", None),
        ("no JSON", None),
        ("]", None),
    ],
)
def test_what_is_certain_so_far(text: str, value: Any) -> None:
    assert value_of(text) == value


def grows(old: Any, new: Any) -> bool:
    """Tell if a value is the beginning of another."""
    if old is None or old == new:
        return True
    if isinstance(old, str):
        return isinstance(new, str) and new.startswith(old)
    if isinstance(old, list):
        return isinstance(new, list) and len(old) <= len(new) and all(map(grows, old, new))
    if isinstance(old, dict):
        return isinstance(new, dict) and all(key in new and grows(value, new[key]) for key, value in old.items())
    return False


@settings(max_examples=150, deadline=None)
@given(VALUES, st.booleans(), st.integers(0, 2**32))
def test_values_grow_to_the_whole_however_the_text_is_split(value: Any, is_ascii: bool, seed: int) -> None:
    text = json.dumps(value, ensure_ascii=is_ascii)
    choose, parser, last, position = random.Random(seed), PartialJSON(), None, 0
    while position < len(text):
        end = position + choose.randint(1, 4)
        parser.feed(text[position:end])
        position = end
        newest = parser.value()
        assert grows(last, newest), (text[:position], last, newest)
        last = newest
    if isinstance(value, dict | list | str):
        assert last == value
