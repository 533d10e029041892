"""A smaller model from end to end on tiny checkpoints: training that resumes, adapters, recipes, and what is said when it
cannot be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

import msgspec
import numpy as np
import torch

from edge.catalog import list_models, remove, resolve
from edge.config import load_settings
from edge.errors import ModelFileError, ModelNotFoundError, StorageError, UsageError
from edge_cli.main import run
from edge_convert.checkpoint import open_checkpoint
from edge_convert.facts import Request
from edge_convert.gguf.quantise import GgufOptions
from edge_convert.inputs import Input
from edge_convert.pipeline import run as run_plan
from edge_convert.plan import make_plan
from edge_convert.smaller.corpus import load_corpus
from edge_convert.smaller.distill import distil, measure
from edge_convert.smaller.lora import check_fit, merge, open_adapter
from edge_convert.smaller.models import keep_layers, open_model
from edge_convert.smaller.recipe import Recipe, Source, Text, Training, check_recipe, find_recipe, list_recipes, with_texts
from edge_convert.smaller.sources import read_documents
from edge_convert.smaller.teacher import open_hidden, write_hidden
from tests.checkpoints import make_checkpoint
from tests.servers.hub import Repo, run_hub
from tests.unit.convert.support import read_manifest

Make = Callable[[str], Path]
QUIET = lambda *_: None  # noqa: E731


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of four layers."""
    return make_checkpoint(tmp_path_factory.mktemp("teacher") / "tiny", "llama", num_hidden_layers=4)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents of words in another order each."""
    words = ["the", "a", "of", "edge", "model", "reads", "writes", "small", "large", "device", "token", "layer", "learns"]
    chance = np.random.default_rng(1)
    documents = [" ".join(chance.choice(words, 60)) for _ in range(60)]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n\n".join(documents), encoding="utf-8")
    return path


def recipe(text_file: Path, **training: Any) -> Recipe:
    text = Text(name="words", tokens=3_000, held_out_tokens=512, source=Source(file=str(text_file)))
    how = {"steps": 12, "window": 64, "batch": 4, "lr": 3e-3} | training
    return Recipe(keep_layers=2, layers="influence", repair_tokens=1024, texts=(text,), training=Training(**how))


@pytest.fixture(scope="module")
def prepared(four_layers: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of the steps before training, as a conversion leaves them."""
    out = tmp_path_factory.mktemp("prepared")
    request = Request(smaller=recipe(text_file), card=False, gguf=GgufOptions(quantisations=("F16",), threads=1))
    plan = make_plan(Input(kind="checkpoint", path=four_layers, source="tiny"), out, request)

    def stop(progress: Any) -> None:
        if progress.title.startswith("Distil"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, stop)
    return plan.work


def train(prepared: Path, folder: Path, training: Training, told: Callable[[str, float], None] = QUIET) -> tuple[Any, Any]:
    torch.set_num_threads(1)
    student = open_model(prepared / "cut")
    corpus = load_corpus(prepared / "text")
    held = {name: open_hidden(prepared / "hidden" / name / "hidden.npy") for name in corpus.held_out}
    folder.mkdir(exist_ok=True)
    report = distil(student, corpus, open_hidden(prepared / "hidden/hidden.npy"), held, training, folder, told)
    return student, report


def weights(model: Any) -> dict[str, Any]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# -- training


def test_training_brings_the_student_nearer_and_touches_no_embedding(prepared: Path, tmp_path: Path) -> None:
    said: list[str] = []
    before = weights(open_model(prepared / "cut"))
    student, report = train(
        prepared,
        tmp_path / "run",
        Training(steps=40, window=64, batch=4, lr=3e-3),
        lambda text, share: said.append(text),
    )
    assert (report.steps, report.tokens) == (40, 40 * 4 * 64)
    assert report.after["words"].divergence < 0.85 * report.before["words"].divergence
    assert report.after["words"].top1 > report.before["words"].top1
    assert len(report.course) == 21
    assert any("held-out KL" in text for text in said)
    after = weights(student)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "model.embed_tokens.weight" not in changed
    assert "model.norm.weight" in changed
    assert {f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)} <= changed
    assert list((tmp_path / "run").iterdir()) == []  # nothing of the training's own is left in the artifact


