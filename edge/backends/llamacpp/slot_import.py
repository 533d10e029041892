"""Imports a slot file of llama.cpp into a block store, after comparing its first and last tokens with computed ones."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edge.backends.cells_backend import BLOCK_HEADER
from edge.backends.llamacpp.state_file import (
    STATE_HEAD_BYTES,
    TYPES,
    Layout,
    Rows,
    StateFile,
    open_state_file,
    relative_error,
    rows_of_block,
    write_state,
)
from edge.backends.neutral import MAKER_BYTES
from edge.errors import StorageError, UnsupportedError, UsageError
from edge.kv.records import SLOT_OWNER, PlainBlock

if TYPE_CHECKING:
    from edge.backends.base import Backend
    from edge.kv.store import BlockStore

__all__ = ["SlotReport", "import_slot"]

_HEAD_TOKENS, _TAIL_TOKENS, _BLOCK_TOKENS = 128, 32, 128
_MAX_ERROR = {"f32": 0.15, "f16": 0.15, "bf16": 0.15, "q8_0": 0.2, "q4_0": 0.35}
"""Most that keys or values of a layer may differ from computed ones, as a share. Other batches, or no flash attention, gave
0.05 with SmolLM2; another rotation of positions gives more than this at once."""
_NAME_DIGITS = 12


@dataclass(frozen=True, slots=True)
class SlotReport:
    """Result of an import.

    Attributes:
        namespace: where its blocks are found.
        tokens: all tokens of the file.
        n_tokens: tokens that are stored.
        size_bytes: of their blocks.
        head_error: largest difference of a layer's keys or values from those that the model computes for the first tokens, as
            a share of them.
        tail_error: the same for the last tokens, computed behind the rest of the file.
        problem: why not all is stored, or None.
    """

    namespace: str
    tokens: tuple[int, ...]
    n_tokens: int
    size_bytes: int
    head_error: float
    tail_error: float
    problem: str | None


class _Sample(NamedTuple):
    """What the engine says of the file's tokens: the beginning of its blocks and their states, and the two differences."""

    frame: bytes
    head: bytes
    layout: Layout
    head_error: float
    tail_error: float
    ms_per_token: float


def import_slot(
    path: Path,
    run: Callable[[Callable[[Backend, int], Any]], Any],
    blocks: BlockStore,
    model: bytes,
    *,
    namespace: str = "",
    n_ctx: int,
) -> SlotReport:
    """Import a slot or session file.

    Args:
        path: the file.
        run: calls a function with (backend with empty sequences, chunk size).
        blocks: where its blocks are stored.
        model: fingerprint of weights and engine, 32 bytes.
        namespace: of the blocks; "" makes one of the file's content, so that two files do not mix.
        n_ctx: context window, in tokens.

    Raises:
        StorageError: the file is damaged, its numbers are not those of this model, or the store is off.
        UnsupportedError: this kind of model cannot use slot files.
    """
    run(lambda backend, _: _check_kind(backend))
    with open_state_file(path) as file:
        sample: _Sample = run(lambda backend, _: _compare(backend, file, path, n_ctx))
        name = namespace or f"slot-{_digest(path)}"
        owner = f"{SLOT_OWNER}{name}"
        try:
            report = blocks.import_blocks(_blocks(file, sample, model, name, path), owner, name)
        except StorageError:
            blocks.forget(owner)
            raise
        stored = blocks.ls(owner=owner)
    n_tokens, size = sum(block.n_tokens for block in stored), sum(block.size_bytes for block in stored)
    return SlotReport(name, file.tokens, n_tokens, size, sample.head_error, sample.tail_error, report.problem)


