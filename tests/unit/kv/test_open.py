"""The store that the settings describe, the fingerprint of a model, and what goes with a deleted conversation."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from edge import loading
from edge.assistant import Assistant, DiskCache
from edge.backends.fake import FakeBackend
from edge.config import load_settings
from edge.conversation import ConversationStore
from edge.errors import ModelFileError
from edge.formats.artifact import Artifact
from edge.kv.files import StoreFiles
from edge.kv.open import forget_conversations, model_fingerprint, open_block_store
from edge.types import Sampling

GREEDY = Sampling(temperature=0)


def artifact(path: Path, sha256: str | None = None) -> Artifact:
    return Artifact(path=path, format="gguf", name="m", size_bytes=1, sha256=sha256)


def test_the_store_is_where_the_cache_is_and_as_large_as_wanted() -> None:
    settings = load_settings({"kv.budget_gb": 0.5, "kv.encrypt": True})
    with open_block_store(settings) as store:
        assert store.directory == settings.paths.cache_dir / "kv"
        assert store.options.budget_bytes == 500_000_000
        assert store.problem is None
    assert (settings.paths.kv_dir.stat().st_mode & 0o777) == 0o700


@pytest.mark.parametrize("gb", [float("inf"), 1e300, 1e9, float("nan"), -1.0, 0.0])
def test_no_number_of_the_settings_ends_a_chat(gb: float) -> None:
    for field in ("budget_gb", "min_free_gb"):
        settings = load_settings({"kv.min_free_gb": 0})
        odd = msgspec.structs.replace(settings, kv=msgspec.structs.replace(settings.kv, **{field: gb}))
        with open_block_store(odd) as store:
            assert 0 <= store.options.budget_bytes <= 10**18 and store.problem is None
            store.put(None, [1, 2], b"x", fingerprint=b"m" * 32, namespace="", start=0)
            assert store.flush(60.0)


def test_the_fingerprint_tells_weights_engines_and_promises_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"weights")
    backend = FakeBackend()
    seen = {model_fingerprint(backend, artifact(path)), model_fingerprint(backend, artifact(path), exact=True)}
    path.write_bytes(b"WEIGHTS")
    seen.add(model_fingerprint(backend, artifact(path), cache_dir=tmp_path / "cache"))
    seen.add(model_fingerprint(backend, artifact(path, sha256="0" * 64)))
    monkeypatch.setattr(backend, "kv_identity", lambda: {"backend": "fake", "version": 99})
    seen.add(model_fingerprint(backend, artifact(path)))
    assert len(seen) == 5
    assert model_fingerprint(backend, artifact(path)) in seen
    with pytest.raises(ModelFileError):
        model_fingerprint(backend, artifact(tmp_path / "gone.gguf"))


def test_deleting_a_conversation_deletes_its_blocks(tmp_path: Path) -> None:
    settings = load_settings({"kv.min_free_gb": 0})
    deleted: list[str] = []

    def forget(ids: object) -> None:
        deleted.extend(ids)  # type: ignore[arg-type]
        forget_conversations(settings, list(ids))  # type: ignore[call-overload]

    with ConversationStore(tmp_path / "c.db", on_delete=forget) as store:
        disk = DiskCache(open_block_store(settings), b"m" * 32)
        with Assistant(FakeBackend(), store=store, disk=disk) as ai:
            kept, gone = ai.conversation(), ai.conversation()
            for number, conversation in enumerate((kept, gone)):
                conversation.send(f"{number} is the number of this conversation, and of no other", sampling=GREEDY).wait()
            disk.blocks.flush()
            owners = {owner for info in disk.blocks.ls() for owner in info.owners}
            assert owners == {kept.id, gone.id}
        store.delete(gone.id)
        assert deleted == [gone.id]
        with open_block_store(settings) as blocks:
            assert {owner for info in blocks.ls() for owner in info.owners} == {kept.id}


def test_what_waits_to_be_written_is_forgotten_too(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings({"kv.min_free_gb": 0})
    write = StoreFiles.write

    def slow_write(files: StoreFiles, pieces: Sequence[bytes]) -> Path:
        time.sleep(0.2)
        return write(files, pieces)

    monkeypatch.setattr(StoreFiles, "write", slow_write)
    with open_block_store(settings) as running:
        for number in range(3):
            assert running.put(None, [number] * 40, b"x" * 400, fingerprint=b"m" * 32, namespace="", start=0, owner="gone")
        assert running.stats().n_blocks == 0, "they wait"
        forget_conversations(settings, ["gone"])
        running.flush()
        assert running.stats().n_blocks == 0


def test_forgetting_where_there_is_no_store_makes_none() -> None:
    settings = load_settings()
    forget_conversations(settings, ["a"])
    assert not settings.paths.kv_dir.exists()


def test_replies_know_where_their_prompt_came_from(tmp_path: Path) -> None:
    settings = load_settings({"kv.min_free_gb": 0})
    with ConversationStore(tmp_path / "c.db") as store:
        for turn in range(2):
            disk = DiskCache(open_block_store(settings), b"m" * 32)
            with Assistant(FakeBackend(), store=store, disk=disk) as ai:
                conversation = ai.conversation(store.list()[0].id if turn else None, system="Be brief and friendly. " * 3)
                reply = conversation.send("Tell me something about foxes", sampling=GREEDY)
                reply.wait()
                if turn:
                    first = conversation.messages[1].record["usage"]
                    assert reply.usage.n_restored == first["n_prompt"] + first["n_generated"]
                    assert reply.usage.n_computed == reply.usage.n_prompt - reply.usage.n_reused
                    again = conversation.send("And about owls?", sampling=GREEDY)
                    again.wait()
                    assert (again.usage.n_restored, again.usage.n_reused > first["n_prompt"]) == (0, True)
                    assert conversation.messages[-1].record["usage"]["n_restored"] == 0


def test_an_exact_repeat_is_answered_from_the_store(tmp_path: Path) -> None:
    settings = load_settings({"kv.min_free_gb": 0})

    def ask(text: str, sampling: Sampling, answers: bool = True, n_ctx: int = 4096) -> tuple[str, bool]:
        disk = DiskCache(open_block_store(settings), b"m" * 32, answers=answers)
        with Assistant(FakeBackend(script=lambda message: f"{message}! {counter}", n_ctx=n_ctx), disk=disk) as ai:
            reply = ai.generate(text, sampling)
            return reply.wait(), reply.usage.is_answer_cached

    counter = 1
    assert ask("a", GREEDY) == ("a! 1", False)
    counter = 2
    assert ask("a", GREEDY, answers=False) == ("a! 2", False), "off unless asked for"
    assert ask("a", GREEDY) == ("a! 1", True)
    assert ask("a", replace(GREEDY, seed=5)) == ("a! 1", True), "a seed changes nothing at temperature 0"
    assert ask("a", replace(GREEDY, temperature=0.5)) == ("a! 2", False)
    assert ask("a", replace(GREEDY, max_tokens=2)) == ("a!", False)
    assert ask("b", GREEDY) == ("b! 2", False)
    assert ask("b", GREEDY, n_ctx=2048) == ("b! 2", False), "another window could have ended it elsewhere"


@pytest.mark.parametrize(
    ("flags", "is_open"),
    [
        ({}, True),
        ({"kv.model_budget_gb": 0}, False),
        ({"kv.model_budget_gb": 0, "kv.model_budgets_gb.tiny": 0.5}, True),
        ({"kv.model_budgets_gb.tiny": 0}, False),
        ({"kv.model_budgets_gb.other": 0}, True),
    ],
)
def test_nothing_is_stored_of_a_model_whose_budget_is_nothing(tmp_path: Path, flags: dict[str, object], is_open: bool) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"weights")
    plan: Any = SimpleNamespace(artifact=replace(artifact(path), name="tiny"))
    settings = load_settings(flags)
    disk = loading._open_disk(settings, plan, FakeBackend(), loading._stamps(plan.artifact))
    assert (disk is not None) == is_open
    if disk is not None:
        assert disk.blocks.stats().names == {disk.model.hex(): "tiny"}
        assert disk.blocks.options.model_budget_bytes == (0 if "kv.model_budget_gb" in flags else None)
        disk.blocks.close()


def test_settings_become_limits_of_the_store() -> None:
    flags = {"kv.max_age_days": 2, "kv.max_writes_gb_per_day": 0.5, "kv.model_budgets_gb.a.b": 0.25}
    with open_block_store(load_settings(flags)) as store:
        options = store.options
        assert (options.max_age_s, options.max_written_bytes) == (172_800, 500_000_000)
        assert options.model_budgets == {"a.b": 250_000_000}
