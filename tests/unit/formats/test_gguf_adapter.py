"""Adapters as GGUF files: those that fit their model are read, and each that does not is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.errors import ModelFileError
from edge.formats.gguf import read_header
from edge.formats.gguf_adapter import read_adapter
from tests.adapters import write_adapter
from tests.tiny_gguf import write_gguf

Change = Callable[[Any, dict[str, np.ndarray]], object]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf")


def read(path: Path, model: Path) -> Any:
    return read_adapter(path, read_header(model), name="a", scale=0.5)


def test_an_adapter_is_described(model: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf", model, rank=6)
    n_layer = read_header(model).n_layer
    found = read(path, model)
    assert (found.name, found.path, found.scale, found.rank, found.n_changed) == ("a", path, 0.5, 6, 2 * n_layer)
    assert found.size_bytes == sum(tensor.size_bytes for tensor in read_header(path).tensors)
    assert found.text == "a at 0.5"


def set_value(key: str, add: str, value: object) -> Change:
    return lambda writer, tensors: (writer.kv_data[0].pop(key, None), getattr(writer, add)(key, value))


def drop(end: str) -> Change:
    return lambda writer, tensors: tensors.pop(next(name for name in tensors if name.endswith(end)))


def replaced(make: Callable[[str, np.ndarray], tuple[str, np.ndarray]]) -> Change:
    def change(writer: Any, tensors: dict[str, np.ndarray]) -> None:
        name, values = next(iter(tensors.items()))
        del tensors[name]
        new_name, new_values = make(name, values)
        tensors[new_name] = new_values

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_value("general.type", "add_string", "model"), "is not an adapter"),
        (set_value("adapter.type", "add_string", "control_vector"), "of the type 'control_vector'"),
        (set_value("adapter.lora.alpha", "add_uint32", 16), "has the alpha 16"),
        (set_value("adapter.lora.alpha", "add_float32", float("nan")), "has the alpha nan"),
        (set_value("adapter.alora.invocation_tokens", "add_array", [1, 2]), "activated LoRA"),
        (drop(".lora_b"), "lacks one of the two matrices"),
        (replaced(lambda name, values: (name.replace("blk.0", "blk.99"), values)), "lacks one of the two"),
        (replaced(lambda name, values: (name + "x", values)), "is not part of a LoRA adapter"),
        (replaced(lambda name, values: (name, values[:, 1:])), "has matrices of"),
        (replaced(lambda name, values: (name, values[1:])), "has matrices of"),
        (replaced(lambda name, values: (name, values[0])), "has matrices of"),
        (lambda writer, tensors: tensors.clear(), "changes nothing"),
    ],
)
def test_what_is_no_adapter_for_the_model_is_refused(change: Change, said: str, model: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf", model, change=change)
    with pytest.raises(ModelFileError, match=said):
        read(path, model)


def test_an_adapter_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="of the architecture 'qwen2'"):
        read(write_adapter(tmp_path / "a.gguf", model, architecture="qwen2"), model)

    def rename(writer: Any, tensors: dict[str, np.ndarray]) -> None:
        for name in list(tensors):
            tensors[name.replace("blk.", "blk.9")] = tensors.pop(name)

    with pytest.raises(ModelFileError, match="which this model does not have"):
        read(write_adapter(tmp_path / "b.gguf", model, change=rename), model)


def test_norms_are_passed_over_as_llama_cpp_does(model: Path, tmp_path: Path) -> None:
    def add_norm(writer: Any, tensors: dict[str, np.ndarray]) -> None:
        tensors["blk.0.attn_norm.weight"] = np.ones(8, np.float32)

    assert read(write_adapter(tmp_path / "a.gguf", model, change=add_norm), model).rank == 4


def test_a_damaged_file_gives_an_error_of_ours(model: Path, tmp_path: Path) -> None:
    whole = write_adapter(tmp_path / "a.gguf", model).read_bytes()
    chance = np.random.default_rng(5)
    n_refused = 0
    for _ in range(200):
        data = bytearray(whole)
        for at in chance.integers(0, min(len(data), 2500), 3):
            data[at] = int(chance.integers(0, 256))
        (tmp_path / "b.gguf").write_bytes(data[: int(chance.integers(1, len(data)))] if chance.random() < 0.3 else data)
        try:
            read(tmp_path / "b.gguf", model)
        except ModelFileError:
            n_refused += 1
    assert n_refused > 100
