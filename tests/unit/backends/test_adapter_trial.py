"""The trial of adapters: a child applies each once, and what it finds is remembered for that adapter and model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge.adapters import Adapter
from edge.backends.llamacpp.trial import try_file
from edge.errors import ModelFileError
from edge.formats.gguf import read_header
from edge.formats.gguf_adapter import read_adapter
from edge.hashes import file_sha256
from edge.plan.receipt import Plan
from tests.adapters import write_adapter
from tests.contract.entries import make_plan
from tests.tiny_gguf import write_gguf
from tests.unit.backends.test_trial import ASSERTS, WELL, Children, answers


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf")


def adapter_of(path: Path, model: Path) -> Adapter:
    return read_adapter(path, read_header(model), name=path.stem, scale=1.0, sha256=file_sha256(path))


@pytest.fixture
def planned(model: Path, tmp_path: Path) -> Callable[..., Plan]:
    def plan(*paths: Path) -> Plan:
        return replace(make_plan(model), adapters=tuple(adapter_of(path, model) for path in paths))

    return plan


def test_good_adapters_are_applied_once(planned: Callable[..., Plan], model: Path, tmp_path: Path) -> None:
    paths = [write_adapter(tmp_path / f"{name}.gguf", model, seed=seed) for seed, name in enumerate("ab")]
    try_file(planned(*paths), tmp_path / "cache")
    assert len(answers(tmp_path / "cache")) == 3, "the model and both adapters"
    children = Children(ASSERTS)
    try_file(planned(*paths), tmp_path / "cache", command=children)
    assert not children.requests
    write_adapter(paths[0], model, seed=5)
    children = Children(WELL)
    try_file(planned(*paths), tmp_path / "cache", command=children)
    assert [request["adapter"] for request in children.requests] == [str(paths[0])]


def test_an_adapter_of_which_llamacpp_dies_is_refused(planned: Callable[..., Plan], model: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "a.gguf", model)
    try_file(planned(), tmp_path / "cache")
    with pytest.raises(ModelFileError, match=r"cannot use .*a\.gguf: it crashes when it loads it") as error:
        try_file(planned(path), tmp_path / "cache", command=Children(ASSERTS))
    assert "choose another adapter" in error.value.hint
    with pytest.raises(ModelFileError, match="crashes"):
        try_file(planned(path), tmp_path / "cache", command=Children(WELL))


def test_an_adapter_that_makes_nonsense_of_numbers_is_refused(
    planned: Callable[..., Plan], model: Path, tmp_path: Path
) -> None:
    def spoil(writer: object, tensors: dict[str, np.ndarray]) -> None:
        next(iter(tensors.values()))[0, 0] = np.nan

    path = write_adapter(tmp_path / "a.gguf", model, change=spoil)
    with pytest.raises(ModelFileError, match="what the model computes with it is not a number"):
        try_file(planned(path), tmp_path / "cache")
