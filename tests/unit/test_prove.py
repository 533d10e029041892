"""Which tests are left to `make prove`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.prove import left_to_prove


def item(name: str, **marks: Any) -> Any:
    found = [pytest.mark.prove.mark, pytest.mark.prove(**marks).mark] if marks else []
    return SimpleNamespace(nodeid=name, iter_markers=lambda name: found)


def test_a_quarter_of_the_cases_of_each_function_stays_the_same_in_any_order() -> None:
    items = [item(f"test_{letter}[{n}]", one_of=4) for letter in "ab" for n in range(17)]
    left = {one.nodeid for one in left_to_prove(items)}
    assert len([one for one in items if one.nodeid not in left and "test_a" in one.nodeid]) == 5
    assert len([one for one in items if one.nodeid not in left and "test_b" in one.nodeid]) == 5
    assert left == {one.nodeid for one in left_to_prove(reversed(items))}


def test_a_function_is_never_left_out_unless_it_says_so() -> None:
    alone, whole, plain = item("test_a[0]", one_of=10), item("test_b", whole_only=True), item("test_c")
    assert list(left_to_prove([alone, whole, plain])) == [whole]