def _compare(backend: Backend, file: StateFile, path: Path, n_ctx: int) -> _Sample:
    """Compute the first and the last tokens, and compare. Leaves sequence 0 empty."""
    n = len(file.tokens)
    _check_model(backend, file, path, n_ctx)
    n_head = min(n, _HEAD_TOKENS)
    n_tail = min(_TAIL_TOKENS, n - n_head)
    tokens = list(file.tokens)
    try:
        started = time.perf_counter()
        backend.prefill(0, tokens[:n_head])
        ms_per_token = (time.perf_counter() - started) * 1000 / n_head
        frame, head, layout, computed = _export(backend, 0, n_head)
        if layout[:2] != file.layout[:2]:
            raise StorageError(
                f"{path} does not fit: it holds {file.layout.describe()}; this model has {layout.describe()} here.",
                "Load the model that it was saved with, and its KV type: --kv-type.",
            )
        sample = _Sample(frame, head, layout, _differ(file, layout, path, 0, computed), 0.0, ms_per_token)
        if n_tail:
            backend.rewind(0, 0)
            for block in _blocks(file, sample, b"", "", path, n - n_tail):
                backend.import_kv(0, block.payload)
            backend.prefill(0, tokens[n - n_tail :])
            _, _, _, computed = _export(backend, n - n_tail, n)
            sample = sample._replace(tail_error=_differ(file, layout, path, n - n_tail, computed))
    finally:
        backend.rewind(0, 0)
    most = max(_MAX_ERROR[TYPES[each.type]] for each in (*layout.keys, *layout.values))
    for what, error in (("first", sample.head_error), ("last", sample.tail_error)):
        if not error <= most:  # NaN is more
            raise StorageError(
                f"{path} is not of this model: its keys and values of the {what} tokens differ by {error:.0%}.",
                "Load the model that it was saved with, without other adapters or another rope setting.",
            )
    return sample


def _check_kind(backend: Backend) -> None:
    if backend.name != "llamacpp" or not backend.capabilities.export_kv or backend.kv_window:
        kind = "a model with a sliding window" if backend.kv_window else "this kind of model, or on this engine"
        raise UnsupportedError(f"A slot file cannot be imported for {kind}.", "Its prompt is processed again instead.")


def _check_model(backend: Backend, file: StateFile, path: Path, n_ctx: int) -> None:
    """Refuse what is known not to fit before anything is computed."""
    hint = "Load the model that it was saved with."
    if file.architecture not in ("", backend.info.architecture):
        raise StorageError(f"{path} is of a {file.architecture} model, this is {backend.info.architecture}.", hint)
    if max(file.tokens) >= backend.info.n_vocab:
        raise StorageError(f"{path} names tokens that this model does not have.", hint)
    if len(file.tokens) >= n_ctx:
        raise UsageError(
            f"{path} holds {len(file.tokens):,} tokens, the context window {n_ctx:,}.", "Load it with a larger one: --context."
        )


def _export(backend: Backend, start: int, end: int) -> tuple[bytes, bytes, Layout, Rows]:
    """Return the beginning of a block and of its state, the layout, and the keys and values of some positions."""
    block = backend.export_kv(0, start, end)
    n_frame = BLOCK_HEADER.size + (MAKER_BYTES if backend.neutral is not None else 0)
    state = memoryview(block)[n_frame:]
    layout, rows = rows_of_block(state, end - start)
    return block[:n_frame], bytes(state[:STATE_HEAD_BYTES]), layout, rows


def _differ(file: StateFile, layout: Layout, path: Path, start: int, computed: Rows) -> float:
    with _refusing(path):
        return relative_error(layout, file.rows(start, start + len(computed.keys[0])), computed)


def _blocks(
    file: StateFile, sample: _Sample, model: bytes, namespace: str, path: Path, end: int | None = None
) -> Iterator[PlainBlock]:
    """Yield the blocks of a file, up to a position.

    Raises:
        StorageError: the file was changed meanwhile, or a number is infinite or NaN.
    """
    n_tokens = len(file.tokens) if end is None else end
    magic, maker, parent = sample.frame[:8], sample.frame[BLOCK_HEADER.size :], None
    for start in range(0, n_tokens, _BLOCK_TOKENS):
        stop = min(start + _BLOCK_TOKENS, n_tokens)
        with _refusing(path):
            state = write_state(sample.head, sample.layout, file.rows(start, stop), start)
        payload = BLOCK_HEADER.pack(magic, start, stop, len(state)) + maker + state
        key = start.to_bytes(8, "big")
        ms = sample.ms_per_token * (stop - start)
        yield PlainBlock(key, parent, model, namespace, start, file.tokens[start:stop], payload, "decode", ms)
        parent = key


def _digest(path: Path) -> str:
    """Return a short name of a file's content."""
    with _refusing(path), path.open("rb") as file:
        digest = hashlib.blake2b()
        while data := file.read(1 << 20):
            digest.update(data)
        return digest.hexdigest()[:_NAME_DIGITS]


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise StorageError(f"{path} cannot be imported: {error}.", "Save the slot again.") from error
