"""The scheduler and the facade within the limits of a governor: replies stay right, and nobody is left waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from edge.assistant import Assistant
from edge.backends.fake import FakeBackend
from edge.device.sensors import Readings
from edge.engine.generation import Finished, Generation
from edge.engine.governor import Governor, Workload
from edge.engine.scheduler import Scheduler
from edge.errors import BackendError, ContextFullError, ModelTooLargeError, UnsupportedError
from edge.types import Message, Sampling
from tests.throttle import FULL, SHORT, QuickSensors, SetGovernor, eventually

GREEDY = Sampling(temperature=0)


class Sized(FakeBackend):
    """Notes what it is asked for; can refuse."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sizes: list[int] = []
        self.refusal: Exception | None = None
        self.n_side_by_side = 0

    def resize(self, n_ctx: int) -> None:
        self.sizes.append(n_ctx)
        if self.refusal is not None:
            raise self.refusal
        super().resize(n_ctx)

    def decode(self, steps: Any) -> None:
        self.n_side_by_side = max(self.n_side_by_side, len(steps))
        super().decode(steps)


@pytest.fixture
def governor() -> SetGovernor:
    return SetGovernor()


@pytest.fixture
def make(governor: SetGovernor) -> Iterator[Callable[..., tuple[Assistant, Sized]]]:
    made: list[Assistant] = []

    def build(**options: Any) -> tuple[Assistant, Sized]:
        backend = Sized(**{"script": lambda message: f"{len(message)} letters.", **options})
        made.append(Assistant(backend, sampling=GREEDY, governor=governor, sensors=QuickSensors()))
        return made[-1], backend

    yield build
    for assistant in made:
        assistant.close()


def test_threads_follow_and_come_back(make: Any, governor: SetGovernor) -> None:
    assistant, backend = make()
    governor.set(assistant, replace(FULL, n_threads=2, n_threads_batch=3, note="hot: 2 of 4 threads"))
    assert backend.threads == (2, 3)
    assert assistant.held_back == "hot: 2 of 4 threads"
    governor.set(assistant, FULL)
    assert backend.threads == (4, 4)
    assert assistant.held_back == ""


def test_the_record_of_a_reply_says_how_it_was_throttled(make: Any, governor: SetGovernor) -> None:
    assistant, _ = make()
    conversation = assistant.conversation()
    assert conversation.send("one").wait()
    governor.set(assistant, replace(FULL, n_threads=2, note="hot: 2 of 4 threads"))
    reply = conversation.send("two")
    reply.wait()
    assert reply.held_back == "hot: 2 of 4 threads"
    governor.set(assistant, FULL)
    conversation.send("three").wait()
    records = [node.record for node in conversation.messages if node.role == "assistant"]
    assert [record["held_back"] for record in records] == ["", "hot: 2 of 4 threads", ""]


def test_what_begins_to_hold_while_a_reply_is_written_is_in_its_record(make: Any, governor: SetGovernor) -> None:
    assistant, _ = make(script=lambda message: "x" * 400, delay_s=0.001)
    reply = assistant.generate("go on")
    next(iter(reply))
    governor.set(assistant, replace(FULL, rest=0.25, note="hot: rests 25 % of the time"))
    governor.set(assistant, FULL)
    reply.wait()
    assert reply.held_back == "hot: rests 25 % of the time"


def test_resting_changes_no_word(make: Any, governor: SetGovernor) -> None:
    assistant, _ = make()
    expected = assistant.generate("hello").wait()
    governor.set(assistant, replace(FULL, rest=0.75))
    assert assistant.generate("hello").wait() == expected


def test_a_rest_is_a_share_of_the_time(make: Any, governor: SetGovernor) -> None:
    """Lower bounds only: a busy machine makes everything longer."""
    assistant, _ = make(script=lambda message: "x" * 20, delay_s=0.01)
    governor.set(assistant, replace(FULL, rest=0.5))
    began = time.perf_counter()
    assistant.generate("hello").wait()
    assert time.perf_counter() - began >= 2 * 20 * 0.01


