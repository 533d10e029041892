"""The arithmetic of a smaller model: the fused loss against autograd, the choice of layers against brute force, the fit, the
windows."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from edge.errors import UsageError
from edge_convert.smaller.choose_layers import layer_influence, least_divergent
from edge_convert.smaller.corpus import Document, pack
from edge_convert.smaller.layers import best_layers, check_layers
from edge_convert.smaller.loss import Head
from edge_convert.smaller.models import head_of, keep_layers, layer_kinds, open_model
from edge_convert.smaller.prompts import built_in_prompts
from edge_convert.smaller.recipe import Text
from edge_convert.smaller.repair import can_repair, repair
from edge_convert.smaller.teacher import open_hidden, write_hidden
from edge_convert.torch_models import layers_of

Make = Callable[[str], Path]
QUIET = lambda *_: None  # noqa: E731


def windows(n: int, length: int, n_vocab: int = 600) -> Any:
    return torch.from_numpy(np.random.default_rng(1).integers(3, n_vocab, (n, length)))


# -- the loss


@pytest.mark.parametrize("cap", [None, 5.0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gradient_of_the_fused_loss_is_that_of_autograd(cap: float | None, has_bias: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(301, 24, dtype=torch.float64)
    bias = torch.randn(301, dtype=torch.float64) if has_bias else None
    teacher, student = torch.randn(2, 37, 24, dtype=torch.float64)
    student.requires_grad_(True)

    def logits(hidden: Any) -> Any:
        found = hidden @ weight.T + (0 if bias is None else bias)
        return found if cap is None else cap * torch.tanh(found / cap)

    expected = torch.nn.functional.kl_div(
        logits(student).log_softmax(-1), logits(teacher).log_softmax(-1), reduction="batchmean", log_target=True
    )
    expected.backward()
    head = Head(weight, cap=cap, bias=bias, chunk=16)  # pieces of 16, 16 and 5 rows
    torch.testing.assert_close(head.gradient(student.detach(), teacher), student.grad)
    divergence, agrees = head.divergence(student.detach(), teacher)
    assert float(divergence.mean()) == pytest.approx(float(expected.detach()), rel=1e-4)  # measured in float32
    assert torch.equal(agrees, logits(student).argmax(-1) == logits(teacher).argmax(-1))


# -- which layers


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=9), st.data())
def test_best_layers_are_those_of_brute_force(scores: list[float], data: st.DataObject) -> None:
    n = len(scores)
    keep = data.draw(st.integers(1, n - 1))
    pattern = data.draw(st.integers(1, 3))
    kinds = ["full" if (place + 1) % pattern == 0 else "window" for place in range(n)]
    fitting = [
        chosen
        for chosen in itertools.combinations(range(n), keep)
        if chosen[0] == 0 and all(kinds[layer] == kinds[place] for place, layer in enumerate(chosen))
    ]
    with_last = [chosen for chosen in fitting if chosen[-1] == n - 1] or fitting
    found = best_layers(scores, keep, kinds)
    if not with_last:
        assert found is None
        return
    assert found in with_last
    assert sum(scores[layer] for layer in found) == pytest.approx(max(sum(scores[i] for i in chosen) for chosen in with_last))


def test_influence_is_low_where_a_layer_does_nothing(tiny_checkpoint: Make) -> None:
    model = open_model(tiny_checkpoint("gemma3"), "float32")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        layers_of(model)[4].get_submodule(name).weight.zero_()
    found = layer_influence(model, windows(2, 24), QUIET)
    assert found[4] == pytest.approx(0, abs=1e-6)
    assert min(found[:4] + found[5:]) > 1e-3
    assert not any(module._forward_hooks for module in layers_of(model))


def test_least_divergent_is_the_greedy_choice(tiny_checkpoint: Make) -> None:
    model = open_model(tiny_checkpoint("gemma3"), "float32")
    model.config.layer_types = ["full_attention"] * 7  # no pattern: what is tested is the choice
    tokens = windows(2, 24)
    head = head_of(model)
    layers = layers_of(model)

    def without(kept: list[int]) -> Any:
        model.base_model.layers = torch.nn.ModuleList([layers[index] for index in kept])
        with torch.inference_mode():
            return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state.reshape(-1, 128)

    teacher, kept = without(list(range(7))), list(range(7))
    for _ in range(3):
        costs = {out: float(head.divergence(without([i for i in kept if i != out]), teacher)[0].mean()) for out in kept}
        kept.remove(min(costs, key=costs.__getitem__))
    model.base_model.layers = layers
    assert least_divergent(model, tokens, 4, QUIET) == tuple(kept)
    assert len(layers_of(model)) == 7


@pytest.mark.parametrize(
    ("keep", "named", "said"),
    [
        (0, None, "cannot keep 0"),
        (7, None, "has 7 layers and cannot keep 7"),
        (3, (0, 2), "does not name as many"),
        (2, (1, 0), "does not name as many"),
        (2, (0, 7), "does not name as many"),
        (2, (0, 5), "pattern of windows"),
    ],
)
def test_choices_that_no_model_can_have(keep: int, named: tuple[int, ...] | None, said: str) -> None:
    kinds = ["window"] * 5 + ["full", "window"]
    with pytest.raises(UsageError, match=said):
        check_layers(keep, named, kinds, "Tiny")


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "gemma3", "phi3"])
def test_a_cut_model_is_a_model_of_its_family(kind: str, tiny_checkpoint: Make, tmp_path: Path) -> None:
    import transformers

    from edge_convert.checkpoint import open_checkpoint
    from edge_convert.smaller.models import save_model

    source = open_checkpoint(tiny_checkpoint(kind))
    model = open_model(source.folder, "float32")
    kinds = layer_kinds(model.config)
    keep = len(kinds) - 1
    kept = best_layers([1.0] * len(kinds), keep, kinds)
    assert kept is not None
    kept_layers = [layers_of(model)[index] for index in kept]
    keep_layers(model, kept)
    save_model(model, tmp_path / "cut", source, "cut")
    cut = open_checkpoint(tmp_path / "cut")  # checks that every tensor is there and none too many
    assert (cut.config["num_hidden_layers"], cut.licence) == (keep, "apache-2.0")
    assert layer_kinds(transformers.AutoConfig.from_pretrained(cut.folder)) == kinds[:keep]
    again = open_model(cut.folder, "float32")
    for ours, theirs in zip(layers_of(again), kept_layers, strict=True):
        assert torch.equal(ours.mlp.down_proj.weight, theirs.mlp.down_proj.weight)
    tokens = windows(1, 20, 300)
    with torch.inference_mode():
        torch.testing.assert_close(again(tokens).logits, model(tokens).logits)
        assert again.generate(tokens, max_new_tokens=2, use_cache=True).shape == (1, 22)  # the KV has a place for each layer


# -- the fit


def test_the_fit_is_the_least_squares_solution(tiny_checkpoint: Make) -> None:
    model = open_model(tiny_checkpoint("llama"), "float32")
    assert can_repair(model)
    tokens = windows(10, 64)  # more rows than the 256 inputs of the matrix, and a batch that is not full
    seen: dict[str, Any] = {}
    layer = layers_of(model)[0]
    old = layer.mlp.down_proj.weight.clone()
    hook = layer.mlp.down_proj.register_forward_hook(lambda module, inputs, output: seen.update(inputs=inputs[0]))
    with torch.inference_mode():
        states = model.base_model(input_ids=tokens, use_cache=False, output_hidden_states=True)
        after_first = states.hidden_states[1].reshape(-1, 128)
        inputs = seen["inputs"].reshape(-1, 256)
        # What the second layer makes of it, before the last norm.
        target = layers_of(model)[1](
            states.hidden_states[1],
            position_embeddings=model.base_model.rotary_emb(states.hidden_states[1], torch.arange(64)[None]),
        ).reshape(-1, 128)
    hook.remove()
    found = repair(model, (0,), tokens, QUIET, ridge=1e-7)
    assert list(found) == [0]
    assert torch.equal(layer.mlp.down_proj.weight, old)  # the model is as before
    weight = target.square().mean(-1, keepdim=True).rsqrt()
    change = np.linalg.lstsq((inputs * weight).numpy(), ((target - after_first) * weight).numpy(), rcond=None)[0].T
    np.testing.assert_allclose(found[0].numpy(), old.numpy() + change, atol=2e-3)


def test_the_fit_brings_a_cut_model_nearer_to_the_whole(tiny_checkpoint: Make) -> None:
    model = open_model(tiny_checkpoint("phi3"), "float32")
    tokens, others = windows(60, 64, 390), windows(64, 64, 390)[60:]
    with torch.inference_mode():
        teacher = model.base_model(input_ids=others, use_cache=False).last_hidden_state
    found = repair(model, (0,), tokens, QUIET)
    student = keep_layers(model, (0,))

    def distance() -> float:
        with torch.inference_mode():
            return float((student.base_model(input_ids=others, use_cache=False).last_hidden_state - teacher).square().mean())

    before = distance()
    layers_of(student)[0].mlp.down_proj.weight.copy_(found[0])
    assert distance() < 0.95 * before


def test_what_has_a_norm_behind_its_last_matrix_is_left_alone(tiny_checkpoint: Make) -> None:
    assert not can_repair(open_model(tiny_checkpoint("gemma2")))


# -- windows


def test_documents_are_trained_on_or_held_out_and_never_both() -> None:
    documents = [Document(tuple(range(start, start + 30))) for start in range(0, 3000, 30)]
    text = Text(name="t", tokens=1600, held_out_tokens=320)
    (train, counted), (held, held_counted) = pack(documents, text, 64, 3, filler=-1)
    assert (train.shape, held.shape) == ((25, 64), (5, 64))
    assert counted.all() and held_counted.all()
    assert not {token // 30 for token in train.ravel()} & {token // 30 for token in held.ravel()}
    again = pack(documents, text, 64, 3, filler=-1)[0][0]
    assert (again == train).all()
    assert (pack(documents, text, 64, 4, filler=-1)[0][0] != train).any()


def test_a_conversation_whose_prompt_fills_the_window_is_left_out() -> None:
    """As a prompt may with a smaller vocabulary: the divergence over no token is no number."""
    long, short = Document(tuple(range(90)), 70, is_whole=True), Document(tuple(range(200, 290)), 64, is_whole=True)
    (train, counted), _ = pack([long, short, long], Text(name="t", tokens=128), 64, 1, filler=0)
    assert train[:, 0].tolist() == [200]
    assert counted.sum() == 1
    with pytest.raises(UsageError, match="too short"):
        pack([long], Text(name="t", tokens=64), 64, 1, filler=0)


def test_the_teacher_reads_on_after_a_power_cut(tiny_checkpoint: Make, tmp_path: Path) -> None:
    tokens = np.arange(20 * 16, dtype=np.int32).reshape(20, 16)
    whole = open_hidden(write_hidden(tmp_path, tiny_checkpoint("llama"), tokens, QUIET)).copy()
    (tmp_path / "done.txt").write_text("")  # the disk had not written its content
    again = open_hidden(write_hidden(tmp_path, tiny_checkpoint("llama"), tokens, QUIET))
    assert np.array_equal(again, whole)
    assert not (tmp_path / "done.txt").exists()


def test_a_conversation_begins_a_window_and_its_prompt_is_not_learned() -> None:
    chance = random.Random(5)
    documents = [
        Document(tuple(range(100 * number, 100 * number + chance.randint(8, 40))), 5, is_whole=True) for number in range(1, 30)
    ]
    (train, counted), _ = pack(documents, Text(name="t", tokens=64 * 20), 64, 1, filler=0)
    assert len(train) == 20
    by_start = {document.tokens[0]: document for document in documents}
    for row, marks in zip(train, counted, strict=True):
        document = by_start[row[0]]
        n = len(document.tokens)
        assert tuple(row[:n]) == document.tokens
        assert list(marks[:n]) == [False] * 4 + [True] * (n - 4)  # what follows the fifth token is learned
        assert tuple(row[n : n + 8]) == by_start[row[n]].tokens[:8]  # the next conversation fills the window up
        assert not marks[n : n + 4].any()
        assert not marks[row == 0].any()


def test_too_little_text_is_said() -> None:
    with pytest.raises(UsageError, match="too short"):
        pack([Document((1, 2, 3))], Text(name="t", tokens=64, held_out_tokens=64), 64, 1, filler=0)


def test_built_in_prompts_are_many_and_none_is_measured_with() -> None:
    from edge_convert.evaluate.passages import read_texts

    prompts = built_in_prompts()
    assert len(set(prompts)) > 3_000
    questions = files("edge_convert.evaluate") / "texts/questions.jsonl"
    measured = {json.loads(line)["question"] for line in questions.read_text(encoding="utf-8").splitlines()}
    measured |= set(read_texts()[1])
    assert not set(prompts) & measured
    assert prompts == built_in_prompts()
