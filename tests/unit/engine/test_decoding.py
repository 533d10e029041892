"""Speculative decoding: with drafts, every reply is what it is without them, and so is the cache that it leaves."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from edge.backends.base import NO_DRAFTS
from edge.backends.fake import FakeBackend
from edge.engine.drafting import Planner
from edge.engine.generation import Decoded, Failed, Finished, Generation
from edge.engine.scheduler import Scheduler
from edge.errors import BackendError
from edge.kv.cache import KVCache
from edge.types import Sampling, TokenLogprob
from tests.unit.engine.test_scheduler import Listener, ask

GREEDY = Sampling(temperature=0)
QUOTE = (
    "The quick brown fox jumps over the lazy dog. The quick brown fox sleeps, and the lazy dog jumps over the quick brown fox."
)


class EagerPlanner(Planner):
    """Always drafts as much as it may, so that what does not come true is tried, too."""

    def __init__(self, n_draft: int = 16) -> None:
        super().__init__()
        self._n_draft = n_draft

    def length(self, n_match: int, n_other: int, n_most: int) -> int:
        return min(n_most, self._n_draft)


class Watched(FakeBackend):
    """Counts passes and checks that no draft is longer than the room."""

    def __init__(self, **options: Any) -> None:
        super().__init__(script=lambda message: message, drafts=True, **options)
        self.n_passes = self.n_drafts = 0

    def decode(self, steps: Sequence[tuple[int, int]], drafts: Mapping[int, Sequence[int]] = NO_DRAFTS) -> None:
        super().decode(steps, drafts)
        self.n_passes += 1
        self.n_drafts += len(drafts)


def run(
    planner: Planner | None, asked: Sequence[tuple[str, Sampling]], **options: Any
) -> tuple[list[Finished], list[str], Watched]:
    """Ask all at once; return how each ended, its text, and the backend."""
    backend = Watched(**options)
    cache = KVCache(backend)
    scheduler = Scheduler(backend, cache, planner=planner)
    listeners = [Listener() for _ in asked]
    for (text, sampling), listener in zip(asked, listeners, strict=True):
        scheduler.submit(Generation(ask(backend, text), sampling, listener.events.put))
    ends = [listener.until(Finished) for listener in listeners]
    scheduler.call(lambda _: check_cache(cache, backend))
    scheduler.close()
    return ends, [listener.text for listener in listeners], backend


def check_cache(cache: KVCache, backend: Watched) -> None:
    """Every idle sequence holds what its slot and the prefix tree say, token by token."""
    slots = cache._slots
    for slot in slots.slots:
        if slot.is_busy:
            continue
        assert backend.length(slot.seq_id) == slot.n_tokens == slots.tree.length(slot.seq_id)
        assert [cell.token for cell in backend._sequences[slot.seq_id]] == slots.tree.tokens(slot.seq_id)


class SteadyPlanner(Planner):
    """A pass takes as long as any other, whatever its length and whatever else this machine does."""

    def note_pass(self, n_tokens: int, ms: float) -> None:
        super().note_pass(n_tokens, 10.0)


def test_a_quotation_takes_a_fraction_of_the_passes() -> None:
    (plain,), (text,), without = run(None, [(QUOTE, GREEDY)])
    (end,), (same_text,), drafting = run(SteadyPlanner(), [(QUOTE, GREEDY)])
    assert text == same_text == QUOTE
    assert end.tokens == plain.tokens
    assert end.reason == plain.reason == "stop"
    assert drafting.n_passes < without.n_passes / 2
    assert end.usage.n_accepted > len(QUOTE) / 2
    assert end.usage.n_drafted >= end.usage.n_accepted
    assert (plain.usage.n_drafted, plain.usage.n_accepted, plain.usage.draft_saved_ms) == (0, 0, 0.0)


@pytest.mark.parametrize("n_draft", [1, 2, 5, 16])
@pytest.mark.parametrize("max_tokens", [1, 2, 3, 7, 40, None])
def test_the_limit_of_tokens_holds_within_a_draft(n_draft: int, max_tokens: int | None) -> None:
    sampling = Sampling(temperature=0, max_tokens=max_tokens)
    (plain,), (text,), _ = run(None, [(QUOTE, sampling)])
    (end,), (same_text,), _ = run(EagerPlanner(n_draft), [(QUOTE, sampling)])
    assert (end.tokens, end.reason, same_text) == (plain.tokens, plain.reason, text)
    assert max_tokens is None or len(end.tokens) == max_tokens


@pytest.mark.parametrize("stop", ["fox", "lazy dog jumps", ".", "The quick brown fox s"])
def test_a_stop_text_ends_a_reply_within_a_draft(stop: str) -> None:
    sampling = Sampling(temperature=0, stop=(stop,))
    (plain,), (text,), _ = run(None, [(QUOTE, sampling)])
    (end,), (same_text,), _ = run(EagerPlanner(), [(QUOTE, sampling)])
    assert same_text == text == QUOTE[: QUOTE.index(stop)]
    assert (end.reason, end.stopped_by) == (plain.reason, plain.stopped_by) == ("stop", stop)


@pytest.mark.parametrize("n_room", range(1, 30, 4))
def test_the_end_of_the_window_ends_a_reply_within_a_draft(n_room: int) -> None:
    n_ctx = len(ask(FakeBackend(), QUOTE)) + n_room
    (plain,), (text,), _ = run(None, [(QUOTE, GREEDY)], n_ctx=n_ctx)
    (end,), (same_text,), _ = run(EagerPlanner(), [(QUOTE, GREEDY)], n_ctx=n_ctx)
    assert (end.tokens, end.reason, same_text) == (plain.tokens, "length", text)


def test_replies_are_the_same_at_any_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler draws once a token with a draft as without, so the very same reply shows that no distribution changed."""
    rng, seeds = random.Random(3), [0]
    monkeypatch.setattr("edge.backends.sampling.seed_of", lambda _: seeds[0])
    for _ in range(40):
        sampling = Sampling(
            temperature=rng.choice([0.7, 30.0, 60.0]),
            top_p=rng.choice([1.0, 0.95]),
            repeat_penalty=rng.choice([1.0, 1.2]),
            dry_multiplier=rng.choice([0.0, 0.8]),
            max_tokens=120,
        )
        seeds[0] = rng.randrange(2**31)
        (plain,), (text,), _ = run(None, [(QUOTE, sampling)])
        (end,), (same_text,), _ = run(EagerPlanner(rng.choice([1, 4, 16])), [(QUOTE, sampling)])
        assert (end.tokens, end.reason, same_text) == (plain.tokens, plain.reason, text)


