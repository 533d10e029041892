"""Pulling from a hub that works, and what the catalogue adds."""

from __future__ import annotations

import hashlib
from pathlib import Path

import huggingface_hub
import pytest

from edge.catalog import ArtifactEntry, CatalogEntry, DownloadProgress, list_models, pull, remove, resolve
from edge.catalog import entries as catalog_file
from edge.config import Settings, load_settings
from edge.errors import AccessDeniedError, ChecksumError, ModelFileError, ModelNotFoundError, UsageError
from tests.servers.hub import Hub, Repo
from tests.servers.models import FILE, REFERENCE, REPO, make_model, models


def test_the_server_speaks_the_protocol_of_the_hub(hub: Hub, tmp_path: Path, model: bytes) -> None:
    """huggingface_hub's own downloader is the judge: otherwise the tests below would prove little."""
    path = huggingface_hub.hf_hub_download(REPO, FILE, endpoint=hub.url, token=False, cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == model
    info = huggingface_hub.HfApi(endpoint=hub.url, token=False).model_info(REPO, files_metadata=True)
    assert info.siblings
    assert info.siblings[0].lfs
    assert info.siblings[0].lfs.sha256 == hashlib.sha256(model).hexdigest()


def test_pull_then_resolve_without_the_network(hub: Hub, settings: Settings, model: bytes) -> None:
    seen: list[DownloadProgress] = []
    artifact = pull(REFERENCE, settings=settings, on_progress=seen.append)
    assert artifact.path.read_bytes() == model
    assert artifact.sha256 == hashlib.sha256(model).hexdigest()
    assert (artifact.name, artifact.licence, artifact.source) == ("Tiny", "apache-2.0", REFERENCE)
    assert {step.name for step in seen} == {REFERENCE}
    assert seen[0].phase == "connect"
    done = [step.done_bytes for step in seen if step.phase == "download"]
    assert done == sorted(done)
    assert done[-1] == len(model)
    assert seen[-1].total_bytes == len(model)
    hub.requests.clear()
    assert resolve(REFERENCE, settings=settings, download=False).path == artifact.path
    assert not hub.requests
    # Another pull asks what is newest, and fetches nothing that is here.
    assert pull(REFERENCE, settings=settings).path == artifact.path
    assert len(hub.of("listing")) == 1
    assert not hub.of("content")


def test_files_and_folders_are_private(hub: Hub, settings: Settings) -> None:
    artifact = pull(REFERENCE, settings=settings)
    root = settings.paths.models_dir
    assert artifact.path.stat().st_mode & 0o777 == 0o600
    assert artifact.path.with_name(artifact.path.name + ".edge.json").stat().st_mode & 0o777 == 0o600
    folder = artifact.path.parent
    while folder != root.parent:
        assert folder.stat().st_mode & 0o777 == 0o700
        folder = folder.parent


def test_a_token_goes_to_the_hub_and_nowhere_else(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[REPO].private = True
    with pytest.raises(ModelNotFoundError, match="no such repository, or it is private") as caught:
        pull(REFERENCE, settings=settings)
    assert caught.value.exit_code == 3
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", hub.token)
    pull(REFERENCE, settings=settings)
    assert hub.of("resolve")[-1].headers["authorization"] == f"Bearer {hub.token}"
    assert all("authorization" not in request.headers for request in hub.of("content"))


def test_a_newer_commit_takes_the_place_of_the_older(hub: Hub, settings: Settings, tmp_path: Path, model: bytes) -> None:
    first = pull(REFERENCE, settings=settings)
    newer = make_model(tmp_path / "newer.gguf", seed=1)
    old_commit = hub.repos[REPO].commit
    hub.repos[REPO].files[FILE] = newer
    assert resolve(REFERENCE, settings=settings).path == first.path
    second = pull(REFERENCE, settings=settings)
    assert second.path.read_bytes() == newer
    assert models(settings) == [second.path]
    # A pinned commit stays.
    hub.repos[REPO].files[FILE] = model
    pinned = pull(f"{REFERENCE}@{old_commit}", settings=settings)
    hub.repos[REPO].files[FILE] = newer
    pull(REFERENCE, settings=settings)
    assert resolve(f"{REFERENCE}@{old_commit}", settings=settings).path == pinned.path
    assert models(settings) == sorted([pinned.path, second.path])


def test_other_names_of_the_same_file_share_it(hub: Hub, settings: Settings) -> None:
    path = pull(REFERENCE, settings=settings).path
    for name in (f"{REFERENCE}:Q8_0", f"{REFERENCE}:q8_0", f"{REFERENCE}:{FILE}", f"{REFERENCE}@main"):
        assert pull(name, settings=settings).path == path
    assert len(hub.of("content")) == 1
    [listed] = [entry for entry in list_models(settings) if entry.path == path]
    assert set(listed.used_by) >= {REFERENCE, f"{REFERENCE}:Q8_0", f"{REFERENCE}:{FILE}"}


def test_the_choice_among_several_files(hub: Hub, settings: Settings, model: bytes) -> None:
    hub.repos["acme/many"] = Repo(
        {
            "many-Q4_K_M.gguf": model,
            "many-Q8_0.gguf": model,
            "big-F16-00001-of-00002.gguf": model,
            "big-F16-00002-of-00002.gguf": model,
            "mmproj-many-f16.gguf": model,
        }
    )
    with pytest.raises(UsageError, match="holds 2 files") as caught:
        pull("hf:acme/many", settings=settings)
    assert "hf:acme/many:Q4_K_M" in caught.value.hint
    assert "Q8_0" in caught.value.hint
    assert caught.value.exit_code == 2
    assert pull("hf:acme/many:Q4_K_M", settings=settings).path.name == "many-Q4_K_M.gguf"
    assert pull("hf:acme/many:many-Q8_0.gguf", settings=settings).path.name == "many-Q8_0.gguf"
    with pytest.raises(ModelFileError, match="split into 2 files") as split:
        pull("hf:acme/many:F16", settings=settings)
    assert "give the path of the first" in split.value.hint
    with pytest.raises(ModelNotFoundError, match="holds no file 'Q2_K'") as missing:
        pull("hf:acme/many:Q2_K", settings=settings)
    assert "Q4_K_M, Q8_0" in missing.value.hint


def test_repositories_without_gguf_files(hub: Hub, settings: Settings) -> None:
    hub.repos["acme/checkpoint"] = Repo({"model.safetensors": b"x", "config.json": b"{}"})
    with pytest.raises(ModelNotFoundError, match="checkpoint") as caught:
        pull("hf:acme/checkpoint", settings=settings)
    assert "edge convert" in caught.value.hint
    hub.repos["acme/nothing"] = Repo({"README.md": b"x"})
    with pytest.raises(ModelNotFoundError, match="no GGUF file"):
        pull("hf:acme/nothing", settings=settings)


def test_offline(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_HUB_OFFLINE", "1")
    offline = load_settings()
    with pytest.raises(ModelNotFoundError, match="not to use the network") as caught:
        resolve(REFERENCE, settings=offline)
    assert caught.value.exit_code == 3
    assert not hub.requests
    path = pull(REFERENCE, settings=settings).path
    hub.requests.clear()
    assert resolve(REFERENCE, settings=offline).path == path
    assert pull(REFERENCE, settings=offline).path == path
    assert not hub.requests


def test_the_hub_library_s_own_cache_is_used_in_place(hub: Hub, settings: Settings, model: bytes) -> None:
    cached = huggingface_hub.hf_hub_download(REPO, FILE, endpoint=hub.url, token=False)
    hub.requests.clear()
    artifact = resolve(REFERENCE, settings=settings)
    assert artifact.path == Path(cached)
    assert artifact.sha256 == hashlib.sha256(model).hexdigest()
    assert not hub.requests
    assert not models(settings)
    with pytest.raises(UsageError, match="not put here by edge"):
        remove(REFERENCE, settings)
    assert Path(cached).exists()


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch, model: bytes) -> dict[str, CatalogEntry]:
    """A catalogue with one model, which pins what it should be."""
    entry = CatalogEntry(
        name="tiny",
        title="Tiny",
        description="for tests",
        licence="Strict",
        licence_url="http://127.0.0.1/licence",
        accept_licence=True,
        artifacts=(
            ArtifactEntry(reference=f"{REFERENCE}:{FILE}", size_bytes=len(model), sha256=hashlib.sha256(model).hexdigest()),
        ),
    )
    entries = {"tiny": entry}
    monkeypatch.setattr(catalog_file, "_shipped", lambda: entries)
    return entries


def test_a_licence_has_to_be_accepted(hub: Hub, settings: Settings, named: dict[str, CatalogEntry]) -> None:
    for name in ("tiny", f"{REFERENCE}:{FILE}"):
        with pytest.raises(AccessDeniedError, match="licence Strict") as caught:
            resolve(name, settings=settings)
        assert "edge models pull tiny --accept-licence" in caught.value.hint
        assert not hub.requests
    artifact = pull("tiny", settings=settings, accept_licence=True)
    assert (artifact.name, artifact.licence, artifact.source) == ("tiny", "Strict", "tiny")
    assert resolve("tiny", settings=settings).path == artifact.path
    [listed] = list_models(settings)
    assert (listed.name, listed.owner, listed.licence) == ("tiny", "edge", "apache-2.0")
    assert listed.used_by == ("tiny", f"{REFERENCE}:{FILE}")
    assert hub.url in listed.origin


def test_a_file_that_was_replaced_at_the_hub(
    hub: Hub, settings: Settings, named: dict[str, CatalogEntry], tmp_path: Path
) -> None:
    hub.repos[REPO].files[FILE] = make_model(tmp_path / "other.gguf", seed=2)
    with pytest.raises(ChecksumError, match="not what the catalogue names"):
        pull("tiny", settings=settings, accept_licence=True)
    assert not hub.of("content")
