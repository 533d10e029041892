from __future__ import annotations

import dataclasses

import pytest

from edge.errors import UsageError
from edge.types import Sampling
from edge_chat.parameters import PARAMETERS, describe, find, with_value


def test_every_field_of_sampling_can_be_edited() -> None:
    assert set(PARAMETERS) == {field.name for field in dataclasses.fields(Sampling)}


def test_values_are_read_back_as_they_are_shown() -> None:
    changed = Sampling(0.3, 12, seed=7, stop=("a", 'b"\n'), logit_bias={5: -1.5}, max_tokens=100)
    for sampling in (Sampling(), changed):
        rebuilt = Sampling()
        for name in PARAMETERS:
            rebuilt = with_value(rebuilt, name, describe(sampling, name))
        assert rebuilt == sampling


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("temperature", " 0.2 ", 0.2),
        ("Top-K", "1,000", 1000),
        ("seed", "none", None),
        ("seed", "", None),
        ("max_tokens", "50", 50),
        ("stop", "END", ("END",)),
        ("stop", '["a", "b"]', ("a", "b")),
        ("stop", "", ()),
        ("logit_bias", '{"3": 2}', {3: 2.0}),
    ],
)
def test_values(name: str, text: str, value: object) -> None:
    assert getattr(with_value(Sampling(), name, text), find(name).name) == value


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("temprature", "1", "no parameter 'temprature'. Did you mean temperature"),
        ("temperature", "hot", "not a number"),
        ("temperature", "-1", "out of range"),
        ("temperature", "nan", "out of range"),
        ("top_k", "1.5", "not a whole number"),
        ("top_p", "2", "out of range"),
        ("max_tokens", "0", "max_tokens is 0"),
        ("stop", "[1]", "must be texts"),
        ("stop", '["a"', "no"),
        ("stop", '[""]', "empty"),
        ("logit_bias", "[]", "not a JSON object"),
        ("logit_bias", '{"x": 1}', "not a JSON object"),
    ],
)
def test_bad_values_are_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        with_value(Sampling(), name, text)
