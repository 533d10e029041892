"""A reply under construction, read by threads and event loops at once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from edge.errors import BackendError
from edge.reply import Reply


def write_in_background(reply: Reply, pieces: list[str], error: BackendError | None = None) -> threading.Thread:
    def run() -> None:
        for piece in pieces:
            reply._write(piece)
        reply._end("error" if error else "stop", error)

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
    early._bind(lambda: calls.append(1))
    assert (calls, early.is_cancelled) == ([1], True)
    with Reply() as late:
        late._bind(lambda: (calls.append(2), late._end("cancelled"))[0])
    assert calls == [1, 2], "leaving the block cancels"
    done = Reply()
    done._bind(lambda: calls.append(3))
    done._end("stop")
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
