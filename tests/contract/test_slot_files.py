"""Slot and session files that llama.cpp itself writes, imported into a block store; and files that lie."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from edge.assistant import Assistant, DiskCache
from edge.backends.base import open_backend
from edge.backends.llamacpp.library import load_library
from edge.backends.llamacpp.state_file import _numbers as numbers
from edge.backends.llamacpp.state_file import is_state_file, open_state_file
from edge.errors import EdgeError, StorageError, UnsupportedError, UsageError
from edge.kv.open import model_fingerprint
from edge.kv.store import BlockStore, StoreOptions
from edge.types import Sampling
from tests.contract.entries import make_plan

TinyModel = Callable[[str], Path]
TYPES = {"f16": 1, "q8_0": 8, "q4_0": 2, "f32": 0}
N_TOKENS = 200
TEXT = "".join(random.Random(5).choice("abcdefgh ijk lmnop") for _ in range(N_TOKENS))
GREEDY = Sampling(temperature=0, max_tokens=6)


class Writer:
    """llama.cpp by itself, which computes a prompt and saves its state."""

    def __init__(self, model: Path, *, kv: str = "f16", flash: bool = True, n_seq: int = 1, rope: float = 0.0) -> None:
        load_library()
        self.model = llama_cpp.llama_model_load_from_file(str(model).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 512 * n_seq, 64, 64, n_seq
        params.type_k = params.type_v = TYPES[kv]
        params.flash_attn_type, params.rope_freq_base = int(flash), rope
        params.n_threads = params.n_threads_batch = 1
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.memory = llama_cpp.llama_get_memory(self.context)

    def compute(self, tokens: list[int], seq_id: int = 0) -> None:
        for start in range(0, len(tokens), 64):
            part = tokens[start : start + 64]
            batch = llama_cpp.llama_batch_init(len(part), 0, 1)
            batch.n_tokens = len(part)
            for row, token in enumerate(part):
                batch.token[row], batch.pos[row], batch.n_seq_id[row], batch.logits[row] = token, start + row, 1, 0
                batch.seq_id[row][0] = seq_id
            assert llama_cpp.llama_decode(self.context, batch) == 0
            llama_cpp.llama_batch_free(batch)

    def save(self, path: Path, tokens: list[int], *, session: bool = False, seq_id: int = 0) -> Path:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        name = str(path).encode()
        if session:
            assert llama_cpp.llama_state_save_file(self.context, name, array, len(tokens))
        else:
            assert llama_cpp.llama_state_seq_save_file(self.context, name, seq_id, array, len(tokens))
        return path

    def close(self) -> None:
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


class Place:
    """A directory with a block store, and assistants on it."""

    def __init__(self, directory: Path, model: Path) -> None:
        self.directory, self.model = directory, model

    def open(self, *, kv: str = "f16", namespace: str = "", n_ctx: int = 512) -> Assistant:
        plan = make_plan(self.model, kv_type_k=kv, kv_type_v=kv, n_ctx=n_ctx)
        backend = open_backend(plan)
        blocks = BlockStore(self.directory / "kv", StoreOptions(budget_bytes=1 << 30, min_free_bytes=0, sync=False))
        disk = DiskCache(blocks, model_fingerprint(backend, plan.artifact))
        return Assistant(backend, plan, disk=disk, cache_namespace=namespace)

    def tokens(self) -> list[int]:
        with self.open() as ai:
            return ai._prompting.tokenize(TEXT, add_special=True, parse_special=True)

    def n_blocks(self) -> int:
        with BlockStore(self.directory / "kv", StoreOptions(budget_bytes=1 << 30, min_free_bytes=0)) as blocks:
            return blocks.stats().n_blocks


@pytest.fixture
def place(tmp_path: Path, tiny_model: TinyModel) -> Place:
    return Place(tmp_path, tiny_model("llama"))


@pytest.fixture
def writer(place: Place) -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def make(model: Path | None = None, **options: Any) -> Writer:
        made.append(Writer(model or place.model, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def slot(place: Place, writer: Callable[..., Writer], tmp_path: Path) -> Path:
    tokens, one = place.tokens(), writer()
    one.compute(tokens)
    return one.save(tmp_path / "a.bin", tokens)


def edited(path: Path, change: Callable[[bytearray], Any]) -> Path:
    data = bytearray(path.read_bytes())
    change(data)
    other = path.with_suffix(".edited")
    other.write_bytes(data)
    return other


@pytest.mark.parametrize("session", [False, True])
@pytest.mark.parametrize(("kv", "flash", "n_seq"), [("f16", True, 1), ("f16", False, 1), ("f16", True, 3), ("q8_0", True, 1)])
def test_the_file_of_llama_cpp_is_used_in_its_namespace(
    place: Place, writer: Callable[..., Writer], tmp_path: Path, session: bool, kv: str, flash: bool, n_seq: int
) -> None:
    tokens, one = place.tokens(), writer(kv=kv, flash=flash, n_seq=n_seq)
    one.compute(tokens, seq_id=n_seq - 1)
    path = one.save(tmp_path / "a.bin", tokens, session=session, seq_id=n_seq - 1)
    assert is_state_file(path)
    with place.open(kv=kv) as ai:
        report = ai.import_slot(path)
        assert report.n_tokens == len(report.tokens) == len(tokens)
        assert list(report.tokens) == tokens
        assert max(report.head_error, report.tail_error) < 0.05
        assert ai.text_of(report.tokens).endswith(TEXT)
        cold = ai.complete(TEXT + "and", GREEDY)
        assert cold.wait() is not None
        assert cold.usage.n_restored == 0, "it is not found elsewhere"
    with place.open(kv=kv, namespace=report.namespace) as ai:
        reply = ai.complete(TEXT + "and", GREEDY)
        reply.wait()
        assert reply.usage.n_restored == len(tokens)
        assert reply.tokens == cold.tokens
        (check,) = ai.check_cache(1)
        assert check.is_same_choice


def test_the_namespace_is_of_the_content_or_chosen(place: Place, slot: Path) -> None:
    other = edited(slot, lambda data: data.__setitem__(8, data[8] - 1))  # one token fewer than cells
    with place.open() as ai:
        first, again = ai.import_slot(slot).namespace, ai.import_slot(slot).namespace
        assert first == again == f"slot-{first[5:]}"
        assert ai.import_slot(slot, namespace="mine").namespace == "mine"
        for wrong in ("answers", "a/b", "x" * 65, "ä"):
            with pytest.raises(UsageError, match="namespace"):
                ai.import_slot(slot, namespace=wrong)
        with pytest.raises(StorageError):
            ai.import_slot(other)


def last_row(path: Path) -> int:
    with open_state_file(path) as file:
        return file._offsets[1][-1] + (len(file.tokens) - 1) * file.layout.values[-1].row_bytes


REFUSED: dict[str, tuple[Callable[[Path, bytearray], Any], str]] = {
    "another magic": (lambda path, data: data.__setitem__(0, 0), "neither"),
    "another version": (lambda path, data: data.__setitem__(4, 9), "version 9"),
    "no tokens": (lambda path, data: data.__setitem__(slice(8, 12), bytes(4)), "0 tokens"),
    "too many tokens": (lambda path, data: data.__setitem__(slice(8, 12), b"\xff" * 4), "tokens"),
    "a negative token": (lambda path, data: data.__setitem__(slice(12, 16), b"\xff" * 4), "negative"),
    "a token that does not exist": (lambda path, data: data.__setitem__(slice(12, 16), b"\xff\xff\xff\x7f"), "does not have"),
    "other tokens": (lambda path, data: data.__setitem__(slice(16, 32), struct.pack("<4i", 1, 2, 3, 4)), "not of this model"),
    "more at the end": (lambda path, data: data.extend(b"\0"), "follow"),
    "a NaN": (lambda path, data: data.__setitem__(slice(last_row(path), last_row(path) + 2), b"\xff\x7f"), "NaN"),
    "other last values": (
        lambda path, data: data.__setitem__(slice(last_row(path) - 8 * 128, last_row(path)), b"\0\x42" * 512),
        "not of this model",
    ),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_lies_is_refused_and_leaves_nothing(place: Place, slot: Path, change: Any, said: str) -> None:
    bad = edited(slot, lambda data: change(slot, data))
    with place.open() as ai:
        with pytest.raises(StorageError, match=said):
            ai.import_slot(bad)
        assert ai.complete("ab", GREEDY).wait() is not None, "the engine goes on"
    assert place.n_blocks() == 0


def test_a_number_in_the_middle_that_is_no_number_leaves_nothing(place: Place, slot: Path) -> None:
    """Only reading all of it finds that: some blocks are stored by then."""
    with open_state_file(slot) as file:
        at = file._offsets[0][1] + (N_TOKENS - 60) * file.layout.keys[1].row_bytes
    bad = edited(slot, lambda data: data.__setitem__(slice(at, at + 2), b"\0\x7c"))
    with place.open() as ai, pytest.raises(StorageError, match="infinite"):
        ai.import_slot(bad)
    assert place.n_blocks() == 0


def test_damaged_structures_raise_only_our_errors(place: Place, slot: Path) -> None:
    """Every structural number is changed, and the file is cut at many places."""
    rng = random.Random(1)
    data = slot.read_bytes()
    with open_state_file(slot) as file:
        edges = [*range(12), 12 + 4 * len(file.tokens), *(at - 12 for each in file._offsets for at in each)]
        start = edges[12]
    places = [*edges, *range(start, start + 60), *(at + n for at in edges[13:] for n in range(12))]
    for at in places:
        for value in (0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)):
            bad = bytearray(data)
            bad[at] = value
            if bytes(bad) != data:
                slot.write_bytes(bad)
                try:
                    with open_state_file(slot) as file:
                        file.rows(0, len(file.tokens))
                except StorageError:
                    pass
    for size in [*range(0, start + 100, 7), *(rng.randrange(len(data)) for _ in range(100))]:
        slot.write_bytes(data[:size])
        with pytest.raises(StorageError), open_state_file(slot) as file:
            file.rows(0, len(file.tokens))


def test_another_model_or_rotation_is_refused(
    place: Place, writer: Callable[..., Writer], tmp_path: Path, tiny_model: TinyModel
) -> None:
    tokens, turned = place.tokens(), writer(rope=500_000.0)
    turned.compute(tokens)
    kinds = writer(kv="q8_0")
    kinds.compute(tokens)
    with place.open() as ai:
        with pytest.raises(StorageError, match="not of this model"):
            ai.import_slot(turned.save(tmp_path / "rope.bin", tokens))
        with pytest.raises(StorageError, match="does not fit"):
            ai.import_slot(kinds.save(tmp_path / "type.bin", tokens))
    assert place.n_blocks() == 0


def test_several_sequences_and_shifted_contexts_are_refused(
    place: Place, writer: Callable[..., Writer], tmp_path: Path
) -> None:
    tokens, two, cut = place.tokens(), writer(n_seq=2), writer()
    two.compute(tokens)
    two.compute(tokens[:50], seq_id=1)
    cut.compute(tokens)
    llama_cpp.llama_memory_seq_rm(cut.memory, 0, 50, 60)
    with place.open() as ai:
        with pytest.raises(StorageError, match="several sequences"):
            ai.import_slot(two.save(tmp_path / "two.bin", tokens, session=True))
        with pytest.raises(StorageError, match="gaps"):
            ai.import_slot(cut.save(tmp_path / "cut.bin", tokens))
        assert ai.import_slot(two.save(tmp_path / "one.bin", tokens[:50], seq_id=1)).n_tokens == 50
    llama_cpp.llama_memory_clear(two.memory, True)
    two.compute(tokens * 2)
    with place.open(n_ctx=256) as ai, pytest.raises(UsageError, match="context window"):
        ai.import_slot(two.save(tmp_path / "long.bin", tokens * 2))


@pytest.mark.parametrize("architecture", ["gemma3", "mamba", "lfm2"])
def test_models_without_plain_attention_are_refused(
    slot: Path, tmp_path: Path, tiny_model: TinyModel, architecture: str
) -> None:
    with Place(tmp_path, tiny_model(architecture)).open() as ai, pytest.raises(UnsupportedError, match="slot file"):
        ai.import_slot(slot)


def test_what_is_no_file_is_refused(place: Place, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with place.open() as ai:
        for path in (tmp_path, tmp_path / "fifo", tmp_path / "missing"):
            with pytest.raises(StorageError):
                ai.import_slot(path)
            assert not is_state_file(path)
    plan = replace(make_plan(place.model))
    with Assistant(open_backend(plan), plan) as ai, pytest.raises(UsageError, match="disk"):
        ai.import_slot(tmp_path / "missing")


@pytest.mark.parametrize("kv", TYPES)
@pytest.mark.parametrize("flash", [True, False])
def test_every_type_of_number_is_compared_as_what_it_means(
    place: Place, writer: Callable[..., Writer], tmp_path: Path, kv: str, flash: bool
) -> None:
    if kv.startswith("q") and not flash:
        return  # llama.cpp needs flash attention for quantised values
    tokens, one, same = place.tokens(), writer(kv=kv, flash=flash), writer(kv="f32", flash=True)
    found = []
    for each, name in ((one, "one"), (same, "same")):
        each.compute(tokens)
        with open_state_file(each.save(tmp_path / name, tokens)) as file:
            rows = file.rows(3, 90)
            found.append([numbers(file.layout.keys[0].type, rows.keys[1]), numbers(file.layout.values[0].type, rows.values[1])])
    for ours, exact in zip(*found, strict=True):
        assert ours.shape[0] * ours.shape[1] == exact.size
        error = np.linalg.norm(ours.reshape(exact.shape) - exact) / np.linalg.norm(exact)
        assert error < {"f32": 0.01, "f16": 0.01, "q8_0": 0.02, "q4_0": 0.15}[kv]


def test_cells_may_be_in_any_order(place: Place, slot: Path) -> None:
    """llama.cpp writes them in the order of memory."""
    with open_state_file(slot) as file:
        layout, offsets, n = file.layout, file._offsets, len(file.tokens)

    def swap(data: bytearray) -> None:
        cells = 12 + 4 * n + 8
        rows = [(cells, 12)]
        for tensors, places in zip(layout[:2], offsets, strict=True):
            rows += [(place, tensor.row_bytes) for tensor, place in zip(tensors, places, strict=True)]
        for at, size in rows:
            one, other = slice(at + 3 * size, at + 4 * size), slice(at + 150 * size, at + 151 * size)
            data[one], data[other] = data[other], data[one]

    with place.open() as ai:
        first, second = ai.import_slot(slot), ai.import_slot(edited(slot, swap))
        payloads = [
            [bytes(block.payload) for block in ai._disk.blocks.export_blocks(f"slot:{report.namespace}")]  # type: ignore[union-attr]
            for report in (first, second)
        ]
    assert first.namespace != second.namespace
    assert payloads[0] == payloads[1]


def test_errors_are_ours(place: Place, slot: Path) -> None:
    with place.open() as ai:
        ai.close()
        with pytest.raises(EdgeError):
            ai.import_slot(slot)
