"""The engine thread: replies as a model alone would give them, whatever else runs beside, and nobody left waiting."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from edge.backends.fake import FakeBackend
from edge.engine.generation import Decoded, Event, Failed, Finished, Generation, Prefilled
from edge.engine.governor import Limits
from edge.engine.scheduler import Scheduler
from edge.errors import BackendError, ContextFullError
from edge.types import Sampling

GREEDY = Sampling(temperature=0)


def ask(backend: FakeBackend, text: str) -> list[int]:
    return backend.tokenizer.tokenize(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", parse_special=True)


class Listener:
    """Collects what a generation tells, and lets a test wait for its end."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.seen: list[Event] = []

    def until(self, kind: type) -> Any:
        while True:
            event = self.events.get(timeout=30)
            self.seen.append(event)
            if isinstance(event, kind):
                return event
            if isinstance(event, (Finished, Failed)):
                pytest.fail(f"ended with {event} before any {kind.__name__}")

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.seen if isinstance(event, Decoded))


def start(scheduler: Scheduler, tokens: list[int], sampling: Sampling = GREEDY) -> tuple[Generation, Listener]:
    listener = Listener()
    generation = Generation(tokens, sampling, listener.events.put)
    scheduler.submit(generation)
    return generation, listener


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(script=lambda message: f"Answer to {message} — done ✓")


@pytest.fixture
def scheduler(backend: FakeBackend) -> Any:
    scheduler = Scheduler(backend)
    yield scheduler
    scheduler.close()


def test_a_reply_its_usage_and_its_timing(scheduler: Scheduler, backend: FakeBackend) -> None:
    prompt = ask(backend, "one")
    _, listener = start(scheduler, prompt)
    end = listener.until(Finished)
    assert listener.text == "Answer to one — done ✓"
    assert end.reason == "stop"
    assert end.tokens == tuple(listener.text.encode())
    assert (end.usage.n_prompt, end.usage.n_reused, end.usage.n_generated) == (len(prompt), 0, len(end.tokens))
    assert 0 <= end.timing.prefill_ms <= end.timing.first_token_ms <= end.timing.total_ms
    assert all("\ufffd" not in event.text for event in listener.seen if isinstance(event, Decoded))


def test_a_follow_up_reads_only_what_is_new(scheduler: Scheduler, backend: FakeBackend) -> None:
    first = ask(backend, "one")
    _, listener = start(scheduler, first)
    end = listener.until(Finished)
    follow_up = [*first, *end.tokens, *backend.tokenizer.tokenize("<|im_end|>\n", parse_special=True), *ask(backend, "two")]
    _, second = start(scheduler, follow_up)
    again = second.until(Finished)
    assert second.text == "Answer to two — done ✓"
    assert again.usage.n_reused == len(first) + len(end.tokens)


def test_many_at_once_give_what_each_alone_would_give(backend: FakeBackend) -> None:
    scheduler = Scheduler(backend)
    running = [start(scheduler, ask(backend, f"question {i} " + "x" * 40 * i))[1] for i in range(11)]
    for i, listener in enumerate(running):
        assert listener.until(Finished).reason == "stop"
        assert listener.text == f"Answer to question {i} " + "x" * 40 * i + " — done ✓"
    scheduler.close()


def test_replies_share_decode_steps() -> None:
    backend = FakeBackend(script=lambda _: "y" * 50, delay_s=0.001)
    sizes: list[int] = []
    decode = backend.decode
    backend.decode = lambda steps: (sizes.append(len(steps)), decode(steps))[1]  # type: ignore[method-assign,func-returns-value]
    scheduler = Scheduler(backend)
    running = [start(scheduler, ask(backend, f"{i}"))[1] for i in range(3)]
    for listener in running:
        listener.until(Finished)
    scheduler.close()
    assert max(sizes) == 3


def test_stop_texts_end_a_reply_and_are_not_shown(scheduler: Scheduler, backend: FakeBackend) -> None:
    _, listener = start(scheduler, ask(backend, "one"), Sampling(temperature=0, stop=("— d",)))
    end = listener.until(Finished)
    assert (listener.text, end.reason) == ("Answer to one ", "stop")


def test_decode_time_begins_with_the_first_token_not_with_the_first_text() -> None:
    backend = FakeBackend(script=lambda _: "a" * 20, delay_s=0.01)
    scheduler = Scheduler(backend)
    _, listener = start(scheduler, ask(backend, "one"), Sampling(temperature=0, stop=("a" * 19 + "b",)))
    end = listener.until(Finished)
    scheduler.close()
    assert (listener.text, end.usage.n_generated) == ("a" * 20, 20)
    assert end.timing.first_token_ms >= 18 * 10, "nothing could be shown before the stop text was ruled out"
    assert end.timing.decode_ms >= 18 * 10
    assert end.timing.tokens_per_s(20) < 110


