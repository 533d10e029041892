"""A smaller vocabulary and narrower feed-forward layers: the same text, the same logits of what stays, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

import torch
from tokenizers import Tokenizer

from edge.errors import ModelFileError, UsageError
from edge_cli.main import run
from edge_convert.checkpoint import open_checkpoint, read_json
from edge_convert.facts import Request
from edge_convert.gguf.quantise import GgufOptions
from edge_convert.inputs import Input
from edge_convert.pipeline import run as run_plan
from edge_convert.plan import make_plan
from edge_convert.smaller.corpus import Document
from edge_convert.smaller.ffn import narrow_ffn
from edge_convert.smaller.layers import check_ffn
from edge_convert.smaller.models import keep_tokens, open_model, save_model
from edge_convert.smaller.recipe import Recipe, Source, Text, Training, check_recipe
from edge_convert.smaller.vocabulary import (
    check_spelling,
    choose_tokens,
    named_tokens,
    respell_all,
    trim_checkpoint,
    trim_tokenizer,
)
from edge_convert.strings import varied_strings
from edge_convert.torch_models import layers_of
from tests.checkpoints import make_checkpoint
from tests.unit.convert.support import read_manifest

QUIET = lambda *_: None  # noqa: E731


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of two layers, whose tokenizer puts a beginning token before a text by its number."""
    folder = make_checkpoint(tmp_path_factory.mktemp("teacher") / "tiny", "llama", num_hidden_layers=2)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_bytes())
    first = content["added_tokens"][0]
    special = {first["content"]: {"id": first["content"], "ids": [first["id"]], "tokens": [first["content"]]}}
    single = [{"SpecialToken": {"id": first["content"], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    path.write_text(json.dumps({**content, "post_processor": template}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def kept(tiny: Path) -> list[int]:
    return choose_tokens(read_json(tiny / "tokenizer.json"), {}, 400, "tiny")


@pytest.fixture(scope="module")
def small(tiny: Path, kept: list[int]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(trim_tokenizer(read_json(tiny / "tokenizer.json"), kept)))


@pytest.fixture(scope="module")
def whole(tiny: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny / "tokenizer.json"))


def strings() -> Iterator[str]:
    return iter(varied_strings(200, 5))


# -- vocabulary


def test_a_text_whose_tokens_stay_is_split_as_before_and_any_other_is_spelled(
    whole: Tokenizer, small: Tokenizer, kept: list[int]
) -> None:
    numbers = {old: new for new, old in enumerate(kept)}
    n_same = 0
    for text in ["the and of", *strings()]:
        before, after = whole.encode(text).ids, small.encode(text).ids
        assert small.decode(after, skip_special_tokens=False) == whole.decode(before, skip_special_tokens=False)
        if all(token in numbers for token in before):
            assert after == [numbers[token] for token in before]
            n_same += 1
        else:
            assert len(after) > len(before)
    assert 0 < n_same < 200
    check_spelling(whole, small, "tiny")
    assert small.get_vocab_size() == len(kept) == 400


def test_what_a_text_uses_stays_before_what_it_does_not(tiny: Path, whole: Tokenizer) -> None:
    tokenizer = read_json(tiny / "tokenizer.json")
    rare = whole.get_vocab_size() - 20
    assert whole.id_to_token(rare) in tokenizer["model"]["vocab"]
    assert rare not in choose_tokens(tokenizer, {}, 400, "tiny")
    assert rare in choose_tokens(tokenizer, {rare: 1000}, 400, "tiny")


@pytest.mark.parametrize("size", [100, 601, 1000])
def test_a_vocabulary_that_cannot_be(size: int, tiny: Path) -> None:
    with pytest.raises(UsageError, match=f"has 601 tokens and cannot keep {size:,}"):
        choose_tokens(read_json(tiny / "tokenizer.json"), {}, size, "tiny")


@pytest.mark.parametrize("change", [{"type": "Unigram"}, {"byte_fallback": True}])
def test_a_tokenizer_of_another_kind_is_refused(change: dict[str, Any], tiny: Path) -> None:
    tokenizer = read_json(tiny / "tokenizer.json")
    with pytest.raises(ModelFileError, match="no byte-level BPE"):
        choose_tokens({**tokenizer, "model": {**tokenizer["model"], **change}}, {}, 400, "tiny")


def test_tokens_that_files_name_stay(tiny: Path, tmp_path: Path) -> None:
    """Else a reply would never end, and a text would begin with another token."""
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    tokenizer = read_json(folder / "tokenizer.json")
    by_id = {index: text for text, index in tokenizer["model"]["vocab"].items()}
    end, other_end, begin, pad = 590, 591, 592, 593
    single = [{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"X": {"id": "X", "ids": [begin], "tokens": [by_id[begin]]}}
    tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}
    for name, keys in (
        ("config.json", {"eos_token_id": end}),
        ("generation_config.json", {"eos_token_id": [end, other_end], "pad_token_id": None, "bos_token_id": 10**9}),
        ("tokenizer_config.json", {"pad_token": {"content": by_id[pad]}, "add_bos_token": True, "unk_token": "nowhere"}),
    ):
        before = read_json(folder / name) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps(before | keys), encoding="utf-8")
    named = named_tokens(folder, tokenizer, "tiny")
    assert named >= {end, other_end, begin, pad}
    assert not {end, begin} & set(choose_tokens(tokenizer, {}, 400, "tiny"))
    kept = choose_tokens(tokenizer, {}, 400, "tiny", named)
    assert named <= set(kept)
    assert len(kept) == 400
    small = Tokenizer.from_str(json.dumps(trim_tokenizer(tokenizer, kept)))
    assert small.id_to_token(small.encode("the house").ids[0]) == by_id[begin]
    special["X"]["ids"] = [99_999]
    with pytest.raises(ModelFileError, match="puts the token 99999 around texts"):
        named_tokens(folder, tokenizer, "tiny")


@pytest.mark.parametrize("key", ["x", "-1", "7777", "590"])
def test_a_description_of_a_token_that_is_not_there_goes(key: str, tiny: Path, kept: list[int], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "tiny"))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(read_json(path) | {"added_tokens_decoder": {key: {"content": "a"}, "0": {"content": "b"}}}))
    (tmp_path / "small").mkdir()
    trim_checkpoint(folder, tmp_path / "small", ["tokenizer.json", "tokenizer_config.json"], {"vocab_size": 601}, kept)
    assert set(read_json(tmp_path / "small/tokenizer_config.json")["added_tokens_decoder"]) == {str(kept.index(0))}


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])  # a tied head, and one of its own
def test_the_logits_are_those_of_the_tokens_that_stay(architecture: str, tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "tiny", architecture)
    kept = choose_tokens(read_json(source / "tokenizer.json"), {}, 400, "tiny")
    save_model(keep_tokens(open_model(source, "float32"), kept), tmp_path / "small", open_checkpoint(source), "small", kept)
    found = open_checkpoint(tmp_path / "small")
    assert found.config["vocab_size"] == 400
    names = {"bos_token_id", "eos_token_id"}
    tokens = {name: kept[found.config[name]] for name in names}
    assert tokens == {name: open_checkpoint(source).config[name] for name in names}
    new = torch.arange(3, 40)
    with torch.inference_mode():
        ours = open_model(tmp_path / "small", "float32")(new[None]).logits
        theirs = open_model(source, "float32")(torch.tensor(kept)[new][None]).logits
    assert torch.equal(ours, theirs[..., kept])


