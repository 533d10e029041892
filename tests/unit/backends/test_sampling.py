"""The sampler chain in numpy against llama.cpp's own, stage by stage and all together."""

from __future__ import annotations

import ctypes
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.backends.llamacpp.library import load_library
from edge.backends.sampling import NumpySampler, find_breakers, narrow, probabilities, seed_of
from edge.errors import BackendError
from edge.types import Sampling

N_VOCAB = 60
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def open_chain(sampling: Sampling, history: Sequence[int], n_vocab: int) -> tuple[Any, Any]:
    """llama.cpp's samplers for everything but DRY, in its order, and the library."""
    library = load_library()
    chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
    for sampler in (
        library.llama_sampler_init_logit_bias(
            n_vocab,
            len(sampling.logit_bias),
            (library.llama_logit_bias * max(len(sampling.logit_bias), 1))(*sampling.logit_bias.items()),
        ),
        library.llama_sampler_init_penalties(
            n_vocab,
            sampling.repeat_last_n,
            sampling.repeat_penalty,
            sampling.frequency_penalty,
            sampling.presence_penalty,
        ),
        library.llama_sampler_init_top_k(sampling.top_k),
        library.llama_sampler_init_typical(sampling.typical_p, 1),
        library.llama_sampler_init_top_p(sampling.top_p, 1),
        library.llama_sampler_init_min_p(sampling.min_p, 1),
        library.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, 1, 3),
        library.llama_sampler_init_temp(sampling.temperature),
    ):
        library.llama_sampler_chain_add(chain, sampler)
    for token in history:
        library.llama_sampler_accept(chain, token)
    return library, chain


def candidates_of(library: Any, logits: npt.NDArray[np.float32]) -> tuple[Any, Any]:
    """llama.cpp's array of candidates, and the memory that it stands for."""
    data = (library.llama_token_data * len(logits))(*((i, float(value), 0.0) for i, value in enumerate(logits)))
    return library.llama_token_data_array(ctypes.cast(data, library.llama_token_data_p), len(logits), -1, False), data


def theirs(logits: npt.NDArray[np.float32], sampling: Sampling, history: Sequence[int]) -> dict[int, float]:
    """Tokens left after llama.cpp's samplers, with their probabilities."""
    library, chain = open_chain(sampling, history, len(logits))
    array, _data = candidates_of(library, logits)
    library.llama_sampler_apply(chain, ctypes.byref(array))
    left = {int(array.data[i].id): float(array.data[i].logit) for i in range(array.size)}
    library.llama_sampler_free(chain)
    shares = probabilities(np.array(list(left.values())))
    return {token: share for token, share in zip(left, shares.tolist(), strict=True) if share > 1e-12}


def ours(logits: npt.NDArray[np.float32], sampling: Sampling, history: Sequence[int]) -> dict[int, float]:
    ids, values = narrow(logits, sampling, history, xtc_draw=0.0)
    shares = probabilities(values)
    return {token: share for token, share in zip(ids.tolist(), shares.tolist(), strict=True) if share > 1e-12}


def random_logits(seed: int, spread: float = 2.0, n_vocab: int = N_VOCAB) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(n_vocab) * spread).astype(np.float32)


def share_st(low: float = 0.05) -> st.SearchStrategy[float]:
    return st.floats(low, 1.0).map(lambda value: round(value, 3))


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    history=st.lists(st.integers(0, N_VOCAB - 1), max_size=30),
    bias=st.dictionaries(st.integers(0, N_VOCAB - 1), st.sampled_from([-5.0, -0.5, 2.0]), max_size=3),
    values=st.fixed_dictionaries(
        {},
        optional={
            "temperature": st.sampled_from([0.3, 0.7, 1.0, 2.0]),
            "top_k": st.integers(1, N_VOCAB + 5),
            "top_p": share_st(),
            "min_p": share_st(0.01),
            "typical_p": share_st(),
            "repeat_penalty": st.sampled_from([0.8, 1.1, 1.5]),
            "repeat_last_n": st.integers(0, 40),
            "frequency_penalty": st.sampled_from([-0.5, 0.3, 1.0]),
            "presence_penalty": st.sampled_from([-0.5, 0.3, 1.0]),
            "xtc_probability": st.just(1.0),
            "xtc_threshold": share_st(),
        },
    ),
)
def test_any_settings_leave_what_llama_cpp_leaves(
    seed: int, history: list[int], bias: dict[int, float], values: dict[str, Any]
) -> None:
    sampling = Sampling(**{**OFF, **values}, logit_bias=bias)
    logits = random_logits(seed)
    expected, found = theirs(logits, sampling, history), ours(logits, sampling, history)
    # A token that sits exactly on a cut may fall either way, since llama.cpp adds up in float32: forgive one.
    differing = set(expected) ^ set(found)
    assert len(differing) <= 1
    if not differing:
        for token, share in expected.items():
            assert found[token] == pytest.approx(share, abs=2e-4)


