"""Models that are folders: ONNX folders and Core ML packages on a hub, fetched as one thing or not at all."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge.catalog import DownloadProgress, list_models, pull, remove, resolve, resolve_all, verify
from edge.config import Settings, load_settings
from edge.errors import ChecksumError, DownloadError, ModelFileError, ModelNotFoundError, StorageError, UsageError
from edge.formats.coreml import METADATA_KEY
from tests.functional.downloads.test_stopping import start_child
from tests.servers.hub import Hub, Repo
from tests.tiny_onnx import write_onnx
from tests.tiny_package import INFO, program_of, write_package

FOLDER = "cpu/cpu-int4-rtn-block-32"
REFERENCE = f"hf:acme/phi-onnx:{FOLDER}"
STRANGE = ("configuration_phi3.py", "extra.pkl", "pytorch_model.bin", "optimizer.pt", "custom.so", "notes.txt")


def contents(folder: Path, prefix: str = "") -> dict[str, bytes]:
    """A folder as a repository has it."""
    return {prefix + path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = write_onnx(tmp_path_factory.mktemp("onnx") / "m", kind="int4")
    (folder / "special_tokens_map.json").write_text("{}")
    return contents(folder)


@pytest.fixture(scope="module")
def coreml(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("coreml")
    write_package(folder / "model.mlpackage", program_of({METADATA_KEY: json.dumps(INFO)}), b"weights" * 20_000)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "manifest.json").write_text('{"name": "Tiny", "licence": "MIT"}')
    return contents(folder)


@pytest.fixture
def phi(hub: Hub, onnx: dict[str, bytes]) -> Repo:
    """A repository as Microsoft's are: the model in a folder, code and other things beside it."""
    files = {f"{FOLDER}/{name}": content for name, content in onnx.items()}
    files |= {f"{FOLDER}/{name}": b"foreign" for name in STRANGE} | {"README.md": b"hello", "config.json": b"{}"}
    hub.repos["acme/phi-onnx"] = Repo(files)
    return hub.repos["acme/phi-onnx"]


def asked_for(hub: Hub) -> list[str]:
    """Names of the files that were fetched, in order."""
    return [request.path.rpartition("/")[2] for request in hub.of("content")]


def under_final_names(settings: Settings) -> list[Path]:
    """Everything that could be taken for a model."""
    return [path for path in (settings.paths.models_dir / "hf").rglob("*") if path.is_file()]