def test_what_is_measured_is_the_divergence_of_the_logits(prepared: Path, four_layers: Path) -> None:
    corpus = load_corpus(prepared / "text")
    tokens = torch.from_numpy(corpus.held_out["words"][0].astype(np.int64))
    student, teacher = open_model(prepared / "cut", "float32"), open_model(four_layers, "float32")
    with torch.inference_mode():
        p, q = (model(tokens).logits.float().log_softmax(-1) for model in (teacher, student))
    expected = (p.exp() * (p - q)).sum(-1).mean()
    held = {"words": open_hidden(prepared / "hidden/words/hidden.npy")}
    found = measure(open_model(prepared / "cut"), corpus, held)["words"]
    assert found.divergence == pytest.approx(float(expected), rel=0.05)  # bfloat16 against float32
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).float().mean()), abs=0.05)


def test_a_run_that_is_stopped_and_resumed_is_the_run_that_was_not(prepared: Path, tmp_path: Path) -> None:
    training = Training(steps=14, window=64, batch=4, lr=3e-3)
    whole, report = train(prepared, tmp_path / "whole", training)
    folder = tmp_path / "stopped"
    for stop_at in (3, 9):
        reached: list[float] = []

        def stop(text: str, share: float, reached: list[float] = reached, stop_at: int = stop_at) -> None:
            reached.append(share)
            if share >= stop_at / 14:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(prepared, folder, training, stop)
        assert (folder / "state.safetensors").is_file()
    resumed, again = train(prepared, folder, training)
    assert again.steps == report.steps
    assert again.before == report.before
    assert again.after == report.after
    assert [value for _, value in again.course] == [value for _, value in report.course]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_a_damaged_state_is_said(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/state.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelFileError, match="is damaged"):
        train(prepared, tmp_path / "run", Training(steps=2, window=64))


def test_the_teachers_reading_resumes(four_layers: Path, tmp_path: Path) -> None:
    tokens = np.random.default_rng(2).integers(3, 600, (1040, 8)).astype(np.int32)
    whole = np.load(write_hidden(tmp_path, four_layers, tokens, QUIET))
    folder = tmp_path / "stopped"
    folder.mkdir()

    def stop(share: float) -> None:
        if share > 0.7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_hidden(folder, four_layers, tokens, stop)
    reached: list[float] = []
    assert (np.load(write_hidden(folder, four_layers, tokens, reached.append)) == whole).all()
    assert reached[0] > 0.4


# -- as a conversion


