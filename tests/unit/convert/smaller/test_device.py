"""Where torch computes: the device that is chosen, and that no tensor is left behind on another one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

import numpy as np
import torch

from edge.errors import BackendUnavailableError, UsageError
from edge_convert import torch_device
from edge_convert.evaluate.logits import open_logits
from edge_convert.smaller.choose_layers import layer_influence, least_divergent
from edge_convert.smaller.corpus import Corpus
from edge_convert.smaller.distill import distil
from edge_convert.smaller.ffn import narrow_ffn
from edge_convert.smaller.models import keep_layers, keep_tokens, open_model
from edge_convert.smaller.recipe import Text, Training
from edge_convert.smaller.repair import repair
from edge_convert.smaller.teacher import open_hidden, write_hidden
from edge_convert.smaller.writing import write_answers
from edge_convert.torch_models import load_float32
from tests.pretend_device import PRETENDED, pretended

Make = Callable[[str], Path]
QUIET = lambda *_: None  # noqa: E731


@pytest.fixture
def teacher(tiny_checkpoint: Make) -> Any:
    """A model on the processor: transformers loads with tensors of the very kind that the pretended device has."""
    return open_model(tiny_checkpoint("llama"))


@contextmanager
def opened(teacher: Any, device: Any) -> Iterator[None]:
    """Open a copy of the teacher on a device, whatever folder is asked for."""
    with pytest.MonkeyPatch.context() as patch, pretended():
        for module in ("teacher", "writing"):
            patch.setattr(f"edge_convert.smaller.{module}.open_model", lambda folder: copy.deepcopy(teacher).to(device))
        yield


def windows(n: int, length: int = 16) -> Any:
    return np.random.default_rng(1).integers(3, 600, (n, length)).astype(np.int32)


def test_a_pretended_device_refuses_tensors_of_another() -> None:
    with pretended():
        there, here = torch.ones(2, 3, device=PRETENDED), torch.ones(2, 3)
        assert (there + here.to(PRETENDED)).device == PRETENDED
        assert float((2 * there).sum().cpu()) == 12
        for mix in (lambda: there + here, lambda: here.copy_(there[0]) + there, lambda: there[here > 0]):
            with pytest.raises(RuntimeError, match="all tensors on one device"):
                mix()


def train(teacher: Any, folder: Path, device: Any) -> tuple[dict[str, Any], Any]:
    """Let a teacher read, train a student of its first layer, stop, resume; return its weights, and the report."""
    tokens, held = windows(8), windows(4)
    counted = np.ones_like(tokens, dtype=bool)
    counted[:, :3] = False
    corpus = Corpus(tokens=tokens, counted=counted, held_out={"words": (held, counted[:4])}, provenance=())
    training = Training(steps=3, window=16, batch=4, lr=3e-3)

    def stop(text: str, share: float) -> None:
        if 0 < share < 0.5:
            raise KeyboardInterrupt

    with opened(teacher, device):
        for name, rows in (("train", tokens), ("held", held)):
            (folder / name).mkdir(parents=True)
            write_hidden(folder / name, folder, rows, QUIET)
        hidden, of_held = (open_hidden(folder / name / "hidden.npy") for name in ("train", "held"))
        with pytest.raises(KeyboardInterrupt):
            distil(
                keep_layers(copy.deepcopy(teacher).to(device), [0]), corpus, hidden, {"words": of_held}, training, folder, stop
            )
        student = keep_layers(copy.deepcopy(teacher).to(device), [0])
        report = distil(student, corpus, hidden, {"words": of_held}, training, folder, QUIET)
        return {name: value.cpu() for name, value in student.state_dict().items()}, report


def test_training_on_a_device_is_that_on_the_processor(teacher: Any, tmp_path: Path) -> None:
    there, report = train(teacher, tmp_path / "there", PRETENDED)
    here, other = train(teacher, tmp_path / "here", torch.device("cpu"))
    assert (report.device, other.device) == (PRETENDED.type, "cpu")
    # Attention is decomposed there, so its roundings to bfloat16 differ.
    assert [kl for _, kl in report.course] == pytest.approx([kl for _, kl in other.course], rel=0.01)
    assert all(torch.allclose(there[name], here[name], atol=0.01) for name in here)


def test_layers_are_chosen_and_fitted_on_a_device(teacher: Any) -> None:
    tokens = torch.from_numpy(windows(10).astype(np.int64))
    with pretended():
        model = copy.deepcopy(teacher).to(PRETENDED)
        assert len(layer_influence(model, tokens, QUIET)) == 2
        assert len(least_divergent(model, tokens, 1, QUIET)) == 1
        fitted = repair(model, [0], tokens, QUIET)
    assert {weight.device for weight in fitted.values()} == {PRETENDED}


def test_a_model_is_narrowed_on_a_device(teacher: Any) -> None:
    tokens = torch.from_numpy(windows(10).astype(np.int64))
    with pretended():
        model = copy.deepcopy(teacher).to(PRETENDED)
        narrow_ffn(keep_tokens(model, range(400)), 128, tokens % 400, QUIET)
    assert {weight.device for weight in model.parameters()} == {PRETENDED}


def test_a_teacher_answers_on_a_device(teacher: Any, tiny_checkpoint: Make, tmp_path: Path) -> None:
    text = Text(name="answers", tokens=64, answer_tokens=4)
    with opened(teacher, PRETENDED):
        write_answers(tmp_path, tiny_checkpoint("llama"), text, ["Hello?", "What is a model?"], 64, 0, QUIET)
    assert (tmp_path / "answers-00000.json").is_file()


def test_models_are_opened_on_the_device_of_the_process(tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_convert.smaller.models.compute_device", lambda: PRETENDED)
    assert open_model(tiny_checkpoint("llama")).device == PRETENDED


def test_the_reference_of_a_card_is_computed_on_a_device(tiny_checkpoint: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint("llama")
    expected = open_logits(folder).logits([5, 6, 7])
    loaded = load_float32(folder)
    monkeypatch.setattr("edge_convert.evaluate.logits_torch.compute_device", lambda: PRETENDED)
    monkeypatch.setattr("edge_convert.evaluate.logits_torch.load_float32", lambda folder, device: loaded.to(device))
    with pretended():
        model = open_logits(folder)
        assert model.tool.endswith(" on meta")
        assert np.allclose(model.logits([5, 6, 7]), expected, atol=1e-4)
        model.start([5, 6])
        assert np.allclose(model.step(7), expected[2], atol=1e-4)


# -- the choice


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "name", "found"),
    [
        (False, False, "auto", "cpu"),
        (True, True, "auto", "cuda"),
        (False, True, "auto", "mps"),
        (True, True, "mps", "mps"),
        (True, True, "cpu", "cpu"),
    ],
)
def test_the_device_that_is_chosen(
    has_cuda: bool, has_mps: bool, name: Any, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_device, "_has_cuda", lambda: has_cuda)
    monkeypatch.setattr(torch_device, "_has_mps", lambda: has_mps)
    monkeypatch.setenv(torch_device.VARIABLE, "auto")
    torch_device.use_device(name)
    assert torch_device.compute_device() == torch.device(found)


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_device, "_has_cuda", lambda: False)
    monkeypatch.setattr(torch_device, "_has_mps", lambda: False)
    with pytest.raises(BackendUnavailableError, match=f"no device {name}.*"):
        torch_device.find_device(name)


def test_a_device_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(torch_device.VARIABLE, "tpu")
    with pytest.raises(UsageError, match="EDGE_TORCH_DEVICE is 'tpu'"):
        torch_device.compute_device()
