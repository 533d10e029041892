"""Fewer threads while other programs use the cores: on a simulated device, and through the scheduler."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from edge.backends.fake import FakeBackend
from edge.engine.crowding import SHORT, Crowding
from edge.engine.generation import Finished, Generation
from edge.engine.scheduler import Scheduler
from edge.types import Sampling

PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Device:
    """Cores of which others use some. A pass of more threads than are free waits for the one that has no core.

    Attributes:
        n_taken: cores that others use.
        n_passes: passes so far, by the number of threads.
    """

    n_cores: int
    n_taken: int = 0
    now_s: float = 0.0
    threads: tuple[int, int] = (0, 0)
    n_passes: dict[int, int] = field(default_factory=dict)
    crowding: Crowding = field(init=False)

    def __post_init__(self) -> None:
        self.crowding = Crowding(self.set_threads, self.n_cores, self.n_cores, clock=lambda: self.now_s)
        self.threads = self.n_cores, self.n_cores

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        self.threads = n_threads, n_threads_batch

    def decode(self, n_passes: int, n_replies: int = 1) -> None:
        for _ in range(n_passes):
            n_threads = self.threads[0]
            assert n_threads == self.crowding.n_threads
            work_ms = 16 / n_threads + n_replies
            ms = work_ms if n_threads <= self.n_cores - self.n_taken else 20 * work_ms
            self.now_s += ms / 1000
            self.n_passes[n_threads] = self.n_passes.get(n_threads, 0) + 1
            self.crowding.note_pass(n_replies, ms, work_ms)


def test_a_device_of_its_own_keeps_all_threads() -> None:
    device = Device(4)
    device.decode(1000)
    assert device.n_passes == {4: 1000}


@pytest.mark.parametrize(("n_cores", "n_taken"), [(2, 1), (4, 1), (4, 2), (8, 3), (8, 7)])
def test_a_crowded_device_decodes_with_the_threads_that_have_a_core(n_cores: int, n_taken: int) -> None:
    device = Device(n_cores, n_taken)
    device.decode(1000)
    assert device.crowding.n_threads <= n_cores - n_taken
    device.n_passes.clear()
    began_s = device.now_s
    device.decode(3000)
    slow = sum(n for n_threads, n in device.n_passes.items() if n_threads > n_cores - n_taken)
    assert slow <= (device.now_s - began_s) + 3, "about one slow pass a second at most"


def test_all_threads_come_back_once_the_others_are_gone() -> None:
    device = Device(2, 1)
    device.decode(3000)
    assert device.crowding.n_threads == 1
    device.n_taken = 0
    device.decode(2000)  # longer than the longest hold
    assert device.crowding.n_threads == 2


def test_waits_that_fewer_threads_do_not_shorten_leave_all_of_them() -> None:
    device = Device(2)
    crowding = device.crowding
    for _ in range(500):  # an accelerator, or an engine whose threads sleep: the engine thread does nothing meanwhile
        device.now_s += 0.05
        crowding.note_pass(1, 50.0, 1.0)
    assert crowding.n_threads == 2


def test_another_number_of_replies_ends_a_trial() -> None:
    device = Device(2, 1)
    while device.crowding.n_threads == 2:
        device.decode(1)
    device.decode(1, n_replies=2)  # not comparable
    assert device.crowding.n_threads == 2


def test_a_short_chunk_has_the_threads_of_decode_and_a_long_one_all() -> None:
    device = Device(4, 3)
    device.decode(60)
    assert device.crowding.n_threads == 1
    device.crowding.before_chunk(SHORT)
    assert device.threads == (1, 1)
    device.crowding.before_chunk(SHORT + 1)
    assert device.threads == (1, 4)


def test_the_governor_sets_how_many_there_are_at_most() -> None:
    device = Device(4, 1)
    device.decode(60)
    device.crowding.limit(2, 2)
    assert device.threads == (2, 2)
    device.decode(500)
    assert max(device.n_passes) == 4 and device.crowding.n_threads == 2
    device.crowding.limit(4, 4)
    assert device.threads == (4, 4)


def test_a_reply_that_is_to_be_repeated_has_all_threads() -> None:
    device = Device(2, 1)
    device.decode(60)
    device.crowding.use_all()
    assert device.threads == (2, 2)


class Waiting(FakeBackend):
    """Its passes wait without computing, as behind a program that has the core."""

    def __init__(self) -> None:
        super().__init__(script=lambda _: "a" * 40, delay_s=0.04, n_ctx=512)
        self.chosen: list[tuple[int, int]] = []

    def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
        super().set_threads(n_threads, n_threads_batch)
        self.chosen.append((n_threads, n_threads_batch))


@pytest.fixture
def waiting() -> Iterator[tuple[Scheduler, Waiting]]:
    backend = Waiting()
    scheduler = Scheduler(backend, threads=(2, 2))
    yield scheduler, backend
    scheduler.close()


def reply(scheduler: Scheduler, **sampling: Any) -> str:
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    tokens = scheduler.call(lambda backend: backend.tokenizer.tokenize(PROMPT, parse_special=True))
    scheduler.submit(Generation(tokens, Sampling(temperature=0, max_tokens=12, **sampling), events.put))
    while not isinstance(event := events.get(timeout=60), Finished):
        pass
    return event.reason


def test_the_scheduler_tries_fewer_threads_while_passes_wait(waiting: tuple[Scheduler, Waiting]) -> None:
    scheduler, backend = waiting
    assert reply(scheduler) in ("stop", "length")
    assert (1, 2) in backend.chosen


def test_a_reply_with_a_seed_keeps_its_threads(waiting: tuple[Scheduler, Waiting]) -> None:
    scheduler, backend = waiting
    assert reply(scheduler, seed=1) in ("stop", "length")
    assert backend.chosen == []
