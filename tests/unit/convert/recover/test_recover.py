"""Recovery on tiny checkpoints: blocks read and written as gguf-py has them, gradients against autograd, training in place, the
command from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

import gguf
import msgspec
import numpy as np
import torch

from edge.errors import UsageError
from edge.formats.gguf import read_header
from edge_cli.main import run
from edge_convert.checkpoint import open_checkpoint
from edge_convert.facts import Request, read_facts
from edge_convert.gguf.quantise import GgufOptions
from edge_convert.inputs import Input
from edge_convert.pipeline import run as run_plan
from edge_convert.plan import make_plan
from edge_convert.recover.fit import assign, importance
from edge_convert.recover.gguf_blocks import GRIDS, GgufBlocks, pack
from edge_convert.recover.masters import GridMasters
from edge_convert.recover.steps import RECOVERED, fit_tokens
from edge_convert.smaller.models import open_model
from edge_convert.smaller.recipe import Recipe, Recovery, Source, Text, find_recipe
from edge_convert.torch_models import layers_of
from tests.checkpoints import make_checkpoint
from tests.unit.convert.support import read_manifest

KINDS = sorted(GRIDS)


def random_parts(kind: str, chance: np.random.Generator) -> dict[str, Any]:
    names = ("scale", "least") if kind == "Q4_1" else ("scale",)
    return {name: chance.normal(0, 0.1, (6, 2)).astype(np.float16).astype(np.float32) for name in names}


def random_codes(kind: str, chance: np.random.Generator) -> Any:
    lowest = -8 if kind == "Q4_0" else 0
    return chance.integers(lowest, lowest + 16, (6, 2, 32)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_those_of_gguf_py(kind: str) -> None:
    chance = np.random.default_rng(1)
    codes, parts = random_codes(kind, chance), random_parts(kind, chance)
    values = GRIDS[kind].values(
        torch.from_numpy(codes), {name: torch.from_numpy(part)[..., None] for name, part in parts.items()}
    )
    expected = gguf.dequantize(pack(kind, codes, parts), gguf.GGMLQuantizationType[kind])
    assert np.array_equal(values.numpy().reshape(6, -1), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_the_nearest_and_stay_on_the_grid(kind: str) -> None:
    chance, grid = np.random.default_rng(2), GRIDS[kind]
    parts = {name: torch.from_numpy(part)[..., None] for name, part in random_parts(kind, chance).items()}
    weight = torch.from_numpy(chance.normal(0, 0.5, (6, 2, 32)).astype(np.float32))
    lowest = -8 if kind == "Q4_0" else 0
    levels = torch.stack([grid.values(torch.full_like(weight, float(code)), parts) for code in range(lowest, lowest + 16)])
    found = grid.values(grid.codes(weight, parts), parts)
    assert torch.allclose((found - weight).abs(), (levels - weight).abs().amin(0), atol=1e-6)
    assert torch.equal(grid.values(grid.codes(found, parts), parts), found)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_the_parts_are_those_of_autograd(kind: str) -> None:
    chance, grid = np.random.default_rng(3), GRIDS[kind]
    parts = {name: torch.from_numpy(part)[..., None].requires_grad_(True) for name, part in random_parts(kind, chance).items()}
    codes = torch.from_numpy(random_codes(kind, chance))
    gradient = torch.from_numpy(chance.normal(0, 1, codes.shape).astype(np.float32))
    grid.values(codes, parts).backward(gradient)
    found = grid.pull(codes, parts, gradient)
    for name, part in parts.items():
        assert torch.allclose(found[name], part.grad, rtol=1e-2, atol=1e-2)  # autograd's passes float16


def test_training_begins_with_the_file() -> None:
    chance = np.random.default_rng(4)
    parts = {"scale": torch.full((6, 2, 1), 0.125)}
    codes = torch.from_numpy(chance.integers(-8, 8, (6, 2, 32)).astype(np.float32))
    weights = {"a": torch.zeros(6, 64), "norm": torch.ones(4), "other": torch.ones(3, 3)}
    masters = GridMasters({"a": GRIDS["Q4_0"]}, {"a": parts}, {"a": codes})
    trained = masters.start(weights)
    masters.push(trained, weights)
    assert set(trained) == {"a", "a/scale", "norm"}  # a matrix without a grid is not trained
    assert torch.equal(weights["a"].view(6, 2, 32), codes * 0.125)
    gradients = masters.pull(trained, {name: torch.ones_like(value) for name, value in weights.items()})
    assert set(gradients) == set(trained)
    trained["a"] += 0.4  # not enough for another code
    trained["a/scale"] += 8  # the outermost code moves by 8 steps: twice the scale
    masters.push(trained, weights)
    assert torch.equal(weights["a"].view(6, 2, 32), codes * 0.25)


@pytest.mark.parametrize("kind", KINDS)
def test_feedback_costs_less_than_rounding(kind: str) -> None:
    chance = np.random.default_rng(5)
    mixed = chance.normal(0, 1, (400, 8)) @ chance.normal(0, 1, (8, 64)) + chance.normal(0, 0.3, (400, 64))
    inputs, weight = (
        torch.from_numpy(mixed.astype(np.float32)),
        torch.from_numpy(chance.normal(0, 1, (16, 64)).astype(np.float32)),
    )
    moments, grid = inputs.T @ inputs, GRIDS[kind]
    codes, parts = assign(weight, moments, grid)
    fitted = grid.values(codes, parts).flatten(1)
    plain_parts = grid.fit(weight.view(16, 2, 32), moments.diagonal().view(2, 32))
    plain = grid.values(grid.codes(weight.view(16, 2, 32), plain_parts), plain_parts).flatten(1)
    cost = [float(((values - weight) @ inputs.T).square().mean()) for values in (fitted, plain)]
    assert cost[0] < 0.7 * cost[1]
    assert torch.equal(grid.values(grid.codes(fitted.view(16, 2, 32), parts), parts).flatten(1), fitted)


def test_importance_is_the_squared_gradient_of_a_sampled_token(tiny: Path) -> None:
    """Against autograd through the logits: the same tokens are sampled from the same seed."""
    model = open_model(tiny, "float32")
    tokens = torch.from_numpy(np.random.default_rng(6).integers(3, 600, (2, 16)))
    found = importance(model, [tokens])[0, "self_attn.v_proj"][0]
    kept: list[Any] = []

    def hook(_module: Any, _args: Any, output: Any) -> None:
        output.register_hook(kept.append)

    handle = layers_of(model)[0].self_attn.v_proj.register_forward_hook(hook)
    inputs = model.get_input_embeddings()(tokens).detach().requires_grad_(True)
    logits = model(inputs_embeds=inputs, use_cache=False).logits.flatten(0, 1)
    handle.remove()
    sampled = torch.multinomial(logits.detach().softmax(-1), 1, generator=torch.Generator().manual_seed(0))
    (-logits.log_softmax(-1).gather(1, sampled).sum()).backward()
    expected = kept[0].square().sum(-1).flatten()
    assert torch.allclose(found, (expected / expected.mean()).clamp_max(200), rtol=1e-3)


# -- a conversion


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("teacher") / "tiny", "llama")


def request_of(text_file: Path, kind: str, **training: Any) -> Request:
    text = Text(name="words", tokens=3_000, held_out_tokens=512, source=Source(file=str(text_file)))
    how = {"steps": 30, "window": 64, "batch": 8, "lr": 0.01} | training
    recipe = Recipe(texts=(text,), recovery=Recovery(**how))
    options = GgufOptions(quantisations=(kind,), threads=1, use_imatrix=False)
    return Request(recovery=recipe, card=False, gguf=options)


@pytest.mark.parametrize("kind", RECOVERED)
def test_a_recovered_file_is_nearer_and_has_the_same_layout(kind: str, tiny: Path, text_file: Path, tmp_path: Path) -> None:
    plan = make_plan(Input(kind="checkpoint", path=tiny, source="tiny"), tmp_path / "out", request_of(text_file, kind))
    plain: dict[str, Any] = {}

    def keep(progress: Any) -> None:
        path = plan.work / f"plain-{kind}" / f"tiny-{kind}.gguf"
        if path.is_file() and not plain:
            plain["header"], plain["data"] = read_header(path), path.read_bytes()

    (made,) = run_plan(plan, keep)
    file = made / f"tiny-{kind}.gguf"
    header = read_header(file)
    assert [(t.name, t.type, t.offset) for t in header.tensors] == [(t.name, t.type, t.offset) for t in plain["header"].tensors]
    assert len(file.read_bytes()) == len(plain["data"])
    assert file.read_bytes() != plain["data"]
    report = json.loads((made / "recovery.json").read_text())
    assert report["after"]["words"]["divergence"] < 0.98 * report["before"]["words"]["divergence"]
    manifest = read_manifest(made / "manifest.json")
    assert manifest.recipe["recovered"].startswith("30 steps, 15360 tokens")
    assert "words: 3008 tokens of text.txt" in manifest.recipe["recovered on"]
    assert str(tmp_path) not in json.dumps(msgspec.to_builtins(manifest))


def test_fitting_takes_as_many_tokens_as_the_training_has_time(tiny: Path) -> None:
    facts = read_facts(Input(kind="checkpoint", path=tiny, source="tiny"))
    large = msgspec.structs.replace(facts, n_params=135_000_000)
    counts = [fit_tokens(large, Recovery(minutes=minutes), 2) for minutes in (0.1, 4, 8, 60)]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (16_384, 65_536)
    assert 16_384 < counts[1] < counts[2] < 65_536
    assert fit_tokens(large, Recovery(steps=9), 1) == fit_tokens(facts, Recovery(steps=9), 8)  # the same on every machine


def test_what_is_written_is_what_was_trained(
    tiny: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that training ended with, and those that gguf-py and edge read from the file, are the same numbers."""
    from edge_convert.recover import train

    seen: list[tuple[GridMasters, dict[str, Any]]] = []
    original = train.GridMasters

    class Spy(original):  # type: ignore[valid-type, misc]
        def push(self, masters: dict[str, Any], weights: dict[str, Any]) -> None:
            super().push(masters, weights)
            seen[:] = [(self, {name: value.detach().clone() for name, value in weights.items()})]

    monkeypatch.setattr(train, "GridMasters", Spy)
    plan = make_plan(
        Input(kind="checkpoint", path=tiny, source="tiny"), tmp_path / "out", request_of(text_file, "Q4_0", steps=4)
    )
    (made,) = run_plan(plan)
    masters, pushed = seen[0]
    checkpoint = open_checkpoint(tiny)
    blocks = GgufBlocks(made / "tiny-Q4_0.gguf", checkpoint)
    n_matrices = 0
    for name, weight in pushed.items():
        stored = f"model.{name}" if name.startswith("norm.") else f"model.layers.{name}"
        read = blocks.floats(stored)
        assert torch.equal(read.to(torch.bfloat16), weight)
        if weight.ndim == 2:
            codes, parts = blocks.read(stored)
            expected_codes, expected_parts = masters.stored(name)
            assert torch.equal(codes.float(), expected_codes)
            assert torch.equal(parts["scale"], expected_parts["scale"].half().float())
            n_matrices += 1
        else:
            assert torch.equal(read, masters.vector(name))
    assert n_matrices == 7 * checkpoint.model.n_layers


