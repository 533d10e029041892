"""Bundles: what one store exports, another one gives back, byte by byte; what is damaged is refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import struct
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from edge.errors import StorageError
from edge.kv.blocks import fingerprint
from edge.kv.bundle import open_bundle, write_bundle
from edge.kv.records import PlainBlock
from edge.kv.store import BlockStore, StoreOptions

MODEL = fingerprint({"weights": "a"})
OTHER = fingerprint({"weights": "b"})
CHAT = json.dumps({"title": "Ünïcode", "nodes": ["hello"] * 20})
MakeStore = Callable[..., BlockStore]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    opened: list[BlockStore] = []

    def make(name: str, **options: object) -> BlockStore:
        values = {"budget_bytes": 1 << 24, "min_free_bytes": 0, "sync": False, "retry_s": 3600.0} | options
        opened.append(BlockStore(tmp_path / name, StoreOptions(**values)))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    for store in opened:
        store.close()


def put_row(store: BlockStore, tokens: list[int], owner: str | None, *, model: bytes = MODEL, cut: int = 3) -> None:
    parent = None
    for start in range(0, len(tokens), cut):
        parent = store.put(
            parent, tokens[start : start + cut], payload_of(tokens[: start + cut]), fingerprint=model, namespace="ns",
            start=start, owner=owner, prefill_ms=2.5, origin="decode" if start else "prefill",
        )  # fmt: skip
        assert parent is not None
    assert store.flush(60.0)


def payload_of(tokens: list[int]) -> bytes:
    return random.Random(repr(tokens)).randbytes(100 + len(tokens))


def fill(store: BlockStore) -> None:
    """A system prompt that nobody owns, two branches of Ann's, one of Bob's, one of Ann's with another model."""
    put_row(store, [1, 2, 3, 4, 5, 6], None)
    put_row(store, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], "ann")
    put_row(store, [1, 2, 3, 4, 5, 6, 70, 80], "ann")
    put_row(store, [1, 2, 3, 40], "bob")
    put_row(store, [1, 2, 3], "ann", model=OTHER)


def restored(store: BlockStore, tokens: list[int], model: bytes = MODEL) -> list[bytes | None]:
    payloads = [store.read(ref) for ref in store.match(model, "ns", tokens).blocks]
    return [None if payload is None else bytes(payload) for payload in payloads]


@pytest.mark.parametrize(("encrypted_here", "encrypted_there"), [(False, True), (True, False)])
def test_a_bundle_opens_in_another_store(
    make_store: MakeStore, tmp_path: Path, encrypted_here: bool, encrypted_there: bool
) -> None:
    here, there = make_store("here", encrypt=encrypted_here), make_store("there", encrypt=encrypted_there)
    fill(here)
    path = tmp_path / "chat.edge.zip"
    report = write_bundle(path, CHAT, here.export_blocks("ann"), {"title": "Ünïcode"})
    assert (report.n_blocks, report.n_tokens, report.size_bytes) == (6, 6 + 4 + 2 + 3, path.stat().st_size)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not [entry for entry in tmp_path.iterdir() if entry.suffix == ".tmp"]
    seen: list[tuple[int, int]] = []
    with open_bundle(path) as bundle:
        bundle.verify(lambda done, total: seen.append((done, total)))
        assert bundle.about == {"title": "Ünïcode"} and bundle.models == {MODEL: 12, OTHER: 3}
        assert bundle.conversation().decode() == CHAT
        first = there.import_blocks(bundle.blocks(), "new", "ns")
        again = there.import_blocks(bundle.blocks(), "new", "ns")
    assert seen[-1][0] == seen[-1][1] > 600
    assert (first.n_added, first.n_known, first.n_dropped, first.problem) == (6, 0, 0, None)
    assert (again.n_added, again.n_known, again.n_dropped, again.problem) == (0, 6, 0, None)
    for tokens in ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [1, 2, 3, 4, 5, 6, 70, 80]):
        assert restored(there, tokens) == restored(here, tokens) and len(restored(there, tokens)) > 2
    assert restored(there, [1, 2, 3], OTHER) == [payload_of([1, 2, 3])]
    assert there.match(MODEL, "ns", [1, 2, 3, 40]).n_tokens == 3  # Bob's is not in it
    infos = there.ls(owner="new")
    assert {(info.origin, info.prefill_ms, info.is_encrypted) for info in infos} == {
        ("prefill", 2.5, encrypted_there), ("decode", 2.5, encrypted_there),
    }  # fmt: skip
    assert there.forget("new").n_blocks == 6


def test_only_what_the_model_here_can_use_is_taken(make_store: MakeStore, tmp_path: Path) -> None:
    here, there = make_store("here"), make_store("there")
    fill(here)
    write_bundle(tmp_path / "b.zip", CHAT, here.export_blocks("ann"))
    with open_bundle(tmp_path / "b.zip") as bundle:
        report = there.import_blocks(bundle.blocks(OTHER), "new", "ns")
        assert (report.n_added, there.stats().n_blocks) == (1, 1)
        assert there.import_blocks(bundle.blocks(b"x" * 32), "new", "ns").n_added == 0