def test_conversations_are_tokenised_again(tiny: Path, whole: Tokenizer, small: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(small.to_str(), encoding="utf-8")
    prompt, answer = (whole.encode(text, add_special_tokens=False).ids for text in ("where is the house", " it is thère"))
    cut = whole.encode("è", add_special_tokens=False).ids[:1]
    documents = [Document((*prompt, *answer), len(prompt), is_whole=True), Document((*prompt, *cut), len(prompt))]
    (found,) = respell_all(documents, tiny, tmp_path)
    assert small.decode(found.tokens[: found.first]) == "where is the house"
    assert small.decode(found.tokens[found.first :]) == " it is thère"
    assert found.is_whole


# -- feed-forward layers


def test_neurons_that_say_nothing_leave_without_a_trace(tiny: Path) -> None:
    model = open_model(tiny, "float32")
    tokens = torch.randint(3, 600, (8, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for layer in layers_of(model):
            layer.mlp.up_proj.weight[1::4] = 0
        before = model(tokens).logits
        narrow_ffn(model, 192, tokens, QUIET)
        assert layers_of(model)[0].mlp.up_proj.weight.shape == (192, 128)
        assert torch.allclose(model(tokens).logits, before, atol=1e-3)
        assert model.config.intermediate_size == 192


def test_a_layer_that_is_switched_off_is_narrowed_too(tiny: Path) -> None:
    model = open_model(tiny, "float32")
    tokens = torch.randint(3, 600, (8, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        layers_of(model)[0].mlp.up_proj.weight.zero_()
        narrow_ffn(model, 192, tokens, QUIET)
        assert torch.isfinite(model(tokens).logits).all()
        layers_of(model)[1].mlp.up_proj.weight.fill_(1e25)
        with pytest.raises(ModelFileError, match="range of float32"):
            narrow_ffn(model, 128, tokens, QUIET)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma3"])
def test_the_fit_is_nearer_than_leaving_neurons_out(architecture: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "tiny", architecture)
    tokens = torch.randint(3, 600, (8, 32), generator=torch.Generator().manual_seed(1))
    errors = []
    with torch.no_grad():
        expected = open_model(folder, "float32")(tokens).logits
        for is_fitted in (True, False):
            model = open_model(folder, "float32")
            whole = [layer.mlp.down_proj.weight.clone() for layer in layers_of(model)]
            narrow_ffn(model, 128, tokens, QUIET)
            if not is_fitted:
                for layer, weight in zip(layers_of(model), whole, strict=True):
                    layer.mlp.down_proj.weight.copy_(weight[:, : layer.mlp.down_proj.in_features])
            errors.append(float((model(tokens).logits - expected).square().mean()))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("keep", [0, 31, 100, 256, 512])
def test_a_width_that_cannot_be(keep: int) -> None:
    with pytest.raises(UsageError, match=f"256 feed-forward neurons in a layer and cannot keep {keep}"):
        check_ffn(keep, 256, "tiny")


# -- as conversions


def test_a_conversion_that_leaves_out_some_of_all(tiny: Path, tmp_path: Path) -> None:
    texts = (
        Text(name="answers", tokens=256, held_out_tokens=64, answer_tokens=16),
        Text(name="own", tokens=256, source=Source(file=str(_text(tmp_path)))),
    )
    training = Training(steps=2, window=64, batch=2)
    smaller = check_recipe(Recipe(keep_layers=1, keep_ffn=128, keep_vocab=400, layers=(0,), texts=texts, training=training))
    request = Request(smaller=smaller, card=False, gguf=GgufOptions(quantisations=("F16",), threads=1, use_imatrix=False))
    plan = make_plan(Input(kind="checkpoint", path=tiny, source="tiny"), tmp_path / "out", request)
    assert [step.title for step in plan.steps if step.name in ("vocabulary", "cut")] == [
        "Keep 400 of 601 tokens",
        "Keep 1 of 2 layers and 128 of 256 feed-forward neurons",
    ]
    run_plan(plan)
    student = open_checkpoint(tmp_path / "out/checkpoint-1-layers-ffn-128-vocab-400")
    assert (student.model.n_layers, student.model.inner, student.model.n_vocab) == (1, 128, 400)
    manifest = read_manifest(tmp_path / "out/gguf-F16/manifest.json")
    assert manifest.recipe["vocabulary"].startswith("400 tokens")
    assert manifest.recipe["feed-forward"].startswith("128 neurons")


def _text(folder: Path) -> Path:
    path = folder / "own.txt"
    path.write_text("\n\n\n".join(f"the house number {number} is in the street" for number in range(60)), encoding="utf-8")
    return path


@pytest.mark.usefixtures("here")
def test_fewer_tokens_alone_need_no_training(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["convert", str(tiny), "--keep-vocab", "400", "--quant", "F16", "--no-imatrix", "--no-card", "--out", str(out)]
    assert run(command) == 0
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-vocab-400", "gguf-F16"]
    assert (out / "gguf-F16/tiny-vocab-400-F16.gguf").is_file()


def test_without_training_tokens_are_counted_in_answers_too(tiny: Path, tmp_path: Path) -> None:
    """The recipe's texts decide which tokens stay, so the teacher writes its part of them."""
    source = Input(kind="checkpoint", path=tiny, source="tiny")
    written: set[int] = set()
    kept: list[set[int]] = []
    for name, texts in (("by-order", ()), ("by-text", (Text(name="answers", tokens=256, answer_tokens=16),))):
        request = Request(
            smaller=check_recipe(Recipe(keep_vocab=400, texts=texts)),
            card=False,
            gguf=GgufOptions(quantisations=("F16",), threads=1, use_imatrix=False),
        )
        plan = make_plan(source, tmp_path / name, request)

        def watch(_progress: object, folder: Path = plan.work / "written") -> None:
            for path in folder.glob("answers-*.json"):
                documents = msgspec.json.decode(path.read_bytes(), type=list[Document])
                written.update(token for document in documents for token in document.tokens)

        run_plan(plan, watch)
        kept.append(set(json.loads((tmp_path / name / "checkpoint-vocab-400/tokens.json").read_text())))
    assert len(written & kept[1]) > len(written & kept[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep-ffn", "128"], "--distill-minutes 30"),
        (["--keep-ffn", "130", "--distill-minutes", "1"], "cannot keep 130"),
        (["--keep-vocab", "9000"], "cannot keep 9,000"),
    ],
)
def test_what_the_command_refuses(options: list[str], said: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(tiny), *options, "--dry-run"]) != 0
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "recipe", "words"),
    [
        ("smollm3", Recipe(keep_layers=3, training=Training(minutes=1)), "cannot lose layers"),
        ("granite4", Recipe(keep_ffn=128, training=Training(minutes=1)), "cannot be narrowed"),
    ],
)
def test_what_newer_families_cannot_lose(kind: str, recipe: Recipe, words: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / kind, kind)
    with pytest.raises(UsageError, match=words):
        make_plan(Input(kind="checkpoint", path=folder, source=kind), tmp_path / "out", Request(smaller=recipe, card=False))
