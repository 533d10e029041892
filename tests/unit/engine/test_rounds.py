"""Rounds: short prompts pass long ones, nobody starves, and a chunk beside others is over in time."""

from __future__ import annotations

import itertools
import queue
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.backends.fake import FakeBackend
from edge.engine.generation import Decoded, Event, Failed, Finished, Generation, Prefilled
from edge.engine.governor import Limits
from edge.engine.rounds import MOST_PASSES, ChunkTimer, Order
from edge.engine.scheduler import Scheduler
from edge.kv.cache import KVCache
from edge.names import Priority
from edge.types import Sampling

GREEDY = Sampling(temperature=0)
GRAIN = 64


def prompt_of(n_tokens: int, priority: Priority = "interactive") -> Generation:
    return Generation([1] * n_tokens, GREEDY, lambda event: None, priority=priority)


def n_left(generation: Generation) -> int:
    return generation.n_left


# -- the order, where a prompt is a number of chunks


def serve(order: Order, prompts: list[Generation]) -> Generation:
    """Compute one chunk of the prompt that is next."""
    chosen = order.choose(prompts, n_left)
    order.note(prompts, chosen)
    chosen.tokens.pop()
    return chosen


def test_the_shortest_prompt_goes_first_and_among_equals_the_oldest() -> None:
    prompts = [prompt_of(n) for n in (4000, 30, 500, 30)]
    assert Order().choose(prompts, n_left) is prompts[1]


def test_the_oldest_gets_every_fourth_chunk_under_a_stream_of_short_ones() -> None:
    order, long = Order(), prompt_of(4000)
    served = [serve(order, [long, prompt_of(1), prompt_of(2)]) is long for _ in range(40)]
    assert served == ([False] * MOST_PASSES + [True]) * 10


@pytest.mark.parametrize("seed", range(30))
def test_no_stream_of_arrivals_starves_those_who_were_there_first(seed: int) -> None:
    rng, order = random.Random(seed), Order()
    prompts = first = [prompt_of(rng.randint(1, 12)) for _ in range(rng.randint(1, 6))]
    bound = (MOST_PASSES + 1) * sum(len(one.tokens) for one in first)
    most_arrivals, longest = rng.choice([1, 3]), rng.choice([1, 4, 12])
    for _ in range(bound):
        prompts = [one for one in prompts if one.tokens]
        prompts += [prompt_of(rng.randint(1, longest)) for _ in range(rng.randint(0, most_arrivals))]
        if prompts:
            serve(order, prompts)
    assert not any(one.tokens for one in first)


def test_background_prompts_wait_for_all_others() -> None:
    order, old, long = Order(), prompt_of(1, "background"), prompt_of(10)
    assert all(serve(order, [old, long]) is long for _ in range(10))
    assert serve(order, [old]) is old


# -- the size of a chunk


def timer(ms_per_token: float, max_gap_ms: float = 250, pass_ms: float = 0.0) -> tuple[ChunkTimer, Generation]:
    made, generation = ChunkTimer(max_gap_ms, GRAIN), prompt_of(4000)
    if ms_per_token:
        made.note_chunk(generation, 512, 512 * ms_per_token)
    if pass_ms:
        made.note_pass(pass_ms)
    return made, generation


@pytest.mark.parametrize(
    ("ms_per_token", "pass_ms", "n_tokens", "expected"),
    [
        (0.1, 0, 512, 512),  # all of it takes 51 ms
        (1.0, 0, 512, 192),
        (1.0, 60, 512, 128),  # the pass of the replies is part of the gap
        (2.0, 0, 512, 64),
        (50.0, 0, 512, 64),  # never less than the grain
        (2.0, 400, 512, 64),
        (2.0, 0, 127, 127),  # two pieces would be shorter than the grain
        (2.0, 0, 128, 64),
        (1.9, 0, 139, 64),
        (0.0, 0, 512, 64),  # nothing is known yet
    ],
)
def test_a_chunk_fits_the_gap(ms_per_token: float, pass_ms: float, n_tokens: int, expected: int) -> None:
    made, generation = timer(ms_per_token, pass_ms=pass_ms)
    assert made.fit(generation, n_tokens, n_passes=1) == expected


