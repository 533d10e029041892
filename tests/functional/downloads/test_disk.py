"""The disk: no room, no rights, files that change."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from edge.catalog import DownloadProgress, pull, remove, resolve
from edge.config import Settings, load_settings
from edge.errors import ModelFileError, ModelNotFoundError, StorageError
from edge.sources import transfer
from tests.servers.hub import Hub
from tests.servers.models import FILE, REFERENCE, REPO, partials


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
    hub.repos[REPO].has_lfs = False
    hub.fail("listing", change={FILE: {"size": None}})
    with pytest.raises(StorageError, match=r"this needs 1\.5 MB"):
        pull(REFERENCE, settings=settings)
    assert not any(partial.stat().st_size for partial in partials(settings))


def test_a_disk_that_fills_up_keeps_what_is_there(
    hub: Hub, settings: Settings, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:

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
