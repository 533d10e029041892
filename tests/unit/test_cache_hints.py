"""Where the KV cache of a request stays (`cache=`), and prompts that are prefilled ahead: a fake model with a real store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import edge
from edge.assistant import Assistant, Conversation, DiskCache
from edge.backends.fake import FakeBackend
from edge.conversation import Attachment, ConversationStore
from edge.errors import ContextFullError, UnsupportedError, UsageError
from edge.kv.blocks import fingerprint, pack_tokens
from edge.kv.store import BlockStore, StoreOptions
from edge.reply import Reply
from edge.request import RequestOptions
from edge.types import Message, Sampling

MODEL = fingerprint({"weights": "one"})
SECRET = "The code of the safe behind the picture in the hall is 4711, and nobody else may know. " * 3
SYSTEM = "You are a friendly assistant of the house, and you answer in one short sentence. " * 3


class Recurrent(FakeBackend):
    """A model whose state can neither be cut nor taken apart."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.capabilities = replace(self.capabilities, rewind=False, export_kv=False)

    def rewind(self, seq_id: int, n_keep: int) -> None:
        if n_keep not in (0, self.length(seq_id)):
            raise UnsupportedError("a recurrent state cannot be cut")
        super().rewind(seq_id, n_keep)

    def export_kv(self, seq_id: int, start: int, end: int) -> bytes:
        if (start, end) != (0, self.length(seq_id)):
            raise UnsupportedError("a recurrent state is exported as a whole")
        return super().export_kv(seq_id, start, end)


class House:
    """An assistant on a directory, which can be restarted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "kv"
        self.store = ConversationStore(directory / "c.db")
        self.kind: type[FakeBackend] = FakeBackend
        self.options: dict[str, Any] = {}
        self.answers = False
        self.ai = self.open()

    def open(self) -> Assistant:
        self.blocks = BlockStore(self.directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, sync=False))
        disk = DiskCache(self.blocks, MODEL, self.answers)
        backend = self.kind(script=lambda text: f"{len(text)} letters.", **self.options)
        return Assistant(backend, store=self.store, sampling=Sampling(temperature=0), disk=disk)

    def restart(self) -> None:
        self.ai.close()
        self.ai = self.open()

    def conversation(self, id: str | None = None, **options: Any) -> Conversation:
        return self.ai.conversation(id, **options)

    def settle(self) -> None:
        """Wait until the engine thread has stored what it computed, and that is on the disk."""
        self.ai._scheduler.call(lambda backend: None)
        assert self.blocks.flush(60.0)

    def holds(self, text: str) -> bool:
        """Whether a file below the directory has a part of this text's tokens in it."""
        self.settle()
        found = pack_tokens(list(text[20:60].encode()))
        return any(found in path.read_bytes() for path in self.directory.rglob("*") if path.is_file())

    def n_blocks(self) -> int:
        self.settle()
        return self.blocks.stats().n_blocks

    def close(self) -> None:
        self.ai.close()
        self.store.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


def done(reply: Reply) -> Reply:
    reply.wait()
    return reply


Ask = Callable[[House, Any], Reply]
ASKS: dict[str, Ask] = {
    "send": lambda house, cache: house.conversation().send(SECRET, cache=cache),
    "of the conversation": lambda house, cache: house.conversation(cache=cache).send(SECRET),
    "generate": lambda house, cache: house.ai.generate(SECRET, cache=cache),
    "messages": lambda house, cache: house.ai.generate([Message("user", SECRET)], cache=cache),
    "complete": lambda house, cache: house.ai.complete(SECRET, cache=cache, max_tokens=5),
    "prewarm": lambda house, cache: house.conversation().prewarm(SECRET, cache=cache),
    "prewarm of the assistant": lambda house, cache: house.ai.prewarm(SECRET, cache=cache),
}


@pytest.mark.parametrize("kind", [FakeBackend, Recurrent])
@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS.keys())
@pytest.mark.parametrize("cache", ["off", "memory", "disk", "keep", None])
def test_where_the_kv_cache_of_a_request_stays(house: House, ask: Ask, cache: Any, kind: type[FakeBackend]) -> None:
    house.kind = kind
    house.restart()
    done(ask(house, cache))
    is_stored = cache not in ("off", "memory")
    assert house.holds(SECRET) == is_stored
    leaves = [block for block in house.blocks.ls() if not block.n_children]  # the blocks before a pinned one stay too
    assert {block.is_pinned for block in leaves} == ({cache == "keep"} if is_stored else set())
    again = done(ask(house, "off"))
    n_again = again.usage.n_reused - again.usage.n_restored
    if kind is FakeBackend:  # the other's state ends behind the reply, and cannot go back
        assert (n_again > 100) == (cache != "off"), "what stayed in memory"
    assert house.holds(SECRET) == is_stored
    house.restart()
    if ask in (ASKS["prewarm"], ASKS["prewarm of the assistant"]):
        ask = ASKS["send"]
    assert (done(ask(house, "off")).usage.n_restored > 100) == is_stored