def test_an_onnx_folder(hub: Hub, phi: Repo, settings: Settings, onnx: dict[str, bytes]) -> None:
    seen: list[DownloadProgress] = []
    artifact = pull(REFERENCE, settings=settings, on_progress=seen.append)
    assert contents(artifact.path) == onnx, "every wanted file, and nothing else"
    assert not {*STRANGE, "README.md"} & set(asked_for(hub))
    assert (artifact.format, artifact.source, artifact.licence) == ("onnx", REFERENCE, "apache-2.0")
    assert artifact.path.name == "cpu--cpu-int4-rtn-block-32"
    assert artifact.path.parent.name == phi.commit[:12]
    for path in [artifact.path, *artifact.path.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    done = [step.done_bytes for step in seen if step.phase == "download"]
    total = sum(map(len, onnx.values())) - len(onnx["genai_config.json"])
    assert done == sorted(done)
    assert done[-1] == total
    assert {step.total_bytes for step in seen if step.phase == "download"} == {total}

    hub.requests.clear()
    again = resolve(REFERENCE, settings=settings)
    assert (again.path, again.sha256) == (artifact.path, artifact.sha256)
    assert verify(REFERENCE, settings=settings) == artifact.sha256
    assert resolve("hf:acme/phi-onnx:cpu-int4-rtn-block-32", settings=settings).path == artifact.path
    [listed] = list_models(settings)
    assert (listed.format, listed.quantisation, listed.owner) == ("onnx", "int4", "edge")
    assert listed.size_bytes == sum(map(len, onnx.values()))
    assert asked_for(hub) == []

    removed = remove(REFERENCE, settings)
    assert removed.freed_bytes == listed.size_bytes
    assert not (settings.paths.models_dir / "hf").exists()
    with pytest.raises(ModelNotFoundError, match="not on this device"):
        remove(REFERENCE, settings)


def test_a_core_ml_package(hub: Hub, settings: Settings, coreml: dict[str, bytes]) -> None:
    files = {f"coreml-ane/{name}": content for name, content in coreml.items()}
    files["coreml-ane/model.mlpackage/Data/com.apple.CoreML/evil.py"] = b"import os"
    hub.repos["acme/tiny-coreml"] = Repo(files, licence=None)
    artifact = pull("hf:acme/tiny-coreml", settings=settings)
    assert contents(artifact.path.parent) == coreml
    assert (artifact.format, artifact.path.name, artifact.name, artifact.licence) == (
        "coreml",
        "model.mlpackage",
        "Tiny",
        "MIT",
    )
    assert artifact.coreml is not None
    assert artifact.coreml.info.variant == "ane"
    hub.requests.clear()
    for name in ("hf:acme/tiny-coreml:coreml-ane", "hf:acme/tiny-coreml:coreml-ane/model.mlpackage", "hf:acme/tiny-coreml:ane"):
        assert pull(name, settings=settings).path == artifact.path
    assert asked_for(hub) == []
    # Another tokenizer: the weights are shared with the commit before, and all folders are private.
    hub.repos["acme/tiny-coreml"].files["coreml-ane/tokenizer.json"] = b'{"a": 1}'
    newer = pull("hf:acme/tiny-coreml", settings=settings)
    assert not {"weight.bin", "model.mlmodel"} & set(asked_for(hub)[2:])
    for path in (settings.paths.models_dir / "hf").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    assert newer.path.parent.parent.name == hub.repos["acme/tiny-coreml"].commit[:12]
    assert remove("hf:acme/tiny-coreml:ane", settings).paths == (artifact.path.parent,), "kept for the other names"
    coreml = {**coreml, "tokenizer.json": b'{"a": 1}'}
    [listed] = list_models(settings)
    assert (listed.format, listed.quantisation) == ("coreml", "ane")
    assert remove("hf:acme/tiny-coreml", settings).freed_bytes == sum(map(len, coreml.values()))


def test_the_choice_among_several_folders(hub: Hub, settings: Settings, onnx: dict[str, bytes], model: bytes) -> None:
    files = {f"{place}/{name}": content for place in ("cpu/int4", "gpu/int4-fp16") for name, content in onnx.items()}
    hub.repos["acme/many"] = Repo(files)
    with pytest.raises(UsageError, match="holds 2 folders") as caught:
        pull("hf:acme/many", settings=settings)
    assert "hf:acme/many:cpu/int4" in caught.value.hint
    assert "gpu/int4-fp16" in caught.value.hint
    with pytest.raises(UsageError, match="holds 2 folders"):
        pull("hf:acme/many:onnx", settings=settings)
    assert pull("hf:acme/many:int4", settings=settings).path.name == "cpu--int4"
    assert pull("hf:acme/many:gpu", settings=settings).path.name == "gpu--int4-fp16"
    with pytest.raises(ModelNotFoundError, match="no file or folder 'npu'") as missing:
        pull("hf:acme/many:npu", settings=settings)
    assert "cpu/int4" in missing.value.hint
    # A repository that is one ONNX folder needs no name; one GGUF file goes before a folder.
    hub.repos["acme/Root"] = Repo(dict(onnx))
    assert pull("hf:acme/Root", settings=settings).path.name == "Root"
    hub.repos["acme/both"] = Repo({"m-Q8_0.gguf": model, **{f"onnx/{name}": content for name, content in onnx.items()}})
    assert pull("hf:acme/both", settings=settings).format == "gguf"
    assert pull("hf:acme/both:onnx", settings=settings).format == "onnx"


def test_stopping_leaves_nothing_half_done_and_the_next_pull_goes_on(
    hub: Hub, phi: Repo, settings: Settings, onnx: dict[str, bytes]
) -> None:
    n_data = len(onnx["model.onnx.data"])

    def stop(progress: DownloadProgress) -> None:
        if progress.phase == "download" and progress.done_bytes > len(onnx["model.onnx"]) + n_data // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(REFERENCE, settings=settings, on_progress=stop)
    assert under_final_names(settings) == []
    assert list_models(settings) == []
    first = asked_for(hub)
    assert first[-1] == "model.onnx.data"
    hub.requests.clear()
    seen: list[DownloadProgress] = []
    artifact = pull(REFERENCE, settings=settings, on_progress=seen.append)
    assert contents(artifact.path) == onnx
    assert not set(asked_for(hub)) & set(first[:-1]), "what was there whole is not fetched again"
    [resumed] = [request.range_start for request in hub.of("content") if request.path.endswith(".data")]
    assert resumed > 0
    assert not list((settings.paths.models_dir / ".partial").iterdir())
    assert {"verify", "download"} <= {step.phase for step in seen}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_process_that_is_stopped(
    hub: Hub, phi: Repo, settings: Settings, onnx: dict[str, bytes], how: signal.Signals
) -> None:
    half = len(onnx["model.onnx.data"]) // 2
    for _ in range(2):  # genai_config.json, model.onnx
        hub.fail("content")
    hub.fail("content", stall_after=half)
    with start_child(REFERENCE) as child:
        assert child.stdout
        for line in child.stdout:
            phase, done = line.split()
            if phase == "download" and int(done) >= len(onnx["model.onnx"]) + half:
                break
        child.send_signal(how)
        assert child.wait(60) != 0
    assert under_final_names(settings) == []
    hub.requests.clear()
    assert contents(pull(REFERENCE, settings=settings).path) == onnx
    assert next((request.path.rpartition("/")[2], request.range_start) for request in hub.of("content")) == (
        "model.onnx.data",
        half,
    )


def test_what_was_gathered_is_read_again(hub: Hub, phi: Repo, settings: Settings, onnx: dict[str, bytes]) -> None:
    """Whatever happened to the files since, only what the hub promised gets a name."""
    hub.fail("content")  # genai_config.json
    hub.fail("content")  # model.onnx
    for _ in range(8):
        hub.fail("content", break_after=0)
    with pytest.raises(DownloadError, match="broke off"):
        pull(REFERENCE, settings=settings)
    [gathered] = (settings.paths.models_dir / ".partial").rglob("model.onnx")
    gathered.write_bytes(b"x" * gathered.stat().st_size)
    hub.faults["content"].clear()
    assert contents(pull(REFERENCE, settings=settings).path) == onnx


def test_a_file_that_is_not_what_was_promised(hub: Hub, phi: Repo, settings: Settings, onnx: dict[str, bytes]) -> None:
    size = len(onnx["model.onnx.data"])
    hub.fail("content")
    hub.fail("content")
    hub.fail("content", content=b"x" * size)
    with pytest.raises(ChecksumError, match=r"model\.onnx\.data is damaged"):
        pull(REFERENCE, settings=settings)
    assert under_final_names(settings) == []
    assert contents(pull(REFERENCE, settings=settings).path) == onnx


def test_changes_of_a_folder_are_noticed(hub: Hub, phi: Repo, settings: Settings) -> None:
    artifact = pull(REFERENCE, settings=settings)
    weights = artifact.path / "model.onnx.data"
    os.utime(weights, ns=(1, 1))
    assert resolve(REFERENCE, settings=settings).sha256 == artifact.sha256, "only touched"
    state = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"rot")
    with pytest.raises(ModelFileError, match="damaged or was changed"):
        resolve(REFERENCE, settings=settings)
    (artifact.path / "tokenizer.json").write_text("{}")
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(ModelFileError, match=r"damaged or was changed|is damaged") as caught:
        verify(REFERENCE, settings=settings)
    assert f"edge models rm {REFERENCE}" in caught.value.hint
    # Fetched again in its place; nothing of the old one is left.
    assert pull(REFERENCE, settings=settings).sha256 == artifact.sha256
    assert not list((settings.paths.models_dir / ".partial").iterdir())


