"""Models in several GGUF files: split as llama.cpp does, opened, and joined again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the extra [convert]")

import gguf

from edge.errors import ModelNotFoundError, UsageError
from edge.formats.gguf import read_header
from edge_convert.gguf.quantise import GgufOptions
from edge_convert.gguf.shards import join_shards, split_into_shards, whole_source
from edge_convert.inputs import Input


def make_model(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
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