@given(
    n_tokens=st.integers(1, 2048),
    ms=st.floats(0, 100),
    gap=st.floats(1, 5000),
    pass_ms=st.floats(0, 500),
    decodes=st.booleans(),
)
def test_every_piece_is_a_grain_at_least_and_in_time_above_two(
    n_tokens: int, ms: float, gap: float, pass_ms: float, decodes: bool
) -> None:
    made, generation = timer(ms, gap, pass_ms)
    n_cut = made.fit(generation, n_tokens, n_passes=int(decodes))
    assert 0 < n_cut <= n_tokens
    if n_cut < n_tokens:
        assert n_cut % GRAIN == 0
        assert n_tokens - n_cut >= GRAIN
    if n_cut >= 2 * GRAIN:
        assert made.predict_ms(generation, n_cut) <= gap - (pass_ms if decodes else 0) + 1e-6


def test_each_prompt_has_an_estimate_and_a_new_one_begins_with_the_newest() -> None:
    made, slow = timer(4.0)
    quick, new = prompt_of(4000), prompt_of(4000)
    made.note_chunk(quick, 512, 512 * 0.5)
    assert made.predict_ms(slow, 100) == pytest.approx(400)
    assert made.predict_ms(new, 100) == pytest.approx(50)
    for _ in range(12):
        made.note_chunk(quick, 64, 64 * 3.0)
    assert made.predict_ms(quick, 100) == pytest.approx(300, rel=0.01)


def test_an_exact_cache_never_cuts_its_chunks() -> None:
    cache = KVCache(FakeBackend(n_seq=1, chunk_size=512), exact=True)
    assert ChunkTimer(1, cache.chunk_grain).fit(prompt_of(4000), cache.chunk_size, n_passes=1) == cache.chunk_size == 128


# -- the scheduler


class Timed(FakeBackend):
    """Takes a time for each token of a prompt, can be stopped meanwhile, and notes its passes.

    Attributes:
        chunks: (sequence, first position, tokens) of each chunk, and () for each pass of decode.
        n_stopped: chunks that were stopped half-way.
        when: called once, on the engine thread, when the chunk from that position on begins.
    """

    def __init__(self, *, ms_per_token: float = 0.5, **options: Any) -> None:
        super().__init__(**{"chunk_size": 512, "n_ctx": 16384, **options})
        self.ms_per_token = ms_per_token
        self.chunks: list[tuple[int, ...]] = []
        self.n_stopped = 0
        self.when: dict[int, Callable[[], Any]] = {}

    def _compute(
        self, seq_id: int, start: int, ids: npt.NDArray[np.int64], should_stop: Callable[[], bool] | None
    ) -> npt.NDArray[np.float32] | None:
        if start in self.when:
            self.when.pop(start)()
        until = time.perf_counter() + len(ids) * self.ms_per_token / 1000
        while (left := until - time.perf_counter()) > 0:
            if should_stop is not None and should_stop():
                self.n_stopped += 1
                return None
            time.sleep(min(left, 0.005))
        self.chunks.append((seq_id, start, len(ids)))
        return super()._compute(seq_id, start, ids, None)

    def _roll_back(self, seq_id: int, n_keep: int) -> int:
        return n_keep

    def decode(self, steps: Any) -> None:
        super().decode(steps)
        self.chunks.append(())


