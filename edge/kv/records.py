"""Values that a block store takes and returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edge.kv.blocks import NewBlock

__all__ = [
    "SLOT_OWNER",
    "WARM_OWNER",
    "BlockInfo",
    "BlockRef",
    "ForgetReport",
    "GcReport",
    "ImportReport",
    "Match",
    "Pending",
    "PlainBlock",
    "StoreStats",
    "Usage",
    "VerifyReport",
]

SLOT_OWNER = "slot:"
"""Begins the owner of blocks that were imported from a slot file, before their namespace."""
WARM_OWNER = "warm:"
"""Begins the owner of blocks that were prefilled ahead, before the name that the user gave them."""


@dataclass(frozen=True, slots=True)
class BlockRef:
    """A stored block that agrees with a query.

    Attributes:
        key: its key, 32 bytes.
        parent: the key of the block before it, or the root of its fingerprint and namespace.
        model: the fingerprint.
        namespace: who shares it.
        start: position of its first token.
        n_tokens: tokens it holds.
        n_used: tokens that agree with the query; less than `n_tokens` only in the last block of a match.
        prefill_ms: time that computing the whole block took.
        tokens: those that agree, packed; `BlockStore.read` compares them with the file.
    """

    key: bytes
    parent: bytes
    model: bytes
    namespace: str
    start: int
    n_tokens: int
    n_used: int
    prefill_ms: float
    tokens: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Match:
    """The longest stored prefix of a query.

    Attributes:
        blocks: in order from position 0; only the last may be used in part.
        n_tokens: tokens of the query that they cover.
    """

    blocks: tuple[BlockRef, ...] = ()
    n_tokens: int = 0

    @property
    def prefill_ms(self) -> float:
        """Time that computing the covered tokens took when they were stored."""
        return sum(block.prefill_ms * block.n_used / block.n_tokens for block in self.blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending(NewBlock):
    """A block that waits to be written.

    Attributes:
        key: its key.
        root: of its fingerprint and namespace.
        is_allowed: False if the day's limit is reached: it counts only if it is stored already, and needs no payload.
    """

    key: bytes
    root: bytes
    is_allowed: bool = True

    @property
    def size_bytes(self) -> int:
        """Approximate size in memory and on disk."""
        return len(self.payload) + 3 * len(self.tokens) + 1024


@dataclass(frozen=True, slots=True)
class PlainBlock:
    """A block outside of any store, as bundles carry it.

    Attributes:
        key: identifies it to the blocks that follow it; another store gives it another key.
        parent: the key of the block it follows; None at position 0.
        tokens: its token ids.
        payload: exported by the engine.
        model, namespace, start, origin, prefill_ms: as in `NewBlock`.
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
    """Result of an import of blocks.

    Attributes:
        n_added: blocks stored by it.
        n_known: blocks stored before.
        n_dropped: blocks not stored, for lack of room or of the block they follow.
        problem: why the store takes nothing at present, or None.
    """

    n_added: int
    n_known: int
    n_dropped: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class BlockInfo:
    """One block as `BlockStore.ls` lists it. Sizes in bytes, `last_used` and `pinned_until` in unix seconds."""

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
    pinned_until: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Blocks that the same owners use, added up.

    Attributes:
        model: the fingerprint in hexadecimal.
        namespace: who shares them.
        owners: who uses them, sorted.
        n_blocks, n_tokens: their number.
        size_bytes: of their files.
        prefill_ms: time that computing them took.
        last_used: unix seconds.
        n_pinned: how many are pinned.
        pinned_until: unix seconds when the last of their pins ends; None if one never does, or nothing is pinned.
    """

    model: str
    namespace: str
    owners: tuple[str, ...]
    n_blocks: int
    n_tokens: int
    size_bytes: int
    prefill_ms: float
    last_used: float
    n_pinned: int
    pinned_until: float | None


@dataclass(frozen=True, slots=True)
class StoreStats:
    """Content of a store, and counts of this process.

    Attributes:
        n_blocks: blocks stored.
        n_tokens: tokens in them.
        size_bytes: disk they take.
        budget_bytes: most disk they may take.
        index_bytes: disk of the index, on top.
        free_bytes: free space of that disk.
        prefill_ms: time that computing all blocks took.
        spaces: (fingerprint in hexadecimal, namespace, blocks, bytes of disk).
        n_queued: blocks that wait to be written.
        n_written: blocks written by this process.
        n_known: blocks given to `put` that were stored already.
        n_dropped: blocks given to `put` and not stored: queue full, disk failed, no room, or no parent.
        n_evicted: blocks evicted by this process.
        n_lost: blocks that this process found damaged or missing.
        written_bytes: bytes of block files written today (UTC) by all processes.
        names: names of models by fingerprint in hexadecimal, as far as they are known.
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
    written_bytes: int
    names: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of `BlockStore.verify`: blocks read, their bytes, and (key in hexadecimal, reason) of those it dropped."""

    n_checked: int
    size_bytes: int
    damaged: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class GcReport:
    """Result of a scan of all files.

    Attributes:
        n_indexed: files added to the index.
        n_removed: unusable files removed.
        n_missing: blocks dropped because their file or their parent was gone.
        n_evicted: blocks evicted to keep the budget and the free space.
        n_foreign: entries that are not edge's; left alone, and not counted against the budget.
        n_expired: blocks that were too old, or beyond the budget of their model.
    """

    n_indexed: int = 0
    n_removed: int = 0
    n_missing: int = 0
    n_evicted: int = 0
    n_foreign: int = 0
    n_expired: int = 0


@dataclass(frozen=True, slots=True)
class ForgetReport:
    """Result of `BlockStore.forget`: blocks removed, and their bytes of disk.

    Attributes:
        is_in_log: another process was reading, so the log of the index still holds their tokens. The store empties it once
            that process has finished.
    """

    n_blocks: int
    size_bytes: int
    is_in_log: bool = False
