"""The longest stored prefix, against looking at every stored block."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge.kv import lookup
from edge.kv.blocks import Header, pack_tokens
from edge.kv.index import Index
from edge.kv.keys import Keys, entry_bytes
from edge.kv.lookup import Step, longest_prefix
from edge.kv.options import StoreOptions
from edge.kv.rows import Change, View

MODEL = b"m" * 32
KEYS = Keys(b"s" * 32)
OPTIONS = StoreOptions(budget_bytes=1 << 30)


class Forest:
    """An index and, beside it, the plain list of what is in it: tokens from the root to the end of each block -> its key."""

    def __init__(self, index: Index, *, encrypted: bool) -> None:
        self.index, self.encrypted = index, encrypted
        self.root = KEYS.root(MODEL, "ns", encrypted=encrypted)
        self.blocks: dict[bytes, tuple[int, ...]] = {self.root: ()}

    def add(self, change: Change, parent: bytes, tokens: Sequence[int]) -> bytes:
        packed = pack_tokens(tokens)
        key = KEYS.block(MODEL, "ns", parent, packed)
        start = len(self.blocks[parent])
        path = KEYS.path(parent, packed, encrypted=self.encrypted)
        header = Header(
            key, parent, MODEL, "ns", "", start, len(tokens), path, 10, self.encrypted, "prefill", 1.0, KEYS.id, b"n" * 12, 704
        )
        change.insert(header, self.root)
        self.blocks[key] = (*self.blocks[parent], *tokens)
        return key

    def find(
        self, view: View, query: Sequence[int], *, partial: bool = True, lost: frozenset[bytes] = frozenset()
    ) -> list[Step]:
        return longest_prefix(
            view,
            self.root,
            pack_tokens(query),
            path_of=lambda parent, tokens: KEYS.path(parent, tokens, encrypted=self.encrypted),
            entry_bytes=entry_bytes(encrypted=self.encrypted),
            is_usable=lambda key: key not in lost,
            partial=partial,
        )

    def check(self, view: View, query: Sequence[int], *, partial: bool = True) -> int:
        """Compare with looking at every block, and check that what was found is a chain that says what the query says."""
        steps = self.find(view, query, partial=partial)
        parent, start = self.root, 0
        for step in steps:
            assert step.row.parent == parent and step.row.start == start
            assert 1 <= step.n_used <= step.row.n_tokens
            assert list(self.blocks[step.row.key][start : start + step.n_used]) == list(query[start : start + step.n_used])
            parent, start = step.row.key, start + step.n_used
        assert all(step.n_used == step.row.n_tokens for step in (steps[:-1] if partial else steps))
        assert start == max(self._shared(path, query, partial=partial) for path in self.blocks.values())
        return start

    @staticmethod
    def _shared(path: Sequence[int], query: Sequence[int], *, partial: bool) -> int:
        n_shared = 0
        while n_shared < min(len(path), len(query)) and path[n_shared] == query[n_shared]:
            n_shared += 1
        return n_shared if partial or n_shared == len(path) else 0


@contextmanager
def forest(*, encrypted: bool = False) -> Iterator[Forest]:
    with tempfile.TemporaryDirectory() as directory:
        index = Index(Path(directory), KEYS.id, OPTIONS)
        try:
            yield Forest(index, encrypted=encrypted)
        finally:
            index.close()


def spread(parents: Sequence[int], runs: Sequence[Sequence[int]], grown: Forest, change: Change) -> None:
    """Hang each run below one of the blocks that are there already."""
    keys = [grown.root]
    for parent, run in zip(parents, runs, strict=True):
        key = grown.add(change, keys[parent % len(keys)], run)
        keys.append(key)


@pytest.fixture(scope="module")
def shared_index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    index = Index(tmp_path_factory.mktemp("index"), KEYS.id, OPTIONS)
    yield index
    index.close()


few = st.integers(0, 2)  # few different tokens, so that much is shared
runs = st.lists(few, min_size=1, max_size=5)


@settings(deadline=None, max_examples=150)
@given(
    blocks=st.lists(st.tuples(st.integers(0, 10**6), runs), max_size=40),
    queries=st.lists(st.lists(few, max_size=14), min_size=1, max_size=12),
    partial=st.booleans(),
    encrypted=st.booleans(),
)
def test_it_finds_what_looking_at_every_block_finds(
    shared_index: Index, blocks: list[tuple[int, list[int]]], queries: list[list[int]], partial: bool, encrypted: bool
) -> None:
    grown = Forest(shared_index, encrypted=encrypted)
    with shared_index.write() as change:
        spread([parent for parent, _ in blocks], [run for _, run in blocks], grown, change)
        for query in [*queries, *(list(path) for path in grown.blocks.values())]:
            grown.check(change, query, partial=partial)
        change.sql.execute("DELETE FROM block")


@pytest.mark.parametrize("encrypted", [False, True])
def test_blocks_longer_than_the_first_look(encrypted: bool) -> None:
    rng = random.Random(1)
    long = [rng.randrange(1000) for _ in range(3000)]
    with forest(encrypted=encrypted) as grown, grown.index.write() as change:
        for cut in (1, 159, 160, 161, 300, 640, 641, 2560, 2999):
            grown.add(change, grown.root, [*long[:cut], 5000 + cut])
        below = grown.add(change, grown.root, long[:2000])
        grown.add(change, below, long[2000:2700])
        for length in (0, 1, 100, 159, 160, 161, 299, 639, 640, 641, 1999, 2000, 2001, 2300, 2559, 2560, 2700, 3000):
            assert grown.check(change, long[:length]) == min(length, 2999)
            grown.check(change, [*long[:length], 7], partial=False)


def test_a_short_block_with_much_below_it_beats_a_long_one() -> None:
    with forest() as grown, grown.index.write() as change:
        grown.add(change, grown.root, [1, 2, 3, 4, 5, 6])
        parent = grown.root
        for token in range(1, 11):
            parent = grown.add(change, parent, [token])
        assert grown.check(change, list(range(1, 12))) == 10
        assert [step.n_used for step in grown.find(change, list(range(1, 12)))] == [1] * 10
        assert [step.n_used for step in grown.find(change, [1, 2, 3, 4, 5, 6])] == [6]


def test_a_block_that_cannot_be_used_is_passed_over() -> None:
    with forest() as grown, grown.index.write() as change:
        short = grown.add(change, grown.root, [1, 2])
        long = grown.add(change, grown.root, [1, 2, 3, 4])
        below = grown.add(change, long, [5, 6])
        query = [1, 2, 3, 4, 5, 6]
        assert [step.row.key for step in grown.find(change, query)] == [long, below]
        assert [step.row.key for step in grown.find(change, query, lost=frozenset([below]))] == [long]
        assert [step.row.key for step in grown.find(change, query, lost=frozenset([long]))] == [short]
        assert grown.find(change, query, lost=frozenset([long, short])) == []


class Counted(View):
    """Counts the questions put to the index."""

    n_questions = 0

    def at_or_before(self, parent: bytes, path: bytes):  # type: ignore[no-untyped-def]
        self.n_questions += 1
        return super().at_or_before(parent, path)

    def after(self, parent: bytes, path: bytes):  # type: ignore[no-untyped-def]
        self.n_questions += 1
        return super().after(parent, path)


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_number_of_questions_does_not_grow_with_the_number_of_siblings(encrypted: bool) -> None:
    rng = random.Random(2)
    system = [rng.randrange(50000) for _ in range(100)]
    counts = []
    with forest(encrypted=encrypted) as grown:
        for n_more in (10, 90, 900):
            with grown.index.write() as change:
                for _ in range(n_more):
                    grown.add(change, grown.root, [*system, *(rng.randrange(50000) for _ in range(28))])
            worst = 0
            with grown.index.read() as view:
                for path in rng.sample(list(grown.blocks.values())[1:], 4):
                    for query in ([*path, 1, 2, 3], [*path[:110], 60000], [*system, 60000], [60000]):
                        counted = Counted(view.sql)
                        grown.check(counted, query)
                        worst = max(worst, counted.n_questions)
            counts.append(worst)
    # Neighbours share ever more tokens as there are more of them, which can take one step back each.
    assert counts[-1] <= 12, counts


def test_the_walk_is_bounded_where_the_same_tokens_were_cut_in_very_many_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MAX_VISITS", 50)
    with forest() as grown:
        with grown.index.write() as change:
            layer = [grown.root]
            for _ in range(9):  # every way of cutting nine equal tokens into ones and twos, and a few more
                layer = [grown.add(change, parent, run) for parent in layer for run in ([1], [1, 1])]
        with grown.index.read() as view:
            counted = Counted(view.sql)
            steps = grown.find(counted, [1] * 100)
    assert counted.n_questions < 50 * 6
    assert sum(step.n_used for step in steps) >= 9
