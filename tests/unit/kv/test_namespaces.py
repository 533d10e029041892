"""Namespaces of the KV cache: what is in one is never read, nor counted as reused, in another, in memory and on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.fake import FakeBackend
from edge.conversation import ConversationStore
from edge.errors import UsageError
from edge.kv.bundle import open_bundle, write_bundle
from edge.kv.records import PlainBlock
from edge.kv.slots import Slots
from edge.kv.store import BlockStore, StoreOptions
from edge.kv.tree import PrefixTree
from edge.names import import_namespace
from edge.types import Sampling

GREEDY = Sampling(temperature=0, max_tokens=40)
SYSTEM = "You are the assistant of a hospital, and answer from its handbook only. " * 4
MODEL = b"m" * 32


class Device:
    """A device with conversations and blocks on its disk; `restart` is a new process."""

    def __init__(self, path: Path, **options: object) -> None:
        self._path, self._options = path, options
        self._open()

    def _open(self) -> None:
        self.conversations = ConversationStore(self._path / "c.db")
        self.blocks = BlockStore(self._path / "kv", StoreOptions(1 << 26, 0, sync=False))
        disk = DiskCache(self.blocks, MODEL, answers=bool(self._options.get("answers")))
        self.ai = Assistant(
            FakeBackend(n_ctx=8192), store=self.conversations, disk=disk, cache_namespace=str(self._options.get("space", ""))
        )

    def restart(self) -> None:
        self.close()
        self._open()

    def close(self) -> None:
        self.ai.close()
        self.conversations.close()

    def ask(self, question: str, id: str | None = None, **options: object) -> tuple[str, int, int]:
        """Send a message; returns the conversation and the tokens that were in memory and restored from disk."""
        conversation = self.ai.conversation(id, system=None if id else SYSTEM, **options)  # type: ignore[arg-type]
        reply = conversation.send(question, sampling=GREEDY)
        reply.wait()
        self.ai.flush_cache()
        return conversation.id, reply.usage.n_reused - reply.usage.n_restored, reply.usage.n_restored


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def device(name: str = "here", **options: object) -> Device:
        (tmp_path / name).mkdir()
        made.append(Device(tmp_path / name, **options))
        return made[-1]

    yield device
    for one in made:
        one.close()


def test_a_tree_of_several_namespaces() -> None:
    tree = PrefixTree(3)
    tree.extend(0, [1, 2, 3])
    tree.move(1, "b")
    assert tree.match([1, 2, 3], "b").n_tokens == 0 and tree.match([1, 2, 3], "c").n_tokens == 0
    tree.extend(1, [1, 2, 9])
    assert tree.match([1, 2, 3], "b") == (2, {1}) and tree.match([1, 2, 3]) == (3, {0})
    tree.share(1, 2, 2)
    assert tree.namespace(2) == "b" and tree.match([1, 2], "b").holders == {1, 2}
    for seq_id in (1, 2):
        tree.truncate(seq_id, 0)
        tree.move(seq_id, "")
    assert "b" not in tree._roots and tree.match([1, 2], "b").n_tokens == 0


@pytest.mark.parametrize("can_rewind", [True, False])
def test_slots_share_within_a_namespace_only(can_rewind: bool) -> None:
    backend = FakeBackend(n_seq=4)
    backend.capabilities = replace(backend.capabilities, rewind=can_rewind)
    slots = Slots(backend)
    prompt = list(range(30))
    first = slots.acquire(prompt, "a")
    assert first is not None
    backend.prefill(first.seq_id, prompt)
    slots.append(first, prompt, is_prefill=True)
    slots.release(first)
    assert slots.n_shared([*prompt, 1], "a") == 30 and slots.n_shared([*prompt, 1]) == 0 == slots.n_shared([*prompt, 1], "b")
    other = slots.acquire([*prompt, 1], "b")
    assert other is not None and other.n_tokens == 0
    same = slots.acquire([*prompt, 1], "a")
    assert same is not None and same.n_tokens == 30


def test_one_client_does_not_learn_what_another_asked(make: Callable[..., Device]) -> None:
    device = make()
    first, *_ = device.ask("Is it the liver?", cache_namespace="ann")
    for _ in range(2):
        assert device.ask("Is it the liver?", cache_namespace="bob")[1:] == (0, 0)
        assert device.ask("Is it the liver?", cache_namespace="cleo")[1:] == (0, 0)
        assert device.ask("Is it the liver?")[1:] == (0, 0)
        n_memory, n_disk = device.ask("Is it the liver?", cache_namespace="ann")[1:]
        assert n_memory + n_disk > 200, "their own is reused"
        device.restart()
        assert device.ask("Is it the liver?", cache_namespace="ann")[2] > 200
        device.blocks.forget_namespace("bob")
        device.blocks.forget_namespace("cleo")
        device.blocks.forget_namespace("")
        device.restart()
    n_disk = device.ask("And the heart?", first)[2]
    assert n_disk > 300, "a stored conversation remembers its namespace"
    assert device.conversations.get(first).cache_namespace == "ann"
    assert device.blocks.namespaces() == ["ann"]


def test_requests_without_a_conversation(make: Callable[..., Device]) -> None:
    device = make(space="server")
    text = "A long question about the liver and its ten parts, and what each of them does for us. " * 3

    def reused(**options: object) -> int:
        reply = device.ai.generate(text, GREEDY, **options)  # type: ignore[arg-type]
        reply.wait()
        return reply.usage.n_reused

    assert reused() == 0 and reused() > 100 and reused(cache_namespace="server") > 100
    assert reused(cache_namespace="other") == 0 and reused(cache_namespace="") == 0
    completed = device.ai.complete(text, GREEDY, cache_namespace="third")
    completed.wait()
    assert completed.usage.n_reused == 0
    device.ai.prewarm(text, system=SYSTEM, cache_namespace="fourth").wait()
    assert device.ask(text, cache_namespace="fifth")[1:] == (0, 0)
    assert sum(device.ask(text, cache_namespace="fourth")[1:]) > 200


def test_cached_answers_are_of_a_namespace_too(make: Callable[..., Device]) -> None:
    device = make(answers=True)

    def is_cached(namespace: str) -> bool:
        reply = device.ai.generate("What is it?", GREEDY, cache_namespace=namespace)
        reply.wait()
        device.ai.flush_cache()
        return reply.usage.is_answer_cached

    assert [is_cached(name) for name in ("ann", "ann", "bob", "", "", "ann")] == [False, True, False, False, True, True]


@pytest.mark.parametrize("name", ["answers", "answers:ann", "import:1", "a b", "a\n", "x" * 65, "ü", 5, b"a"])
def test_names_that_could_be_those_of_others_are_refused(make: Callable[..., Device], name: object) -> None:
    device = make()
    for call in (device.ai.conversation, lambda **options: device.ai.generate("hi", **options)):
        with pytest.raises(UsageError, match="cannot be a namespace"):
            call(cache_namespace=name)


def evil_bundle(device: Device, path: Path, id: str) -> None:
    """Write a bundle whose blocks hold other keys and values than their tokens give."""
    blocks = [
        PlainBlock(
            block.key, block.parent, block.model, block.namespace, block.start, block.tokens,
            bytes(byte ^ 1 if at >= 24 and at % 20 > 8 else byte for at, byte in enumerate(bytes(block.payload))), block.origin,
            block.prefill_ms,
        )
        for block in device.blocks.export_blocks(id)
    ]  # fmt: skip
    assert blocks
    write_bundle(path, device.conversations.export_json(id), blocks)


def test_what_comes_with_a_bundle_is_read_by_its_conversation_only(make: Callable[..., Device], tmp_path: Path) -> None:
    sender, device = make("sender"), make()
    evil_bundle(sender, tmp_path / "b.zip", sender.ask("Tell me a story")[0])
    with open_bundle(tmp_path / "b.zip") as bundle:
        imported = device.conversations.import_json(bundle.conversation())
        assert device.blocks.import_blocks(bundle.blocks(MODEL), imported.id).n_added > 2
    assert device.ask("Tell me a story")[1:] == (0, 0), "not from disk"
    assert device.ask("Go on", imported.id)[2] > 200, "its own conversation does"
    assert sum(device.ask("Tell me a poem")[1:]) > 200, "and what was computed here is shared as ever"
    device.restart()
    assert device.ask("Go on", imported.id)[2] > 300
    assert device.ai.conversation(imported.id).info.cache_namespace == import_namespace(imported.id)
    good = {info.key for info in device.blocks.ls() if not info.namespace}
    assert good, "a new conversation computes and stores its own"
    device.conversations.delete(imported.id)
    device.blocks.forget(imported.id)
    assert {info.key for info in device.blocks.ls()} == good


def test_an_imported_conversation_is_forked_edited_and_exported_with_its_blocks(
    make: Callable[..., Device], tmp_path: Path
) -> None:
    sender, device, third = make("sender"), make(), make("third")
    id = sender.ask("Tell me a story")[0]
    write_bundle(tmp_path / "a.zip", sender.conversations.export_json(id), sender.blocks.export_blocks(id))
    with open_bundle(tmp_path / "a.zip") as bundle:
        imported = device.conversations.import_json(bundle.conversation())
        device.blocks.import_blocks(bundle.blocks(MODEL), imported.id)
    fork = device.ai.conversation(imported.id).fork()
    assert fork.info.cache_namespace == import_namespace(imported.id)
    assert device.ask("Go on", fork.id)[2] > 200
    device.restart()
    conversation = device.ai.conversation(imported.id)
    edited = conversation.edit(conversation.messages[0].id, "Tell me a joke", sampling=GREEDY)
    edited.wait()
    assert edited.usage.n_restored > 200
    device.ai.flush_cache()
    write_bundle(tmp_path / "b.zip", device.conversations.export_json(imported.id), device.blocks.export_blocks(imported.id))
    with open_bundle(tmp_path / "b.zip") as bundle:
        again = third.conversations.import_json(bundle.conversation())
        third.blocks.import_blocks(bundle.blocks(MODEL), again.id)
    assert third.ask("Go on", again.id)[2] > 200
    n_blocks = len(device.blocks.ls())
    device.blocks.pin(bytes.fromhex(device.blocks.ls()[0].key))
    device.blocks.flush()
    assert device.blocks.forget_namespace(import_namespace(imported.id)).n_blocks == n_blocks
    device.restart()
    assert device.ask("Go on", fork.id)[1:] == (0, 0)


def test_checks_of_the_cache_include_imported_conversations(make: Callable[..., Device], tmp_path: Path) -> None:
    sender, device = make("sender"), make()
    evil_bundle(sender, tmp_path / "b.zip", sender.ask("Tell me a story")[0])
    with open_bundle(tmp_path / "b.zip") as bundle:
        imported = device.conversations.import_json(bundle.conversation())
        device.blocks.import_blocks(bundle.blocks(MODEL), imported.id)
    assert [check.owner for check in device.ai.check_cache()] == [imported.id]
