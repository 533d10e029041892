"""A reply under construction, read by threads and event loops at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from edge.errors import BackendError
from edge.events import Notice, Progress, ReplyEvent, Text
from edge.reply import Reply


def write_in_background(reply: Reply, pieces: list[str], error: BackendError | None = None) -> threading.Thread:
    def run() -> None:
        for piece in pieces:
            reply._state.emit(Text(piece))
        reply._state.end("error" if error else "stop", error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_every_reader_gets_every_piece() -> None:
    pieces = [f"{i} " for i in range(500)]
    reply = Reply()
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(lambda: list(reply)) for _ in range(4)]
        write_in_background(reply, pieces).join()
        assert all(reader.result(30) == pieces for reader in readers)
    assert list(reply) == pieces, "also a reader that comes afterwards"
    assert reply.text == reply.wait() == "".join(pieces)


async def test_async_readers_and_await() -> None:
    pieces = [f"{i} " for i in range(500)]
    reply = Reply()

    async def collect() -> list[str]:
        return [piece async for piece in reply]

    readers = [asyncio.create_task(collect()) for _ in range(3)]
    whole = asyncio.create_task(_await(reply))
    await asyncio.sleep(0)
    thread = write_in_background(reply, pieces)
    assert await asyncio.gather(*readers) == [pieces] * 3
    assert await whole == "".join(pieces)
    thread.join()


async def _await(reply: Reply) -> str:
    return await reply


async def test_an_error_comes_after_the_pieces_before_it() -> None:
    reply = Reply()
    write_in_background(reply, ["a", "b"], BackendError("gone")).join()
    seen: list[str] = []
    with pytest.raises(BackendError, match="gone"):
        for piece in reply:
            seen.append(piece)  # noqa: PERF402 (extend would lose what came before the error)
    with pytest.raises(BackendError, match="gone"):
        async for piece in reply:
            seen.append(piece)  # noqa: PERF401
    with pytest.raises(BackendError, match="gone"):
        reply.wait()
    assert seen == ["a", "b", "a", "b"], "once for each way to read it"
    assert reply.text == "ab"


def test_waiting_with_a_limit() -> None:
    with pytest.raises(TimeoutError):
        Reply().wait(timeout_s=0.01)


def test_cancel_before_and_after_there_is_something_to_cancel() -> None:
    calls: list[int] = []
    early = Reply()
    early.cancel()
    early._state.bind(lambda: calls.append(1))
    assert (calls, early.is_cancelled) == ([1], True)
    with Reply() as late:
        late._state.bind(lambda: (calls.append(2), late._state.end("cancelled"))[0])  # type: ignore[func-returns-value]
    assert calls == [1, 2], "leaving the block cancels"
    done = Reply()
    done._state.bind(lambda: calls.append(3))
    done._state.end("stop")
    done.cancel()
    assert calls == [1, 2], "a reply that is over has nothing to cancel"


async def test_a_reader_whose_loop_is_gone_holds_up_nobody() -> None:
    reply = Reply()

    def start_and_leave() -> None:
        async def begin() -> None:
            task = asyncio.create_task(_await(reply))
            await asyncio.sleep(0)
            task.cancel()

        asyncio.run(begin())

    thread = threading.Thread(target=start_and_leave)
    thread.start()
    thread.join()
    write_in_background(reply, ["x"]).join()
    assert await reply == "x"


# -- who stops it


def running() -> tuple[Reply, list[str]]:
    """A reply that runs, and what happens to it."""
    reply, seen = Reply(), list[str]()
    reply._state.bind(lambda: seen.append("stopped"))
    reply._state.emit(Text("a"))
    return reply, seen


def test_a_reply_that_nobody_holds_stops() -> None:
    reply, seen = running()
    for _ in reply:
        break
    assert seen == [], "it is still held"
    reader = iter(reply)
    next(reader)
    del reply
    assert seen == [], "it is still read"
    del reader
    assert seen == ["stopped"]


async def test_an_async_loop_that_is_left_stops_the_reply_at_once() -> None:
    replies, seen = zip(*[running() for _ in range(2)], strict=True)
    waiting = list(replies)
    del replies
    async for _ in waiting.pop():
        break
    assert seen[1] == ["stopped"]
    with pytest.raises(KeyError):
        async for _ in waiting.pop():
            raise KeyError
    assert seen[0] == ["stopped"]


def test_a_detached_reply_goes_on() -> None:
    reply, seen = running()
    assert reply.detach() is reply
    state = reply._state
    del reply
    assert seen == []
    state.cancel()
    assert seen == ["stopped"], "but it can be stopped"


async def test_the_last_reader_whose_task_is_cancelled_stops_the_reply() -> None:
    reply, seen = running()
    readers = [asyncio.create_task(_await(reply)) for _ in range(2)]
    await asyncio.sleep(0)
    readers[0].cancel()
    await asyncio.wait(readers[:1])
    assert seen == [], "somebody else reads it"
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(readers[1], 0.01)
    assert seen == ["stopped"]
    detached, seen = running()
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(detached.detach(), 0.01)
    assert seen == []


def test_waiting_with_a_limit_that_stops() -> None:
    reply, seen = running()
    with pytest.raises(TimeoutError, match="still running"):
        reply.wait(0.01)
    assert seen == []
    reply._state.bind(lambda: reply._state.end("cancelled"))
    with pytest.raises(TimeoutError, match="stopped"):
        reply.wait(0.01, cancel=True)
    assert (reply.finish_reason, reply.text) == ("cancelled", "a")


def test_an_interrupted_wait_stops_the_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    reply, seen = running()

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    for read in (reply.wait, lambda: list(reply)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(reply._state.changed, "wait_for", interrupt)
            read()
    assert seen == ["stopped"] * 2


# -- events


ORDERED: list[ReplyEvent] = [
    Progress(8, 16),
    Notice("old messages are left out"),
    Progress(16, 16),
    Text("a"),
    Text(""),
    Text("b"),
]


def ended(error: BackendError | None = None) -> Reply:
    """A reply whose events are all there."""
    reply = Reply()
    for event in ORDERED:
        reply._state.emit(event)
    reply._state.end("error" if error else "stop", error)
    return reply


async def test_every_reader_gets_all_events_in_order() -> None:
    reply = ended()
    assert list(reply.events()) == list(reply.events()) == [event async for event in reply.events()] == ORDERED
    assert list(reply) == [piece async for piece in reply] == ["a", "b"], "only text, and none that is empty"
    assert (reply.text, reply.notices, reply.progress) == ("ab", ["old messages are left out"], (16, 16))
    assert [event.kind for event in ORDERED[:4]] == ["progress", "notice", "progress", "text"]


async def test_events_come_while_the_reply_runs() -> None:
    reply = Reply()

    async def collect() -> list[ReplyEvent]:
        return [event async for event in reply.events()]

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(lambda: list(reply.events())) for _ in range(2)]
        task = asyncio.create_task(collect())
        await asyncio.sleep(0)
        for event in ORDERED:
            reply._state.emit(event)
        reply._state.end("stop")
        assert await task == ORDERED
        assert all(reader.result(30) == ORDERED for reader in readers)


async def test_an_error_comes_after_the_events_before_it() -> None:
    reply, seen = ended(BackendError("gone")), list[ReplyEvent]()
    with pytest.raises(BackendError, match="gone"):
        for event in reply.events():
            seen.append(event)
    with pytest.raises(BackendError, match="gone"):
        async for event in reply.events():
            seen.append(event)
    assert seen == ORDERED * 2


async def test_a_loop_over_events_that_is_left_stops_the_reply_at_once() -> None:
    replies, seen = zip(*[running() for _ in range(3)], strict=True)
    waiting = list(replies)
    del replies
    for _ in waiting.pop().events():
        break
    assert seen[2] == ["stopped"]
    async for _ in waiting.pop().events():
        break
    assert seen[1] == ["stopped"]
    with pytest.raises(KeyError):
        async for _ in waiting.pop().events():
            raise KeyError
    assert seen[0] == ["stopped"]


async def test_the_last_reader_of_events_whose_task_is_cancelled_stops_the_reply() -> None:
    reply, seen = running()

    async def collect() -> list[ReplyEvent]:
        return [event async for event in reply.events()]

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(collect(), 0.01)
    assert seen == ["stopped"]


# -- callbacks


def test_functions_are_called_once_when_the_reply_is_over(caplog: pytest.LogCaptureFixture) -> None:
    reply, seen = Reply(), list[tuple[str, str | None]]()

    def note(name: str) -> Callable[[Reply], None]:
        return lambda done: seen.append((name, done.finish_reason))

    def fail(done: Reply) -> None:
        raise ValueError("the program's own error")

    reply.on_done(note("first"))
    reply.on_done(fail)
    reply.on_done(note("second"))
    reply._state.emit(Text("a"))
    assert seen == []
    reply._state.end("stop")
    assert seen == [("first", "stop"), ("second", "stop")]
    assert "the program's own error" in caplog.text
    reply.on_done(note("late"))
    assert seen[2:] == [("late", "stop")]


def test_a_callback_does_not_keep_a_reply_running() -> None:
    reply, seen = running()
    reply.on_done(lambda done: None)
    del reply
    assert seen == ["stopped"]