def test_a_rest_does_not_keep_a_cancelled_reply_or_the_end_waiting(make: Any, governor: SetGovernor) -> None:
    assistant, _ = make(script=lambda message: "x" * 4000, delay_s=0.05)
    governor.set(assistant, replace(FULL, rest=0.99))  # would rest for two seconds after every token
    reply = assistant.generate("hello")
    next(iter(reply))
    began = time.perf_counter()
    reply.cancel()
    reply.wait()
    assert reply.finish_reason == "cancelled"
    assert time.perf_counter() - began < 60


def test_while_memory_is_short_replies_come_one_after_the_other(make: Any, governor: SetGovernor) -> None:
    assistant, backend = make(script=lambda message: "x" * 50, delay_s=0.001)
    governor.set(assistant, replace(SHORT, n_ctx=4096))
    replies = [assistant.generate(text) for text in ("one", "two", "three")]
    assert [reply.wait() for reply in replies] == ["x" * 50] * 3
    assert backend.n_side_by_side == 1
    governor.set(assistant, FULL)
    replies = [assistant.generate(text) for text in ("one", "two", "three")]
    for reply in replies:
        reply.wait()
    assert backend.n_side_by_side > 1


def test_while_memory_is_short_idle_sequences_are_released(make: Any, governor: SetGovernor) -> None:
    assistant, backend = make()
    for text in ("one", "two", "three"):
        assistant.generate(text).wait()

    def n_held() -> int:
        return sum(backend.length(seq_id) > 0 for seq_id in range(4))

    assert n_held() == 3
    governor.set(assistant, replace(SHORT, n_ctx=4096))
    eventually(lambda: n_held() == 1)
    assistant.generate("four").wait()
    eventually(lambda: n_held() == 1)


def test_the_window_shrinks_at_once_when_nothing_runs_and_grows_again(make: Any, governor: SetGovernor) -> None:
    assistant, backend = make()
    governor.set(assistant, SHORT)
    eventually(lambda: (backend.n_ctx, assistant.n_ctx) == (1024, 1024))
    assert assistant.generate("hello").wait() == "5 letters."
    governor.set(assistant, FULL)
    eventually(lambda: (backend.n_ctx, assistant.n_ctx) == (4096, 4096))
    assert assistant.generate("hello").wait() == "5 letters."


def test_a_reply_that_runs_keeps_its_window(make: Any, governor: SetGovernor) -> None:
    assistant, backend = make(script=lambda message: "x" * 1100, delay_s=0.0002)
    reply = assistant.generate("hello")
    next(iter(reply))
    governor.set(assistant, SHORT)
    assert assistant.n_ctx == 1024
    assert len(reply.wait()) == 1100
    eventually(lambda: backend.n_ctx == 1024)


def test_a_conversation_that_no_longer_fits_says_why(make: Any, governor: SetGovernor) -> None:
    assistant, _ = make()
    conversation = assistant.conversation()
    for n in range(6):
        conversation.send(f"{n} " + "word " * 60).wait()
    whole = conversation.send("still whole")
    whole.wait()
    assert not whole.notices
    governor.set(assistant, SHORT)
    reply = conversation.send("and now?")
    reply.wait()
    assert [notice for notice in reply.notices if "short of memory" in notice], reply.notices


def test_what_cannot_be_said_in_a_smaller_window_gets_the_usual_one(make: Any, governor: SetGovernor) -> None:
    assistant, backend = make()
    governor.set(assistant, SHORT)
    text = "w" * 2500
    assert assistant.generate(text).wait() == "2500 letters."
    assert backend.sizes[:2] == [1024, 4096]
    assert assistant.generate("short").wait() == "5 letters."
    assert backend.sizes == [1024, 4096, 1024]
    with pytest.raises(ContextFullError, match="4,096"):
        assistant.generate("w" * 5000).wait()


def test_refusing_old_messages_is_not_brought_forward(make: Any, governor: SetGovernor) -> None:
    """Somebody who wants no message left out gets the full window rather than an error."""
    assistant, _ = make()
    assistant.window = "refuse"
    messages = [Message("user" if n % 2 == 0 else "assistant", "w" * 300) for n in range(7)]
    governor.set(assistant, SHORT)
    assert assistant.generate(messages).wait() == "300 letters."


