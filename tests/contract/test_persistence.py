"""Conversations with the disk against conversations without it, on real kernels: the same words, to the last one.

The model of the main test has 4-bit weights: the last bits of its results depend on how a prompt was cut into batches, as those
of real models do, so a wrong cut shows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from edge.assistant import Assistant, Conversation, DiskCache
from edge.backends.base import open_backend
from edge.backends.paired import pair_with
from edge.conversation import ConversationStore
from edge.kv.open import model_fingerprint
from edge.kv.store import BlockStore, StoreOptions
from edge.plan.receipt import PrefillPlan
from edge.types import Sampling
from tests.contract.entries import onnx_plan
from tests.prove import proof_size

PlanFor = Callable[..., Any]
TinyModel = Callable[[str], Path]
NO_LETTERS = dict.fromkeys((*range(32), *range(127, 256)), -math.inf)
GREEDY = Sampling(temperature=0, max_tokens=12, logit_bias=NO_LETTERS)  # random models generate bytes that are not text
N_SEEDS = proof_size(4, 12)
WORDS = ("the", "fox", "ran", "over", "a", "hill", "and", "saw", "two", "dogs", "near", "an", "old", "house", "river")


@dataclass
class World:
    """One way of running the same conversations.

    Attributes:
        open: makes an assistant on a store of conversations.
        restarts: whether the assistant is closed and opened again before each turn.
    """

    open: Callable[[ConversationStore], Assistant]
    restarts: bool
    store: ConversationStore = field(default_factory=lambda: ConversationStore(None))
    assistant: Assistant | None = None
    n_restored: int = 0

    def conversation(self, id: str | None, system: str = "") -> Conversation:
        if self.assistant is None or self.restarts:
            self.close()
            self.assistant = self.open(self.store)
        # A conversation of the assistant's is stored with its first message; the scripts reopen it before that.
        return self.assistant.conversation(id or self.store.create(system=system).id)

    def note(self, reply: Any) -> tuple[str, tuple[int, ...]]:
        text = reply.wait()
        self.n_restored += reply.usage.n_restored
        return text, reply.tokens

    def end(self) -> None:
        self.close()
        self.store.close()

    def close(self) -> None:
        if self.assistant is not None:
            self.assistant.close()
            self.assistant = None


def text(rng: random.Random, n_words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n_words))


def live(world: World, seed: int) -> list[tuple[str, tuple[int, ...]]]:
    """One conversation: turns, an edit, a fork, a regenerated answer, and a return to the branch that was left."""
    rng = random.Random(seed)
    said = []
    id = world.conversation(None, system=text(rng, rng.randrange(3, 40))).id
    said.append(world.note(world.conversation(id).send(text(rng, rng.randrange(3, 40)), sampling=GREEDY)))
    for _ in range(rng.randrange(2, 4)):
        conversation = world.conversation(id)
        path = conversation.messages
        action = rng.choice(["send", "send", "edit", "fork", "regenerate", "return"])
        if action == "edit":
            question = rng.choice([node for node in path if node.role == "user"])
            said.append(world.note(conversation.edit(question.id, text(rng, rng.randrange(3, 30)), sampling=GREEDY)))
        elif action == "regenerate":
            said.append(world.note(conversation.regenerate(sampling=GREEDY)))
        else:
            if action == "fork":
                id = conversation.fork(rng.choice([node for node in path if node.role == "assistant"]).id).id
                conversation = world.assistant.conversation(id)  # type: ignore[union-attr]
            elif action == "return":
                branches = conversation.branches(rng.choice(path).id)
                conversation.switch(branches[0].id)
            said.append(world.note(conversation.send(text(rng, rng.randrange(3, 30)), sampling=GREEDY)))
    return said


def compare(world: World, reference: World, seeds: range) -> None:
    """Live the same conversations twice, and end both."""
    for seed in seeds:
        assert live(world, seed) == live(reference, seed)
    world.end()
    reference.end()


def opener(
    plan: Any, directory: Path | None, *, exact: bool = False, encrypt: bool = False
) -> Callable[[ConversationStore], Assistant]:
    """Makes assistants with the disk, or without."""

    def open(store: ConversationStore) -> Assistant:
        backend = pair_with(open_backend(plan), plan, open_backend)
        disk = None
        if directory is not None:
            blocks = BlockStore(directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, encrypt=encrypt, sync=False))
            disk = DiskCache(blocks, model_fingerprint(backend, plan.artifact, exact=exact))
        # The length of a draft depends on measured times, and the last bits of what is decoded on that length.
        return Assistant(backend, plan, store=store, disk=disk, exact=exact, speculates=False)

    return open


@pytest.mark.prove
def test_exact_replies_are_those_of_a_cold_run(tiny_model: TinyModel, plan_for: PlanFor, tmp_path: Path) -> None:
    plan = plan_for(tiny_model("llama q4_0"), n_ctx=1024, n_seq=1, n_ubatch=64)
    cold = World(opener(plan, None, exact=True), restarts=True)  # a new process each time, and nothing on the disk
    cached = World(opener(plan, tmp_path / "kv", exact=True), restarts=False)
    restarted = World(opener(plan, tmp_path / "kv2", exact=True, encrypt=True), restarts=True)
    n = proof_size(16, 50)
    expected = {seed: live(cold, seed) for seed in range(n)}
    for world, seeds in ((cached, range(n)), (restarted, range(n // 2, n))):
        for seed in seeds:
            assert live(world, seed) == expected[seed]
        world.end()
    cold.end()
    assert cold.n_restored == 0
    assert cached.n_restored > 6 * n, "there is one sequence, so branches that were left come back from the disk"
    assert restarted.n_restored > 100 * n


@pytest.mark.prove
@pytest.mark.parametrize("architecture", ["llama q4_0", "mamba", "lfm2"])
def test_a_restart_changes_no_word(tiny_model: TinyModel, plan_for: PlanFor, tmp_path: Path, architecture: str) -> None:
    """Without `exact`: replies are those of a process that was never stopped."""
    plan = plan_for(tiny_model(architecture), n_ctx=1024, n_seq=1, n_ubatch=64)
    running = World(opener(plan, tmp_path / "running"), restarts=False)
    restarted = World(opener(plan, tmp_path / "restarted"), restarts=True)
    compare(restarted, running, range(100, 100 + N_SEEDS))
    assert restarted.n_restored > 150 * N_SEEDS


@pytest.mark.prove
@pytest.mark.parametrize(("kind", "kv_type"), [("llama q4_0", "f16"), ("llama", "u8")])
def test_a_restart_changes_no_word_on_openvino(
    tiny_model: TinyModel, plan_for: PlanFor, tmp_path: Path, kind: str, kv_type: str
) -> None:
    pytest.importorskip("openvino")
    types = {"kv_type_k": kv_type, "kv_type_v": kv_type}
    plan = plan_for(tiny_model(kind), backend="openvino", n_ctx=1024, n_seq=1, n_ubatch=64, **types)
    running = World(opener(plan, tmp_path / "running"), restarts=False)
    restarted = World(opener(plan, tmp_path / "restarted"), restarts=True)
    compare(restarted, running, range(100, 100 + N_SEEDS))
    assert restarted.n_restored > 150 * N_SEEDS


@pytest.mark.prove
@pytest.mark.parametrize(("decoder", "prefiller"), [("llamacpp", "openvino"), ("openvino", "llamacpp")])
def test_a_restart_changes_no_word_where_another_engine_prefills(
    tiny_model: TinyModel, plan_for: PlanFor, tmp_path: Path, decoder: str, prefiller: str
) -> None:
    pytest.importorskip("openvino")
    plan = plan_for(tiny_model("llama q4_0"), backend=decoder, n_ctx=1024, n_seq=1, n_ubatch=64)
    plan = replace(plan, prefill=PrefillPlan(replace(plan, backend=prefiller), least=12, per_token=0.01))
    running = World(opener(plan, tmp_path / "running"), restarts=False)
    restarted = World(opener(plan, tmp_path / "restarted"), restarts=True)
    compare(restarted, running, range(100, 100 + N_SEEDS))
    assert restarted.n_restored > 150 * N_SEEDS


@pytest.mark.prove
def test_a_sliding_window_comes_back_as_it_was(tiny_model: TinyModel, plan_for: PlanFor, tmp_path: Path) -> None:
    plan = plan_for(tiny_model("gemma3"), n_ctx=1024, n_seq=1, n_ubatch=64)
    cold = World(opener(plan, None, exact=True), restarts=True)
    restarted = World(opener(plan, tmp_path / "kv", exact=True), restarts=True)
    compare(restarted, cold, range(300, 300 + N_SEEDS))
    assert restarted.n_restored > 80 * N_SEEDS


@pytest.mark.prove
def test_several_sequences_and_the_disk_give_what_one_gives(tiny_model: TinyModel, plan_for: PlanFor, tmp_path: Path) -> None:
    """Conversations that take turns: what is in memory, shared or restored makes no difference that a reader sees."""
    one = plan_for(tiny_model("llama"), n_ctx=1024, n_seq=1)
    four = plan_for(tiny_model("llama"), n_ctx=1024, n_seq=4)
    alone = World(opener(one, None), restarts=True)
    together = World(opener(four, tmp_path / "kv"), restarts=False)
    compare(together, alone, range(200, 200 + N_SEEDS))


@pytest.mark.parametrize("kind", ["onnx-int4", "onnx-plain"])
def test_onnx_says_the_same_after_a_restart_and_from_the_disk(tiny_onnx: TinyModel, tmp_path: Path, kind: str) -> None:
    plan = onnx_plan(tiny_onnx(kind), n_ctx=1024, n_seq=1, n_ubatch=64)
    cold = World(opener(plan, None, exact=True), restarts=True)
    exact = World(opener(plan, tmp_path / "exact", exact=True), restarts=True)
    running = World(opener(plan, tmp_path / "running"), restarts=False)
    restarted = World(opener(plan, tmp_path / "restarted"), restarts=True)
    for seed in range(400, 403):
        assert live(exact, seed) == live(cold, seed)
        assert live(restarted, seed) == live(running, seed)
    n_restored = min(exact.n_restored, restarted.n_restored)
    for world in (cold, exact, running, restarted):
        world.end()
    assert n_restored > 500