def test_what_was_cached_before_is_reused_and_stays(house: House) -> None:
    house.conversation(system=SYSTEM).send("hi").wait()
    for _ in range(2):
        reply = done(house.conversation(system=SYSTEM).send(SECRET, cache="off"))
        assert len(SYSTEM) < reply.usage.n_reused < len(SYSTEM) + 50
    house.restart()
    for n_disk, n_memory in ((len(SYSTEM), 0), (0, len(SYSTEM))):
        reply = done(house.conversation(system=SYSTEM).send(SECRET, cache="off"))
        assert reply.usage.n_restored >= n_disk
        assert reply.usage.n_reused - reply.usage.n_restored >= n_memory
    assert not house.holds(SECRET)


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_later_turns_do_not_store_what_an_earlier_one_kept_out(house: House, cache: Any) -> None:
    conversation = house.conversation(system=SYSTEM)
    conversation.send("hello, who are you, and what can you do for me this evening?").wait()
    n_before = house.n_blocks()
    conversation.send(SECRET, cache=cache).wait()
    conversation.send("and now?").wait()
    conversation.regenerate().wait()
    conversation.fork().send("and in a fork?").wait()
    house.restart()
    conversation = house.conversation(conversation.id)
    conversation.send("and after a restart?").wait()
    question = next(node for node in conversation.messages if node.content == SECRET)
    conversation.edit(question.id, SECRET + "Or so.").wait()
    conversation.prewarm().wait()
    assert house.n_blocks() == n_before
    assert not house.holds(SECRET)
    conversation.edit(question.id, "Something else that anybody may know, so it is stored again.", cache="disk").wait()
    n_blocks = house.n_blocks()
    assert n_blocks > n_before
    conversation.send("And what do others say about that, in this house and elsewhere?").wait()
    assert house.n_blocks() > n_blocks, "nothing of that path is to be kept out"
    assert not house.holds(SECRET)
    done(house.conversation(conversation.fork(question.id).id).regenerate(cache="disk"))
    assert house.holds(SECRET), "asked for"


def test_a_regenerated_reply_keeps_itself_out(house: House) -> None:
    conversation = house.conversation()
    conversation.send("hi").wait()
    conversation.regenerate(cache="off").wait()
    n_before = house.n_blocks()
    conversation.send("go on, please, and tell me more about all of it").wait()
    assert house.n_blocks() == n_before


def test_what_others_use_of_it_is_theirs(house: House) -> None:
    house.conversation().send(SECRET, cache="memory").wait()
    house.conversation().send(SECRET).wait()
    assert house.holds(SECRET)


def test_answers_are_not_stored_either(house: House) -> None:
    house.answers = True
    house.restart()
    for cache in ("off", "memory"):
        assert not done(house.ai.generate(SECRET, cache=cache)).usage.is_answer_cached  # type: ignore[arg-type]
    assert house.n_blocks() == 0


def test_a_preempted_reply_leaves_nothing(house: House) -> None:
    """Cells run out, so that replies are preempted and prefilled again."""
    house.options = {"n_ctx": 640, "n_seq": 2}
    house.restart()
    replies = [house.ai.generate(SECRET + str(n), cache="off", max_tokens=80) for n in range(3)]
    for reply in replies:
        reply.wait()
    assert not house.holds(SECRET)
    assert house.n_blocks() == 0


def test_a_wrong_place_is_refused_before_anything_is_saved(house: House) -> None:
    conversation = house.conversation()
    for wrong in ("nowhere", "", 5):
        for call in (conversation.send, house.ai.generate, house.ai.complete, conversation.prewarm, house.ai.prewarm):
            with pytest.raises(UsageError, match="cache cannot be"):
                call("hi", cache=wrong)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="cache cannot be"):
            house.conversation(cache=wrong)
    assert house.store.list() == []
    with Assistant(FakeBackend(script=str)) as without:
        for place in ("disk", "keep"):
            with pytest.raises(UsageError, match="nothing on the disk"):
                without.generate("hi", cache=place)  # type: ignore[arg-type]
        assert without.generate("hi", cache="off").wait() == "hi"
        assert without.generate("hi", cache="memory").wait() == "hi"


