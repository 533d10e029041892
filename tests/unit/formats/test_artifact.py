"""Files and folders that are models, and the errors for all others."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from edge.errors import ModelFileError, ModelNotFoundError
from edge.formats.artifact import open_artifact, open_artifacts
from edge.hashes import file_sha256
from tests.tiny_onnx import write_onnx


def write_model(path: Path, *, kind: str | None = None, arch: str = "llama", layers: int = 1, tensors: int = 1) -> Path:
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("Tiny Model")
    writer.add_license("apache-2.0")
    if kind:
        writer.add_type(kind)
    writer.add_block_count(layers)
    writer.add_embedding_length(8)
    for i in range(tensors):
        writer.add_tensor(f"t{i}", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_an_artifact(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    artifact = open_artifact(path)
    assert artifact.path == path
    assert (artifact.format, artifact.name, artifact.licence) == ("gguf", "Tiny Model", "apache-2.0")
    assert artifact.size_bytes == path.stat().st_size
    assert artifact.sha256 is None
    assert artifact.source == str(path)
    assert artifact.header is not None
    assert artifact.header.architecture == "llama"


def test_the_caller_may_know_better(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    artifact = open_artifact(path, name="mine", source="hf:a/b", sha256="0" * 64, licence="MIT")
    assert (artifact.name, artifact.source, artifact.licence) == ("mine", "hf:a/b", "MIT")
    assert artifact.sha256 == "0" * 64


def test_a_folder_with_one_model_is_that_model(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.gguf")
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / ".hidden.gguf").write_text("not this one")
    assert open_artifact(tmp_path).path == path


def test_a_path_may_start_with_the_home(own_home: Path) -> None:
    write_model(own_home / "m.gguf")
    assert open_artifact("~/m.gguf").path == own_home / "m.gguf"


def test_an_onnx_folder_is_an_artifact(tmp_path: Path) -> None:
    folder = write_onnx(tmp_path / "onnx-model")
    artifact = open_artifact(folder)
    assert (artifact.format, artifact.name, artifact.path, artifact.header) == ("onnx", "onnx-model", folder, None)
    assert artifact.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert artifact.facts is not None
    assert (artifact.facts.n_layer, artifact.facts.kv_type, artifact.facts.quantisation) == (2, "f32", "f32")
    assert artifact.facts.cell_bytes == 2 * 2 * 2 * 32 * 4
    assert artifact.weight_files == (folder / "model.onnx", folder / "model.onnx.data")
    write_manifest(folder, name="Tiny", licence="MIT")
    artifact = open_artifact(folder)
    assert (artifact.name, artifact.licence, artifact.made_from) == ("Tiny", "MIT", ("a" * 64,))
    assert open_artifact(folder, name="mine", licence="0BSD").name == "mine"


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    package = tmp_path / "model.mlpackage"
    package.mkdir()
    with pytest.raises(ModelFileError):
        open_artifact(package)
    folder = tmp_path / "onnx"
    folder.mkdir()
    (folder / "genai_config.json").write_text("{}")
    with pytest.raises(ModelFileError):
        open_artifact(folder)


def write_manifest(folder: Path, **values: object) -> None:
    """As `edge convert` leaves it, as far as it counts."""
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"source_files": [{"name": "m", "sha256": "a" * 64}], **values}))


def test_one_model_in_several_formats(tmp_path: Path) -> None:
    write_manifest(tmp_path / "gguf-Q4_0", name="Tiny")
    gguf = write_model(tmp_path / "gguf-Q4_0" / "model.gguf")
    assert [each.path for each in open_artifacts(tmp_path)] == [gguf]
    onnx = write_onnx(tmp_path / "onnx-int4")
    write_manifest(onnx, name="Tiny")
    (tmp_path / ".work-1").mkdir()
    (tmp_path / "card.md").write_text("a card")
    assert [(each.format, each.path) for each in open_artifacts(tmp_path)] == [("gguf", gguf), ("onnx", onnx)]
    assert [each.path for each in open_artifacts(onnx)] == [onnx]
    assert [each.path for each in open_artifacts(gguf)] == [gguf]
    with pytest.raises(ModelFileError, match=r"2 models: gguf-Q4_0/model\.gguf, onnx-int4"):
        open_artifact(tmp_path)


@pytest.mark.parametrize("manifest", [None, {"name": "Other"}, {"name": "Tiny", "source_files": []}, "no JSON"])
def test_models_that_are_not_the_same_are_not_chosen_from(tmp_path: Path, manifest: object) -> None:
    for name in ("a", "b"):
        write_manifest(tmp_path / name, name="Tiny")
        write_model(tmp_path / name / "model.gguf")
    assert len(open_artifacts(tmp_path)) == 2
    other = tmp_path / "b" / "manifest.json"
    if manifest is None:
        other.unlink()
        (tmp_path / "a" / "manifest.json").unlink()
    elif isinstance(manifest, dict):
        write_manifest(tmp_path / "b", **manifest)
    else:
        other.write_text(str(manifest))
    with pytest.raises(ModelFileError, match="2 models"):
        open_artifacts(tmp_path)


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="without a model"):
        open_artifact(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(ModelFileError, match="checkpoint") as caught:
        open_artifact(tmp_path)
    assert "edge convert" in caught.value.hint
    for name in ("a.gguf", "b.gguf"):
        write_model(tmp_path / name)
    with pytest.raises(ModelFileError, match=r"2 models: a\.gguf, b\.gguf"):
        open_artifact(tmp_path)


def test_missing_paths(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        open_artifact(tmp_path / "none.gguf")
    assert caught.value.exit_code == 3
    with pytest.raises(ModelNotFoundError):
        open_artifact("a\0b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "adapter"}, "LoRA adapter"),
        ({"kind": "mmproj"}, "picture or sound"),
        ({"kind": "imatrix"}, "importance matrix"),
        ({"arch": "clip"}, "picture or sound"),
        ({"tensors": 0}, "vocabulary and no weights"),
        ({"layers": 0}, "how many layers"),
    ],
)
def test_gguf_files_that_are_no_language_model(tmp_path: Path, options: dict[str, object], message: str) -> None:
    path = write_model(tmp_path / "m.gguf", **options)  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match=message):
        open_artifact(path)


def split_model(folder: Path, n: int = 2) -> list[Path]:
    """Write a model in parts by llama.cpp's own writer; only the first says what model it is."""
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=1)
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    for i in range(n):
        writer.add_tensor(f"t{i}", np.zeros((8, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(folder.glob("*.gguf"))
    assert len(parts) == n
    return parts


def test_a_split_model_is_opened_by_its_first_file_or_its_folder(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "parts", 3)
    artifact = open_artifact(parts[0])
    assert artifact.weight_files == tuple(parts)
    assert artifact.size_bytes == sum(part.stat().st_size for part in parts)
    assert artifact.header is not None
    assert [tensor.name for tensor in artifact.header.tensors] == ["t0", "t1", "t2"]
    for place in (parts[0].parent, tmp_path):
        assert [one.path for one in open_artifacts(place)] == [parts[0]]
    whole = write_model(parts[0].parent / "whole.gguf")
    assert open_artifact(parts[0].parent).path == open_artifact(tmp_path).path == whole


def test_mistakes_with_split_models_are_said_by_name(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "parts", 3)
    with pytest.raises(ModelFileError, match="part 2 of a model in 3 files") as caught:
        open_artifact(parts[1])
    assert caught.value.hint == "Give the first one: m-00001-of-00003.gguf"
    renamed = parts[0].rename(tmp_path / "parts" / "other.gguf")
    with pytest.raises(ModelFileError, match="the first of 3 files of a model, and its name does not say so"):
        open_artifact(renamed)
    with pytest.raises(ModelNotFoundError, match=r"its first file, m-00001-of-00003\.gguf, is not there"):
        parts[0].with_name("empty").mkdir()
        for part in parts[1:]:
            part.rename(parts[0].with_name("empty") / part.name)
        open_artifact(parts[0].with_name("empty"))


def test_a_missing_or_foreign_part_is_said_by_name(tmp_path: Path) -> None:
    parts = split_model(tmp_path / "parts", 3)
    taken = parts[1].read_bytes()
    parts[1].unlink()
    with pytest.raises(ModelNotFoundError, match=r"m-00002-of-00003\.gguf is not beside it"):
        open_artifact(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(ModelFileError, match=r"m-00002-of-00003\.gguf is not part 2 of m-00001-of-00003\.gguf"):
        open_artifact(parts[0])
    parts[1].write_bytes(taken[:-100])
    with pytest.raises(ModelFileError, match=r"m-00002-of-00003\.gguf is cut off"):
        open_artifact(parts[0])


def test_a_split_model_of_one_part_is_whole(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m-00001-of-00001.gguf")
    assert open_artifact(tmp_path).path == path


@pytest.mark.parametrize(
    "beside",
    ["mmproj-Model-f16.gguf", "Model-mmproj-f16.gguf", "Model.mmproj-f16.gguf", "MMPROJ-Model-F16.GGUF", "imatrix.gguf"],
)
def test_files_that_other_programs_put_beside_a_model(tmp_path: Path, beside: str) -> None:
    write_model(tmp_path / beside)
    model = write_model(tmp_path / "Model-Q4_1.gguf")
    assert open_artifact(tmp_path).path == model
    assert [artifact.path for artifact in open_artifacts(tmp_path)] == [model]
    model.unlink()
    assert open_artifact(tmp_path).path == tmp_path / beside, "alone it is what the folder holds"


@pytest.mark.parametrize("options", [{"kind": "adapter"}, {"kind": "mmproj"}, {"kind": "imatrix"}, {"arch": "clip"}])
def test_files_beside_a_model_are_told_by_their_header(tmp_path: Path, options: dict[str, str]) -> None:
    write_model(tmp_path / "a.gguf", **options)  # type: ignore[arg-type]
    model = write_model(tmp_path / "b.gguf")
    assert open_artifact(tmp_path).path == model
    write_model(tmp_path / "c.gguf")
    with pytest.raises(ModelFileError, match=r"2 models: b\.gguf, c\.gguf"):
        open_artifact(tmp_path)


def test_capitals_and_folders_named_like_files(tmp_path: Path) -> None:
    (tmp_path / "repo.gguf").mkdir()
    model = write_model(tmp_path / "MODEL.GGUF")
    assert open_artifact(tmp_path).path == model
    assert open_artifact(model).format == "gguf"


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".gguf", "tell me a story " * 400, "a/" * 5000, "a\0b"])
def test_a_text_that_cannot_be_a_path(name: str) -> None:
    for ask in (open_artifact, open_artifacts):
        with pytest.raises(ModelNotFoundError, match="no file or folder") as caught:
            ask(name)
        assert len(caught.value.message) < 300


def test_hashes_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"a" * 3_000_000)
    expected = hashlib.sha256(b"a" * 3_000_000).hexdigest()
    read: list[int] = []
    assert file_sha256(path, cache_dir=cache, on_bytes=read.append) == expected
    assert read[-1] == 3_000_000
    read.clear()
    assert file_sha256(path, cache_dir=cache, on_bytes=read.append) == expected
    assert not read
    assert file_sha256(path, cache_dir=cache, fresh=True, on_bytes=read.append) == expected
    assert read
    assert (cache / "hashes.json").stat().st_mode & 0o777 == 0o600
    # Same size, other content: the time of change gives it away, whatever the clock's resolution.
    path.write_bytes(b"b" * 3_000_000)
    os.utime(path, ns=(1, 1))
    assert file_sha256(path, cache_dir=cache) == hashlib.sha256(b"b" * 3_000_000).hexdigest()


@pytest.mark.parametrize("how", ["in place", "renamed"])
def test_a_file_replaced_by_one_of_the_same_size_and_time_is_hashed_again(tmp_path: Path, how: str) -> None:
    """As `cp --preserve=timestamps` and `rsync --inplace -t` do: the KV cache of one model was used for another."""
    path, other, cache = tmp_path / "model.gguf", tmp_path / "tuned.gguf", tmp_path / "cache"
    for file, content in ((path, b"a"), (other, b"b")):
        file.write_bytes(content * 1000)
        os.utime(file, ns=(10**18, 10**18))
    assert file_sha256(path, cache_dir=cache) == hashlib.sha256(b"a" * 1000).hexdigest()
    if how == "in place":
        shutil.copyfile(other, path)
        shutil.copystat(other, path)
    else:
        other.replace(path)
    assert file_sha256(path, cache_dir=cache) == hashlib.sha256(b"b" * 1000).hexdigest()


def test_a_file_that_changes_while_it_is_hashed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a" * 1000)
    changes = iter([b"b" * 1000])

    def change(done: int) -> None:
        content = next(changes, None)
        if content is not None:
            path.write_bytes(content)
            os.utime(path, ns=(1, 1))

    assert file_sha256(path, cache_dir=tmp_path / "cache", on_bytes=change) == hashlib.sha256(b"b" * 1000).hexdigest()
    changes = iter(lambda: os.urandom(1000), None)
    with pytest.raises(ModelFileError, match="changes while it is read"):
        file_sha256(path, cache_dir=tmp_path / "other", on_bytes=change)


@pytest.mark.parametrize("content", ["", "nonsense", "[]", '{"/x": 3}', json.dumps({"/x": [1, 2]})])
def test_a_damaged_memory_of_hashes_only_costs_time(tmp_path: Path, content: str) -> None:
    path, cache = tmp_path / "file", tmp_path / "cache"
    path.write_bytes(b"a")
    cache.mkdir()
    (cache / "hashes.json").write_text(content)
    for _ in range(2):
        assert file_sha256(path, cache_dir=cache) == hashlib.sha256(b"a").hexdigest()


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"a")
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert file_sha256(path, cache_dir=tmp_path / "cache") == hashlib.sha256(b"a").hexdigest()


def test_files_that_cannot_be_hashed(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        file_sha256(tmp_path / "none")
