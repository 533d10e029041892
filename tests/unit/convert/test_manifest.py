"""Manifests: the same content gives the same bytes, and a changed one is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from edge_convert.manifest import FileEntry, Manifest, digest_file, seal, tool_versions, write_manifest
from tests.unit.convert.support import make_manifest, read_manifest


def test_written_and_read_again(tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    write_manifest(first, make_manifest())
    write_manifest(second, make_manifest(recipe={"a": "2", "z": "1"}))
    assert first.read_bytes() == second.read_bytes()
    read = read_manifest(first)
    assert read == make_manifest()
    assert [entry.name for entry in read.source_files] == ["a", "b.gguf"]
    assert "msgspec" in read.tools
    assert "no-such-package" not in tool_versions("no-such-package")


def test_the_fingerprint_covers_everything(tmp_path: Path) -> None:
    assert make_manifest(licence="mit").fingerprint != make_manifest().fingerprint
    path = tmp_path / "manifest.json"
    write_manifest(path, make_manifest())
    path.write_bytes(path.read_bytes().replace(b"Q4_0", b"Q8_0"))
    changed = msgspec.json.decode(path.read_bytes(), type=Manifest)
    assert seal(changed).fingerprint != changed.fingerprint


def test_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = bytes(range(256)) * 10_000
    path.write_bytes(data)
    seen: list[int] = []
    entry = digest_file(path, name="other", on_bytes=seen.append)
    assert entry == FileEntry(name="other", size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    assert seen[-1] == len(data)
    assert len(seen) == 3
