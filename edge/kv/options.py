"""Options of a block store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edge.kv.keys import Secret

__all__ = ["StoreOptions"]


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Size, privacy and patience of a block store.

    Attributes:
        budget_bytes: most disk that block files may take. The index comes on top, about 1.5 kB a block.
        min_free_bytes: free disk space that the store never takes, and gives back by evicting.
        max_age_s: blocks that nobody used for so long are deleted; None sets no limit.
        model_budget_bytes: most disk that the blocks of one model may take; None sets no limit.
        model_budgets: the same for models by name.
        max_written_bytes: most that may be written on a day (UTC), by all processes; None sets no limit. From half of it on
            only blocks are written that were reused already.
        encrypt: encrypt new blocks and remove plain ones. Blocks are authenticated either way.
        secret: 32 bytes stored elsewhere; None stores random ones in a private file of the directory; KEYRING also looks in
            the operating system's keyring, and puts the secret of a new store that encrypts there.
        sync: fsync each block file before it gets its name. Without it a power cut loses more of the last blocks; a torn
            block is found when it is read, either way.
        queue_bytes: most memory for blocks that wait to be written; more are dropped.
        retry_s: pause after the disk failed.
        busy_timeout_s: longest wait for other processes that change the index. They need milliseconds, but a loaded machine
            may stop them in the middle.
        turn_timeout_s: the same inside a turn.
        drop_timeout_s: the same when a turn finds a damaged block; where that is not enough, the thread removes it later.
        open_timeout_s: longest wait for another process that opens the store, in the background.
        open_wait_s: the same, or for a slow disk, in the foreground; without an open store nothing is found or stored.
        read_timeout_s: longest wait of a turn for the disk, for each thing it asks; 0 waits as long as it takes.
        log_bytes: size of the index's log that starts a checkpoint.
        clock: unix seconds; for people and the time of the next scan, never for the order of eviction.
        timer: monotonic seconds; for `retry_s` and the pauses between two looks for old blocks.
    """

    budget_bytes: int
    min_free_bytes: int = 1 << 30
    max_age_s: float | None = None
    model_budget_bytes: int | None = None
    model_budgets: Mapping[str, int] = field(default_factory=dict)
    max_written_bytes: int | None = None
    encrypt: bool = False
    secret: Secret = None
    sync: bool = True
    queue_bytes: int = 64 << 20
    retry_s: float = 60.0
    busy_timeout_s: float = 60.0
    turn_timeout_s: float = 0.05
    drop_timeout_s: float = 1.0
    open_timeout_s: float = 10.0
    open_wait_s: float = 0.5
    read_timeout_s: float = 2.0
    log_bytes: int = 4 << 20
    clock: Callable[[], float] = time.time
    timer: Callable[[], float] = time.monotonic

    @property
    def has_model_budgets(self) -> bool:
        """Return whether a model has a budget of its own."""
        return self.model_budget_bytes is not None or bool(self.model_budgets)
