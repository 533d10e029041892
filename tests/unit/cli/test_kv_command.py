"""`edge kv`: what is shown and done, on a real block store with small made-up blocks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.fake import FakeBackend
from edge.conversation import ConversationStore
from edge.kv.blocks import fingerprint
from edge.kv.bundle import write_bundle
from edge.kv.open import open_block_store
from edge.kv.store import BlockStore
from edge.types import Message
from edge_cli.app import App

MODEL = fingerprint({"weights": "a"})
OTHER = fingerprint({"weights": "b"})
SYSTEM = list(range(100, 110))
Call = Callable[..., Any]


@pytest.fixture
def conversations() -> Iterator[ConversationStore]:
    app = App()
    with app.store(app.settings()) as store:
        yield store


@pytest.fixture
def blocks() -> Iterator[BlockStore]:
    with open_block_store(App().settings()) as store:
        yield store


def put_row(store: BlockStore, tokens: list[int], owner: str | None) -> list[bytes]:
    """Blocks of five tokens, 1 s of prefill each."""
    keys: list[bytes] = []
    for start in range(0, len(tokens), 5):
        key = store.put(
            keys[-1] if keys else None, tokens[start : start + 5], bytes(1000) + bytes(tokens[: start + 5]),
            fingerprint=MODEL, namespace="", start=start, owner=owner, prefill_ms=1000.0,
        )  # fmt: skip
        assert key is not None
        keys.append(key)
    assert store.flush(60.0)
    return keys


@pytest.fixture
def two(conversations: ConversationStore, blocks: BlockStore) -> tuple[str, str]:
    """Two conversations with the same system prompt, and blocks of one that is not kept. Their ids."""
    ann, bob = conversations.create(title="Ann's"), conversations.create(title="Bob's")
    conversations.append(ann.id, Message("user", "hello"), parent=None)
    put_row(blocks, SYSTEM + list(range(20)), ann.id)
    put_row(blocks, SYSTEM + list(range(50, 55)), bob.id)
    put_row(blocks, list(range(5)), "gone")
    return ann.id, bob.id


def app_with(model: bytes | None) -> App:
    """Its models have this fingerprint."""

    def load(*, settings: Any, store: Any, on_progress: Any) -> Assistant:
        disk = None if model is None else DiskCache(open_block_store(settings), model)
        return Assistant(FakeBackend(), disk=disk)

    return App(load=load)


def test_ls_groups_by_who_uses_it_and_adds_up(call: Call, two: tuple[str, str], blocks: BlockStore) -> None:
    ann, bob = two
    blocks.pin(put_row(blocks, list(range(5)), None)[0])
    assert blocks.flush(60.0)
    result = call("kv", "ls")
    assert (result.code, result.err) == (0, "")
    headings, *lines = result.out.splitlines()
    assert headings.split()[:2] == ["what", "tokens"]
    assert lines[0].startswith(f"Ann's ({ann})  ") and "  20  " in lines[0] and "4.00 s" in lines[0]
    assert lines[1].startswith(f"shared: Ann's ({ann}), Bob's ({bob})") and "  10  " in lines[1]
    assert any(line.startswith("conversations that are not saved") and line.endswith("pinned") for line in lines[2:])
    groups = json.loads(call("kv", "ls", "--json").out)
    assert sum(group["n_blocks"] for group in groups) == len(blocks.ls()) == 8
    assert [group["conversations"] for group in groups[:2]] == [[ann], sorted([ann, bob])]
    listed = json.loads(call("kv", "ls", "--blocks", "--json").out)
    assert {block["key"] for block in listed} == {block.key for block in blocks.ls()}
    assert len(call("kv", "ls", "--blocks").out.splitlines()) == 1 + 8


def test_ls_of_a_very_large_cache_counts_the_newest_blocks_and_says_so(
    call: Call, two: tuple[str, str], blocks: BlockStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_blocks = blocks.n_blocks()
    assert "newest" not in call("kv", "ls").err
    monkeypatch.setattr("edge_cli.kv._NEWEST", 3)
    result = call("kv", "ls", "--json")
    assert sum(group["n_blocks"] for group in json.loads(result.out)) == 3
    assert f"the newest 3 of {n_blocks} blocks" in result.err
    result = call("kv", "ls", "--all", "--json")
    assert (sum(group["n_blocks"] for group in json.loads(result.out)), result.err) == (n_blocks, "")


def test_an_empty_store_says_so(call: Call) -> None:
    result = call("kv", "ls")
    assert (result.code, result.out) == (0, "") and "Nothing is stored yet" in result.err
    assert json.loads(call("kv", "ls", "--json").out) == []


def test_stats(call: Call, two: tuple[str, str], blocks: BlockStore) -> None:
    figures = json.loads(call("kv", "stats", "--json").out)
    assert (figures["n_blocks"], figures["n_tokens"], figures["prefill_ms"]) == (8, 40, 8000.0)
    assert figures["directory"] == str(blocks.directory) and not figures["is_encrypted"]
    assert figures["models"] == [
        {
            "fingerprint": MODEL.hex(), "name": None, "namespace": "", "n_blocks": 8, "size_bytes": 8 * 4096, "budget_gb": None,
        }
    ]  # fmt: skip
    text = call("kv", "stats").out
    assert "40 tokens in 8 blocks" in text and "8.00 s" in text and MODEL.hex()[:8] in text


def test_verify_finds_damage_and_exits_with_1(call: Call, two: tuple[str, str], blocks: BlockStore) -> None:
    result = call("kv", "verify")
    assert (result.code, result.out) == (0, "") and "8 blocks checked" in result.err
    last = max(blocks.ls(owner=two[0]), key=lambda block: block.start)
    (blocks.directory / "blocks" / last.key[:2] / last.key[2:]).write_bytes(b"damage")
    result = call("kv", "verify")
    assert result.code == 1 and last.key[:12] in result.out and "1 were damaged" in result.err
    again = call("kv", "verify", "--json")
    assert again.code == 0 and json.loads(again.out)["n_checked"] == 7


def test_gc_and_what_belongs_to_nobody(call: Call, two: tuple[str, str], blocks: BlockStore) -> None:
    assert "Everything is in order" in call("kv", "gc").err
    assert json.loads(call("kv", "gc", "--gone", "--json").out)["n_gone"] == 1
    assert {owner for block in blocks.ls() for owner in block.owners} == set(two)


def test_forget_by_the_beginning_of_an_id(call: Call, two: tuple[str, str], blocks: BlockStore) -> None:
    ann, bob = two
    assert "4 blocks deleted" in call("kv", "forget", ann).err
    assert all(ann not in block.owners for block in blocks.ls())
    assert len(blocks.ls(owner=bob)) == 3  # with the system prompt
    assert json.loads(call("kv", "forget", "gon", "--json").out) == [{"id": "gone", "n_blocks": 1, "size_bytes": 4096}]
    wrong = call("kv", "forget", "nobody")
    assert wrong.code == 2 and "no conversation nobody" in wrong.err
    assert call("kv", "forget").code == 2 and call("kv", "forget", bob, "--all").code == 2
    assert call("kv", "forget", "--all").code == 0 and blocks.ls() == []


def test_clear(call: Call, two: tuple[str, str], blocks: BlockStore) -> None:
    assert json.loads(call("kv", "clear", "--json").out) == {"n_blocks": 8, "size_bytes": 8 * 4096}
    assert blocks.ls() == []


def test_pin_a_conversation_or_a_block(call: Call, two: tuple[str, str], blocks: BlockStore) -> None:
    ann, bob = two
    assert "6 blocks are pinned" in call("kv", "pin", ann).err
    assert {block.key for block in blocks.ls() if block.is_pinned} == {block.key for block in blocks.ls(owner=ann)}
    assert call("kv", "unpin", ann).code == 0 and not any(block.is_pinned for block in blocks.ls())
    key = max(blocks.ls(owner=bob), key=lambda block: block.start).key
    assert json.loads(call("kv", "pin", key[:16], "--json").out) == {
        "keys": [key], "is_pinned": True, "pinned_until": None,
    }  # fmt: skip
    assert [block.key for block in blocks.ls() if block.is_pinned] == [key]
    for target in ("0" * 16, "nobody"):
        assert call("kv", "pin", target).code == 2


def test_a_bundle_goes_round(call: Call, two: tuple[str, str], blocks: BlockStore, tmp_path: Path) -> None:
    ann, _ = two
    path = tmp_path / "chat.zip"
    written = json.loads(call("kv", "export", ann, str(path), "--json").out)
    assert (written["n_blocks"], written["n_tokens"], written["path"]) == (6, 30, str(path))
    refused = call("kv", "export", ann, str(path))
    assert refused.code == 2 and "--force" in refused.err
    assert "unencrypted" in call("kv", "export", ann, str(path), "--force").err
    blocks.clear()
    result = call("kv", "import", str(path), app=app_with(MODEL))
    assert result.code == 0 and "30 cached tokens" in result.err
    new = result.out.strip()
    assert new != ann and len(blocks.ls(owner=new)) == 6
    assert not blocks.match(MODEL, "", SYSTEM + list(range(20))).blocks, "no other conversation reads them"
    match = blocks.match(MODEL, f"import:{new}", SYSTEM + list(range(20)))
    assert match.n_tokens == 30 and all(blocks.read(ref) is not None for ref in match.blocks)


@pytest.mark.parametrize(("model", "reason"), [(OTHER, "fingerprints differ"), (None, "kv.enabled")], ids=["other", "off"])
def test_a_bundle_of_another_model_is_read_again_and_that_is_said(
    call: Call, two: tuple[str, str], blocks: BlockStore, conversations: ConversationStore, tmp_path: Path, model: bytes | None,
    reason: str,
) -> None:  # fmt: skip
    path = tmp_path / "chat.zip"
    call("kv", "export", two[0], str(path))
    blocks.clear()
    result = call("kv", "import", str(path), app=app_with(model))
    assert result.code == 0 and reason in result.err and "30 tokens are left out" in result.err
    assert blocks.ls() == [] and conversations.get(result.out.strip()).title == "Ann's"
    as_json = json.loads(call("kv", "import", str(path), "--json", app=app_with(model)).out)
    assert (as_json["n_tokens"], as_json["n_left_out"], len(as_json["notices"])) == (0, 30, 2)


@pytest.mark.parametrize(
    "named", ["hf:attacker/evil", "attacker/evil", "pypi:evil", "ollama:evil", "phi-3-mini-4k", "/etc/passwd", "../x.gguf",
              "https://127.0.0.1:1/x.gguf", "-h", "a" * 100_000, "\x1b[2J", 5, ["a"], {"a": 1}, True],
)  # fmt: skip
def test_a_bundle_does_not_choose_which_model_is_fetched_and_loaded(
    call: Call, two: tuple[str, str], blocks: BlockStore, conversations: ConversationStore, tmp_path: Path, named: object
) -> None:
    def load(**options: Any) -> Assistant:
        pytest.fail(f"it was loaded: {options}")

    path = tmp_path / "chat.zip"
    write_bundle(path, conversations.export_json(two[0]), blocks.export_blocks(two[0]), {"model": named})
    result = call("kv", "import", str(path), app=App(load=load))
    assert result.code == 2 and result.out == "" and len(conversations.list()) == 2, result
    assert repr(str(named)[:50])[1:-1] in result.err and "\x1b" not in result.err and "kv import" in result.err
    assert len(result.err) < 1000
    # The user's own choice counts, and without blocks nothing is loaded at all.
    assert "30 cached tokens" in call("kv", "import", str(path), "-m", "a-model", app=app_with(MODEL)).err
    write_bundle(path, conversations.export_json(two[0]), [], {"model": named})
    assert call("kv", "import", str(path), app=App(load=load)).code == 0


def test_the_model_of_a_bundle_is_loaded_without_the_network(call: Call, two: tuple[str, str], tmp_path: Path) -> None:
    seen: list[bool] = []

    def load(*, settings: Any, **others: Any) -> Assistant:
        seen.append(settings.hub.offline)
        return Assistant(FakeBackend())

    path = tmp_path / "chat.zip"
    call("kv", "export", two[0], str(path))
    assert call("kv", "import", str(path), app=App(load=load)).code == 0
    assert seen == [True]


def test_a_damaged_bundle_changes_nothing(
    call: Call, two: tuple[str, str], blocks: BlockStore, conversations: ConversationStore, tmp_path: Path
) -> None:
    path = tmp_path / "chat.zip"
    call("kv", "export", two[0], str(path))
    data = bytearray(path.read_bytes())
    data[data.index(bytes(900)) + 500] ^= 1
    path.write_bytes(data)
    result = call("kv", "import", str(path), app=app_with(MODEL))
    assert result.code == 1 and "damaged" in result.err and len(conversations.list()) == 2
    assert len(blocks.ls()) == 8


def test_a_store_that_cannot_be_used_is_an_error(call: Call, blocks: BlockStore, tmp_path: Path) -> None:
    directory = blocks.directory
    blocks.close()
    directory.rename(tmp_path / "elsewhere")
    directory.write_text("a file")
    for command in (["ls"], ["stats"], ["verify"], ["gc"], ["clear"], ["forget", "--all"]):
        result = call("kv", *command)
        assert (result.code, result.out) == (1, "") and "The KV store cannot be used" in result.err, command


def test_slot_files_are_sent_to_their_own_command(call: Call, tmp_path: Path) -> None:
    slot = tmp_path / "slot.bin"
    slot.write_bytes(b"qsgg" + bytes(100))
    result = call("kv", "import", str(slot))
    assert (result.code, "edge kv import-slot" in result.err) == (2, True)
    result = call("kv", "import-slot", str(slot), app=app_with(MODEL))
    assert (result.code, result.out) == (1, ""), "the fake engine is not llama.cpp"
    assert "slot file cannot be imported" in result.err


def test_a_slot_is_imported_into_its_namespace(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from edge.backends.llamacpp.slot_import import SlotReport

    report = SlotReport("slot-1", (104, 105, 33), 3, 5000, 0.001, 0.034, None)
    monkeypatch.setattr(Assistant, "import_slot", lambda self, path, namespace: report)
    result = call("kv", "import-slot", "a.bin", app=app_with(MODEL))
    assert (result.code, result.out) == (0, "slot-1\n")
    for said in ("It begins: hi!", "3 of 3 tokens", "3.4%", "kv.namespace=slot-1"):
        assert said in result.err
    found = json.loads(call("kv", "import-slot", "a.bin", "--json", app=app_with(MODEL)).out)
    assert (found["namespace"], found["text"], found["tokens"], found["n_tokens"]) == ("slot-1", "hi!", 3, 3)


def test_pins_may_end(call: Call, two: tuple[str, str], blocks: BlockStore) -> None:
    ann, _ = two
    result = call("kv", "pin", ann, "--days", "3")
    assert (result.code, "pinned until 20" in result.err) == (0, True)
    groups = {group["title"]: group for group in json.loads(call("kv", "ls", "--json").out)}
    ends = {group["pinned_until"] for title, group in groups.items() if "Ann" in title}
    assert all(abs(until - time.time() - 3 * 86_400) < 600 for until in ends)
    assert "pinned until" in call("kv", "ls").out
    assert "pinned until" in call("kv", "ls", "--blocks").out
    assert json.loads(call("kv", "pin", ann, "--json").out)["pinned_until"] is None
    assert "pinned until" not in call("kv", "ls").out
    for wrong in ("0", "-1", "nan", "soon"):
        assert call("kv", "pin", ann, "--days", wrong).code == 2


def test_stats_show_the_limits(call: Call, two: tuple[str, str], blocks: BlockStore) -> None:
    blocks.name_model(MODEL, "tiny")
    shown = call("kv", "stats").out
    assert "until its space is needed (kv.max_age_days)" in shown
    assert "model tiny (" in shown
    for name, value in (("max_age_days", "30"), ("max_writes_gb_per_day", "0.00002"), ("model_budgets_gb.tiny", "0.5")):
        assert call("config", "set", f"kv.{name}", value).code == 0
    shown = call("kv", "stats").out
    for said in ("30 days after its last use", "of at most 20.0 kB (kv.max_writes_gb_per_day)", "of at most 500.0 MB in"):
        assert said in shown
    found = json.loads(call("kv", "stats", "--json").out)
    assert (found["max_age_days"], found["max_written_bytes"]) == (30, 20_000)
    assert found["written_today_bytes"] >= 20_000
    assert {(each["name"], each["budget_gb"]) for each in found["models"]} == {("tiny", 0.5)}
    assert "as much as is allowed" in call("doctor", app=app_with(None)).out
    assert call("config", "set", "kv.max_age_days", "-1").code == 2
    assert call("config", "set", "kv.max_age_days", "auto").code == 0


def test_gc_deletes_what_is_too_old(call: Call, two: tuple[str, str]) -> None:
    call("config", "set", "kv.max_age_days", "0")
    result = call("kv", "gc")
    assert result.code == 0
    assert call("kv", "ls").out == ""
