"""Stored results of edge tune: found again for the same device, build and shape of model, and for nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.device import DeviceProfile, Engine
from edge.errors import StorageError
from edge.formats.artifact import Artifact, open_artifact
from edge.plan import tuning
from edge.plan.speed import EngineSpeed
from edge.plan.tuning import Tuning, forget, is_settled, look_up, records, remember
from tests.unit.bench.fakes import device, write_gguf

LAPTOP, JETSON = device("laptop-rtx4060"), device("jetson-orin-nano")


def make(**changes: Any) -> Tuning:
    values: dict[str, Any] = {
        "backend": "llamacpp", "accelerator": "cpu", "threads": 3, "threads_batch": 4, "n_ubatch": 256,
        "flash_attention": False, "kv_type_k": "f16", "kv_type_v": "f16", "decode_tokens_per_s": 33.1,
        "prefill_tokens_per_s": 210.5,
        "default_decode_tokens_per_s": 28.9, "default_prefill_tokens_per_s": 194.0, "n_prompt": 512, "n_decode": 64,
        "measured_on": "2026-11-26",
    }  # fmt: skip
    return Tuning(**{**values, **changes})


@pytest.fixture(autouse=True)
def build(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The installed llama.cpp, so that captured machines have one."""

    def install(name: str) -> None:
        monkeypatch.setattr("edge.backends.llamacpp.canary.library_identity", lambda: name)

    install("a build")
    return install


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    return open_artifact(write_gguf(tmp_path / "tiny.gguf"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_kept_and_found(model: Artifact, cache: Path) -> None:
    assert look_up(LAPTOP, model, cache_dir=cache) == tuning.Lookup(None, "")
    remember(LAPTOP, model, make(), cache_dir=cache)
    assert look_up(LAPTOP, model, cache_dir=cache).tuning == make()
    remember(LAPTOP, model, make(threads=2), cache_dir=cache)
    assert look_up(LAPTOP, model, cache_dir=cache).tuning == make(threads=2)
    assert len(records(cache)[0]) == 1


def test_only_the_owner_may_read_it(model: Artifact, cache: Path) -> None:
    remember(LAPTOP, model, make(), cache_dir=cache)
    assert (cache / "tuning.json").stat().st_mode & 0o777 == 0o600


def test_other_weights_of_the_same_shape_share_it(model: Artifact, cache: Path, tmp_path: Path) -> None:
    remember(LAPTOP, model, make(), cache_dir=cache)
    retrained = open_artifact(write_gguf(tmp_path / "again.gguf", name="Retrained", seed=7))
    assert look_up(LAPTOP, retrained, cache_dir=cache).tuning == make()


def test_another_layout_is_another_model(model: Artifact, cache: Path) -> None:
    remember(LAPTOP, model, make(), cache_dir=cache)
    assert model.header is not None
    tensors = (replace(model.header.tensors[0], type="Q8_0"), *model.header.tensors[1:])
    other = replace(model, header=replace(model.header, tensors=tensors))
    assert look_up(LAPTOP, other, cache_dir=cache) == tuning.Lookup(None, "")


def test_folders(cache: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "genai_config.json").write_text("{}")
    (folder / "model.onnx.data").write_bytes(b"\0" * 1000)
    artifact = Artifact(folder, "onnx", "model", 1002)
    remember(LAPTOP, artifact, make(backend="onnx"), cache_dir=cache)
    assert look_up(LAPTOP, artifact, cache_dir=cache).tuning is not None
    (folder / "model.onnx.data").write_bytes(b"\1" * 1000)
    assert look_up(LAPTOP, artifact, cache_dir=cache).tuning is not None
    (folder / "genai_config.json").write_text('{"model": 1}')
    assert look_up(LAPTOP, artifact, cache_dir=cache).tuning is None


def test_another_machine(model: Artifact, cache: Path) -> None:
    remember(LAPTOP, model, make(), cache_dir=cache)
    found = look_up(JETSON, model, cache_dir=cache)
    assert found.tuning is None
    assert "another machine" in found.ignored
    remember(JETSON, model, make(threads=5), cache_dir=cache)
    assert look_up(LAPTOP, model, cache_dir=cache).tuning == make()
    assert look_up(JETSON, model, cache_dir=cache).tuning == make(threads=5)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: replace(d, cpu=replace(d.cpu, usable_logical=d.cpu.usable_logical - 1)),
        lambda d: replace(d, power=replace(d.power, mode="7W")),
        lambda d: replace(d, gpus=tuple(replace(gpu, driver="999.0") for gpu in d.gpus)),
        lambda d: replace(d, cpu=replace(d.cpu, quota=1.0)),
    ],
)
def test_the_machine_in_another_state(model: Artifact, cache: Path, change: Callable[[DeviceProfile], DeviceProfile]) -> None:
    remember(LAPTOP, model, make(), cache_dir=cache)
    assert look_up(change(LAPTOP), model, cache_dir=cache).tuning is None


