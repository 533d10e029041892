"""One turn on the fake model: its prompt, its end, what is saved of it, and earlier answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edge.backends.fake import FakeBackend
from edge.constraint import Constraint
from edge.conversation import ConversationStore
from edge.conversation.reply_saver import ReplySaver
from edge.engine.generation import Generation
from edge.engine.governor import Limits
from edge.engine.scheduler import Scheduler
from edge.errors import BackendError, ContextFullError, StorageError
from edge.kv.answers import AnswerCache
from edge.kv.store import BlockStore, StoreOptions
from edge.prompt.prompting import Prompting
from edge.prompt.summary import newest_summary
from edge.request import Request
from edge.turn import Turn, _with_models
from edge.types import Message, Sampling
from tests.throttle import FULL

GREEDY = Sampling(temperature=0)
SYSTEM = Message("system", "Be brief")


class Noting(Scheduler):
    """Notes what it is asked for."""

    whole_states = False

    def __init__(self, backend: FakeBackend) -> None:
        super().__init__(backend)
        self.asked: list[Generation] = []

    @property
    def wants_checkpoints(self) -> bool:
        return self.whole_states

    def submit(self, generation: Generation) -> None:
        self.asked.append(generation)
        super().submit(generation)


class Room:
    """A scheduler on a fake model, and turns on it."""

    def __init__(self, **options: Any) -> None:
        self.backend = FakeBackend(**{"script": lambda message: f"{len(message)} letters.", **options})
        self.scheduler = Noting(self.backend)
        self.prompting = Prompting(self.backend.info, self.backend.tokenizer, None)

    def turn(self, prompt: str | list[Message], sampling: Sampling = GREEDY, **options: Any) -> Turn:
        messages = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        asked = {name: options.pop(name) for name in list(options) if name in Request.__slots__}
        return Turn(self.scheduler, self.prompting, Request(prompt=messages, sampling=sampling, **asked), **options)

    def throttle(self, limits: Limits) -> None:
        self.scheduler.throttle(limits)
        self.scheduler.call(lambda backend: None)


@pytest.fixture
def make() -> Iterator[Callable[..., Room]]:
    rooms: list[Room] = []

    def build(**options: Any) -> Room:
        rooms.append(Room(**options))
        return rooms[-1]

    yield build
    for room in rooms:
        room.scheduler.close()


@pytest.fixture
def store() -> Iterator[ConversationStore]:
    with ConversationStore(None) as store:
        yield store


def ask(store: ConversationStore, text: str, id: str | None = None) -> ReplySaver:
    """A question in a new conversation, or in one of the store, and what saves its answer."""
    id = id or store.create(system="", model="fake").id
    return ReplySaver(store, id, store.append(id, Message("user", text), parent=store.get(id).head).id, "fake")


# -- its end


def test_a_reply_its_usage_and_its_timing(make: Callable[..., Room]) -> None:
    ends: list[str | None] = []
    turn = make().turn("hello")
    reply = turn.start(lambda: ends.append(turn.reply.finish_reason))
    assert reply._state is turn.reply
    assert (reply.wait(), reply.finish_reason) == ("5 letters.", "stop")
    assert ends == [None], "called once, before the reply says that it is over"
    assert reply.tokens == tuple(b"5 letters.")
    assert (reply.usage.n_generated, reply.progress) == (10, (reply.usage.n_prompt, reply.usage.n_prompt))
    assert reply.timing.tokenize_ms > 0
    assert reply.timing.queue_ms >= 0
    assert reply.timing.tokenize_ms + reply.timing.queue_ms <= reply.timing.first_token_ms <= reply.timing.total_ms
    assert reply.cost.memory_bytes > 0
    assert reply.node is None


def test_a_text_is_continued_without_a_template(make: Callable[..., Room]) -> None:
    room = make()
    prompt = "<|im_start|>user\nhey<|im_end|>\n<|im_start|>assistant\n"
    turn = Turn(room.scheduler, room.prompting, Request(prompt=prompt, sampling=GREEDY))
    assert turn.start().wait() == "3 letters."
    assert room.scheduler.asked[0].boundaries == []


def test_an_error_of_the_engine_is_the_replys(make: Callable[..., Room]) -> None:
    room = make()
    room.scheduler.close()
    reply = room.turn("hello").start()
    with pytest.raises(BackendError, match="closed"):
        reply.wait(30)
    assert (reply.finish_reason, reply.text) == ("error", "")


def test_a_bug_is_an_error_with_its_cause(make: Callable[..., Room], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.turn.fit", lambda *args, **kwargs: 1 / 0)
    reply = make().turn("hello").start()
    with pytest.raises(BackendError, match="broke down") as caught:
        reply.wait(30)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert reply.finish_reason == "error"


def test_cancelled_before_it_started(make: Callable[..., Room]) -> None:
    turn = make(script=lambda _: "z" * 3000, delay_s=0.001).turn("hello")
    turn.reply.cancel()
    assert turn.start().wait(30) == ""
    assert turn.reply.finish_reason == "cancelled"


def test_the_next_prompt_has_the_tokens_that_were_generated(make: Callable[..., Room]) -> None:
    room = make()
    first = room.turn("hello").start()
    first.wait()
    follow_up = [Message("user", "hello"), Message("assistant", "5 letters."), Message("user", "and?")]
    second = room.turn(follow_up).start()
    second.wait()
    assert second.usage.n_reused == first.usage.n_prompt + first.usage.n_generated


# -- what is saved


def test_the_whole_turn_is_recorded(make: Callable[..., Room], store: ConversationStore) -> None:
    saver = ask(store, "hello")
    reply = make().turn("hello", saver=saver).start()
    reply.wait()
    assert reply.node is not None
    assert (reply.node.content, reply.node.status) == ("5 letters.", "complete")
    record = reply.node.record
    assert record["tokens"] == [*b"5 letters."]
    assert record["usage"]["n_generated"] == 10
    assert record["timing"]["total_ms"] == reply.timing.total_ms
    assert (record["held_back"], record["plan"], record["summary"]) == ("", None, None)
    assert store.path(saver.conversation_id)[-1] == reply.node
    assert not reply.notices


def test_a_stopped_reply_is_saved_as_stopped(make: Callable[..., Room], store: ConversationStore) -> None:
    reply = make(script=lambda _: "z" * 3000, delay_s=0.001).turn("go", saver=ask(store, "go")).start()
    next(iter(reply))
    reply.cancel()
    reply.wait(30)
    assert reply.node is not None
    assert (reply.node.status, reply.node.content) == ("stopped", reply.text)


def test_a_failed_reply_is_saved_as_failed(
    make: Callable[..., Room], store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(steps: object) -> None:
        raise BackendError("The engine failed.")

    room = make(script=lambda _: "z" * 3000, delay_s=0.001)
    reply = room.turn("go", saver=ask(store, "go")).start()
    next(iter(reply))
    monkeypatch.setattr(room.backend, "decode", fail)
    with pytest.raises(BackendError, match="engine failed"):
        reply.wait(30)
    assert reply.node is not None
    assert (reply.node.status, reply.node.content) == ("failed", reply.text)


def test_a_reply_that_runs_while_the_scheduler_closes_is_saved_as_stopped(
    make: Callable[..., Room], store: ConversationStore
) -> None:
    room = make(script=lambda _: "z" * 3000, delay_s=0.001)
    reply = room.turn("go", saver=ask(store, "go")).start()
    next(iter(reply))
    room.scheduler.close()
    assert reply.wait(30) == reply.text
    assert reply.node is not None
    assert (reply.finish_reason, reply.node.status, reply.node.content) == ("cancelled", "stopped", reply.text)


def test_a_disk_that_fails_is_told_once(
    make: Callable[..., Room], store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise StorageError("The disk is full.")

    monkeypatch.setattr("edge.conversation.reply_saver._SAVE_EVERY_S", 0.0)
    saver = ask(store, "hello")
    monkeypatch.setattr(store, "append", full)
    reply = make().turn("hello", saver=saver).start()
    assert reply.wait() == "5 letters."
    assert reply.notices == ["This reply could not be saved. The disk is full."]
    assert reply.node is None


def test_a_disk_that_recovers_loses_nothing(
    make: Callable[..., Room], store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, failures = store.append, [StorageError("It is busy.")]

    def busy_once(*args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return append(*args, **kwargs)

    monkeypatch.setattr("edge.conversation.reply_saver._SAVE_EVERY_S", 0.0)
    saver = ask(store, "hello")
    monkeypatch.setattr(store, "append", busy_once)
    reply = make().turn("hello", saver=saver).start()
    reply.wait()
    assert reply.node is not None
    assert (reply.node.content, reply.notices) == ("5 letters.", [])


# -- its prompt


def test_a_notice_of_the_template_comes_once(make: Callable[..., Room]) -> None:
    room = make()
    room.prompting = Prompting(
        replace(
            room.backend.info,
            chat_template="{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
            "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}",
        ),
        room.backend.tokenizer,
        None,
    )
    replies = [room.turn([SYSTEM, Message("user", "hi")]).start() for _ in range(2)]
    for reply in replies:
        reply.wait()
    assert sorted(len(reply.notices) for reply in replies) == [0, 1]


def long_talk(n_turns: int) -> list[Message]:
    roles = ["user", "assistant"] * n_turns
    return [Message(role, f"{n} " + "w" * 30) for n, role in enumerate(roles[:-1])]  # type: ignore[arg-type]


def test_dropped_messages_are_told_when_they_change(make: Callable[..., Room], store: ConversationStore) -> None:
    room, talk = make(n_ctx=600), long_talk(12)
    first = ask(store, "x")
    savers = [first, ask(store, "x", first.conversation_id), ask(store, "x"), None, None]
    told = []
    for saver in savers:
        reply = room.turn(talk, saver=saver).start()
        reply.wait()
        told.append(["oldest" in notice for notice in reply.notices])
        assert reply.usage.n_prompt <= 450
    assert told == [[True], [], [True], [True], [True]], "once in a conversation, and always outside of one"


def test_a_short_reply_leaves_more_room_for_messages(make: Callable[..., Room]) -> None:
    room = make(n_ctx=600)
    fits = [Message("user", "w" * 480)]
    assert room.turn(fits, replace(GREEDY, max_tokens=20)).start().wait()
    with pytest.raises(ContextFullError):
        room.turn(fits).start().wait()


def test_a_model_that_was_trained_for_more_is_named(make: Callable[..., Room]) -> None:
    room = make(n_ctx=600)  # the fake was trained for as much
    with pytest.raises(ContextFullError) as caught:
        room.turn("x" * 2000).start().wait()
    assert "--context" not in caught.value.hint.partition("trained")[0]
    assert "was trained for 600 tokens; " in caught.value.hint and "(--context 4096)" in caught.value.hint


def test_no_base_model_is_recommended_for_its_window() -> None:
    hint = _with_models(ContextFullError("", needed=16384), 8192).hint
    assert "8,192 tokens; gemma3-270m-it was for more (--context 16384)" in hint


def test_a_window_that_refuses(make: Callable[..., Room]) -> None:
    with pytest.raises(ContextFullError, match="This conversation has"):
        make(n_ctx=600).turn(long_talk(12), window="refuse").start().wait()


def test_what_needs_the_full_window_gets_it_while_memory_is_short(make: Callable[..., Room]) -> None:
    room = make()
    room.throttle(replace(FULL, n_ctx=1024, single_reply=True, note="short of memory: window 1,024"))
    assert room.turn("w" * 2500).start().wait() == "2500 letters."
    reply = room.turn(long_talk(30)).start()
    reply.wait()
    assert [notice.endswith("short of memory.") for notice in reply.notices] == [True]
    with pytest.raises(ContextFullError, match="4,096"):
        room.turn("w" * 4000).start().wait()


def test_far_too_much_is_refused_without_tokenising(make: Callable[..., Room], monkeypatch: pytest.MonkeyPatch) -> None:
    room = make(n_ctx=256)
    room.backend.tokenizer.longest_token  # noqa: B018 (found before the next line forbids to tokenise)
    monkeypatch.setattr(room.prompting, "tokenize", lambda *args, **kwargs: 1 / 0)
    monkeypatch.setattr(room.prompting, "encode", lambda *args, **kwargs: 1 / 0)
    for prompt in ([Message("user", "é" * 100_000)], "é" * 100_000):
        turn = Turn(room.scheduler, room.prompting, Request(prompt=prompt, sampling=GREEDY))
        with pytest.raises(ContextFullError, match=r"200,000 bytes, which is [0-9,]+ tokens at the very least"):
            turn.start().wait(30)


@pytest.mark.parametrize(("trained", "is_named"), [(256, False), (5_000, False), (1_000_000, True)])
def test_a_larger_window_is_recommended_where_the_model_was_trained_for_it(
    make: Callable[..., Room], monkeypatch: pytest.MonkeyPatch, trained: int, is_named: bool
) -> None:
    room = make(n_ctx=256)
    monkeypatch.setattr(room.prompting, "n_ctx_train", trained)
    with pytest.raises(ContextFullError, match="at the very least") as caught:
        room.prompting.check_size("é" * 100_000, 256)
    assert (f"--context {trained}" in caught.value.hint) == is_named


def test_much_that_may_fit_is_counted(make: Callable[..., Room]) -> None:
    with pytest.raises(ContextFullError, match="This message has"):
        make(n_ctx=256).turn("w" * 1500).start().wait()


# -- where blocks end


def test_the_first_turn_marks_the_end_of_the_system_prompt(make: Callable[..., Room]) -> None:
    room = make()
    first = [SYSTEM, Message("user", "one")]
    talk = [*first, Message("assistant", "3 letters."), Message("user", "two")]
    for messages in (first, talk, first[1:]):
        room.turn(messages).start().wait()
    one, later, bare = (list(generation.boundaries) for generation in room.scheduler.asked)
    assert one == [len(b"system\nBe brief\nuser\n") + 3]
    assert (later, bare) == ([], [])


def test_models_with_whole_states_also_mark_the_question(make: Callable[..., Room]) -> None:
    room = make()
    room.scheduler.whole_states = True
    talk = [SYSTEM, Message("user", "one"), Message("assistant", "3 letters."), Message("user", "two")]
    for messages in (talk, talk[-1:]):
        room.turn(messages).start().wait()
    talked, bare = room.scheduler.asked
    assert list(talked.boundaries) == [len(b"system\nBe brief\nuser\n") + 3, len(talked.tokens) - 1]
    assert list(bare.boundaries) == [len(bare.tokens) - 1]


# -- summaries


def test_a_summary_is_made_saved_and_used_again(make: Callable[..., Room], store: ConversationStore) -> None:
    asked: list[str] = []

    def script(message: str) -> str:
        asked.append(message)
        return "They counted." if "Summarise this conversation" in message else "Ok."

    room, talk = make(n_ctx=1200, script=script), long_talk(24)
    reply = room.turn(talk, window="summarise", saver=ask(store, "x")).start()
    assert reply.wait() == "Ok."
    assert reply.node is not None
    assert any("summary" in notice for notice in reply.notices)
    summary = newest_summary([{}, reply.node.record, {}])
    assert summary is not None
    assert summary.text == "They counted."
    n_asked = len(asked)
    again = room.turn(talk, window="summarise", summary=summary).start()
    again.wait()
    assert len(asked) == n_asked, "neither the summary nor the answer is asked for again"


def test_a_summary_of_strangers_is_checked() -> None:
    good = {"summary": {"n_messages": 2, "digest": "d", "text": "t"}}
    assert newest_summary([]) is newest_summary([{}, {"summary": None}]) is None
    assert newest_summary([good, {"summary": {"n_messages": "two"}}]) is None, "the newest counts"
    found = newest_summary([good, {}])
    assert found is not None
    assert (found.n_messages, found.digest, found.text) == (2, "d", "t")


def test_stopping_while_it_summarises_is_not_an_error(make: Callable[..., Room], store: ConversationStore) -> None:
    is_summarising = threading.Event()

    def script(message: str) -> str:
        if "Summarise this conversation" in message:
            is_summarising.set()
        return "long " * 200

    saver = ask(store, "x")
    reply = make(n_ctx=1200, script=script, delay_s=0.005).turn(long_talk(24), window="summarise", saver=saver).start()
    assert is_summarising.wait(30)
    reply.cancel()
    assert (reply.wait(30), reply.finish_reason, reply.node) == ("", "cancelled", None)
    assert len(store.path(saver.conversation_id)) == 1, "nothing was said, so nothing is saved"


# -- earlier answers


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[BlockStore]:
    with BlockStore(tmp_path / "kv", StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, sync=False)) as blocks:
        yield blocks


@pytest.fixture
def answers(blocks: BlockStore) -> AnswerCache:
    return AnswerCache(blocks, b"m" * 32, 4096)


def test_an_exact_repeat_is_not_computed(make: Callable[..., Room], answers: AnswerCache, blocks: BlockStore) -> None:
    room = make()
    first = room.turn("hello", answers=answers).start()
    first.wait()
    blocks.flush()
    again = room.turn("hello", answers=answers).start()
    assert (again.wait(), again.finish_reason, again.tokens) == (first.text, "stop", first.tokens)
    assert (again.usage.is_answer_cached, again.usage.n_computed, again.usage.n_generated) == (True, 0, 10)
    assert again.usage.saved_ms == first.timing.total_ms
    assert len(room.scheduler.asked) == 1


def test_an_empty_answer_is_repeated_too(make: Callable[..., Room], answers: AnswerCache, blocks: BlockStore) -> None:
    room = make(script=lambda _: "")
    for n in range(2):
        reply = room.turn("hello", answers=answers).start()
        assert (reply.wait(), reply.usage.is_answer_cached, list(reply)) == ("", n == 1, [])
        blocks.flush()


def test_an_answer_that_a_smaller_window_ended_is_not_kept(
    make: Callable[..., Room], answers: AnswerCache, blocks: BlockStore
) -> None:
    room = make(script=lambda _: "z" * 2000)
    room.throttle(replace(FULL, n_ctx=512, single_reply=True, note="short of memory: window 512"))
    short = room.turn("hello", answers=answers).start()
    short.wait()
    assert (short.finish_reason, short.held_back) == ("length", "short of memory: window 512")
    blocks.flush()
    room.throttle(FULL)
    whole = room.turn("hello", answers=answers).start()
    assert (len(whole.wait()), whole.usage.is_answer_cached) == (2000, False)


def test_an_answer_to_another_constraint_is_no_repeat(
    make: Callable[..., Room], answers: AnswerCache, blocks: BlockStore
) -> None:
    room = make()
    texts = []
    for constraint in (None, Constraint.choices(["abc"]), Constraint.choices(["abd"]), Constraint.choices(["abc"])):
        reply = room.turn("hello", answers=answers, constraint=constraint).start()
        texts.append((reply.wait(), reply.usage.is_answer_cached))
        blocks.flush()
    assert texts[1:] == [("abc", False), ("abd", False), ("abc", True)]
    assert texts[0][1] is False