def test_a_long_prompt_waits_for_the_reply_that_runs_in_the_smaller_window(make: Any, governor: SetGovernor) -> None:
    assistant, backend = make(script=lambda message: "x" * (400 if len(message) < 9 else 1), delay_s=0.001)
    governor.set(assistant, SHORT)
    first = assistant.generate("hello")
    next(iter(first))
    governor.set(assistant, FULL)
    second = assistant.generate("w" * 2500)
    assert (len(first.wait()), len(second.wait())) == (400, 1)
    assert backend.n_ctx == 4096


@pytest.mark.parametrize("refusal", [ModelTooLargeError("There is not enough memory."), UnsupportedError("Not this model.")])
def test_a_cache_that_cannot_be_resized_stays(
    make: Any, governor: SetGovernor, refusal: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    assistant, backend = make()
    backend.refusal = refusal
    governor.set(assistant, SHORT)
    eventually(lambda: (assistant.n_ctx, assistant.held_back) == (4096, "short of memory: one reply at a time"))
    assert assistant.generate("hello").wait() == "5 letters."
    assert backend.sizes == [1024], "asked once, not before every token"
    assert "stays at 4096" in caplog.text


def test_a_backend_that_can_do_neither_still_rests() -> None:
    class Fixed(FakeBackend):
        def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
            raise AssertionError("not asked for")

        def resize(self, n_ctx: int) -> None:
            raise AssertionError("not asked for")

    backend = Fixed(script=lambda message: "yes")
    backend.capabilities = replace(backend.capabilities, threads=False, resize=False)
    governor = SetGovernor()
    with Assistant(backend, sampling=GREEDY, governor=governor, sensors=QuickSensors()) as assistant:
        governor.set(assistant, replace(SHORT, rest=0.5))
        assert (assistant.n_ctx, assistant.generate("hello").wait()) == (4096, "yes")


def test_engines_that_round_up_are_asked_once(governor: SetGovernor) -> None:
    class Rounding(Sized):
        def resize(self, n_ctx: int) -> None:
            super().resize(-(-n_ctx // 256) * 256)

    backend = Rounding(script=lambda message: "yes")
    with Assistant(backend, sampling=GREEDY, governor=governor, sensors=QuickSensors()) as assistant:
        governor.set(assistant, replace(SHORT, n_ctx=1000))
        eventually(lambda: assistant.n_ctx == 1024)
        for _ in range(3):
            assistant.generate("hello").wait()
        assert backend.sizes == [1024]


def test_from_the_sensor_to_the_reply() -> None:
    sensors, is_hot = QuickSensors(), threading.Event()

    class Told(FakeBackend):
        def set_threads(self, n_threads: int, n_threads_batch: int) -> None:
            super().set_threads(n_threads, n_threads_batch)
            is_hot.set()

    backend = Told(script=lambda message: "yes")
    governor = Governor(Workload(4, 4, 4096))
    with Assistant(backend, sampling=GREEDY, governor=governor, sensors=sensors) as assistant:
        assert assistant.generate("hello").wait() == "yes"
        assert assistant.held_back == ""
        sensors.readings = Readings(hottest_c=98.0, headroom_c=1.0)
        assert is_hot.wait(60)
        reply = assistant.generate("hello")
        assert (reply.wait(), reply.held_back, backend.threads) == ("yes", "hot: 3 of 4 threads", (3, 3))


def test_a_closed_scheduler_takes_no_limits() -> None:
    scheduler = Scheduler(FakeBackend())
    scheduler.close()
    with pytest.raises(BackendError, match="closed"):
        scheduler.throttle(FULL)


def test_limits_do_not_disturb_generations_of_the_scheduler_itself() -> None:
    backend = Sized(script=lambda message: "x" * 300)
    scheduler = Scheduler(backend)
    try:
        done = threading.Event()
        ends: list[Any] = []

        def listen(event: Any) -> None:
            ends.append(event)
            if isinstance(event, Finished):
                done.set()

        prompt = backend.tokenizer.tokenize("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", parse_special=True)
        scheduler.submit(Generation(prompt, GREEDY, listen))
        for n in range(50):
            scheduler.throttle(replace(FULL if n % 2 else SHORT, n_threads=1 + n % 4))
        assert done.wait(60)
        assert ends[-1].tokens == tuple(b"x" * 300)
    finally:
        scheduler.close()
