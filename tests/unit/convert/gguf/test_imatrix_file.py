"""Importance matrices as files: llama.cpp's two forms, with bytes written as its own code writes them."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="needs the extra [convert]")

import gguf
from safetensors.numpy import load_file, save_file

from edge.errors import ModelFileError, UsageError
from edge.formats.gguf import read_header
from edge_convert.checkpoint import open_checkpoint
from edge_convert.facts import Request
from edge_convert.gguf.imatrix import compute_imatrix
from edge_convert.gguf.imatrix_file import Sums, check_fits, read_imatrix, write_imatrix
from edge_convert.gguf.quantise import GgufOptions, quantise
from edge_convert.gguf.tensors import write_gguf
from tests.unit.convert.support import convert, read_manifest

SUMS = {"blk.0.a.weight": Sums(np.array([8.0, 2.0, 0.0]), 4), "blk.0.b.weight": Sums(np.array([9.0, 3.0]), 3)}


def dat(*entries: tuple[bytes, int, list[float]]) -> bytes:
    """As save_imatrix_legacy of llama.cpp: entries, the last chunk, the name of the text."""
    data = struct.pack("<i", len(entries))
    for name, n_calls, values in entries:
        data += struct.pack("<i", len(name)) + name + struct.pack(f"<ii{len(values)}f", n_calls, len(values), *values)
    return data + struct.pack("<ii", 2, 8) + b"text.txt"


def test_gguf_has_the_keys_and_tensors_of_llama_imatrix(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, SUMS, 2, 256, "text.txt")
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert keys == {
        "general.type": "imatrix",
        "imatrix.datasets": ["text.txt"],
        "imatrix.chunk_count": 2,
        "imatrix.chunk_size": 256,
    }
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors) == [f"blk.0.{name}.weight.{part}" for name in "ab" for part in ("in_sum2", "counts")]
    assert tensors["blk.0.a.weight.in_sum2"].shape.tolist() == [3, 1]
    assert tensors["blk.0.a.weight.counts"].shape.tolist() == [1, 1]
    assert tensors["blk.0.a.weight.in_sum2"].data.reshape(-1).tolist() == [8.0, 2.0, 0.0]
    found = read_imatrix(path)
    assert {name: values.tolist() for name, values in found.items()} == {
        "blk.0.a.weight": [2.0, 0.5, 0.0],
        "blk.0.b.weight": [3.0, 1.0],
    }


def test_experts_have_counts_of_their_own(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "experts.gguf", "imatrix")
    writer.add_tensor("e.weight.in_sum2", np.array([[4.0, 2.0], [0.0, 0.0]], dtype=np.float32))
    writer.add_tensor("e.weight.counts", np.array([[2.0], [0.0]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_imatrix(tmp_path / "experts.gguf")["e.weight"].tolist() == [2.0, 1.0, 1.0, 1.0]  # the second saw nothing


def test_the_old_form_has_means_times_chunks(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(dat((b"blk.0.a.weight", 2, [4.0, 1.0, 0.0]), (b"b", 0, [5.0])))
    assert {name: values.tolist() for name, values in read_imatrix(path).items()} == {
        "blk.0.a.weight": [2.0, 0.5, 0.0],
        "b": [5.0],
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"GGUF" + bytes(60),
        dat((b"a", 1, [1.0]))[:14],
        struct.pack("<i", 0),
        struct.pack("<ii", 1, 2_000_000_000),
        struct.pack("<ii", 1, -5),
        struct.pack("<iicii", 1, 1, b"a", 1, 2_000_000_000),
        dat((b"\xff", 1, [1.0])),
        dat((b"a", 1, [-1.0])),
        dat((b"a", 1, [float("nan")])),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.dat"
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=r"bad\.dat"):
        read_imatrix(path)
    with pytest.raises(ModelFileError, match=r"nowhere"):
        read_imatrix(tmp_path / "nowhere")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ModelFileError, match="it is a FIFO"):
        read_imatrix(tmp_path / "fifo")


def test_a_matrix_of_zeros_says_nothing(tmp_path: Path) -> None:
    """With it, llama.cpp would make every weight 0, and no word of it."""
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, {"a.weight": Sums(np.zeros(3), 4), "b.weight": Sums(np.array([0.0, 2.0]), 2)}, 1, 1, "text")
    (tmp_path / "old.dat").write_bytes(dat((b"a.weight", 1, [0.0, 0.0])))
    assert {name: values.tolist() for name, values in read_imatrix(path).items()} == {
        "a.weight": [1.0, 1.0, 1.0],
        "b.weight": [0.0, 1.0],
    }
    assert read_imatrix(tmp_path / "old.dat")["a.weight"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("factor", [1e38, 1e-40])
def test_only_ratios_count_and_extremes_are_scaled(factor: float, tmp_path: Path) -> None:
    """Else llama.cpp's sums would be infinite, or 0."""
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, {"a.weight": Sums(np.array([3.0, 1.0]) * factor, 1)}, 1, 1, "text")
    found = read_imatrix(path)["a.weight"]
    assert 1 <= found[0] < 2
    assert found[0] / found[1] == pytest.approx(3.0, rel=1e-4)


