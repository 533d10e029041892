"""Many prompts: each is answered once, a few at a time, and leaving the loop stops the rest."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edge import Assistant, Message, Sampling
from edge.backends.fake import FakeBackend
from edge.engine.generation import Generation
from edge.errors import BackendError, UsageError

PROMPTS = [f"{n % 3} prompt {n}" for n in range(10)]


@pytest.fixture
def make() -> Iterator[Callable[..., Assistant]]:
    made: list[Assistant] = []

    def build(**options: Any) -> Assistant:
        backend = FakeBackend(**{"script": str.upper, **options})
        made.append(Assistant(backend, sampling=Sampling(temperature=0)))
        return made[-1]

    yield build
    for assistant in made:
        assistant.close()


def submitted(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> list[Generation]:
    """What the scheduler is asked for."""
    asked: list[Generation] = []
    submit = assistant._scheduler.submit
    monkeypatch.setattr(assistant._scheduler, "submit", lambda one: (asked.append(one), submit(one))[1])  # type: ignore[func-returns-value]
    return asked


async def test_every_prompt_is_answered_once(make: Callable[..., Assistant]) -> None:
    assistant = make()
    expected = {number: prompt.upper() for number, prompt in enumerate(PROMPTS)}
    for n_at_once in (1, 3, None, 100):
        answers = {number: reply.wait() for number, reply in assistant.batch(PROMPTS, n_at_once=n_at_once)}
        assert answers == expected
    batch = assistant.batch(iter(PROMPTS))
    assert {number: reply.text async for number, reply in batch} == expected
    assert list(assistant.batch([])) == []
    assert [one async for one in assistant.batch([])] == []


def test_it_is_background_work_unless_told_otherwise(make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = make()
    asked = submitted(assistant, monkeypatch)
    list(assistant.batch(PROMPTS[:2]))
    list(assistant.batch(PROMPTS[:1], priority="interactive"))
    assert [one.priority for one in asked] == ["background", "background", "interactive"]


def test_prompts_that_begin_alike_follow_each_other(make: Callable[..., Assistant]) -> None:
    assistant = make()
    assert [number % 3 for number, _ in assistant.batch(PROMPTS, n_at_once=1)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [number for number, _ in assistant.batch(iter(PROMPTS), n_at_once=1)] == list(range(10)), "as they come"


def test_no_more_run_than_allowed(make: Callable[..., Assistant]) -> None:
    assistant, most = make(n_seq=2), 0
    for _ in assistant.batch(PROMPTS, n_at_once=3):
        most = max(most, len(assistant._turns._running._replies))
    assert 0 < most <= 3
    assert assistant._turns.n_seq == 2


def test_a_reply_that_fails_does_not_stop_the_others(make: Callable[..., Assistant]) -> None:
    assistant = make(n_ctx=512)
    replies = dict(assistant.batch(["a", "x" * 1000, "b"]))
    assert [replies[number].finish_reason for number in range(3)] == ["stop", "error", "stop"]
    assert replies[1].error is not None


async def test_leaving_the_loop_stops_the_rest(make: Callable[..., Assistant]) -> None:
    assistant = make(script=lambda message: "z" * (3000 if "long" in message else 1), delay_s=0.001)
    prompts = ["long 1", "long 2", "short"]

    def is_quiet() -> bool:
        running = assistant._turns._running
        with running._ended:
            return running._ended.wait_for(lambda: not running._replies, 30)

    for number, _ in assistant.batch(prompts):
        assert number == 2
        break
    assert is_quiet()
    async for _ in assistant.batch(prompts):
        break
    assert await asyncio.to_thread(is_quiet)
    with pytest.raises(KeyError):
        async for _ in assistant.batch(prompts):
            raise KeyError
    assert await asyncio.to_thread(is_quiet)

    async def collect() -> None:
        async for _ in assistant.batch(prompts[:2]):
            pass

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(collect(), 0.05)
    assert await asyncio.to_thread(is_quiet)


def test_wrong_prompts_are_refused(make: Callable[..., Assistant]) -> None:
    assistant = make()
    for wrong in ("one", b"one", {"role": "user"}, 5, None, [5], [""]):
        with pytest.raises(UsageError):
            assistant.batch(wrong)  # type: ignore[arg-type]
    for options in ({"n_at_once": 0}, {"n_at_once": "2"}, {"priority": "low"}, {"max_token": 3}):
        with pytest.raises(UsageError):
            assistant.batch(["hi"], **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        list(assistant.batch(iter([[Message("user", "hi")], 5])))  # type: ignore[list-item]
    with pytest.raises(UsageError, match=r"^Prompt 2: .* not int"):
        assistant.batch(["a", "b", 5])  # type: ignore[list-item]


def test_of_a_closed_assistant(make: Callable[..., Assistant]) -> None:
    assistant, replies = make(), list[Any]()
    batch = assistant.batch(PROMPTS)
    closing = threading.Thread(target=assistant.close)
    with pytest.raises(BackendError, match="closed"):
        for _, reply in batch:
            replies.append(reply)
            if not closing.ident:
                closing.start()
                closing.join()
    with pytest.raises(BackendError, match="closed"):
        assistant.batch(PROMPTS)
