"""A hub that fails: every fault has its error, exit code and hint."""

from __future__ import annotations

import hashlib

import pytest
from huggingface_hub import constants

from edge.catalog import pull
from edge.config import Settings, load_settings
from edge.errors import AccessDeniedError, ChecksumError, DownloadError, EdgeError, ModelNotFoundError
from tests.servers.hub import Hub
from tests.servers.models import FILE, REFERENCE, REPO, models, partials


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
    with pytest.raises(ChecksumError, match=r"bytes were promised, the server sends") as caught:
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
    hub.repos[REPO].has_lfs = False
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
    assert REPO in caught.value.message
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
        (429, {"Retry-After": "3600"}, "accepts no more requests", "Try again in 3600 s", 0),
        (429, {}, "accepts no more requests", "Try again later", 3),
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
    hub.repos[REPO].gated = True
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
def test_a_server_that_is_not_a_hub(hub: Hub, settings: Settings, body: bytes) -> None:
    hub.fail("listing", body=body)
    with pytest.raises(DownloadError, match="does not answer as a model hub"):
        pull(REFERENCE, settings=settings)