def test_text_held_back_for_a_stop_text_is_shown_when_the_engine_fails() -> None:
    backend = FakeBackend(script=lambda _: "the end")
    decode, n_steps = backend.decode, [0]

    def fail_late(steps: Any) -> None:
        n_steps[0] += 1
        if n_steps[0] == 6:
            raise BackendError("out of luck")
        decode(steps)

    backend.decode = fail_late  # type: ignore[method-assign]
    scheduler = Scheduler(backend)
    _, listener = start(scheduler, ask(backend, "one"), Sampling(temperature=0, stop=("end of all",)))
    assert listener.until(Failed).error.message == "out of luck"
    scheduler.close()
    assert listener.text == "the en"


def test_max_tokens_cuts_and_says_so(scheduler: Scheduler, backend: FakeBackend) -> None:
    _, listener = start(scheduler, ask(backend, "one"), Sampling(temperature=0, max_tokens=4))
    end = listener.until(Finished)
    assert (listener.text, end.reason, end.usage.n_generated) == ("Answ", "length", 4)


def test_cut_inside_a_character_shows_a_replacement_not_half_of_it(backend: FakeBackend, scheduler: Scheduler) -> None:
    n_before = len(b"Answer to one ")
    _, listener = start(scheduler, ask(backend, "one"), Sampling(temperature=0, max_tokens=n_before + 1))
    listener.until(Finished)
    assert listener.text == "Answer to one \ufffd"


def test_cancelling_while_writing_keeps_what_was_said() -> None:
    backend = FakeBackend(script=lambda _: "z" * 2000, delay_s=0.001)
    scheduler = Scheduler(backend)
    generation, listener = start(scheduler, ask(backend, "one"))
    listener.until(Decoded)
    generation.cancel()
    end = listener.until(Finished)
    scheduler.close()
    assert end.reason == "cancelled"
    assert set(listener.text) == {"z"}
    assert len(listener.text) == end.usage.n_generated < 2000


def test_cancelling_while_reading_stops_between_chunks_and_keeps_them() -> None:
    backend = FakeBackend(prefill_delay_s=0.01, chunk_size=16)
    scheduler = Scheduler(backend)
    prompt = ask(backend, "w" * 2000)
    generation, listener = start(scheduler, prompt)
    while listener.until(Prefilled).done == 0:
        pass
    generation.cancel()
    end = listener.until(Finished)
    assert (end.reason, end.usage.n_generated) == ("cancelled", 0)
    _, again = start(scheduler, prompt)
    assert again.until(Prefilled).done > 0, "what was read is not read again"
    scheduler.close()


def test_cancelled_before_it_began(scheduler: Scheduler, backend: FakeBackend) -> None:
    listener = Listener()
    generation = Generation(ask(backend, "one"), GREEDY, listener.events.put)
    generation.cancel()
    scheduler.submit(generation)
    assert listener.until(Finished).reason == "cancelled"


def test_a_prompt_longer_than_the_window_is_refused_with_numbers() -> None:
    backend = FakeBackend(n_ctx=64)
    scheduler = Scheduler(backend)
    _, listener = start(scheduler, ask(backend, "v" * 100))
    error = listener.until(Failed).error
    assert isinstance(error, ContextFullError)
    assert "64" in error.message
    scheduler.close()


def test_the_end_of_the_window_ends_the_reply() -> None:
    backend = FakeBackend(n_ctx=64, script=lambda _: "u" * 500)
    scheduler = Scheduler(backend)
    prompt = ask(backend, "one")
    _, listener = start(scheduler, prompt)
    end = listener.until(Finished)
    assert end.reason == "length"
    assert end.usage.n_generated == 64 - len(prompt)
    scheduler.close()


def test_idle_sequences_make_room() -> None:
    backend = FakeBackend(n_ctx=200, n_seq=4, script=lambda _: "ok")
    scheduler = Scheduler(backend)
    for i in range(8):
        _, listener = start(scheduler, ask(backend, f"{i}" * 60))
        assert listener.until(Finished).reason == "stop"
    scheduler.close()