def test_a_run_that_is_stopped_gives_the_same_file(tiny: Path, text_file: Path, tmp_path: Path) -> None:
    source = Input(kind="checkpoint", path=tiny, source="tiny")
    (whole,) = run_plan(make_plan(source, tmp_path / "whole", request_of(text_file, "Q4_0", steps=8)))
    plan = make_plan(source, tmp_path / "stopped", request_of(text_file, "Q4_0", steps=8))

    def stop(progress: Any) -> None:
        if "step 4," in progress.detail:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, stop)
    assert (plan.work / "gguf-Q4_0.part/state.safetensors").is_file()
    (made,) = run_plan(plan)
    assert (made / "tiny-Q4_0.gguf").read_bytes() == (whole / "tiny-Q4_0.gguf").read_bytes()


def test_what_cannot_be_recovered_is_refused(tiny: Path, text_file: Path, tmp_path: Path) -> None:
    source = Input(kind="checkpoint", path=tiny, source="tiny")
    with pytest.raises(UsageError, match="Q4_K_M cannot be recovered"):
        make_plan(source, tmp_path / "out", request_of(text_file, "Q4_K_M"))
    request = msgspec.structs.replace(request_of(text_file, "Q4_0"), formats=("gguf", "onnx"))
    with pytest.raises(UsageError, match="Only GGUF files and Core ML's variant ane are recovered"):
        make_plan(source, tmp_path / "out", request)


def test_a_recipe_with_a_recovery(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text("[recovery]\nminutes = 20\n")
    recipe = find_recipe(str(file))
    assert recipe.keep_layers == 0
    assert recipe.recovery is not None
    assert (recipe.recovery.minutes, recipe.recovery.window) == (20, 256)
    file.write_text("title = 'nothing'\n")
    with pytest.raises(UsageError, match="says what stays"):
        find_recipe(str(file))


def test_the_command_plans_a_recovery(tiny: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", str(tiny), "--recover-minutes", "20", "--distill-text", str(text_file), "--no-card", "--dry-run"]
    assert run([*arguments, "--json", "--out", str(tmp_path / "out")]) == 0
    plan = json.loads(capsys.readouterr().out)
    names = [step["name"] for step in plan["steps"]]
    assert names == ["source", "gguf-base", "imatrix", "text", "recover-hidden", "plain-Q4_0", "fitted-Q4_0", "gguf-Q4_0"]
    assert plan["steps"][-1]["title"] == "Recover Q4_0 for 20 min"
    assert plan["steps"][-1]["seconds"] >= 20 * 60
    assert not (tmp_path / "out").exists()