def test_damaged_blocks_and_what_follows_them_stay_behind(make_store: MakeStore, tmp_path: Path) -> None:
    here = make_store("here")
    fill(here)
    ref = here.match(MODEL, "ns", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]).blocks[2]
    (here.directory / "blocks" / ref.key.hex()[:2] / ref.key.hex()[2:]).write_bytes(b"damage")
    report = write_bundle(tmp_path / "b.zip", CHAT, here.export_blocks("ann"))
    assert report.n_blocks == 4
    with open_bundle(tmp_path / "b.zip") as bundle:
        assert make_store("there").import_blocks(bundle.blocks(), "new", "ns").n_added == 4


def test_what_has_no_room_is_dropped_from_the_end(make_store: MakeStore, tmp_path: Path) -> None:
    here, there = make_store("here"), make_store("there", budget_bytes=2 * 4096)
    put_row(here, list(range(12)), "ann")
    write_bundle(tmp_path / "b.zip", CHAT, here.export_blocks("ann"))
    with open_bundle(tmp_path / "b.zip") as bundle:
        report = there.import_blocks(bundle.blocks(), "new", "ns")
    assert (report.n_added, report.n_dropped, report.problem) == (2, 2, None)
    assert restored(there, list(range(12))) == [payload_of([0, 1, 2]), payload_of([0, 1, 2, 3, 4, 5])]


def test_a_damaged_bundle_is_refused_and_the_store_stays_on(make_store: MakeStore, tmp_path: Path) -> None:
    """A changed byte makes a bundle refused, or (in unused fields, such as a date) changes nothing."""
    rng = random.Random(1)
    here, there = make_store("here"), make_store("there")
    fill(here)
    path, bad = tmp_path / "b.zip", tmp_path / "bad.zip"
    write_bundle(path, CHAT, here.export_blocks("ann"), {"n": 1})
    with open_bundle(path) as bundle:
        whole = [bundle.conversation(), dict(bundle.about), list(bundle.blocks())]
    pristine = path.read_bytes()
    n_refused = 0
    for number in range(600):
        data = bytearray(pristine)
        kind = number % 4
        if kind == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        elif kind == 2:
            at = rng.randrange(len(data) - 20)
            data[at : at + 20] = rng.randbytes(20)
        else:
            data[rng.randrange(len(data))] = rng.randrange(256)
        bad.write_bytes(data)
        try:
            with open_bundle(bad) as bundle:
                bundle.verify()
                assert [bundle.conversation(), dict(bundle.about), list(bundle.blocks())] == whole
        except StorageError as error:
            n_refused += 1
            assert "damaged" in error.message or "bundle" in error.message
    assert n_refused > 400
    # A payload that is damaged between the check and its use is found all the same.
    data = bytearray(pristine)
    at = pristine.index(payload_of([1, 2, 3, 4, 5, 6, 7, 8, 9]))
    data[at] ^= 1
    bad.write_bytes(data)
    with open_bundle(bad) as bundle, pytest.raises(StorageError, match="damaged"):
        there.import_blocks(bundle.blocks(), "new", "ns")
    assert there.problem is None


