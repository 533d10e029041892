"""Comparing what is restored with a cold run finds blocks that are wrong, and says so of those that are right."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.fake import FakeBackend
from edge.errors import UsageError
from edge.kv.store import BlockStore, StoreOptions
from edge.kv.verify import compare, longest_path
from edge.types import Sampling

MODEL = b"m" * 32


@pytest.fixture
def blocks(tmp_path: Path) -> Iterator[BlockStore]:
    with BlockStore(tmp_path / "kv", StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, sync=False)) as store:
        yield store


def chat(blocks: BlockStore) -> tuple[Assistant, list[str]]:
    ai = Assistant(FakeBackend(), disk=DiskCache(blocks, MODEL))
    ids = []
    for number in range(3):
        conversation = ai.conversation(system="Be brief. " * 30)
        conversation.send(f"This is question {number} of three, a long one", sampling=Sampling(temperature=0)).wait()
        ids.append(conversation.id)
    blocks.flush()
    return ai, ids


def test_what_is_restored_is_what_was_computed(blocks: BlockStore) -> None:
    ai, ids = chat(blocks)
    seen: list[tuple[int, int]] = []
    with ai:
        checks = ai.check_cache(2, on_progress=lambda done, total: seen.append((done, total)))
        assert len(checks) == 2
        assert {check.owner for check in checks} < set(ids)
        for check in checks:
            assert check.n_tokens > 400
            assert 0 < check.n_decoded < check.n_tokens
            assert (check.max_difference, check.kl, check.is_same_choice) == (0, 0, True)
        assert seen == [(0, 2), (1, 2)]
        assert len(ai.check_cache(9)) == 3


def test_bytes_of_another_conversation_show(blocks: BlockStore) -> None:
    ai, ids = chat(blocks)
    ai.close()
    with BlockStore(blocks.directory, StoreOptions(budget_bytes=1 << 30, min_free_bytes=0)) as again:
        first, second = (longest_path(again.export_blocks(id), MODEL, 4096) for id in ids[:2])
        assert longest_path(again.export_blocks(ids[0]), b"other model" * 3, 4096) == []
        assert len(longest_path(again.export_blocks(ids[0]), MODEL, 200)) == 1
    backend = FakeBackend()
    wrong = [*first[:-1], replace(first[-1], payload=second[-1].payload)]
    check = compare(backend, wrong, "x", chunk_size=64)
    assert check.max_difference > 0
    assert check.kl > 0
    assert backend.length(0) == 0


def test_nothing_to_check_is_said(blocks: BlockStore) -> None:
    with Assistant(FakeBackend()) as ai, pytest.raises(UsageError, match="Nothing is stored"):
        ai.check_cache()
    with Assistant(FakeBackend(), disk=DiskCache(blocks, MODEL)) as ai, pytest.raises(UsageError, match="has nothing"):
        ai.check_cache()
