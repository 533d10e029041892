"""Choosing tokens: `open_sampler` and `Sampler`, for every setting of edge.types.Sampling.

Distributions are made to order, whatever the engine: a large logit bias lifts a few tokens to known logits above all others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from edge.backends.base import Backend
from edge.errors import BackendError, UsageError
from edge.types import Sampling

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Settings that drop no token."""


def start(bench, n_tokens: int = 8, seed: int = 100) -> Backend:
    """The backend with something in sequence 0."""
    bench.backend.prefill(0, bench.tokens(n_tokens, seed))
    return bench.backend


def lift(backend: Backend, wanted: dict[int, float]) -> dict[int, float]:
    """A logit bias that gives these tokens these logits, 100 above all others."""
    logits = backend.logits(0)
    ceiling = float(logits.max()) + 100.0
    return {token: ceiling + value - float(logits[token]) for token, value in wanted.items()}


def many(backend: Backend) -> int:
    """Return the number of draws that a test can afford: each sorts the vocabulary."""
    return 2000 if backend.info.n_vocab < 1000 else 400


def draw(backend: Backend, sampling: Sampling, n_draws: int, history: Sequence[int] = ()) -> Counter[int]:
    sampler = backend.open_sampler(sampling, history)
    try:
        return Counter(sampler.sample(0) for _ in range(n_draws))
    finally:
        sampler.close()


def softmax(logits: dict[int, float], temperature: float = 1.0) -> dict[int, float]:
    top = max(logits.values())
    weights = {token: math.exp((value - top) / temperature) for token, value in logits.items()}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


def assert_drawn_from(drawn: Counter[int], expected: dict[int, float]) -> None:
    """Only these tokens, and each within five standard deviations of its share (seeded, so this does not flicker)."""
    n_draws = drawn.total()
    assert set(drawn) <= set(expected)
    for token, share in expected.items():
        spread = math.sqrt(n_draws * share * (1 - share))
        assert abs(drawn[token] - n_draws * share) <= 5 * spread + 0.01, (token, drawn[token], n_draws * share)


# -- greedy


def test_temperature_zero_takes_the_largest_logit(bench) -> None:
    backend = start(bench)
    sampler = backend.open_sampler(Sampling(temperature=0))
    for _ in range(12):
        expected = int(backend.logits(0).argmax())
        assert sampler.sample(0) == expected
        backend.decode([(0, expected)])
    sampler.close()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=2.0, top_k=1),
        Sampling(temperature=2.0, top_k=0, top_p=0.0, min_p=0.0),
        Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=1.0),
        Sampling(temperature=0.0, top_k=5, top_p=0.5, min_p=0.2, typical_p=0.5, xtc_probability=1.0),
    ],
)
def test_settings_that_leave_one_token_are_greedy(bench, sampling: Sampling) -> None:
    backend = start(bench)
    assert set(draw(backend, sampling, 8)) == {int(backend.logits(0).argmax())}


# -- the draw


def test_the_same_seed_draws_the_same_tokens(bench) -> None:
    backend = start(bench)

    def tokens(seed: int | None) -> list[int]:
        sampler = backend.open_sampler(Sampling(temperature=3.0, seed=seed, **OFF))
        return [sampler.sample(0) for _ in range(40)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)
    for seed in (0, 2**32 - 1, 2**40 + 3, -5):
        assert tokens(seed) == tokens(seed), seed
    assert tokens(None) != tokens(None)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_draws_follow_the_temperature(bench, temperature: float) -> None:
    backend = start(bench)
    wanted = {50: 0.0, 51: -0.7, 52: -1.5, 53: -3.0}
    sampling = Sampling(temperature=temperature, seed=11, logit_bias=lift(backend, wanted), **OFF)
    assert_drawn_from(draw(backend, sampling, many(backend)), softmax(wanted, temperature))


def test_draws_follow_the_logits_of_the_model(bench) -> None:
    backend = start(bench)
    logits = backend.logits(0).astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    drawn = draw(backend, Sampling(temperature=1.0, seed=12, **OFF), 3000)
    top = np.argsort(-shares)[:8]
    for token in top:
        spread = math.sqrt(3000 * shares[token] * (1 - shares[token]))
        assert abs(drawn[int(token)] - 3000 * shares[token]) <= 5 * spread + 1
    rest = 3000 - sum(drawn[int(token)] for token in top)
    expected_rest = 3000 * (1 - shares[top].sum())
    assert abs(rest - expected_rest) <= 5 * math.sqrt(expected_rest + 1)


# -- cutting off

WANTED = {60: 0.0, 61: math.log(0.5), 62: math.log(0.3), 63: math.log(0.2), 64: math.log(0.02)}
"""Shares 0.495, 0.248, 0.149, 0.099, 0.010."""


