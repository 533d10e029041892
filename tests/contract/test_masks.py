"""Choosing among some tokens only: `Sampler.sample(..., allowed)`, and `Sampler.accept`, for every engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest

from edge.backends.base import Backend
from edge.errors import BackendError, ConstraintError, UsageError
from edge.types import Sampling
from tests.contract.entries import Bench
from tests.contract.test_sampling import OFF, assert_drawn_from, lift, many, softmax, start

GREEDY = Sampling(temperature=0)
KINDS = [GREEDY, Sampling(temperature=0, presence_penalty=0.1), Sampling(temperature=1.0, seed=3)]
"""The shortest way to a token, the one over all stages, and a draw."""


def mask(backend: Backend, tokens: Iterable[int]) -> npt.NDArray[np.bool_]:
    allowed = np.zeros(backend.info.n_vocab, dtype=bool)
    allowed[list(tokens)] = True
    return allowed


def worst(backend: Backend, n_tokens: int) -> list[int]:
    """The least likely tokens, the likeliest of them first."""
    order = np.argsort(-backend.logits(0), kind="stable")
    return [int(token) for token in order[-n_tokens:]]


@pytest.mark.parametrize("sampling", [GREEDY, KINDS[1]])
def test_the_largest_logit_of_those_allowed_is_taken(bench: Bench, sampling: Sampling) -> None:
    backend = start(bench)
    tokens = worst(backend, 7)
    sampler = backend.open_sampler(sampling)
    assert sampler.sample(0, 0, mask(backend, tokens)) == tokens[0]
    assert sampler.sample(0, 0, mask(backend, tokens[-1:])) == tokens[-1]
    assert sampler.sample(0) == int(backend.logits(0).argmax())


@pytest.mark.parametrize("sampling", KINDS)
def test_the_newest_logits_stay_as_they_are(bench: Bench, sampling: Sampling) -> None:
    backend = start(bench)
    before = backend.logits(0)
    backend.open_sampler(sampling).sample(0, 0, mask(backend, worst(backend, 3)))
    np.testing.assert_array_equal(backend.logits(0), before)


@pytest.mark.parametrize("sampling", KINDS)
def test_a_mask_that_allows_all_changes_nothing(bench: Bench, sampling: Sampling) -> None:
    backend = start(bench)
    plain, masked = backend.open_sampler(sampling), backend.open_sampler(sampling)
    everything = mask(backend, range(backend.info.n_vocab))
    assert [masked.sample(0, 0, everything) for _ in range(20)] == [plain.sample(0) for _ in range(20)]


def test_draws_are_those_of_a_vocabulary_without_the_others(bench: Bench) -> None:
    backend = start(bench)
    wanted = {50: 0.0, 51: -0.7, 52: -1.5}
    bias = lift(backend, {**wanted, 60: 50.0, 61: 49.0})  # likelier by far, and not allowed
    allowed = mask(backend, [*wanted, 70, 71])
    for settings in (OFF, {"top_k": 3, "top_p": 1.0, "min_p": 0.0}, {"top_k": 0, "top_p": 1.0, "min_p": 0.05}):
        sampler = backend.open_sampler(Sampling(temperature=1.0, seed=5, logit_bias=bias, **settings))
        drawn = Counter(sampler.sample(0, 0, allowed) for _ in range(many(backend)))
        assert_drawn_from(drawn, softmax(wanted))


def test_logits_that_a_later_pass_overwrote_are_masked_too(bench: Bench) -> None:
    backend = start(bench)
    tokens = worst(backend, 5)
    backend.prefill(1, bench.tokens(6, 7))
    for sampling in (GREEDY, KINDS[1]):
        assert backend.open_sampler(sampling).sample(0, 0, mask(backend, tokens)) == tokens[0]


def test_tokens_of_a_draft_are_masked_too(bench: Bench) -> None:
    backend = start(bench)
    if not backend.capabilities.drafts:
        pytest.skip("it takes no drafts")
    backend.decode([(0, 60)], {0: [61, 62]})
    sampler = backend.open_sampler(GREEDY)
    assert [sampler.sample(0, n_back, mask(backend, [80 + n_back])) for n_back in (2, 1, 0)] == [82, 81, 80]


def test_penalties_see_what_was_chosen_under_a_mask_and_what_was_accepted(bench: Bench) -> None:
    backend = start(bench)
    bias = lift(backend, {70: 3.0, 71: 2.0, 72: 1.0, 73: 0.0})
    sampler = backend.open_sampler(Sampling(temperature=0, logit_bias=bias, presence_penalty=50.0))
    allowed = mask(backend, [70, 71, 72, 73])
    assert sampler.sample(0, 0, allowed) == 70
    sampler.accept([71])
    assert sampler.sample(0, 0, allowed) == 72
    sampler.accept([])
    assert sampler.sample(0) == 73


def test_accepted_tokens_change_nothing_without_penalties(bench: Bench) -> None:
    backend = start(bench)
    best = int(backend.logits(0).argmax())
    sampler = backend.open_sampler(GREEDY)
    sampler.accept([best, best])
    assert sampler.sample(0) == best


@pytest.mark.parametrize("sampling", KINDS)
def test_no_token_at_all_is_an_error_and_the_sampler_goes_on(bench: Bench, sampling: Sampling) -> None:
    backend = start(bench)
    sampler, other = backend.open_sampler(sampling), backend.open_sampler(sampling)
    with pytest.raises(ConstraintError, match="no token is left"):
        sampler.sample(0, 0, mask(backend, []))
    assert sampler.sample(0) == other.sample(0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_forbidden_token_is_not_chosen_for_want_of_others(bench: Bench, temperature: float) -> None:
    backend = start(bench)
    sampler = backend.open_sampler(Sampling(temperature=temperature, logit_bias={50: -math.inf, 51: -math.inf}, **OFF))
    assert {sampler.sample(0, 0, mask(backend, [50, 51, 52])) for _ in range(20)} == {52}
    with pytest.raises(ConstraintError, match="logit_bias"):
        sampler.sample(0, 0, mask(backend, [50, 51]))


def test_a_mask_of_another_vocabulary_and_unknown_tokens_are_refused(bench: Bench) -> None:
    backend = start(bench)
    sampler = backend.open_sampler(GREEDY)
    with pytest.raises(UsageError, match="mask"):
        sampler.sample(0, 0, np.ones(backend.info.n_vocab + 1, dtype=bool))
    for token in (-1, backend.info.n_vocab):
        with pytest.raises(UsageError, match="no token"):
            sampler.accept([token])
    sampler.close()
    with pytest.raises(BackendError, match="closed"):
        sampler.accept([1])
