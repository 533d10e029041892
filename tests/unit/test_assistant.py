"""The facade on the fake model: turns, branches, what is saved when, cancellation, errors, threads, event loops."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.fake import FakeBackend, FakeTokenizer
from edge.conversation import Attachment, ConversationStore
from edge.errors import BackendError, CancelledError, ContextFullError, StorageError, UsageError
from edge.events import Text
from edge.kv.store import BlockStore, StoreOptions
from edge.reply import Reply
from edge.request import Request
from edge.types import Message, Sampling, Usage


def words(message: str) -> str:
    return f"You wrote {len(message)} letters."


@pytest.fixture
def make() -> Iterator[Callable[..., Assistant]]:
    """Makes assistants on a fake model and closes them."""
    made: list[Assistant] = []

    def build(*, store: ConversationStore | None = None, window: str = "drop", **options: Any) -> Assistant:
        backend = FakeBackend(**{"script": words, **options})
        made.append(Assistant(backend, store=store, sampling=Sampling(temperature=0), window=window))
        return made[-1]

    yield build
    for assistant in made:
        assistant.close()


def test_a_conversation_and_what_is_kept_of_it(make: Callable[..., Assistant]) -> None:
    conversation = make().conversation(system="Be brief")
    reply = conversation.send("hello")
    assert "".join(reply) == "You wrote 5 letters."
    assert reply.finish_reason == "stop"
    assert [(node.role, node.content, node.status) for node in conversation.messages] == [
        ("user", "hello", "complete"),
        ("assistant", "You wrote 5 letters.", "complete"),
    ]
    assert reply.node == conversation.messages[-1]
    assert reply.node is not None
    assert reply.node.record["usage"]["n_generated"] == reply.usage.n_generated
    assert conversation.system == "Be brief"
    assert conversation.title == "hello"


def test_a_conversation_is_stored_with_its_first_message(make: Callable[..., Assistant], tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "c.db") as store:
        assistant = make(store=store)
        unused = [assistant.conversation(system="Be brief") for _ in range(3)]
        assert (unused[0].messages, unused[0].title, unused[0].system) == ([], "", "Be brief")
        assert unused[0].info.id == unused[0].id
        for call in (unused[0].regenerate, unused[0].fork, lambda: unused[0].edit(1, "x"), lambda: unused[0].switch(1)):
            with pytest.raises(UsageError):
                call()
        with pytest.raises(UsageError, match="empty"):
            unused[0].send(" ")
        assert store.list() == [], "nothing was said"
        assert len({conversation.id for conversation in unused}) == 3
        unused[1].send("hello").wait()
        unused[2].title = "Kept"
        assert {(info.id, info.title, info.system) for info in store.list()} == {
            (unused[1].id, "hello", "Be brief"),
            (unused[2].id, "Kept", "Be brief"),
        }


def test_a_reply_says_which_stop_text_ended_it(make: Callable[..., Assistant]) -> None:
    assistant = make()
    by_text, by_model = assistant.generate("hello", stop=("5", "letters")), assistant.generate("hello")
    assert (by_text.wait(), by_text.finish_reason, by_text.stopped_by) == ("You wrote ", "stop", "5")
    assert (by_model.wait(), by_model.finish_reason, by_model.stopped_by) == ("You wrote 5 letters.", "stop", None)


def test_a_message_is_shown_without_its_record(make: Callable[..., Assistant]) -> None:
    conversation = make().conversation()
    conversation.send("hello").wait()
    assert "You wrote 5 letters." in repr(conversation.messages[-1])
    assert len(repr(conversation.messages[-1])) < 400


def test_a_follow_up_reads_only_what_is_new(make: Callable[..., Assistant]) -> None:
    conversation = make().conversation(system="Be brief")
    first = conversation.send("hello")
    first.wait()
    second = conversation.send("again")
    assert second.wait() == "You wrote 5 letters."
    n_new = second.usage.n_prompt - second.usage.n_reused
    assert second.usage.n_reused == first.usage.n_prompt + first.usage.n_generated
    assert n_new < 70


def test_the_system_prompt_reaches_the_model(make: Callable[..., Assistant]) -> None:
    assistant = make()
    a, b = assistant.conversation(system="Be brief").send("x"), assistant.conversation().send("x")
    for reply in (a, b):
        reply.wait()
    assert a.usage.n_prompt - b.usage.n_prompt == len("system\nBe brief\n") + 2


def test_attachments_reach_the_model(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda message: f"{'SECRET' in message}").conversation()
    reply = conversation.send("what is in it?", attachments=[Attachment("notes.txt", "the SECRET word")])
    assert reply.wait() == "True"
    assert conversation.messages[0].attachments == (Attachment("notes.txt", "the SECRET word"),)


def test_regenerate_edit_and_move_between_branches(make: Callable[..., Assistant]) -> None:
    conversation = make().conversation()
    conversation.send("one").wait()
    first_answer = conversation.messages[-1]
    again = conversation.regenerate()
    assert again.wait() == "You wrote 3 letters."
    assert len(conversation.branches(first_answer.id)) == 2
    conversation.edit(conversation.messages[0].id, "three").wait()
    assert [node.content for node in conversation.messages] == ["three", "You wrote 5 letters."]
    conversation.switch(first_answer.id)
    assert [node.id for node in conversation.messages][-1] == first_answer.id
    with pytest.raises(UsageError, match="own messages"):
        conversation.edit(first_answer.id, "no")
    reused = conversation.send("more")
    reused.wait()
    assert reused.usage.n_reused > 0


def test_regenerating_a_question_whose_answer_failed(make: Callable[..., Assistant]) -> None:
    conversation = make(n_ctx=256).conversation()
    failed = conversation.send("y" * 400)
    with pytest.raises(ContextFullError):
        failed.wait()
    assert conversation.messages == [], "it would be in the way of the next one"
    assert "y" * 400 in conversation._store.export_json(conversation.id), "but what was typed is kept"
    with pytest.raises(UsageError, match="no message to answer"):
        make().conversation().regenerate()


@pytest.mark.parametrize("how", ["stopped", "failed"])
def test_regenerating_without_a_word_brings_the_old_answer_back(
    make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    assistant = make()
    conversation = assistant.conversation()
    conversation.send("one").wait()
    before = [node.id for node in conversation.messages]

    def end_early(*args: object, **kwargs: object) -> None:
        raise (CancelledError if how == "stopped" else BackendError)("before the first word")

    with monkeypatch.context() as patch:
        patch.setattr("edge.turn.fit", end_early)
        reply = conversation.regenerate()
        if how == "stopped":
            assert reply.wait() == ""
        else:
            with pytest.raises(BackendError):
                reply.wait()
    assert reply.finish_reason == ("cancelled" if how == "stopped" else "error")
    assert [node.id for node in conversation.messages] == before


def test_leaving_the_block_of_a_reply_frees_the_conversation(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda _: "z" * 3000, delay_s=0.001).conversation()
    with conversation.send("go") as reply:
        next(iter(reply))
    assert reply.finish_reason == "cancelled"
    with conversation.send("on"):
        pass
    assert [node.role for node in conversation.messages][:3] == ["user", "assistant", "user"]


async def test_leaving_the_async_block_of_a_reply_frees_the_conversation(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda _: "z" * 3000, delay_s=0.001).conversation()
    async with conversation.send("go") as reply:
        async for _ in reply:
            break
    assert reply.finish_reason == "cancelled"
    async with conversation.send("on"):
        pass


async def test_leaving_a_reply_in_any_way_stops_it_and_the_conversation_goes_on(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda message: "z" * (4000 if message == "long" else 3), delay_s=0.001).conversation()

    async def loop_left() -> None:
        async for _ in await conversation.asend("long"):
            break

    def sync_loop_left() -> None:
        for _ in conversation.send("long"):
            raise KeyError

    async def timed_out() -> None:
        reply = await conversation.asend("long")
        while not reply.text:  # noqa: ASYNC110 (a reply that is stopped before its first word leaves nothing)
            await asyncio.sleep(0.001)
        await asyncio.wait_for(reply, 0.05)

    for leave in (loop_left, lambda: asyncio.to_thread(sync_loop_left), timed_out):
        try:
            await leave()
        except (KeyError, asyncio.TimeoutError):
            assert await (await conversation.asend("on")) == "zzz"  # in the handler, where the traceback lives
        assert await (await conversation.asend("on")) == "zzz", "not a refusal, and not after 4000 tokens"
    assert [node.status for node in conversation.messages if node.role == "assistant"].count("stopped") == 3


def test_a_reply_with_a_limit_of_time_stops_itself(make: Callable[..., Assistant]) -> None:
    assistant = make(script=lambda _: "z" * 4000, delay_s=0.001)
    conversation = assistant.conversation()
    for ask in (conversation.send, assistant.generate):
        reply = ask("go", timeout_s=0.1)
        text = reply.wait(timeout_s=30)
        assert (reply.finish_reason, 0 < len(text) < 4000) == ("cancelled", True)
        assert "longer than 0.1 seconds" in reply.notices[-1]


def test_sampling_inherits_from_the_call_to_the_assistant(
    make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = make(script=lambda _: "z" * 50)
    seen: list[Sampling] = []
    make_turn = assistant._turns.make

    def note(*arguments: Any, **options: Any) -> Any:
        made = make_turn(*arguments, **options)
        seen.append(made.request.sampling)
        return made

    monkeypatch.setattr(assistant._turns, "make", note)
    assistant.sampling = Sampling(top_k=7, max_tokens=9)
    assert (assistant.sampling.temperature, assistant.sampling.top_k) == (0, 7), "as loaded, where nothing is set"
    conversation = assistant.conversation(sampling=Sampling(top_p=0.5, max_tokens=5))
    assert conversation.send("a").wait() == "z" * 5
    assert conversation.send("a", max_tokens=4, stop="END").wait() == "z" * 4
    assert conversation.regenerate(max_tokens=3).wait() == "z" * 3
    assert conversation.edit(conversation.messages[0].id, "b", sampling=Sampling(max_tokens=6), max_tokens=2).wait() == "zz"
    assert assistant.generate("a", max_tokens=1).wait() == "z"
    assert assistant.complete("a", max_tokens=1).wait(30)
    assert [one.top_k for one in seen] == [7] * 6
    assert [(one.temperature, one.top_p) for one in seen] == [(0, 0.5)] * 4 + [(0, 0.95)] * 2
    assert seen[1].stop[0] == "END"


def test_an_unknown_option_is_refused_before_anything_is_saved(make: Callable[..., Assistant]) -> None:
    conversation = make().conversation()
    with pytest.raises(UsageError, match="max_tokens") as caught:
        conversation.send("hello", max_tokns=5)  # type: ignore[call-arg]
    assert "Did you mean max_tokens?" in caught.value.hint
    for wrong in ({"max_tokens": 0}, {"sampling": {"max_tokens": 4}}):
        with pytest.raises(UsageError):
            conversation.send("hello", **wrong)
    assert conversation.messages == []


def test_an_assistant_that_is_dropped_frees_its_model() -> None:
    backend = FakeBackend(script=words)
    text = Assistant(backend, sampling=Sampling(temperature=0)).generate("hello").wait()
    assert text == "You wrote 5 letters.", "a running turn keeps the assistant"
    gc.collect()
    for thread in threading.enumerate():
        if thread.name == "edge-engine":
            thread.join(30)
    with pytest.raises(BackendError):
        backend.length(0)


def test_fork_goes_its_own_way(make: Callable[..., Assistant]) -> None:
    conversation = make().conversation()
    conversation.send("one").wait()
    fork = conversation.fork()
    fork.send("two").wait()
    assert (len(conversation.messages), len(fork.messages)) == (2, 4)
    with pytest.raises(UsageError, match="empty"):
        make().conversation().fork()


def test_stopping_keeps_what_was_said(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda _: "z" * 3000, delay_s=0.001).conversation()
    reply = conversation.send("go")
    for _ in reply:
        reply.cancel()
    assert reply.finish_reason == "cancelled"
    assert reply.node is not None
    assert (reply.node.status, reply.node.content) == ("stopped", reply.text)
    assert 0 < len(reply.text) < 3000
    assert conversation.send("on").wait(), "and the conversation goes on"


def test_one_reply_at_a_time_in_a_conversation(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda _: "z" * 3000, delay_s=0.001).conversation()
    reply = conversation.send("go")
    for call in (lambda: conversation.send("too soon"), conversation.regenerate, lambda: conversation.switch(1)):
        with pytest.raises(UsageError, match="still being answered"):
            call()
    assert len(conversation.messages) == 1, "a refused message is not saved"
    reply.cancel()
    reply.wait()


def test_partial_text_is_saved_while_it_is_written(
    make: Callable[..., Assistant], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.conversation.reply_saver._SAVE_EVERY_S", 0.0)
    with ConversationStore(tmp_path / "c.db") as store, ConversationStore(tmp_path / "c.db") as other:
        conversation = make(store=store, script=lambda _: "z" * 3000, delay_s=0.001).conversation()
        reply = conversation.send("go")
        next(iter(reply))
        seen = other.path(conversation.id)
        while len(seen) < 2:
            seen = other.path(conversation.id)
        assert (seen[1].role, seen[1].status) == ("assistant", "partial")
        assert set(seen[1].content) == {"z"}
        reply.cancel()
        reply.wait()
        assert other.path(conversation.id)[1].status == "stopped"


def test_a_message_that_cannot_be_saved_is_not_sent(make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = make()
    conversation = assistant.conversation()

    def full(*args: object, **kwargs: object) -> None:
        raise StorageError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(assistant.store, "append", full)
        with pytest.raises(StorageError):
            conversation.send("hello")
    assert conversation.send("hello").wait(), "and it can be sent again"


def test_a_reply_that_cannot_be_saved_is_still_shown_and_said_so(
    make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = make()
    conversation = assistant.conversation()
    append = assistant.store.append

    def only_questions(id: str, message: Message, **options: Any) -> Any:
        if message.role == "assistant":
            raise StorageError("The disk is full.")
        return append(id, message, **options)

    monkeypatch.setattr(assistant.store, "append", only_questions)
    reply = conversation.send("hello")
    assert reply.wait() == "You wrote 5 letters."
    assert any("could not be saved" in notice for notice in reply.notices)
    assert reply.node is None


def test_a_full_window_forgets_the_oldest_and_says_so(make: Callable[..., Assistant]) -> None:
    conversation = make(n_ctx=600).conversation(system="Be brief")
    notices: list[str] = []
    for i in range(12):
        reply = conversation.send(f"message number {i} " + "w" * 30)
        assert reply.wait().startswith("You wrote")
        notices += reply.notices
    assert notices, "the user is told what the model no longer sees"
    assert len(conversation.messages) == 24, "nothing is deleted"


def test_a_full_window_is_summarised_once_and_the_summary_is_kept(make: Callable[..., Assistant], tmp_path: Path) -> None:
    asked: list[str] = []

    def script(message: str) -> str:
        asked.append(message)
        return "They counted." if "Summarise this conversation" in message else words(message)

    with ConversationStore(tmp_path / "c.db") as store:
        conversation = make(store=store, window="summarise", n_ctx=1200, script=script).conversation(system="Be brief")
        notices: list[str] = []
        for i in range(14):
            reply = conversation.send(f"message number {i} " + "w" * 60)
            reply.wait()
            notices += reply.notices
        n_summaries = sum("Summarise this conversation" in message for message in asked)
        assert 0 < len(notices) < 6
        assert n_summaries <= 2 * len(notices), "a summary is made when the window is full, not at every turn"
        assert "summary" in notices[0]
        kept = conversation.messages[-1].record["summary"]
        assert kept["text"] == "They counted."
        asked.clear()
        make(store=store, window="summarise", n_ctx=1200, script=script).conversation(conversation.id).send("on").wait()
        assert not any("Summarise this conversation" in message for message in asked), "not even after a restart"


def test_a_message_too_long_for_the_summary_is_not_cut_in_silence(make: Callable[..., Assistant]) -> None:
    asked: list[str] = []

    def script(message: str) -> str:
        asked.append(message)
        return "Ok."

    conversation = make(window="summarise", n_ctx=1200, script=script).conversation()
    conversation.send("beginning " + "w" * 750 + " end").wait()
    notices: list[str] = []
    while not any("Summarise this conversation" in message for message in asked):
        reply = conversation.send("w" * 100)
        reply.wait()
        notices += reply.notices
    (told,) = [notice for notice in notices if "too many to be summarised as a whole" in notice]
    assert "A message of yours has 770 tokens" in told
    assert "of its 764 letters" in told
    (summarised,) = [message for message in asked if "Summarise this conversation" in message and "beginning" in message]
    assert " end" not in summarised
    assert "[the rest of this message is left out]" in summarised


@pytest.mark.parametrize("window", ["drop", "refuse"])
def test_a_refused_message_does_not_block_the_conversation(make: Callable[..., Assistant], window: str) -> None:
    with make(n_ctx=600, window=window) as ai:
        conversation = ai.conversation()
        with pytest.raises(ContextFullError):
            conversation.send("x" * 580).wait()
        assert conversation.messages == [], "the first one too"
        conversation.send("hi").wait()
        before = [node.id for node in conversation.messages]
        with pytest.raises(ContextFullError):
            conversation.send("y" * 580).wait()
        assert [node.id for node in conversation.messages] == before
        assert len(ai.store.siblings(before[0])) == 2, "it is kept, beside the path"
        with pytest.raises(ContextFullError):
            conversation.edit(before[0], "z" * 580).wait()
        assert [node.id for node in conversation.messages] == before
        assert conversation.send("and now?").wait()


def test_what_cannot_fit_is_refused_before_it_is_tokenised(
    make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = make(n_ctx=256)
    tokenize, sizes = FakeTokenizer.tokenize, list[int]()

    def watch(self: FakeTokenizer, text: str, **options: Any) -> list[int]:
        sizes.append(len(text))
        return tokenize(self, text, **options)

    monkeypatch.setattr(FakeTokenizer, "tokenize", watch)
    for call in (assistant.conversation().send, assistant.generate, assistant.complete):
        with pytest.raises(ContextFullError, match=r"2,000,000 bytes, which is [0-9,]+ tokens at the very least") as caught:
            call("é" * 1_000_000).wait()  # type: ignore[operator]
        assert "The context window has 256." in caught.value.message
    assert max(sizes, default=0) < 1000


@pytest.mark.parametrize("window", ["drop", "summarise"])
def test_a_message_far_too_large_poisons_nothing(
    make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch, window: str
) -> None:
    assistant = make(n_ctx=1024, window=window)
    conversation = assistant.conversation()
    with pytest.raises(ContextFullError):
        conversation.send("x" * 1_000_000)
    with pytest.raises(ContextFullError):
        conversation.send("look", attachments=[Attachment("a.txt", "x" * 1_000_000)])
    assert conversation.messages == [], "it is not part of the conversation"
    conversation.send("hello").wait()
    store = assistant.store  # as an older edge left it, or a larger window
    store.append(conversation.id, Message("user", "x" * 1_000_000), parent=conversation.info.head)
    tokenize, sizes = FakeTokenizer.tokenize, list[int]()

    def watch(self: FakeTokenizer, text: str, **options: Any) -> list[int]:
        sizes.append(len(text))
        return tokenize(self, text, **options)

    monkeypatch.setattr(FakeTokenizer, "tokenize", watch)
    reply = conversation.send("and now?")
    assert reply.wait() == "You wrote 8 letters."
    assert "longer than the context window" in " ".join(reply.notices)
    assert conversation.send("again").wait() == "You wrote 5 letters."
    assert max(sizes) < 20_000, "it is dropped without being tokenised"


def test_a_lower_bound_comes_from_a_prefix_where_tokens_can_be_long(
    make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompting, sizes = make()._prompting, list[int]()
    monkeypatch.setattr(type(prompting.tokenizer), "longest_token", 100_000)
    tokenize = FakeTokenizer.tokenize

    def watch(self: FakeTokenizer, text: str, **options: Any) -> list[int]:
        sizes.append(len(text))
        return tokenize(self, text, **options)

    monkeypatch.setattr(FakeTokenizer, "tokenize", watch)
    assert 1000 < (prompting.at_least("x" * 1_000_000, 1000) or 0) <= 8000
    assert sizes == [8000]
    assert prompting.at_least("x" * 4000, 1000) is None
    with pytest.raises(ContextFullError, match="at the very least"):
        prompting.check_size("x" * 10_000, 1000)


def test_tokens_are_counted_beside_a_prefill(make: Callable[..., Assistant]) -> None:
    assistant = make(prefill_delay_s=0.5)
    reply = assistant.generate("w" * 2000)
    while not reply.progress[1]:
        time.sleep(0.001)
    assert asyncio.run(assistant.acount_tokens("hello")) == assistant.count_tokens("hello") == 5
    assert reply.progress[0] < reply.progress[1], "the prompt is still being prefilled"
    reply.cancel()


def test_stopping_while_older_messages_are_summarised(make: Callable[..., Assistant]) -> None:
    is_summarising = threading.Event()

    def script(message: str) -> str:
        if "Summarise this conversation" in message:
            is_summarising.set()
            return "long " * 100
        return "Short."

    conversation = make(window="summarise", n_ctx=1200, script=script, delay_s=0.01).conversation()
    for i in range(20):
        reply = conversation.send(f"{i} " + "w" * 60)
        while not (reply.is_done or is_summarising.wait(0.001)):
            pass
        if is_summarising.is_set():
            break
        reply.wait()
    reply.cancel()
    assert reply.wait(timeout_s=30) == ""
    assert reply.finish_reason == "cancelled"
    assert conversation.messages[-1].role == "user"


def test_generate_and_complete_keep_nothing(make: Callable[..., Assistant]) -> None:
    assistant = make()
    assert assistant.generate("hello").wait() == "You wrote 5 letters."
    assert assistant.generate([Message("user", "one"), Message("assistant", "x"), Message("user", "three")]).wait() == (
        "You wrote 5 letters."
    )
    assert assistant.complete("<|im_start|>user\nhey<|im_end|>\n<|im_start|>assistant\n").wait() == "You wrote 3 letters."
    assert assistant.store.list() == []
    assert assistant.count_tokens("äb") == 3
    with pytest.raises(UsageError):
        assistant.generate([])


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_message_is_refused(make: Callable[..., Assistant], text: str) -> None:
    conversation = make().conversation()
    with pytest.raises(UsageError, match="empty"):
        conversation.send(text)
    assert conversation.messages == []


def test_going_on_with_a_kept_conversation(make: Callable[..., Assistant], tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "c.db") as store:
        first = make(store=store).conversation(system="Be brief")
        first.send("one").wait()
    with ConversationStore(tmp_path / "c.db") as store:
        again = make(store=store).conversation(first.id, system="Be long")
        assert [node.content for node in again.messages] == ["one", "You wrote 3 letters."]
        assert again.system == "Be long"
        again.title = "Renamed"
        assert again.title == "Renamed"
        assert again.send("three").wait() == "You wrote 5 letters."


def test_tokens_of_a_reply_that_are_not_its_text_are_not_believed(make: Callable[..., Assistant], tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "c.db") as store:
        conversation = make(store=store).conversation()
        conversation.send("one").wait()
        answer = conversation.messages[-1]
        expected = make(store=store).conversation(conversation.id).fork().send("two")
        assert expected.wait() == words("two")
        for wrong in (
            [1, 2, 3],
            [-1],
            ["a"],
            "abc",
            [10**9],
            [*answer.record["tokens"], 65],
            {"a": 1},
            [257, *answer.record["tokens"]],
        ):
            store.update(answer.id, record={**answer.record, "tokens": wrong})
            reply = make(store=store).conversation(conversation.id).fork().send("two")
            assert (reply.wait(), reply.usage.n_prompt) == (expected.text, expected.usage.n_prompt)


def test_many_threads_each_with_a_conversation(make: Callable[..., Assistant]) -> None:
    assistant = make(delay_s=0.0005)
    answers: dict[int, list[str]] = {}

    def talk(i: int) -> None:
        conversation = assistant.conversation()
        answers[i] = [conversation.send("n" * (i + turn + 1)).wait() for turn in range(3)]

    threads = [threading.Thread(target=talk, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: [words("n" * (i + turn + 1)) for turn in range(3)] for i in range(8)}


async def test_async_use(make: Callable[..., Assistant]) -> None:
    async with make() as assistant:
        conversations = [assistant.conversation() for _ in range(3)]
        texts = await asyncio.gather(*(_collect(conversation.send("hello")) for conversation in conversations))
        assert texts == ["You wrote 5 letters."] * 3
        assert await conversations[0].send("hi") == "You wrote 2 letters."
    with pytest.raises(BackendError, match="closed"):
        await assistant.generate("too late")


async def test_sending_leaves_the_event_loop_free(make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = make()
    conversation = assistant.conversation()
    may_save, is_saving, loop_thread = threading.Event(), threading.Event(), threading.get_ident()
    append, threads = assistant.store.append, list[int]()

    def wait_and_append(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        is_saving.set()
        may_save.wait()  # for ever, if the loop were blocked here
        return append(*arguments, **options)

    monkeypatch.setattr(assistant.store, "append", wait_and_append)
    sending = asyncio.create_task(conversation.asend("hello"))
    await asyncio.to_thread(is_saving.wait)
    may_save.set()
    assert await (await sending) == "You wrote 5 letters."
    assert threads[0] != loop_thread
    with pytest.raises(UsageError, match="empty"):
        await conversation.asend("")


async def test_a_cancelled_send_stops_its_reply(make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch) -> None:
    conversation = make(script=lambda message: "word " * 100_000, delay_s=0.05).conversation()
    may_save, is_saving, is_sent, replies = threading.Event(), threading.Event(), threading.Event(), list[Any]()
    send = conversation.send

    def wait_and_send(*arguments: Any, **options: Any) -> Any:
        is_saving.set()
        may_save.wait()
        replies.append(send(*arguments, **options))
        is_sent.set()
        return replies[-1]

    monkeypatch.setattr(conversation, "send", wait_and_send)
    sending = asyncio.create_task(conversation.asend("hello"))
    await asyncio.to_thread(is_saving.wait)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    may_save.set()
    await asyncio.to_thread(is_sent.wait)
    await replies[0]
    assert replies[0].is_cancelled
    assert [node.content for node in conversation.messages if node.role == "user"] == ["hello"]


async def _collect(reply: Any) -> str:
    return "".join([piece async for piece in reply])


def test_closing_while_it_answers_ends_the_reply(make: Callable[..., Assistant]) -> None:
    assistant = make(script=lambda _: "z" * 3000, delay_s=0.001)
    reply = assistant.conversation().send("go")
    next(iter(reply))
    assistant.close()
    assert reply.is_done, "closing waits for what is still saved"
    assert reply.wait(timeout_s=30) == reply.text != ""
    assert (reply.finish_reason, reply.error) == ("cancelled", None)
    assert reply.node is not None
    assert (reply.node.status, reply.node.content) == ("stopped", reply.text)


def test_closing_stops_what_waits_and_what_is_prefilled(make: Callable[..., Assistant]) -> None:
    assistant = make(script=lambda _: "z" * 3000, delay_s=0.001, prefill_delay_s=0.01)
    replies = [assistant.generate(f"{n} " + "w" * 1000) for n in range(8)]
    assistant.close()
    assert [(reply.finish_reason, reply.error) for reply in replies] == [("cancelled", None)] * 8


CALLS: dict[str, Callable[[Assistant, Any], object]] = {
    "generate": lambda ai, _: ai.generate("hi"),
    "complete": lambda ai, _: ai.complete("hi"),
    "count_tokens": lambda ai, _: ai.count_tokens("hi"),
    "check_cache": lambda ai, _: ai.check_cache(),
    "conversation": lambda ai, _: ai.conversation(),
    "with": lambda ai, _: ai.__enter__(),
    "send": lambda _, conversation: conversation.send("hi"),
    "regenerate": lambda _, conversation: conversation.regenerate(),
    "edit": lambda _, conversation: conversation.edit(1, "hi"),
    "messages": lambda _, conversation: conversation.messages,
    "title": lambda _, conversation: conversation.title,
}


@pytest.mark.parametrize("name", CALLS)
def test_a_closed_assistant_says_so(make: Callable[..., Assistant], name: str) -> None:
    assistant = make()
    conversation = assistant.conversation()
    assistant.count_tokens("hi")
    assistant.close()
    with pytest.raises(BackendError, match="assistant is closed"):
        CALLS[name](assistant, conversation)


def test_a_closed_assistant_leaves_the_callers_store_alone(make: Callable[..., Assistant], tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "c.db") as store:
        assistant = make(store=store)
        conversation = assistant.conversation()
        conversation.send("hello").wait()
        assistant.close()
        for call in (lambda: conversation.send("again"), conversation.regenerate):
            with pytest.raises(BackendError, match="assistant is closed"):
                call()
        assert [node.content for node in conversation.messages] == ["hello", "You wrote 5 letters."], "nothing was saved"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_instead_of_waiting_for_ever(make: Callable[..., Assistant]) -> None:
    assistant = make(script=lambda _: "z" * 3000, delay_s=0.001)
    conversation = assistant.conversation()
    running = conversation.send("go")
    next(iter(running))
    child = os.fork()
    if child == 0:
        wrong = [name for name, call in CALLS.items() if not _is_told(call, assistant, conversation)]
        wrong += [] if _is_told(lambda *_: running.wait(), assistant, conversation) else ["wait"]
        wrong += [] if _is_told(lambda *_: list(running), assistant, conversation) else ["iterate"]
        del running
        assistant.close()
        os._exit(len(wrong))
    until = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0), "it hung, or that many calls were not refused"
    running.cancel()
    assert running.wait(30), "and the parent is not harmed"
    assert assistant.generate("on", max_tokens=2).wait(30)


def _is_told(call: Callable[..., object], *arguments: object) -> bool:
    try:
        call(*arguments)
    except BackendError as error:
        return "another process" in error.message
    return False


@pytest.mark.parametrize(
    "call",
    [
        lambda ai, conversation: conversation.send(None),
        lambda ai, conversation: conversation.send(b"hi"),
        lambda ai, conversation: conversation.send("hi", attachments=["a.txt"]),
        lambda ai, conversation: conversation.send("hi", attachments="a.txt"),
        lambda ai, conversation: conversation.send("hi", attachments=None),
        lambda ai, conversation: conversation.send("hi", sampling={"max_tokens": 4}),
        lambda ai, conversation: conversation.send("hi", timeout_s="1"),
        lambda ai, conversation: conversation.send("hi", timeout_s=0),
        lambda ai, conversation: conversation.send("hi", priority="high"),
        lambda ai, conversation: conversation.send("hi", cache="ram"),
        lambda ai, conversation: conversation.send("hi", logprobs=True),
        lambda ai, conversation: conversation.send("hi", logprobs=-1),
        lambda ai, conversation: ai.generate("hi", priority=1),
        lambda ai, conversation: conversation.send("hi", timeout_s=float("nan")),
        lambda ai, conversation: ai.generate([{"role": "user", "text": "hi"}]),
        lambda ai, conversation: ai.generate([{"content": "hi"}]),
        lambda ai, conversation: ai.generate([{"role": "user", "content": 5}]),
        lambda ai, conversation: ai.generate([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]),
        lambda ai, conversation: ai.generate(["hi"]),
        lambda ai, conversation: ai.generate([]),
        lambda ai, conversation: ai.count(None),
        lambda ai, conversation: conversation.count(None),
        lambda ai, conversation: conversation.count("hi", attachments=["a.txt"]),
        lambda ai, conversation: ai.conversation(history="hi"),
        lambda ai, conversation: ai.conversation(history=[5]),
        lambda ai, conversation: ai.conversation(conversation.id, history=[Message("user", "hi")]),
        lambda ai, conversation: ai.generate(Message("user", "hi")),
        lambda ai, conversation: ai.generate({"role": "user"}),
        lambda ai, conversation: ai.generate(b"hi"),
        lambda ai, conversation: ai.generate(None),
        lambda ai, conversation: ai.generate(""),
        lambda ai, conversation: ai.generate("hi", {"max_tokens": 4}),
        lambda ai, conversation: ai.generate_choices("hi", 0),
        lambda ai, conversation: ai.generate_choices("hi", True),
        lambda ai, conversation: ai.complete(None),
        lambda ai, conversation: ai.complete(""),
        lambda ai, conversation: ai.complete("hi", timeout_s=-1),
        lambda ai, conversation: ai.count_tokens(None),
        lambda ai, conversation: ai.conversation(system=5),
        lambda ai, conversation: ai.conversation(5),
        lambda ai, conversation: ai.conversation(sampling={}),
        lambda ai, conversation: setattr(ai, "sampling", {"max_tokens": 4}),
        lambda ai, conversation: setattr(conversation, "title", None),
        lambda ai, conversation: setattr(conversation, "system", None),
        lambda ai, conversation: Attachment("a.txt", None),  # type: ignore[arg-type]
        lambda ai, conversation: Attachment(Path("a.txt"), "text"),  # type: ignore[arg-type]
        lambda ai, conversation: conversation.edit(1, None),
        lambda ai, conversation: conversation.edit("one", "hi"),
        lambda ai, conversation: conversation.regenerate([1]),
        lambda ai, conversation: conversation.switch(None),
        lambda ai, conversation: conversation.branches("x"),
        lambda ai, conversation: ai.text_of("x"),
        lambda ai, conversation: ai.text_of(["x"]),
        lambda ai, conversation: Sampling().over(None),  # type: ignore[arg-type]
        lambda ai, conversation: ConversationStore(b"x"),  # type: ignore[arg-type]
        lambda ai, conversation: Reply().wait("1"),  # type: ignore[arg-type]
        lambda ai, conversation: Reply().wait(float("nan")),
    ],
)
def test_wrong_types_are_refused_before_anything_is_saved(make: Callable[..., Assistant], call: Callable[..., object]) -> None:
    assistant = make()
    conversation = assistant.conversation()
    conversation.send("hello").wait()
    with pytest.raises(UsageError) as caught:
        call(assistant, conversation)
    assert caught.value.hint
    assert len(conversation.messages) == 2
    assert len(assistant.store.list()) == 1


def test_a_reply_that_fails_keeps_what_was_held_back_for_a_stop_text(make: Callable[..., Assistant]) -> None:
    class Failing(FakeBackend):
        n_left = 6

        def decode(self, steps: Any) -> None:
            self.n_left -= 1
            if self.n_left == 0:
                raise BackendError("out of luck")
            super().decode(steps)

    with Assistant(Failing(script=lambda _: "the end"), sampling=Sampling(temperature=0, stop=("end of all",))) as assistant:
        conversation = assistant.conversation()
        reply = conversation.send("go")
        with pytest.raises(BackendError, match="out of luck"):
            reply.wait(timeout_s=30)
        assert reply.text == "the en"
        assert [(node.content, node.status) for node in conversation.messages[1:]] == [("the en", "failed")]


def test_a_disk_that_fails_is_said(make: Callable[..., Assistant], tmp_path: Path) -> None:
    assert make().disk_problem is None, "nothing is to be stored, so nothing is wrong"
    (tmp_path / "file").touch()
    for directory, is_usable in ((tmp_path / "kv", True), (tmp_path / "file" / "kv", False)):
        blocks = BlockStore(directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, sync=False))
        with Assistant(FakeBackend(script=words), disk=DiskCache(blocks, b"m" * 32)) as assistant:
            assert assistant.generate("hello " * 20).wait(), "replies do not need the disk"
            blocks.flush()
            assert (assistant.disk_problem is None) == is_usable


def test_a_bug_in_a_turn_reaches_whoever_waits(make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = make()
    conversation = assistant.conversation()
    with monkeypatch.context() as patch:
        patch.setattr("edge.turn.fit", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(BackendError, match="broke down"):
            conversation.send("hello").wait(timeout_s=30)
    assert conversation.regenerate().wait() == "You wrote 5 letters."


def test_a_conversation_deleted_while_it_is_answered(make: Callable[..., Assistant]) -> None:
    assistant = make(script=lambda _: "z" * 300, delay_s=0.001)
    conversation = assistant.conversation()
    reply = conversation.send("go")
    next(iter(reply))
    assistant.store.delete(conversation.id)
    assert reply.wait() == "z" * 300
    assert any("could not be saved" in notice for notice in reply.notices)


LONG = "One two three four five six seven eight nine ten eleven twelve."


def test_an_answer_that_was_cut_is_continued_in_the_same_message(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda _: LONG).conversation(system="Count")
    first = conversation.send("go", max_tokens=20)
    first.wait()
    assert (first.finish_reason, conversation.messages[-1].record["finish_reason"]) == ("length", "length")
    reply = conversation.resume(max_tokens=10)
    assert reply.wait() == LONG[20:30], "only what is added"
    rest = conversation.resume()
    assert rest.wait() == LONG[30:]
    assert [(node.content, node.status) for node in conversation.messages] == [("go", "complete"), (LONG, "complete")]
    assert rest.node is not None and rest.node.id == first.node.id  # type: ignore[union-attr]
    assert len(conversation.branches(conversation.messages[-1].id)) == 1
    # The prompt ends inside the answer: all of it but its last token is in the KV cache.
    assert (rest.usage.n_prompt, rest.usage.n_reused) == (first.usage.n_prompt + 30, first.usage.n_prompt + 29)
    assert conversation.messages[-1].record["tokens"] == list(LONG.encode())
    more = conversation.send("and now?")
    more.wait()
    assert more.usage.n_reused == first.usage.n_prompt + len(LONG)


def test_a_stopped_answer_is_continued_after_a_restart(make: Callable[..., Assistant], tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "c.db") as store:
        conversation = make(script=lambda _: LONG, delay_s=0.01, store=store).conversation()
        with conversation.send("go") as reply:
            next(iter(reply))
        assert conversation.messages[-1].status == "stopped"
        begun = conversation.messages[-1].content
        assert LONG.startswith(begun) and begun != LONG
        later = make(script=lambda _: LONG, store=store).conversation(conversation.id)
        assert begun + later.resume().wait() == LONG
        assert [(node.content, node.status) for node in later.messages][1:] == [(LONG, "complete")]


def test_a_process_that_dies_while_it_continues_loses_nothing(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda _: LONG).conversation()
    conversation.send("go", max_tokens=20).wait()
    store, answer = conversation._store, conversation.messages[-1]
    reopened = store.reopen(answer.id)
    assert (reopened.content, reopened.status, reopened.record) == (answer.content, "partial", answer.record)
    with pytest.raises(UsageError, match="still being generated"):
        store.reopen(answer.id)


def test_what_is_not_an_open_answer_is_not_continued(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda _: LONG).conversation()
    with pytest.raises(UsageError, match="no answer to continue"):
        conversation.resume()
    conversation.send("go", max_tokens=20).wait()
    question, answer = conversation.messages
    with pytest.raises(UsageError, match="no answer to continue"):
        conversation.resume(question.id)
    conversation.send("more").wait()
    with pytest.raises(UsageError, match="Other messages follow"):
        conversation.resume(answer.id)
    assert conversation.resume().wait() == "", "the model has nothing to add"
    assert conversation.messages[-1].content == LONG


def test_continuing_that_fails_leaves_the_answer_as_it_was(
    make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = make(script=lambda _: LONG)
    conversation = assistant.conversation()
    conversation.send("go", max_tokens=20).wait()
    before = conversation.messages

    def fail(*args: object) -> None:
        raise RuntimeError("no thread to be had")

    monkeypatch.setattr(assistant._turns, "start", fail)
    with pytest.raises(RuntimeError):
        conversation.resume()
    assert conversation.messages == before
    monkeypatch.undo()
    assert conversation.resume().wait() == LONG[20:]


def test_an_answer_that_fills_the_window_cannot_be_continued(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda _: "abc " * 500, n_ctx=256).conversation()
    full = conversation.send("go")
    full.wait()
    assert full.finish_reason == "length"
    before = conversation.messages
    with pytest.raises(ContextFullError, match="has no room to continue it"):
        conversation.resume().wait()
    assert conversation.messages == before


def test_older_turns_make_room_for_the_rest_of_an_answer(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda message: message * 100, n_ctx=400).conversation()
    conversation.send("a", max_tokens=100).wait()
    reply = conversation.send("b", max_tokens=90)
    reply.wait()
    more = conversation.resume(max_tokens=100)
    assert len(more.wait()) == 10
    assert conversation.messages[-1].content == "b" * 100


def test_half_a_character_at_the_end_is_written_again(make: Callable[..., Assistant]) -> None:
    conversation = make(script=lambda _: "Preis: 5 €.").conversation()
    conversation.send("go", max_tokens=10).wait()  # ends inside the three bytes of the sign
    assert conversation.messages[-1].content == "Preis: 5 \ufffd"
    assert conversation.resume().wait() == "€."
    assert conversation.messages[-1].content == "Preis: 5 €."


def test_a_stop_text_that_comes_first_leaves_no_empty_answer(make: Callable[..., Assistant]) -> None:
    conversation = make().conversation()
    reply = conversation.send("hello", stop="You")
    assert (reply.wait(), reply.finish_reason, reply.stopped_by, reply.node) == ("", "stop", "You", None)
    assert reply.notices == ["There is no reply: the stop text 'You' came first."]
    assert [node.role for node in conversation.messages] == ["user"]
    assert conversation.regenerate().wait() == "You wrote 5 letters."


def test_a_reply_that_only_repeats_itself_is_stopped(make: Callable[..., Assistant]) -> None:
    loop = "And then I went home again. " * 400
    conversation = make(script=lambda _: loop, n_ctx=16384).conversation(sampling=Sampling(max_repeats=5))
    reply = conversation.send("go")
    assert True in {reply.is_repeating for _ in reply}
    assert 200 < len(reply.wait()) < 2000
    assert reply.finish_reason == "repetition"
    assert reply.notices == ["The reply was stopped, because it only repeats itself."]
    assert conversation.messages[-1].status == "stopped"
    more = conversation.resume(max_repeats=0, max_tokens=5000)
    assert (len(more.wait()), more.finish_reason) == (5000, "length")


def test_a_program_gets_what_the_model_writes_repeats_included(make: Callable[..., Assistant]) -> None:
    loop = "And then I went home again. " * 100
    reply = make(script=lambda _: loop, n_ctx=16384).conversation().send("go")
    assert (reply.wait(), reply.finish_reason, reply.notices) == (loop, "stop", [])


def test_what_needs_messages_says_that_there_are_none(make: Callable[..., Assistant]) -> None:
    conversation, node_id = make().conversation(), 1
    for use in (
        lambda: conversation.edit(node_id, "other"),
        lambda: conversation.fork(),
        lambda: conversation.fork(node_id),
        lambda: conversation.regenerate(node_id),
        lambda: conversation.resume(node_id),
        lambda: conversation.branches(node_id),
        lambda: conversation.switch(node_id),
    ):
        with pytest.raises(UsageError, match="This conversation is empty"):
            use()
    assert conversation.messages == []
    conversation.send("hello").wait()
    assert [node.content for node in conversation.fork().messages] == ["hello", "You wrote 5 letters."]


async def test_a_conversation_in_an_event_loop(make: Callable[..., Assistant]) -> None:
    conversation = make().conversation(system="Be brief")
    assert (await conversation.amessages(), (await conversation.ainfo()).system) == ([], "Be brief")
    await (await conversation.asend("hello"))
    await conversation.arename("Greetings")
    assert (await conversation.ainfo()).title == conversation.title == "Greetings"
    assert [node.content for node in await conversation.amessages()] == ["hello", "You wrote 5 letters."]
    with pytest.raises(UsageError, match="title is text"):
        await conversation.arename(5)  # type: ignore[arg-type]


def test_a_reply_in_the_background_makes_way(make: Callable[..., Assistant]) -> None:
    assistant = make(script=lambda _: "z" * 500, n_seq=1, delay_s=0.001)
    background = assistant.generate("a", priority="background")
    next(iter(background))
    assert assistant.conversation().send("b", max_tokens=3).wait() == "zzz"
    assert not background.is_done, "it was put off, and goes on now"
    assert background.wait() == "z" * 500
    sent = assistant.conversation().send("a", priority="background")
    next(iter(sent))
    assert assistant.generate("b", max_tokens=3).wait() == "zzz"
    assert not sent.is_done


def test_a_reply_with_logprobs(make: Callable[..., Assistant]) -> None:
    assistant = make(script=lambda _: "Grüße")
    reply = assistant.conversation().send("hi", logprobs=3)
    events = [event for event in reply.events() if isinstance(event, Text)]
    assert b"".join(one.data for one in reply.logprobs) == "Grüße".encode()
    assert tuple(one.token for one in reply.logprobs) == reply.tokens
    assert [one for event in events for one in event.logprobs] == reply.logprobs
    assert [len(one.top) for one in reply.logprobs] == [3] * len(reply.tokens)
    assert all(-1e-3 < one.logprob <= 0 and one.top[0].token == one.token for one in reply.logprobs), "the script is certain"
    assert assistant.generate("hi").logprobs == []
    alone = assistant.generate("hi", logprobs=0)
    assert alone.wait() and [one.top for one in alone.logprobs] == [()] * len(alone.tokens)


def test_several_choices_of_one_prompt(make: Callable[..., Assistant]) -> None:
    assistant = make(script=lambda message: "z" * 20)
    replies = assistant.generate_choices("a" * 300, 3, max_tokens=4, seed=7)
    assert [reply.wait() for reply in replies] == ["zzzz"] * 3
    assert sorted(reply.usage.n_reused for reply in replies)[0] == 0
    n_prompt = replies[0].usage.n_prompt
    total = Usage.total(reply.usage for reply in replies)
    assert (total.n_prompt, total.n_reused, total.n_generated) == (n_prompt, 0, 12)
    assert sum(reply.usage.n_computed for reply in replies) == n_prompt + 2


def test_choices_have_seeds_in_a_row(make: Callable[..., Assistant], monkeypatch: pytest.MonkeyPatch) -> None:
    assistant, seen = make(), list[Request]()
    make_turn = assistant._turns.make
    monkeypatch.setattr(assistant._turns, "make", lambda request: (seen.append(request), make_turn(request))[1])  # type: ignore[func-returns-value]
    assistant.sampling = Sampling(seed=5, temperature=0.5)
    assert [reply.wait() for reply in assistant.generate_choices("hi", 2, max_tokens=3)] != []
    assert [reply.wait() for reply in assistant.generate_choices("hi", 2, seed=None, max_tokens=3)] != []
    assert [one.sampling.seed for one in seen] == [5, 6, None, None]
    assert [one.sampling.over(assistant.sampling).temperature for one in seen] == [0.5] * 4


# -- messages of others


def test_messages_may_be_dicts(make: Callable[..., Assistant]) -> None:
    assistant = make(script=str.upper)
    as_dicts = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    reply = assistant.generate(as_dicts)
    same = assistant.generate([Message("system", "s"), Message("user", "hi")])
    assert reply.wait() == same.wait() == "HI"
    assert reply.usage.n_prompt == same.usage.n_prompt == assistant.count(as_dicts).n_tokens


def test_a_conversation_with_a_history(make: Callable[..., Assistant], tmp_path: Path) -> None:
    with ConversationStore(tmp_path / "chats.db") as store:
        assistant = make(script=str.upper, store=store)
        history = [
            {"role": "system", "content": "Be brief"},
            {"role": "user", "content": "I am Ada"},
            Message("assistant", "Hello Ada"),
        ]
        conversation = assistant.conversation(history=history)
        assert [(one.role, one.content) for one in conversation.messages] == [("user", "I am Ada"), ("assistant", "Hello Ada")]
        assert (conversation.system, conversation.title, conversation.info.n_messages) == ("Be brief", "I am Ada", 2)
        assert store.get(conversation.id) == conversation.info, "it is stored at once"
        reply = conversation.send("hi")
        assert reply.wait() == "HI"
        whole = assistant.generate([Message("system", "Be brief"), *history[1:], Message("user", "hi")])
        whole.wait()
        assert whole.usage.n_prompt == reply.usage.n_prompt
        copy = assistant.conversation(history=conversation.messages, system="Be long")
        assert [one.content for one in copy.messages] == [one.content for one in conversation.messages]
        assert copy.system == "Be long"
        n_before = len(store.list())
        assert assistant.conversation(history=[]).messages == []
        assert assistant.conversation(history=[Message("system", "only this")]).system == "only this"
        assert len(store.list()) == n_before, "a conversation without messages is not stored"


async def test_the_size_of_a_prompt_before_it_is_sent(make: Callable[..., Assistant]) -> None:
    assistant = make(script=lambda _: "an answer", n_ctx=512)
    conversation = assistant.conversation(system="Be brief")
    notes = [Attachment("notes.txt", "Monday")]
    for text in ("hello", "and again", "x" * 700):
        size = conversation.count(text, attachments=notes)
        assert size == await conversation.acount(text, attachments=notes)
        assert (size.n_ctx, size.n_left) == (512, 512 - size.n_tokens)
        if size.n_left < 0:
            break
        reply = conversation.send(text, attachments=notes)
        reply.wait()
        assert reply.usage.n_prompt == size.n_tokens
    else:
        pytest.fail("the last message does not fit")
    assert 0 < conversation.count().n_tokens < size.n_tokens
    reply = assistant.generate("hello")
    reply.wait()
    assert reply.usage.n_prompt == assistant.count("hello").n_tokens == (await assistant.acount("hello")).n_tokens
    with pytest.raises(ContextFullError):
        conversation.count("x" * 1_000_000)
    assert assistant.conversation().count().n_tokens == 0