@pytest.mark.usefixtures("here")
def test_a_conversion_that_makes_a_model_smaller(four_layers: Path, text_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        f"keep_layers = 2\nrepair_tokens = 512\n[training]\nsteps = 6\nwindow = 64\nbatch = 4\n"
        f'[[texts]]\nname = "words"\ntokens = 2000\nheld_out_tokens = 256\n'
        f'source = {{ file = "{text_file}", licence = "CC0" }}\n'
        '[[texts]]\nname = "answers"\ntokens = 256\nheld_out_tokens = 64\nanswer_tokens = 16\n'
    )
    out = tmp_path / "out"
    arguments = [
        "convert",
        str(four_layers),
        "--recipe",
        str(file),
        "--to",
        "gguf",
        "--no-card",
        "--no-imatrix",
        "--threads",
        "1",
        "--out",
        str(out),
    ]
    assert run([*arguments, "--dry-run"]) == 0
    assert not out.exists()
    assert run(arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["checkpoint-2-layers", "gguf-Q4_K_M"]
    student = open_checkpoint(out / "checkpoint-2-layers")
    assert (student.config["num_hidden_layers"], student.name, student.licence) == (2, "tiny-2-layers", "apache-2.0")
    assert {path.name for path in student.folder.iterdir()} >= {"report.json", "choice.json", "manifest.json", "tokenizer.json"}
    manifests = {path.name: read_manifest(path / "manifest.json") for path in out.iterdir()}
    for manifest in manifests.values():
        assert manifest.name == "tiny-2-layers"
        assert manifest.recipe["layers"].startswith("0, ")
        assert manifest.recipe["distilled"].startswith("6 steps, 1536 tokens")
        assert "words: 2048 tokens of text.txt (CC0); answers: 256 tokens of tiny's own writing" in manifest.recipe["texts"]
        assert str(tmp_path) not in json.dumps(msgspec.to_builtins(manifest))
    assert manifests["checkpoint-2-layers"].format == "checkpoint"
    assert (out / "gguf-Q4_K_M/tiny-2-layers-Q4_K_M.gguf").is_file()


@pytest.mark.prove(whole_only=True)
def test_a_kill_in_the_middle_of_training_loses_a_few_seconds(four_layers: Path, text_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        f"keep_layers = 2\nrepair_tokens = 0\nlayers = [0, 2]\n[training]\nsteps = 150\nwindow = 64\nbatch = 4\nsave_s = 0\n"
        f'[[texts]]\nname = "words"\ntokens = 2000\nsource = {{ file = "{text_file}" }}\n'
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", "import edge_cli.main; edge_cli.main.main()", "convert", str(four_layers)]
    command += ["--recipe", str(file), "--no-card", "--no-imatrix", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [*command, "--quant", "F16", "--out", str(out)]
    child = subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while child.poll() is None and not list(out.glob(".work-*/checkpoint-2-layers.part/state.safetensors")):
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL
    assert [path.name for path in out.iterdir() if not path.name.startswith(".")] == []
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "checkpoint-2-layers/report.json").read_text())
    assert (report["steps"], report["after"]) == (150, {})
    choice = json.loads((out / "checkpoint-2-layers/choice.json").read_text())
    assert (choice["kept"], choice["reason"]) == ([0, 2], "named in the recipe")


# -- adapters


@pytest.fixture(scope="module")
def adapter(four_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for that teacher, as peft saves one."""
    peft = pytest.importorskip("peft", reason="needs the extra [distill]: pip install 'edge-assistant[distill]'")
    model = open_model(four_layers, "float32")
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("adapter") / "tuned"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers for what has another name now
        peft.get_peft_model(model, config).save_pretrained(folder)
    return folder


def test_a_merged_adapter_computes_what_peft_computes(adapter: Path, four_layers: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    merged = merge(open_checkpoint(four_layers), open_adapter(adapter), tmp_path / "merged", QUIET)
    tokens = torch.arange(3, 43)[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = PeftModel.from_pretrained(open_model(four_layers, "float32"), adapter)
    with torch.inference_mode():
        expected = wrapped(tokens).logits
        torch.testing.assert_close(open_model(merged.folder, "float32")(tokens).logits, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(open_model(four_layers, "float32")(tokens).logits, expected, atol=0.1)
    assert (merged.name, merged.config["num_hidden_layers"], merged.licence) == ("tiny+tuned", 4, "apache-2.0")


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["embed_tokens"]])
def test_an_adapter_on_the_vocabulary_changes_one_side_of_it(targets: list[str], tmp_path: Path) -> None:
    """The head is tied to the embedding, and the adapter changes one of them."""
    peft = pytest.importorskip("peft", reason="needs the extra [distill]: pip install 'edge-assistant[distill]'")
    import torch

    tied = make_checkpoint(tmp_path / "tied", "llama")
    model = open_model(tied, "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
        wrapped = peft.get_peft_model(model, config)
        wrapped.save_pretrained(tmp_path / "adapter")
        expected = wrapped(torch.tensor([[5, 6, 7]])).logits
        merged = merge(open_checkpoint(tied), open_adapter(tmp_path / "adapter"), tmp_path / "merged", QUIET)
    assert not merged.is_tied
    found = open_model(merged.folder, "float32")(torch.tensor([[5, 6, 7]])).logits
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("damage", ["layer", "half"])
def test_an_adapter_that_lacks_tensors_is_refused(damage: str, adapter: Path, four_layers: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    weights = load_file(copy / "adapter_model.safetensors")
    dropped = "layers.2." if damage == "layer" else "lora_B"
    save_file({name: value for name, value in weights.items() if dropped not in name}, copy / "adapter_model.safetensors")
    with pytest.raises(ModelFileError, match="lacks"):
        merge(open_checkpoint(four_layers), open_adapter(copy), tmp_path / "merged", QUIET)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": r".*\.(q|down)_proj"},
        {"target_modules": r"model\.layers\.[12]\.mlp\..*_proj"},
        {"target_modules": ["self_attn.v_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1, 2]},
        {"target_modules": ["q_proj"], "layers_to_transform": 2, "layers_pattern": "layers"},
        {"target_modules": ["q_proj", "o_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": r".*_proj", "exclude_modules": r".*mlp.*"},
        {"target_modules": ["q_proj"], "modules_to_save": ["norm", "lm_head"]},
    ],
)
def test_the_modules_that_an_adapter_must_change(options: dict[str, Any], four_layers: Path, tmp_path: Path) -> None:
    """Those that peft saves, neither more nor fewer: without any one of them it is refused."""
    peft = pytest.importorskip("peft", reason="needs the extra [distill]: pip install 'edge-assistant[distill]'")
    from safetensors.numpy import load_file, save_file

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(open_model(four_layers, "float32"), peft.LoraConfig(r=2, **options)).save_pretrained(tmp_path)
    if options["target_modules"] == "all-linear":  # as older versions saved it
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **options}))
    shapes = {name: info.shape for name, info in open_checkpoint(four_layers).tensors.items()}
    check_fit(open_adapter(tmp_path), shapes)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    for module in {name.partition(".lora_")[0] for name in weights if ".base_layer." not in name}:
        rest = {name: value for name, value in weights.items() if not f"{name}.".startswith(f"{module}.")}
        save_file(
            rest or {"x.lora_A.weight": np.zeros(1), "x.lora_B.weight": np.zeros(1)}, tmp_path / "adapter_model.safetensors"
        )
        with pytest.raises(ModelFileError, match="lacks its change of "):
            check_fit(open_adapter(tmp_path), shapes)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("target_modules", 7, "target_modules is a whole number, and should be text or a list or null"),
        ("target_modules", "(", "damaged pattern"),
        ("modules_to_save", ["("], "damaged pattern"),
        ("r", "x", "r is text, and should be a whole number or null"),
        ("peft_type", "I\u202eA3", "of the type I A3"),
    ],
)
def test_a_damaged_configuration_of_an_adapter(
    key: str, value: Any, said: str, adapter: Path, four_layers: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(adapter, tmp_path / "copy"))
    config = json.loads((copy / "adapter_config.json").read_text())
    (copy / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    shapes = {name: info.shape for name, info in open_checkpoint(four_layers).tensors.items()}
    with pytest.raises(ModelFileError, match=said):
        check_fit(open_adapter(copy), shapes)


@pytest.mark.usefixtures("here")
def test_a_conversion_merges_an_adapter(adapter: Path, four_layers: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    out = tmp_path / "out"
    arguments = [str(four_layers), "--lora", str(adapter), "--quant", "F16", "--no-card", "--out", str(out)]
    assert run(["convert", *arguments]) == 0
    manifest = read_manifest(out / "gguf-F16/manifest.json")
    assert manifest.recipe["LoRA adapter"].startswith("tuned, rank 4, SHA-256 ")
    assert "peft" in manifest.tools
    reader = GGUFReader(out / "gguf-F16/tiny+tuned-F16.gguf")
    found = next(tensor.data for tensor in reader.tensors if tensor.name == "blk.3.ffn_down.weight")
    old = open_checkpoint(four_layers).load_f32("model.layers.3.mlp.down_proj.weight")
    assert np.abs(found.astype(np.float32) - old).max() > 0.1


@pytest.mark.usefixtures("here")
def test_an_adapter_of_the_hub(
    adapter: Path, four_layers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {path.name: path.read_bytes() for path in adapter.iterdir()} | {"optimizer.pt": b"x", "train.py": b"x"}
    pickled = {name.replace(".safetensors", ".bin"): content for name, content in files.items()}
    out = tmp_path / "out"
    arguments = [str(four_layers), "--quant", "F16", "--no-card", "--out", str(out), "--lora"]
    with run_hub(**{"owner/tuned": Repo(files), "owner/old": Repo(pickled), "owner/none": Repo({"a.txt": b"x"})}) as hub:
        monkeypatch.setenv("EDGE_HUB_ENDPOINT", hub.url)
        assert run(["convert", *arguments, "hf:owner/tuned", "--name", "tiny-tuned"]) == 0
        asked = {request.path.rpartition("/")[2] for request in hub.of("content")}
        assert asked == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
        assert run(["convert", *arguments, "hf:owner/old"]) == 1
        assert "as pickle (adapter_model.bin)" in capsys.readouterr().err
        assert run(["convert", *arguments, "hf:owner/none"]) == 3
        assert "holds no LoRA adapter" in capsys.readouterr().err
    manifest = read_manifest(out / "gguf-F16/manifest.json")
    assert (manifest.name, manifest.recipe["LoRA adapter"][:13]) == ("tiny+tuned", "tuned, rank 4")
    # It is kept, and what was made has the name that was asked for; that of a published model it cannot have.
    assert run(["convert", *arguments, "hf:owner/tuned", "--force", "--dry-run"]) == 0
    assert resolve("tiny-tuned", settings=load_settings()).path == out / "gguf-F16/tiny+tuned-F16.gguf"
    (mine,) = (model for model in list_models(load_settings()) if model.name == "tiny-tuned")
    assert mine.licence == manifest.licence == "apache-2.0"
    assert run(["convert", *arguments, "hf:owner/tuned", "--name", "smollm2-135m", "--dry-run"]) == 2
    assert "smollm2-135m is the published model" in capsys.readouterr().err
    assert remove("hf:owner/tuned", load_settings()).freed_bytes > 0


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
            ModelFileError,
            "as pickle",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), ModelFileError, "lacks adapter_model"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"xx"), ModelFileError, "is damaged"),
        (lambda folder: (folder / "adapter_config.json").unlink(), ModelFileError, "so it is not an adapter"),
        (lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}'), ModelFileError, "type IA3"),
        (lambda folder: folder.rename(folder.with_name("away")), ModelNotFoundError, "There is no folder"),
    ],
)
def test_adapters_that_are_refused(
    change: Callable[[Path], Any], kind: type[Exception], said: str, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in adapter.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change(folder)
    with pytest.raises(kind, match=said):
        open_adapter(folder)


def test_an_adapter_of_another_model_is_refused(
    adapter: Path, tiny_checkpoint: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes = {name: info.shape for name, info in open_checkpoint(tiny_checkpoint("llama")).tensors.items()}
    with pytest.raises(ModelFileError, match=r"model\.layers\.[23]\.\S+, which this one does not have"):
        check_fit(open_adapter(adapter), shapes)
    wider = make_checkpoint(tmp_path / "wide", "llama", num_hidden_layers=4, intermediate_size=320)
    assert run(["convert", str(wider), "--lora", str(adapter), "--dry-run"]) == 1
    assert (
        "trained on another model: its change of model.layers.0.mlp.down_proj is of the shape [4, 256]"
        in capsys.readouterr().err
    )


# -- recipes and texts


def test_the_recipes_that_come_with_edge_can_be_read() -> None:
    assert {"smollm2-135m-15-layers", "smollm2-135m-28-layers", "smollm2-135m-english", "smollm2-135m-recovered"} <= set(
        list_recipes()
    )
    for name in list_recipes():
        found = find_recipe(name)
        assert found.title
        assert all(text.source is None or (text.source.licence and text.source.sha256) for text in found.texts)


@pytest.mark.parametrize(
    ("training", "n_params", "tokens", "answer_tokens"),
    [
        (Training(minutes=12), 100e6, 660_000, 200),
        (Training(minutes=12), 1.35e9, 66_000, 200),
        (Training(minutes=30), 135e6, 896_000, 200),
        (Training(minutes=30, window=128), 135e6, 448_000, 72),
        (Training(steps=100, window=1024), 135e6, 409_600, 200),
        (Training(minutes=0.1, window=96), 135e6, 50_000, 40),
    ],
)
def test_without_a_text_the_teacher_writes_as_much_as_is_read_once(
    training: Training, n_params: float, tokens: int, answer_tokens: int
) -> None:
    (text,) = with_texts(check_recipe(Recipe(keep_layers=2, training=training)), int(n_params)).texts
    assert (text.is_written, text.tokens, text.answer_tokens) == (True, tokens, answer_tokens)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("keep_layers = ", "not a TOML file"),
        ("keep_layers = 2\nkeep = 3", "keep is not known"),
        ('keep_layers = "two"', "keep_layers is text, and should be a whole number"),
        ('keep_layers = 2\n[training]\nminutes = 1\n[[texts]]\nname = "a"\ntokens = 0', "no text to train on"),
        ('keep_layers = 2\n[[texts]]\nname = "a"\ntokens = 9', "how many minutes or how many steps"),
        ('keep_layers = 2\n[training]\nminutes = 1\nsteps = 2\n[[texts]]\nname = "a"\ntokens = 9', "either how many minutes"),
        ("keep_layers = 2\n[training]\nminutes = inf", "minutes cannot have that value"),
        ("keep_layers = 2\n[training]\nminutes = nan", "how many minutes or how many steps"),
        ('keep_layers = 2\n[training]\nminutes = 1\nlr = 2\n[[texts]]\nname = "a"\ntokens = 9', "lr cannot have that value"),
        ('keep_layers = 2\n[training]\nminutes = 1\n[[texts]]\nname = "a/b"\ntokens = 9', "names of their own"),
    ],
)
def test_recipes_that_cannot_be_meant(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(content)
    with pytest.raises(UsageError, match=said):
        find_recipe(str(tmp_path / "r.toml"))


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no recipe nowhere") as caught:
        find_recipe("nowhere")
    assert "smollm2-135m-15-layers" in caught.value.hint


def test_texts(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"p": "one"}\n{"p": "two"}\n{"p": "one"}\n{"q": 1}\n')
    assert read_documents(Source(file=str(lines), field="p")) == ["one", "two"]
    with pytest.raises(UsageError, match="holds no text"):
        read_documents(Source(file=str(lines), field="z"))
    with pytest.raises(StorageError, match="not the version that the recipe"):
        read_documents(Source(file=str(lines), field="p", sha256="0" * 64))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read as a text"):
        read_documents(Source(file=str(tmp_path / "b.txt")))
    with pytest.raises(UsageError, match="There is no text"):
        read_documents(Source(file=str(tmp_path / "c.txt")))
    with pytest.raises(UsageError, match="package nowhere_to_be_found, which is not installed") as caught:
        read_documents(Source(file="a.txt", package="nowhere_to_be_found", install="pip install it"))
    assert "pip install it" in caught.value.hint


@pytest.mark.parametrize("gap", ["\n\n", "\n", " "])
def test_one_long_text_is_cut_into_pieces_that_can_be_held_out(gap: str, tmp_path: Path) -> None:
    text = gap.join(" ".join(f"w{n}-{m}" for m in range(20)) for n in range(300))
    (tmp_path / "a.txt").write_text(text)
    found = read_documents(Source(file=str(tmp_path / "a.txt")))
    assert len(found) > 10 and max(map(len, found)) <= 2000
    assert " ".join(found).split() == text.split()
    (tmp_path / "b.txt").write_text("x" * 9000)
    assert "".join(read_documents(Source(file=str(tmp_path / "b.txt"), sha256=""))) == "x" * 2000 + "x" * 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--keep-layers", "4", "--distill-minutes", "1"), "has 4 layers and cannot keep 4"),
        (("--keep-layers", "0", "--distill-minutes", "1"), "0 is not in the range"),
        (("--keep-layers", "2", "--distill-minutes", "0"), "0.0 is not in the range"),
        (("--keep-layers", "2"), "--distill-minutes 30"),
        (("--distill-minutes", "3"), "--keep-layers N or --recipe NAME"),
        (("--keep-layers", "2", "--distill-minutes", "1", "--distill-text", "nowhere.txt"), "There is no text nowhere.txt"),
    ],
)
def test_what_the_command_says(
    arguments: tuple[str, ...], said: str, four_layers: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(four_layers), *arguments, "--dry-run"]) == 2
    assert said in capsys.readouterr().err


def test_the_plan_is_shown_and_memory_is_checked(four_layers: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from edge.errors import ModelTooLargeError
    from edge_convert.pipeline import check_resources

    assert run(["convert", str(four_layers), "--keep-layers", "2", "--distill-minutes", "1", "--dry-run", "--json"]) == 0
    names = [step["name"] for step in json.loads(capsys.readouterr().out)["steps"]]
    expected = [
        "source",
        "written",
        "text",
        "hidden",
        "cut",
        "checkpoint-2-layers",
        "gguf-base",
        "imatrix",
        "gguf-Q4_K_M",
        "card",
    ]
    assert names == expected
    request = Request(
        smaller=check_recipe(Recipe(keep_layers=2, texts=(Text(name="a", tokens=99),), training=Training(steps=1)))
    )
    plan = make_plan(Input(kind="checkpoint", path=four_layers, source="tiny"), tmp_path, request)
    with pytest.raises(ModelTooLargeError):
        check_resources(plan, free_memory_bytes=200 << 20)


def test_a_student_keeps_no_layer_number_of_its_teacher(four_layers: Path) -> None:
    model = keep_layers(open_model(four_layers), (0, 3))
    assert [layer.self_attn.layer_idx for layer in model.base_model.layers] == [0, 1]
