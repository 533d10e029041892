"""Models that OpenVINO transformed, stored: they compute the same bits, and whatever is wrong with one, loading succeeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("openvino")

from edge.backends.openvino import compiled
from edge.backends.openvino.backend import OpenVINOBackend
from edge.device.sensors import Readings
from tests.contract.architectures import write
from tests.contract.entries import HAS_AMX, make_plan

Open = Callable[..., OpenVINOBackend]
TOKENS = [int(token) for token in np.random.default_rng(3).integers(20, 256, 70)]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Load a tiny model, stored as large ones are."""
    monkeypatch.setattr(compiled, "_LEAST_BYTES", 0)

    def load_model(kind: str = "Q4_1", **changes: Any) -> OpenVINOBackend:
        path = tmp_path / f"{kind}.gguf"
        if not path.exists():
            write(path, kind)
        return OpenVINOBackend(make_plan(path, backend="openvino", **changes), cache_dir=tmp_path / "cache")

    return load_model


def folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "openvino").glob("*"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def answer(backend: OpenVINOBackend) -> tuple[npt.NDArray[np.float32], dict[str, int], bool]:
    with backend:
        backend.prefill(0, TOKENS)
        backend.decode([(0, 30)], {0: [31, 32]})
        return backend.logits(0), backend.passes.kinds, backend.is_faster_next


@pytest.mark.parametrize(
    ("kind", "kv_type"),
    [
        ("Q4_0", "f16"), ("Q4_1", "f16"), ("Q4_1", "u8"), ("Q4_1", "f32"), pytest.param("Q4_1", "bf16", marks=HAS_AMX),
        ("gemma3", "f16"), ("gemma3", "u8"), ("llama longrope", "f16"), ("llama longrope", "u8"),
    ],
)  # fmt: skip
def test_a_stored_model_computes_the_same_bits(load: Open, tmp_path: Path, kind: str, kv_type: str) -> None:
    types = {"kv_type_k": kv_type, "kv_type_v": kv_type}
    first, kinds, is_stored = answer(load(kind, **types))
    assert is_stored
    (folder,) = folders(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"about.json", "model.bin", "model.xml"}
    assert folder.stat().st_mode & 0o077 == 0, "nobody else may read a model's weights, or change them"
    second, same_kinds, is_stored = answer(load(kind, **types))
    assert not is_stored
    products = [part for part in (*kinds, *same_kinds) if part.startswith("FullyConnected")]  # by the type of their weights
    for part in ("PagedAttention", "RoPE", "RMS", "Eltwise", "Convert", "Reshape", *products):
        assert same_kinds.get(part) == kinds.get(part), part
    np.testing.assert_array_equal(first, second)


def test_what_the_graph_depends_on_has_a_place_of_its_own(load: Open, tmp_path: Path) -> None:
    for changes in ({}, {"n_threads": 1}, {"kv_type_k": "f32", "kv_type_v": "f32"}):
        load(**changes).close()
    assert len(folders(tmp_path)) == 2, "the number of threads does not change the graph"
    load("llama longrope", n_ctx=64).close()
    load("llama longrope", n_ctx=96).close()  # beyond 64 it rotates in another way
    assert len(folders(tmp_path)) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.bin").write_bytes((folder / "model.bin").read_bytes()[:-1]),
        lambda folder: (folder / "model.bin").unlink(),
        lambda folder: flip(folder / "model.bin"),
        lambda folder: folder.chmod(0o770),  # another user may have written what is in it
        lambda folder: (folder / "model.xml").write_text("<net"),
        lambda folder: (folder / "model.xml").write_text((folder / "model.xml").read_text().replace("PagedAttention", "Paged")),
        lambda folder: (folder / "about.json").write_text("{}"),
        lambda folder: (folder / "about.json").write_text((folder / "about.json").read_text().replace("_head", "_tail")),
    ],
)
def test_a_damaged_one_is_made_again(load: Open, tmp_path: Path, damage: Callable[[Path], object]) -> None:
    first, _, _ = answer(load())
    (folder,) = folders(tmp_path)
    damage(folder)
    again, _, is_stored = answer(load())
    np.testing.assert_array_equal(first, again)
    assert is_stored and folders(tmp_path) == [folder]


def test_one_that_computes_something_else_is_not_used_and_not_tried_again(
    load: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_tries: list[int] = []
    monkeypatch.setattr("edge.backends.openvino.passes.Passes._is_same", lambda self, one, other: bool(n_tries.append(1)))
    for _ in range(2):
        _, _, is_stored = answer(load())
        (folder,) = folders(tmp_path)
        assert (is_stored, [path.name for path in folder.iterdir()]) == (False, ["about.json"])
    assert len(n_tries) == 1


def test_nothing_is_stored_while_memory_is_short(load: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge.device.sensors.Sensors.read", lambda self: Readings(available_bytes=1 << 10))
    _, _, is_stored = answer(load())
    assert (is_stored, folders(tmp_path)) == (False, [])


def test_the_oldest_make_room(load: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load("Q4_0").close()
    (oldest,) = folders(tmp_path)
    monkeypatch.setattr(compiled, "_BUDGET_BYTES", int(1.5 * (oldest / "model.bin").stat().st_size))
    load("Q4_0", kv_type_k="f32", kv_type_v="f32").close()
    (newest,) = folders(tmp_path)
    assert newest != oldest


def test_a_folder_that_cannot_be_written_costs_nothing(load: Open, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    found, _, is_stored = answer(load())
    assert not is_stored and np.isfinite(found).all()
