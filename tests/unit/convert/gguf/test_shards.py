"""Models in several GGUF files: split as llama.cpp does, opened, and joined again."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the extra [convert]")

import gguf

from edge.errors import ModelFileError, ModelNotFoundError, StorageError, UsageError
from edge.formats.gguf import read_header
from edge_convert.gguf import shards
from edge_convert.gguf.quantise import GgufOptions
from edge_convert.gguf.shards import join_shards, split_into_shards, whole_source
from edge_convert.inputs import Input


def make_model(path: Path, alignment: int = 0) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_array("tokenizer.ggml.tokens", [f"t{n}" for n in range(90)])
    writer.add_bool("x.flag", True)
    draw = np.random.default_rng(0)
    for number in range(6):
        writer.add_tensor(f"t{number}", draw.standard_normal((64, 128 * (number + 1))).astype(np.float32))
    data = np.frombuffer(draw.bytes(34 * 8), dtype=np.uint8).reshape(4, -1)
    writer.add_tensor("q", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def content(path: Path) -> tuple[dict[str, object], dict[str, tuple[str, tuple[int, ...], bytes]]]:
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    tensors = {one.name: (one.tensor_type.name, tuple(one.shape.tolist()), one.data.tobytes()) for one in reader.tensors}
    return keys, tensors


def test_split_and_joined_again_it_is_the_same_model(tmp_path: Path) -> None:
    before = content(make_model(tmp_path / "m.gguf"))
    header = read_header(tmp_path / "m.gguf")
    files = split_into_shards(tmp_path / "m.gguf", 200_000)
    assert [file.name for file in files] == [f"m-0000{n}-of-0000{len(files)}.gguf" for n in range(1, len(files) + 1)]
    assert len(files) > 2
    assert sorted(tmp_path.iterdir()) == files  # the whole one is gone
    first, _ = content(files[0])
    assert (first["split.no"], first["split.count"], first["split.tensors.count"]) == (0, len(files), 7)
    assert set(content(files[1])[0]) == {"split.no", "split.count", "split.tensors.count"}
    split = read_header(files[0])
    assert (split.n_params, split.tensors_bytes, split.name) == (header.n_params, header.tensors_bytes, "tiny")
    assert content(join_shards(files[0], tmp_path / "again.gguf")) == before


@pytest.mark.parametrize("name", ["a[1]*?.gguf", "-00001-of-.gguf"])
def test_odd_names_and_alignments_are_split_and_joined(name: str, tmp_path: Path) -> None:
    keys, tensors = content(make_model(tmp_path / name, alignment=4096))
    files = split_into_shards(tmp_path / name, 200_000)
    assert len(files) > 2
    assert files == sorted(tmp_path.iterdir())
    assert keys.pop("general.alignment") == 4096
    assert content(join_shards(files[0], tmp_path / "again.gguf")) == (keys, tensors)


def test_an_empty_list_of_the_metadata_is_left_out(tmp_path: Path) -> None:
    data = make_model(tmp_path / "m.gguf").read_bytes()
    at = data.index(b"x.flag") - 8
    # An empty list of strings, before the last key; the padding before the tensors takes its length.
    item = struct.pack("<Q", 7) + b"x.empty" + struct.pack("<IIQ", 9, 8, 0)
    start = gguf.GGUFReader(tmp_path / "m.gguf").data_offset
    end = len(data[:start].rstrip(b"\0")) + 8  # the last offset may end with zeros
    count = struct.pack("<Q", struct.unpack_from("<Q", data, 16)[0] + 1)
    head = data[:16] + count + data[24:at] + item + data[at:end]
    (tmp_path / "m.gguf").write_bytes(head + bytes(-len(head) % 32) + data[start:])
    keys, tensors = content(tmp_path / "m.gguf")
    assert keys["x.empty"] == []
    files = split_into_shards(tmp_path / "m.gguf", 200_000)
    found = content(join_shards(files[0], tmp_path / "again.gguf"))
    assert found == ({key: value for key, value in keys.items() if key != "x.empty"}, tensors)


def test_files_that_the_writer_refuses_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = split_into_shards(make_model(tmp_path / "m.gguf"), 200_000)

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Duplicated tensor name 't0'")

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor_info", refuse)
    with pytest.raises(ModelFileError, match="cannot be joined: Duplicated tensor name"):
        join_shards(files[0], tmp_path / "again.gguf")
    assert sorted(tmp_path.iterdir()) == files


@pytest.mark.parametrize("name", ["m-00001-of-00002.gguf", "m-00001-of-00000.gguf"])
def test_a_whole_model_that_is_called_a_part_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    source = Input(kind="gguf", path=make_model(tmp_path / name), source=name)
    with whole_source(source, tmp_path / "out") as whole:
        assert whole == source
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_folder_of_the_results_may_be_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "below").mkdir(parents=True)
    files = split_into_shards(make_model(tmp_path / "m.gguf"), 200_000)
    source = Input(kind="gguf", path=files[0], source=files[0].name)
    monkeypatch.chdir(tmp_path / "here" / "below")
    for out in (Path(), Path("..")):
        with whole_source(source, out) as whole:
            assert whole.path.is_file()
    assert sorted(tmp_path.rglob("*")) == sorted([*files, tmp_path / "here", tmp_path / "here" / "below"])


def test_a_source_is_joined_by_one_process_and_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = split_into_shards(make_model(tmp_path / "m.gguf"), 200_000)
    source = Input(kind="gguf", path=files[0], source=files[0].name)
    with (
        whole_source(source, tmp_path / "out"),
        pytest.raises(UsageError, match="Another process converts this model"),
        whole_source(source, tmp_path / "out"),
    ):
        pass
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage)
    with (
        pytest.raises(StorageError, match=r"joined first, which takes .* has 1.0 kB free"),
        whole_source(source, tmp_path / "o"),
    ):
        pass
    assert sorted(tmp_path.iterdir()) == files


def test_a_small_model_stays_whole(tmp_path: Path) -> None:
    path = make_model(tmp_path / "m.gguf")
    assert split_into_shards(path, 10_000_000) == [path]
    assert path.is_file()


def test_a_conversion_gets_a_split_source_in_one_file_and_leaves_nothing(tmp_path: Path) -> None:
    before = content(make_model(tmp_path / "m.gguf"))
    files = split_into_shards(tmp_path / "m.gguf", 300_000)
    source = Input(kind="gguf", path=files[0], source=files[0].name)
    with whole_source(source, tmp_path / "out") as whole:
        assert whole.path.name == "m.gguf"
        assert content(whole.path) == before
    assert sorted(tmp_path.iterdir()) == files
    work = tmp_path / "out" / ".work-1"
    with whole_source(source, tmp_path / "out") as whole:
        work.mkdir(parents=True)
    stamp = whole.path.stat().st_ctime_ns
    with whole_source(source, tmp_path / "out") as whole:
        assert whole.path.stat().st_ctime_ns == stamp  # so that the conversion resumes
        work.rmdir()
    (tmp_path / "out").rmdir()
    files[1].unlink()
    with pytest.raises(ModelNotFoundError, match=files[1].name), whole_source(source, tmp_path / "out"):
        pass
    assert sorted(tmp_path.iterdir()) == [files[0], *files[2:]]


def test_sizes_of_files() -> None:
    with pytest.raises(UsageError, match="too small"):
        GgufOptions(shard_bytes=5)


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("2GB", 2_000_000_000), ("500m", 500_000_000), ("1.5 G", 1_500_000_000), ("7", 7), ("3kB", 3_000)]
)
def test_sizes_as_people_write_them(text: str, n_bytes: int) -> None:
    from edge_cli.options import read_size

    assert read_size(text) == n_bytes


def test_a_size_that_is_none_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    from edge_cli.main import run

    assert run(["convert", "nowhere.gguf", "--shard", "big"]) == 2
    assert "'big' is not a size such as 2GB" in capsys.readouterr().err
