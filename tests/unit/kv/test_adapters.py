"""The KV cache and adapters: what was computed with some is reused with the same ones at the same scales only, also after a
restart, and also answers that are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge.adapters import Adapter
from edge.assistant import Assistant, DiskCache
from edge.backends.fake import FakeBackend
from edge.conversation import ConversationStore
from edge.errors import UsageError
from edge.kv.blocks import with_adapters
from edge.kv.store import BlockStore, StoreOptions
from tests.adapters import fake_adapters

MODEL = b"m" * 32
SYSTEM = "You are the assistant of a hospital, and answer from its handbook only. " * 4
Open = Callable[..., Assistant]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Open]:
    """Load the model again, in a new process as it were."""
    opened: list[Assistant] = []

    def make(adapters: tuple[Adapter, ...] = fake_adapters("pirate", "formal"), *, answers: bool = False) -> Assistant:
        for assistant in opened:
            assistant.close()
        blocks = BlockStore(tmp_path / "kv", StoreOptions(1 << 26, 0, sync=False))
        disk = DiskCache(blocks, MODEL, answers=answers)
        store = ConversationStore(tmp_path / "c.db")
        opened.append(Assistant(FakeBackend(n_ctx=8192, adapters=adapters), store=store, disk=disk))
        return opened[-1]

    yield make
    for assistant in opened:
        assistant.close()
        assistant.store.close()


def ask(ai: Assistant, lora: object, question: str = "Hi") -> tuple[str, int, int]:
    """Return the beginning of an answer, and the tokens from memory and from disk."""
    reply = ai.conversation(system=SYSTEM).send(question, temperature=0, max_tokens=30, lora=lora)  # type: ignore[typeddict-item]
    text = reply.wait()
    ai.flush_cache()
    return text[:10], reply.usage.n_reused - reply.usage.n_restored, reply.usage.n_restored


def test_a_prompt_is_reused_with_the_same_adapters_only(load: Open) -> None:
    ai = load()
    assert ask(ai, {}) == ("You said: ", 0, 0)
    assert ask(ai, ["pirate"]) == ("[pirate] Y", 0, 0)
    assert ask(ai, {"pirate": 0.5}) == ("[pirate at", 0, 0)
    assert ask(ai, ["formal", "pirate"])[1:] == (0, 0)
    for lora in ({}, ["pirate"], ["pirate", "formal"]):
        text, n_memory, n_disk = ask(ai, lora)
        assert n_memory > 200 and n_disk == 0
        assert text.startswith("You said" if not lora else "[pirate")


def test_after_a_restart_too(load: Open) -> None:
    for lora in ({}, ["pirate"], {"formal": 0.5}):
        assert ask(load(), lora)[1:] == (0, 0)
    for lora in ({}, ["pirate"], {"formal": 0.5}):
        text, n_memory, n_disk = ask(load(), lora)
        assert (n_memory, n_disk > 200) == (0, True)
        assert text.startswith({0: "You said", "pirate": "[pirate]"}.get(next(iter(lora), 0), "[formal at"))
    assert ask(load(), {"formal": 0.25})[1:] == (0, 0)


def test_adapters_are_known_by_their_content_not_by_name_or_place(load: Open) -> None:
    ask(load(), ["pirate"])
    pirate, formal = fake_adapters("pirate", "formal")
    assert ask(load((formal, pirate)), ["pirate"])[2] > 200
    assert ask(load(fake_adapters("formal", "pirate")), ["pirate"])[1:] == (0, 0), "another file of that name"
    mixes = [(), ((0, 1.0),), ((1, 1.0),), ((0, 0.5),), ((0, 1.0), (1, 1.0))]
    assert len({with_adapters(MODEL, mix, (pirate, formal)) for mix in mixes}) == len(mixes)


def test_stored_answers_belong_to_their_adapters(load: Open) -> None:
    ai = load(answers=True)
    for lora, begin in (({}, "You said: "), (["pirate"], "[pirate] Y"), ({"pirate": 0.5}, "[pirate at")):
        for is_cached in (False, True):
            reply = ai.generate("Hi", temperature=0, max_tokens=30, lora=lora)  # type: ignore[arg-type]
            assert reply.wait().startswith(begin)
            assert reply.usage.is_answer_cached == is_cached
            ai.flush_cache()


def test_adapters_of_a_call_a_conversation_and_the_assistant(load: Open) -> None:
    ai = load()
    assert ai.lora == {"pirate": 1.0, "formal": 1.0}
    assert ai.generate("Hi").wait().startswith("[pirate, formal] ")
    ai.lora = {"formal": 2}
    assert ai.generate("Hi").wait().startswith("[formal at 2] ")
    chat = ai.conversation(lora=["pirate"])
    assert chat.send("Hi").wait().startswith("[pirate] ")
    assert chat.send("Hi", lora={}).wait().startswith("You said")
    chat.lora = None
    assert chat.send("Hi").wait().startswith("[formal at 2] ")
    chat.lora = ["pirate:0.5"]
    assert chat.fork().send("Hi").wait().startswith("[pirate at 0.5] ")
    records = [node.record.get("lora") for node in chat.messages if node.role == "assistant"]
    assert records == [{"pirate": 1.0}, None, {"formal": 2.0}]
    warm = chat.prewarm("How do you do", cache="memory", lora=["formal"])
    warm.wait()
    reply = chat.send("How do you do?", lora=["formal"])
    assert reply.wait().startswith("[formal] ")
    assert reply.usage.n_reused == warm.usage.n_prompt
    n_before = len(chat.messages)
    with pytest.raises(UsageError, match="no adapter 'late'"):
        chat.send("Hi", lora=["late"])
    with pytest.raises(UsageError, match="no adapter 'late'"):
        ai.conversation(lora=["late"])
    assert len(chat.messages) == n_before, "nothing is saved of what is refused"


def test_scales_that_clients_think_up_are_not_all_remembered(load: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.turns._MOST_NAMED", 3)
    ai = load()
    for number in range(5):
        assert ai._turns.mix_of({"pirate": 0.1 + number}) == ((0, 0.1 + number),)
    assert len(ai._turns._named) == 3


def test_a_choice_and_several_answers_go_with_the_adapters(load: Open) -> None:
    ai = load()
    replies = ai.generate_choices("Hi", 3, temperature=0, lora=["pirate"])
    assert {reply.wait()[:9] for reply in replies} == {"[pirate] "}
    assert sum(reply.usage.n_reused > 0 for reply in replies) == 2
    found = dict(ai.batch(["a", "b", "c"], temperature=0, lora=["formal"]))
    assert all(reply.text.startswith("[formal] ") for reply in found.values()) and len(found) == 3
