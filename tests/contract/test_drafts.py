"""Draft tokens: a pass over them equals a pass for each, and what does not come true leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest

from edge.backends.base import MAX_DRAFT, Backend
from edge.errors import BackendError, ContextFullError, UnsupportedError, UsageError
from edge.types import Sampling
from tests.contract.entries import Bench
from tests.contract.test_cache import assert_close, fresh

GREEDY = Sampling(temperature=0)


@pytest.fixture
def drafting(bench: Bench) -> Bench:
    if not bench.backend.capabilities.drafts:
        pytest.skip("it takes no drafts")
    return bench


def greedy(backend: Backend, seq_id: int, n_back: int = 0) -> int:
    sampler = backend.open_sampler(GREEDY)
    try:
        return sampler.sample(seq_id, n_back)
    finally:
        sampler.close()


def test_who_takes_none_says_so(bench: Bench) -> None:
    if bench.backend.capabilities.drafts:
        pytest.skip("it takes drafts")
    bench.backend.prefill(0, bench.tokens(5, seed=1))
    with pytest.raises(UnsupportedError, match="draft"):
        bench.backend.decode([(0, 50)], {0: [51, 52]})
    assert bench.backend.length(0) == 5


@pytest.mark.parametrize("n_draft", [1, 3, MAX_DRAFT])
def test_logits_after_each_draft_token_are_those_of_a_pass_for_each(drafting: Bench, n_draft: int) -> None:
    backend, prompt, rest = drafting.backend, drafting.tokens(40, seed=2), drafting.tokens(1 + n_draft, seed=3)
    backend.prefill(0, prompt)
    expected = []
    for token in rest:
        backend.decode([(0, token)])
        expected.append(backend.logits(0))
    backend.rewind(0, len(prompt))
    backend.decode([(0, rest[0])], {0: rest[1:]})
    assert backend.length(0) == len(prompt) + len(rest)
    assert_close(backend.logits(0), expected[-1], drafting.tolerance)
    for n_back in range(n_draft + 1):
        logits = expected[-1 - n_back]
        chosen = greedy(backend, 0, n_back)
        assert logits[chosen] >= logits.max() - 2 * drafting.tolerance, n_back


def test_what_is_rewound_leaves_nothing(drafting: Bench) -> None:
    backend, prompt, wrong = drafting.backend, drafting.tokens(40, seed=4), drafting.tokens(7, seed=5)
    right = [*prompt, wrong[0], wrong[1], *drafting.tokens(5, seed=6)]
    expected = fresh(backend, right)
    backend.rewind(0, 0)
    backend.prefill(0, prompt)
    backend.decode([(0, wrong[0])], {0: wrong[1:]})
    backend.rewind(0, len(prompt) + 2)
    with pytest.raises(BackendError, match="no newest logits"):
        backend.logits(0)
    for token in right[len(prompt) + 2 :]:
        backend.decode([(0, token)])
    assert_close(backend.logits(0), expected, drafting.tolerance)


def test_several_sequences_with_and_without_a_draft(drafting: Bench) -> None:
    backend = drafting.backend
    prompts = {seq_id: drafting.tokens(20 + seq_id, seed=10 + seq_id) for seq_id in range(3)}
    rests = {0: drafting.tokens(3, seed=20), 1: drafting.tokens(1, seed=21), 2: drafting.tokens(5, seed=22)}
    expected = {}
    for seq_id, prompt in prompts.items():
        expected[seq_id] = fresh(backend, [*prompt, *rests[seq_id]])
        backend.rewind(0, 0)
    for seq_id, prompt in prompts.items():
        backend.prefill(seq_id, prompt)
    drafts = {0: rests[0][1:], 2: rests[2][1:]}
    backend.decode([(seq_id, rest[0]) for seq_id, rest in rests.items()], drafts)
    for seq_id, logits in expected.items():
        assert backend.length(seq_id) == len(prompts[seq_id]) + len(rests[seq_id])
        assert_close(backend.logits(seq_id), logits, drafting.tolerance)
    backend.decode([(1, 60)])  # another pass leaves the newest logits of the others, and no older ones
    for seq_id in (0, 2):
        assert_close(backend.logits(seq_id), expected[seq_id], drafting.tolerance)


def test_a_plain_pass_ends_the_older_logits(drafting: Bench) -> None:
    backend = drafting.backend
    backend.prefill(0, drafting.tokens(10, seed=30))
    backend.decode([(0, 60)], {0: [61, 62]})
    greedy(backend, 0, 2)
    with pytest.raises(BackendError, match="no newest logits"):
        greedy(backend, 0, 3)
    backend.decode([(0, 63)])
    with pytest.raises(BackendError, match="no newest logits"):
        greedy(backend, 0, 1)
    backend.rewind(0, 5)
    backend.prefill(0, [64, 65])
    with pytest.raises(BackendError, match="no newest logits"):
        greedy(backend, 0, 1)


def test_a_draft_that_does_not_fit_changes_nothing(drafting: Bench) -> None:
    backend = drafting.backend
    tokens = drafting.tokens(backend.n_ctx - 3, seed=31)
    backend.prefill(0, tokens)
    before = backend.logits(0)
    with pytest.raises(ContextFullError):
        backend.decode([(0, 60)], {0: [61, 62, 63]})
    assert backend.length(0) == len(tokens)
    np.testing.assert_array_equal(backend.logits(0), before)
    backend.decode([(0, 60)], {0: [61, 62]})
    assert backend.length(0) == backend.n_ctx


@pytest.mark.parametrize(
    ("steps", "drafts"),
    [
        ([(0, 60)], {1: [61]}),
        ([(0, 60)], {0: [10**7]}),
        ([(0, 60)], {0: [-1]}),
        ([(0, 60)], {0: [61] * (MAX_DRAFT + 1)}),
        ([(0, 60), (1, 60)], {0: [61] * 9, 1: [61] * 8}),
    ],
)
def test_wrong_drafts_are_refused(drafting: Bench, steps: list[tuple[int, int]], drafts: dict[int, list[int]]) -> None:
    backend = drafting.backend
    for seq_id in (0, 1):
        backend.prefill(seq_id, [50, 51])
    with pytest.raises(UsageError):
        backend.decode(steps, drafts)
    assert [backend.length(seq_id) for seq_id in (0, 1)] == [2, 2]
