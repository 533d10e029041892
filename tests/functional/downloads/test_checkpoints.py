"""Checkpoints and adapters on a hub, for the converters: whole or not there, safetensors only."""

from __future__ import annotations

import json

import pytest

from edge.catalog import DownloadProgress, list_for_converters, list_models, pull_adapter, pull_checkpoint, remove
from edge.config import Settings, load_settings
from edge.errors import ChecksumError, DownloadError, ModelFileError, ModelNotFoundError, UsageError
from tests.servers.hub import Hub, Repo

REFERENCE = "hf:acme/base"
SHARDS = {f"model-0000{n}-of-00003.safetensors": bytes([n]) * 300_000 for n in (1, 2, 3)}


@pytest.fixture
def base(hub: Hub) -> Repo:
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "README.md": b"hello", "modeling_x.py": b"import os", **SHARDS}
    files |= {
        "model.safetensors.index.json": json.dumps({}).encode(),
        "pytorch_model.bin": b"x",
        "onnx/model.safetensors": b"x",
    }
    hub.repos["acme/base"] = Repo(files | {"tokenizer.json.edge.json": b"{}"})
    return hub.repos["acme/base"]


def names(hub: Hub) -> list[str]:
    return [request.path.rpartition("/")[2] for request in hub.of("content")]


def test_a_checkpoint_of_several_shards(hub: Hub, base: Repo, settings: Settings) -> None:
    seen: list[DownloadProgress] = []
    found = pull_checkpoint(REFERENCE, settings=settings, on_progress=seen.append)
    assert found is not None
    wanted = {"config.json", "tokenizer.json", "README.md", "model.safetensors.index.json", *SHARDS}
    assert {path.name for path in found.path.iterdir()} == wanted
    assert set(names(hub)) == wanted
    assert (found.licence, found.owner) == ("apache-2.0", "edge")
    done = [step.done_bytes for step in seen if step.phase == "download"]
    assert done == sorted(done)
    assert done[-1] == seen[-1].total_bytes == found.size_bytes
    hub.requests.clear()
    again = pull_checkpoint(REFERENCE, settings=settings)
    assert again is not None
    assert again.path == found.path
    assert hub.requests == []
    assert list_models(settings) == [], "no engine reads it"
    assert [(kind, here.reference, here.path) for kind, here in list_for_converters(settings)] == [
        ("checkpoint", REFERENCE, found.path)
    ]
    assert remove(REFERENCE, settings).freed_bytes == found.size_bytes
    assert not (settings.paths.models_dir / "checkpoints").exists()


def test_a_model_for_embeddings_brings_how_it_pools(hub: Hub, settings: Settings) -> None:
    beside = {"modules.json": b"[]", "sentence_bert_config.json": b"{}", "1_Pooling/config.json": b"{}"}
    hub.repos["acme/base"] = Repo(
        {
            "config.json": b"{}",
            "model.safetensors": b"x",
            "2_Dense/config.json": b"{}",
            "onnx/1_Pooling/config.json": b"x",
            **beside,
        }
    )
    found = pull_checkpoint(REFERENCE, settings=settings)
    assert found is not None
    made = {path.relative_to(found.path).as_posix() for path in found.path.rglob("*") if path.is_file()}
    assert made == {"config.json", "model.safetensors", *beside}


def test_an_interrupted_checkpoint_goes_on_and_is_nowhere_before(hub: Hub, base: Repo, settings: Settings) -> None:
    def stop(progress: DownloadProgress) -> None:
        if progress.done_bytes > 450_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_checkpoint(REFERENCE, settings=settings, on_progress=stop)
    assert not (settings.paths.models_dir / "checkpoints").exists()
    hub.requests.clear()
    found = pull_checkpoint(REFERENCE, settings=settings)
    assert found is not None
    assert {path.name: path.read_bytes() for path in found.path.glob("*.safetensors")} == SHARDS
    assert names(hub)[0] == "model-00002-of-00003.safetensors"
    assert hub.of("content")[0].range_start > 0


def test_a_shard_that_is_damaged(hub: Hub, base: Repo, settings: Settings) -> None:
    for _ in range(3):
        hub.fail("content")
    hub.fail("content", content=b"x" * 300_000)
    with pytest.raises(ChecksumError, match="00002-of-00003"):
        pull_checkpoint(REFERENCE, settings=settings)
    assert pull_checkpoint(REFERENCE, settings=settings) is not None


def test_a_commit_and_what_is_newer(hub: Hub, base: Repo, settings: Settings) -> None:
    first = pull_checkpoint(REFERENCE, settings=settings)
    commit = base.commit
    base.files["config.json"] = b'{"a": 1}'
    assert first is not None
    for reference in (REFERENCE, f"{REFERENCE}@{commit}", f"{REFERENCE}@{commit[:9]}"):
        found = pull_checkpoint(reference, settings=settings)
        assert found is not None
        assert found.path == first.path
    hub.requests.clear()
    newer = pull_checkpoint(f"{REFERENCE}@main", settings=settings)
    assert newer is not None
    assert newer.path != first.path
    assert names(hub) == ["README.md", "config.json", "model.safetensors.index.json", "tokenizer.json"], "shards are shared"


def test_adapters(hub: Hub, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x" * 1000}
    hub.repos |= {
        "acme/lora": Repo({**good, "adapter_model.bin": b"x", "train.py": b"x"}),
        "acme/old": Repo({"adapter_config.json": b"{}", "adapter_model.bin": b"x"}),
        "acme/none": Repo({"README.md": b"x"}),
    }
    found = pull_adapter("hf:acme/lora", settings=settings)
    assert {path.name for path in found.path.iterdir()} == set(good)
    assert [kind for kind, _ in list_for_converters(settings)] == ["adapter"]
    assert names(hub) == list(good)
    with pytest.raises(ModelFileError, match=r"as pickle \(adapter_model\.bin\)"):
        pull_adapter("hf:acme/old", settings=settings)
    with pytest.raises(ModelNotFoundError, match="holds no LoRA adapter"):
        pull_adapter("hf:acme/none", settings=settings)
    with pytest.raises(UsageError, match="names a file"):
        pull_adapter("hf:acme/lora:adapter_model.safetensors", settings=settings)
    monkeypatch.setenv("EDGE_HUB_OFFLINE", "1")
    assert pull_adapter("hf:acme/lora", settings=load_settings()).path == found.path
    with pytest.raises(ModelNotFoundError, match="not to use the network"):
        pull_adapter("hf:acme/none", settings=load_settings())


def test_names_that_lead_out_of_the_folder(hub: Hub, base: Repo, settings: Settings) -> None:
    base.files["tokenizer\\..\\evil.json"] = b"x"
    with pytest.raises(DownloadError, match="not safe"):
        pull_checkpoint(REFERENCE, settings=settings)
    assert not list(settings.paths.models_dir.parent.rglob("*evil*"))