def test_no_drafts_for_a_reply_that_is_to_be_repeated() -> None:
    (end,), (text,), backend = run(EagerPlanner(), [(QUOTE, Sampling(temperature=0, seed=1))])
    assert (text, end.usage.n_drafted, backend.n_drafts) == (QUOTE, 0, 0)


def test_several_replies_share_a_pass_and_its_drafts() -> None:
    asked = [
        (QUOTE, GREEDY),
        ("no repeats here", GREEDY),
        (QUOTE[::-1], GREEDY),
        ("abab" * 20, Sampling(temperature=0, max_tokens=9)),
    ]
    plain, texts, without = run(None, asked)
    ends, same_texts, drafting = run(EagerPlanner(), asked)
    assert same_texts == texts
    assert [(end.tokens, end.reason) for end in ends] == [(end.tokens, end.reason) for end in plain]
    assert drafting.n_drafts > 0
    assert drafting.n_passes < without.n_passes


def test_nothing_is_evicted_for_a_draft_and_preempted_replies_go_on() -> None:
    texts = [QUOTE, QUOTE.upper(), QUOTE.lower()]
    n_ctx = 2 * len(ask(FakeBackend(), QUOTE)) + 60  # for two prompts and a part of their replies
    ends, said, _ = run(EagerPlanner(), [(text, GREEDY) for text in texts], n_ctx=n_ctx, n_seq=3)
    assert said == texts
    assert {end.reason for end in ends} == {"stop"}


