"""Core ML packages from outside: what is read of them, held to coremltools and to the exporter, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import ModelFileError, ModelNotFoundError
from edge.formats.coreml import METADATA_KEY, read_package
from tests.tiny_package import GOLDEN, INFO, program_of, write_package


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a package that says something about itself, with changes."""

    def make(**changes: Any) -> Path:
        info = {**INFO, **changes}
        return write_package(tmp_path / "some.mlpackage", program_of({"other": "x", METADATA_KEY: json.dumps(info)}))

    return make


def test_what_a_package_says(write: Callable[..., Path]) -> None:
    package = read_package(write(window=32, n_params=1234, something_newer={"a": 1}))
    info = package.info
    assert (info.variant, info.context, info.chunk, info.window, info.n_params) == ("ane", 64, 16, 32, 1234)
    assert info.cache_shape == (4, 3, 64, 8)
    assert info.cache_bytes == 2 * 4 * 3 * 64 * 8
    assert info.golden.package[0].tokens == [8, 3]
    assert package.weights_bytes == 7
    assert [path.name for path in package.files] == ["model.mlmodel", "weight.bin"]


def test_the_digest_is_of_the_content(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write()
    first = read_package(path).sha256()
    copy = shutil.copytree(path, tmp_path / "elsewhere.mlpackage")
    assert read_package(copy).sha256() == first
    assert read_package(copy).sha256(cache_dir=tmp_path / "cache") == first
    (copy / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").write_bytes(b"weightz")
    assert read_package(copy).sha256() != first
    (copy / "Data" / "com.apple.CoreML" / "weights" / "weight.bin").unlink()
    assert (read_package(copy).weights_bytes, len(read_package(copy).files)) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "Invalid enum value 2"),
        ({"variant": "tpu"}, "tpu"),
        ({"context": 0}, "context"),
        ({"context": "64"}, "context"),
        ({"head_dim": 1 << 30}, "head_dim"),
        ({"golden": None}, "golden"),
        ({"chunk": 65}, "chunk is longer than its context"),
        ({"n_layers": 1 << 24, "head_dim": 1 << 20}, "more than 1 TiB"),
        ({"golden": {**GOLDEN, "prompt": []}}, "golden prompt does not fit"),
        ({"golden": {**GOLDEN, "prompt": [1] * 63}}, "golden prompt does not fit"),
        ({"golden": {**GOLDEN, "prompt": [100]}}, "not in its vocabulary"),
        ({"golden": {**GOLDEN, "package": GOLDEN["package"][:1]}}, "do not belong"),
    ],
)
def test_what_cannot_be_is_refused(write: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        read_package(write(**changes))
    assert "some.mlpackage" in str(caught.value) and caught.value.hint


def test_packages_of_others(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="not made by `edge convert`"):
        read_package(write_package(tmp_path / "a.mlpackage", program_of({"author": "somebody"})))
    with pytest.raises(ModelFileError, match="larger than any description"):
        read_package(write_package(tmp_path / "b.mlpackage", program_of({METADATA_KEY: b" " * (17 << 20)})))
    with pytest.raises(ModelNotFoundError):
        read_package(tmp_path / "none.mlpackage")
    (tmp_path / "c.mlpackage").mkdir()
    with pytest.raises(ModelFileError, match=r"no Manifest\.json"):
        read_package(tmp_path / "c.mlpackage")


@pytest.mark.parametrize("entry", ["../../../etc/hostname", "/etc/hostname", "com.apple.CoreML/none", "..", ""])
def test_a_manifest_that_points_elsewhere(write: Callable[..., Path], entry: str) -> None:
    path = write()
    manifest = {"itemInfoEntries": {"1": {"path": entry}}, "rootModelIdentifier": "1"}
    (path / "Manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match="does not hold"):
        read_package(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"itemInfoEntries": {}, "rootModelIdentifier": "1"}', "[" * 100_000])
def test_a_damaged_manifest(write: Callable[..., Path], text: str) -> None:
    path = write()
    (path / "Manifest.json").write_text(text)
    with pytest.raises(ModelFileError, match="damaged"):
        read_package(path)


def test_no_damage_to_the_program_is_another_error(write: Callable[..., Path]) -> None:
    path = write()
    program = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    good, rng = program.read_bytes(), np.random.default_rng(4)
    n_refused = 0
    for trial in range(600):
        raw = bytearray(good[: rng.integers(0, len(good))] if trial % 3 == 0 else good)
        for position in rng.integers(0, max(len(raw), 1), 1 + trial % 4):
            if raw and trial % 3:
                raw[position] = rng.integers(0, 256)
        program.write_bytes(bytes(raw))
        try:
            read_package(path)
        except ModelFileError:
            n_refused += 1
    assert n_refused > 300