def test_what_comes_and_goes_does_not_count(model: Artifact, cache: Path) -> None:
    remember(LAPTOP, model, make(), cache_dir=cache)
    later = replace(
        LAPTOP,
        memory=replace(LAPTOP.memory, available_bytes=1),
        thermal=replace(LAPTOP.thermal, hottest_c=99.0),
        power=replace(LAPTOP.power, battery_percent=3, source="battery"),
        gpus=tuple(replace(gpu, free_bytes=1) for gpu in LAPTOP.gpus),
    )
    assert look_up(later, model, cache_dir=cache).tuning == make()


def test_another_build(model: Artifact, cache: Path, build: Callable[[str], None]) -> None:
    remember(LAPTOP, model, make(), cache_dir=cache)
    build("compiled again")
    found = look_up(LAPTOP, model, cache_dir=cache)
    assert found.tuning is None
    assert found.ignored == "llamacpp was reinstalled since edge tune on 2026-11-26"


def test_another_version(model: Artifact, cache: Path) -> None:
    remember(LAPTOP, model, make(), cache_dir=cache)
    engines = tuple(Engine(e.name, e.package, "0.9.9", ("cpu",)) if e.name == "llamacpp" else e for e in LAPTOP.engines)
    assert "reinstalled" in look_up(replace(LAPTOP, engines=engines), model, cache_dir=cache).ignored


def test_a_skipped_measurement_is_settled_and_changes_nothing(model: Artifact, cache: Path) -> None:
    engines = ["llamacpp", "openvino"]
    assert not is_settled(LAPTOP, model, engines, cache_dir=cache)
    remember(LAPTOP, model, None, cache_dir=cache, engines=engines)
    assert is_settled(LAPTOP, model, engines, cache_dir=cache)
    assert look_up(LAPTOP, model, cache_dir=cache) == tuning.Lookup(None, "")
    assert not is_settled(JETSON, model, engines, cache_dir=cache)
    assert not is_settled(LAPTOP, model, ["llamacpp"], cache_dir=cache), "an engine was removed"
    assert not is_settled(LAPTOP, model, [*engines, "onnx"], cache_dir=cache), "one was installed"


def test_another_build_of_any_engine_is_to_be_compared_again(
    model: Artifact, cache: Path, build: Callable[[str], None]
) -> None:
    engines = ["llamacpp", "openvino"]
    remember(LAPTOP, model, make(backend="openvino"), cache_dir=cache, engines=engines)
    assert is_settled(LAPTOP, model, engines, cache_dir=cache)
    build("compiled again")
    assert not is_settled(LAPTOP, model, engines, cache_dir=cache)
    assert look_up(LAPTOP, model, cache_dir=cache).tuning == make(backend="openvino"), "it is used until then"


def test_speeds_and_costs_of_all_engines_come_back(model: Artifact, cache: Path) -> None:
    speed = EngineSpeed(
        backend="llamacpp", accelerator="cpu", prefill_tokens_per_s=256.0, decode_tokens_per_s=64.0, load_s=6.0,
        peak_bytes=1, divergence=0.0, agreement=1.0, pass_ms=((1, 10.0), (4, 15.0)),
    )  # fmt: skip
    assert speed.turn_s == pytest.approx(1 + 2 + 0.5)
    assert speed.pass_costs == {1: 1.0, 4: 1.5}
    remember(LAPTOP, model, make(engines=(speed,)), cache_dir=cache)
    found = look_up(LAPTOP, model, cache_dir=cache).tuning
    assert found is not None and found.engine("llamacpp", "cpu") == speed
    assert found.engine("openvino", "cpu") is None


def test_two_engines_count_as_long_as_neither_is_installed_again(
    model: Artifact, cache: Path, build: Callable[[str], None]
) -> None:
    speed = EngineSpeed(
        backend="llamacpp", accelerator="cpu", prefill_tokens_per_s=256.0, decode_tokens_per_s=64.0, load_s=6.0,
        divergence=0.002, agreement=0.97, prefill_with="openvino",
    )  # fmt: skip
    remember(LAPTOP, model, make(backend="openvino", pair=speed), cache_dir=cache, engines=["llamacpp", "openvino"])
    found = look_up(LAPTOP, model, cache_dir=cache).tuning
    assert found is not None and found.pair == speed
    build("compiled again")
    found = look_up(LAPTOP, model, cache_dir=cache).tuning
    assert found is not None and found.backend == "openvino" and found.pair is None