@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize(
    "values",
    [
        {"top_k": 40},
        {"top_k": 700},
        {"top_p": 0.95},
        {"top_p": 0.999},
        {"min_p": 0.05},
        {"min_p": 0.001},
        {"typical_p": 0.9},
        {"typical_p": 0.4, "top_p": 0.5},
        {"xtc_probability": 1.0, "xtc_threshold": 0.001},
        {"top_k": 2500, "top_p": 0.9, "min_p": 0.01, "temperature": 0.7, "repeat_penalty": 1.3},
        {},
    ],
    ids=str,
)
def test_a_vocabulary_that_is_not_sorted_as_a_whole_is_cut_alike(values: dict[str, Any], spread: float) -> None:
    sampling = Sampling(**{**OFF, **values})
    logits, history = random_logits(20, spread, n_vocab=3000), [5, 9, 5, 2999]
    expected, found = theirs(logits, sampling, history), ours(logits, sampling, history)
    assert len(set(expected) ^ set(found)) <= 1
    for token in set(expected) & set(found):
        assert found[token] == pytest.approx(expected[token], rel=0.02, abs=1e-6)


@pytest.mark.parametrize("n_vocab", [1000, 5000])
@pytest.mark.parametrize("values", [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.9}])
def test_of_equal_tokens_the_first_are_kept(values: dict[str, Any], n_vocab: int) -> None:
    logits = np.zeros(n_vocab, np.float32)
    logits[[900, 300]] = 5.0
    ids, _ = narrow(logits, Sampling(**{**OFF, **values}), [])
    assert ids[:2].tolist() == [300, 900]
    others = [id for id in range(n_vocab) if id not in (300, 900)]
    assert ids[2:].tolist() == others[: len(ids) - 2]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.3},
        {"typical_p": 0.6, "top_k": 0},
        {"repeat_penalty": 1.4, "frequency_penalty": 0.3, "presence_penalty": 0.2},
        {"xtc_probability": 0.5, "xtc_threshold": 0.1, "min_p": 0.0},
        {"logit_bias": {3: 2.0, 7: -math.inf}, "temperature": 0.4},
    ],
    ids=str,
)
def test_draws_are_as_frequent_as_llama_cpps(values: dict[str, Any]) -> None:
    """4,000 draws of each: no token is drawn more or less often than chance explains (five standard deviations)."""
    sampling, n_draws = Sampling(seed=11, **values), 4000
    logits, history = random_logits(30), [1, 2, 3, 2]
    mine: Counter[int] = Counter()
    for _ in range(n_draws // 100):  # penalties see what is drawn, so the history begins again
        seeded = replace(sampling, seed=11 + len(mine) + mine.total())
        sampler = NumpySampler(seeded, history, lambda seq_id, n_back: logits, N_VOCAB)
        for _ in range(100):
            mine[sampler.sample(0)] += 1
            sampler._history[:] = history
    library, chain = open_chain(sampling, history, N_VOCAB)
    library.llama_sampler_chain_add(chain, library.llama_sampler_init_dist(12))
    drawn: Counter[int] = Counter()
    for _ in range(n_draws):
        array, _data = candidates_of(library, logits)
        library.llama_sampler_apply(chain, ctypes.byref(array))
        drawn[int(array.data[array.selected].id)] += 1
    library.llama_sampler_free(chain)
    for token in set(mine) | set(drawn):
        share = (mine[token] + drawn[token]) / (2 * n_draws)
        spread = math.sqrt(2 * n_draws * share * (1 - share))
        assert abs(mine[token] - drawn[token]) <= 5 * spread + 1, (token, mine[token], drawn[token])


def test_temperature_0_is_llama_cpps_greedy_choice() -> None:
    for seed in range(40):
        logits = random_logits(seed)
        sampling = Sampling(temperature=0, repeat_penalty=1.3, logit_bias={seed: 1.5})
        history = [int(token) for token in logits.argsort()[-3:]]
        library, chain = open_chain(replace(sampling, **OFF), history, N_VOCAB)
        library.llama_sampler_chain_add(chain, library.llama_sampler_init_greedy())
        array, _data = candidates_of(library, logits)
        library.llama_sampler_apply(chain, ctypes.byref(array))
        assert narrow(logits, sampling, history)[0].tolist() == [array.data[array.selected].id]
        library.llama_sampler_free(chain)


def test_greedy_is_one_token_and_certain() -> None:
    logits = random_logits(1)
    ids, values = narrow(logits, Sampling(temperature=0), [])
    assert ids.tolist() == [int(logits.argmax())]
    assert probabilities(values).tolist() == [1.0]


@pytest.mark.parametrize("forbidden", [1, N_VOCAB - 1])
def test_typical_sampling_bears_forbidden_tokens(forbidden: int) -> None:
    bias = dict.fromkeys(range(forbidden), -math.inf)
    ids, values = narrow(random_logits(2), Sampling(**OFF, typical_p=0.9, logit_bias=bias), [])
    assert not set(ids.tolist()) & set(bias)
    assert np.isfinite(probabilities(values)).all()


def test_values_that_are_not_numbers_are_an_error() -> None:
    logits = random_logits(3)
    logits[7] = np.nan
    with pytest.raises(BackendError, match="not numbers"):
        narrow(logits, Sampling(), [])
    for sampling in (Sampling(temperature=0), Sampling(temperature=0, repeat_penalty=1.2), Sampling()):
        with pytest.raises(BackendError, match="not numbers"):
            NumpySampler(sampling, [3], lambda seq_id, n_back: logits, N_VOCAB).sample(0)


def test_seeds_are_kept_in_range_and_never_mean_random() -> None:
    assert seed_of(7) == 7
    assert all(0 <= seed_of(seed) < 2**32 - 1 for seed in (-1, 2**32 - 1, 2**64, None))
    assert seed_of(None) != seed_of(None)


def test_breakers_are_found_whole_and_in_halves() -> None:
    pieces = [b"a", b"\n", b"a\n", b"b:", b"xEN", b"D", b"END"]
    tokenize = {"D": [5], "ND": [4, 5]}.__getitem__
    found = find_breakers(["\n", ":", "END"], pieces, tokenize)
    assert found == {1: [()], 2: [()], 3: [()], 4: [(5,)], 6: [()]}


def test_a_breaker_of_two_tokens_stops_dry() -> None:
    logits = np.zeros(N_VOCAB, np.float32)
    logits[9] = 1.0
    sampling = Sampling(temperature=0, dry_multiplier=5.0)
    plain = [1, 2, 3, 9, 1, 2, 3]
    assert narrow(logits, sampling, plain)[0].tolist() != [9]
    broken = [1, 2, 4, 5, 9, 1, 2, 4, 5]
    assert narrow(logits, sampling, broken)[0].tolist() != [9]
    assert narrow(logits, sampling, broken, breakers={4: [(5,)]})[0].tolist() == [9]


def test_the_sampler_draws_what_narrow_leaves() -> None:
    logits = random_logits(4)
    sampler = NumpySampler(Sampling(seed=5, top_k=3), [], lambda seq_id, n_back: logits, N_VOCAB)
    allowed = set(narrow(logits, Sampling(top_k=3), [])[0].tolist())
    assert {sampler.sample(0) for _ in range(200)} == allowed
