"""Replies with different adapters: each is computed with its own alone, all of them get on, and none waits for ever.

The fake model refuses to go on with a sequence that was computed with other adapters.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

import pytest

from edge.adapters import Mix
from edge.backends.fake import FakeBackend
from edge.engine.adapter_turns import MAX_PASSES, AdapterTurns
from edge.engine.drafting import Planner
from edge.engine.generation import Finished, Generation
from edge.engine.scheduler import Scheduler
from edge.kv.cache import KVCache
from edge.kv.slots import Slots
from edge.types import Sampling
from tests.adapters import fake_adapters
from tests.unit.engine.test_scheduler import Listener, ask

A, B, BOTH, NONE = ((0, 1.0),), ((1, 0.5),), ((0, 1.0), (1, 0.5)), ()


@dataclass
class Reply:
    mix: Mix


def passes(turns: AdapterTurns, replies: list[Reply], n: int, **now: object) -> list[Mix]:
    arguments = {"pass_ms": 10.0, "is_prefilling": False, **now}
    return [turns.choose(replies, **arguments)[0].mix for _ in range(n)]  # type: ignore[arg-type]


def test_one_group_is_decoded_as_a_whole() -> None:
    replies = [Reply(A), Reply(A)]
    assert AdapterTurns(250).choose(replies, pass_ms=0, is_prefilling=False) == replies  # type: ignore[arg-type]


def test_groups_take_turns_of_several_passes() -> None:
    found = passes(AdapterTurns(250), [Reply(A), Reply(B), Reply(A)], 4 * MAX_PASSES)
    assert found == [A] * MAX_PASSES + [B] * MAX_PASSES + [A] * MAX_PASSES + [B] * MAX_PASSES


@pytest.mark.parametrize(("pass_ms", "expected"), [(100.0, 2), (300.0, 1), (0.0, 1), (20.0, MAX_PASSES)])
def test_a_turn_is_as_long_as_the_gap_allows(pass_ms: float, expected: int) -> None:
    found = passes(AdapterTurns(250), [Reply(A), Reply(B)], 2 * expected, pass_ms=pass_ms)
    assert found == [A] * expected + [B] * expected


def test_beside_a_prefill_a_turn_is_one_pass() -> None:
    assert passes(AdapterTurns(250), [Reply(A), Reply(B), Reply(NONE)], 4, is_prefilling=True) == [A, B, NONE, A]


def test_no_group_starves_whatever_comes_and_goes() -> None:
    turns, chance = AdapterTurns(250), random.Random(4)
    waits: Counter[Mix] = Counter()
    replies = [Reply(NONE)]
    for _ in range(3000):
        if chance.random() < 0.2:
            replies = [Reply(NONE), *(Reply(mix) for mix in (A, B, BOTH) if chance.random() < 0.6)]
        mix = turns.choose(replies, pass_ms=10.0, is_prefilling=chance.random() < 0.1)[0].mix  # type: ignore[arg-type]
        waits = Counter({other: waits[other] + 1 for other in {one.mix for one in replies} - {mix}})
        assert max(waits.values(), default=0) <= 3 * MAX_PASSES


@pytest.mark.parametrize("drafts", [False, True])
def test_replies_with_different_adapters_run_side_by_side(drafts: bool) -> None:
    backend = FakeBackend(
        script=lambda message: f"{message[:2]} " * 30, n_seq=4, drafts=drafts, adapters=fake_adapters("pirate", "formal")
    )
    scheduler = Scheduler(backend, planner=Planner() if drafts else None)
    listeners = []
    names = {NONE: "", A: "[pirate] ", B: "[formal at 0.5] ", BOTH: "[pirate, formal at 0.5] "}
    try:
        for number in range(12):
            mix, listener = list(names)[number % 4], Listener()
            tokens = ask(backend, f"q{number // 4} " + "long " * 40 * (number % 3))
            scheduler.submit(Generation(tokens, Sampling(temperature=0), listener.events.put, mix=mix))
            listeners.append((mix, listener))
        for mix, listener in listeners:
            assert listener.until(Finished).reason == "stop"
            assert listener.text.startswith(f"{names[mix]}q"), listener.text[:40]
            assert mix or not listener.text.startswith("[")
    finally:
        scheduler.close()


def test_prompts_are_shared_among_the_same_adapters_only() -> None:
    backend = FakeBackend(adapters=fake_adapters("pirate", "formal"))
    cache = KVCache(backend)
    prompt = list(range(50))

    def take(mix: Mix) -> int:
        backend.set_adapters(mix)
        found = cache.acquire(prompt, mix=mix)
        assert found is not None
        slot, reuse = found
        rest = prompt[slot.n_tokens :]
        backend.prefill(slot.seq_id, rest)
        cache.note_prefill(slot, rest, 1.0)
        cache.release(slot)
        assert cache.n_resident(prompt, mix=mix) == len(prompt) - 1
        return reuse.n_memory

    assert [take(mix) for mix in (NONE, A, A, B, NONE, ((0, 0.9),), A)] == [0, 0, 49, 0, 49, 0, 49]
    assert isinstance(cache._slots, Slots)


def test_what_the_window_shrinks_for_keeps_its_adapters() -> None:
    """A preempted reply goes on with its own."""
    backend = FakeBackend(script=lambda message: "word " * 60, n_ctx=400, n_seq=3, adapters=fake_adapters("pirate"))
    scheduler, listeners = Scheduler(backend), []
    try:
        for mix in (A, NONE, A):
            listener = Listener()
            scheduler.submit(Generation(ask(backend, "hi"), Sampling(temperature=0), listener.events.put, mix=mix))
            listeners.append((mix, listener))
        for mix, listener in listeners:
            listener.until(Finished)
            assert listener.text.startswith("[pirate] " if mix else "word")
    finally:
        scheduler.close()