# -- prefilled ahead


def test_a_system_prompt_is_prefilled_ahead(house: House) -> None:
    reply = done(house.ai.prewarm(system=SYSTEM))
    assert (reply.text, reply.finish_reason, reply.usage.n_generated) == ("", "stop", 0)
    assert reply.progress == (reply.usage.n_prompt, reply.usage.n_prompt)
    assert reply.usage.n_computed == reply.usage.n_prompt > len(SYSTEM)
    assert house.store.list() == [], "it is no conversation"
    first = done(house.conversation(system=SYSTEM).send("hi"))
    assert first.usage.n_reused == reply.usage.n_prompt
    house.restart()
    assert done(house.conversation(system=SYSTEM).send("ho")).usage.n_restored >= reply.usage.n_prompt


def test_tools_and_schemas_are_prefilled_ahead(house: House) -> None:
    tool = edge.Tool("weather", "Tell the weather of a place. " * 10, {"properties": {"place": {"type": "string"}}})
    with_tools: RequestOptions = {"tools": [tool], "tool_format": "prompt"}
    warm = done(house.ai.prewarm(system=SYSTEM, **with_tools))
    assert warm.usage.n_prompt > len(SYSTEM) + 290
    assert done(house.conversation(system=SYSTEM).send("hi", **with_tools)).usage.n_reused == warm.usage.n_prompt
    schema = {"type": "object", "properties": {"x" * 100: {"type": "integer"}}}
    warm = done(house.conversation(system=SYSTEM).prewarm(schema=schema))
    assert warm.usage.n_prompt > len(SYSTEM) + 100
    sent = house.conversation(system=SYSTEM).send("hi", schema=schema, max_tokens=1)
    assert done(sent).usage.n_reused == warm.usage.n_prompt
    with pytest.raises(UsageError, match="no option"):
        house.ai.prewarm(tool=[tool])  # type: ignore[call-arg]


def test_documents_are_prefilled_ahead(house: House) -> None:
    documents = [Attachment("a.md", "Apples are red. " * 20), Attachment("b.md", "Pears are green. " * 20)]
    reply = done(house.ai.prewarm(attachments=documents, name="fruit"))
    house.settle()
    assert {block.owners for block in house.blocks.ls()} == {("warm:fruit",)}
    house.restart()
    for question in ("Which are red?", "And green?"):
        sent = done(house.conversation().send(question, attachments=documents))
        assert sent.usage.n_reused >= reply.usage.n_prompt - 1 > 600


def test_a_conversation_is_prefilled_up_to_its_next_message(house: House) -> None:
    conversation = house.conversation(system=SYSTEM)
    conversation.send("Tell me about the house, please.").wait()
    house.settle()
    house.blocks.clear()
    house.restart()
    conversation = house.conversation(conversation.id)
    warm = done(conversation.prewarm("And "))
    assert warm.usage.n_reused == 0
    assert len(conversation.messages) == 2
    reply = done(conversation.send("And the garden?"))
    assert reply.usage.n_reused == warm.usage.n_prompt


def test_what_was_prefilled_in_memory_only_is_stored_with_the_message(house: House) -> None:
    conversation = house.conversation(system=SYSTEM)
    done(conversation.prewarm(SECRET[:90] + " and something that is never sent", cache="memory"))
    warm = done(conversation.prewarm(SECRET, cache="memory"))
    assert warm.usage.n_reused >= len(SYSTEM) + 90
    assert house.n_blocks() == 0
    sent = done(conversation.send(SECRET))
    assert sent.usage.n_reused >= warm.usage.n_prompt - 1
    assert house.holds(SECRET)
    house.restart()
    assert done(house.conversation(system=SYSTEM).send(SECRET)).usage.n_restored > len(SYSTEM) + len(SECRET)


@pytest.mark.parametrize("kind", [FakeBackend, Recurrent])
def test_what_is_prefilled_twice_costs_nothing(house: House, kind: type[FakeBackend]) -> None:
    house.kind = kind
    house.restart()
    first = done(house.ai.prewarm(system=SYSTEM))
    house.restart()
    again = done(house.ai.prewarm(system=SYSTEM))
    assert again.usage.n_prompt == first.usage.n_prompt
    sent = done(house.conversation(system=SYSTEM).send("hi"))
    assert sent.usage.n_reused >= first.usage.n_prompt - (1 if kind is FakeBackend else 0)
    if kind is FakeBackend:
        assert again.usage.n_restored == first.usage.n_prompt - 1