def test_bits_that_rot_are_found_by_verify(hub: Hub, phi: Repo, settings: Settings) -> None:
    path = pull(REFERENCE, settings=settings).path / "model.onnx.data"
    state = path.stat()
    with path.open("r+b") as file:
        file.write(b"rot")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(ModelFileError, match="damaged or was changed"):  # somebody wrote it: another time of status
        resolve(REFERENCE, settings=settings)
    sidecar = next(settings.paths.models_dir.rglob("*.edge.json"))
    sidecar.write_text(sidecar.read_text().replace(str(state.st_ctime_ns), str(path.stat().st_ctime_ns)))
    resolve(REFERENCE, settings=settings)
    with pytest.raises(ModelFileError, match="damaged or was changed"):
        verify(REFERENCE, settings=settings)


def test_a_newer_commit_shares_what_is_the_same(hub: Hub, phi: Repo, settings: Settings, onnx: dict[str, bytes]) -> None:
    old = pull(REFERENCE, settings=settings)
    old_commit = phi.commit
    hub.requests.clear()
    phi.files[f"{FOLDER}/special_tokens_map.json"] = b'{"a": 1}'
    new = pull(REFERENCE, settings=settings)
    assert new.path != old.path
    assert not old.path.exists()
    assert contents(new.path) == {**onnx, "special_tokens_map.json": b'{"a": 1}'}
    assert not {"model.onnx", "model.onnx.data"} & set(asked_for(hub)), "one file under two names"
    # A pinned commit stays unchanged.
    phi.files[f"{FOLDER}/special_tokens_map.json"] = b"{}"
    assert phi.commit == old_commit
    pinned = pull(f"{REFERENCE}@{old_commit}", settings=settings)
    phi.files[f"{FOLDER}/special_tokens_map.json"] = b'{"a": 2}'
    pull(REFERENCE, settings=settings)
    assert resolve(f"{REFERENCE}@{old_commit}", settings=settings).path == pinned.path
    assert contents(pinned.path) == onnx