def test_a_cancelled_reply_leaves_a_cache_that_fits() -> None:
    backend = Watched(delay_s=0.002)
    cache = KVCache(backend)
    scheduler = Scheduler(backend, cache, planner=EagerPlanner(3))
    rng = random.Random(5)
    for number in range(20):
        listener = Listener()
        generation = Generation(ask(backend, f"{number} {QUOTE}"), GREEDY, listener.events.put)
        scheduler.submit(generation)
        while len(listener.text) < rng.randrange(0, 60):
            listener.seen.append(listener.events.get(timeout=30))
        generation.cancel()
        listener.until(Finished)
        scheduler.call(lambda _: check_cache(cache, backend))
    scheduler.close()


def test_no_drafts_where_a_cold_run_must_be_repeated_bit_for_bit() -> None:
    backend = Watched(n_seq=1)
    scheduler = Scheduler(backend, KVCache(backend, exact=True), planner=EagerPlanner())
    listener = Listener()
    scheduler.submit(Generation(ask(backend, QUOTE), GREEDY, listener.events.put))
    assert listener.until(Finished).usage.n_drafted == 0 == backend.n_drafts
    scheduler.close()


def test_no_drafts_where_the_engine_takes_none() -> None:
    backend = FakeBackend(script=lambda message: message)
    scheduler = Scheduler(backend, planner=EagerPlanner())
    listener = Listener()
    scheduler.submit(Generation(ask(backend, QUOTE), GREEDY, listener.events.put))
    assert listener.until(Finished).usage.n_drafted == 0
    assert listener.text == QUOTE
    scheduler.close()


def break_after(sampler_errors: dict[str, int]) -> Callable[..., int]:
    def sample(self: Any, seq_id: int, n_back: int = 0, allowed: Any = None) -> int:
        sampler_errors["left"] -= 1
        if sampler_errors["left"] == 0:
            raise BackendError("The model computed values that are not numbers.")
        return int(original(self, seq_id, n_back, allowed))

    from edge.backends.sampling import NumpySampler

    original = NumpySampler.sample
    return sample


@pytest.mark.parametrize("n_good", [5, 20, 33, 50])
def test_an_error_within_a_draft_ends_that_reply_and_leaves_a_cache_that_fits(
    n_good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Watched()
    cache = KVCache(backend)
    scheduler = Scheduler(backend, cache, planner=EagerPlanner())
    monkeypatch.setattr("edge.backends.sampling.NumpySampler.sample", break_after({"left": n_good}))
    listener = Listener()
    scheduler.submit(Generation(ask(backend, QUOTE), GREEDY, listener.events.put))
    failed = listener.until(Failed)
    assert "not numbers" in str(failed.error)
    scheduler.call(lambda _: check_cache(cache, backend))
    listener = Listener()
    scheduler.submit(Generation(ask(backend, QUOTE), GREEDY, listener.events.put))
    listener.until(Finished)
    assert listener.text == QUOTE
    scheduler.close()


def test_logprobs_are_the_same_with_and_without_drafts() -> None:
    def ask_for(planner: Planner | None) -> list[TokenLogprob]:
        backend = Watched()
        scheduler = Scheduler(backend, KVCache(backend), planner=planner)
        listener = Listener()
        scheduler.submit(Generation(ask(backend, QUOTE), GREEDY, listener.events.put, n_logprobs=2))
        listener.until(Finished)
        scheduler.close()
        assert bool(backend.n_drafts) == (planner is not None)
        return [one for event in listener.seen if isinstance(event, Decoded) for one in event.logprobs]

    plain = ask_for(None)
    assert b"".join(one.data for one in plain).decode() == QUOTE
    assert ask_for(EagerPlanner()) == plain
