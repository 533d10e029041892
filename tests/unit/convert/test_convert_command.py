"""`edge convert` from the command line to files that load, and what it says when it cannot."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs the extra [convert]: pip install 'edge-assistant[convert]'")

from edge.formats.artifact import open_artifact
from edge.formats.gguf import read_header
from edge_cli.main import run
from edge_convert.manifest import digest_file, write_manifest
from tests.servers.hub import Repo, run_hub
from tests.unit.convert.support import make_manifest, read_manifest

Make = Callable[[str], Path]


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


Call = Callable[..., Result]


@pytest.fixture
def convert(here: None, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run `edge convert ARGS` in this process."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = run(["convert", *map(str, arguments)])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_becomes_gguf(convert: Call, tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder, out = tiny_checkpoint("qwen3"), tmp_path / "out"
    options = ("--quant", "q4_0,F16", "--calibration-tokens", 256, "--no-card")
    shown = convert(folder, "--out", out, *options, "--dry-run")
    assert (shown.code, shown.out, out.exists()) == (0, "", False)
    assert "Quantise to Q4_0" in shown.err
    assert "of disk and" in shown.err
    made = convert(folder, "--out", out, *options)
    assert made.code == 0, made.err
    assert "5/5 Write F16" in made.err
    assert "Peak memory: " in made.err and "times the weights in 16 bits, " in made.err
    assert [line.split()[0] for line in made.out.splitlines()] == [str(out / "gguf-Q4_0"), str(out / "gguf-F16")]
    assert tree(out) == [
        "gguf-F16/manifest.json",
        "gguf-F16/qwen3-F16.gguf",
        "gguf-Q4_0/manifest.json",
        "gguf-Q4_0/qwen3-Q4_0.gguf",
    ]
    artifact = open_artifact(out / "gguf-Q4_0")
    assert (artifact.format, artifact.name, artifact.licence) == ("gguf", "qwen3", "apache-2.0")
    manifest = read_manifest(out / "gguf-Q4_0/manifest.json")
    assert (manifest.format, manifest.quantisation, manifest.licence) == ("gguf", "Q4_0", "apache-2.0")
    assert manifest.files == (digest_file(out / "gguf-Q4_0/qwen3-Q4_0.gguf"),)
    assert digest_file(folder / "model.safetensors") in manifest.source_files
    assert manifest.recipe["importance matrix"].startswith("256 tokens")
    assert str(tmp_path) not in (out / "gguf-Q4_0/manifest.json").read_text()
    again = convert(folder, "--out", out, *options)
    assert again.code == 2
    assert "--force" in again.err
    before = {name: (out / name).read_bytes() for name in tree(out)}
    assert convert(folder, "--out", out, *options, "--force").code == 0
    assert {name: (out / name).read_bytes() for name in tree(out)} == before


def test_a_gguf_is_copied_where_its_type_is_wanted_and_read_back_otherwise(
    convert: Call, tiny_checkpoint: Make, tmp_path: Path
) -> None:
    assert convert(tiny_checkpoint("llama"), "--quant", "Q8_0", "--out", tmp_path / "first", "--no-card").code == 0
    source = tmp_path / "first/gguf-Q8_0/llama-Q8_0.gguf"
    out = tmp_path / "second"
    options = ("--quant", "Q8_0,Q5_1", "--no-imatrix", "--no-card")
    made = convert(source, "--out", out, *options)
    assert made.code == 0, made.err
    assert "The source is quantised already (Q8_0)" in made.err
    assert (out / "gguf-Q8_0/llama-Q8_0.gguf").read_bytes() == source.read_bytes()
    header = read_header(out / "gguf-Q5_1/llama-Q5_1.gguf")
    assert (header.file_type, header.name, header.metadata["general.license"]) == ("Q5_1", "llama", "apache-2.0")
    manifest = read_manifest(out / "gguf-Q5_1/manifest.json")
    assert (manifest.source, manifest.source_quantised) == ("llama-Q8_0.gguf", "Q8_0")


def test_a_reference_to_the_hub(convert: Call, tiny_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name: path.read_bytes() for path in tiny_checkpoint("qwen2").iterdir()}
    with run_hub(**{"owner/tiny": Repo(files), "owner/old": Repo({"pytorch_model.bin": b"x", "config.json": b"{}"})}) as hub:
        monkeypatch.setenv("EDGE_HUB_ENDPOINT", hub.url)
        made = convert("hf:owner/tiny", "--quant", "F16", "--out", tmp_path / "out", "--no-card")
        assert made.code == 0, made.err
        refused = convert("hf:owner/old", "--out", tmp_path / "old")
        assert (refused.code, "as pickle (pytorch_model.bin)" in refused.err) == (1, True)
        assert convert("hf:owner/missing", "--out", tmp_path / "old").code == 3
    manifest = read_manifest(tmp_path / "out/gguf-F16/manifest.json")
    assert (manifest.source, manifest.name) == ("hf:owner/tiny", "tiny")
    # It is kept, so the second time needs no network.
    assert convert("hf:owner/tiny", "--quant", "F16", "--out", tmp_path / "again", "--no-card").code == 0
    first, second = ((tmp_path / name / "gguf-F16/tiny-F16.gguf").read_bytes() for name in ("out", "again"))
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--to", "gguf,tflite"), 2, "no format tflite"),
        (("--bits", "3"), 2, "3 bits a weight is not offered"),
        (("--quant", "Q4"), 2, "no quantisation Q4"),
        (("--quant", "IQ2_XS", "--no-imatrix"), 2, "too few bits"),
        (("--calibration", "nowhere.txt"), 2, "nowhere.txt cannot be read"),
        (("extra",), 2, "one source too many"),
        (("--to", "onnx", "--quant", "Q4_0"), 2, "--quant is only for gguf: --to onnx,gguf"),
        (("--variants", "gpu"), 2, "--variants is only for coreml"),
        (("--compute-units", "CPU_ONLY"), 2, "edge convert verify PATH"),
        (("--compute-units", "FOO"), 2, "is not one of"),
        (("--gate", "top2=1"), 2, "not a condition of a gate"),
        (("--gate", "top1=0.9", "--no-card"), 2, "leave out --no-card"),
        (("--to", "onnx", "--imatrix", "i.gguf"), 2, "--imatrix is only for gguf"),
        (("--to", "onnx", "--save-imatrix", "i.gguf"), 2, "--save-imatrix is only for gguf"),
        (("--to", "onnx", "--no-imatrix"), 2, "--no-imatrix is only for gguf"),
        (("--to", "onnx", "--shard", "2GB"), 2, "--shard is only for gguf"),
        (("--shard", "9" * 400), 2, "is not a size such as 2GB"),
        (("--save-imatrix", "no/where/i.gguf"), 2, "There is no folder"),
        (("--save-imatrix", "."), 1, "is a directory"),
        (("--imatrix", "nowhere.gguf"), 1, "nowhere.gguf cannot be read"),
        (("--recover-minutes", "1", "--shard", "2GB"), 2, "is written into one file"),
    ],
)
def test_wrong_options(
    arguments: tuple[str, ...], code: int, said: str, convert: Call, tiny_checkpoint: Make, tmp_path: Path
) -> None:
    result = convert(tiny_checkpoint("llama"), *arguments, "--out", tmp_path / "out")
    assert (result.code, said in result.err) == (code, True), result.err
    assert not (tmp_path / "out").exists()


def test_an_importance_matrix_is_not_stored_over_something_else(convert: Call, tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "copy"))
    weights = folder / "model.safetensors"
    before = weights.read_bytes()
    said = convert(folder, "--quant", "Q4_0", "--save-imatrix", weights, "--no-card", "--out", tmp_path / "out")
    assert (said.code, "exists, and is not an importance matrix" in said.err) == (2, True), said.err
    assert weights.read_bytes() == before
    place = tmp_path / "out" / "imatrix.gguf"  # in the folder of the results, which is not there yet
    assert convert(folder, "--quant", "Q4_0", "--save-imatrix", place, "--dry-run", "--out", tmp_path / "out").code == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("option", ["--calibration", "--imatrix", "--save-imatrix", "--recipe"])
@pytest.mark.parametrize("kind", ["FIFO", "device"])
def test_a_file_that_never_ends_is_not_waited_for(
    option: str, kind: str, convert: Call, tiny_checkpoint: Make, tmp_path: Path
) -> None:
    path = Path("/dev/zero") if kind == "device" else tmp_path / "fifo"
    if kind == "FIFO":
        os.mkfifo(path)
    said = convert(tiny_checkpoint("llama"), "--quant", "Q4_0", option, path, "--dry-run", "--out", tmp_path / "out")
    assert (said.code in (1, 2), f"is a {kind}" in said.err) == (True, True), said.err


def test_bad_sources(convert: Call, tiny_checkpoint: Make, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "copy"))
    out = ("--out", tmp_path / "out")
    weights = folder / "model.safetensors"
    one = convert(weights, *out)
    assert (one.code, "is one file of a checkpoint" in one.err) == (2, True)
    weights.write_bytes(weights.read_bytes()[:-100])
    cut = convert(folder, *out)
    assert (cut.code, "model.safetensors is damaged or truncated" in cut.err) == (1, True)
    weights.rename(folder / "pytorch_model.bin")
    pickled = convert(folder, *out)
    assert (pickled.code, "as pickle (pytorch_model.bin)" in pickled.err) == (1, True)
    assert convert(folder / "pytorch_model.bin", *out).code == 1
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["MambaForCausalLM"]}))
    unknown = convert(folder, *out)
    assert (unknown.code, "is a MambaForCausalLM" in unknown.err, "Qwen3ForCausalLM" in unknown.err) == (1, True, True)
    assert convert(tmp_path / "nowhere/at/all", *out).code == 3
    (folder / "config.json").unlink()
    (folder / "pytorch_model.bin").rename(weights)
    bare = convert(folder, *out)
    assert (bare.code, "has no config.json" in bare.err) == (1, True)
    (tmp_path / "empty").mkdir()
    empty = convert(tmp_path / "empty", *out)
    assert (empty.code, "folder of a checkpoint, with its config.json" in empty.err) == (1, True)
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(
    convert: Call, tiny_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name == "transformers" else real(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    result = convert(tiny_checkpoint("llama"), "--out", tmp_path / "out")
    assert (result.code, "not installed: transformers" in result.err) == (4, True)
    assert "edge-assistant[convert]" in result.err


def test_a_folder_for_results_that_cannot_be(convert: Call, tiny_checkpoint: Make) -> None:
    for name, why in (("a" * 300, "File name too long"), ("b\udcff", "not UTF-8")):
        result = convert(tiny_checkpoint("llama"), "--out", name, "--dry-run")
        assert (result.code, why in result.err, "--out" in result.err) == (2, True, True), result.err


def test_the_plan_as_json(convert: Call, tiny_checkpoint: Make, tmp_path: Path) -> None:
    result = convert(tiny_checkpoint("llama3"), "--out", tmp_path / "out", "--dry-run", "--json", "--bits", 8, "--no-card")
    plan = json.loads(result.out)
    assert [step["name"] for step in plan["steps"]] == ["source", "gguf-base", "gguf-Q8_0"]
    assert plan["artifacts"] == [str(tmp_path / "out/gguf-Q8_0")]
    assert plan["disk_bytes"] > 0


def test_what_a_stopped_conversion_leaves_is_named(
    convert: Call, tiny_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    arguments = (tiny_checkpoint("llama"), "--out", tmp_path / "out", "--no-card", "--no-imatrix")
    with monkeypatch.context() as patched:
        patched.setattr("edge_cli.convert._judge", interrupt)
        stopped = convert(*arguments, "--quant", "F16")
    (left,) = (tmp_path / "out").iterdir()
    assert stopped.code == 130
    assert f"Finished steps are kept in {left}: the same command resumes" in stopped.err
    again = convert(*arguments, "--quant", "F16", "--dry-run")
    assert "already done" in again.err and "Delete it." not in again.err
    other = convert(*arguments, "--quant", "Q8_0", "--dry-run")
    assert f"{left} is left over from an interrupted conversion" in other.err
    assert json.loads(convert(*arguments, "--quant", "Q8_0", "--dry-run", "--json").out)["left_over"] == [str(left)]
    with (left / "lock").open("rb") as lock:  # as if it were running
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "is left over" not in convert(*arguments, "--quant", "Q8_0", "--dry-run").err


def test_the_card_and_its_gate(convert: Call, tiny_checkpoint: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from msgspec.structs import replace

    from edge_convert.evaluate import steps
    from edge_convert.evaluate.evaluation import EvaluateOptions
    from edge_convert.evaluate.passages import TextOptions

    little = EvaluateOptions(texts=TextOptions(n_prose=128, window=64, n_prompts=1, n_answer=4), n_rounds=0)
    monkeypatch.setattr(steps, "EvaluateOptions", lambda **given: replace(little, **given))
    out = tmp_path / "out"
    arguments = (tiny_checkpoint("llama"), "--quant", "F16,Q2_K", "--no-imatrix", "--out", out)
    failed = convert(*arguments, "--gate", "top1=0.999,kl=0.001")
    assert failed.code == 5, failed.err
    assert "llama-Q2_K: top1 is" in failed.err
    assert [path.name for path in out.iterdir() if not path.name.startswith(".work-")] == []
    # Another gate is tried on what was measured: nothing is made or measured again.
    passed = convert(*arguments, "--gate", "top1=0.01")
    assert passed.code == 0, passed.err
    assert passed.err.count("(already done)") == 2 * 5  # in the plan and on the way
    assert "llama-Q2_K" in passed.out.split("perplexity")[-1]
    card = json.loads((out / "card/card.json").read_text())
    assert [row["name"] for row in card["rows"]] == ["llama", "llama-F16", "llama-Q2_K"]
    assert card["gate"] == "top1=0.01"
    assert (out / "card/card.md").stat().st_size > 100 < (out / "card/card.html").stat().st_size


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("日" * 80, "日" * 33),
        ("a\nb\u202ec\x1b[31m", "a b c [31m"),
    ],
)
def test_names_that_a_result_cannot_have(name: str, made: str, convert: Call, tiny_checkpoint: Make, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / name))
    shown = convert(copy, "--quant", "F32", "--no-card", "--out", tmp_path / "out")
    assert shown.code == 0 and f"{made} (Llama" in shown.err
    assert tree(tmp_path / "out") == sorted([f"gguf-F32/{made}-F32.gguf", "gguf-F32/manifest.json"])
    assert read_manifest(tmp_path / "out/gguf-F32/manifest.json").source == made
    (copy / "config.json").write_text("[]")
    refused = convert(copy, "--out", tmp_path / "out2")
    assert refused.code == 1 and refused.err.count("\n") == 2
    assert not {"\x1b", "\u202e"} & set(refused.err)


def test_a_source_whose_name_is_not_utf8(convert: Call, tiny_checkpoint: Make, tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff")
    try:
        copy = Path(shutil.copytree(tiny_checkpoint("llama"), name))
    except OSError:
        pytest.skip("this disk has names in UTF-8 only")
    gguf = copy / os.fsdecode(b"m\xff.gguf")
    gguf.write_bytes(b"GGUF")
    for source in (copy, gguf):
        refused = convert(source, "--dry-run")
        assert refused.code == 1 and "cannot be converted: its path is not UTF-8" in refused.err
    whole = tiny_checkpoint("llama")
    refused = convert(whole, "--lora", copy, "--dry-run")
    assert refused.code == 1 and "not UTF-8" in refused.err
    (copy / "text").write_text("Words of a text. " * 500)
    options = ("--quant", "Q4_0", "--calibration-tokens", 128, "--calibration", copy / "text", "--no-card")
    made = convert(whole, *options, "--out", tmp_path / "out")
    assert made.code == 0, made.err
    (tmp_path / "link").symlink_to(copy)
    linked = convert(tmp_path / "link", "--quant", "F32", "--no-card", "--out", tmp_path / "linked")
    assert linked.code == 0, linked.err
    assert read_manifest(tmp_path / "linked/gguf-F32/manifest.json").source == "bad?"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ messages[7].content.x.y }}", "chat template cannot be used"),
        ("{% for m in messages %}{{ m.content }", "chat template cannot be used"),
        ("nothing {{ 'of' }} it", "leaves the messages out"),
        ("{{ raise_exception('no ' + messages[0].role) }}", "chat template cannot be used"),
    ],
)
def test_a_template_that_does_not_render_is_said_with_the_plan(
    template: str, said: str, convert: Call, tiny_checkpoint: Make, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint("qwen3"), tmp_path / "copy"))
    options = ("--dry-run", "--no-card", "--out", tmp_path / "out")
    assert "chat template" not in convert(copy, *options).err
    (copy / "chat_template.jinja").write_text(template)
    shown = convert(copy, *options)
    assert shown.code == 0 and said in flat(shown.err)
    (copy / "chat_template.jinja").unlink()
    named = [{"name": name, "template": "{{ messages[0].content }}"} for name in ("tool_use", "rag")]
    config = json.loads((copy / "tokenizer_config.json").read_text())
    (copy / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    assert "chat templates by the names rag, tool_use, and none is the default" in flat(convert(copy, *options).err)


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused_with_the_plan(
    convert: Call, tiny_checkpoint: Make, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint("qwen3"), tmp_path / "copy"))
    content = json.loads((copy / "tokenizer.json").read_text())
    vocabulary = [[text, -1.0] for text in content["model"]["vocab"]]
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": True}
    for model, said in (
        (unigram, "its tokenizer is a Unigram, and llama.cpp's own Unigram kind"),
        ({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "its tokenizer is a WordLevel"),
        ({"type": ["a"]}, "model.type is a list, and should be text or null"),
    ):
        (copy / "tokenizer.json").write_text(json.dumps({**content, "model": model}))
        refused = convert(copy, "--dry-run", "--no-card", "--out", tmp_path / "out")
        assert refused.code == 1 and said in flat(refused.err), refused.err
    (copy / "tokenizer.json").write_text(json.dumps({**content, "model": unigram}))
    assert convert(copy, "--dry-run", "--no-card", "--to", "coreml", "--context", 64, "--out", tmp_path / "out").code == 0


@pytest.mark.parametrize("form", ["gguf", "onnx"])
def test_verify_finds_a_changed_byte_and_a_missing_file(form: str, convert: Call, tmp_path: Path) -> None:
    """Of a folder, and of a GGUF in it."""
    folder = tmp_path / f"{form}-x"
    folder.mkdir()
    model = folder / ("model.onnx" if form == "onnx" else "tiny.gguf")
    files = {model: b"weights", folder / "genai_config.json": b"{}"} if form == "onnx" else {model: b"weights"}
    for path, content in files.items():
        path.write_bytes(content)
    write_manifest(folder / "manifest.json", make_manifest(format=form, files=tuple(map(digest_file, files))))
    named = [folder] if form == "onnx" else [folder, model]
    for path in named:
        good = convert("verify", path)
        assert (good.code, good.out.splitlines()[-1]) == (0, "The files are those that the conversion made."), good.err
        assert json.loads(convert("verify", path, "--json").out) == {"n_files": len(files)}
    model.write_bytes(b"Weights")
    for path in named:
        bad = convert("verify", path)
        assert (bad.code, bad.out) == (1, "")
        assert f"{model} has changed since it was made: it has another SHA-256 than in manifest.json" in flat(bad.err)
    model.unlink()
    gone = convert("verify", folder)
    assert gone.code == 1 and f"{model} is missing; manifest.json lists it" in flat(gone.err)
    (folder / "manifest.json").unlink()
    model.write_bytes(b"weights")
    alone = convert("verify", model)
    assert alone.code == 1 and "There is no manifest.json beside" in alone.err
    nothing = convert("verify", tmp_path / "nothing")
    assert nothing.code == 3 and "There is no file or folder" in nothing.err
    assert convert("verify", folder, "--compute-units", "CPU_ONLY").code == 2


def flat(text: str) -> str:
    return " ".join(text.split())