def test_replies_that_fill_the_window_together_take_turns() -> None:
    backend = FakeBackend(n_ctx=160, n_seq=3, script=lambda message: message * 90)
    scheduler = Scheduler(backend)
    running = [start(scheduler, ask(backend, letter))[1] for letter in "abc"]
    for letter, listener in zip("abc", running, strict=True):
        end = listener.until(Finished)
        assert (end.reason, listener.text) == ("stop", letter * 90)
        assert end.usage.n_prompt == len(ask(backend, letter))
        assert end.usage.n_generated == 90
    scheduler.close()


def test_replies_that_each_need_the_whole_window_end_at_its_end() -> None:
    backend = FakeBackend(n_ctx=160, n_seq=2, script=lambda message: message * 500)
    scheduler = Scheduler(backend)
    running = [start(scheduler, ask(backend, letter))[1] for letter in "ab"]
    for letter, listener in zip("ab", running, strict=True):
        end = listener.until(Finished)
        assert (end.reason, end.usage.n_prompt + end.usage.n_generated) == ("length", 160)
        assert set(listener.text) == {letter}
    scheduler.close()


def test_a_prompt_that_finds_no_room_waits_for_a_running_reply() -> None:
    backend = FakeBackend(n_ctx=400, n_seq=3, chunk_size=32, script=lambda message: message[0] * 60)
    scheduler = Scheduler(backend)
    running = [start(scheduler, ask(backend, letter * 180))[1] for letter in "abc"]
    for letter, listener in zip("abc", running, strict=True):
        assert listener.until(Finished).reason == "stop"
        assert listener.text == letter * 60
    scheduler.close()


def test_cancelling_a_prompt_that_waits_for_room() -> None:
    backend = FakeBackend(n_ctx=400, n_seq=2, chunk_size=32, script=lambda message: message[0] * 100, delay_s=0.005)
    scheduler = Scheduler(backend)
    _, first = start(scheduler, ask(backend, "a" * 200))
    first.until(Decoded)
    waiting, second = start(scheduler, ask(backend, "b" * 200))
    second.until(Prefilled)
    waiting.cancel()
    assert second.until(Finished).reason == "cancelled"
    assert first.until(Finished).reason == "stop"
    scheduler.close()


def test_after_a_failure_the_backend_is_believed_about_what_is_left() -> None:
    backend = FakeBackend(script=lambda message: f"Answer to {message}")
    decode, is_broken = backend.decode, [True]

    def lose_everything(steps: Any) -> None:
        if is_broken.pop() if is_broken else False:
            for seq_id, _ in steps:
                backend.rewind(seq_id, 0)  # what a recurrent model does: it cannot take one step back
            raise BackendError("out of luck")
        decode(steps)

    backend.decode = lose_everything  # type: ignore[method-assign]
    scheduler = Scheduler(backend)
    prompt = ask(backend, "one")
    _, listener = start(scheduler, prompt)
    listener.until(Failed)
    _, again = start(scheduler, prompt)
    end = again.until(Finished)
    assert (again.text, end.usage.n_reused) == ("Answer to one", 0)
    scheduler.close()


def test_an_engine_failure_is_told_and_the_next_turn_works(backend: FakeBackend, scheduler: Scheduler) -> None:
    decode, fail_once = backend.decode, [True]

    def broken(steps: Any) -> None:
        if fail_once.pop() if fail_once else False:
            raise BackendError("out of luck")
        decode(steps)

    backend.decode = broken  # type: ignore[method-assign]
    _, listener = start(scheduler, ask(backend, "one"))
    assert listener.until(Failed).error.message == "out of luck"
    _, again = start(scheduler, ask(backend, "one"))
    assert again.until(Finished).reason == "stop"
    assert again.text == "Answer to one — done ✓"


