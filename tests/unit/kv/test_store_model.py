"""The block store against an obvious model: a dictionary of blocks, searched by looking at all of them.

The model also predicts what is evicted (costs are equal here, so it is the leaf that was used longest ago), what forgetting
an owner removes, and that closing and opening again changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge.kv.blocks import fingerprint
from edge.kv.store import BlockStore, StoreOptions
from tests.prove import proof_size

MODELS = [fingerprint({"weights": name}) for name in ("a", "b")]
NAMESPACES = ("shared", "private")
DISK_BLOCK = 4096
runs = st.lists(st.integers(0, 2), min_size=1, max_size=4)
spaces = st.tuples(st.sampled_from(MODELS), st.sampled_from(NAMESPACES))
owners = st.sampled_from([None, "ann", "bob"])
choices = st.integers(0, 10**6)


def payload_of(space: tuple[bytes, str], tokens: tuple[int, ...]) -> bytes:
    return hashlib.sha256(repr((space, tokens)).encode()).digest() * (1 + len(tokens) % 3)


@dataclass
class Known:
    """A block as the model knows it; `tokens` are all from position 0 to its end."""

    space: tuple[bytes, str]
    parent: bytes | None
    start: int
    tokens: tuple[int, ...]
    used: int
    owners: set[str] = field(default_factory=set)
    is_pinned: bool = False


class StoreMachine(RuleBasedStateMachine):
    @initialize(encrypt=st.booleans(), n_blocks=st.integers(3, 10), parents=st.lists(choices, min_size=10, max_size=10))
    def begin(self, encrypt: bool, n_blocks: int, parents: list[int]) -> None:
        self.log = logging.getLogger("edge.kv")
        self.level = self.log.level
        self.log.setLevel(logging.ERROR)  # damage is reported, and damaging is what a rule does
        self.directory = Path(tempfile.mkdtemp())
        self.encrypt, self.n_blocks = encrypt, n_blocks
        self.clock = 0
        self.model: dict[bytes, Known] = {}
        self.leases: list[tuple[bytes, ExitStack]] = []
        self.open()
        for number, choice in enumerate(parents[:n_blocks]):  # begin with a full store, so that what follows evicts
            parent = self.pick(choice) if self.model and choice % 3 else None
            space = self.model[parent].space if parent else (MODELS[0], NAMESPACES[0])
            self.put_block(space, parent, [number % 3, number // 3], None)

    def open(self) -> None:
        self.store = BlockStore(
            self.directory,
            StoreOptions(
                budget_bytes=self.n_blocks * DISK_BLOCK,
                min_free_bytes=0,
                encrypt=self.encrypt,
                secret=bytes(32),  # a random one would name, and order, blocks differently each time
                sync=False,
                clock=lambda: 1000.0,  # a clock that stands still must change nothing
            ),
        )

    def teardown(self) -> None:
        if hasattr(self, "level"):
            self.log.setLevel(self.level)
        if hasattr(self, "store"):
            self.store.close()
            shutil.rmtree(self.directory)

    def settle(self) -> None:
        assert self.store.flush(60.0)
        assert self.store.problem is None

    def pick(self, choice: int) -> bytes:
        return sorted(self.model)[choice % len(self.model)]

    def children(self, key: bytes) -> list[bytes]:
        return [other for other, known in self.model.items() if known.parent == key]

    def remove_subtree(self, key: bytes) -> None:
        for child in self.children(key):
            self.remove_subtree(child)
        del self.model[key]

    def put_block(self, space: tuple[bytes, str], parent: bytes | None, run: list[int], owner: str | None) -> None:
        before = self.model[parent].tokens if parent is not None else ()
        tokens = (*before, *run)
        key = self.store.put(
            parent,
            run,
            payload_of(space, tokens),
            fingerprint=space[0],
            namespace=space[1],
            start=len(before),
            owner=owner,
        )
        assert key is not None
        self.settle()
        self.clock += 1
        if key not in self.model:
            kept = {parent} | {leased for leased, _ in self.leases}
            while len(self.model) >= self.n_blocks:
                leaves = [
                    (known.used, leaf)
                    for leaf, known in self.model.items()
                    if not self.children(leaf) and not known.is_pinned and leaf not in kept
                ]
                if not leaves:
                    return  # no room: the store drops the block
                del self.model[min(leaves)[1]]
            self.model[key] = Known(space, parent, len(before), tokens, self.clock)
        self.model[key].used = self.clock
        if owner:
            self.model[key].owners.add(owner)

    @rule(space=spaces, run=runs, owner=owners)
    def put_first(self, space: tuple[bytes, str], run: list[int], owner: str | None) -> None:
        self.put_block(space, None, run, owner)

    @precondition(lambda self: self.model)
    @rule(choice=choices, run=runs, owner=owners)
    def put_after(self, choice: int, run: list[int], owner: str | None) -> None:
        parent = self.pick(choice)
        self.put_block(self.model[parent].space, parent, run, owner)

    @rule(space=spaces, run=runs)
    def put_after_nothing(self, space: tuple[bytes, str], run: list[int]) -> None:
        self.store.put(b"?" * 32, run, b"lost", fingerprint=space[0], namespace=space[1], start=7)
        self.settle()

    def check_match(self, space: tuple[bytes, str], query: list[int], partial: bool) -> None:
        def shared(known: Known) -> int:
            same = 0
            while same < min(len(known.tokens), len(query)) and known.tokens[same] == query[same]:
                same += 1
            return same if partial or same == len(known.tokens) else 0

        expected = max((shared(known) for known in self.model.values() if known.space == space), default=0)
        match = self.store.match(*space, query, partial=partial)
        assert match.n_tokens == expected
        end = 0
        for ref in match.blocks:
            known = self.model[ref.key]
            assert (ref.start, known.space) == (end, space)
            end += ref.n_used
            assert list(known.tokens[:end]) == query[:end]
            payload = self.store.read(ref)
            assert payload is not None and bytes(payload) == payload_of(space, known.tokens)
        assert end == match.n_tokens

    @rule(space=spaces, query=st.lists(st.integers(0, 2), max_size=10), partial=st.booleans())
    def match_anything(self, space: tuple[bytes, str], query: list[int], partial: bool) -> None:
        self.check_match(space, query, partial)

    @precondition(lambda self: self.model)
    @rule(choice=choices, more=st.lists(st.integers(0, 2), max_size=4), drop=st.integers(0, 3), partial=st.booleans())
    def match_something_known(self, choice: int, more: list[int], drop: int, partial: bool) -> None:
        known = self.model[self.pick(choice)]
        self.check_match(known.space, [*known.tokens[: len(known.tokens) - drop], *more], partial)

    @precondition(lambda self: self.model)
    @rule(choice=choices, owner=owners)
    def touch_path(self, choice: int, owner: str | None) -> None:
        path = [self.pick(choice)]
        while (parent := self.model[path[0]].parent) is not None:
            path.insert(0, parent)
        self.store.touch([*path, b"unknown" * 4 + b"????"], owner=owner)
        self.settle()
        for key in path:
            self.clock += 1
            self.model[key].used = self.clock
            if owner:
                self.model[key].owners.add(owner)

    @precondition(lambda self: self.model)
    @rule(choice=choices, is_pinned=st.booleans())
    def pin(self, choice: int, is_pinned: bool) -> None:
        key = self.pick(choice)
        (self.store.pin if is_pinned else self.store.unpin)(key)
        self.settle()
        self.model[key].is_pinned = is_pinned

    @precondition(lambda self: self.model and len(self.leases) < 3)
    @rule(choice=choices)
    def lease(self, choice: int) -> None:
        known = self.model[self.pick(choice)]
        match = self.store.match(*known.space, list(known.tokens))
        stack = ExitStack()
        stack.enter_context(self.store.lease(match))
        self.leases.append((match.blocks[-1].key, stack))

    @precondition(lambda self: self.leases)
    @rule(choice=choices)
    def release(self, choice: int) -> None:
        self.leases.pop(choice % len(self.leases))[1].close()
        self.settle()

    @rule(owner=st.sampled_from(["ann", "bob"]))
    def forget(self, owner: str) -> None:
        report = self.store.forget(owner)
        gone = 0
        for key in sorted(self.model, key=lambda key: -self.model[key].start):
            known = self.model[key]
            if known.owners == {owner} and not self.children(key) and not known.is_pinned:
                del self.model[key]
                gone += 1
        for known in self.model.values():
            known.owners.discard(owner)
        assert (report.n_blocks, report.size_bytes) == (gone, gone * DISK_BLOCK)

    @precondition(lambda self: self.model)
    @rule(choice=choices, at=st.integers(0, 10**6), bit=st.integers(0, 7))
    def damage(self, choice: int, at: int, bit: int) -> None:
        key = self.pick(choice)
        known = self.model[key]
        name = key.hex()
        path = self.directory / "blocks" / name[:2] / name[2:]
        data = bytearray(path.read_bytes())
        data[at % len(data)] ^= 1 << bit
        path.write_bytes(data)
        ref = next(ref for ref in self.store.match(*known.space, list(known.tokens), partial=False).blocks if ref.key == key)
        assert self.store.read(ref) is None
        assert not path.exists()
        self.remove_subtree(key)

    @rule()
    def reopen(self) -> None:
        while self.leases:
            self.leases.pop()[1].close()
        self.store.close()
        self.open()

    @rule()
    def look_around(self) -> None:
        report = self.store.gc()
        assert (report.n_indexed, report.n_removed, report.n_missing, report.n_evicted, report.n_foreign) == (0, 0, 0, 0, 0)
        assert self.store.verify().damaged == ()

    @rule()
    def lose_the_index(self) -> None:
        """Lose what only the index knew, the order of eviction. Blocks, pins and owners stay."""
        while self.leases:
            self.leases.pop()[1].close()
        self.store.close()
        for path in self.directory.glob("index-*"):
            path.unlink()
        self.open()
        self.settle()
        listed = {bytes.fromhex(info.key): info for info in self.store.ls()}
        assert listed.keys() == self.model.keys()
        # From here on the order of eviction is the store's: made by use.
        for key in sorted(self.model, key=lambda key: (self.model[key].start, key)):
            self.clock += 1
            self.model[key].used = self.clock
            self.store.touch([key])
        self.settle()

    @rule()
    def clear(self) -> None:
        assert self.store.clear() == len(self.model)
        self.model.clear()

    @invariant()
    def both_hold_the_same(self) -> None:
        if not hasattr(self, "store"):
            return
        listed = {bytes.fromhex(info.key): info for info in self.store.ls()}
        assert listed.keys() == self.model.keys()
        for key, known in self.model.items():
            info = listed[key]
            assert (bytes.fromhex(info.model), info.namespace) == known.space
            assert (info.start, info.start + info.n_tokens) == (known.start, len(known.tokens))
            assert (set(info.owners), info.is_pinned) == (known.owners, known.is_pinned)
            assert info.n_children == len(self.children(key))
        stats = self.store.stats()
        assert stats.n_blocks == len(self.model)
        assert stats.n_tokens == sum(len(known.tokens) - known.start for known in self.model.values())
        assert stats.size_bytes == len(self.model) * DISK_BLOCK <= stats.budget_bytes
        assert {path.name for path in self.directory.glob("blocks/*/*")} == {key.hex()[2:] for key in self.model}


TestStore = pytest.mark.prove(StoreMachine.TestCase)
TestStore.settings = settings(
    max_examples=proof_size(15, 100), stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
