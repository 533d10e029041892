"""Slots against an obvious model: what they say is in the cache is in the cache, and the longest prefix is reused."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.backends.fake import FakeBackend
from edge.errors import UnsupportedError
from edge.kv.slots import Slot, Slots
from edge.kv.tree import common_prefix


def read(backend: FakeBackend, slots: Slots, slot: Slot, prompt: list[int]) -> None:
    """Do what a turn does with a slot."""
    rest = prompt[slot.n_tokens :]
    backend.prefill(slot.seq_id, rest)
    slots.append(slot, rest, is_prefill=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_reuse_is_never_wrong_and_never_shorter_than_in_place(seed: int, n_seq: int) -> None:
    rng = random.Random(seed)
    backend = FakeBackend(n_ctx=4096, n_seq=n_seq)
    slots = Slots(backend)
    prompts: list[list[int]] = []
    busy: list[Slot] = []
    for _ in range(25):
        if busy and (len(busy) == n_seq or rng.random() < 0.5):
            slots.release(busy.pop(rng.randrange(len(busy))))
        start = rng.choice(prompts) if prompts and rng.random() < 0.8 else []
        prompt = start[: rng.randrange(len(start) + 1)] + [rng.randrange(97, 100) for _ in range(rng.randrange(1, 30))]
        resident = [slots.tree.tokens(slot.seq_id) for slot in slots.slots]
        slot = slots.acquire(prompt)
        assert slot is not None
        best = max(common_prefix(tokens, prompt[:-1]) for tokens in resident)
        assert slot.n_tokens == best, "the longest prefix in the cache is reused"
        assert backend.length(slot.seq_id) == slot.n_tokens < len(prompt)
        read(backend, slots, slot, prompt)
        fresh = FakeBackend(n_ctx=4096, n_seq=1)
        fresh.prefill(0, prompt)
        assert (backend.logits(slot.seq_id) == fresh.logits(0)).all(), "a reused prefix gives the same logits"
        busy.append(slot)
        prompts.append(prompt)


def test_every_sequence_busy_means_none() -> None:
    slots = Slots(FakeBackend(n_seq=1))
    first = slots.acquire([1, 2])
    assert first is not None
    assert slots.acquire([1, 2]) is None
    slots.release(first)
    assert slots.acquire([1, 2]) is first


def test_going_back_keeps_the_tail_when_a_sequence_is_free() -> None:
    backend = FakeBackend(n_seq=2)
    slots = Slots(backend)
    long, other = list(range(100)), [*range(50), 200]
    for prompt in (long, other, long):
        slot = slots.acquire(prompt)
        assert slot is not None
        read(backend, slots, slot, prompt)
        slots.release(slot)
    again = slots.acquire(long)
    assert again is not None
    assert again.n_tokens == 99, "the branch that was left is still there"


def test_eviction_frees_the_oldest_idle_one_and_says_when_there_is_none() -> None:
    backend = FakeBackend(n_seq=3)
    slots = Slots(backend)
    taken = []
    for first in (1, 2, 3):
        slot = slots.acquire([first, 0, 0])
        assert slot is not None
        read(backend, slots, slot, [first, 0, 0])
        taken.append(slot)
    slots.release(taken[1])
    slots.release(taken[0])
    assert slots.evict_one()
    assert (backend.length(taken[0].seq_id), backend.length(taken[1].seq_id)) == (0, 3)
    assert slots.evict_one()
    assert not slots.evict_one(), "the busy one stays"
    assert backend.length(taken[2].seq_id) == 3


class NoRewind(FakeBackend):
    """A recurrent model: goes on where it stopped, or from the start."""

    def __init__(self) -> None:
        super().__init__(n_seq=2)
        from dataclasses import replace

        self.capabilities = replace(self.capabilities, rewind=False)

    def rewind(self, seq_id: int, n_keep: int) -> None:
        if n_keep not in (0, self.length(seq_id)):
            pytest.fail("a recurrent model was asked to go back")
        super().rewind(seq_id, n_keep)


def test_a_model_that_cannot_go_back_is_only_continued() -> None:
    backend = NoRewind()
    slots = Slots(backend)
    slot = slots.acquire([1, 2, 3])
    assert slot is not None
    read(backend, slots, slot, [1, 2, 3])
    slots.release(slot)
    longer = slots.acquire([1, 2, 3, 4])
    assert longer is slot
    assert longer.n_tokens == 3
    read(backend, slots, longer, [1, 2, 3, 4])
    slots.release(longer)
    back = slots.acquire([1, 2, 9])
    assert back is not None
    assert back.n_tokens == 0


def test_a_cut_that_is_refused_starts_again() -> None:
    backend = FakeBackend(n_seq=1)
    rewind = backend.rewind

    def only_to_nothing(seq_id: int, n_keep: int) -> None:
        if n_keep not in (0, backend.length(seq_id)):
            raise UnsupportedError("the window has moved on")
        rewind(seq_id, n_keep)

    backend.rewind = only_to_nothing  # type: ignore[method-assign]
    slots = Slots(backend)
    first = slots.acquire([1, 2, 3, 4])
    assert first is not None
    read(backend, slots, first, [1, 2, 3, 4])
    slots.release(first)
    again = slots.acquire([1, 2, 9])
    assert again is first
    assert (again.n_tokens, backend.length(0)) == (0, 0)
