"""How likely the tokens of a reply were, for every engine: by its logits alone, whatever the sampler does with them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from edge.backends.base import Backend
from edge.backends.logprobs import logprobs_of, top_tokens
from edge.engine.decoding import Decoder
from edge.engine.generation import Decoded, Event, Generation
from edge.engine.scripted import ScriptedSampler
from edge.kv.cache import KVCache
from edge.types import Sampling, TokenLogprob
from tests.contract.entries import Bench

SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=2.5, top_k=5, top_p=0.5, seed=3, repeat_penalty=1.5, max_repeats=0),
    Sampling(temperature=0.5, seed=4, logit_bias={60: 100.0, 61: 100.0, 62: 99.5}, max_repeats=0),
]


def reference(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """log(softmax), the obvious way in double precision."""
    values = logits.astype(np.float64)
    shares = np.exp(values - values.max())
    return np.asarray(values - values.max() - np.log(shares.sum()))


def generate(backend: Backend, prompt: list[int], generation: Generation, n_tokens: int) -> None:
    """Decode so many tokens of a reply; less if it ends before."""
    cache, ended = KVCache(backend), list[str]()
    taken = cache.acquire(prompt)
    assert taken is not None
    generation.slot, _ = taken
    backend.prefill(generation.slot.seq_id, prompt)
    cache.note_prefill(generation.slot, prompt, 1.0)
    generation.sampler = generation.sampler or backend.open_sampler(generation.sampling, prompt)

    def finish(one: Generation, reason: str, *, is_stop_text: bool = False) -> None:
        one.show_rest()
        ended.append(reason)

    def fail(one: Generation, error: Exception) -> None:
        raise error

    decoder = Decoder(backend, cache, [generation], finish=finish, fail=fail, preempt=lambda: generation, planner=None)
    while len(generation.generated) < n_tokens and not ended:
        decoder.decode_one_token_each()
    if not ended:
        generation.show_rest()


def logprobs_in(events: list[Event]) -> list[TokenLogprob]:
    return [one for event in events if isinstance(event, Decoded) for one in event.logprobs]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "cut", "biased"])
def test_logprobs_are_those_of_the_model_alone(bench: Bench, sampling: Sampling) -> None:
    backend, prompt, events = bench.backend, bench.tokens(20, seed=31), list[Event]()
    generation = Generation(prompt, sampling, events.append, n_logprobs=4)
    generate(backend, prompt, generation, 8)
    found = logprobs_in(events)
    assert [one.token for one in found] == generation.generated
    backend.rewind(0, 0)
    backend.prefill(0, prompt)
    for one in found:
        expected = reference(backend.logits(0))
        assert one.logprob == pytest.approx(expected[one.token], abs=1e-4 + bench.tolerance)
        assert [other.token for other in one.top] == sorted(range(len(expected)), key=lambda i: (-expected[i], i))[:4]
        assert [other.logprob for other in one.top] == pytest.approx(
            sorted(expected, reverse=True)[:4], abs=1e-4 + bench.tolerance
        )
        for other in (one, *one.top):
            assert other.data == backend.tokenizer.token_bytes(other.token, special=True)
        assert all(other.top == () for other in one.top)
        backend.decode([(0, one.token)])


def test_of_the_whole_vocabulary_they_add_up_to_one(bench: Bench) -> None:
    bench.backend.prefill(0, bench.tokens(9, seed=32))
    logits = bench.backend.logits(0)
    everything = list(range(len(logits)))
    found = logprobs_of(logits, everything)
    assert found == pytest.approx(reference(logits), abs=1e-5)
    assert np.exp(found).sum() == pytest.approx(1, abs=1e-5)
    assert top_tokens(logits, 7) == np.argsort(-logits, kind="stable")[:7].tolist()
    assert top_tokens(logits, 0) == []
    assert sorted(top_tokens(logits, len(logits) + 5)) == everything


def test_logits_before_draft_tokens(bench: Bench) -> None:
    backend = bench.backend
    if not backend.capabilities.drafts:
        pytest.skip("it takes no drafts")
    prompt, rest = bench.tokens(20, seed=33), bench.tokens(4, seed=34)
    backend.prefill(0, prompt)
    expected = []
    for token in rest:
        backend.decode([(0, token)])
        expected.append(backend.logits(0))
    backend.rewind(0, len(prompt))
    backend.decode([(0, rest[0])], {0: rest[1:]})
    for n_back in range(4):
        np.testing.assert_allclose(backend.logits(0, n_back), expected[-1 - n_back], atol=1e-4 + bench.tolerance, rtol=1e-4)


def test_a_given_text_is_scored_and_nothing_is_chosen(bench: Bench) -> None:
    backend, prompt, script, events = bench.backend, bench.tokens(20, seed=35), bench.tokens(6, seed=36), list[Event]()
    sampling = Sampling(temperature=0, max_tokens=len(script), max_repeats=0)
    generation = Generation(prompt, sampling, events.append, n_logprobs=0, sampler=ScriptedSampler(script))
    generate(backend, prompt, generation, 100)
    found = logprobs_in(events)
    assert [one.token for one in found] == generation.generated == script
    backend.rewind(0, 0)
    backend.prefill(0, prompt)
    for one in found:
        assert one.logprob == pytest.approx(reference(backend.logits(0))[one.token], abs=1e-4 + bench.tolerance)
        backend.decode([(0, one.token)])