def edit(cache: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = cache / "tuning.json"
    content = json.loads(path.read_text())
    change(content["records"][0])
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r["tuning"].update(threads=8), "changed since"),
        (lambda r: r["tuning"].update(decode_tokens_per_s=99.0), "changed since"),
        (lambda r: r.update(model_name="another"), "changed since"),
        (lambda r: r.update(seal=""), "changed since"),
        (lambda r: r["tuning"].update(threads=0), "damaged"),
        (lambda r: r["tuning"].update(threads=10**9), "damaged"),
        (lambda r: r["tuning"].update(threads="4"), "damaged"),
        (lambda r: r["tuning"].update(kv_type_k="q2_0"), "damaged"),
        (lambda r: r["tuning"].update(surprise=1), "damaged"),
        (lambda r: r["tuning"].pop("n_ubatch"), "damaged"),
        (lambda r: r.update(shape="../../etc"), "damaged"),
    ],
)
def test_changed_by_hand(model: Artifact, cache: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    remember(LAPTOP, model, make(), cache_dir=cache)
    edit(cache, change)
    found = look_up(LAPTOP, model, cache_dir=cache)
    assert found.tuning is None
    assert said in found.ignored


def test_a_damaged_record_leaves_the_others(model: Artifact, cache: Path) -> None:
    remember(JETSON, model, make(threads=5), cache_dir=cache)
    remember(LAPTOP, model, make(), cache_dir=cache)
    edit(cache, lambda record: record["tuning"].update(threads=-1))
    assert look_up(LAPTOP, model, cache_dir=cache).tuning == make()
    assert look_up(JETSON, model, cache_dir=cache).tuning is None
    assert "damaged" in records(cache)[1]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"format": 1, "records": []}',
        b'{"format": 2, "records": []}',
        b'{"format": 4, "records": 3}',
    ],
)
def test_a_file_that_is_none(model: Artifact, cache: Path, content: bytes) -> None:
    cache.mkdir()
    (cache / "tuning.json").write_bytes(content)
    (cache / "tuning.json").chmod(0o600)
    found = look_up(LAPTOP, model, cache_dir=cache)
    assert found.tuning is None
    assert found.ignored
    remember(LAPTOP, model, make(), cache_dir=cache)  # and it is replaced
    assert look_up(LAPTOP, model, cache_dir=cache).tuning == make()


def test_a_file_without_end(model: Artifact, cache: Path) -> None:
    cache.mkdir()
    with (cache / "tuning.json").open("wb") as file:
        file.truncate(10 << 30)
    (cache / "tuning.json").chmod(0o600)
    assert "too long" in look_up(LAPTOP, model, cache_dir=cache).ignored


def test_a_file_that_others_can_change(model: Artifact, cache: Path) -> None:
    remember(LAPTOP, model, make(), cache_dir=cache)
    (cache / "tuning.json").chmod(0o666)
    found = look_up(LAPTOP, model, cache_dir=cache)
    assert found.tuning is None
    assert "another user" in found.ignored


def test_a_file_of_somebody_else(model: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(LAPTOP, model, make(), cache_dir=cache)
    monkeypatch.setattr(os, "getuid", lambda: 4321)
    assert "another user" in look_up(LAPTOP, model, cache_dir=cache).ignored


def test_forgetting(model: Artifact, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    other = replace(model, path=tmp_path / "folder", format="onnx", header=None)
    for artifact in (model, other):
        remember(LAPTOP, artifact, make(), cache_dir=cache)
    assert forget(cache, artifact=model) == 1
    assert forget(cache, artifact=model) == 0
    assert look_up(LAPTOP, model, cache_dir=cache).tuning is None
    assert look_up(LAPTOP, other, cache_dir=cache).tuning == make()
    assert forget(cache) == 1
    assert not (cache / "tuning.json").exists()


def test_it_does_not_grow_for_ever(model: Artifact, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_MAX_RECORDS", 3)
    for n in range(5):
        state = replace(LAPTOP, power=replace(LAPTOP.power, mode=str(n)))
        remember(state, model, make(threads=n + 1), cache_dir=cache)
    assert [record.tuning.threads for record in records(cache)[0]] == [3, 4, 5]


def test_a_disk_that_takes_nothing(model: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        remember(LAPTOP, model, make(), cache_dir=tmp_path / "file" / "cache")


def test_values_come_back_exactly() -> None:
    odd = make(decode_tokens_per_s=0.1 + 0.2)
    assert msgspec.json.decode(msgspec.json.encode(odd), type=Tuning) == odd