class Listener:
    """Collects what a generation tells, with the time, and lets a test wait.

    Attributes:
        when: called once, on the engine thread, at the first event of that type.
    """

    def __init__(self, when: dict[type, Callable[[], Any]] | None = None) -> None:
        self.when = when or {}
        self.events: queue.SimpleQueue[tuple[float, Event]] = queue.SimpleQueue()
        self.seen: list[tuple[float, Event]] = []

    def __call__(self, event: Event) -> None:
        if type(event) in self.when:
            self.when.pop(type(event))()
        self.events.put((time.perf_counter(), event))

    def until(self, kind: type, where: Callable[[Any], bool] = lambda event: True) -> Any:
        while True:
            self.seen.append(self.events.get(timeout=60))
            event = self.seen[-1][1]
            if isinstance(event, kind) and where(event):
                return event
            if isinstance(event, (Finished, Failed)):
                pytest.fail(f"ended with {event} before any {kind.__name__}")

    @property
    def text(self) -> str:
        return "".join(event.text for _, event in self.seen if isinstance(event, Decoded))


class Engine:
    """A scheduler on a `Timed` backend."""

    def __init__(self, max_gap_ms: float = 50, **options: Any) -> None:
        self.backend = Timed(**{"script": lambda message: f"{len(message)} letters", **options})
        self.scheduler = Scheduler(self.backend, max_gap_ms=max_gap_ms)

    def ask(
        self, text: str, *, priority: Priority = "interactive", when: dict[type, Callable[[], Any]] | None = None
    ) -> tuple[Generation, Listener]:
        listener = Listener(when)
        message = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        tokens = self.backend.tokenizer.tokenize(message, parse_special=True)
        generation = Generation(tokens, GREEDY, listener, priority=priority)
        self.scheduler.submit(generation)
        return generation, listener


@pytest.fixture
def make() -> Iterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def build(**options: Any) -> Engine:
        made.append(Engine(**options))
        return made[-1]

    yield build
    for engine in made:
        engine.scheduler.close()


def has_begun(event: Prefilled) -> bool:
    return 0 < event.done < event.total


def test_a_prompt_alone_is_computed_in_whole_chunks(make: Callable[..., Engine]) -> None:
    engine = make(max_gap_ms=1)
    generation, listener = engine.ask("w" * 1500)
    listener.until(Finished)
    n_last = len(generation.tokens) - 1024
    assert [chunk[1:] for chunk in engine.backend.chunks if chunk] == [(0, 512), (512, 512), (1024, n_last)]


def test_a_short_prompt_passes_a_long_one(make: Callable[..., Engine]) -> None:
    engine = make(ms_per_token=0.2, max_gap_ms=20)
    asked, n_chunks = [], []
    note = {Finished: lambda: n_chunks.append(len([chunk for chunk in engine.backend.chunks if chunk]))}
    engine.backend.when[512] = lambda: asked.append(engine.ask("hi", when=note)[1])
    _, long = engine.ask("w" * 8000)
    long.until(Finished)
    asked[0].until(Finished)
    assert (asked[0].text, long.text) == ("2 letters", "8000 letters")
    assert n_chunks[0] <= 13, "two chunks, its own, then one beside each of nine tokens and the end"


def test_chunks_beside_a_reply_are_short_and_whole_again_after_it(make: Callable[..., Engine]) -> None:
    engine = make(script=lambda message: "y" * 12 if message == "hi" else "done", delay_s=0.02, max_gap_ms=70)
    asked, n_chunks = [], []
    when = {
        Decoded: lambda: asked.append(engine.ask("w" * 6000)[1]),
        Finished: lambda: n_chunks.append(len(engine.backend.chunks)),
    }
    engine.ask("hi", when=when)[1].until(Finished)
    asked[0].until(Finished)
    beside = [chunk[2] for chunk in engine.backend.chunks[1 : n_chunks[0]] if chunk]
    assert len(beside) >= 10
    assert all(GRAIN <= n <= 127 for n in beside[:-1]), "50 ms beside the pass are 100 tokens"
    alone = [chunk for chunk in engine.backend.chunks[n_chunks[0] :] if chunk]
    assert [start % 512 for _, start, _ in alone[1:]] == [0] * (len(alone) - 1)
    assert {n for _, _, n in alone[1:-1]} == {512}


