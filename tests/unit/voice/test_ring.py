"""The ring between a callback and a reader: order, overflow, two threads."""

from __future__ import annotations

import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_voice.ring import Ring


@given(st.integers(1, 50), st.lists(st.one_of(st.integers(0, 70), st.none()), max_size=40))
def test_a_ring_is_a_queue_that_drops_what_does_not_fit(capacity: int, steps: list[int | None]) -> None:
    ring, reference, lost, number = Ring(capacity), list[float](), 0, 0
    for step in steps:
        if step is None:
            assert ring.read().tolist() == reference
            reference.clear()
            continue
        samples = np.arange(number, number + step, dtype=np.float32)
        number += step
        fits = min(step, capacity - len(reference))
        reference += samples[:fits].tolist()
        lost += step - fits
        ring.write(samples)
        assert len(ring) == len(reference)
        assert ring.n_dropped == lost
        assert ring.n_written == number
    assert ring.read().tolist() == reference


def test_nothing_is_lost_or_moved_between_two_threads() -> None:
    ring, total = Ring(1 << 20), 300_000
    sound = np.arange(total, dtype=np.float32)

    def write() -> None:
        for start in range(0, total, 313):
            ring.write(sound[start : start + 313])

    writer = threading.Thread(target=write)
    writer.start()
    read: list[np.ndarray] = []
    while sum(map(len, read)) < total:
        ring.wait(1)
        read.append(ring.read())
    writer.join()
    assert np.array_equal(np.concatenate(read), sound)


def test_waiting_ends_when_something_was_written_or_time_is_over() -> None:
    ring = Ring(10)
    assert not ring.wait(0.01)
    ring.write(np.zeros(1, np.float32))
    assert ring.wait(0)
    assert not ring.wait(0)
    ring.wake()
    assert ring.wait(0)