def test_a_bug_in_the_engine_thread_leaves_nobody_waiting() -> None:
    backend = FakeBackend(script=lambda message: message * 100, delay_s=0.001)
    scheduler = Scheduler(backend)
    _, listener = start(scheduler, ask(backend, "long"))
    scheduler.submit(Generation(ask(backend, "1"), GREEDY, lambda event: 1 // 0))  # type: ignore[arg-type]
    assert "broke down" in listener.until(Failed).error.message
    scheduler.close()
    with pytest.raises(BackendError, match="closed"):
        scheduler.call(lambda backend: backend.n_ctx)


@pytest.mark.parametrize("place", ["open_sampler", "sample", "token_bytes", "prefill"])
def test_what_one_reply_raises_ends_that_reply_only(place: str) -> None:
    backend = FakeBackend(script=lambda message: f"Answer to {message}", delay_s=0.001)
    culprit: list[int] = []

    def guard(function: Any, is_culprit: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            if culprit and is_culprit(*arguments):
                raise TypeError("a bug")
            return function(*arguments, **options)

        return call

    if place == "open_sampler":
        backend.open_sampler = guard(backend.open_sampler, lambda sampling, history: history == culprit)  # type: ignore[method-assign]
    elif place == "prefill":
        backend.prefill = guard(backend.prefill, lambda seq_id, tokens: list(tokens) == culprit[-len(tokens) :])  # type: ignore[method-assign]
    elif place == "token_bytes":
        backend.tokenizer.token_bytes = guard(backend.tokenizer.token_bytes, lambda token: token == ord("!"))  # type: ignore[method-assign]
    else:
        opened = backend.open_sampler

        def open_sampler(sampling: Sampling, history: Any = ()) -> Any:
            sampler = opened(sampling, history)
            sampler.sample = guard(sampler.sample, lambda *_: list(history) == culprit)  # type: ignore[method-assign]
            return sampler

        backend.open_sampler = open_sampler  # type: ignore[method-assign]
    scheduler = Scheduler(backend)
    _, victim = start(scheduler, ask(backend, "long " * 20))
    victim.until(Decoded)
    culprit[:] = ask(backend, "bad!")
    _, listener = start(scheduler, culprit)
    error = listener.until(Failed).error
    assert "unexpected error" in error.message and isinstance(error.__cause__, TypeError)
    assert victim.until(Finished).reason == "stop"
    assert victim.text == "Answer to " + "long " * 20
    _, after = start(scheduler, ask(backend, "one"))
    assert after.until(Finished).reason == "stop"
    scheduler.close()


def test_calls_run_on_the_engine_thread_and_hand_back_errors(scheduler: Scheduler) -> None:
    assert scheduler.call(lambda _: threading.current_thread().name) == "edge-engine"
    with pytest.raises(ZeroDivisionError):
        scheduler.call(lambda _: 1 / 0)


def test_closing_ends_what_runs_and_refuses_what_comes() -> None:
    backend = FakeBackend(script=lambda _: "t" * 3000, delay_s=0.001)
    scheduler = Scheduler(backend)
    _, listener = start(scheduler, ask(backend, "one"))
    listener.until(Decoded)
    scheduler.close()
    scheduler.close()
    assert listener.until(Finished).reason == "cancelled"
    with pytest.raises(BackendError, match="closed"):
        scheduler.submit(Generation([1], GREEDY, listener.events.put))
    with pytest.raises(BackendError):
        backend.length(0)


def test_a_call_alone_finds_empty_sequences_and_waits_for_no_reply() -> None:
    backend = FakeBackend(script=lambda message: "t" * (3000 if message == "long" else 3), delay_s=0.001)
    scheduler = Scheduler(backend)
    _, listener = start(scheduler, ask(backend, "one"))
    listener.until(Finished)
    assert scheduler.call_alone(lambda b, chunk_size: ([b.length(n) for n in range(4)], chunk_size)) == ([0] * 4, 64)
    _, listener = start(scheduler, ask(backend, "long"))
    listener.until(Decoded)
    with pytest.raises(BackendError, match="running"):
        scheduler.call_alone(lambda b, chunk_size: None)
    scheduler.close()


def test_an_engine_thread_that_breaks_down_ends_what_is_queued_too() -> None:
    backend = FakeBackend()
    is_resizing, is_queued = threading.Event(), threading.Event()

    def break_down(n_ctx: int) -> None:
        is_resizing.set()
        is_queued.wait()
        raise ZeroDivisionError

    backend.resize = break_down  # type: ignore[method-assign]
    scheduler = Scheduler(backend)
    scheduler.throttle(Limits(1, 1, 0.0, 1024, single_reply=True))
    assert is_resizing.wait(30)
    _, listener = start(scheduler, ask(backend, "one"))
    cancelled, cancelled_listener = start(scheduler, ask(backend, "two"))
    cancelled.cancel()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(scheduler.call, lambda backend: backend.n_ctx)
        time.sleep(0.05)  # if it comes even later, it is refused
        is_queued.set()
        with pytest.raises(BackendError, match=r"broke down|closed"):
            call.result(30)
    assert "broke down" in listener.until(Failed).error.message
    assert cancelled_listener.until(Finished).reason == "cancelled"


def test_an_empty_prompt_is_refused(scheduler: Scheduler) -> None:
    _, listener = start(scheduler, [])
    assert "empty" in listener.until(Failed).error.message
