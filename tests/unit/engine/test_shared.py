"""Replies that share a prompt, while cells and sequences are short and some are stopped: each is what it is alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from edge.backends.fake import FakeBackend
from edge.engine.generation import Failed, Finished, Generation, SharedPrompt
from edge.engine.scheduler import Scheduler
from edge.types import Sampling
from tests.unit.engine.test_scheduler import Listener

N_TOKENS = 24


def sampling(seed: int) -> Sampling:
    return Sampling(temperature=1.0, seed=seed, max_tokens=N_TOKENS, max_repeats=0)


def alone(prompt: list[int], seed: int) -> tuple[int, ...]:
    scheduler, listener = Scheduler(FakeBackend()), Listener()
    scheduler.submit(Generation(prompt, sampling(seed), listener.events.put))
    end: Finished = listener.until(Finished)
    scheduler.close()
    return end.tokens


def last(listener: Listener) -> Finished | Failed:
    while True:
        event = listener.events.get(timeout=30)
        if isinstance(event, Finished | Failed):
            return event


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_each_is_what_it_is_alone(seed: int) -> None:
    draw = random.Random(seed)
    backend = FakeBackend(n_ctx=draw.choice([220, 400, 4096]), n_seq=draw.choice([1, 2, 5]), chunk_size=32)
    scheduler = Scheduler(backend)
    asked: list[tuple[Generation, Listener, list[int], int]] = []
    for group in range(3):
        prompt = [draw.randrange(97, 122) for _ in range(draw.randrange(40, 150))]
        shared = SharedPrompt()
        for number in range(draw.randrange(1, 5)):
            listener, own_seed = Listener(), 10 * group + number
            one = Generation(
                prompt,
                sampling(own_seed),
                listener.events.put,
                shared=shared,
                priority=draw.choice(["interactive", "background"]),
            )
            scheduler.submit(one)
            asked.append((one, listener, prompt, own_seed))
            if draw.random() < 0.2:
                one.cancel()
    for generation, listener, prompt, own_seed in asked:
        end = last(listener)
        assert isinstance(end, Finished), end
        if generation.is_cancelled:
            assert end.reason in ("cancelled", "length", "stop")
        else:
            assert end.tokens == alone(prompt, own_seed)
            assert end.usage.n_prompt == len(prompt)
    assert scheduler.call(lambda _: (len(scheduler._running), len(scheduler._waiting))) == (0, 0)
    scheduler.close()


def test_who_waits_for_a_shared_prompt_takes_no_sequence_from_background_work() -> None:
    """It would give it back at once, for ever."""
    scheduler, shared = Scheduler(FakeBackend(n_seq=2, chunk_size=32)), SharedPrompt()
    listeners = [Listener() for _ in range(4)]
    for number, listener in enumerate(listeners[:3]):
        scheduler.submit(Generation([100] * 500, sampling(number), listener.events.put, shared=shared))
    scheduler.submit(Generation([101] * 50, sampling(9), listeners[3].events.put, priority="background"))
    assert all(isinstance(last(listener), Finished) for listener in listeners)
    scheduler.close()


class Counting(FakeBackend):
    """Counts the tokens that are prefilled."""

    n_prefilled = 0

    def prefill(self, seq_id: int, tokens: Sequence[int], **options: Any) -> int:
        n_done = super().prefill(seq_id, tokens, **options)
        self.n_prefilled += n_done
        return n_done


@pytest.mark.parametrize("seed", range(6))
def test_prompts_that_begin_alike_are_prefilled_once(seed: int) -> None:
    """Whoever comes first or goes in the middle: each reply is what it is alone, and little is computed twice."""
    draw = random.Random(seed)
    backend = Counting(n_ctx=8192, n_seq=4, chunk_size=32)
    scheduler, head = Scheduler(backend), [draw.randrange(97, 122) for _ in range(600)]
    gate = threading.Event()
    scheduler.submit(Generation([65] * 5, sampling(1), lambda _: gate.wait(30) and None))
    prompts = [[*head, *(draw.randrange(97, 122) for _ in range(draw.randrange(1, 60)))] for _ in range(8)]
    asked = []
    for number, prompt in enumerate(prompts):
        listener = Listener()
        one = Generation(prompt, sampling(number), listener.events.put)
        scheduler.submit(one)
        asked.append((one, listener))
    asked[0][0].is_cancelled = seed % 2 == 1  # then another one computes it
    gate.set()
    for number, (one, listener) in enumerate(asked):
        end = last(listener)
        assert isinstance(end, Finished), end
        if not one.is_cancelled:
            assert end.tokens == alone(prompts[number], number)
    scheduler.close()
    n_rest = sum(len(prompt) - len(head) for prompt in prompts)
    assert backend.n_prefilled <= 5 + len(head) + n_rest


def test_clients_and_background_work_do_not_wait_for_each_other() -> None:
    head, entered, gate = [100] * 500, threading.Event(), threading.Event()

    class Slow(FakeBackend):
        def prefill(self, seq_id: int, tokens: Sequence[int], **options: Any) -> int:
            entered.set()
            gate.wait(30)
            return super().prefill(seq_id, tokens, **options)

    scheduler = Scheduler(Slow(n_seq=4, chunk_size=32))
    listeners = [Listener() for _ in range(4)]
    scheduler.submit(Generation([*head, 1], sampling(0), listeners[0].events.put, namespace="a", priority="background"))
    assert entered.wait(30)
    scheduler.submit(Generation([*head, 2], sampling(0), listeners[1].events.put, namespace="b"))
    scheduler.submit(Generation([*head, 3], sampling(0), listeners[2].events.put, namespace="a"))
    scheduler.submit(Generation([*head, 4], sampling(0), listeners[3].events.put, namespace="a"))
    gate.set()
    ends = [last(listener) for listener in listeners]
    assert all(isinstance(end, Finished) for end in ends)
    reused = [end.usage.n_reused for end in ends if isinstance(end, Finished)]
    assert reused[1] == 0, "nothing is known of what others asked"
    assert reused[2] < 100 and reused[3] == 500, "one does not wait for background work, and the next one for that one"
    scheduler.close()
