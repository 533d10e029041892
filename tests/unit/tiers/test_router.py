"""Which questions are sent on."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.config.schema import EscalationSettings
from edge.errors import UsageError
from edge.messages import Message
from edge.tiers.router import EntropyMeter, Router, agreement_of, entropy_of
from edge.types import TokenLogprob


def token(*shares: float) -> TokenLogprob:
    """A token, the first of these by probability."""
    top = tuple(TokenLogprob(n, b"x", math.log(share)) for n, share in enumerate(shares))
    return TokenLogprob(0, b"x", top[0].logprob, top)


def words(text: str) -> int:
    return len(text.split())


def test_entropy_of_known_distributions() -> None:
    assert entropy_of(token(1.0)) == 0
    assert entropy_of(token(0.5, 0.5)) == pytest.approx(math.log(2))
    assert entropy_of(token(*[1 / 16] * 16)) == pytest.approx(math.log(16))
    assert entropy_of(token(0.5)) == pytest.approx(math.log(2)), "the rest counts as one token"


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=30))
def test_entropy_is_a_lower_bound(weights: list[float]) -> None:
    shares = sorted((weight / sum(weights) for weight in weights), reverse=True)
    whole = -math.fsum(share * math.log(share) for share in shares)
    assert 0 <= entropy_of(token(*shares[:20])) <= whole + 1e-6


def test_the_meter_takes_the_mean() -> None:
    meter = EntropyMeter()
    assert meter.mean == 0
    meter.add([token(1.0), token(0.5, 0.5)])
    meter.add([])
    assert meter.n == 2
    assert meter.mean == pytest.approx(math.log(2) / 2)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("Paris.", "paris", 1.0),
        ("It is Paris", "Paris", 0.5),
        ("Paris", "Rome", 0.0),
        ("", "", 1.0),
        ("", "Rome", 0.0),
        ("a a b", "a b b", 2 / 3),
    ],
)
def test_agreement(one: str, other: str, share: float) -> None:
    assert agreement_of(one, other) == pytest.approx(share)
    assert agreement_of(other, one) == pytest.approx(share)


def test_rules_before_an_answer() -> None:
    router = Router(min_tokens=4, patterns=(r"\bprove\b",), route=lambda messages: len(messages) > 3)
    ask = lambda *texts: [Message("user", text) for text in texts]  # noqa: E731
    assert router.before(ask("hi"), words) == ""
    assert "length: 4" in router.before(ask("one two three four"), words)
    assert "prove" in router.before(ask("PROVE it"), words)
    assert router.before(ask("improve it"), words) == ""
    assert "program" in router.before(ask("1", "2", "3", "4"), words)
    assert router.before([Message("user", "prove it"), Message("assistant", "no"), Message("user", "ok")], words) == ""
    assert not router.measures


def test_rules_behind_an_answer() -> None:
    router = Router(max_entropy=1.0, min_agreement=0.5)
    assert router.measures
    assert router.judge_entropy(1.0) == ""
    assert "1.01 above 1.00" in router.judge_entropy(1.01)
    assert router.judge_agreement("a b", "a b") == ""
    assert "0.00 below 0.50" in router.judge_agreement("a", "b")
    assert Router().judge_entropy(99) == Router().judge_agreement("a", "b") == ""
    assert len(router.describe()) == 2


def test_wrong_rules() -> None:
    with pytest.raises(UsageError, match="not a regular expression"):
        Router(patterns=("(",))
    with pytest.raises(UsageError, match="route is a function"):
        Router(route="long")  # type: ignore[arg-type]


def test_settings_give_the_rules() -> None:
    settings = EscalationSettings(max_entropy=None, min_tokens=7, patterns=("x",))
    assert Router.of(settings) == Router(min_tokens=7, patterns=("x",))
