"""Manifests: the same content gives the same bytes, and a changed one is noticed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from edge_convert.manifest import FileEntry, Manifest, digest_file, seal, tool_versions, write_manifest
from tests.unit.convert.support import read_manifest


def manifest(**changes: object) -> Manifest:
    entry = FileEntry(name="b.gguf", size_bytes=3, sha256="0" * 64)
    fields: dict[str, object] = {
        "format": "gguf",
        "name": "tiny",
        "architecture": "LlamaForCausalLM",
        "quantisation": "Q4_0",
        "source": "hf:owner/repo",
        "source_files": (entry, FileEntry(name="a", size_bytes=1, sha256="1" * 64)),
        "recipe": {"z": "1", "a": "2"},
        "tools": tool_versions("msgspec"),
        "files": (entry,),
    }
    return seal(Manifest(**(fields | changes)))  # type: ignore[arg-type]


def test_written_and_read_again(tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    write_manifest(first, manifest())
    write_manifest(second, manifest(recipe={"a": "2", "z": "1"}))
    assert first.read_bytes() == second.read_bytes()
    read = read_manifest(first)
    assert read == manifest()
    assert [entry.name for entry in read.source_files] == ["a", "b.gguf"]
    assert "msgspec" in read.tools
    assert "no-such-package" not in tool_versions("no-such-package")


def test_the_fingerprint_covers_everything(tmp_path: Path) -> None:
    assert manifest(licence="mit").fingerprint != manifest().fingerprint
    path = tmp_path / "manifest.json"
    write_manifest(path, manifest())
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
