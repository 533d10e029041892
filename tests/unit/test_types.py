"""Values are checked where they are made."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import fields, replace
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from edge.errors import UsageError
from edge.types import Message, Sampling, SamplingOptions

NAN, INF = float("nan"), float("inf")
INTS = ("top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "seed", "max_tokens")
TEXTS = ("stop", "dry_sequence_breakers")
FLOATS = tuple(one.name for one in fields(Sampling) if one.name not in (*INTS, *TEXTS, "logit_bias"))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", ["1", b"1", None, True, NAN, INF, -INF, 1e300, [1], 1j, Decimal("NaN"), 10**400])
def test_a_number_of_the_wrong_kind_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        Sampling(**{name: value})
    assert caught.value.hint


@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("value", ["1", 1.5, 1.0, NAN, True, Decimal(1), [1], 2**70, -(2**70)])
def test_a_count_of_the_wrong_kind_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})


@pytest.mark.parametrize("name", ["top_k", "repeat_last_n", "max_tokens"])
def test_counts_that_would_wrap_round_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="out of range"):
        Sampling(**{name: 2**32 + 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in INTS if name not in ("seed", "max_tokens")])
def test_only_seed_and_max_tokens_may_be_none(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: None})  # type: ignore[arg-type]
    assert Sampling(seed=None, max_tokens=None).seed is None


def test_numbers_of_other_libraries_become_plain_ones() -> None:
    sampling = Sampling(temperature=np.float32(0.5), top_p=Decimal("0.5"), min_p=Fraction(1, 4), top_k=np.int64(3))  # type: ignore[arg-type]
    assert (sampling.temperature, sampling.top_p, sampling.min_p, sampling.top_k) == (0.5, 0.5, 0.25, 3)
    assert [type(value) for value in (sampling.temperature, sampling.top_p, sampling.min_p, sampling.top_k)] == [
        float, float, float, int,
    ]  # fmt: skip
    assert type(Sampling(temperature=1).temperature) is float


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", [None, 5, b"END", (b"x",), (5,), ("",), "", ("\ud800",), {"END": 1}, ["ok", None]])
def test_texts_of_the_wrong_kind_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        Sampling(**{name: value})


@pytest.mark.parametrize("name", TEXTS)
def test_one_text_is_one_text(name: str) -> None:
    assert getattr(Sampling(**{name: "END"}), name) == ("END",)  # type: ignore[arg-type]
    assert getattr(Sampling(**{name: ["a", "b"]}), name) == ("a", "b")  # type: ignore[arg-type]
    assert getattr(Sampling(**{name: []}), name) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "value",
    [None, [(5, 1.0)], {"x": 1.0}, {5: "x"}, {5.0: 1}, {5: None}, {-1: 1.0}, {5: NAN}, {5: INF}, {5: 1e300}, {2**40: 1}],
)
def test_biases_of_the_wrong_kind_are_refused(value: Any) -> None:
    with pytest.raises(UsageError, match="logit_bias"):
        Sampling(logit_bias=value)


def test_biases_as_json_gives_them_are_taken() -> None:
    assert Sampling(logit_bias={"5": 1, 6: -INF, np.int32(7): np.float32(0.5)}).logit_bias == {5: 1.0, 6: -INF, 7: 0.5}  # type: ignore[dict-item]


@pytest.mark.parametrize("content", [None, b"hi", 5, ["hi"]])
def test_the_content_of_a_message_is_text(content: Any) -> None:
    with pytest.raises(UsageError, match="text"):
        Message("user", content)
    with pytest.raises(UsageError, match="text"):
        Message("user", "hi", content or 5)


def test_a_message_has_a_known_role() -> None:
    with pytest.raises(UsageError, match="no role"):
        Message("robot", "hi")  # type: ignore[arg-type]


def test_a_tiny_temperature_is_greedy() -> None:
    assert [Sampling(temperature=value).is_greedy for value in (0, 1e-300, 1e-38, 1e-7, 1e-3)] == [True] * 4 + [False]


# -- what is given and what inherits


def test_what_is_not_given_inherits() -> None:
    advice = Sampling(temperature=0.2, top_p=0.9)
    call = Sampling(max_tokens=5, top_p=0.95)
    assert call.over(advice) == Sampling(temperature=0.2, top_p=0.95, max_tokens=5)
    assert Sampling(max_tokens=None).over(Sampling(max_tokens=7)).max_tokens is None, "None is a value"
    assert Sampling(temperature=0.7).over(advice).temperature == 0.7, "so is the default"
    assert Sampling().over(advice) == advice
    assert call.over(advice).given == {"temperature", "top_p", "max_tokens"}


def test_what_was_given_is_no_part_of_the_value() -> None:
    assert Sampling() == Sampling(temperature=0.7)
    assert (repr(Sampling()), Sampling().temperature) == (repr(Sampling(temperature=0.7)), 0.7)
    assert "given" not in {field.name for field in fields(Sampling)}
    assert list(inspect.signature(Sampling).parameters) == [field.name for field in fields(Sampling)]


def test_what_was_given_survives_copies() -> None:
    sampling = Sampling(0.5, max_tokens=3)
    for other in (copy.copy(sampling), copy.deepcopy(sampling), pickle.loads(pickle.dumps(sampling))):
        assert (other, other.given) == (sampling, {"temperature", "max_tokens"})
    assert replace(sampling, top_k=1).given == {field.name for field in fields(Sampling)}, "a whole of its own"


def test_every_field_is_an_option() -> None:
    assert list(SamplingOptions.__annotations__) == [field.name for field in fields(Sampling)]