def test_a_long_prompt_ends_under_a_stream_of_short_ones(make: Callable[..., Engine]) -> None:
    engine = make(script=lambda message: "", n_seq=6, ms_per_token=0.2, max_gap_ms=20)
    _, long = engine.ask("w" * 2000)
    long.until(Prefilled, has_begun)
    shorts = [engine.ask(f"{n}" * 60) for n in range(4)]
    n_ended = 0
    for n in itertools.count():
        if any(isinstance(event, Finished) for event in _drain(long)):
            break
        shorts[n % 4][1].until(Finished)
        n_ended += 1
        shorts[n % 4] = engine.ask(f"{n} " * 30)  # somebody short is always waiting
        assert n_ended < 400
    by_seq = [chunk[0] for chunk in engine.backend.chunks if chunk]
    longest_wait = max(len(list(run)) for is_long, run in itertools.groupby(seq_id == 0 for seq_id in by_seq) if not is_long)
    assert longest_wait <= MOST_PASSES
    assert n_ended > MOST_PASSES, "they did pass it"


def _drain(listener: Listener) -> list[Event]:
    while not listener.events.empty():
        listener.seen.append(listener.events.get())
    return [event for _, event in listener.seen]


def test_a_whole_chunk_is_stopped_for_somebody_who_arrives(make: Callable[..., Engine]) -> None:
    engine = make(ms_per_token=1.5)
    asked: list[Listener] = []
    engine.backend.when[512] = lambda: asked.append(engine.ask("hi")[1])  # the chunk would take 0.75 s
    _, long = engine.ask("w" * 1000)
    long.until(Finished)
    asked[0].until(Finished)
    assert (asked[0].text, long.text) == ("2 letters", "1000 letters")
    assert engine.backend.n_stopped == 1


def test_a_stream_of_arrivals_stops_a_chunk_three_times_at_most(make: Callable[..., Engine]) -> None:
    engine = make(ms_per_token=1.0, script=lambda message: "")
    generation, long = engine.ask("w" * 1300)
    n_asked = 0
    while not any(isinstance(event, Finished) for event in _drain(long)):
        if any(isinstance(event, Prefilled) and event.done for event in _drain(long)):
            engine.ask(f"{n_asked}")[1].until(Finished)
            n_asked += 1
        time.sleep(0.002)
    n_chunks = len([chunk for chunk in engine.backend.chunks if chunk and chunk[0] == 0])
    assert 0 < engine.backend.n_stopped <= MOST_PASSES * n_chunks
    assert generation.n_interruptions == 0


def test_nobody_is_stopped_for_a_prompt_that_could_not_begin(make: Callable[..., Engine]) -> None:
    engine = make(ms_per_token=1.0, n_seq=1)
    _, long = engine.ask("w" * 1300)
    long.until(Prefilled, has_begun)
    _, short = engine.ask("hi")
    short.until(Finished)
    long.until(Finished)
    assert engine.backend.n_stopped == 0


def test_of_those_who_wait_for_a_sequence_the_shortest_begins(make: Callable[..., Engine]) -> None:
    engine = make(n_seq=1, script=lambda message: "y" * 20, delay_s=0.002, ms_per_token=0.1)
    engine.ask("first")[1].until(Decoded)
    asked = {letter: engine.ask(letter * n)[1] for letter, n in (("a", 900), ("b", 30), ("c", 300))}
    for listener in asked.values():
        listener.until(Finished)
    assert sorted(asked, key=lambda letter: asked[letter].seen[-1][0]) == ["b", "c", "a"]


def test_what_is_in_memory_already_counts_as_short(make: Callable[..., Engine]) -> None:
    engine = make(n_seq=1, script=lambda message: "y" * 30, delay_s=0.002, ms_per_token=0.05)
    engine.ask("w" * 2000)[1].until(Decoded)
    _, new = engine.ask("x" * 200)
    _, known = engine.ask("w" * 2000)
    new.until(Finished)
    known.until(Finished)
    assert known.seen[-1][0] < new.seen[-1][0]