def test_a_type_with_few_bits_needs_values_for_every_matrix(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model = write_gguf(open_checkpoint(tiny_checkpoint("llama")), tmp_path / "m.gguf", "F16")
    width = {tensor.name: tensor.shape[0] for tensor in read_header(model).tensors}["blk.0.attn_q.weight"]
    write_imatrix(tmp_path / "i.gguf", {"blk.0.attn_q.weight": Sums(np.ones(width), 1)}, 1, 1, "text")
    options = GgufOptions(quantisations=("IQ2_XXS",), threads=1)
    with pytest.raises(ModelFileError, match=r"there is none for blk\.\d\.\w+\.weight\.") as caught:
        quantise(model, tmp_path / "out.gguf", "IQ2_XXS", options, tmp_path / "i.gguf")
    assert "--quant Q4_K_M" in caught.value.hint
    assert not list(tmp_path.glob("*out*"))


def test_a_model_that_computes_no_numbers_has_no_matrix(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "huge"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.v_proj.weight"] *= 1e7  # beyond the 16 bits of llama.cpp's cache
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    model = write_gguf(open_checkpoint(folder), tmp_path / "m.gguf", "F32")
    with pytest.raises(ModelFileError, match=r"no finite numbers at blk\.0\.attn_output\.weight") as caught:
        compute_imatrix(model, [list(range(64))], tmp_path / "i.gguf", 1, "text")
    assert "--no-imatrix" in caught.value.hint
    assert not (tmp_path / "i.gguf").exists()


def test_a_matrix_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, SUMS, 2, 256, "text.txt")
    assert check_fits(path, {"blk.0.a.weight": 3, "blk.0.c.weight": 5}) == 1
    with pytest.raises(ModelFileError, match=r"of another model: it has 3 values for blk\.0\.a\.weight, which has 4"):
        check_fits(path, {"blk.0.a.weight": 4})
    with pytest.raises(ModelFileError, match="none of this model's matrices"):
        check_fits(path, {"other": 3})


def test_options_that_contradict_each_other() -> None:
    file = Path("imatrix.gguf")
    with pytest.raises(UsageError, match="none is to be used"):
        GgufOptions(imatrix=file, use_imatrix=False)
    with pytest.raises(UsageError, match="is a file already"):
        GgufOptions(imatrix=file, save_imatrix=file)


@pytest.mark.slow
def test_a_stored_matrix_makes_the_same_file_again(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    saved, checkpoint = tmp_path / "imatrix.gguf", tiny_checkpoint("llama")
    options = GgufOptions(quantisations=("Q4_0",), calibration_tokens=256, save_imatrix=saved, threads=1)
    convert(checkpoint, tmp_path / "first", Request(gguf=options, card=False))
    first = next(tmp_path.glob("first/*/*.gguf"))
    widths = {tensor.name: tensor.shape[0] for tensor in read_header(first).tensors if len(tensor.shape) > 1}
    assert check_fits(saved, widths) > 10
    again = GgufOptions(quantisations=("Q4_0",), imatrix=saved, threads=1)
    convert(checkpoint, tmp_path / "second", Request(gguf=again, card=False))
    second = next(tmp_path.glob("second/*/*.gguf"))
    with_matrix = {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(first).tensors}
    assert {tensor.name: tensor.data.tobytes() for tensor in gguf.GGUFReader(second).tensors} == with_matrix
    recipe = read_manifest(second.parent / "manifest.json").recipe
    assert "imatrix.gguf, SHA-256 " in str(recipe)
    flat = {name: Sums(np.ones_like(values), 1) for name, values in read_imatrix(saved).items()}
    write_imatrix(saved, flat, 1, 1, "nothing")
    convert(checkpoint, tmp_path / "third", Request(gguf=again, card=False))
    third = gguf.GGUFReader(next(tmp_path.glob("third/*/*.gguf"))).tensors
    assert {tensor.name: tensor.data.tobytes() for tensor in third} != with_matrix  # so it is used
    with pytest.raises(UsageError, match="without an importance matrix"):
        options = GgufOptions(quantisations=("F16",), imatrix=saved)
        convert(checkpoint, tmp_path / "fourth", Request(gguf=options, card=False))