def test_the_disk_has_to_have_room_for_all_of_it(
    hub: Hub, phi: Repo, settings: Settings, onnx: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = (64 << 20) + sum(map(len, onnx.values())) - 1000

    monkeypatch.setattr("edge.sources.store.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(StorageError, match="this needs"):
        pull(REFERENCE, settings=settings)
    assert asked_for(hub) == ["genai_config.json"]


def test_what_cannot_be_run_is_refused_before_its_weights(
    hub: Hub, phi: Repo, settings: Settings, coreml: dict[str, bytes]
) -> None:
    config = json.loads(phi.files[f"{FOLDER}/genai_config.json"])
    config["model"]["vision"] = {"filename": "vision.onnx"}
    phi.files[f"{FOLDER}/genai_config.json"] = json.dumps(config).encode()
    with pytest.raises(ModelFileError, match="also has a part for vision"):
        pull(REFERENCE, settings=settings)
    others = {**coreml, "model.mlpackage/Data/com.apple.CoreML/model.mlmodel": program_of({"author": "others"})}
    hub.repos["others/m"] = Repo(others)
    with pytest.raises(ModelFileError, match="not made by `edge convert`"):
        pull("hf:others/m", settings=settings)
    assert not {"model.onnx.data", "weight.bin"} & set(asked_for(hub))
    assert under_final_names(settings) == []


@pytest.mark.parametrize("filename", ["../../evil.onnx", "/etc/evil.onnx", "a\\..\\evil.onnx", "missing.onnx", ".hidden.onnx"])
def test_a_configuration_that_points_elsewhere(hub: Hub, phi: Repo, settings: Settings, filename: str) -> None:
    config = json.loads(phi.files[f"{FOLDER}/genai_config.json"])
    config["model"]["decoder"]["filename"] = filename
    phi.files |= {f"{FOLDER}/genai_config.json": json.dumps(config).encode(), f"{FOLDER}/.hidden.onnx": b"x", "evil.onnx": b"x"}
    with pytest.raises((ModelFileError, DownloadError), match=r"not in its own folder|names|not safe"):
        pull(REFERENCE, settings=settings)
    assert asked_for(hub) == ["genai_config.json"]
    assert not list(settings.paths.models_dir.parent.rglob("*evil*"))


@pytest.mark.parametrize("place", ["../../evil", "/evil", "a/../../evil", ".evil", "e\x1bvil", "a//evil"])
def test_names_of_folders_cannot_lead_out(
    hub: Hub, settings: Settings, onnx: dict[str, bytes], coreml: dict[str, bytes], place: str
) -> None:
    hub.repos["acme/evil"] = Repo({f"{place}/{name}": content for name, content in onnx.items()})
    with pytest.raises(DownloadError, match="not safe"):
        pull("hf:acme/evil", settings=settings)
    files = {name.replace("com.apple.CoreML", place): content for name, content in coreml.items()}
    hub.repos["acme/evil2"] = Repo(files)
    with pytest.raises((DownloadError, ModelFileError)):
        pull("hf:acme/evil2", settings=settings)
    assert not list(settings.paths.models_dir.parent.rglob("*evil*.onnx*"))
    assert under_final_names(settings) == []


def test_a_folder_cannot_bring_a_record_of_its_own(hub: Hub, settings: Settings, onnx: dict[str, bytes]) -> None:
    hub.repos["acme/liar"] = Repo({**onnx, "model.onnx.data.edge.json": b"{}", "tokenizer.json.edge.json": b"{}"})
    with pytest.raises(DownloadError, match="not safe"):
        pull("hf:acme/liar", settings=settings)


def test_weights_that_are_missing_are_named(hub: Hub, phi: Repo, settings: Settings) -> None:
    del phi.files[f"{FOLDER}/model.onnx.data"]
    with pytest.raises(ModelFileError, match=r"model\.onnx\.data") as caught:
        pull(REFERENCE, settings=settings)
    assert f"edge models rm {REFERENCE}" in caught.value.hint
    assert remove(REFERENCE, settings).freed_bytes > 0


def test_onnx_files_of_another_layout(hub: Hub, settings: Settings) -> None:
    hub.repos["acme/web"] = Repo({"onnx/model_q4.onnx": b"x", "config.json": b"{}"})
    with pytest.raises(ModelNotFoundError, match=r"without a genai_config\.json"):
        pull("hf:acme/web", settings=settings)


def test_threads_that_pull_the_same_folder(hub: Hub, phi: Repo, settings: Settings) -> None:
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(pull(REFERENCE, settings=settings).path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 3
    assert len(set(results)) == 1
    names = asked_for(hub)
    assert len(names) == len(set(names))


def test_without_a_network(hub: Hub, phi: Repo, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_HUB_OFFLINE", "1")
    offline = load_settings()
    with pytest.raises(ModelNotFoundError, match="not to use the network"):
        resolve(REFERENCE, settings=offline)
    assert not hub.requests
    path = pull(REFERENCE, settings=settings).path
    hub.requests.clear()
    assert resolve(REFERENCE, settings=offline).path == path
    assert pull(REFERENCE, settings=offline).path == path
    assert not hub.requests


# -- one name, three formats


@pytest.fixture
def three(
    hub: Hub, phi: Repo, settings: Settings, model: bytes, coreml: dict[str, bytes], own_home: Path
) -> Iterator[dict[str, Any]]:
    """A model of the user's catalogue, in three formats on the hub."""
    hub.repos["acme/t-GGUF"] = Repo({"t-Q8_0.gguf": model})
    hub.repos["acme/t-coreml"] = Repo(dict(coreml))
    (own_home / "catalog.toml").write_text(
        f"""
        [models.three]
        licence = "MIT"
        [[models.three.artifacts]]
        reference = "hf:acme/t-GGUF:t-Q8_0.gguf"
        quantisation = "Q8_0"
        [[models.three.artifacts]]
        reference = "{REFERENCE}"
        quantisation = "int4"
        [[models.three.artifacts]]
        reference = "hf:acme/t-coreml:model.mlpackage"
        """
    )
    yield {}


def test_the_format_that_is_fetched_is_the_first_that_can_be_used(hub: Hub, three: object, settings: Settings) -> None:
    artifact = pull("three", settings=settings, formats=("coreml", "gguf"))
    assert (artifact.format, artifact.name, artifact.licence) == ("coreml", "three", "MIT")
    # One that is here is used before another one is fetched.
    assert resolve("three", settings=settings, formats=("gguf", "coreml")).path == artifact.path
    assert [each.format for each in resolve_all("three", settings=settings)] == ["coreml"]
    assert pull("three", settings=settings, formats=("onnx",)).format == "onnx"
    assert [each.format for each in resolve_all("three", settings=settings)] == ["onnx", "coreml"]
    assert [each.format for each in resolve_all("three", settings=settings, formats=("gguf", "onnx"))] == ["onnx"]
    assert [(model.name, model.format, model.quantisation) for model in list_models(settings)] == [
        ("three", "onnx", "int4"),
        ("three", "coreml", "ane"),
    ]
    assert len(remove("three", settings, formats=("coreml",)).paths) == 1
    assert [each.format for each in resolve_all("three", settings=settings)] == ["onnx"]
    pull("three", settings=settings)
    assert [each.format for each in resolve_all("three", settings=settings)] == ["gguf", "onnx"]
    assert len(remove("three", settings).paths) == 2
    assert list_models(settings) == []


def test_the_catalogue_can_pin_a_folder(hub: Hub, phi: Repo, settings: Settings, own_home: Path) -> None:
    digest = pull(REFERENCE, settings=settings).sha256
    remove(REFERENCE, settings)
    catalogue = own_home / "catalog.toml"
    text = f'[models.pinned]\n[[models.pinned.artifacts]]\nreference = "{REFERENCE}"\nsha256 = "%s"\n'
    catalogue.write_text(text % ("0" * 64))
    with pytest.raises(ChecksumError, match="not what the catalogue names"):
        pull("pinned", settings=settings)
    assert under_final_names(settings) == []
    catalogue.write_text(text % digest)
    assert pull("pinned", settings=settings).sha256 == digest
