"""The values a block store takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = [
    "BlockInfo",
    "BlockRef",
    "ForgetReport",
    "GcReport",
    "ImportReport",
    "Match",
    "Pending",
    "PlainBlock",
    "StoreStats",
    "VerifyReport",
]


@dataclass(frozen=True, slots=True)
class BlockRef:
    """A stored block that agrees with a query, and where it must stand for its bytes to mean what was asked for.

    Attributes:
        key: its key, 32 bytes.
        parent: the key of the block before it, or the root of its fingerprint and namespace.
        model: the fingerprint.
        namespace: who shares it.
        start: position of its first token.
        n_tokens: how many tokens it holds.
        n_used: how many of them agree with the query; less than `n_tokens` only in the last block of a match.
        size_bytes: of its file.
        prefill_ms: what computing the whole block took.
        origin: "prefill" or "decode".
        tokens: those that agree, packed; `BlockStore.read` compares them with what is in the file.
    """

    key: bytes
    parent: bytes
    model: bytes
    namespace: str
    start: int
    n_tokens: int
    n_used: int
    size_bytes: int
    prefill_ms: float
    origin: str
    tokens: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Match:
    """The longest stored beginning of a query.

    Attributes:
        blocks: in order from position 0; only the last may be used in part.
        n_tokens: how many tokens of the query they cover.
    """

    blocks: tuple[BlockRef, ...] = ()
    n_tokens: int = 0

    @property
    def prefill_ms(self) -> float:
        """What computing the covered tokens took when they were stored."""
        return sum(block.prefill_ms * block.n_used / block.n_tokens for block in self.blocks)

    @property
    def size_bytes(self) -> int:
        """How much has to be read to restore it."""
        return sum(block.size_bytes for block in self.blocks)


@dataclass(frozen=True, slots=True)
class Pending:
    """A block on its way to the disk. Fields as in `seal_block`."""

    key: bytes
    parent: bytes
    root: bytes
    tokens: bytes
    payload: bytes
    model: bytes
    namespace: str
    owner: str
    start: int
    origin: str
    prefill_ms: float

    @property
    def size_bytes(self) -> int:
        """About what it takes in memory and on the disk."""
        return len(self.payload) + 3 * len(self.tokens) + 1024


@dataclass(frozen=True, slots=True)
class PlainBlock:
    """A block outside of any store, as it goes into a bundle and comes out of one.

    Attributes:
        key: what others call it that follow it; another store names it otherwise.
        parent: the key of the block it follows; None at position 0.
        tokens: the token ids it holds.
        payload: what the engine exported.
        model, namespace, start, origin, prefill_ms: as in `BlockRef`.
    """

    key: bytes
    parent: bytes | None
    model: bytes
    namespace: str
    start: int
    tokens: Sequence[int] = field(repr=False)
    payload: bytes | memoryview = field(repr=False)
    origin: str
    prefill_ms: float


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What became of blocks that were imported.

    Attributes:
        n_added: stored now.
        n_known: stored before.
        n_dropped: not stored: no room, or what they follow is not there.
        problem: why the store takes nothing just now, or None.
    """

    n_added: int
    n_known: int
    n_dropped: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """One block as `BlockStore.ls` lists it. Sizes in bytes, `last_used` in unix seconds."""

    key: str
    parent: str
    model: str
    namespace: str
    owners: tuple[str, ...]
    start: int
    n_tokens: int
    size_bytes: int
    prefill_ms: float
    origin: str
    is_encrypted: bool
    is_pinned: bool
    n_children: int
    last_used: float


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What is in a store, and what became of blocks in this process.

    Attributes:
        n_blocks: blocks stored.
        n_tokens: tokens in them.
        size_bytes: disk they take.
        budget_bytes: the most they may take.
        index_bytes: disk the index takes, on top.
        free_bytes: free space of that disk.
        prefill_ms: what computing all blocks took.
        spaces: (fingerprint in hexadecimal, namespace, blocks, bytes of disk).
        n_queued: blocks that wait to be written.
        n_written: by this process.
        n_known: given to `put` and stored already.
        n_dropped: given to `put` and not stored: the queue was full, the disk failed, there was no room, the parent was gone.
        n_evicted: by this process.
        n_lost: found damaged or missing by this process.
    """

    n_blocks: int
    n_tokens: int
    size_bytes: int
    budget_bytes: int
    index_bytes: int
    free_bytes: int
    prefill_ms: float
    spaces: tuple[tuple[str, str, int, int], ...]
    n_queued: int
    n_written: int
    n_known: int
    n_dropped: int
    n_evicted: int
    n_lost: int


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `BlockStore.verify` found: blocks looked at, their bytes, and (key in hexadecimal, reason) of those it dropped."""

    n_checked: int
    size_bytes: int
    damaged: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a look at all files found.

    Attributes:
        n_indexed: files the index did not know, now in it.
        n_removed: files that cannot be used, removed.
        n_missing: blocks whose file was gone, or whose parent was, dropped.
        n_evicted: blocks evicted to keep the budget and the free space.
        n_foreign: entries that are none of ours; left alone, and not counted against the budget.
    """

    n_indexed: int = 0
    n_removed: int = 0
    n_missing: int = 0
    n_evicted: int = 0
    n_foreign: int = 0


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """What `BlockStore.forget` removed: blocks, and bytes of disk."""

    n_blocks: int
    size_bytes: int