def test_a_message_ends_the_prefill_of_its_conversation_and_uses_it(house: House) -> None:
    house.options = {"prefill_delay_s": 0.02, "n_ctx": 8192}
    house.restart()
    conversation = house.conversation(system=SYSTEM * 10)
    warm = conversation.prewarm()
    while warm.progress[0] < 512:
        pass
    reply = done(conversation.send("hi"))
    warm.wait()
    assert warm.finish_reason == "cancelled"
    assert reply.usage.n_reused >= 512
    assert reply.text == "2 letters."


def test_it_goes_on_when_nobody_holds_it_and_stops_when_told(house: House) -> None:
    house.options = {"prefill_delay_s": 0.005}
    house.restart()
    house.ai.prewarm(system=SYSTEM)
    stopped = house.ai.prewarm(system=SYSTEM[::-1] * 5)
    while not stopped.progress[0]:
        pass
    stopped.cancel()
    stopped.wait()
    assert stopped.finish_reason == "cancelled"
    while house.ai._turns._running._replies:
        time.sleep(0.01)
    assert done(house.ai.prewarm(system=SYSTEM)).usage.n_reused > len(SYSTEM)


def test_it_makes_way_for_replies(house: House) -> None:
    house.options = {"prefill_delay_s": 0.02, "n_seq": 1, "n_ctx": 8192}
    house.restart()
    warm = house.ai.prewarm(system=SYSTEM * 10)
    while not warm.progress[0]:
        pass
    house.ai.generate("hi").wait()
    assert not warm.is_done
    warm.wait()
    assert warm.finish_reason == "stop"


def test_what_cannot_be_prefilled_is_refused(house: House) -> None:
    with pytest.raises(ContextFullError):
        house.ai.prewarm(SYSTEM * 1000)
    with pytest.raises(ContextFullError):
        house.ai.prewarm(system=SYSTEM * 100).wait()
    with pytest.raises(UsageError, match="attachments"):
        house.ai.prewarm(attachments=["a.txt"])  # type: ignore[list-item]
    for wrong in ({"text": 5}, {"system": 5}, {"name": 5}):
        with pytest.raises(UsageError, match="is text"):
            house.ai.prewarm(**wrong)  # type: ignore[arg-type]


def test_threads_prewarm_and_send_at_once(house: House) -> None:
    house.options = {"n_seq": 2}
    house.restart()
    conversations = [house.conversation(system=SYSTEM + str(n)) for n in range(4)]

    def use(conversation: Conversation) -> None:
        for n in range(5):
            conversation.prewarm()
            assert done(conversation.send("x" * n + "hi")).text == f"{n + 2} letters."

    threads = [threading.Thread(target=use, args=(conversation,)) for conversation in conversations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(conversation.messages) == 10 for conversation in conversations)


def test_what_is_kept_leaves_memory_last(house: House) -> None:
    house.options = {"n_seq": 2}
    house.restart()
    done(house.ai.generate(SECRET, cache="keep"))
    for n in range(6):
        done(house.ai.generate(f"Number {n}. " * 10, cache="memory"))
    usage = done(house.ai.generate(SECRET, cache="memory")).usage
    assert usage.n_reused - usage.n_restored > 200


# -- several replies to one prompt


def n_files_with(house: House, text: str) -> int:
    house.settle()
    found = pack_tokens(list(text.encode()))
    return sum(found in path.read_bytes() for path in house.directory.rglob("*") if path.is_file() and "index" not in path.name)


def test_the_prompt_of_several_choices_is_stored_once(house: House) -> None:
    for reply in house.ai.generate_choices(SECRET + "the end", 3):
        reply.wait()
    assert n_files_with(house, "the end") == 1


def test_answers_that_are_only_scored_are_not_stored(house: House) -> None:
    house.ai.choose(SECRET, ["yes", "no", "perhaps"])
    assert not house.holds(SECRET)
    assert house.n_blocks() == 0
    house.ai.choose(SECRET + "the end", ["yes", "no", "perhaps"], cache="disk")
    assert n_files_with(house, "the end") == 1
    with pytest.raises(UsageError, match="cache cannot be"):
        house.ai.choose("hi", ["yes"], cache="")  # type: ignore[arg-type]
