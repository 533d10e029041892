"""A hub that means harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.catalog import pull, remove
from edge.config import Settings
from edge.errors import DownloadError, ModelFileError
from tests.servers.hub import Hub
from tests.servers.models import FILE, REFERENCE, REPO, models


@pytest.mark.parametrize("name", ["../../evil.gguf", "/tmp/evil.gguf", "a/../../evil.gguf", ".evil.gguf", "e\x1bvil.gguf"])
def test_file_names_cannot_lead_out_of_the_folder(
    hub: Hub, settings: Settings, tmp_path: Path, model: bytes, name: str
) -> None:
    hub.repos[REPO].files = {name: model}
    with pytest.raises(DownloadError, match="not safe") as caught:
        pull(REFERENCE, settings=settings)
    assert "\x1b" not in caught.value.message
    assert not hub.of("content")
    assert not list(settings.paths.models_dir.parent.rglob("*evil*"))


def test_a_file_in_a_folder_of_the_repository_gets_a_flat_name(hub: Hub, settings: Settings, model: bytes) -> None:
    hub.repos[REPO].files = {f"Q8_0/{FILE}": model}
    assert pull(f"{REFERENCE}:Q8_0", settings=settings).path.name == f"Q8_0--{FILE}"


@pytest.mark.parametrize("commit", ["../../../etc", "main", "", 7, None])
def test_a_malformed_commit(hub: Hub, settings: Settings, commit: object) -> None:

    body = {"id": REPO, "sha": commit, "tags": [], "siblings": [{"rfilename": FILE, "size": 3}]}
    hub.fail("listing", body=json.dumps(body).encode())
    with pytest.raises(DownloadError, match="does not answer as a model hub"):
        pull(REFERENCE, settings=settings)


def test_another_commit_than_the_one_asked_for(hub: Hub, settings: Settings) -> None:
    asked = hub.repos[REPO].commit
    body = {"id": REPO, "sha": "0" * 40, "tags": [], "siblings": [{"rfilename": FILE, "size": 3}]}
    hub.fail("listing", body=json.dumps(body).encode())
    with pytest.raises(DownloadError, match="answers with the commit 0000"):
        pull(f"{REFERENCE}@{asked}", settings=settings)
    assert not hub.of("content")
    assert pull(f"{REFERENCE}@{asked}", settings=settings).path.is_file()


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


def test_a_file_that_is_not_a_model_is_refused(hub: Hub, settings: Settings) -> None:
    hub.repos[REPO].files = {FILE: b"<html>this is no model" * 1000}
    with pytest.raises(ModelFileError, match="web page") as caught:
        pull(REFERENCE, settings=settings)
    assert f"edge models rm {REFERENCE}" in caught.value.hint
    assert remove(REFERENCE, settings).freed_bytes == 22_000
    assert not models(settings)
