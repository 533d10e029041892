"""Recovery of Core ML's palettes on tiny checkpoints: fitting against brute force, and packages that hold what was fitted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")
pytest.importorskip("coremltools", reason="needs the extra [convert]")

import msgspec
import numpy as np
import torch

from edge.errors import UsageError
from edge_cli.main import run
from edge_convert.checkpoint import open_checkpoint
from edge_convert.coreml.calibrate import load_reference
from edge_convert.coreml.decoder import read_decoder
from edge_convert.coreml.quantise import Encoder
from edge_convert.coreml.weights import Blocks, Palette
from edge_convert.facts import Request
from edge_convert.gguf.quantise import GgufOptions
from edge_convert.inputs import Input
from edge_convert.pipeline import run as run_plan
from edge_convert.plan import make_plan
from edge_convert.recover import palettes
from edge_convert.recover.palettes import PaletteFiles, PaletteGrid, assign_palettes
from edge_convert.smaller.recipe import Recipe, Recovery, Source, Text
from edge_convert.torch_models import layers_of
from tests.unit.convert.coreml.support import info_of, open_runner, reference_logits
from tests.unit.convert.support import read_manifest

Make = Callable[[str], Path]
CONTEXT = 96
GRIDS = [PaletteGrid(4), PaletteGrid(6, together=4)]


def case(seed: int = 5) -> tuple[Any, Any]:
    """A matrix, and the moments of inputs that depend on each other."""
    chance = np.random.default_rng(seed)
    mixing = chance.normal(0, 1, (160, 160)) / 8 + np.diag(chance.uniform(0.1, 3, 160))
    inputs = torch.from_numpy((chance.normal(0, 1, (600, 160)) @ mixing).astype(np.float32))
    return torch.from_numpy(chance.normal(0, 1, (16, 160)).astype(np.float32)), inputs.T @ inputs


def cost(weight: Any, fitted: Any, moments: Any) -> float:
    difference = (fitted.view(weight.shape) - weight).double()
    return float(((difference @ moments.double()) * difference).sum())


@pytest.mark.parametrize("grid", GRIDS, ids=["rows", "rows together"])
def test_feedback_costs_less_than_rounding(grid: PaletteGrid) -> None:
    weight, moments = case()
    codes, parts = assign_palettes(weight, moments, grid)
    fitted = grid.values(codes, parts)
    groups = weight.view(len(weight) // grid.together, 1, -1)
    plain = grid.fit(groups, moments.diagonal().repeat(grid.together))
    rounded = grid.values(grid.codes(groups, plain), plain)
    assert cost(weight, fitted, moments) < 0.8 * cost(weight, rounded, moments)
    assert parts["values"].shape == (len(groups), 1, 1 << grid.bits)
    assert torch.equal(parts["values"], parts["values"].half().float().sort(-1).values)
    assert torch.equal(grid.values(grid.codes(fitted, parts), parts), fitted)


@pytest.mark.parametrize("grid", GRIDS, ids=["rows", "rows together"])
def test_each_turn_costs_less(grid: PaletteGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = case()
    found = []
    for turns in (0, 1, 2):
        monkeypatch.setattr(palettes, "_TURNS", turns)
        found.append(cost(weight, grid.values(*assign_palettes(weight, moments, grid)), moments))
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("together", [1, 4])
def test_values_are_those_of_least_squares(together: int) -> None:
    """Against numpy on the whole problem of one group, in float64."""
    weight, moments = case()
    chance = np.random.default_rng(1)
    codes = torch.from_numpy(chance.integers(0, 7, (160, 16)))  # the value 7 is not used
    values = torch.linspace(-1, 1, 8).repeat(16 // together, 1)
    moved, found = palettes._refit(weight.T.contiguous(), moments, codes, values, together)
    root = np.linalg.cholesky(moments.double().numpy()).T
    used = [root @ np.eye(8)[codes[:, row].numpy()] for row in range(together)]
    wanted = [root @ weight[row].double().numpy() for row in range(together)]
    expected = np.linalg.lstsq(np.concatenate(used)[:, :7], np.concatenate(wanted), rcond=None)[0]
    first = torch.gather(found[0], 0, moved[:, 0])
    np.testing.assert_allclose(first.numpy(), expected[codes[:, 0].numpy()], rtol=2e-2, atol=2e-3)
    assert 1.0 in found[0]
    assert (found.diff() >= 0).all()


def test_descent_ends_where_no_single_code_is_better() -> None:
    weight, moments = case()
    values = torch.linspace(-2.5, 2.5, 16).repeat(16, 1)
    codes = torch.full((160, 16), 3)
    for _ in range(60):
        codes = palettes._descend(weight.T.contiguous(), moments, codes, values, 1)
    best = cost(weight, values.gather(1, codes.T), moments)
    chance = np.random.default_rng(2)
    for column, row in chance.integers(0, (160, 16), (200, 2)):
        for code in range(16):
            other = codes.clone()
            other[column, row] = code
            assert cost(weight, values.gather(1, other.T), moments) >= best * (1 - 1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=["rows", "rows together"])
def test_gradients_of_the_values_are_those_of_autograd(grid: PaletteGrid) -> None:
    chance = np.random.default_rng(3)
    values = torch.from_numpy(np.sort(chance.normal(0, 1, (4, 1, 1 << grid.bits))).astype(np.float32)).requires_grad_(True)
    codes = torch.from_numpy(chance.integers(0, 1 << grid.bits, (4, 1, 200)).astype(np.float32))
    gradient = torch.from_numpy(chance.normal(0, 1, codes.shape).astype(np.float32))
    grid.values(codes, {"values": values}).backward(gradient)
    found = grid.pull(codes, {"values": values.detach()}, gradient)["values"]
    assert torch.allclose(found, values.grad, rtol=1e-2, atol=1e-2)  # autograd's passes float16
    step = grid.unit({"values": values.detach()})["step"]
    assert torch.allclose(step[..., 0] * ((1 << grid.bits) - 1), values[..., -1] - values[..., 0])


# -- a conversion


def request_of(text_file: Path, bits: Any = 4, **training: Any) -> Request:
    text = Text(name="words", tokens=2_000, held_out_tokens=512, source=Source(file=str(text_file)))
    how = {"steps": 4, "window": 64, "batch": 8, "lr": 0.01} | training
    return Request(
        formats=("coreml",),
        coreml_variants=("ane",),
        coreml_context=CONTEXT,
        coreml_palette_bits=bits,
        recovery=Recipe(texts=(text,), recovery=Recovery(**how)),
        card=False,
        gguf=GgufOptions(quantisations=(), threads=1, use_imatrix=False),
    )


class Kept:
    """The folders of steps, copied before the conversion removes them."""

    def __init__(self, work: Path, out: Path) -> None:
        self._work, self._out = work, out

    def __call__(self, progress: Any) -> None:
        import shutil

        for name in ("fitted-ane", "trained-ane"):
            if (self._work / name).is_dir() and not (self._out / name).exists():
                shutil.copytree(self._work / name, self._out / name)


def recover(folder: Path, text_file: Path, out: Path, request: Request) -> tuple[Path, Path]:
    """Return the folder of the package, and the one with the copied steps."""
    plan = make_plan(Input(kind="checkpoint", path=folder, source="tiny"), out / "result", request)
    (made,) = run_plan(plan, Kept(plan.work, out))
    return made, out


@pytest.mark.parametrize(("kind", "bits"), [("llama", 4), ("qwen2", 6)])
def test_the_package_computes_with_what_was_trained(
    kind: str, bits: Any, tiny_checkpoint: Make, text_file: Path, tmp_path: Path
) -> None:
    """The oracle is transformers with the stored palettes and norms; the package has the numbers of their files."""
    folder = tiny_checkpoint(kind)
    made, steps = recover(folder, text_file, tmp_path, request_of(text_file, bits))
    report = json.loads((made / "recovery.json").read_text())
    is_nearer = report["after"]["words"]["divergence"] < report["before"]["words"]["divergence"]
    opened, stored = open_checkpoint(folder), steps / "trained-ane/palettes"
    assert bool(list(stored.glob("*norm.weight.npy"))) == is_nearer
    encoder = Encoder(opened, read_decoder(folder), "ane", None, None, bits, tmp_path, stored)
    encoder.prepare(load_reference(folder), lambda share: None)
    reference, files = load_reference(folder), PaletteFiles(stored, opened, bits)
    kinds = set()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if parameter.ndim == 2:
                weight = encoder.weight(name.removesuffix(".weight"))
                kinds.add(type(weight))
                values = torch.from_numpy(weight.dequantise())
                if isinstance(weight, Palette):
                    codes, parts = files.read(name)
                    grid = files.grid(name)
                    assert grid is not None
                    assert torch.equal(grid.values(codes, parts).view(values.shape), values)
            else:
                vector = encoder.vector(name)
                assert vector is not None
                values = torch.from_numpy(vector)
            parameter.data = values.clone()
        if opened.is_tied:
            reference.lm_head.weight = reference.model.embed_tokens.weight
    assert kinds == {Palette, Blocks}
    package = made / "model.mlpackage"
    tokens = np.random.default_rng(3).integers(0, reference.config.vocab_size, 40)
    expected = reference_logits(reference, tokens)[-1]
    difference = open_runner(package, "fp32").feed(tokens) - expected
    assert np.sqrt((difference**2).mean()) < 0.005 * expected.std()
    assert info_of(package).encodings == encoder.summary()
    recipe = read_manifest(made / "manifest.json").recipe
    assert recipe["fitted"].startswith("with error feedback")
    assert recipe["recovered"].startswith("4 steps, 2048 tokens")
    assert "calibration" not in recipe


def test_training_brings_palettes_nearer(tiny_checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    made, steps = recover(tiny_checkpoint("llama"), text_file, tmp_path, request_of(text_file, steps=30))
    report = json.loads((made / "recovery.json").read_text())
    assert report["after"]["words"]["divergence"] < report["before"]["words"]["divergence"]
    fitted, trained = (
        {path.name: np.load(path) for path in (steps / name / "palettes").iterdir()} for name in ("fitted-ane", "trained-ane")
    )
    matrices = [name for name in fitted if name.endswith("lut.npy")]
    n_layers = len(layers_of(load_reference(tiny_checkpoint("llama"))))
    assert len(matrices) == 5 * n_layers
    assert all(not np.array_equal(fitted[name], trained[name]) for name in matrices)


def test_palettes_that_training_does_not_improve_stay(
    tiny_checkpoint: Make, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edge_convert.smaller.records import Report

    monkeypatch.setattr(Report, "is_nearer", property(lambda self: False))
    made, steps = recover(tiny_checkpoint("llama"), text_file, tmp_path, request_of(text_file, steps=1))
    fitted, trained = (
        {path.name: path.read_bytes() for path in (steps / name / "palettes").iterdir()}
        for name in ("fitted-ane", "trained-ane")
    )
    assert fitted == trained
    assert "were kept as they were" in read_manifest(made / "manifest.json").recipe["held-out divergence of the recovery"]


def test_what_cannot_be_recovered_is_refused(tiny_checkpoint: Make, text_file: Path, tmp_path: Path) -> None:
    source = Input(kind="checkpoint", path=tiny_checkpoint("llama"), source="tiny")
    request = request_of(text_file)
    for change, said in (
        ({"coreml_variants": ("gpu", "ane")}, "only the palettes of ane"),
        ({"coreml_variants": ("fp16",)}, "only the palettes of ane"),
        ({"formats": ("gguf", "coreml")}, "one format at a time"),
        ({"gguf": GgufOptions(quantisations=(), calibration=text_file)}, "calibration text has no effect"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            make_plan(source, tmp_path / "out", msgspec.structs.replace(request, **change))
        assert caught.value.hint


def test_the_command_recovers_palettes_and_measures_them(
    tiny_checkpoint: Make, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, recipe = tmp_path / "out", tmp_path / "recipe.toml"
    recipe.write_text(
        f"[[texts]]\nname = 'words'\ntokens = 1000\nheld_out_tokens = 256\nsource.file = '{text_file}'\n"
        "[recovery]\nsteps = 2\nwindow = 64\nbatch = 4\n"
    )
    command = ["convert", str(tiny_checkpoint("llama")), "--to", "coreml", "--variants", "ane", "--palette-bits", "4"]
    command += ["--context", str(CONTEXT), "--threads", "1", "--recipe", str(recipe), "--out", str(out)]
    assert run([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    names = [step["name"] for step in plan["steps"]]
    assert names == ["source", "text", "recover-hidden", "fitted-ane", "trained-ane", "coreml-ane", "card"]
    assert run(command) == 0
    card = json.loads((out / "card/card.json").read_text())
    assert [(row["format"], row["is_part"]) for row in card["rows"]] == [("checkpoint", False), ("coreml", True)]
    assert info_of(out / "coreml-ane/model.mlpackage").encodings["palette of 16 values per row"] > 0
    assert run(["convert", "verify", str(out / "coreml-ane")]) == 0