def test_background_work_gives_its_sequence_up_and_goes_on_later(make: Callable[..., Engine]) -> None:
    engine = make(n_seq=1, script=lambda message: message[:1] * 200, delay_s=0.001, ms_per_token=0.1)
    _, background = engine.ask("b" * 100, priority="background")
    background.until(Decoded)
    _, asked = engine.ask("a" * 100)
    asked.until(Finished)
    background.until(Finished)
    assert (asked.text, background.text) == ("a" * 200, "b" * 200)
    assert asked.seen[-1][0] < background.seen[-1][0]


def test_background_prompts_are_prefilled_when_nobody_else_is(make: Callable[..., Engine]) -> None:
    engine = make(script=lambda message: "")
    _, background = engine.ask("b" * 3000, priority="background")
    background.until(Prefilled, has_begun)
    _, long = engine.ask("w" * 3000)
    long.until(Finished)
    background.until(Finished)
    seqs = [seq_id for seq_id, _, _ in (chunk for chunk in engine.backend.chunks if chunk)]
    first, last = seqs.index(1), len(seqs) - 1 - seqs[::-1].index(1)
    assert set(seqs[first : last + 1]) == {1}, "not one chunk of it in between"
    assert max(n for seq_id, _, n in (chunk for chunk in engine.backend.chunks if chunk) if seq_id == 0) <= 127, (
        "and its chunks are short even alone"
    )


def test_no_background_chunk_comes_between_two_tokens_of_a_reply(make: Callable[..., Engine]) -> None:
    engine = make(script=lambda message: "y" * 50, ms_per_token=0.01)
    _, reply = engine.ask("a" * 30)
    reply.until(Decoded)
    _, background = engine.ask("b" * 900, priority="background")
    reply.until(Finished)
    background.until(Finished)
    chunks = engine.backend.chunks
    prefilled = [number for number, chunk in enumerate(chunks) if chunk and chunk[2] > 1]
    first_decode = chunks.index(())
    assert first_decode > prefilled[0]
    assert chunks[first_decode : first_decode + 40] == [()] * 40, "while the reply is decoded, nothing else is computed"
    assert max(prefilled) > first_decode + 40


def test_a_full_cache_ends_background_work_first(make: Callable[..., Engine]) -> None:
    engine = make(n_ctx=900, n_seq=2, script=lambda message: message[:1] * 300, ms_per_token=0.05)
    _, first = engine.ask("a" * 250)
    first.until(Decoded)
    _, background = engine.ask("b" * 250, priority="background")
    first.until(Finished)
    background.until(Finished)
    assert (first.text, background.text) == ("a" * 300, "b" * 300)
    n_prefilled = sum(chunk[2] for chunk in engine.backend.chunks if chunk and chunk[0] == 0)
    assert n_prefilled < 300, "the one that somebody waits for is prefilled once"


def test_while_memory_is_short_background_work_makes_way(make: Callable[..., Engine]) -> None:
    engine = make(script=lambda message: message[:1] * 200, delay_s=0.001, ms_per_token=0.1)
    engine.scheduler.throttle(Limits(1, 1, 0.0, 16384, single_reply=True))
    _, background = engine.ask("b" * 100, priority="background")
    background.until(Decoded)
    _, asked = engine.ask("a" * 100)
    asked.until(Finished)
    background.until(Finished)
    assert asked.seen[-1][0] < background.seen[-1][0]
    assert (asked.text, background.text) == ("a" * 200, "b" * 200)


def test_mixed_load_gives_what_each_alone_would_give(make: Callable[..., Engine]) -> None:
    """Many lengths and priorities, few sequences and cells: everybody gets an answer, the right one."""
    engine = make(n_ctx=1500, n_seq=3, script=lambda message: message[:3] * 20, ms_per_token=0.02, chunk_size=256)
    rng = np.random.default_rng(5)
    asked = []
    for n in range(40):
        text = f"{n:03}" + "z" * int(rng.choice([5, 60, 700]))
        asked.append((text, engine.ask(text, priority="background" if n % 5 == 0 else "interactive")[1]))
    for text, listener in asked:
        assert listener.until(Finished).reason == "stop"
        assert listener.text == text[:3] * 20