def rewritten(path: Path, change: Callable[[dict[str, object]], object], **options: int) -> None:
    """Change the manifest of a bundle, everything else as it was."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(files["manifest.json"])
    change(manifest)
    files["manifest.json"] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w", options.get("compression", zipfile.ZIP_STORED)) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(version=2),
        lambda manifest: manifest.update(format="zip"),
        lambda manifest: manifest.pop("blocks"),
        lambda manifest: manifest["blocks"][-1].update(parent=1),
        lambda manifest: manifest["blocks"][-1].update(parent=None),
        lambda manifest: manifest["blocks"][-1].update(start=4),
        lambda manifest: manifest["blocks"][0].update(tokens=[]),
        lambda manifest: manifest["blocks"][0].update(tokens=[-1]),
        lambda manifest: manifest["blocks"][0].update(file="../../key"),
        lambda manifest: manifest["blocks"][0].update(size=1 << 40),
        lambda manifest: manifest["blocks"][0].update(sha256="0" * 64),
        lambda manifest: manifest["blocks"][0].update(namespace="n" * 200),
        lambda manifest: manifest["conversation"].update(size=3),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(
    make_store: MakeStore, tmp_path: Path, change: Callable[[dict[str, object]], object]
) -> None:
    here = make_store("here")
    fill(here)
    path = tmp_path / "b.zip"
    write_bundle(path, CHAT, here.export_blocks("ann"))
    rewritten(path, lambda manifest: None)
    with open_bundle(path) as bundle:
        bundle.verify()
    rewritten(path, change)
    with pytest.raises(StorageError, match="bundle"), open_bundle(path) as bundle:
        bundle.verify()


def test_a_device_or_fifo_is_not_replaced_by_a_bundle(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path(os.devnull)):
        with pytest.raises(StorageError, match="not replaced"):
            write_bundle(path, CHAT, [])
        assert not path.is_file()


def test_compressed_files_are_refused(make_store: MakeStore, tmp_path: Path) -> None:
    """Or a small file could ask for any amount of memory."""
    path = tmp_path / "b.zip"
    write_bundle(path, CHAT, [])
    rewritten(path, lambda manifest: None, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(StorageError, match="compressed"), open_bundle(path) as bundle:
        bundle.verify()


def test_a_bundle_is_written_whole_or_not_at_all(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = make_store("here")
    fill(here)
    path = tmp_path / "b.zip"
    path.write_bytes(b"what was there before")

    def fail(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        write_bundle(path, CHAT, here.export_blocks("ann"))
    assert path.read_bytes() == b"what was there before"
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["b.zip"]
    with pytest.raises(StorageError, match="cannot be written"):
        write_bundle(tmp_path / "none" / "b.zip", CHAT, [])
    with pytest.raises(StorageError, match="no file"), open_bundle(tmp_path / "none.zip"):
        pass


def write_raw(path: Path, entries: Sequence[tuple[str, bytes]]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)


def manifest_of(blocks: list[dict[str, object]], size: int = 2) -> bytes:
    part = {"file": "conversation.json", "size": size, "sha256": hashlib.sha256(b"{}").hexdigest()}
    about = {"format": "edge-bundle", "version": 1, "edge": "0", "about": {}, "conversation": part, "blocks": blocks}
    return json.dumps(about).encode()


def block_of(place: int, n_tokens: int = 1, **changes: object) -> dict[str, object]:
    block: dict[str, object] = {
        "file": f"blocks/{place}", "size": 1, "sha256": hashlib.sha256(b"x").hexdigest(), "parent": None, "model": "0" * 64,
        "namespace": "", "start": 0, "tokens": [1] * n_tokens, "origin": "prefill", "prefill_ms": 1.0,
    }  # fmt: skip
    return block | changes


@pytest.mark.parametrize(
    "manifest",
    [
        manifest_of([block_of(0, 2_000_000)]),
        manifest_of([block_of(place) for place in range(70_000)]),
        manifest_of([block_of(0, 1_000_000, tokens=[4_000_000_000] * 4_000_000)]),
        manifest_of([block_of(0, size=(1 << 31) - 1)]),
        manifest_of([block_of(0, 5, start=(1 << 32) - 2, parent=0)]),
    ],
    ids=["long block", "many blocks", "long manifest", "large file", "past the end"],
)
def test_what_a_store_cannot_hold_is_refused_before_anything_is_added(tmp_path: Path, manifest: bytes) -> None:
    path = tmp_path / "b.zip"
    write_raw(path, [("conversation.json", b"{}"), ("blocks/0", b"x"), ("manifest.json", manifest)])
    with pytest.raises(StorageError, match="damaged or not a bundle"), open_bundle(path):
        pass


def test_entries_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("conversation.json", b"{}")
        archive.writestr("manifest.json", manifest_of([]))
        archive.writestr("blocks/0", bytes(1 << 16))
        first = archive.getinfo("blocks/0")
        for place in range(1, 50):
            again = copy.copy(first)
            again.filename = again.orig_filename = f"blocks/{place}"
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
    with pytest.raises(StorageError, match="overlaps"), open_bundle(path):
        pass


def test_a_list_of_a_million_entries_is_not_read(tmp_path: Path) -> None:
    """A small file of them took 25 seconds and 350 MB before it was refused."""
    path = tmp_path / "b.zip"
    write_raw(path, [("conversation.json", b"{}"), ("manifest.json", manifest_of([]))])
    data = path.read_bytes()
    at = data.rindex(b"PK\5\6")
    (first,) = struct.unpack("<I", data[at + 16 : at + 20])
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    n = 1_000_000
    with path.open("r+b") as file:
        file.seek(at)
        file.write(entry * n)
        end = file.tell()
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, n + 2, n + 2, end - first, first))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    started = time.process_time()
    with pytest.raises(StorageError, match="too many entries"), open_bundle(path):
        pass
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("kind", ["FIFO", "device", "directory"])
def test_only_ordinary_files_are_bundles(tmp_path: Path, kind: str) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "b.zip"
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(StorageError, match="not a regular file"), open_bundle(path):
        pass


def test_two_exports_to_one_path_at_once(make_store: MakeStore, tmp_path: Path) -> None:
    here = make_store("here")
    fill(here)

    def blocks() -> Iterator[PlainBlock]:
        write_bundle(tmp_path / "b.zip", CHAT, here.export_blocks("bob"))
        yield from here.export_blocks("ann")

    report = write_bundle(tmp_path / "b.zip", CHAT, blocks())
    with open_bundle(tmp_path / "b.zip") as bundle:
        bundle.verify()
        assert sum(1 for _ in bundle.blocks()) == report.n_blocks


def test_many_small_blocks_are_not_dropped_for_their_number(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.kv.carry._FLUSH_BYTES", 1 << 15)
    there = make_store("there", queue_bytes=1 << 16)
    blocks = [PlainBlock(bytes([n]), None, MODEL, "ns", 0, [n], b"x", "prefill", 1.0) for n in range(200)]
    report = there.import_blocks(blocks, "x")
    assert (report.n_added, report.n_dropped) == (200, 0)