def kept(*tokens: int) -> dict[int, float]:
    return softmax({token: WANTED[token] for token in tokens})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, kept(60, 61, 62, 63, 64)),
        ({"top_k": 3}, kept(60, 61, 62)),
        ({"top_p": 0.4}, kept(60)),
        ({"top_p": 0.6}, kept(60, 61)),
        ({"top_p": 0.85}, kept(60, 61, 62)),
        ({"min_p": 0.4}, kept(60, 61)),
        ({"min_p": 0.1}, kept(60, 61, 62, 63)),
        ({"top_k": 2, "top_p": 0.9, "min_p": 0.1}, kept(60, 61)),
        # Surprise closest to the entropy of 1.24 comes first: 61 (1.40), then 60 (0.70), then 62 (1.91).
        ({"typical_p": 0.2}, kept(61)),
        ({"typical_p": 0.7}, kept(60, 61)),
        ({"typical_p": 0.8}, kept(60, 61, 62)),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.12}, kept(62, 63, 64)),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.3}, kept(60, 61, 62, 63, 64)),
        ({"xtc_probability": 0.0, "xtc_threshold": 0.1}, kept(60, 61, 62, 63, 64)),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.2, "top_p": 0.7}, kept(61)),
    ],
)
def test_what_is_cut_off_and_what_is_left(bench, settings: dict[str, float], expected: dict[int, float]) -> None:
    backend = start(bench)
    sampling = Sampling(temperature=1.0, seed=13, logit_bias=lift(backend, WANTED), **{**OFF, **settings})
    assert_drawn_from(draw(backend, sampling, many(backend)), expected)


def test_xtc_acts_as_often_as_it_is_told(bench) -> None:
    backend = start(bench)
    wanted = {60: 0.0, 61: -0.1}
    sampling = Sampling(
        temperature=1.0, seed=14, xtc_probability=0.25, xtc_threshold=0.3, logit_bias=lift(backend, wanted), **OFF
    )
    share = softmax(wanted)[60] * 0.75
    assert_drawn_from(draw(backend, sampling, many(backend)), {60: share, 61: 1 - share})


# -- logit bias and penalties


def test_a_forbidden_token_is_never_drawn(bench) -> None:
    backend = start(bench)
    order = np.argsort(-backend.logits(0))
    forbidden = {int(token): -math.inf for token in order[:3]}
    assert set(draw(backend, Sampling(temperature=0, logit_bias=forbidden), 1)) == {int(order[3])}
    for more in ({}, {"typical_p": 0.9}, {"xtc_probability": 1.0}):
        sampling = Sampling(temperature=1.5, seed=15, logit_bias=forbidden, **{**OFF, **more})
        assert not set(draw(backend, sampling, 100)) & set(forbidden)


def test_a_forbidden_token_does_not_turn_typical_sampling_off(bench) -> None:
    backend = start(bench)
    bias = {**lift(backend, WANTED), 65: -math.inf}
    sampling = Sampling(temperature=1.0, seed=17, typical_p=0.2, logit_bias=bias, **OFF)
    assert set(draw(backend, sampling, 50)) == {61}


def test_a_bias_for_a_token_that_does_not_exist_is_refused(bench) -> None:
    backend = start(bench)
    for token in (-1, backend.info.n_vocab):
        with pytest.raises(UsageError, match="logit_bias"):
            backend.open_sampler(Sampling(logit_bias={token: 1.0}))


@pytest.mark.parametrize(
    ("settings", "winner"),
    [
        ({}, 70),  # 102 before 101 before 100
        ({"presence_penalty": 1.5}, 71),  # 70 occurred: 100.5
        ({"frequency_penalty": 0.4}, 70),  # 70 occurred twice: 101.2
        ({"frequency_penalty": 0.6}, 71),  # 70 occurred twice: 100.8
        ({"repeat_penalty": 1.5}, 71),  # 70 is divided: 68
        ({"presence_penalty": 1.5, "repeat_last_n": 1}, 70),  # the last token is another one
        ({"presence_penalty": 1.5, "repeat_last_n": 2}, 71),
        ({"presence_penalty": 1.5, "repeat_last_n": 0}, 70),
        ({"frequency_penalty": 0.6, "repeat_last_n": 3}, 70),  # only one of the two is near enough
        ({"frequency_penalty": 0.6, "repeat_last_n": -1}, 71),
    ],
)
def test_penalties_look_at_the_history(bench, settings: dict[str, float], winner: int) -> None:
    backend = start(bench)
    logits = backend.logits(0)
    bias = {token: value - float(logits[token]) for token, value in {70: 102.0, 71: 101.0, 72: 100.0}.items()}
    history = [80, 70, 81, 82, 70, 83]
    assert set(draw(backend, Sampling(temperature=0, logit_bias=bias, **settings), 1, history)) == {winner}


def test_penalties_see_what_the_sampler_chose_itself(bench) -> None:
    backend = start(bench)
    bias = lift(backend, {70: 2.0, 71: 1.0, 72: 0.0})
    sampler = backend.open_sampler(Sampling(temperature=0, logit_bias=bias, presence_penalty=50.0))
    assert [sampler.sample(0) for _ in range(3)] == [70, 71, 72]
    sampler.close()


