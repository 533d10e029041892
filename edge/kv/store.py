"""Block store: KV cache on disk, found by its tokens, written behind the reply, bounded, verified, private.

A prompt that shares a prefix with anything this device has prefilled finds it here, in this process or another, also after a
restart. The store knows nothing of engines: payloads are opaque bytes (see blocks.py for the file of a block, index.py for the
search, disk.py for what happens when processes meet or die).

No failure of the disk raises into a turn: `match` finds nothing, `read` returns None, `put` drops, and `problem` says why.
Calls that people make (manage.py) raise StorageError instead.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edge.kv.blocks import BlockDamaged, pack_tokens
from edge.kv.carry import add_blocks
from edge.kv.disk import Disk
from edge.kv.entries import is_transient
from edge.kv.index import explain
from edge.kv.manage import ManagedStore
from edge.kv.options import StoreOptions
from edge.kv.records import (
    BlockRef,
    GcReport,
    ImportReport,
    Match,
    Pending,
    PlainBlock,
)
from edge.names import import_namespace

__all__ = ["BlockRef", "BlockStore", "GcReport", "Match", "StoreOptions"]

_log = logging.getLogger("edge.kv")
_IMPORT_TIMEOUT_S = 600.0
_MOST_AHEAD = 64


class BlockStore(ManagedStore):
    """A directory of blocks. Thread-safe; several processes may use one directory.

    Args:
        directory: created if it does not exist; private (0700, files 0600).
        options: its size, privacy and patience.
    """

    def __init__(self, directory: Path | str, options: StoreOptions) -> None:
        super().__init__(Path(directory), options)
        self._ahead: list[bytes] = []

    @property
    def problem(self) -> str | None:
        """Why nothing is stored at present, as the end of a sentence; None once a write, or opening it, has worked again."""
        return self._background.problem

    @property
    def is_paused(self) -> bool:
        """The disk failed, and it is too early to try again."""
        return self._background.is_paused

    def match(self, fingerprint: bytes, namespace: str, tokens: Sequence[int], *, partial: bool = True) -> Match:
        """Find the longest stored prefix of a token sequence.

        Args:
            fingerprint: of model and engine, 32 bytes; see `edge.kv.blocks.fingerprint`.
            namespace: only its blocks are found.
            tokens: token ids from position 0.
            partial: the first tokens of a block count when the rest differs. False for engines whose state cannot be truncated;
                they use only the payload of a match's last block.

        Returns:
            Blocks to read in order; empty if nothing is found or the store is off.
        """
        disk = self._background.disk
        if disk is None or not tokens:
            return Match()
        packed = pack_tokens(tokens)
        try:
            lost = self._background.lost.keys()
            return self._background.reader.call(lambda: disk.match(fingerprint, namespace, packed, lost, partial=partial))
        except Exception as error:  # noqa: BLE001 (nothing in a cache ends a chat)
            self._background.fail(error, disk)
            return Match()

    def warm_up(self) -> None:
        """Announce turns: the background thread does beforehand what the first one would wait for."""
        self._background.warm_up()

    def prefetch(self, refs: Iterable[BlockRef]) -> None:
        """Announce reads: where the system can, it loads these blocks in the background."""
        # The next `read` asks for them: it does not wait for ever.
        self._ahead = [*self._ahead, *(ref.key for ref in refs)][-_MOST_AHEAD:]

    def read(self, ref: BlockRef) -> memoryview | None:
        """Return the payload of a block, every byte of its file verified.

        Args:
            ref: from `match`.

        Returns:
            The bytes given to `put`; None if the block is damaged, missing, foreign or already evicted. A damaged block is
            dropped with its descendants and logged once. Compute these tokens and all after them.
        """
        disk = self._background.disk
        if disk is None or ref.key in self._background.lost:
            return None
        ahead, self._ahead = self._ahead, []

        def load() -> memoryview:
            for key in ahead:
                disk.files.prefetch(key)
            return disk.load(ref)

        try:
            return self._background.reader.call(load)
        except TimeoutError as error:
            self._background.fail(error, disk)
        except BlockDamaged as damage:
            self._lose(disk, ref, str(damage))
        except MemoryError:
            _log.warning("KV block %s is computed again: there is too little memory to read it", ref.key.hex()[:12])
        except OSError as error:
            if not is_transient(error):
                self._lose(disk, ref, explain(error))
        except Exception as error:  # noqa: BLE001 (nothing in a cache ends a chat)
            self._background.fail(error, disk)
        return None

    def has(self, key: bytes) -> bool:
        """Return whether a block is stored or waits to be written. Otherwise nothing after it can be stored."""
        disk = self._background.disk
        if disk is None or self._background.is_waiting(key):
            return disk is not None
        try:
            return self._background.reader.call(lambda: disk.has(key))
        except Exception as error:  # noqa: BLE001 (nothing in a cache ends a chat)
            self._background.fail(error, disk)
            return False

    def put(
        self,
        parent: bytes | None,
        tokens: Sequence[int],
        payload: bytes,
        *,
        fingerprint: bytes,
        namespace: str,
        start: int,
        prefill_ms: float = 0.0,
        origin: str = "prefill",
        owner: str | None = None,
        is_reused: bool = True,
    ) -> bytes | None:
        """Queue a block to be written in the background. Never waits for the disk.

        Args:
            parent: the key of the block that ends where this one starts; None at position 0.
            tokens: its token ids, at least one.
            payload: exported by the engine. Not copied if it is `bytes`.
            fingerprint: as for `match`.
            namespace: as for `match`.
            start: position of its first token.
            prefill_ms: time that computing it took; blocks that save more per byte stay longer.
            origin: "prefill" or "decode".
            owner: who uses it, for `forget`; usually a conversation's id.
            is_reused: it was used more than once, or is wanted; see `StoreOptions.max_written_bytes`.

        Returns:
            Its key, the parent of what follows; also if it is stored already. None if it was dropped (the store is off, the
            queue is full, `parent` is None and `start` is not 0): then nothing after it can be stored. What is dropped later,
            for lack of room or since the day's limit is reached, is not in the store (`has`).

        Raises:
            UsageError: a block cannot hold one of the arguments.
        """
        disk = self._background.disk
        if disk is None:
            self._background.n_dropped += 1
            return None
        try:
            root = disk.root(fingerprint, namespace)
            packed = pack_tokens(tokens)
            before = root if start == 0 else parent or root
            pending = Pending(
                key=disk.keys.block(fingerprint, namespace, before, packed), root=root, parent=before, tokens=packed,
                payload=bytes(payload), model=fingerprint, namespace=namespace, owner=owner or "", start=start, origin=origin,
                prefill_ms=prefill_ms,
            )  # fmt: skip
            if not self.takes(pending.size_bytes, is_reused=is_reused):
                pending = replace(pending, payload=b"", is_allowed=False)
        except MemoryError:
            self._background.n_dropped += 1
            return None
        if parent is None and start > 0:
            self._background.n_dropped += 1
            return None
        return pending.key if self._background.put(pending) else None

    def takes(self, n_bytes: int, *, is_reused: bool = True) -> bool:
        """Return whether the day's limit allows to write so many bytes more; see `StoreOptions.max_written_bytes`."""
        return self._background.takes(n_bytes, is_reused=is_reused)

    def touch(self, keys: Iterable[bytes], *, owner: str | None = None) -> None:
        """Note a use of blocks. Written in the background, many at a time.

        Args:
            keys: of blocks, parents first.
            owner: becomes an owner of them, so that other owners' `forget` leaves them.
        """
        self._background.touch(keys, owner or "")

    @contextmanager
    def lease(self, match: Match) -> Iterator[None]:
        """Protect the blocks of a match from eviction by any process, until the block or the process ends.

        They can still be forgotten, or dropped as damaged.
        """
        disk = self._background.disk
        if disk is None or not match.blocks:
            yield
            return
        key = match.blocks[-1].key  # the others are its ancestors, which stay while it does
        self._background.lease(key)
        is_noted = False
        try:
            try:
                self._background.reader.call(
                    lambda: disk.lease(key, 1, self.options.turn_timeout_s), lambda: self._release_late(key)
                )
                is_noted = True
            except Exception as error:  # noqa: BLE001 (nothing in a cache ends a chat)
                # Others may evict it then, and `read` returns None: slower, not wrong.
                _log.debug("a lease was not noted: %s", error)
            yield
        finally:
            self._background.release(key, is_noted=is_noted)

    def pin(self, key: bytes, until: float | None = None) -> None:
        """Never evict a block and its ancestors. Holds once it is written, in all processes, until `unpin`.

        Args:
            key: of the block.
            until: when the pin ends, in unix seconds; None is never.
        """
        self._background.pin(key, True, until)

    def name_model(self, fingerprint: bytes, name: str) -> None:
        """Note the name of a model, by which its budget and `stats` know it."""
        disk = self._background.disk
        if disk is not None:
            disk.limits.name_model(fingerprint, name)

    def unpin(self, key: bytes) -> None:
        """Allow a block to be evicted again."""
        self._background.pin(key, False)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything put, touched and pinned is on disk or was dropped; return False if the timeout came first."""
        return self._background.flush(timeout_s)

    def import_blocks(self, blocks: Iterable[PlainBlock], owner: str, namespace: str | None = None) -> ImportReport:
        """Store blocks of another store, sealed with the key of this one, and wait until they are on the disk.

        Args:
            blocks: parents before children.
            owner: who uses them here.
            namespace: where they are found, whatever they say; None is that of an imported conversation with the id `owner`,
                so that no other conversation reads what may be wrong.

        Raises:
            StorageError: the store is off, the disk failed, or `blocks` cannot be read.
            UsageError: a block cannot be stored.
        """

        space = import_namespace(owner) if namespace is None else namespace

        def put(block: PlainBlock, parent: bytes | None) -> bytes | None:
            return self.put(
                parent, block.tokens, bytes(block.payload), fingerprint=block.model, namespace=space,
                start=block.start, prefill_ms=block.prefill_ms, origin=block.origin, owner=owner,
            )  # fmt: skip

        with self._maintained() as disk:
            return add_blocks(disk, blocks, space, put, lambda: self.flush(_IMPORT_TIMEOUT_S), lambda: self.problem)

    def close(self, timeout_s: float = 5.0) -> None:
        """Write the queue as far as time allows, and close the store. May be called twice.

        A process that ends without it loses the queue, nothing else.
        """
        self._background.close(timeout_s)

    def __enter__(self) -> BlockStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _release_late(self, key: bytes) -> None:
        """End a lease that was noted after its turn had gone on without it."""
        self._background.lease(key)
        self._background.release(key, is_noted=True)

    def _lose(self, disk: Disk, ref: BlockRef, reason: str) -> None:
        self._background.lost[ref.key] = ref  # at once, so that `match` skips it while it is removed
        try:
            found = self._background.reader.call(lambda: disk.drop(ref, self.options.drop_timeout_s))
            self._background.lost.pop(ref.key, None)
            if found is None:
                return  # evicted meanwhile, or whole after all
        except Exception as error:  # noqa: BLE001 (nothing in a cache ends a chat)
            self._background.fail(error, disk)
            self._background.drop_later(ref)
        self._background.n_lost += 1
        _log.warning("KV block %s is dropped and will be computed again: %s", ref.key.hex()[:12], reason)