@pytest.mark.parametrize(
    ("settings", "is_punished"),
    [
        ({"dry_multiplier": 0.0}, False),
        ({"dry_multiplier": 5.0}, True),
        ({"dry_multiplier": 5.0, "dry_allowed_length": 3}, True),
        ({"dry_multiplier": 5.0, "dry_allowed_length": 4}, False),
        ({"dry_multiplier": 0.4, "dry_base": 2.0, "dry_allowed_length": 2}, False),  # 0.4 * 2 ** 1 < 1
        ({"dry_multiplier": 0.6, "dry_base": 2.0, "dry_allowed_length": 2}, True),  # 0.6 * 2 ** 1 > 1
        ({"dry_multiplier": 5.0, "dry_penalty_last_n": 5}, False),  # what is repeated is too far back
        ({"dry_multiplier": 5.0, "dry_penalty_last_n": 6}, True),
    ],
)
def test_dry_punishes_going_on_with_a_repeat(bench, settings: dict[str, float], is_punished: bool) -> None:
    backend = start(bench)
    history = [90, 91, 92, 70, 90, 91, 92]  # 70 followed the same three tokens before
    bias = lift(backend, {70: 1.0, 71: 0.0})
    sampling = Sampling(temperature=0, logit_bias=bias, dry_sequence_breakers=(), **settings)
    assert set(draw(backend, sampling, 1, history)) == {71 if is_punished else 70}


def test_dry_does_not_reach_across_a_sequence_breaker(bench) -> None:
    backend = start(bench)
    (newline,) = backend.tokenizer.tokenize("\n")
    bias = lift(backend, {70: 1.0, 71: 0.0})
    history = [90, 91, newline, 92, 70, 90, 91, newline, 92]
    for breakers, winner in ((("\n",), 70), ((), 71), (("#!",), 71)):
        sampling = Sampling(temperature=0, logit_bias=bias, dry_multiplier=5.0, dry_sequence_breakers=breakers)
        for _ in range(2):  # the second sampler comes from the first one's preparation
            assert set(draw(backend, sampling, 1, history)) == {winner}, breakers


# -- where the logits come from, and the end


def test_logits_that_were_put_aside_are_sampled_the_same(bench) -> None:
    backend = start(bench)
    sampling = Sampling(temperature=1.5, seed=16, repeat_penalty=1.2)

    def tokens() -> list[int]:
        sampler = backend.open_sampler(sampling, [50, 51])
        return [sampler.sample(0) for _ in range(30)]

    expected = tokens()
    backend.prefill(1, bench.tokens(20, seed=101))
    backend.decode([(1, 40)])
    assert tokens() == expected


def test_samplers_of_two_sequences_do_not_mix(bench) -> None:
    backend = start(bench)
    backend.prefill(1, bench.tokens(11, seed=102))
    samplers = [backend.open_sampler(Sampling(temperature=0)) for _ in range(2)]
    expected = [int(backend.logits(seq_id).argmax()) for seq_id in range(2)]
    assert [sampler.sample(seq_id) for seq_id, sampler in enumerate(samplers)] == expected
    backend.decode([(1, expected[1]), (0, expected[0])])
    expected = [int(backend.logits(seq_id).argmax()) for seq_id in range(2)]
    assert [sampler.sample(seq_id) for seq_id, sampler in enumerate(samplers)] == expected


def test_there_is_nothing_to_sample_without_logits(bench) -> None:
    backend = start(bench)
    for sampling in (Sampling(temperature=0), Sampling()):
        sampler = backend.open_sampler(sampling)
        with pytest.raises(BackendError, match="no newest logits"):
            sampler.sample(2)
        sampler.close()


def test_a_closed_sampler_says_so(bench) -> None:
    backend = start(bench)
    sampler = backend.open_sampler(Sampling())
    sampler.close()
    sampler.close()
    with pytest.raises(BackendError, match="closed"):
        sampler.sample(0)


def test_history_must_be_of_this_vocabulary(bench) -> None:
    with pytest.raises(UsageError, match="no token"):
        bench.backend.open_sampler(Sampling(), [bench.backend.info.n_vocab])


def test_a_reply_ends_by_itself(bench) -> None:
    if not bench.can_chat:
        assert bench.backend.info.chat_template is None
        return
    backend = bench.backend
    prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    backend.prefill(0, backend.tokenizer.tokenize(prompt, parse_special=True))
    sampler = backend.open_sampler(Sampling(temperature=0))
    reply = b""
    for _ in range(150):
        token = sampler.sample(0)
        if backend.tokenizer.is_end(token):
            break
        reply += backend.tokenizer.token_bytes(token)
        backend.decode([(0, token)])
    else:
        pytest.fail(f"no end after 150 tokens: {reply!r}")
    assert "France" in reply.decode()
